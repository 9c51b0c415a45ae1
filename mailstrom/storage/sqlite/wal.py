"""The bound of the -wal file: how long it may grow, and who keeps it from being emptied.

Also who holds the write lock: a writer that stands still stops everybody, and is named.

A reader with an open snapshot keeps every checkpoint from going past what it sees, so the file
grows for as long as it stays. From ``alarm_bytes`` on the janitor names it; at the limit (``[spool]
wal_limit``, told to all through ``meta``) accepting and claiming stop. A file that grew over the
alarm is cut back by a TRUNCATE checkpoint, since its length is what everybody looks at.

Who it is, Linux says: each reader holds a POSIX lock on a byte of the -shm file, which /proc/locks
lists with the process; what it reads stands beside these bytes. The -shm file is read through the
descriptor that SQLite has open here, never opened: closing it would drop this process's locks.

Source: SQLite's documentation of the WAL-index (walformat, sections 2.1 and 2.3).
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable

import apsw

from mailstrom.storage.pinned import Pinned, mebibytes
from mailstrom.storage.sqlite import frames, locks
from mailstrom.storage.sqlite.sql import run

LIMIT_BYTES = 1 << 30
"""Where no engine has told another."""
LEAST_LIMIT_BYTES = 16 << 20
"""No limit is lower: below it nobody needs to ask which one holds."""
ALARM_BYTES = 64 << 20
LEAST_ALARM_BYTES = LEAST_LIMIT_BYTES // 4
RESTART_BELOW_FRAMES = 500
"""A checkpoint that leaves at most this many frames may wait (5 ms) to start the WAL again."""
FRAME_BYTES = frames.FRAME_BYTES
PATIENCE_MS, LONG_MS, LAST_MS = 5, 200, 2_000
"""How long writers wait for readers to end, so that the WAL can start again: in ordinary times,
with a file over its alarm, and over half of its limit. Readers that overlap without a gap, each
short, would otherwise let it grow for ever."""
SELDOM = 20
"""A long wait that came to nothing is tried again after so many times its length."""
_MOVING_S = 2.0
"""Readers let go now and then if the checkpoint was seen to come further within so long, beside a
file over its alarm: then a wait for them, whatever is left to copy, ends well. One who stands
still, such as a report that was left open, is not waited for, not even at first sight."""

HELD_S = 1.0
"""A write lock that one process kept for so long is worth a word."""
_LOOKS = 10
_LASTING_S, _MOST_LOOKS = 0.005, 4
"""Between two looks at who is in the way: longer than a commit, or a short query, takes; and how
many looks."""

_CHECKPOINT, _FIRST_READ, _READS = 121, 123, 5
_HEADER_BYTES = 48  # of the WAL-index; changed by each commit
_END, _END_AT = struct.Struct("=I"), 16
_MARKS, _MOVED_AT = struct.Struct(f"={1 + _READS}I"), 96


def limit_bytes(connection: apsw.Connection) -> int:
    """How long the -wal file may be before accepting and claiming stop."""
    rows = run(connection, "meta_get", {"key": "wal_limit"})
    return max(int(rows[0][0]), LEAST_LIMIT_BYTES) if rows else LIMIT_BYTES


def full(connection: apsw.Connection, size: int) -> bool:
    """Whether a -wal file of this length is at the limit."""
    return size >= LEAST_LIMIT_BYTES and size >= limit_bytes(connection)


def alarm_bytes(limit: int) -> int:
    """From which length on somebody should know: 64 MiB, or a quarter of a low limit."""
    return min(ALARM_BYTES, limit // 4)


def patience_ms(size: int, limit: int) -> int:
    """How long a checkpoint of a -wal file of this length may keep writers waiting."""
    if size < alarm_bytes(limit):
        return PATIENCE_MS
    return LONG_MS if size < limit // 2 else LAST_MS


def empty(
    connection: apsw.Connection,
    *,
    busy_ms: int,
    ask: Callable[[], None],
    shorten: bool = False,
    insist: Callable[[int], int] = lambda moved: 0,
) -> tuple[int, int, str]:
    """Move the WAL into the database as far as readers allow.

    PASSIVE never waits. Once little is left, RESTART with a limit lets the WAL start again at its
    beginning; where a reader or writer is in the way, the next call tries again.

    Args:
        connection: any of ours.
        busy_ms: its busy timeout.
        ask: raises in a poisoned spool, which may have become so since the first of the two.
        shorten: TRUNCATE in the place of RESTART: the file is to be cut back.
        insist: told how many frames are moved; how long writers may have to wait, with more than a
            little left, too; 0: ``PATIENCE_MS``, and only for a little.

    Returns:
        frames in the WAL, frames of them moved, and the mode reached.

    Raises:
        apsw.Error: other than busy.
        SpoolError: by ``ask``.
    """
    mode = "passive"
    try:
        frames, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.BusyError:  # somebody else is at it
        return 0, 0, mode
    # An empty WAL may still be a long file: a RESTART, or a writer, began it again.
    little = frames - moved <= RESTART_BELOW_FRAMES
    patient_ms = insist(moved)
    if frames < 0 or not (frames or shorten) or not (patient_ms or little):
        return max(frames, 0), max(moved, 0), mode
    wanted = ("truncate", apsw.SQLITE_CHECKPOINT_TRUNCATE) if shorten else (
        "restart", apsw.SQLITE_CHECKPOINT_RESTART)  # fmt: skip
    ask()
    connection.set_busy_timeout(max(PATIENCE_MS, patient_ms))
    try:
        left, done = connection.wal_checkpoint(mode=wanted[1])
        mode = wanted[0]
        frames, moved = (frames, frames) if shorten else (left, done)
    except apsw.BusyError:
        pass
    finally:
        connection.set_busy_timeout(busy_ms)
    return max(frames, 0), max(moved, 0), mode


class Emptying:
    """The engine's checkpoints of one -wal file, and how patient the next one is."""

    def __init__(self) -> None:
        self._moved: int | None = None  # at the last look at a file over its alarm
        self._moving_until_s = self._patient_from_s = 0.0
        self._vain_ms = 0  # the wait that came to nothing: a longer one may be tried at once

    def __call__(
        self,
        connection: apsw.Connection,
        *,
        size: int,
        limit: int,
        busy_ms: int,
        ask: Callable[[], None],
    ) -> tuple[int, int, str]:
        """See ``empty``.

        Args:
            size: the file's length.
            limit: ``limit_bytes``, or any where the file is short.
        """
        started_s, wait_ms = time.monotonic(), patience_ms(size, limit)
        shorten = wait_ms > PATIENCE_MS
        patient = shorten and (started_s >= self._patient_from_s or wait_ms > self._vain_ms)

        def insist(moved: int) -> int:
            if shorten and self._moved not in (None, moved):
                self._moving_until_s = started_s + _MOVING_S
            self._moved = moved if shorten else None
            return wait_ms if patient and started_s < self._moving_until_s else 0

        found = empty(connection, busy_ms=busy_ms, ask=ask, shorten=shorten, insist=insist)
        waited_s = time.monotonic() - started_s
        if patient and found[2] != "truncate" and waited_s * 1000 >= wait_ms:
            self._patient_from_s, self._vain_ms = started_s + SELDOM * waited_s, wait_ms
        return found


def pinned(path: str) -> Pinned:
    """Who keeps the WAL of this spool from being emptied, as far as the system tells.

    Call it after a checkpoint that could not finish, and with a connection of this process open.
    """
    shm = f"{path}-shm"
    try:
        found = os.stat(shm)
    except OSError:
        return Pinned()
    held = _held(found)
    marks = read_marks(found)
    pids = _stopping(held, *marks) if marks else {pid for pid, _ in held}
    pids = {pid for pid in pids if not locks.at_work(pid)}
    visible = sorted(pid for pid in pids if pid > 0)
    if 0 in pids:  # of another container: who has the file open here has nothing to do with it
        return Pinned(holders=tuple(locks.named(pid) for pid in visible), sure=bool(visible))
    if len(visible) == len(pids) and (pids or marks):
        return Pinned(holders=tuple(locks.named(pid) for pid in visible), sure=bool(marks))
    # Locks of another kind, or locks are not told at all: at least who has the file open.
    opened = [pid for pid in locks.openers(shm) if not locks.at_work(pid)]
    return Pinned(holders=tuple(locks.named(pid) for pid in opened))


def lasting(path: str, found: Pinned) -> Pinned:
    """Who keeps it for longer than a moment, by two looks: who is named may be ended by somebody.

    A writer, or a short reader, is there for a moment; and the system tells its locks piece by
    piece, so that one may slip through a look. Where nobody is seen twice they take turns: then
    nobody is named alone, and nobody at all if one look found the log free.

    Args:
        found: what ``pinned`` just told.
    """
    looks = [found]
    while len(looks) < _MOST_LOOKS:
        time.sleep(_LASTING_S)
        again = pinned(path)
        twice = [one for one in again.holders if any(one in look.holders for look in looks)]
        if twice:
            return Pinned(holders=tuple(twice), sure=again.sure)
        looks.append(again)
    if any(look.sure and not look.holders for look in looks):
        return Pinned(sure=True)
    return Pinned(holders=tuple(one for look in looks for one in look.holders))


def sentence(found: Pinned) -> str:
    """Who it is, for an error or a finding."""
    names = ", ".join(f"process {one.pid} ({one.command})" for one in found.holders)
    if not names and found.sure:
        return "nobody any more (try again): until now a process"
    if not names:
        return locks.UNNAMED
    return names if found.sure or len(found.holders) == 1 else f"one of {names}"


def note(path: str, connection: apsw.Connection) -> list[str]:
    """A sentence about a log that is over its alarm because of a reader; none otherwise."""
    try:
        size = os.stat(f"{path}-wal").st_size
    except OSError:
        return []
    if size < LEAST_ALARM_BYTES or size < alarm_bytes(limit := limit_bytes(connection)):
        return []
    found = lasting(path, pinned(path))
    if found.sure and not found.holders:
        return []
    return [
        f"the write-ahead log has {mebibytes(size)}, since {sentence(found)} keeps it from being"
        f" emptied: end its read transaction, or the process; at {mebibytes(limit)} accepting and"
        " claiming stop"
    ]


def writer_note(path: str) -> list[str]:
    """A sentence about a process that keeps the write lock and commits nothing; none otherwise.

    Takes ``HELD_S`` where somebody has the lock, else nothing.
    """
    try:
        shm = os.stat(f"{path}-shm")
    except OSError:
        return []
    first = locks.writers(shm), _header(shm)
    for _ in range(_LOOKS):
        if not first[0]:
            return []
        time.sleep(HELD_S / _LOOKS)
        if (locks.writers(shm), _header(shm)) != first:
            return []
    return [
        f"{locks.who(first[0][0])} has held the write lock for more than a second: nothing is"
        " accepted or claimed until it ends its transaction; if it does not, end the process"
    ]


def _header(shm: os.stat_result) -> bytes:
    """What each commit changes; empty if unknown."""
    return (frames.index_head(shm) or b"")[:_HEADER_BYTES]


def _held(shm: os.stat_result) -> list[tuple[int, int]]:
    """(process, byte) of locks that stop a checkpoint: of readers, and of who stopped in one.

    A checkpointer at work is no trouble: it is about to empty the log.
    """
    return [
        (pid, at)
        for pid, mode, at in locks.locked(shm)
        if (mode == "READ" and _FIRST_READ <= at < _FIRST_READ + _READS)
        or (mode == "WRITE" and at == _CHECKPOINT and locks.stopped(pid))
    ]


def _stopping(held: list[tuple[int, int]], marks: list[int], moved: int, end: int) -> set[int]:
    """Of those who hold locks, the processes that a checkpoint stops at, by SQLite's own rules.

    It moves frames up to the oldest snapshot, and none while somebody reads the database file alone
    (slot 0). When all are moved the log begins again once no slot but that one is held: who reads
    the whole log, to its end, is in the way then, and who reads none of it no longer is.

    Args:
        held: (process, byte), see ``_held``.
        marks, moved, end: see ``read_marks``.
    """
    reading = [(pid, min(marks[at - _FIRST_READ], end)) for pid, at in held if at > _FIRST_READ]
    oldest = min((mark for _, mark in reading), default=end)
    stopping = {pid for pid, at in held if at < _FIRST_READ}
    if oldest < end or moved >= end:
        stopping.update(pid for pid, mark in reading if mark == oldest)
    if moved < oldest:
        stopping.update(pid for pid, at in held if at == _FIRST_READ)
    return stopping


def read_marks(shm: os.stat_result) -> tuple[list[int], int, int] | None:
    """In frames: how far each slot reads, how many were moved, the log's end; None if unknown."""
    if not sys.platform.startswith("linux"):
        return None
    head = frames.index_head(shm)
    if head is None:
        return None
    moved, *marks = _MARKS.unpack_from(head, _MOVED_AT)
    return marks, moved, _END.unpack_from(head, _END_AT)[0]
