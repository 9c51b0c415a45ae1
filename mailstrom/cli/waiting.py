"""Why a recipient has not been sent yet, and what happens to it next: one sentence.

Contract. ``Facts`` is one row of ``FACTS`` over the public views with what the spool as a whole
says (``Engine``); ``next_step`` is pure and looks at them in the order in which the engine would
stumble: a copy, its own due time, the site, DNS, no engine, a full log, connections in use. Knows
no command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mailstrom.cli.status import reply
from mailstrom.cli.times import span_text
from mailstrom.clock import wall_ms
from mailstrom.types import iso_ms

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

SIGN_OF_LIFE_MS = 30_000  # a worker's row is written every five seconds

_COLUMNS = """
select r.message_id, r.address, r.domain, r.site, r.status, r.reason, r.in_doubt, r.attempts,
       r.next_attempt_ms, r.next_attempt_at, r.finished_at, r.mx, r.reply_code, r.enhanced_code,
       r.reply_text, m.send_ms, n.result as route, n.error as route_error, d.suspended_until_ms,
       d.suspended_by, d.reason as suspended_reason, d.last_reply, d.lanes, d.lanes_limit
"""
_JOINED = """
  left join domains n on n.name = r.domain
  left join destinations d on d.site = r.site
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What holds for the whole spool.

    Args:
        workers: delivery workers that are registered and gave a sign of life lately.
        silent_ms: since when registered ones gave none, or None.
        copied: whether the spool is a copy that waits for adoption.
        log_full: whether nothing is claimed, since the write-ahead log is at its limit.
    """

    now_ms: int
    workers: int
    silent_ms: int | None
    copied: bool
    log_full: bool


def engine(client: Mailstrom) -> Engine:
    """Looks at the workers' rows."""
    now = wall_ms()
    beats = client.query(
        "select heartbeat_ms from workers"
        " where kind = 'delivery' and state in ('starting', 'ready', 'draining')"
    )
    alive = sum(row.heartbeat_ms > now - SIGN_OF_LIFE_MS for row in beats)
    silent = max((row.heartbeat_ms for row in beats), default=None) if not alive else None
    stats = client.stats()
    return Engine(
        now_ms=now, workers=alive, silent_ms=silent, copied=stats.copied, log_full=stats.log_full
    )


def of_message(client: Mailstrom, id: str) -> list[Any]:
    """Facts of each recipient of a message, by address."""
    source = "from recipients r join messages m on m.id = r.message_id"
    return client.query(
        f"{_COLUMNS}{source}{_JOINED} where r.message_id = ? order by r.address", (id,)
    )


def first_due(
    client: Mailstrom, condition: str, parameters: Sequence[str | int], limit: int
) -> list[Any]:
    """Facts of the waiting recipients whose next attempt is nearest.

    Args:
        condition: over ``messages m`` and ``recipients r``.
    """
    nearest = (
        "select r.*, m.send_ms from messages m join recipients r on r.message_id = m.id"
        f" where {condition} and r.status in ('queued', 'deferred')"
        " order by r.next_attempt_ms, m.id limit ?"
    )
    return client.query(
        f"{_COLUMNS.replace('m.send_ms', 'r.send_ms')} from ({nearest}) r {_JOINED}"
        " order by r.next_attempt_ms, r.message_id",
        (*parameters, limit),
    )


def until(at_ms: int, now_ms: int) -> str:
    """``2030-01-31T08:00:00.000Z (in 4m 10s)``."""
    return f"{iso_ms(at_ms)} (in {span_text(at_ms - now_ms)})"


def next_step(fact: Any, spool: Engine) -> str:
    """What happens to a recipient next, and why it did not yet.

    Args:
        fact: a row of ``of_message`` or ``first_due``.
    """
    said = SETTLED.get(fact.status)
    if said is not None:
        return said(fact)
    return _why_not_yet(fact, spool)


def _held(fact: Any) -> str:
    if fact.reason == "in_doubt":
        return (
            "nobody knows whether it was delivered: ask its reader, then"
            f" 'mailstrom resolve {fact.message_id} delivered|retry|failed'"
        )
    release = f"'mailstrom queue release {fact.message_id}' lets it go"
    if fact.reason == "poison":
        return f"its connection was lost again and again with this message on the wire; {release}"
    return f"held by a person; {release}"


def _failed(fact: Any) -> str:
    if fact.reason == "damaged":
        return (
            f"nothing more, it failed at {fact.finished_at}: what is stored is not what was"
            " accepted; send it anew"
        )
    return (
        f"nothing more, it failed at {fact.finished_at};"
        f" 'mailstrom queue retry {fact.message_id} --status failed' tries again"
    )


SETTLED = {
    "delivered": lambda fact: f"nothing more, it was delivered at {fact.finished_at}",
    "failed": _failed,
    "cancelled": lambda fact: f"nothing more, it was cancelled at {fact.finished_at}",
    "sending": lambda fact: "on the wire now",
    "held": _held,
}


def _why_not_yet(fact: Any, spool: Engine) -> str:
    if spool.copied:
        return "this spool is a copy: nothing goes out before 'mailstrom store adopt'"
    due, now = fact.next_attempt_ms, spool.now_ms
    if due is None:
        return "a worker has it and sends it next"
    suspended = fact.suspended_until_ms or 0
    if due > now:
        return _waits(fact, due, suspended if suspended >= due else 0, now)
    if not spool.workers:
        if spool.silent_ms is not None:
            return (
                f"due, and no delivery worker gave a sign of life since {iso_ms(spool.silent_ms)}:"
                " look after 'mailstrom serve'"
            )
        return "due, and no engine runs on this spool: start 'mailstrom serve'"
    if spool.log_full:
        return (
            "due; nothing is claimed while a process keeps the write-ahead log at its limit:"
            " 'mailstrom store check' names it"
        )
    if fact.site is None:
        return f"due; the mail hosts of {fact.domain} are to be looked up first"
    if fact.lanes_limit is not None and fact.lanes >= fact.lanes_limit:
        return f"due; all {fact.lanes_limit} connections that {fact.site} may have are in use"
    return "due; it goes out as soon as a worker comes to it"


def _waits(fact: Any, due: int, suspended: int, now: int) -> str:
    when = until(due, now)
    if suspended:
        why = "; ".join(
            part for part in (fact.suspended_reason, fact.suspended_by, fact.last_reply) if part
        )
        return f"its site {fact.site} is left alone until {when} since no host would talk: {why}"
    if due == fact.send_ms and not fact.attempts:
        return f"not before {when}, as its sender asked"
    if fact.route == "temporary" and fact.reason == "dns":
        words = f"the mail hosts of {fact.domain} cannot be looked up"
        return f"{words} ({fact.route_error or 'no answer'}); asked again at {when}"
    words = reply(fact.reply_code, fact.enhanced_code, fact.reply_text)
    host = f" {fact.mx}" if fact.mx else ""
    because = f" after{host} said: {words}" if words else f" ({fact.reason})" if fact.reason else ""
    return f"next attempt {when}{because}"
