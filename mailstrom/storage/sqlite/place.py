"""Where a SQLite spool lives, and everything that differs with it.

The stores run the same statements wherever the database is. What a file and a database in memory do
not share is behind ``Place``: how a connection is made, what makes a commit durable, where lock
files go, how much room is left, how long the log is. ``FilePlace`` is the file in WAL mode;
``memory.MemoryPlace`` the other. Neither knows a verb.
"""

from __future__ import annotations

import os
from typing import Protocol

import apsw

from mailstrom import interrupts
from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite import schema
from mailstrom.storage.sqlite.connection import CLIENT_CHECKPOINT_FRAMES, connect
from mailstrom.storage.sqlite.durable import Sync, WalSync, run_directory, system_sync
from mailstrom.storage.sqlite.poison import Mark
from mailstrom.storage.sqlite.turnstile import Turn, at_once, part, turn_of


class Durable(Protocol):
    """What makes commits durable, and knows whether that still works; see ``durable.WalSync``."""

    def __call__(self) -> None:
        """Make every commit so far durable, or raise a ``SpoolError``."""
        ...

    def check(self) -> None:
        """Raise a ``SpoolError`` where nothing may be acknowledged now."""
        ...

    def poison(self, error: OSError) -> None:
        """Stop acknowledgements everywhere: the disk failed."""
        ...

    def begin_repair(self) -> Mark:
        """What is wrong now; ``heal`` ends that and nothing that comes after it."""
        ...

    def heal(self, begun: Mark) -> bool:
        """Let acknowledgements go on; False where the disk failed again since."""
        ...

    def rewrite(self) -> None:
        """Write the log anew and sync it, within the write lock; part of a repair."""
        ...

    def fresh(self) -> None:
        """Sync regardless of the flag; part of a repair."""
        ...

    def bind(self) -> None:
        """Take hold of what the connection that was opened just now writes to."""
        ...

    def verify(self) -> None:
        """Raise ``SpoolReplaced`` where commits no longer reach the spool of this name."""
        ...

    def spool(self) -> tuple[int, ...]:
        """Which file the bound connection has; of another one it differs."""
        ...

    def log_bytes(self) -> int:
        """Length of the log that commits go to, once it is bound; 0 where there is none."""
        ...

    def close(self) -> None:
        """Let go; idempotent."""
        ...


class Place(Protocol):
    """One spool's whereabouts, as one store (client's or engine's half) holds them."""

    name: str
    """What errors call the spool."""
    durable: Durable
    turn: Turn
    """Around a client's write: see ``turnstile``."""

    def prepare(self, *, busy_ms: int, engine: bool = False) -> None:
        """Create the spool if it is missing and migrate it if it is older; see ``schema``."""
        ...

    def connect(
        self,
        *,
        read_only: bool = False,
        busy_ms: int,
        checkpoint_frames: int = CLIENT_CHECKPOINT_FRAMES,
    ) -> apsw.Connection:
        """A connection with the house's pragmas; ``checkpoint_frames`` 0 is the engine's."""
        ...

    def run_directory(self) -> str:
        """The directory for lock files; it exists."""
        ...

    def room_bytes(self, connection: apsw.Connection) -> int | None:
        """Free space where results go; None where nobody can tell."""
        ...

    def longest_read_s(self, busy_ms: int) -> float | None:
        """How long a statement of a caller may read; None where no commit waits for it."""
        ...

    def log_bytes(self) -> int:
        """Size of the write-ahead log; 0 where there is none."""
        ...

    def log_path(self) -> str | None:
        """The write-ahead log, which every commit writes to; None where there is none."""
        ...

    def again(self) -> Place:
        """The same place for one more store of this process."""
        ...

    def close(self) -> None:
        """This store is done with it; idempotent."""
        ...


class FilePlace:
    """A database file in WAL mode on a local disk.

    Args:
        path: the database file.
        sync: what makes the -wal file durable; tests record it or make it fail.
    """

    def __init__(self, path: str, sync: Sync = system_sync) -> None:
        self.name = path
        self._system_sync = sync
        self.durable: Durable = WalSync(path, sync)
        self.turn: Turn = turn_of(path)

    def prepare(self, *, busy_ms: int, engine: bool = False) -> None:
        """See ``Place.prepare``."""
        schema.prepare(self.name, busy_ms=busy_ms, engine=engine)

    def connect(
        self,
        *,
        read_only: bool = False,
        busy_ms: int,
        checkpoint_frames: int = CLIENT_CHECKPOINT_FRAMES,
    ) -> apsw.Connection:
        """See ``Place.connect``."""
        return connect(
            self.name, read_only=read_only, busy_ms=busy_ms, checkpoint_frames=checkpoint_frames
        )

    def run_directory(self) -> str:
        """Beside the file; made with the spool."""
        return run_directory(self.name)

    def room_bytes(self, connection: apsw.Connection) -> int | None:
        """What the file system has left for this user."""
        try:
            space = os.statvfs(os.path.dirname(os.path.abspath(self.name)))
        except OSError:
            return 0  # a directory that is gone takes no results
        return space.f_bavail * space.f_frsize

    def longest_read_s(self, busy_ms: int) -> float | None:
        """A reader of the WAL keeps nobody waiting."""
        return None

    def log_path(self) -> str | None:
        """The -wal file."""
        return f"{self.name}-wal"

    def log_bytes(self) -> int:
        """The -wal file's length, of which a checkpoint may leave the start unused."""
        try:
            return os.stat(f"{self.name}-wal").st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            if interrupts.raised(error):
                raise
            raise SpoolError(f"{self.name}-wal: cannot be looked at ({error.strerror})") from error

    def again(self) -> Place:
        """See ``Place.again``; with a descriptor of its own."""
        return type(self)(self.name, self._system_sync)

    def close(self) -> None:
        """Close the -wal file's descriptor, and the turn with the last that has it."""
        self.durable.close()
        turn, self.turn = self.turn, at_once
        part(turn)
