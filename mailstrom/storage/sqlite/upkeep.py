"""Lapse, expire, keep the clock, purge: what the janitor does, inside a transaction.

Every verb is bounded by ``limit``, so that the lock is never held long, and idempotent, so that a
janitor killed half-way leaves nothing that its successor cannot finish.
"""

from __future__ import annotations

import json

import apsw

from mailstrom.storage.base import Lapsed, Retention
from mailstrom.storage.sqlite import lanes
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import OnDoubt

JUMP_MS = 60_000
"""A wall clock that moved this much against the monotonic one has jumped."""
BOOT_GAP_MS = 86_400_000
"""Down (or ahead) for longer than this: late messages get one more attempt before they expire."""
GRACE_MS = 3_600_000


def lapse(
    connection: apsw.Connection, worker: int, *, boot: str, now_ms: int, on_doubt: OnDoubt
) -> Lapsed:
    """Take back what a dead worker held: claims are due again, what was on the wire is in doubt."""
    found = run(connection, "worker_boot", {"worker": worker})
    if not found:
        return Lapsed(worker, 0, 0, 0)
    same_boot = found[0][0] == boot
    lapsed = _take_back(connection, worker, same_boot, now_ms, on_doubt)
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
    return lapsed


def retire(
    connection: apsw.Connection, worker: int, *, state: str, now_ms: int, on_doubt: OnDoubt
) -> None:
    """End a worker's row; lanes that it failed to release must not outlive it."""
    _take_back(connection, worker, True, now_ms, on_doubt)
    values = {"worker": worker, "state": state, "now_ms": now_ms}
    if run(connection, "worker_end", values):
        run(connection, "worker_event", {**values, "type": "worker.stopped"})


def _take_back(
    connection: apsw.Connection, worker: int, same_boot: bool, now_ms: int, on_doubt: OnDoubt
) -> Lapsed:
    """Lanes, claims, domains and sessions of a worker that is no more.

    After a reboot even claims never opened are in doubt: their open may have been lost with the
    page cache.
    """
    values = {"worker": worker, "same_boot": int(same_boot), "now_ms": now_ms}
    freed = [row[0] for row in run(connection, "lapse_claimed", values)]
    run(connection, "lower_next_due", {"recipients": json.dumps(freed)})
    tokens = [row[0] for row in run(connection, "worker_lanes", values)]
    doubtful = lanes.doubt(connection, tokens, worker, on_doubt, now_ms)
    ended = len(run(connection, "lapse_lanes", values))
    run(connection, "lapse_routes", values)
    run(connection, "lapse_sessions", values)
    return Lapsed(worker, ended, len(freed), doubtful)


def expire(connection: apsw.Connection, limit: int, now_ms: int) -> int:
    """Fail what is too old, in every state but ``sending``; nothing while a jump is unshifted."""
    if run(connection, "jumps_pending"):
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


def keep_clock(
    connection: apsw.Connection, *, wall_ms: int, monotonic_ms: int, boot: str, limit: int
) -> int:
    """Notice a jump of the wall clock and shift unfinished messages by it, piece by piece.

    Within one boot the monotonic clock tells the jump exactly, so an unfinished message's expiry
    moves with it: its age stays the smaller of wall and monotonic age. Across a boot the two
    cannot be compared; after a gap of more than a day, late messages live one hour more and are
    due now, which gives them one more attempt.
    """
    before = run(connection, "clock_get")
    run(connection, "clock_set", {"wall_ms": wall_ms, "monotonic_ms": monotonic_ms, "boot": boot})
    if before:
        wall0, monotonic0, boot0 = before[0]
        amount = (wall_ms - wall0) - (monotonic_ms - monotonic0) if boot0 == boot else 0
        grace = wall_ms + GRACE_MS if boot0 != boot and wall_ms - wall0 > BOOT_GAP_MS else 0
        if boot0 != boot and wall_ms < wall0 - JUMP_MS:
            amount = wall_ms - wall0
        if abs(amount) > JUMP_MS or grace:
            run(
                connection, "jump_add", {"wall_ms": wall_ms, "amount_ms": amount, "grace_ms": grace}
            )
    shifted = 0
    for seq, at_ms, amount, grace, last, done in run(connection, "jumps_pending"):
        until = min(last, done + limit)
        values = {
            "amount_ms": amount,
            "grace_ms": grace,
            "done": done,
            "until": until,
            "at_ms": at_ms,
            "seq": seq,
        }
        if done == 0:
            run(connection, "jump_sites", values)
            run(connection, "jump_domains", values)
        sooner: list[int] = []
        for name in ("jump_due", "jump_grace_due"):
            sooner += [row[0] for row in run(connection, name, values)]
        if sooner:
            moved = {"recipients": json.dumps(sooner), "now_ms": at_ms}
            run(connection, "lower_next_due", moved)
            run(connection, "domains_due", moved)
        for name in ("jump_expiry", "jump_done"):
            run(connection, name, values)
        shifted += until - done
    return shifted


def purge(connection: apsw.Connection, retention: Retention, limit: int, now_ms: int) -> int:
    """Delete content, then whole messages, then events and sessions past their retention."""
    deleted = 0
    for seq, content, chunks in run(
        connection, "purge_bodies", {"before_ms": now_ms - retention.bodies_ms, "most": limit}
    ):
        first = content * 4096
        run(connection, "delete_content", {"first": first, "last": first + 4095})
        run(connection, "mark_purged", {"seq": seq, "now_ms": now_ms})
        deleted += chunks
    gone = [
        row[0]
        for row in run(
            connection,
            "purge_messages",
            {"before_ms": now_ms - retention.attempts_ms, "most": limit},
        )
    ]
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
        deleted += len(gone)
    before = connection.total_changes()
    for name, kept in (
        ("delete_events", retention.events_ms),
        ("delete_sessions", retention.attempts_ms),
        ("delete_workers", retention.events_ms),
    ):
        values = {"before_ms": now_ms - kept, "most": limit}
        sql = STATEMENTS[name]
        connection.execute(sql, {k: v for k, v in values.items() if f":{k}" in sql})
    run(connection, "delete_idempotency", {"now_ms": now_ms})
    for (seq,) in run(connection, "stale_staged", {"before_ms": now_ms - 86_400_000}):
        run(connection, "delete_content", {"first": -seq * 4096, "last": -seq * 4096 + 4095})
        run(connection, "delete_staged", {"seq": seq})
    return deleted + connection.total_changes() - before
