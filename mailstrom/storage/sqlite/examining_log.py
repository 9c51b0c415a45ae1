"""A look at a spool's write-ahead log from outside: how long, how far it is moved, who reads it.

By names and by what the system says of locks; a connection of this process is open meanwhile, whose
descriptor shows the log's index. Takes about a second where somebody reads, or writes. Nothing is
written. What the facts mean is not known here.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from collections.abc import Callable

import apsw

from mailstrom.storage.examined import LogFacts, Reader
from mailstrom.storage.sqlite import frames, locks, wal

LOOKS, BETWEEN_S = 6, 0.2
"""Who has a read transaction at each of so many looks is there to stay."""
_FIRST_READ = 123  # the lock byte of the first reader's slot
_PROGRESS = struct.Struct("=16xI76xI")  # of the log's index: its end; what is moved


def log(connection: apsw.Connection, path: str) -> LogFacts | None:
    """The log of a spool; None where it has none.

    Args:
        connection: reads only; in no transaction.
    """
    try:
        size = os.stat(f"{path}-wal").st_size
        shm = os.stat(f"{path}-shm")
    except OSError:
        return None
    limit = wal.limit_bytes(connection)
    head = frames.index_head(shm) if sys.platform.startswith("linux") else None
    end, moved = _PROGRESS.unpack_from(head) if head is not None else (None, None)
    return LogFacts(
        size=size,
        alarm_bytes=wal.alarm_bytes(limit),
        limit_bytes=limit,
        frames=end,
        moved=moved,
        pinned=_first(lambda: wal.note(path, connection)),
        readers=_readers(shm),
        writer=_first(lambda: wal.writer_note(path)),
    )


def _first(ask: Callable[[], list[str]]) -> str | None:
    with contextlib.suppress(OSError):
        return next(iter(ask()), None)
    return None


def _readers(shm: os.stat_result) -> tuple[Reader, ...]:
    """Who is seen with a read transaction at every look; the engine's own are at work."""
    began = time.monotonic()
    lasting = _reading(shm)
    for _ in range(LOOKS - 1):
        if not lasting:
            return ()
        time.sleep(BETWEEN_S)
        now = _reading(shm)
        lasting = {pid: behind for pid, behind in now.items() if pid in lasting}
    looked_s = time.monotonic() - began
    return tuple(
        Reader(pid=pid, command=locks.named(pid).command, looked_s=looked_s, behind_frames=behind)
        for pid, behind in sorted(lasting.items())
        if pid > 0 and not locks.at_work(pid)
    )


def _reading(shm: os.stat_result) -> dict[int, int | None]:
    """Processes with a reader's lock, and how many frames behind the log's end they read."""
    known = wal.read_marks(shm)
    found: dict[int, int | None] = {}
    for pid, mode, at in locks.locked(shm):
        if mode != "READ" or at < _FIRST_READ or pid == os.getpid():
            continue
        behind = None
        if known and at > _FIRST_READ:
            marks, _, end = known
            behind = end - marks[at - _FIRST_READ]
        found[pid] = max(behind or 0, found.get(pid) or 0) if behind is not None else None
    return found
