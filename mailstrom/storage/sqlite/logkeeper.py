"""The engine keeps the write-ahead log short, and mends it after a sync that failed.

Contract. A checkpoint moves the log into the database as far as readers allow (``wal``); a sync
that fails in it poisons the spool as one of ours does. In a poisoned spool nothing is moved but by
the repair: the log on the disk may have a gap, and a power cut would replay the frames before it
over pages from behind it. Both wait for readers with the write lock, so not for longer than writers
may have to wait. Must not know: verbs, rows, who calls it and how often.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import replace

import apsw

from mailstrom.errors import SpoolError, SpoolReplaced
from mailstrom.storage.base import Checkpoint
from mailstrom.storage.sqlite import forks, poison, wal
from mailstrom.storage.sqlite.connection import spool_errors
from mailstrom.storage.sqlite.frames import FramesLost
from mailstrom.storage.sqlite.place import Place
from mailstrom.storage.sqlite.worker_connection import WorkerConnection


class LogKeeper:
    """Of one spool, by an engine's one connection.

    Args:
        connection: whose log it is.
        place: where the spool lives.
    """

    def __init__(self, connection: WorkerConnection, place: Place) -> None:
        self._connection = connection
        self._place = place
        self._sync = place.durable
        self._emptying = wal.Emptying()
        self._lost = ""  # why the last repair may not move the log

    @property
    def full(self) -> bool:
        """See ``WorkerStore.log_full``."""
        with forks.inside(), spool_errors(self._connection.path, "looking at the log"):
            return wal.full(self._connection.opened(), self._place.log_bytes())

    def checkpoint(self) -> Checkpoint:
        """See ``WorkerStore.checkpoint``; a file that grew over its alarm is cut back, too.

        Nothing in a poisoned spool: the WAL on the disk may have a gap (see ``repair``).
        """
        self._sync.check()
        with forks.inside(), self._disk_errors("checkpointing"):
            connection = self._connection.opened()
            size, limit = self._place.log_bytes(), wal.LIMIT_BYTES
            if size >= wal.LEAST_ALARM_BYTES:
                limit = wal.limit_bytes(connection)
            busy_ms, ask = self._connection.busy_ms, self._sync.check
            try:
                frames, moved, mode = self._emptying(
                    connection, size=size, limit=limit, busy_ms=busy_ms, ask=ask
                )
            finally:  # a timeout of SQLite's own has taken its place
                self._connection.patience.bind(connection)
            found = None
            if size >= wal.alarm_bytes(limit) and mode != "truncate":
                found = wal.pinned(self._connection.path)
                seen = found.holders or not found.sure
                found = replace(found, limit_bytes=limit) if seen else None
        return Checkpoint(
            frames=frames,
            moved=moved,
            wal_bytes=frames * wal.FRAME_BYTES,
            mode=mode,
            pinned=found,
        )

    def repair(self) -> bool:
        """See ``WorkerStore.repair``: write the WAL anew, empty it, sync afresh.

        First the frames that a failed sync dropped, from the page cache, so that a power cut during
        all this finds a whole WAL. Then a TRUNCATE checkpoint, and not RESTART, which leaves the
        old frames in the file until somebody writes; it waits for readers with the write lock, so
        not for longer than writers may have to wait. Where the page cache has lost them as well
        nothing is moved; see ``frames``.
        """
        self._sync.verify()  # never on the word of files that are not ours
        begun, self._lost = self._sync.begin_repair(), ""
        try:
            with forks.inside():
                connection = self._connection.opened()
                connection.execute("BEGIN IMMEDIATE").fetchall()
                try:
                    self._sync.rewrite()
                finally:
                    connection.execute("ROLLBACK").fetchall()
                connection.execute("PRAGMA synchronous = 2").fetchall()
                connection.set_busy_timeout(min(self._connection.busy_ms, wal.LAST_MS))
                try:
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                finally:
                    self._connection.patience.bind(connection)
                    connection.execute("PRAGMA synchronous = 1").fetchall()
            self._sync.fresh()
        except SpoolReplaced:
            raise
        except FramesLost as error:
            self._lost = str(error)
            return False
        except (apsw.Error, OSError, SpoolError):
            return False
        return self._sync.heal(begun)

    def unrepaired(self) -> str:
        """See ``WorkerStore.unrepaired``."""
        return self._lost or poison.unrepaired(self._connection.path)

    @contextlib.contextmanager
    def _disk_errors(self, doing: str) -> Iterator[None]:
        """A sync that fails inside SQLite poisons the spool as one of ours does."""
        with spool_errors(self._connection.path, doing):
            try:
                yield
            except apsw.IOError as error:
                self._sync.poison(OSError(errno.EIO, str(error)))
                raise
