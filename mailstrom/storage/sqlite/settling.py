"""Settling: verdicts become states, attempts, events and sums; steps of one transaction.

Every verdict is guarded by its lane's token and the recipient's state. One whose guard no longer
holds is late: it is recorded, and a late delivery still counts where nothing contradicts it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import apsw

from mailstrom.storage.base import Settlement
from mailstrom.storage.sqlite.sql import run
from mailstrom.types import Judgement


class Row(NamedTuple):
    """One attempt to be recorded."""

    recipient: int
    session: str | None
    started_ms: int
    ended_ms: int
    stage: str
    host: str | None
    address: str | None
    code: int | None
    enhanced: str | None
    text: str | None
    verdict: str
    reason: str | None
    in_doubt: int
    late: int
    worker: int | None

    @property
    def constants(self) -> tuple[Any, ...]:
        """What attempts that ended alike have in common."""
        return self[4:9] + self[10:14]


def rounds(settlements: Sequence[Settlement]) -> list[list[Settlement]]:
    """Settlements in order, cut so that no recipient is twice in a set statement."""
    rounds: list[list[Settlement]] = []
    seen: set[int] = set()
    for settlement in settlements:
        if not rounds or settlement.recipient in seen:
            rounds.append([])
            seen = set()
        seen.add(settlement.recipient)
        rounds[-1].append(settlement)
    return rounds


def settle(
    connection: apsw.Connection, settlements: Sequence[Settlement], now_ms: int
) -> frozenset[int]:
    """Settle recipients, each once; returns those whose guard held, the others are late."""
    tried: dict[tuple[Any, ...], list[Settlement]] = {}
    untried: list[Settlement] = []
    for s in settlements:
        a = s.attempt
        if a is None:
            untried.append(s)
            continue
        alike = (
            s.state, s.reason, s.charge, a.host, a.tls, a.reply_code, a.enhanced_code, a.in_doubt
        )  # fmt: skip
        tried.setdefault(alike, []).append(s)
    settled: set[int] = set()
    numbers: dict[int, tuple[int, int]] = {}
    for alike, group in tried.items():
        for seq, message, number in _settle_alike(connection, alike, group):
            numbers[seq] = message, number
    settled.update(numbers)
    if untried:
        settled |= _settle_untried(connection, untried, now_ms)
    if numbers:
        kept = [s for s in settlements if s.attempt is not None and s.recipient in numbers]
        _note_deliveries(connection, kept, now_ms)
        lanes = json.dumps(sorted({s.lane for s in kept}))
        workers: dict[int, int] = dict(run(connection, "lane_workers", {"lanes": lanes}))
        record(
            connection,
            [_attempt_row(s, workers.get(s.lane), late=False) for s in kept],
            now_ms,
            numbers=numbers,
            quiet={s.recipient for s in kept if s.state == "claimed"},
        )
    if len(settled) < len(settlements):
        for settlement in settlements:
            if settlement.recipient not in settled and settlement.attempt is not None:
                _settle_late(connection, settlement, now_ms)
    return frozenset(settled)


def _settle_alike(
    connection: apsw.Connection, alike: tuple[Any, ...], group: list[Settlement]
) -> list[Any]:
    state, reason, charge, host, tls, code, enhanced, in_doubt = alike
    deferred = state == "deferred"
    rows = [
        (
            s.recipient,
            s.lane,
            s.due_ms if deferred else None,
            s.attempt.ended_ms,
            s.attempt.reply_text,
        )
        for s in group
        if s.attempt is not None
    ]
    values = {
        "rows": json.dumps(rows),
        "state": state,
        "reason": None if reason is None else str(reason),
        "charge": int(charge and deferred),
        "in_doubt": int(in_doubt),
        "host": host,
        "code": code,
        "enhanced": enhanced,
        "tls": tls,
    }
    return run(connection, "settle", values)


def _settle_untried(
    connection: apsw.Connection, settlements: list[Settlement], now_ms: int
) -> set[int]:
    """Claims that end, or go on, without another attempt: what a host said before stands."""
    rows = [
        (s.recipient, s.lane, s.state, None if s.state == "claimed" else s.due_ms, int(s.charge))
        for s in settlements
    ]
    settled = {row[0] for row in run(connection, "settle_untried", {"rows": json.dumps(rows)})}
    released = [s for s in settlements if s.recipient in settled and s.state != "claimed"]
    if released:
        text = json.dumps([s.recipient for s in released])
        run(connection, "lower_next_due", {"recipients": text})
    deferred = [s.recipient for s in released if s.state == "deferred"]
    if deferred:
        text = json.dumps(deferred)
        for name in ("deferral_events", "count_hour"):
            run(connection, name, {"recipients": text, "now_ms": now_ms})
    return settled


def _note_deliveries(
    connection: apsw.Connection, settlements: list[Settlement], now_ms: int
) -> None:
    """A delivery tells that its site works."""
    lanes = json.dumps(sorted({s.lane for s in settlements if s.state == "delivered"}))
    sites = [row[0] for row in run(connection, "lane_sites", {"lanes": lanes})]
    if sites:
        text = json.dumps(sites)
        for (site,) in run(connection, "sites_failing", {"sites": text}):
            site_event(connection, site, "site.resumed", now_ms)
        run(connection, "site_success", {"sites": text, "now_ms": now_ms})


def _attempt_row(s: Settlement, worker: int | None, *, late: bool) -> Row:
    a = s.attempt
    assert a is not None
    return Row(
        s.recipient,
        a.session,
        a.started_ms,
        a.ended_ms,
        str(a.stage),
        a.host,
        a.address,
        a.reply_code,
        a.enhanced_code,
        a.reply_text,
        str(a.verdict),
        None if a.reason is None else str(a.reason),
        int(a.in_doubt),
        int(late),
        worker,
    )


def _settle_late(connection: apsw.Connection, settlement: Settlement, now_ms: int) -> None:
    """Record a fenced worker's verdict; a delivery still counts where nothing contradicts it."""
    attempt = settlement.attempt
    assert attempt is not None
    run(connection, "count_late", {"recipient": settlement.recipient})
    moved: list[Any] = []
    if attempt.verdict is Judgement.DELIVERED:
        moved = run(
            connection,
            "late_truth",
            {
                "recipient": settlement.recipient,
                "started_ms": attempt.started_ms,
                "ended_ms": attempt.ended_ms,
                "code": attempt.reply_code,
                "enhanced": attempt.enhanced_code,
                "text": attempt.reply_text,
                "mx": attempt.host,
                "tls": attempt.tls,
            },
        )
    worker = run(connection, "lane_worker", {"lane": settlement.lane})
    row = _attempt_row(settlement, worker[0][0] if worker else None, late=True)
    quiet = {settlement.recipient} if settlement.state == "claimed" else set()
    record(connection, [row], now_ms, counted=[seq for (seq,) in moved], quiet=quiet)
    if not moved and not quiet:
        run(connection, "uncounted_event", {"recipient": settlement.recipient})


def record(
    connection: apsw.Connection,
    rows: Sequence[Row],
    now_ms: int,
    *,
    numbers: Mapping[int, tuple[int, int]] | None = None,
    counted: Sequence[int] | None = None,
    quiet: Set[int] = frozenset(),
) -> None:
    """Attempts, events, hourly sums, finished messages and due times of settled recipients.

    Args:
        numbers: message and number of each recipient's attempt; looked up where None.
        counted: recipients whose state the hourly sums count; by default all of ``rows``.
        quiet: recipients that the next host may still take: an attempt, and no event yet.
    """
    if not rows:
        return
    recipients = json.dumps([row.recipient for row in rows])
    if numbers is None:
        found = run(connection, "attempted", {"recipients": recipients})
        numbers = {seq: (message, number) for seq, message, number in found}
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(row.constants, []).append(row)
    for group in alike.values():
        _record_alike(connection, group, numbers)
        loud = [row for row in group if row.recipient not in quiet] if quiet else group
        if loud:
            _tell_alike(connection, loud, numbers)
    count = recipients if counted is None else json.dumps(counted)
    run(connection, "count_hour", {"recipients": count, "now_ms": now_ms})
    run(connection, "finish_messages", {"recipients": recipients, "now_ms": now_ms})
    due = [row.recipient for row in rows if row.verdict != "delivered"]
    if due:
        run(connection, "lower_next_due", {"recipients": json.dumps(due)})


def _record_alike(
    connection: apsw.Connection, group: list[Row], numbers: Mapping[int, tuple[int, int]]
) -> None:
    first = group[0]
    rows = [
        (
            row.recipient,
            *numbers[row.recipient],
            row.session,
            row.worker,
            row.started_ms,
            row.ended_ms,
            row.text,
        )
        for row in group
    ]
    values = {
        "rows": json.dumps(rows),
        "stage": first.stage,
        "host": first.host,
        "address": first.address,
        "code": first.code,
        "enhanced": first.enhanced,
        "verdict": first.verdict,
        "reason": first.reason,
        "in_doubt": first.in_doubt,
        "late": first.late,
    }
    run(connection, "attempt", values)


def _tell_alike(
    connection: apsw.Connection, group: list[Row], numbers: Mapping[int, tuple[int, int]]
) -> None:
    """One event each, with the reply; which attempt it was is told as well."""
    by_number: dict[int, list[Row]] = {}
    for row in group:
        by_number.setdefault(numbers[row.recipient][1], []).append(row)
    first = group[0]
    for number, same in by_number.items():
        detail = {
            "stage": first.stage,
            "host": first.host,
            "code": first.code,
            "enhanced": first.enhanced,
            "reason": first.reason,
            "in_doubt": first.in_doubt,
            "late": first.late,
            "number": number,
        }
        rows = [(row.recipient, numbers[row.recipient][0], row.ended_ms) for row in same]
        values = {
            "rows": json.dumps(rows),
            "type": f"recipient.{first.verdict}",
            "detail": json.dumps(detail, separators=(",", ":")),
        }
        run(connection, "recipient_events", values)


def site_event(connection: apsw.Connection, site: int, type: str, now_ms: int) -> None:
    """An event about a site, with what its row says now."""
    run(connection, "site_event", {"site": site, "at_ms": now_ms, "type": type})
