"""Lanes: leased, fenced rights to hold one connection to a site; steps of one transaction.

A lane belongs to a live worker. What a lane still holds when it ends is due again where nothing was
sent, and in doubt where it was on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import apsw

from mailstrom.storage.base import Lane, Lesson, Suspension
from mailstrom.storage.sqlite import copies
from mailstrom.storage.sqlite.encoding import encoded
from mailstrom.storage.sqlite.rows import decode_hosts, readable
from mailstrom.storage.sqlite.settling import AttemptRow, record, site_event
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import Host, Judgement, OnDoubt, Pipelining, Reason, Stage

DOUBT_DELAYS_MS = (0, 60_000, 300_000, 900_000, 3_600_000)
"""How long a recipient that was lost on the wire waits, by how often it was in a row."""
DOUBT_MOST = 5
"""Lost so often in a row, a recipient is held: it may be what kills its workers."""
DOUBT_ROWS = 1_000
"""Most rows that one transaction takes back of lanes that end, but for those of a single one."""

NEVER_MS = 253_402_300_799_000
"""When a site without waiting recipients is due: the end of the year 9999."""
CAP_MS = 60_000
"""How long a site keeps to the lanes it was seen to bear before one more is tried."""
DAMAGED_MS = 1_000
"""A site whose hosts cannot be read is looked at again after this."""
PROVEN_PAGE = 2_000
"""Of so many due sites those are looked out that took mail last time, where only they get lanes."""
_LOOKED_UP = 20
"""So many domains are looked up anew for the hosts of one site; one answer is enough."""
_COUNTED = 500
"""Due messages of a site are counted this far for a lease."""
_LOST = "the worker ended while this recipient was on the wire; it may have been delivered"


def lease(
    connection: apsw.Connection,
    worker: int,
    *,
    want: int,
    limit: int,
    workers: int,
    now_ms: int,
    among: str | None = None,
) -> list[Lane]:
    """Lease lanes at ready sites: never more than ``limit`` a site over all workers.

    A worker takes at most its fair share (``ceil(limit / workers)``) of a site, and no more lanes
    than there are messages due there. A site that nothing is known of, or that failed last time,
    gets one lane until it has taken a message; one that refused a further connection gets no more
    than it was seen to bear, one more each minute.

    Args:
        among: only at these sites, a JSON array.
    """
    if not run(connection, "worker_alive", {"worker": worker}):
        return []  # lapsed: it would never be taken back
    if copies.marked(connection):
        return []
    share = -(-limit // max(1, workers))
    values: dict[str, int | str] = {
        "now_ms": now_ms, "worker": worker, "limit": limit, "share": share,
    }  # fmt: skip
    run(connection, "grow_caps", {"now_ms": now_ms, "limit": limit, "pause_ms": CAP_MS})
    chosen: dict[int, tuple[_Ready, tuple[Host, ...], int]] = {}
    lanes: list[int] = []  # the site of each
    idle: list[int] = []
    damaged: list[int] = []
    statement = "ready_sites"
    if among is not None:
        statement, values["among"] = "ready_among", among
    with closing(connection.execute(STATEMENTS[statement], values)) as rows:
        ready = map(_Ready._make, rows)  # no further than needed: mostly a few of many
        while looked := _enough(ready, want - len(lanes), share):
            counted = {
                "sites": encoded([site.seq for site in looked]),
                "now_ms": now_ms,
                "most": max(_COUNTED, limit),
            }
            counts: dict[int, int] = dict(run(connection, "due_messages", counted))
            for site in looked:
                due, where = counts[site.seq], decode_hosts(site.hosts)
                if due == 0:
                    idle.append(site.seq)
                elif not where:
                    damaged.append(site.seq)
                else:
                    chosen[site.seq] = site, where, due
                    more = min(site.room, share - site.mine, want - len(lanes), due)
                    lanes += [site.seq] * more
    if idle:
        run(connection, "set_next_due", {"sites": encoded(idle)})
    for seq in damaged:
        _look_up_again(connection, seq, now_ms)
    return _leased(connection, worker, lanes, chosen, now_ms) if lanes else []


class _Ready(NamedTuple):
    """A row of ``ready_sites``; ``room`` and ``mine``: lanes that it may get, and that are ours."""

    seq: int
    key: bytes
    provider: bytes | None
    hosts: bytes
    room: int
    mine: int
    pipelining: bytes | None
    chunking: int | None
    failing: int
    canary: int


def _enough(ready: Iterator[_Ready], want: int, share: int) -> list[_Ready]:
    """The next sites that may have room for so many lanes; none where none is wanted, or left."""
    looked: list[_Ready] = []
    while want > 0 and (site := next(ready, None)) is not None:
        looked.append(site)
        want -= min(site.room, share - site.mine)
    return looked


def _leased(
    connection: apsw.Connection,
    worker: int,
    lanes: Sequence[int],
    sites: Mapping[int, tuple[_Ready, tuple[Host, ...], int]],
    now_ms: int,
) -> list[Lane]:
    """Write lanes at these sites; in their order."""
    values = {"sites": encoded(lanes), "worker": worker, "now_ms": now_ms}
    leased = []
    for token, seq in sorted(run(connection, "lease", values)):
        site, where, due = sites[seq]
        leased.append(
            Lane(
                token=token,
                site=seq,
                site_key=readable(site.key) or "",
                hosts=where,
                provider=readable(site.provider),
                due=due,
                pipelining=pipelining_of(site.pipelining),
                chunking=None if site.chunking is None else bool(site.chunking),
                failing=bool(site.failing),
                canary=bool(site.canary),
            )
        )
    return leased


def pipelining_of(stored: bytes | None) -> Pipelining:
    """What the site's row says; what is no word of it says nothing."""
    try:
        return Pipelining(readable(stored) or Pipelining.FULL)
    except ValueError:
        return Pipelining.FULL


def learn(connection: apsw.Connection, lesson: Lesson, now_ms: int) -> None:
    """Keep what a session taught about a site's hosts."""
    values = {
        "site": lesson.site,
        "pipelining": lesson.pipelining,
        "chunking": lesson.chunking,
        "until_ms": lesson.until_ms,
        "now_ms": now_ms,
    }
    run(connection, "learn", values)


def _look_up_again(connection: apsw.Connection, site: int, now_ms: int) -> None:
    """Its hosts are damaged: domains that wait here are looked up, which writes them anew."""
    values = {"site": site, "most": _COUNTED}
    waiting = encoded([row[0] for row in run(connection, "waiting_at", values)])
    run(connection, "expire_waiting", {"recipients": waiting, "most": _LOOKED_UP})
    run(connection, "unroute", {"recipients": waiting})
    run(connection, "domains_due", {"recipients": waiting})
    run(connection, "pause_site", {"site": site, "until_ms": now_ms + DAMAGED_MS})


def release(
    connection: apsw.Connection,
    lanes: Sequence[int],
    now_ms: int,
    on_doubt: OnDoubt,
    delays_ms: Sequence[int],
) -> tuple[int, Sequence[int]]:
    """End lanes; claims are due again, what was left open without a verdict is in doubt.

    Returns:
        How many recipients the lanes held that have ended, and the lanes that are left: those that
        would make it more than ``DOUBT_ROWS``, or than those of one lane.
    """
    lanes, left = _fitting(connection, lanes)
    values = {"lanes": encoded(lanes)}
    freed = [row[0] for row in run(connection, "release_claimed", {**values, "now_ms": now_ms})]
    if freed:
        run(connection, "lower_next_due", {"recipients": encoded(freed)})
    doubtful = 0
    for lane, worker in run(connection, "lanes_holding", values):
        while piece := doubt(connection, [lane], worker, on_doubt, delays_ms, DOUBT_ROWS, now_ms):
            doubtful += piece
    run(connection, "lanes_end", values)
    return len(freed) + doubtful, left


def _fitting(
    connection: apsw.Connection, lanes: Sequence[int]
) -> tuple[Sequence[int], Sequence[int]]:
    """Those of the lanes that one transaction ends, and the others."""
    if len(lanes) < 2:
        return lanes, ()
    sizes = run(connection, "lane_sizes", {"lanes": encoded(lanes)})
    held = 0
    for place, (size,) in enumerate(sizes):
        held += size
        if place and held > DOUBT_ROWS:
            return lanes[:place], lanes[place:]
    return lanes, ()


def doubt(
    connection: apsw.Connection,
    lanes: Sequence[int],
    worker: int | None,
    on_doubt: OnDoubt,
    delays_ms: Sequence[int],
    most: int,
    now_ms: int,
) -> int:
    """Mark in doubt what these lanes still hold, each with an attempt that says so.

    Each loss is charged and waits longer than the one before; the fifth in a row is held as poison,
    so that a message that kills its workers is not sent without end.

    Args:
        delays_ms: wait by number of losses before; the last one repeats.
        most: bound on the rows of this call.

    Returns:
        How many were marked; fewer than ``most`` means that none is left.
    """
    values = {"lanes": encoded(lanes), "on_doubt": str(on_doubt), "most": most}
    changes: list[list[Any]] = []
    attempts: list[AttemptRow] = []
    for recipient, policy, session, opened_ms, host, address, doubts in run(
        connection, "held_by_lanes", values
    ):
        if policy == OnDoubt.HOLD:
            verdict, reason = Judgement.HELD, Reason.IN_DOUBT
        elif doubts + 1 >= DOUBT_MOST:
            verdict, reason = Judgement.HELD, Reason.POISON
        else:
            verdict, reason = Judgement.DEFERRED, Reason.IN_DOUBT
        due_ms = None
        if verdict is Judgement.DEFERRED:
            due_ms = now_ms + delays_ms[min(doubts, len(delays_ms) - 1)]
        changes.append([recipient, str(verdict), str(reason), due_ms, host])
        attempts.append(
            AttemptRow(
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
                str(reason),
                1,
                0,
                worker,
            )
        )
    if changes:
        run(connection, "doubt", {"rows": encoded(changes), "now_ms": now_ms, "text": _LOST})
        record(connection, attempts, now_ms)
    return len(changes)


def suspend(connection: apsw.Connection, row: Suspension, now_ms: int) -> int:
    """Stop leasing a site; one row, no recipient is written.

    Where mail goes through on other lanes of the site, it is capped at those instead.
    """
    capped = {
        "site": row.site,
        "since_ms": row.since_ms,
        "text": row.text,
        "now_ms": now_ms,
        "limit": NEVER_MS,
        "pause_ms": CAP_MS,
    }
    if row.crowded and run(connection, "cap", capped):
        return 0
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
    site_event(connection, row.site, "site.suspended", now_ms)
    return int(found[0][0])
