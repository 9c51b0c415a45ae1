"""What is in the way of a recipient that is due: nobody there, no room, no route, no connection.

The second half of ``binding``: each step gives the cause it stands for, or None; the last always
gives one. Pure.
"""

from __future__ import annotations

from mailstrom.causes import Cause
from mailstrom.client.look import (
    NEGATIVE,
    SIGN_OF_LIFE_MS,
    Look,
    Said,
    due_before,
    moment,
    registered,
)
from mailstrom.storage.facts import ROOM_BYTES, RecipientFacts, SiteFacts
from mailstrom.storage.pinned import mebibytes
from mailstrom.types import iso_ms

# --- who would send it ------------------------------------------------------------------------


def nobody(fact: RecipientFacts, look: Look) -> Said | None:
    """No worker that may claim it."""
    if look.working:
        return None
    due = "due" if fact.expires_ms > look.now_ms else f"its time ended at {iso_ms(fact.expires_ms)}"
    if not look.living:
        gone = "; ".join(
            f"{registered(one)} has ended without a word" for one in look.facts.workers[:3]
        )
        return Said(
            Cause.NO_WORKER,
            f"{due}, and no engine runs on this spool{f' ({gone})' if gone else ''}",
            "start 'mailstrom serve'",
        )
    last = max(look.living, key=lambda one: one.heartbeat_ms)
    who = registered(last)
    if last.heartbeat_ms <= look.now_ms - SIGN_OF_LIFE_MS:
        return Said(
            Cause.WORKER_SILENT,
            f"{due}, and no delivery worker gave a sign of life since"
            f" {iso_ms(last.heartbeat_ms)}: the last was {who}",
            "look after 'mailstrom serve'",
            by=who,
        )
    return Said(
        Cause.DRAINING,
        f"{due}, and every delivery worker is draining: nothing more is claimed",
        "the next start of 'mailstrom serve'",
        by=who,
    )


def poisoned(fact: RecipientFacts, look: Look) -> Said | None:
    """Nothing can be made durable."""
    if look.facts.trouble is None:
        return None
    return Said(
        Cause.SPOOL_POISONED,
        f"due; nothing can be recorded: {look.facts.trouble}",
        "'mailstrom store check' says what keeps the repair",
    )


def no_room(fact: RecipientFacts, look: Look) -> Said | None:
    """Nothing is claimed, since results could not be kept."""
    if look.facts.log_full:
        return Said(
            Cause.LOG_FULL,
            "due; nothing is claimed while a process keeps the write-ahead log at its limit",
            "'mailstrom store check' names it",
        )
    room = look.facts.room_bytes
    if room is not None and room < ROOM_BYTES:
        return Said(
            Cause.DISK_LOW,
            f"due; nothing is claimed with {mebibytes(room)} left for the spool",
            f"room for results: {mebibytes(ROOM_BYTES)} or more",
        )
    return None


# --- where it goes ----------------------------------------------------------------------------


def unrouted(fact: RecipientFacts, look: Look) -> Said | None:
    """It waits for a route."""
    if fact.site is not None:
        return None
    route, now_ms = fact.route, look.now_ms
    if route and route.router is not None:
        known = next((one for one in look.facts.workers if one.worker == route.router), None)
        who = registered(known) if known else f"worker {route.router}"
        detail = f"due; {who} looks up the mail hosts of {fact.domain} now"
        return Said(Cause.ROUTE_PENDING, detail, "the answer of DNS", by=who)
    if route and route.result in NEGATIVE and route.expires_ms > now_ms:
        why = route.error or route.result
        return Said(
            Cause.DNS_NEGATIVE,
            f"due; {fact.domain} takes no mail by an answer that holds until"
            f" {moment(route.expires_ms, now_ms)}: {why}",
            "it fails when a worker comes to it",
            route.expires_ms,
            "DNS",
        )
    retry_ms = route.retry_ms if route and route.retry_ms > now_ms else None
    after = f", not before {moment(retry_ms, now_ms)}" if retry_ms else ""
    return Said(
        Cause.ROUTE_PENDING,
        f"due; the mail hosts of {fact.domain} are to be looked up first{after}",
        "a worker does that",
        retry_ms,
    )


def stale(fact: RecipientFacts, look: Look) -> Said | None:
    """It has a route that is not used any more."""
    if not fact.stale:
        return None
    return Said(
        Cause.ROUTE_PENDING,
        f"due; what is known of the mail hosts of {fact.domain} holds no more: they are to be"
        " looked up again first",
        "a worker does that",
    )


def line(fact: RecipientFacts, look: Look) -> Said:
    """It may go as soon as a connection is there for it."""
    site = fact.site
    assert site is not None
    before = due_before(fact.ahead)
    most, why = lanes_limit(site)
    if most is not None and site.lanes >= most:
        return Said(
            Cause.SITE_LIMIT,
            f"due; {why}{before}",
            "the end of one of them" if site.lanes > 1 else "what that one finds out",
        )
    limit, working = look.facts.max_connections, look.working
    if limit is not None and all(one.lanes >= limit for one in working):
        return Said(
            Cause.CONNECTION_LIMIT,
            f"due; each worker has its connections in use, or kept waiting by their hosts: {limit}"
            f" may work ([delivery] max_connections), {len(working)} workers{before}",
            "the end of one of them, or a host that lets one wait",
        )
    if site.lanes == 0:
        unknown = ""
        if limit is None:
            lanes = sum(one.lanes for one in working)
            unknown = (
                f"; workers have {lanes} open elsewhere, and this spool does not say how many they"
                " may have ([delivery] max_connections)"
            )
        return Said(
            Cause.NO_LANE,
            f"due; no connection to {site.key} is open yet{before}{unknown}",
            "it goes out as soon as a worker comes to it",
        )
    of = f" of {most}" if most is not None else ""
    return Said(
        Cause.IN_LINE,
        f"due; it waits for its turn: {site.lanes}{of} connections to {site.key} are open{before}",
        "it goes out as soon as a worker comes to it",
    )


def lanes_limit(site: SiteFacts) -> tuple[int | None, str]:
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
