"""The exchange: settle, open and claim for many lanes in one transaction, in that order.

Set statements over ``json_each`` rather than row by row, and pages of rows as one JSON text:
between two steps an application busy with threads may hold Python's lock, and so the spool's.
Guards that no longer hold change nothing; what came late is still recorded (see ``settling``).
Content is read once the lock is free (``complete``). Lanes themselves are leased and ended in
``lanes``.

Longer than a file should be: what one transaction does for a lane is safe only as read together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import apsw
import msgspec

from mailstrom.storage.base import (
    MOST_ROWS,
    Ahead,
    Claimed,
    ClaimRequest,
    Open,
    SessionRow,
    Work,
)
from mailstrom.storage.sqlite.encoding import encoded
from mailstrom.storage.sqlite.facts import ROUTE_GRACE_MS
from mailstrom.storage.sqlite.lanes import learn
from mailstrom.storage.sqlite.rows import (
    SEALED,
    checksum,
    digest,
    domain_of,
    fits,
    message_digest,
)
from mailstrom.storage.sqlite.settling import rounds, settle
from mailstrom.storage.sqlite.sql import run, wrote
from mailstrom.types import OnDoubt

CLAIM_ROWS = 500
"""Most recipients one claim may take, whatever the number of messages. It ends, too, where its next
message finds no room in the exchange (``MOST_ROWS``)."""
EVEN_ROWS = 1_000
"""With so many due at a site a claim takes all that it asks for, whatever the other lanes find."""
SKIP_ROWS = 500
"""Most rows a claim passes over in one priority, and most it sends back to the router."""
PACK_BYTES = 1024 * 1024
"""About so much content is read by one statement; a chunk is never cut."""
PAUSE_MS = 1_000
"""A site where a claim found only rows that others must deal with first is left alone so long."""

_DOWN, _UP, _MIDDLE = (0, 1, 2), (2, 1, 0), (1, 0, 2)
TURNS = (_DOWN, _DOWN, _DOWN, _DOWN, _UP, _DOWN, _DOWN, _MIDDLE, _DOWN, _UP)
"""Order of priorities, by the lane's turn (token plus claims): high mail comes first, but a fifth
of the claims begins with low and a tenth with normal, or a flood of high mail would starve them."""

_READY, _MOVED, _EXPIRED, _UNREFRESHED = range(4)
"""What the statement ``due_recipients`` says of a row."""
_SEQ, _MESSAGE, _SIZE, _DUE, _DOMAIN, _KIND, _REFRESH = 0, 1, 7, 22, 23, 24, 25
_ON_DOUBT, _REQUIRE_TLS, _EIGHTBIT, _SMTPUTF8 = 16, 17, 18, 19
_TOLD = slice(26, 31)
_REQUIRETLS = 30
"""Some of its columns."""


class Exchanged(NamedTuple):
    """What an exchange did; ``rows`` become ``Claimed`` with their content (``complete``)."""

    settled: frozenset[int]
    opened: frozenset[int]
    ended: frozenset[int]
    rows: list[tuple[int, Any]]
    """Lane and row of ``due_recipients``, in the order they are to be sent."""
    more: frozenset[int]


def exchange(connection: apsw.Connection, work: Work, now_ms: int) -> Exchanged:
    """Sessions, settlements, opens and claims of many lanes."""
    if work.sessions:
        _put_sessions(connection, work.sessions)
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
    more: set[int] = set()
    room = MOST_ROWS - len(work.settlements) - sum(len(one.recipients) for one in work.opens)
    for claim in work.claims:
        # The first to take may take its measure, or with many results nothing would be claimed.
        most = min(room, CLAIM_ROWS) if rows else CLAIM_ROWS
        look = _claim(connection, claim, now_ms, most) if most > 0 else _UNSEEN
        if look is None:
            ended.add(claim.lane)
            continue
        rows += [(claim.lane, row) for row in look.taken]
        opened.update(look.opened)
        if look.full:
            more.add(claim.lane)
        room = 0 if look.crowded else room - len(look.taken) - len(look.moved)
    return Exchanged(frozenset(settled), frozenset(opened), frozenset(ended), rows, frozenset(more))


def _put_sessions(connection: apsw.Connection, sessions: Sequence[SessionRow]) -> None:
    """Rows of connections, and an event for each; of one both its begin and its end may be here."""
    rows = encoded(
        [
            (
                row.id, row.lane, row.site, row.host, row.address, row.source, row.started_ms,
                row.ended_ms, row.messages, row.ehlo, row.tls_wanted, row.tls_reached,
                row.tls_version, row.tls_cipher, row.tls_peer, int(row.tls_verified), row.end_cause,
            )
            for row in sessions
        ]
    )  # fmt: skip
    run(connection, "session_put", {"rows": rows})
    run(connection, "session_event", {"rows": rows})


def _open(connection: apsw.Connection, requests: Sequence[Open], now_ms: int) -> set[int]:
    """Recipients that are open now, for the session that asked; the others may not be sent."""
    places: dict[tuple[int, str], int] = {}
    wanted: dict[int, int] = {}
    for request in requests:
        place = places.setdefault((request.lane, request.session), len(places))
        for recipient in request.recipients:
            wanted[recipient] = recipient << 16 | place
    values = {
        "recipients": encoded(list(wanted.values())),
        "lanes": encoded([lane for lane, _ in places]),
        "sessions": encoded([session for _, session in places]),
        "look": run(connection, "any_expired", {"now_ms": now_ms})[0][0],
        "now_ms": now_ms,
    }
    if wrote(connection, "open", values) == len(wanted):
        return set(wanted)
    return {row[0] for row in run(connection, "opened", values)}


@dataclass(slots=True)
class _Look:
    """What a claim saw on its way through a site's waiting rows."""

    taken: list[Any] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    messages: set[int] = field(default_factory=set)
    bytes: int = 0
    full: bool = False
    crowded: bool = False
    """It ended for want of room in the exchange."""
    scattered: bool = False
    """Recipients of a message do not lie side by side, or not by their numbers."""
    moved: list[int] = field(default_factory=list)
    unrefreshed: list[int] = field(default_factory=list)
    expired: bool = False
    cut: bool = False
    """Passed over so many rows in a priority that what is behind them was not seen."""
    refresh: set[str] = field(default_factory=set)


_UNSEEN = _Look(full=True, crowded=True)
"""Of a claim that came when the exchange was full; never written to."""


def _claim(
    connection: apsw.Connection, request: ClaimRequest, now_ms: int, most: int
) -> _Look | None:
    """Due recipients of the lane's site, a seek per priority, oldest due first; None: no claims.

    Rows of a domain that moved go back to the router. Rows whose domain's route is too old stay as
    they are until the router has looked again and wakes the site; where there are many of them,
    some go back to the router, too, so that what is behind them is reached.
    """
    found = run(connection, "lane_turn", {"lane": request.lane})
    if not found:
        return None  # the lane lapsed
    site, claims, rank, mine, lanes = found[0]
    if request.limit_lanes is not None and rank >= request.limit_lanes:
        return None
    if request.share is not None and mine >= request.share:
        return None
    limit = request.limit
    if lanes > 1 and 0 < request.even < limit:
        limit = _part(connection, site, request, lanes, now_ms)
    look = _Look()
    for priority in TURNS[(request.lane + claims) % len(TURNS)]:
        _look(connection, request, look, site, priority, limit, now_ms, most)
        if look.full:
            break
    if look.taken:
        _take(connection, request, look, now_ms)
    unrouted = (look.moved + (look.unrefreshed if look.cut else []))[:SKIP_ROWS]
    if unrouted:
        values = {"recipients": encoded(unrouted), "now_ms": now_ms}
        run(connection, "unroute", {"recipients": values["recipients"]})
        run(connection, "domains_due", values)
    if look.refresh:
        domains = encoded(sorted(look.refresh))
        run(connection, "refresh_domains", {"domains": domains, "now_ms": now_ms})
    if not look.full:
        _wait(connection, look, site, now_ms)
    return look


def _part(
    connection: apsw.Connection, site: int, request: ClaimRequest, lanes: int, now_ms: int
) -> int:
    """How many messages a lane may take, so that each of the site's lanes finds as many."""
    most = min(request.limit * lanes, EVEN_ROWS)
    values = {"site": site, "now_ms": now_ms, "most": most}
    due: int = run(connection, "due_at_site", values)[0][0]
    return request.limit if due >= most else max(-(-due // lanes), request.even)


def _look(
    connection: apsw.Connection,
    request: ClaimRequest,
    look: _Look,
    site: int,
    priority: int,
    limit: int,
    now_ms: int,
    most: int,
) -> None:
    """Take what is ready in one priority, note what is not, stop at the first not yet due.

    Args:
        most: rows in all. Where the exchange has no room for more, no message is cut by that.
    """
    skipped = 0
    last: Any = None
    for row in _due(connection, site, priority, limit, now_ms):
        if row[_REFRESH]:
            look.refresh.add(row[_DOMAIN])
        kind = row[_KIND]
        if kind != _READY:
            if skipped == SKIP_ROWS:
                look.cut = True
                return
            skipped += 1
            if kind == _MOVED:
                look.moved.append(row[_SEQ])
            elif kind == _UNREFRESHED:
                look.unrefreshed.append(row[_SEQ])
            else:
                look.expired = True
            continue
        message = row[_MESSAGE]
        fresh = message not in look.messages
        full = len(look.taken) >= most
        if full or (
            fresh
            and look.messages
            and (len(look.messages) >= limit or look.bytes + row[_SIZE] > request.max_bytes)
        ):
            look.full, look.crowded = True, full and most < CLAIM_ROWS
            if look.crowded and not fresh:
                look.taken = [one for one in look.taken if one[_MESSAGE] != message]
            return
        if fresh:
            look.messages.add(message)
            look.bytes += row[_SIZE]
        elif last is None or last[_MESSAGE] != message or last[_SEQ] > row[_SEQ]:
            look.scattered = True
        look.taken.append(row)
        last = row


def _due(
    connection: apsw.Connection, site: int, priority: int, limit: int, now_ms: int
) -> Iterator[Any]:
    """What is due at a site in one priority, by due time, page by page."""
    most = min(max(limit, 1), CLAIM_ROWS) + 1  # one more tells whether something is left
    values = {
        "site": site,
        "priority": priority,
        "now_ms": now_ms,
        "grace_ms": ROUTE_GRACE_MS,
        "most": most,
        "after_ms": 0,
        "after": 0,
    }
    while True:
        page = _page(connection, values)
        yield from page
        if len(page) < most:
            return
        values["after_ms"], values["after"] = page[-1][_DUE], page[-1][_SEQ]


def _page(connection: apsw.Connection, values: Mapping[str, Any]) -> list[Any]:
    try:
        page: list[Any] = msgspec.json.decode(run(connection, "due_recipients", values)[0][0])
    except (msgspec.DecodeError, UnicodeDecodeError, apsw.SQLError):
        # damage to one row must not keep the others from being sent
        return [_decoded(row) for row in run(connection, "damaged_recipients", values)]
    return page


def _take(connection: apsw.Connection, request: ClaimRequest, look: _Look, now_ms: int) -> None:
    """The lane has what was looked out; what is left of it comes in the order it is to be sent.

    Messages in the order they were taken (priority, then due time), recipients together; the first
    of them are open where that was asked for.
    """
    taken = [row[_SEQ] for row in look.taken]
    ahead = request.ahead
    look.opened = [] if ahead is None or look.scattered else taken[: _suiting(look.taken, ahead)]
    values = {
        "recipients": encoded(taken),
        "lane": request.lane,
        "opened": len(look.opened),
        "session": None if ahead is None else ahead.session,
        "now_ms": now_ms,
    }
    if wrote(connection, "claim", values) != len(taken):
        held = {row[0] for row in run(connection, "claimed", values)}
        look.taken = [row for row in look.taken if row[_SEQ] in held]
        look.opened = [recipient for recipient in look.opened if recipient in held]
    run(connection, "lane_took", {"lane": request.lane})
    if look.scattered:
        turn: dict[int, int] = {}
        for row in look.taken:
            turn.setdefault(row[_MESSAGE], len(turn))
        look.taken.sort(key=lambda row: (turn[row[_MESSAGE]], row[_SEQ]))


def _suiting(rows: Sequence[Any], ahead: Ahead) -> int:
    """How many of the rows are opened at once; those of a message stand side by side."""
    count = 0
    for messages, (_, group) in enumerate(groupby(rows, key=itemgetter(_MESSAGE))):
        same = list(group)
        row = same[0]
        if (
            messages == ahead.messages
            or len(same) > ahead.recipients
            or (ahead.octets and row[_SIZE] > ahead.octets)
            or row[_ON_DOUBT] not in (None, "retry")  # a damaged word is taken for the careful one
            or (row[_REQUIRE_TLS] and not ahead.encrypted)
            or (row[_REQUIRETLS] and not ahead.requiretls)
            or (row[_EIGHTBIT] and not ahead.eightbit)
            or (row[_SMTPUTF8] and not ahead.smtputf8)
        ):
            break
        count += len(same)
    return count


def _wait(connection: apsw.Connection, look: _Look, site: int, now_ms: int) -> None:
    """The site was looked through: say when it is worth another look."""
    if not look.cut and not look.expired and len(look.moved) <= SKIP_ROWS:
        run(connection, "put_next_due", {"site": site, "now_ms": now_ms})
    elif not look.taken and not look.moved:
        run(connection, "pause_site", {"site": site, "until_ms": now_ms + PAUSE_MS})


_DOUBTS = {str(word): word for word in OnDoubt}
_TEXTS = (2, 3, 4, 6, 10, 16, 20, 21, 23, 27, 28, 31, 32)  # columns of due_recipients


def _decoded(row: Any) -> list[Any]:
    """A row of ``damaged_recipients``; what is no text then fits no checksum."""
    values = list(row)
    for place in _TEXTS:
        if values[place] is not None:
            values[place] = values[place].decode("utf-8", "replace")
    return values


class Kept(NamedTuple):
    """What is known of a content: its bytes where it is one chunk, the digests that it fits."""

    body: bytes | None
    size: int
    digests: tuple[bytes, ...]


def bodies(connection: apsw.Connection, rows: list[tuple[int, Any]]) -> dict[int, Kept | None]:
    """Content by its key, None where it is damaged; outside the lock."""
    found: dict[int, Kept | None] = dict.fromkeys([row[8] for _, row in rows])
    for pack in _packs({row[8]: row[7] for _, row in rows if row[9] == 1}):
        ((facts, data),) = run(connection, "first_chunks", {"contents": encoded(pack)})
        keys, sizes, digests = msgspec.json.decode(facts)
        at = 0
        for content, size, kept in zip(keys, sizes, digests, strict=True):
            if size is None:
                continue  # damaged, and not in data
            body = data[at : at + size] if data else b""
            at += size
            proved = digest(body)
            if proved == bytes.fromhex(kept):
                found[content] = Kept(body, size, (proved,))
    long = {row[8]: row[9] for _, row in rows if row[9] != 1}
    pieces: dict[int, list[Any]] = {}
    if long:
        values = {"contents": encoded(sorted(long))}
        for content, number, size, kept in run(connection, "chunk_digests", values):
            pieces.setdefault(content, []).append((number, size, kept))
    for content, piece in pieces.items():
        numbers, sizes, digests = zip(*piece, strict=True)
        if numbers == tuple(range(long[content])):
            found[content] = Kept(None, sum(sizes), digests)
    return found


def _packs(sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """Contents to be read together."""
    pack: list[int] = []
    octets = 0
    for content in sorted(sizes):
        if pack and octets + sizes[content] > PACK_BYTES:
            yield pack
            pack, octets = [], 0
        pack.append(content)
        octets += sizes[content]
    if pack:
        yield pack


def complete(rows: list[tuple[int, Any]], found: Mapping[int, Kept | None]) -> list[Claimed]:
    """Claimed rows with their content; what is not among ``found`` could not be compared."""
    claimed = []
    for lane, row in rows:
        (
            recipient, message, id, address, domain, check, sender, size, content, chunks, stream,
            priority, created_ms, expires_ms, attempts, deferrals, on_doubt, require_tls, eightbit,
            smtputf8, *_, ret, envid, priority_wire, requiretls, notify,
            orcpt,
        ) = row  # fmt: skip
        whole = (
            checksum(id, sender, address, notify, orcpt) == check and domain_of(address) == domain
        )
        body = None
        unread = content not in found
        if not unread:
            kept = found[content]
            whole = whole and kept is not None and kept.size == size and _fits(row, kept)
            body = None if kept is None else kept.body
        claimed.append(
            Claimed(
                lane=lane,
                recipient=recipient,
                message=message,
                message_id=id,
                address=address,
                domain=domain,
                sender=sender,
                size=size,
                content=content,
                chunks=chunks,
                body=body,
                damaged=not whole,
                unread=unread,
                stream=stream,
                priority=priority,
                created_ms=created_ms,
                expires_ms=expires_ms,
                attempts=attempts,
                deferrals=deferrals,
                # of a damaged word the careful one
                on_doubt=None if on_doubt is None else _DOUBTS.get(on_doubt, OnDoubt.HOLD),
                require_tls=bool(require_tls),
                eightbit=bool(eightbit),
                smtputf8=bool(smtputf8),
                ret=ret,
                envid=envid,
                priority_wire=priority_wire,
                notify=notify,
                orcpt=orcpt,
                requiretls=bool(requiretls),
            )
        )
    return claimed


def _fits(row: Any, kept: Kept) -> bool:
    """Whether the message's digest is that of its row and content."""
    if row[21] is None:
        return True
    id, sender, message_id = row[2], row[6], row[20]
    if not (type(id) is type(sender) is type(message_id) is str):
        return False  # damaged: no digest was made over what is no text
    facts, told = (id, sender, message_id, row[7], row[9], row[18], row[19]), row[_TOLD]
    seal = bytes.fromhex(row[21])
    if message_digest(*facts, row[17], row[16], kept.digests, *told) == seal:
        return True
    named = dict(zip(SEALED, (*facts, *told), strict=True))
    return fits(seal, require_tls=row[17], on_doubt=row[16], digests=kept.digests, **named)
