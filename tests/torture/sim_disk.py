"""The disk under a simulated spool: which commits it has, and what a power cut takes back.

Contract: a successful sync of anybody makes every commit so far durable, and nothing else does but
a checkpoint, which syncs by itself. ``left`` and ``put_back`` are the power cut: the -wal file ends
behind its last durable frame, and the database has what it had. ``commits`` says of each claim and
open when it was made and when the disk had it.

The -shm file is read as SQLite describes it (walformat.html, "WAL-Index Header"): it counts the
frames of all commits, of every connection.

Must not know: whose commits these are, and what they promise.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailstrom.storage.base import Exchange, Work
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore

_HEADER = struct.Struct("=12xBBHI12x8s")  # isInit, bigEndCksum, szPage, mxFrame, aSalt
_BACKFILL = struct.Struct("=I")
_BACKFILL_AT = 96
_WAL_HEADER, _FRAME_HEADER = 32, 24


@dataclass(slots=True)
class Commit:
    """When a commit was made, and when the disk had it."""

    made_s: float
    durable_s: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a power cut leaves.

    Args:
        lost: frames that are gone.
    """

    database: bytes
    wal: bytes
    lost: int


class Disk:
    """See the module.

    Args:
        path: the spool.
        now_s: virtual seconds.
    """

    def __init__(self, path: str, now_s: Callable[[], float]) -> None:
        self._path = Path(path)
        self._wal, self._shm = Path(f"{path}-wal"), Path(f"{path}-shm")
        self._now_s = now_s
        self._fd: int | None = None
        self._salt, self._frames = b"", 0
        self._waiting: list[Commit] = []
        self.commits: dict[tuple[str, str, str], list[Commit]] = {}

    def _look(self) -> tuple[bytes, int, int, int]:
        """Salt, page size, frames and how many of them are in the database."""
        if self._fd is None:
            # Kept open: closing it would drop this process's locks on the file.
            self._fd = os.open(self._shm, os.O_RDONLY)
        data = os.pread(self._fd, _BACKFILL_AT + _BACKFILL.size, 0)
        _, _, size, frames, salt = _HEADER.unpack_from(data)
        (backfilled,) = _BACKFILL.unpack_from(data, _BACKFILL_AT)
        return salt, 65_536 if size == 1 else size, frames, backfilled

    def synced(self) -> None:
        """A sync of the -wal file has succeeded."""
        self._salt, _, self._frames, _ = self._look()
        for one in self._waiting:
            one.durable_s = self._now_s()
        self._waiting = []

    def committed(self, word: str, pairs: list[tuple[str, str]]) -> None:
        """Something was committed of these recipients."""
        for id, address in pairs:
            one = Commit(self._now_s())
            self.commits.setdefault((word, id, address), []).append(one)
            self._waiting.append(one)

    def behind(self) -> bool:
        """Whether there are commits that a power cut would take back."""
        salt, _, frames, backfilled = self._look()
        return frames > max(self._frames if salt == self._salt else 0, backfilled)

    def left(self) -> Left:
        """What is there after a power cut now."""
        salt, size, frames, backfilled = self._look()
        kept = max(self._frames if salt == self._salt else 0, backfilled)
        kept = min(kept, frames)
        wal = self._wal.read_bytes()
        end = _WAL_HEADER + kept * (_FRAME_HEADER + size) if kept else 0
        return Left(database=self._path.read_bytes(), wal=wal[:end], lost=frames - kept)

    def put_back(self, left: Left) -> None:
        """Let the files be that; nobody has them open."""
        self.close()
        self._path.write_bytes(left.database)
        self._wal.write_bytes(left.wal)
        self._shm.unlink(missing_ok=True)
        self._waiting = []  # never

    def close(self) -> None:
        """Let go of the files."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class NotedStore(SQLiteWorkerStore):
    """A worker's store that tells the disk which claims and opens it has committed.

    Args:
        disk: is told.
    """

    def __init__(self, path: str, *, disk: Disk, **options: Any) -> None:
        super().__init__(path, **options)
        self._disk = disk
        self._names: dict[int, tuple[str, str]] = {}

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        """See ``WorkerStore.exchange``."""
        done = super().exchange(work, now_ms)
        self._names |= {row.recipient: (row.message_id, row.address) for row in done.claimed}
        self._disk.committed("claim", [self._names[row.recipient] for row in done.claimed])
        self._disk.committed("open", [self._names[one] for one in done.opened])
        return done
