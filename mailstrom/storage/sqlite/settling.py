"""Settling: verdicts become states, attempts, events and sums; steps of one transaction.

Every verdict is guarded by its lane's token and the recipient's state. One whose guard no longer
holds is late: it is recorded, and a late delivery still counts where nothing contradicts it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from typing import Any

import apsw

from mailstrom.storage.base import Settlement
from mailstrom.storage.sqlite.sql import run
from mailstrom.types import Judgement


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
    rows = [
        [
            s.recipient,
            s.lane,
            s.state,
            None if s.reason is None else str(s.reason),
            s.due_ms,
            *(
                (
                    s.attempt.reply_code,
                    s.attempt.enhanced_code,
                    s.attempt.reply_text,
                    s.attempt.host,
                    s.attempt.tls,
                    int(s.attempt.in_doubt),
                )
                if s.attempt is not None
                else (None, None, None, None, None, 0)
            ),
            int(s.charge),
            int(s.attempt is not None),
            now_ms if s.attempt is None else s.attempt.ended_ms,
        ]
        for s in settlements
    ]
    settled = frozenset(row[0] for row in run(connection, "settle", {"rows": json.dumps(rows)}))
    delivering = {s.lane for s in settlements if s.recipient in settled and s.state == "delivered"}
    lanes = {"lanes": json.dumps(sorted(delivering))}
    sites = [row[0] for row in run(connection, "lane_sites", lanes)] if delivering else []
    if sites:
        values = {"sites": json.dumps(list(sites)), "now_ms": now_ms}
        for (site,) in run(connection, "sites_failing", {"sites": values["sites"]}):
            site_event(connection, site, "site.resumed", now_ms)
        run(connection, "site_success", values)
    kept = [s for s in settlements if s.attempt is not None and s.recipient in settled]
    attempted = {"lanes": json.dumps(sorted({s.lane for s in settlements if s.attempt}))}
    workers: dict[int, int] = dict(run(connection, "lane_workers", attempted)) if kept else {}
    record(
        connection,
        [_attempt_row(s, workers.get(s.lane), late=False) for s in kept],
        now_ms,
        quiet={s.recipient for s in kept if s.state == "claimed"},
    )
    released = [s for s in settlements if s.attempt is None and s.recipient in settled]
    if released:
        text = json.dumps([s.recipient for s in released])
        run(connection, "lower_next_due", {"recipients": text})
        deferred = json.dumps([s.recipient for s in released if s.state == "deferred"])
        for name in ("deferral_events", "count_hour"):
            run(connection, name, {"recipients": deferred, "now_ms": now_ms})
    for settlement in settlements:
        if settlement.recipient not in settled and settlement.attempt is not None:
            _settle_late(connection, settlement, now_ms)
    return settled


def _attempt_row(s: Settlement, worker: int | None, *, late: bool) -> list[Any]:
    a = s.attempt
    assert a is not None
    return [
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
    ]


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
    rows: list[list[Any]],
    now_ms: int,
    counted: list[int] | None = None,
    quiet: Set[int] = frozenset(),
) -> None:
    """Attempts, events, hourly sums, finished messages and due times of settled recipients.

    Args:
        rows: as the statement ``attempt`` takes them.
        counted: recipients whose state the hourly sums count; by default all of ``rows``.
        quiet: recipients that the next host may still take: an attempt, and no event yet.
    """
    if not rows:
        return
    text = json.dumps(rows)
    recipients = json.dumps([row[0] for row in rows])
    run(connection, "attempt", {"rows": text})
    loud = [row for row in rows if row[0] not in quiet] if quiet else rows
    if loud:
        run(connection, "recipient_events", {"rows": json.dumps(loud) if quiet else text})
    if counted is None:
        counted = [row[0] for row in rows]
    run(connection, "count_hour", {"recipients": json.dumps(counted), "now_ms": now_ms})
    run(connection, "finish_messages", {"recipients": recipients, "now_ms": now_ms})
    run(connection, "lower_next_due", {"recipients": recipients})


def site_event(connection: apsw.Connection, site: int, type: str, now_ms: int) -> None:
    """An event about a site, with what its row says now."""
    run(connection, "site_event", {"site": site, "at_ms": now_ms, "type": type})
