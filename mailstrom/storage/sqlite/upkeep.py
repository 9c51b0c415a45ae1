"""Lapse, expire, purge: what the janitor does, inside a transaction (the clock is in ``clocks``).

Every verb is bounded by ``limit``, so that the lock is never held long, and idempotent, so that a
janitor killed half-way leaves nothing that its successor cannot finish.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import apsw

from mailstrom.storage.base import Lapsed, Retention
from mailstrom.storage.sqlite import clocks, contents, copies, lanes
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import OnDoubt

UNUSED_MS = 30 * 86_400_000
"""Routes and sites that nobody used for so long are forgotten."""
HOURS_MS = 400 * 86_400_000
"""Hourly sums stay this long: a year, and the same month of the year before."""
STAGED_MS = 86_400_000
VACUUM_PAGES = 256
"""Most pages given back to the file system in one round."""
SPARE_PAGES = 1_024
"""Free pages that stay in the file, at least: new mail needs them soon."""


def lapse(
    connection: apsw.Connection,
    before: Lapsed,
    *,
    boot: str,
    now_ms: int,
    on_doubt: OnDoubt,
    delays_ms: Sequence[int],
) -> tuple[Lapsed, bool]:
    """Take back a piece of what a dead worker held; what was taken so far, and whether it is all.

    Claims are due again, what was on the wire is in doubt. The worker's row ends with the last
    piece.
    Without the name of a boot (``""``) nobody knows that it was this one.
    """
    worker = before.worker
    found = run(connection, "worker_boot", {"worker": worker})
    if not found:
        return Lapsed(worker, 0, 0, 0), True
    same_boot = boot != "" and found[0][0] == boot
    piece, all_done = _take_back(connection, worker, same_boot, now_ms, on_doubt, delays_ms)
    released, in_doubt = before.released + piece.released, before.in_doubt + piece.in_doubt
    lapsed = Lapsed(worker, piece.lanes, released, in_doubt)
    if not all_done:
        return lapsed, False
    values = {"worker": worker, "state": "lost", "now_ms": now_ms}
    ended = run(connection, "worker_end", values)
    if ended:
        run(connection, "worker_event", {**values, "type": "worker.lost"})
    if ended or lapsed.lanes:
        run(
            connection,
            "lapse_event",
            {
                "worker": worker,
                "lanes": lapsed.lanes,
                "released": lapsed.released,
                "in_doubt": lapsed.in_doubt,
                "now_ms": now_ms,
            },
        )
    return lapsed, True


def retire(
    connection: apsw.Connection,
    worker: int,
    *,
    state: str,
    now_ms: int,
    on_doubt: OnDoubt,
    delays_ms: Sequence[int],
) -> bool:
    """End a worker's row; lanes that it failed to release must not outlive it. True: all done."""
    _, all_done = _take_back(connection, worker, True, now_ms, on_doubt, delays_ms)
    if all_done:
        values = {"worker": worker, "state": state, "now_ms": now_ms}
        if run(connection, "worker_end", values):
            run(connection, "worker_event", {**values, "type": "worker.stopped"})
    return all_done


def _take_back(
    connection: apsw.Connection,
    worker: int,
    same_boot: bool,
    now_ms: int,
    on_doubt: OnDoubt,
    delays_ms: Sequence[int],
) -> tuple[Lapsed, bool]:
    """A piece of the claims of a worker that is no more; with the last one its lanes, too.

    After a reboot even claims never opened are in doubt: their open may have been lost with the
    page cache.
    """
    most = lanes.DOUBT_ROWS
    values = {"worker": worker, "now_ms": now_ms, "most": most}
    freed: list[int] = []
    if same_boot:
        freed = [row[0] for row in run(connection, "lapse_claimed", values)]
        run(connection, "lower_next_due", {"recipients": json.dumps(freed)})
    tokens = [row[0] for row in run(connection, "worker_lanes", values)]
    room = most - len(freed)
    doubtful = 0
    if room:
        doubtful = lanes.doubt(connection, tokens, worker, on_doubt, delays_ms, room, now_ms)
    if doubtful == room:
        return Lapsed(worker, 0, len(freed), doubtful), False
    ended = len(run(connection, "lapse_lanes", values))
    run(connection, "lapse_routes", values)
    run(connection, "lapse_sessions", values)
    return Lapsed(worker, ended, len(freed), doubtful), True


def expire(connection: apsw.Connection, limit: int, now_ms: int) -> int:
    """Fail what is too old, in every state but ``sending``; nothing while a jump is unshifted.

    Nor in a copy: nobody tried to deliver what waits there.
    """
    if run(connection, "jumps_pending") or copies.marked(connection):
        return 0
    rows = run(connection, "expired", {"now_ms": now_ms, "most": limit})
    if not rows:
        return 0
    values = {"recipients": json.dumps([row[0] for row in rows]), "now_ms": now_ms}
    done = [row[0] for row in run(connection, "expire", values)]
    values["recipients"] = json.dumps(done)
    for name in ("expire_events", "count_hour", "finish_messages"):
        run(connection, name, values)
    return len(done)


def purge(
    connection: apsw.Connection,
    retention: Retention,
    limit: int,
    now_ms: int,
    shared: contents.PurgeFacts,
) -> int:
    """Delete content, then whole messages, then everything else past its time, then free pages.

    Nothing for an hour after the clock jumped: what looks old then may not be. Nothing in a copy.

    Args:
        shared: what was looked for before; see ``contents``.
    """
    if clocks.unsettled(connection, now_ms) or copies.marked(connection):
        return 0
    deleted = _purge_bodies(connection, now_ms - retention.bodies_ms, limit, now_ms, shared)
    deleted += _purge_messages(connection, now_ms - retention.attempts_ms, limit)
    before = connection.total_changes()
    hours_gone = False
    for name, kept_ms in (
        ("delete_events", retention.events_ms),
        ("delete_sessions", retention.attempts_ms),
        ("delete_workers", retention.events_ms),
        ("delete_hours", HOURS_MS),
        ("delete_idempotency", 0),
        ("delete_sites", UNUSED_MS),
    ):
        values = {"before_ms": now_ms - kept_ms, "now_ms": now_ms, "most": limit}
        sql = STATEMENTS[name]
        connection.execute(sql, {k: v for k, v in values.items() if f":{k}" in sql}).fetchall()
        if name == "delete_hours":
            hours_gone = connection.changes() > 0
    left = run(connection, "delete_domains", {"before_ms": now_ms - UNUSED_MS, "most": limit})
    if left:
        sites = json.dumps([row[0] for row in left])
        run(connection, "touch_sites", {"sites": sites, "now_ms": now_ms})
    contents.delete_staged(connection, now_ms - STAGED_MS)
    deleted += connection.total_changes() - before
    if hours_gone:  # of older events ``checking`` can no longer say whether they are in the sums
        run(connection, "meta_set", {"key": "hours_from", "value": now_ms - HOURS_MS})
    return deleted


def _purge_bodies(
    connection: apsw.Connection, before_ms: int, limit: int, now_ms: int, look: contents.PurgeFacts
) -> int:
    """Content of messages that finished long ago: one whole message, or ``limit`` chunks."""
    rows = run(connection, "purge_bodies", {"before_ms": before_ms, "most": limit})
    was_staged = any(content is not None and content < 0 for _, content, _ in rows)
    since = contents.late(connection, look) if was_staged or look.orphans else {}
    chunks_gone = 0
    for seq, content, chunks in rows:
        if chunks_gone and chunks_gone + chunks > limit:
            break
        try:
            contents.delete(connection, seq, content, look, since)
            run(connection, "mark_purged", {"seq": seq, "now_ms": now_ms})
        except apsw.ConstraintError:
            # A value of a kind that its column cannot have: damage, which ``store check`` tells of.
            # SQLite does not write such a row; it must not keep the rest from being purged.
            continue
        chunks_gone += chunks
    return chunks_gone


def _purge_messages(connection: apsw.Connection, before_ms: int, limit: int) -> int:
    """Messages and all about them, ``limit`` recipients at most.

    Of a message of more of them those in front go first, with all about them, and the message with
    the last.
    """
    gone: list[int] = []
    recipients = 0
    for seq, count in run(connection, "purge_messages", {"before_ms": before_ms, "most": limit}):
        if recipients + count > limit:
            if not gone:
                return _purge_piece(connection, seq, limit)
            break
        gone.append(seq)
        recipients += count
    if gone:
        of = {"messages": json.dumps(gone)}
        for name in (
            "delete_attempts",
            "delete_message_events",
            "delete_recipients",
            "delete_tags",
            "delete_messages",
        ):
            run(connection, name, of)
    return len(gone)


def _purge_piece(connection: apsw.Connection, message: int, limit: int) -> int:
    """Some recipients of a message that is to go; returns how many they were."""
    some = [row[0] for row in run(connection, "piece", {"message": message, "most": limit})]
    values = {"message": message, "recipients": json.dumps(some)}
    run(connection, "delete_piece_attempts", values)
    run(connection, "delete_piece_events", values)
    run(connection, "delete_piece", {"recipients": values["recipients"]})
    return len(some)


def vacuum(connection: apsw.Connection) -> int:
    """Give free pages back to the file system, a bounded number; returns how many."""
    if copies.marked(connection):
        return 0
    free, pages = _pragma(connection, "freelist_count"), _pragma(connection, "page_count")
    surplus = min(free - max(SPARE_PAGES, pages // 10), VACUUM_PAGES)
    if surplus <= 0:
        return 0
    connection.execute(f"PRAGMA incremental_vacuum({surplus})").fetchall()
    return surplus


def _pragma(connection: apsw.Connection, name: str) -> int:
    rows: list[Any] = connection.execute(f"PRAGMA {name}").fetchall()
    return int(rows[0][0])
