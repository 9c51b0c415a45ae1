"""Lease, claim, open, settle, release: the steps of one transaction, guarded by lane tokens.

``exchange`` runs them for many lanes at once in the order settle, open, claim, with set statements
over ``json_each`` rather than row by row: between two steps an application busy with threads may
hold the lock. Guards that no longer hold change nothing; what came late is still recorded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import apsw

from mailstrom.storage.base import (
    Claimed,
    ClaimRequest,
    Exchange,
    Lane,
    Open,
    SessionRow,
    Settlement,
    Suspension,
    Work,
)
from mailstrom.storage.sqlite.rows import checksum, decode_hosts, digest
from mailstrom.storage.sqlite.sql import run
from mailstrom.types import Judgement, OnDoubt, Reason, Stage

CLAIM_ROWS = 500
"""Most recipients one claim may take, whatever the number of messages."""
NEVER_MS = 253_402_300_799_000
"""When a site without waiting recipients is due: the end of the year 9999."""
_LOST = "the worker ended while this recipient was on the wire; it may have been delivered"


def lease(
    connection: apsw.Connection, worker: int, *, want: int, limit: int, workers: int, now_ms: int
) -> list[Lane]:
    """Lease lanes at ready sites: never more than ``limit`` a site over all workers.

    A worker takes at most its fair share (``ceil(limit / workers)``) of a site, and no more lanes
    than there are messages due there. A site that nothing is known of, or that failed last time,
    gets one lane until it has taken a message.
    """
    if not run(connection, "worker_alive", {"worker": worker}):
        return []  # lapsed: it would never be taken back
    share = -(-limit // max(1, workers))
    lanes: list[Lane] = []
    values = {"now_ms": now_ms, "worker": worker, "limit": limit, "share": share}
    sites = run(connection, "ready_sites", values)
    for site, key, provider, hosts, canary in sites:
        if len(lanes) >= want:
            break
        total, mine = run(connection, "lanes_at", {"site": site, "worker": worker})[0]
        room = min((1 if canary else limit) - total, share - mine, want - len(lanes))
        if room <= 0:
            continue
        due = run(
            connection,
            "due_messages",
            {"site": site, "now_ms": now_ms, "most": max(CLAIM_ROWS, limit)},
        )[0][0]
        if due == 0:
            run(connection, "set_next_due", {"site": site})
            continue
        for _ in range(min(room, due)):
            token = run(connection, "lease", {"site": site, "worker": worker, "now_ms": now_ms})[0][
                0
            ]
            lanes.append(
                Lane(
                    token=token,
                    site=site,
                    site_key=key,
                    hosts=decode_hosts(hosts),
                    provider=provider,
                    due=due,
                )
            )
    return lanes


def exchange(connection: apsw.Connection, work: Work, now_ms: int) -> Exchange:
    """Sessions, settlements, opens and claims of many lanes."""
    for row in work.sessions:
        _put_session(connection, row)
    settled: set[int] = set()
    for round in _rounds(work.settlements):
        settled |= _settle(connection, round, now_ms)
    opened: set[int] = set()
    for request in work.opens:
        opened |= _open(connection, request, now_ms)
    claimed: list[Claimed] = []
    for claim in work.claims:
        claimed.extend(_claim(connection, claim, now_ms))
    return Exchange(frozenset(settled), frozenset(opened), claimed)


def _put_session(connection: apsw.Connection, row: SessionRow) -> None:
    worker = run(connection, "lane_worker", {"lane": row.lane})
    run(
        connection,
        "session_put",
        {
            "id": row.id,
            "worker": worker[0][0] if worker else 0,
            "site": row.site,
            "host": row.host,
            "address": row.address,
            "source": row.source,
            "started_ms": row.started_ms,
            "ended_ms": row.ended_ms,
            "messages": row.messages,
            "ehlo": row.ehlo,
            "tls_wanted": row.tls_wanted,
            "tls_reached": row.tls_reached,
            "tls_version": row.tls_version,
            "tls_cipher": row.tls_cipher,
            "tls_peer": row.tls_peer,
            "tls_verified": int(row.tls_verified),
            "end_cause": row.end_cause,
        },
    )
    opened = row.ended_ms is None
    run(
        connection,
        "session_event",
        {
            "at_ms": row.started_ms if opened else row.ended_ms,
            "type": "session.opened" if opened else "session.closed",
            "id": row.id,
            "host": row.host,
            "address": row.address,
            "cause": row.end_cause,
        },
    )


def _rounds(settlements: Sequence[Settlement]) -> list[list[Settlement]]:
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


def _settle(
    connection: apsw.Connection, settlements: Sequence[Settlement], now_ms: int
) -> frozenset[int]:
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
            _site_event(connection, site, "site.resumed", now_ms)
        run(connection, "site_success", values)
    kept = [s for s in settlements if s.attempt is not None and s.recipient in settled]
    record(connection, [_attempt_row(connection, s, late=False) for s in kept], now_ms)
    released = [s for s in settlements if s.attempt is None and s.recipient in settled]
    if released:
        text = json.dumps([s.recipient for s in released])
        run(connection, "lower_next_due", {"recipients": text})
        deferred = json.dumps([s.recipient for s in released if s.state == "deferred"])
        run(connection, "count_hour", {"recipients": deferred, "now_ms": now_ms})
    for settlement in settlements:
        if settlement.recipient not in settled and settlement.attempt is not None:
            _settle_late(connection, settlement, now_ms)
    return settled


def _attempt_row(connection: apsw.Connection, s: Settlement, *, late: bool) -> list[Any]:
    a = s.attempt
    assert a is not None
    worker = run(connection, "lane_worker", {"lane": s.lane})
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
        worker[0][0] if worker else None,
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
    row = _attempt_row(connection, settlement, late=True)
    record(connection, [row], now_ms, counted=[seq for (seq,) in moved])


def record(
    connection: apsw.Connection,
    rows: list[list[Any]],
    now_ms: int,
    counted: list[int] | None = None,
) -> None:
    """Attempts, events, hourly sums, finished messages and due times of settled recipients.

    Args:
        rows: as the statement ``attempt`` takes them.
        counted: recipients whose state the hourly sums count; by default all of ``rows``.
    """
    if not rows:
        return
    text = json.dumps(rows)
    recipients = json.dumps([row[0] for row in rows])
    run(connection, "attempt", {"rows": text})
    run(connection, "recipient_events", {"rows": text})
    if counted is None:
        counted = [row[0] for row in rows]
    run(connection, "count_hour", {"recipients": json.dumps(counted), "now_ms": now_ms})
    run(connection, "finish_messages", {"recipients": recipients, "now_ms": now_ms})
    run(connection, "lower_next_due", {"recipients": recipients})


def _open(connection: apsw.Connection, request: Open, now_ms: int) -> set[int]:
    return {
        row[0]
        for row in run(
            connection,
            "open",
            {
                "recipients": json.dumps(request.recipients),
                "lane": request.lane,
                "session": request.session,
                "now_ms": now_ms,
            },
        )
    }


def _claim(connection: apsw.Connection, request: ClaimRequest, now_ms: int) -> list[Claimed]:
    """Due recipients of the lane's site, a seek per priority, oldest due first."""
    found = run(connection, "lane_site", {"lane": request.lane})
    if not found:
        return []  # the lane lapsed
    site = found[0][0]
    taken: list[int] = []
    messages: set[int] = set()
    bytes_taken = 0
    exhausted = True
    for priority in (0, 1, 2):
        while True:
            stale: list[int] = []
            full = False
            for seq, message, size, is_stale in run(
                connection,
                "due_recipients",
                {
                    "site": site,
                    "priority": priority,
                    "now_ms": now_ms,
                    "most": CLAIM_ROWS,
                },
            ):
                if is_stale:
                    stale.append(seq)
                    continue
                fresh = message not in messages
                if len(taken) >= CLAIM_ROWS or (
                    fresh
                    and messages
                    and (len(messages) >= request.limit or bytes_taken + size > request.max_bytes)
                ):
                    full = True
                    break
                if fresh:
                    messages.add(message)
                    bytes_taken += size
                taken.append(seq)
            if stale:
                _unroute(connection, stale, now_ms)
            if taken:
                run(connection, "claim", {"recipients": json.dumps(taken), "lane": request.lane})
            if full or not stale:
                break
        if full:
            exhausted = False
            break
    if exhausted:
        run(connection, "set_next_due", {"site": site})
    return _claimed_rows(connection, request.lane, taken) if taken else []


def _unroute(connection: apsw.Connection, recipients: list[int], now_ms: int) -> None:
    """Send recipients with a stale stamp back to the router."""
    values = {"recipients": json.dumps(recipients), "now_ms": now_ms}
    run(connection, "unroute", {"recipients": values["recipients"]})
    run(connection, "domains_due", values)


def _claimed_rows(connection: apsw.Connection, lane: int, taken: list[int]) -> list[Claimed]:
    rows = run(connection, "claimed_rows", {"recipients": json.dumps(taken), "lane": lane})
    # Messages in the order they were taken (priority, then due time), their recipients together.
    by_recipient = {row[0]: row for row in rows}
    turn: dict[int, int] = {}
    for recipient in taken:
        turn.setdefault(by_recipient[recipient][1], len(turn))
    rows.sort(key=lambda row: (turn[row[1]], row[0]))
    single = sorted({row[8] for row in rows if row[9] == 1})
    bodies = {
        content: (data, digest(data) == kept)
        for content, data, kept in run(connection, "first_chunks", {"contents": json.dumps(single)})
    }
    claimed = []
    for row in rows:
        body, whole = bodies.get(row[8], (None, row[9] > 1))
        whole = whole and checksum(row[2], row[6], row[3]) == row[5]
        whole = whole and (body is None or len(body) == row[7])
        claimed.append(
            Claimed(
                lane=lane,
                recipient=row[0],
                message=row[1],
                message_id=row[2],
                address=row[3],
                domain=row[4],
                sender=row[6],
                size=row[7],
                content=row[8],
                chunks=row[9],
                body=body,
                damaged=not whole,
                stream=row[10],
                priority=row[11],
                created_ms=row[12],
                expires_ms=row[13],
                attempts=row[14],
                deferrals=row[15],
                on_doubt=None if row[16] is None else OnDoubt(row[16]),
                require_tls=bool(row[17]),
                eightbit=bool(row[18]),
                smtputf8=bool(row[19]),
            )
        )
    return claimed


def release(
    connection: apsw.Connection, lane: int, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
) -> int:
    """End a lane; claims are due again, what it left open without a verdict is in doubt."""
    freed = [row[0] for row in run(connection, "release_claimed", {"lane": lane, "now_ms": now_ms})]
    run(connection, "lower_next_due", {"recipients": json.dumps(freed)})
    found = run(connection, "lane_worker", {"lane": lane})
    doubtful = doubt(connection, [lane], found[0][0] if found else None, on_doubt, now_ms)
    run(connection, "lane_end", {"lane": lane})
    return len(freed) + doubtful


def doubt(
    connection: apsw.Connection,
    lanes: Sequence[int],
    worker: int | None,
    on_doubt: OnDoubt,
    now_ms: int,
) -> int:
    """Mark in doubt whatever these lanes still hold, each with an attempt that says so."""
    rows = run(connection, "held_by_lanes", {"lanes": json.dumps(lanes), "on_doubt": str(on_doubt)})
    attempts: list[list[Any]] = []
    for recipient, policy, session, opened_ms, host, address in rows:
        hold = policy == OnDoubt.HOLD
        run(
            connection,
            "doubt",
            {
                "recipient": recipient,
                "hold": int(hold),
                "now_ms": now_ms,
                "text": _LOST,
                "host": host,
            },
        )
        verdict = Judgement.HELD if hold else Judgement.DEFERRED
        attempts.append(
            [
                recipient,
                session,
                opened_ms or now_ms,
                now_ms,
                str(Stage.DOT),
                host,
                address,
                None,
                None,
                _LOST,
                str(verdict),
                str(Reason.IN_DOUBT),
                1,
                0,
                worker,
            ]
        )
    record(connection, attempts, now_ms)
    return len(rows)


def suspend(connection: apsw.Connection, row: Suspension, now_ms: int) -> int:
    """Stop leasing a site; one row, no recipient is written."""
    found = run(
        connection,
        "suspend",
        {
            "site": row.site,
            "until_ms": row.until_ms,
            "since_ms": row.since_ms,
            "by": row.by,
            "reason": str(row.reason),
            "text": row.text,
            "now_ms": now_ms,
        },
    )
    if not found:
        return 0
    _site_event(connection, row.site, "site.suspended", now_ms)
    return int(found[0][0])


def _site_event(connection: apsw.Connection, site: int, type: str, now_ms: int) -> None:
    run(connection, "site_event", {"site": site, "at_ms": now_ms, "type": type})
