"""The binding reason why a recipient was not sent: from rows to one cause, in one place for all.

Contract. ``reason`` is pure: it takes what a store saw in one look (``Facts``), which lock files
are held, and that moment; it looks at things in the order in which an engine would stumble, which
is that of ``Cause``. Of what ends by itself at a known time (due, suspension, DNS) the one that
lasts longest binds. Every sentence speaks of the moment of the look and promises nothing.

Knows no command's output and no SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from mailstrom.causes import Cause, Waiting
from mailstrom.spans import span_text
from mailstrom.storage.facts import (
    COUNTED,
    ROOM_BYTES,
    Facts,
    LaneFacts,
    RecipientFacts,
    SiteFacts,
    WorkerFacts,
)
from mailstrom.storage.pinned import mebibytes
from mailstrom.types import Reason, RouteResult, Status, from_ms, iso_ms

SIGN_OF_LIFE_MS = 30_000
"""A worker's row is written every five seconds."""
NEGATIVE = frozenset({RouteResult.NULL_MX, RouteResult.NO_DOMAIN, RouteResult.LOOP})
"""Answers by which a domain takes no mail."""


class Look(NamedTuple):
    """What a look saw, and who lives.

    Args:
        held: lock files that somebody holds; a process whose file is not among them has ended.
    """

    facts: Facts
    held: Collection[str]
    now_ms: int

    @property
    def living(self) -> list[WorkerFacts]:
        """Delivery workers whose process lives."""
        return [one for one in self.facts.workers if one.lock in self.held]

    @property
    def working(self) -> list[WorkerFacts]:
        """Those that gave a sign of life lately, and may claim."""
        since_ms = self.now_ms - SIGN_OF_LIFE_MS
        return [
            one for one in self.living if one.heartbeat_ms > since_ms and one.state != "draining"
        ]


class _Said(NamedTuple):
    """A cause in words; see ``Waiting``."""

    cause: Cause
    detail: str
    change: str = ""
    until_ms: int | None = None
    by: str | None = None


def reason(fact: RecipientFacts, look: Look) -> Waiting:
    """The first thing that is in the way of a recipient.

    Args:
        fact: one of ``look.facts.recipients``.
    """
    said = next(found for step in _STEPS if (found := step(fact, look)) is not None)
    at = from_ms(look.now_ms)
    assert at is not None
    return Waiting(
        at=at,
        message_id=fact.message_id,
        address=fact.address,
        status=fact.status,
        cause=said.cause,
        until=from_ms(said.until_ms),
        by=said.by,
        detail=said.detail,
        change=said.change,
        site=fact.site.key if fact.site else None,
        lanes=fact.site.lanes if fact.site else None,
        lanes_limit=_most(fact.site)[0] if fact.site else None,
        ahead=fact.ahead,
    )


# --- over, held, copied -----------------------------------------------------------------------


def _over(fact: RecipientFacts, look: Look) -> _Said | None:
    when = iso_ms(fact.finished_ms)
    if fact.status is Status.DELIVERED:
        return _Said(Cause.FINAL_DELIVERED, f"nothing more, it was delivered at {when}")
    if fact.status is Status.CANCELLED:
        return _Said(
            Cause.FINAL_CANCELLED, f"nothing more, it was cancelled at {when}", by="a person"
        )
    if fact.status is not Status.FAILED:
        return None
    words = _reply(fact)
    detail = f"nothing more, it failed at {when} ({fact.reason}{f': {words}' if words else ''})"
    if fact.reason == Reason.DAMAGED:
        change = "what is stored is not what was accepted: send it anew"
        return _Said(Cause.FINAL_FAILED, detail, change)
    change = f"'mailstrom queue retry {fact.message_id} --status failed' tries again"
    route = fact.route
    if fact.attempts and route and route.result in NEGATIVE and route.expires_ms > look.now_ms:
        until = _when(route.expires_ms, look.now_ms)
        change += f", by the same answer for {fact.domain} ({route.result}) until {until}"
    return _Said(Cause.FINAL_FAILED, detail, change, by=fact.mx)


def _held(fact: RecipientFacts, look: Look) -> _Said | None:
    if fact.status is not Status.HELD:
        return None
    release = f"'mailstrom queue release {fact.message_id}' lets it go"
    if fact.reason == Reason.IN_DOUBT:
        return _Said(
            Cause.HELD_IN_DOUBT,
            "nobody knows whether it was delivered",
            f"ask its reader, then 'mailstrom resolve {fact.message_id} delivered|retry|failed'",
            fact.expires_ms,
        )
    if fact.reason == Reason.POISON:
        detail = "its connection was lost again and again with this message on the wire"
        return _Said(Cause.HELD_POISON, detail, release, fact.expires_ms)
    return _Said(Cause.HELD_BY_USER, "held by a person", release, fact.expires_ms, "a person")


def _copied(fact: RecipientFacts, look: Look) -> _Said | None:
    facts = look.facts
    if facts.copied_ms is None:
        return None
    source = f" of {facts.copied_from}" if facts.copied_from else ""
    detail = f"this spool is a copy{source}: nothing goes out before 'mailstrom store adopt'"
    return _Said(Cause.COPIED, detail, "adopt it if the original is gone")


# --- in a worker's hands ----------------------------------------------------------------------


def _in_hand(fact: RecipientFacts, look: Look) -> _Said | None:
    if not fact.claimed or fact.lane is None:
        return None
    lane, sending = fact.lane, fact.status is Status.SENDING
    who = _worker(lane)
    if lane.lock not in look.held:
        had = "had it on the wire" if sending else "had claimed it"
        then = "it is in doubt then" if sending else "it is due again then"
        start = "" if look.living else "start 'mailstrom serve': "
        return _Said(
            Cause.WORKER_LOST,
            f"{who} {had}, and has ended",
            f"{start}the janitor takes it back, {then}",
            by=who,
        )
    if sending:
        host = lane.host or (fact.site.key if fact.site else "its host")
        where = f"{host} [{lane.address}]" if lane.address else host
        since = f" since {iso_ms(lane.opened_ms)}" if lane.opened_ms else ""
        return _Said(
            Cause.SENDING,
            f"on the wire now: {who} sends it to {where}{since}",
            "the reply of that host decides, or the end of [timeouts]; nothing takes it back",
            by=who,
        )
    site = f" for a connection to {fact.site.key}" if fact.site else ""
    return _Said(
        Cause.CLAIMED,
        f"{who} has it{site} (lane {lane.token}) and sends it next",
        "its turn on that connection, or the end of it",
        by=who,
    )


def _worker(lane: LaneFacts) -> str:
    where = f" (pid {lane.pid} on {lane.name})" if lane.pid is not None else ""
    return f"worker {lane.worker}{where}"


def _registered(one: WorkerFacts) -> str:
    return f"worker {one.worker} (pid {one.pid} on {one.host})"


# --- its time ---------------------------------------------------------------------------------


def _expired(fact: RecipientFacts, look: Look) -> _Said | None:
    if fact.expires_ms > look.now_ms or not look.living:
        return None
    detail = f"its time ended at {iso_ms(fact.expires_ms)}"
    return _Said(Cause.EXPIRED, detail, "the engine's janitor fails it at its next look")


def _not_yet(fact: RecipientFacts, look: Look) -> _Said | None:
    """Of what ends by itself at a known time, what lasts longest."""
    now_ms, due_ms = look.now_ms, fact.due_ms or 0
    suspended_ms = fact.site.suspended_until_ms if fact.site else 0
    dns_ms = 0
    if fact.route and fact.route.result is RouteResult.TEMPORARY and (not fact.site or fact.stale):
        dns_ms = fact.route.retry_ms
    until_ms = max(due_ms, suspended_ms, dns_ms)
    if until_ms <= now_ms or (fact.expires_ms <= now_ms and not look.living):
        return None
    if until_ms == dns_ms:
        said = _dns_fails(fact, look)
    elif until_ms == suspended_ms:
        said = _suspended(fact, look)
    else:
        said = _not_due(fact, look)
    detail = said.detail
    if now_ms < fact.expires_ms <= until_ms:
        detail += f"; its time ends before that, at {iso_ms(fact.expires_ms)}"
    if not look.living:
        detail += "; no engine runs on this spool now"
    return said._replace(detail=detail, until_ms=until_ms)


def _dns_fails(fact: RecipientFacts, look: Look) -> _Said:
    assert fact.route is not None
    when = _when(fact.route.retry_ms, look.now_ms)
    why = fact.route.error or "no answer"
    return _Said(
        Cause.DNS_TEMPORARY,
        f"the mail hosts of {fact.domain} cannot be looked up ({why}); asked again at {when}",
        f"'mailstrom queue retry {fact.message_id}' asks at once",
        by="DNS",
    )


def _suspended(fact: RecipientFacts, look: Look) -> _Said:
    site = fact.site
    assert site is not None
    why = "; ".join(
        part for part in (site.suspended_reason, site.suspended_by, site.last_reply) if part
    )
    times = f", {site.failures} times in a row" if site.failures > 1 else ""
    when = _when(site.suspended_until_ms, look.now_ms)
    return _Said(
        Cause.SITE_SUSPENDED,
        f"its site {site.key} is left alone until {when} since no host would talk{times}: {why}",
        f"'mailstrom queue retry {fact.message_id}' tries at once",
        by=site.suspended_by,
    )


def _not_due(fact: RecipientFacts, look: Look) -> _Said:
    assert fact.due_ms is not None
    when = _when(fact.due_ms, look.now_ms)
    if fact.due_ms == fact.send_ms and not fact.attempts:
        return _Said(
            Cause.SCHEDULED,
            f"not before {when}, as its sender asked",
            f"nothing hastens it; 'mailstrom queue cancel {fact.message_id}' takes it back",
            by=None,
        )
    words = _reply(fact)
    host = f" {fact.mx}" if fact.mx else ""
    because = f" after{host} said: {words}" if words else f" ({fact.reason})" if fact.reason else ""
    doubt = "; it may have been delivered" if fact.in_doubt else ""
    retry = fact.send_ms <= look.now_ms or fact.attempts
    return _Said(
        Cause.NOT_DUE,
        f"next attempt {when}{because}{doubt}",
        f"'mailstrom queue retry {fact.message_id}' tries at once" if retry else "its time",
        by=fact.mx,
    )


# --- who would send it ------------------------------------------------------------------------


def _nobody(fact: RecipientFacts, look: Look) -> _Said | None:
    """No worker that may claim it."""
    if look.working:
        return None
    due = "due" if fact.expires_ms > look.now_ms else f"its time ended at {iso_ms(fact.expires_ms)}"
    if not look.living:
        gone = "; ".join(
            f"{_registered(one)} has ended without a word" for one in look.facts.workers[:3]
        )
        return _Said(
            Cause.NO_WORKER,
            f"{due}, and no engine runs on this spool{f' ({gone})' if gone else ''}",
            "start 'mailstrom serve'",
        )
    last = max(look.living, key=lambda one: one.heartbeat_ms)
    who = _registered(last)
    if last.heartbeat_ms <= look.now_ms - SIGN_OF_LIFE_MS:
        return _Said(
            Cause.WORKER_SILENT,
            f"{due}, and no delivery worker gave a sign of life since"
            f" {iso_ms(last.heartbeat_ms)}: the last was {who}",
            "look after 'mailstrom serve'",
            by=who,
        )
    return _Said(
        Cause.DRAINING,
        f"{due}, and every delivery worker is draining: nothing more is claimed",
        "the next start of 'mailstrom serve'",
        by=who,
    )


def _poisoned(fact: RecipientFacts, look: Look) -> _Said | None:
    if look.facts.trouble is None:
        return None
    return _Said(
        Cause.SPOOL_POISONED,
        f"due; nothing can be recorded: {look.facts.trouble}",
        "'mailstrom store check' says what keeps the repair",
    )


def _no_room(fact: RecipientFacts, look: Look) -> _Said | None:
    if look.facts.log_full:
        return _Said(
            Cause.LOG_FULL,
            "due; nothing is claimed while a process keeps the write-ahead log at its limit",
            "'mailstrom store check' names it",
        )
    room = look.facts.room_bytes
    if room is not None and room < ROOM_BYTES:
        return _Said(
            Cause.DISK_LOW,
            f"due; nothing is claimed with {mebibytes(room)} left for the spool",
            f"room for results: {mebibytes(ROOM_BYTES)} or more",
        )
    return None


# --- where it goes ----------------------------------------------------------------------------


def _unrouted(fact: RecipientFacts, look: Look) -> _Said | None:
    if fact.site is not None:
        return None
    route, now_ms = fact.route, look.now_ms
    if route and route.router is not None:
        known = next((one for one in look.facts.workers if one.worker == route.router), None)
        who = _registered(known) if known else f"worker {route.router}"
        detail = f"due; {who} looks up the mail hosts of {fact.domain} now"
        return _Said(Cause.ROUTE_PENDING, detail, "the answer of DNS", by=who)
    if route and route.result in NEGATIVE and route.expires_ms > now_ms:
        why = route.error or route.result
        return _Said(
            Cause.DNS_NEGATIVE,
            f"due; {fact.domain} takes no mail by an answer that holds until"
            f" {_when(route.expires_ms, now_ms)}: {why}",
            "it fails when a worker comes to it",
            route.expires_ms,
            "DNS",
        )
    retry_ms = route.retry_ms if route and route.retry_ms > now_ms else None
    after = f", not before {_when(retry_ms, now_ms)}" if retry_ms else ""
    return _Said(
        Cause.ROUTE_PENDING,
        f"due; the mail hosts of {fact.domain} are to be looked up first{after}",
        "a worker does that",
        retry_ms,
    )


def _stale(fact: RecipientFacts, look: Look) -> _Said | None:
    if not fact.stale:
        return None
    return _Said(
        Cause.ROUTE_PENDING,
        f"due; what is known of the mail hosts of {fact.domain} holds no more: they are to be"
        " looked up again first",
        "a worker does that",
    )


def _line(fact: RecipientFacts, look: Look) -> _Said:
    """It may go as soon as a connection is there for it."""
    site = fact.site
    assert site is not None
    before = _before(fact.ahead)
    most, why = _most(site)
    if most is not None and site.lanes >= most:
        return _Said(
            Cause.SITE_LIMIT,
            f"due; {why}{before}",
            "the end of one of them" if site.lanes > 1 else "what that one finds out",
        )
    limit, working = look.facts.max_connections, look.working
    if limit is not None and all(one.lanes >= limit for one in working):
        return _Said(
            Cause.CONNECTION_LIMIT,
            f"due; all connections that workers may have are in use: {limit} each"
            f" ([delivery] max_connections), {len(working)} working{before}",
            "the end of one of them",
        )
    if site.lanes == 0:
        unknown = ""
        if limit is None:
            lanes = sum(one.lanes for one in working)
            unknown = (
                f"; workers have {lanes} open elsewhere, and this spool does not say how many they"
                " may have ([delivery] max_connections)"
            )
        return _Said(
            Cause.NO_LANE,
            f"due; no connection to {site.key} is open yet{before}{unknown}",
            "it goes out as soon as a worker comes to it",
        )
    of = f" of {most}" if most is not None else ""
    return _Said(
        Cause.IN_LINE,
        f"due; it waits for its turn: {site.lanes}{of} connections to {site.key} are open{before}",
        "it goes out as soon as a worker comes to it",
    )


def _most(site: SiteFacts) -> tuple[int | None, str]:
    """How many connections the site may have now, and a sentence for when it has them."""
    if site.canary:
        if site.failures:
            why = f"it failed {site.failures} time{'' if site.failures == 1 else 's'} in a row"
        else:
            why = "it has taken no message yet"
        return 1, f"one connection finds out about {site.key} before more are opened: {why}"
    if site.cap is not None and (site.limit is None or site.cap < site.limit):
        return site.cap, f"{site.key} was seen to bear {site.cap} connections, all are in use"
    if site.limit is None:
        return None, ""
    return site.limit, f"all {site.limit} connections that {site.key} may have are in use"


def _before(ahead: int | None) -> str:
    if not ahead:
        return ""
    number = f"{COUNTED:,} or more others are" if ahead >= COUNTED else f"{ahead:,} others are"
    return f"; {'one other is' if ahead == 1 else number} due there before it"


def _when(at_ms: int, now_ms: int) -> str:
    """``2030-01-31T08:00:00.000Z (in 4m 10s)``."""
    return f"{iso_ms(at_ms)} (in {span_text(at_ms - now_ms)})"


def _reply(fact: RecipientFacts) -> str:
    return reply(fact.reply_code, fact.enhanced_code, fact.reply_text)


def reply(code: int | None, enhanced: str | None, text: str | None) -> str:
    """The remote server's words on one line, as it said them."""
    words = text or ""
    if enhanced and not words.startswith(enhanced):
        words = f"{enhanced} {words}"
    if code is not None and not words.startswith(str(code)):
        words = f"{code} {words}"
    return words.strip()


_STEPS: tuple[Callable[[RecipientFacts, Look], _Said | None], ...] = (
    _over, _held, _copied, _in_hand, _expired, _not_yet, _nobody, _poisoned, _unrouted, _no_room,
    _stale, _line,
)  # fmt: skip
