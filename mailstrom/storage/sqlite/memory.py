"""A spool in this process's memory: the same tables, statements and guards, and no disk.

SQLite's ``memdb`` file system keeps a database that the connections of one process share. It has a
rollback journal in memory and no WAL: a reader and a commit exclude each other, and whoever comes
second waits. The waiting is ours (``_Patience``): SQLite's own sleeps up to 0.1 s at a time.

``memory:NAME`` lives while one store of it is open, in this process only. An anchor connection
keeps it when the stores close theirs before a fork. A forked child has a copy of the bytes that
nobody delivers, so whatever was opened before the fork refuses to work there; what the child opens
under the name is a new, empty spool.

Lock files go to a private temporary directory, made when it is asked for and removed at the end.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
import weakref
from array import array
from typing import Any

import apsw

from mailstrom.errors import ConfigError, SpoolError
from mailstrom.storage.sqlite import forks, schema
from mailstrom.storage.sqlite.connection import (
    CLIENT_CHECKPOINT_FRAMES,
    ENGINE_PLANS,
    PAGE_BYTES,
    abandon,
    mark_new,
    require_sqlite,
    set_pragmas,
    spool_errors,
)
from mailstrom.storage.sqlite.place import Durable
from mailstrom.storage.sqlite.poison import Mark
from mailstrom.storage.sqlite.turnstile import Turn, at_once

LIMIT_BYTES = 1024 * 1024 * 1024
"""So large a spool takes no more mail (``SpoolFull``)."""
RESERVE_BYTES = 64 * 1024 * 1024
"""Room beyond the limit that only the engine may use: results of what was accepted."""
LONGEST_SLEEP_S = 0.002
SHORTEST_READ_S = 0.1
"""A statement may read so long, however short the timeout is."""

_NAME = re.compile(r"memory:([A-Za-z0-9][A-Za-z0-9._-]{0,63}|~[0-9]{1,18})")
_numbers = itertools.count(1)
_living: weakref.WeakValueDictionary[tuple[int, str], Memory] = weakref.WeakValueDictionary()
_opening = threading.RLock()


def canonical(name: str) -> str:
    """The name itself; ``memory:`` alone becomes a name that nobody has.

    Raises:
        ConfigError: what follows the colon is no name.
    """
    scheme, _, rest = name.partition(":")
    if not rest:
        return f"memory:~{next(_numbers)}"
    found = f"{scheme.lower()}:{rest}"
    if not _NAME.fullmatch(found):
        raise ConfigError(
            f"{name!r}: a memory spool is named memory: or memory:NAME, with 1 to 64 letters,"
            " digits, dots, dashes and underscores, and a letter or digit first"
        )
    return found


class _Patience:
    """SQLite's busy handler: short sleeps until the time is over."""

    __slots__ = ("_seconds", "_until")

    def __init__(self, busy_ms: int) -> None:
        self._seconds = busy_ms / 1000
        self._until = 0.0

    def __call__(self, called: int) -> bool:
        now = time.monotonic()
        if called == 0:
            self._until = now + self._seconds
        if now >= self._until:
            return False
        time.sleep(min(0.0001 * 1.5 ** min(called, 20), LONGEST_SLEEP_S))
        return True


class Memory:
    """One database in memory, kept by whoever refers to this object.

    Args:
        name: ``memory:NAME``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = os.getpid()
        # Never the same twice, not even in a child, where SQLite still knows the parent's.
        self._uri = f"file:/mailstrom-{self.pid}-{next(_numbers)}?vfs=memdb"
        self._folder: list[str] = []
        require_sqlite()
        with spool_errors(name, "making it"):
            anchor = self._open()
            limit = array("q", [LIMIT_BYTES + RESERVE_BYTES])
            anchor.file_control("main", apsw.SQLITE_FCNTL_SIZE_LIMIT, limit.buffer_info()[0])
            mark_new(anchor)
            schema.migrate(anchor)
        weakref.finalize(self, _end, self.pid, anchor, self._folder)

    def _open(self) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        return apsw.Connection(self._uri, flags=flags, statementcachesize=ENGINE_PLANS)

    def require_ours(self) -> None:
        """Raise in a forked child.

        Raises:
            SpoolError: says what to do instead.
        """
        if self.pid != os.getpid():
            raise SpoolError(
                f"{self.name}: a memory spool belongs to the process that opened it ({self.pid});"
                f" this is a fork of it ({os.getpid()}), and nobody would deliver its copy: send"
                " from the process that called start(), or use a spool in a file"
            )

    def connect(self, *, read_only: bool, busy_ms: int, limit_bytes: int) -> apsw.Connection:
        """One more connection of this process."""
        self.require_ours()
        with spool_errors(self.name, "opening it"):
            connection = self._open()
            try:
                connection.set_busy_handler(_Patience(busy_ms))
                pages = limit_bytes // PAGE_BYTES
                set_pragmas(connection, {"max_page_count": pages, "synchronous": 0}, read_only)
            except BaseException:
                connection.close()
                raise
        return connection

    def run_directory(self) -> str:
        """A private directory, made at the first call."""
        self.require_ours()
        with _opening:
            if not self._folder:
                import tempfile

                self._folder.append(tempfile.mkdtemp(prefix="mailstrom-"))
        return self._folder[0]


def _end(pid: int, anchor: apsw.Connection, folder: list[str]) -> None:
    """The last reference is gone, or the process ends."""
    if pid != os.getpid():
        abandon(anchor)  # the directory is the parent's
        return
    anchor.close()
    if folder:
        import shutil

        shutil.rmtree(folder[0], ignore_errors=True)


def existing(name: str) -> Memory:
    """The spool of this name that is open in this process.

    Raises:
        SpoolError: there is none.
    """
    found = _living.get((os.getpid(), name))
    if found is None:
        raise SpoolError(
            f"{name}: no memory spool of this name is open in this process; open it with"
            " Mailstrom() first, and keep that open"
        )
    return found


def opened(name: str) -> Memory:
    """The spool of this name, made if this process has none."""
    with forks.inside(), _opening:
        found = _living.get((os.getpid(), name))
        if found is None:
            found = _living[os.getpid(), name] = Memory(name)
        return found


class Volatile:
    """``place.Durable`` of a spool that no disk keeps: what is committed is done.

    Args:
        memory: the spool, kept alive until ``end``.
    """

    def __init__(self, memory: Memory) -> None:
        self._name = memory.name
        self._memory: Memory | None = memory

    def memory(self) -> Memory:
        """The spool, in the process that it belongs to.

        Raises:
            SpoolError: this is a fork of that process, or the store was closed.
        """
        if self._memory is None:
            raise SpoolError(f"{self._name}: this store is closed; open a new one")
        self._memory.require_ours()
        return self._memory

    def __call__(self) -> None:
        """Nothing to sync."""
        self.memory()

    def check(self) -> None:
        """See ``memory``."""
        self.memory()

    def poison(self, error: OSError) -> None:
        """No disk, so nobody else to tell."""

    def begin_repair(self) -> Mark:
        """Nothing was poisoned."""
        return Mark(None, None)

    def heal(self, begun: Mark) -> bool:
        """Nothing was poisoned."""
        return True

    def rewrite(self) -> None:
        """There is no log."""

    def fresh(self) -> None:
        """Nothing to sync."""

    def bind(self) -> None:
        """The connection is all there is."""

    def verify(self) -> None:
        """See ``memory``."""
        self.memory()

    def spool(self) -> tuple[int, ...]:
        """There is only one."""
        return ()

    def log_bytes(self) -> int:
        """There is no log."""
        return 0

    def close(self) -> None:
        """Nothing is open (a repair closes and goes on)."""

    def end(self) -> None:
        """Keep the spool no longer: with the last one it is gone."""
        self._memory = None


class MemoryPlace:
    """``place.Place`` in memory.

    Args:
        memory: ``opened(name)`` or ``existing(name)``; kept alive until ``close``.
    """

    def __init__(self, memory: Memory) -> None:
        self.name = memory.name
        self._held = Volatile(memory)
        self.durable: Durable = self._held
        self.turn: Turn = at_once

    def prepare(self, *, busy_ms: int, engine: bool = False) -> None:
        """It was made with the current schema, and no other version can have touched it."""

    def connect(
        self,
        *,
        read_only: bool = False,
        busy_ms: int,
        checkpoint_frames: int = CLIENT_CHECKPOINT_FRAMES,
    ) -> apsw.Connection:
        """See ``Place.connect``; the engine's connection has the reserve, too."""
        limit = LIMIT_BYTES if checkpoint_frames else LIMIT_BYTES + RESERVE_BYTES
        memory = self._held.memory()
        return memory.connect(read_only=read_only, busy_ms=busy_ms, limit_bytes=limit)

    def run_directory(self) -> str:
        """See ``Memory.run_directory``."""
        return self._held.memory().run_directory()

    def room_bytes(self, connection: apsw.Connection) -> int | None:
        """Pages that the engine may still add, and those that are free."""
        pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
        return LIMIT_BYTES + RESERVE_BYTES - pages * PAGE_BYTES

    def longest_read_s(self, busy_ms: int) -> float | None:
        """Half of what a writer waits: the commit that a read holds up must not fail by it."""
        return max(busy_ms / 2_000, SHORTEST_READ_S)

    def log_bytes(self) -> int:
        """There is no log."""
        return 0

    def log_path(self) -> str | None:
        """There is no log."""
        return None

    def again(self) -> MemoryPlace:
        """See ``Place.again``."""
        return MemoryPlace(self._held.memory())

    def close(self) -> None:
        """With the last store that closes, the spool is gone."""
        self._held.end()


def _pragma(connection: apsw.Connection, name: str) -> int:
    rows: list[Any] = connection.execute(f"PRAGMA {name}").fetchall()
    return int(rows[0][0])
