"""The exchange: settle, open and claim for many lanes in one transaction, in that order.

Set statements over ``json_each`` rather than row by row: between two steps an application busy with
threads may hold the lock. Guards that no longer hold change nothing; what came late is still
recorded (see ``settling``). Lanes themselves are leased and ended in ``lanes``.
"""

from __future__ import annotations

import json

import apsw

from mailstrom.storage.base import Claimed, ClaimRequest, Exchange, Open, SessionRow, Work
from mailstrom.storage.sqlite.rows import checksum, digest
from mailstrom.storage.sqlite.settling import rounds, settle
from mailstrom.storage.sqlite.sql import run
from mailstrom.types import OnDoubt

CLAIM_ROWS = 500
"""Most recipients one claim may take, whatever the number of messages."""


def exchange(connection: apsw.Connection, work: Work, now_ms: int) -> Exchange:
    """Sessions, settlements, opens and claims of many lanes."""
    for row in work.sessions:
        _put_session(connection, row)
    settled: set[int] = set()
    for round in rounds(work.settlements):
        settled |= settle(connection, round, now_ms)
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
