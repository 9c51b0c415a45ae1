"""The exchange: settle, open and claim for many lanes in one transaction, in that order.

Set statements over ``json_each`` rather than row by row: between two steps an application busy with
threads may hold the lock. Guards that no longer hold change nothing; what came late is still
recorded (see ``settling``). Content is read once the lock is free (``complete``). Lanes themselves
are leased and ended in ``lanes``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apsw

from mailstrom.storage.base import Claimed, ClaimRequest, Open, SessionRow, Work
from mailstrom.storage.sqlite.lanes import NEVER_MS, learn
from mailstrom.storage.sqlite.rows import checksum, digest, domain_of, fits
from mailstrom.storage.sqlite.settling import rounds, settle
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import OnDoubt

CLAIM_ROWS = 500
"""Most recipients one claim may take, whatever the number of messages."""
SKIP_ROWS = 500
"""Most rows a claim passes over in one priority, and most it sends back to the router."""
ROUTE_GRACE_MS = 60_000
"""So long after its route expired a domain's rows may still be claimed; the views know it, too."""
PAUSE_MS = 1_000
"""A site where a claim found only rows that others must deal with first is left alone so long."""

_DOWN, _UP, _MIDDLE = (0, 1, 2), (2, 1, 0), (1, 0, 2)
TURNS = (_DOWN, _DOWN, _DOWN, _DOWN, _UP, _DOWN, _DOWN, _MIDDLE, _DOWN, _UP)
"""Order of priorities, by the lane's turn (token plus claims): high mail comes first, but a fifth
of the claims begins with low and a tenth with normal, or a flood of high mail would starve them."""

_READY, _MOVED, _EXPIRED, _UNREFRESHED = range(4)
"""What the statement ``due_recipients`` says of a row."""


class Exchanged(NamedTuple):
    """What an exchange did; ``rows`` become ``Claimed`` with their content (``complete``)."""

    settled: frozenset[int]
    opened: frozenset[int]
    ended: frozenset[int]
    rows: list[tuple[int, Any]]
    """Lane and row of ``claimed_rows``, in the order they are to be sent."""


def exchange(connection: apsw.Connection, work: Work, now_ms: int) -> Exchanged:
    """Sessions, settlements, opens and claims of many lanes."""
    for row in work.sessions:
        _put_session(connection, row)
    for lesson in work.lessons:
        learn(connection, lesson, now_ms)
    settled: set[int] = set()
    for round in rounds(work.settlements):
        settled |= settle(connection, round, now_ms)
    opened: set[int] = set()
    if work.opens:
        opened = _open(connection, work.opens, now_ms)
    ended: set[int] = set()
    rows: list[tuple[int, Any]] = []
    for claim in work.claims:
        taken = _claim(connection, claim, now_ms)
        if taken is None:
            ended.add(claim.lane)
        elif taken:
            rows += [(claim.lane, row) for row in _taken_rows(connection, claim.lane, taken)]
    return Exchanged(frozenset(settled), frozenset(opened), frozenset(ended), rows)


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
            "ended_ms": row.ended_ms if worker or row.ended_ms else row.started_ms,
            "messages": row.messages,
            "ehlo": row.ehlo,
            "tls_wanted": row.tls_wanted,
            "tls_reached": row.tls_reached,
            "tls_version": row.tls_version,
            "tls_cipher": row.tls_cipher,
            "tls_peer": row.tls_peer,
            "tls_verified": int(row.tls_verified),
            # Of a lapsed worker nobody would end it: it stays open no longer than it is written.
            "end_cause": row.end_cause if worker or row.end_cause else "worker lost",
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


def _open(connection: apsw.Connection, requests: Sequence[Open], now_ms: int) -> set[int]:
    rows = [
        (recipient, request.lane, request.session)
        for request in requests
        for recipient in request.recipients
    ]
    values = {"rows": json.dumps(rows), "now_ms": now_ms}
    return {row[0] for row in run(connection, "open", values)}


@dataclass(slots=True)
class _Look:
    """What a claim saw on its way through a site's waiting rows."""

    taken: list[int] = field(default_factory=list)
    messages: set[int] = field(default_factory=set)
    bytes: int = 0
    full: bool = False
    moved: list[int] = field(default_factory=list)
    unrefreshed: list[int] = field(default_factory=list)
    expired: bool = False
    cut: bool = False
    """Passed over so many rows in a priority that what is behind them was not seen."""
    refresh: set[str] = field(default_factory=set)
    next_due_ms: int = NEVER_MS


def _claim(connection: apsw.Connection, request: ClaimRequest, now_ms: int) -> list[int] | None:
    """Due recipients of the lane's site, a seek per priority, oldest due first; None: no claims.

    Rows of a domain that moved go back to the router. Rows whose domain's route is too old stay as
    they are until the router has looked again and wakes the site; where there are many of them,
    some go back to the router, too, so that what is behind them is reached.
    """
    found = run(connection, "lane_turn", {"lane": request.lane})
    if not found:
        return None  # the lane lapsed
    site, claims, rank = found[0]
    if request.limit_lanes is not None and rank >= request.limit_lanes:
        return None
    look = _Look()
    for priority in TURNS[(request.lane + claims) % len(TURNS)]:
        _look(connection, request, look, site, priority, now_ms)
        if look.full:
            break
    if look.taken:
        run(connection, "claim", {"recipients": json.dumps(look.taken), "lane": request.lane})
        run(connection, "lane_took", {"lane": request.lane})
    unrouted = (look.moved + (look.unrefreshed if look.cut else []))[:SKIP_ROWS]
    if unrouted:
        values = {"recipients": json.dumps(unrouted), "now_ms": now_ms}
        run(connection, "unroute", {"recipients": values["recipients"]})
        run(connection, "domains_due", values)
    if look.refresh:
        domains = json.dumps(sorted(look.refresh))
        run(connection, "refresh_domains", {"domains": domains, "now_ms": now_ms})
    if not look.full:
        _wait(connection, look, site, now_ms)
    return look.taken


def _look(
    connection: apsw.Connection,
    request: ClaimRequest,
    look: _Look,
    site: int,
    priority: int,
    now_ms: int,
) -> None:
    """Take what is ready in one priority, note what is not, stop at the first not yet due."""
    values = {
        "site": site,
        "priority": priority,
        "now_ms": now_ms,
        "grace_ms": ROUTE_GRACE_MS,
    }
    cursor = connection.execute(STATEMENTS["due_recipients"], values)
    skipped = 0
    for seq, message, size, due_ms, domain, kind, refresh in cursor:
        if due_ms > now_ms:
            look.next_due_ms = min(look.next_due_ms, due_ms)
            break
        if refresh:
            look.refresh.add(domain)
        if kind != _READY:
            if skipped == SKIP_ROWS:
                look.cut = True
                break
            skipped += 1
            if kind == _MOVED:
                look.moved.append(seq)
            elif kind == _UNREFRESHED:
                look.unrefreshed.append(seq)
            else:
                look.expired = True
            continue
        fresh = message not in look.messages
        if len(look.taken) >= CLAIM_ROWS or (
            fresh
            and look.messages
            and (len(look.messages) >= request.limit or look.bytes + size > request.max_bytes)
        ):
            look.full = True
            break
        if fresh:
            look.messages.add(message)
            look.bytes += size
        look.taken.append(seq)
    cursor.close()


def _wait(connection: apsw.Connection, look: _Look, site: int, now_ms: int) -> None:
    """The site was looked through: say when it is worth another look."""
    if not look.cut and not look.expired and len(look.moved) <= SKIP_ROWS:
        run(connection, "put_next_due", {"site": site, "due_ms": look.next_due_ms})
    elif not look.taken and not look.moved:
        run(connection, "pause_site", {"site": site, "until_ms": now_ms + PAUSE_MS})


def _taken_rows(connection: apsw.Connection, lane: int, taken: list[int]) -> list[Any]:
    """Messages in the order they were taken (priority, then due time), recipients together."""
    values = {"recipients": json.dumps(taken), "lane": lane}
    try:
        rows = run(connection, "claimed_rows", values)
    except UnicodeDecodeError:  # damage to one row must not keep the others from being sent
        rows = [_decoded(row) for row in run(connection, "damaged_rows", values)]
    by_recipient = {row[0]: row for row in rows}
    turn: dict[int, int] = {}
    for recipient in taken:
        if recipient in by_recipient:  # else an index is damaged: the row does not wait
            turn.setdefault(by_recipient[recipient][1], len(turn))
    rows.sort(key=lambda row: (turn[row[1]], row[0]))
    return rows


_DOUBTS = frozenset(map(str, OnDoubt))
_TEXTS = (2, 3, 4, 6, 10, 16, 20)  # columns of claimed_rows


def _decoded(row: Any) -> tuple[Any, ...]:
    """A row of ``damaged_rows``; what is no text then fits no checksum."""
    values = list(row)
    for place in _TEXTS:
        if values[place] is not None:
            values[place] = values[place].decode("utf-8", "replace")
    return tuple(values)


class Kept(NamedTuple):
    """What is known of a content: its bytes where it is one chunk, the digests that it fits."""

    body: bytes | None
    size: int
    digests: tuple[bytes, ...]


def bodies(connection: apsw.Connection, rows: list[tuple[int, Any]]) -> dict[int, Kept | None]:
    """Content by its key, None where it is damaged; outside the lock."""
    single = sorted({row[8] for _, row in rows if row[9] == 1})
    found: dict[int, Kept | None] = dict.fromkeys(row[8] for _, row in rows)
    for content, data, kept in run(connection, "first_chunks", {"contents": json.dumps(single)}):
        if digest(data) == kept:
            found[content] = Kept(data, len(data), (kept,))
    long = {row[8]: row[9] for _, row in rows if row[9] != 1}
    pieces: dict[int, list[Any]] = {}
    if long:
        values = {"contents": json.dumps(sorted(long))}
        for content, number, size, kept in run(connection, "chunk_digests", values):
            pieces.setdefault(content, []).append((number, size, kept))
    for content, piece in pieces.items():
        numbers, sizes, digests = zip(*piece, strict=True)
        if numbers == tuple(range(long[content])):
            found[content] = Kept(None, sum(sizes), digests)
    return found


def complete(rows: list[tuple[int, Any]], found: Mapping[int, Kept | None]) -> list[Claimed]:
    """Claimed rows with their content; what is not among ``found`` could not be compared."""
    claimed = []
    for lane, row in rows:
        whole = checksum(row[2], row[6], row[3]) == row[5] and domain_of(row[3]) == row[4]
        body = None
        if row[8] in found:
            kept = found[row[8]]
            whole = whole and kept is not None and kept.size == row[7] and _fits(row, kept)
            body = None if kept is None else kept.body
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
                unread=row[8] not in found,
                stream=row[10],
                priority=row[11],
                created_ms=row[12],
                expires_ms=row[13],
                attempts=row[14],
                deferrals=row[15],
                on_doubt=_on_doubt(row[16]),
                require_tls=bool(row[17]),
                eightbit=bool(row[18]),
                smtputf8=bool(row[19]),
            )
        )
    return claimed


def _on_doubt(word: str | None) -> OnDoubt | None:
    """What to do in doubt; of a damaged word the careful one."""
    if word is None:
        return None
    return OnDoubt(word) if word in _DOUBTS else OnDoubt.HOLD


def _fits(row: Any, kept: Kept) -> bool:
    return fits(
        row[21],
        require_tls=row[17],
        on_doubt=row[16],
        id=row[2],
        sender=row[6],
        message_id=row[20],
        size=row[7],
        chunks=row[9],
        eightbit=row[18],
        smtputf8=row[19],
        digests=kept.digests,
    )
