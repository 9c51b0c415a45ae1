"""The binding reason why a recipient was not sent: from rows to one cause, in one place for all.

Contract. ``reason`` is pure: it takes what a store saw in one look (``Facts``), which lock files
are held, and that moment; it looks at things in the order in which an engine would stumble, which
is that of ``Cause``. Of what ends by itself at a known time (due, suspension, DNS) the one that
lasts longest binds. Every sentence speaks of the moment of the look and promises nothing.

Knows no command's output and no SQL.
"""

from __future__ import annotations

from collections.abc import Callable

from mailstrom.causes import Cause, Waiting
from mailstrom.client.look import NEGATIVE, Look, Said, moment, reply, worker
from mailstrom.client.obstacles import lanes_limit, line, no_room, nobody, poisoned, stale, unrouted
from mailstrom.policy.site import CRASHED
from mailstrom.storage.facts import RecipientFacts
from mailstrom.types import Reason, RouteResult, Status, from_ms, iso_ms

_RETRY = "'mailstrom queue retry"


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
        lanes_limit=lanes_limit(fact.site)[0] if fact.site else None,
        ahead=fact.ahead,
    )


# --- over, held, copied -----------------------------------------------------------------------


def _over(fact: RecipientFacts, look: Look) -> Said | None:
    when = iso_ms(fact.finished_ms)
    if fact.status is Status.DELIVERED:
        return Said(Cause.FINAL_DELIVERED, f"nothing more, it was delivered at {when}")
    if fact.status is Status.CANCELLED:
        return Said(
            Cause.FINAL_CANCELLED, f"nothing more, it was cancelled at {when}", by="a person"
        )
    if fact.status is not Status.FAILED:
        return None
    words = reply(fact.reply_code, fact.enhanced_code, fact.reply_text)
    detail = f"nothing more, it failed at {when} ({fact.reason}{f': {words}' if words else ''})"
    if fact.reason == Reason.DAMAGED:
        change = "what is stored is not what was accepted: send it anew"
        return Said(Cause.FINAL_FAILED, detail, change)
    change = f"'mailstrom queue retry {fact.message_id} --status failed' tries again"
    route = fact.route
    if fact.attempts and route and route.result in NEGATIVE and route.expires_ms > look.now_ms:
        until = moment(route.expires_ms, look.now_ms)
        change += f", by the same answer for {fact.domain} ({route.result}) until {until}"
    return Said(Cause.FINAL_FAILED, detail, change, by=fact.mx)


def _held(fact: RecipientFacts, look: Look) -> Said | None:
    if fact.status is not Status.HELD:
        return None
    release = f"'mailstrom queue release {fact.message_id}' lets it go"
    if fact.reason == Reason.IN_DOUBT:
        return Said(
            Cause.HELD_IN_DOUBT,
            "nobody knows whether it was delivered",
            f"ask its reader, then 'mailstrom resolve {fact.message_id} delivered|retry|failed'",
            fact.expires_ms,
        )
    if fact.reason == Reason.POISON:
        detail = "its connection was lost again and again with this message on the wire"
        return Said(Cause.HELD_POISON, detail, release, fact.expires_ms)
    return Said(Cause.HELD_BY_USER, "held by a person", release, fact.expires_ms, "a person")


def _copied(fact: RecipientFacts, look: Look) -> Said | None:
    facts = look.facts
    if facts.copied_ms is None:
        return None
    source = f" of {facts.copied_from}" if facts.copied_from else ""
    detail = f"this spool is a copy{source}: nothing goes out before 'mailstrom store adopt'"
    return Said(Cause.COPIED, detail, "adopt it if the original is gone")


# --- in a worker's hands ----------------------------------------------------------------------


def _in_hand(fact: RecipientFacts, look: Look) -> Said | None:
    if not fact.claimed or fact.lane is None:
        return None
    lane, sending = fact.lane, fact.status is Status.SENDING
    who = worker(lane)
    if lane.lock not in look.held:
        had = "had it on the wire" if sending else "had claimed it"
        then = "it is in doubt then" if sending else "it is due again then"
        start = "" if look.living else "start 'mailstrom serve': "
        return Said(
            Cause.WORKER_LOST,
            f"{who} {had}, and has ended",
            f"{start}the janitor takes it back, {then}",
            by=who,
        )
    if sending:
        host = lane.host or (fact.site.key if fact.site else "its host")
        where = f"{host} [{lane.address}]" if lane.address else host
        since = f" since {iso_ms(lane.opened_ms)}" if lane.opened_ms else ""
        return Said(
            Cause.SENDING,
            f"on the wire, or next on it: {who} sends it to {where}{since}",
            "the reply of that host decides, or the end of [timeouts]; nothing takes it back",
            by=who,
        )
    site = f" for a connection to {fact.site.key}" if fact.site else ""
    return Said(
        Cause.CLAIMED,
        f"{who} has it{site} (lane {lane.token}) and sends it next",
        "its turn on that connection, or the end of it",
        by=who,
    )


# --- its time ---------------------------------------------------------------------------------


def _expired(fact: RecipientFacts, look: Look) -> Said | None:
    if fact.expires_ms > look.now_ms or not look.living:
        return None
    detail = f"its time ended at {iso_ms(fact.expires_ms)}"
    return Said(Cause.EXPIRED, detail, "the engine's janitor fails it at its next look")


def _not_yet(fact: RecipientFacts, look: Look) -> Said | None:
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
    detail, change = said.detail, said.change
    if now_ms < fact.expires_ms <= until_ms:
        detail += f"; its time ends before that, at {iso_ms(fact.expires_ms)}"
    if not look.living:
        detail += "; no engine runs on this spool now"
        if change.startswith(_RETRY):
            change = f"start 'mailstrom serve'; then {change}"
    return said._replace(detail=detail, change=change, until_ms=until_ms)


def _dns_fails(fact: RecipientFacts, look: Look) -> Said:
    assert fact.route is not None
    when = moment(fact.route.retry_ms, look.now_ms)
    why = fact.route.error or "no answer"
    return Said(
        Cause.DNS_TEMPORARY,
        f"the mail hosts of {fact.domain} cannot be looked up ({why}); asked again at {when}",
        f"{_RETRY} {fact.message_id}' asks at once",
        by="DNS",
    )


def _suspended(fact: RecipientFacts, look: Look) -> Said:
    site = fact.site
    assert site is not None
    why = "; ".join(
        part for part in (site.suspended_reason, site.suspended_by, site.last_reply) if part
    )
    times = f", {site.failures} times in a row" if site.failures > 1 else ""
    when = moment(site.suspended_until_ms, look.now_ms)
    failed = f"no host would talk{times}"
    if (site.last_reply or "").startswith(CRASHED):
        failed = "Mailstrom itself failed there, and no host did"
    return Said(
        Cause.SITE_SUSPENDED,
        f"its site {site.key} is left alone until {when} since {failed}: {why}",
        f"{_RETRY} {fact.message_id}' tries at once",
        by=site.suspended_by,
    )


def _not_due(fact: RecipientFacts, look: Look) -> Said:
    assert fact.due_ms is not None
    when = moment(fact.due_ms, look.now_ms)
    if fact.due_ms == fact.send_ms and not fact.attempts:
        return Said(
            Cause.SCHEDULED,
            f"not before {when}, as its sender asked",
            f"nothing hastens it; 'mailstrom queue cancel {fact.message_id}' takes it back",
            by=None,
        )
    words = reply(fact.reply_code, fact.enhanced_code, fact.reply_text)
    host = f" {fact.mx}" if fact.mx else ""
    because = f" after{host} said: {words}" if words else f" ({fact.reason})" if fact.reason else ""
    doubt = "; it may have been delivered" if fact.in_doubt else ""
    retry = fact.send_ms <= look.now_ms or fact.attempts
    return Said(
        Cause.NOT_DUE,
        f"next attempt {when}{because}{doubt}",
        f"{_RETRY} {fact.message_id}' tries at once" if retry else "its time",
        by=fact.mx,
    )


_STEPS: tuple[Callable[[RecipientFacts, Look], Said | None], ...] = (
    _over, _held, _copied, _in_hand, _expired, _not_yet, nobody, poisoned, unrouted, no_room,
    stale, line,
)  # fmt: skip
