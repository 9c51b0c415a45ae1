"""The connections of one client: a writer, a pool of readers, and one that watches for commits.

Contract. Connections are opened on demand, only within ``forks.inside``, and closed before a fork;
one that could not leave its transaction is closed instead of being kept. Readers are lent to one
call each, so any number of threads may read; the writer is the writing thread's alone. Knows no
verb, no row and nothing of what makes a commit durable, but that this takes hold of the writer's
-wal file, and that the writer writes only to files that have their names.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import apsw

from mailstrom.errors import SpoolError, SpoolReplaced
from mailstrom.storage.sqlite import forks, schema
from mailstrom.storage.sqlite.connection import abandon, rolled_back, spool_errors
from mailstrom.storage.sqlite.place import Place


class ClientConnections:
    """Connections to one spool; ``SQLiteClientStore`` has the verbs.

    Args:
        path: what errors call the spool.
        place: where it lives.
        busy_ms: how long to wait for another writer.
    """

    def __init__(self, path: str, place: Place, busy_ms: int) -> None:
        self.path = path
        self._place = place
        self._sync = place.durable
        self._busy_ms = busy_ms
        self._writer: apsw.Connection | None = None
        self._readers: list[apsw.Connection] = []
        self._watcher: apsw.Connection | None = None
        self._watchers = 0
        self._watching = threading.RLock()  # only taken within ``forks.inside``
        self._unusable: str | None = None

    def _usable(self) -> None:
        if self._unusable is not None:
            raise SpoolError(f"{self.path}: {self._unusable}")

    # --- writing ----------------------------------------------------------------------------

    def _write_connection(self) -> apsw.Connection:
        self._usable()
        if self._writer is None:
            connection = self._place.connect(busy_ms=self._busy_ms)
            try:
                schema.require(connection, self.path, client=True)
                self._sync.bind()
            except BaseException:
                connection.close()
                raise
            self._writer = connection
        return self._writer

    def _require_unreplaced(self) -> None:
        """Write nothing to files without a name, nor without locks that newcomers share."""
        if self._writer is not None:
            try:
                self._sync.verify()
            except SpoolReplaced:
                self.let_go()  # the next call opens what has the name now
                raise

    def _rollback(self, connection: apsw.Connection) -> None:
        if not rolled_back(connection):
            self._writer = None
            connection.close()

    def _drop_writer(self) -> None:
        """Close the writer: after an error that may have left it with a view of its own."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(apsw.Error):
                writer.close()

    # --- reading ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reader(self) -> Iterator[apsw.Connection]:
        """A reading connection for this call alone; list.pop and append are atomic."""
        with forks.inside():
            self._usable()
            pid = os.getpid()
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._place.connect(read_only=True, busy_ms=self._busy_ms)
            try:
                with spool_errors(self.path, "reading"):
                    yield connection
            finally:
                if pid != os.getpid():
                    abandon(connection)
                elif self._unusable is None and rolled_back(connection):
                    self._readers.append(connection)
                else:
                    connection.close()

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[apsw.Connection]:
        """A reading connection that sees one state of the spool throughout."""
        with self._reader() as connection, connection:
            yield connection

    def _source(self) -> apsw.Connection:
        """A connection for a copy alone; only within ``forks.inside``."""
        self._usable()
        return self._place.connect(read_only=True, busy_ms=self._busy_ms)

    def revision(self) -> int:
        """See ``ClientStore.revision``: SQLite's ``data_version`` of one connection kept for it."""
        with forks.inside(), self._watching, spool_errors(self.path, "looking for commits"):
            self._usable()
            if self._watcher is None:
                self._watcher = self._place.connect(read_only=True, busy_ms=self._busy_ms)
                self._watchers += 1
            rows: list[Any] = self._watcher.execute("PRAGMA data_version").fetchall()
            # A new connection counts from the beginning: its numbers must differ from the last's.
            return (self._watchers << 32) + int(rows[0][0])

    # --- forks and the end ------------------------------------------------------------------

    def let_go(self) -> None:
        """Close the idle connections before a fork; see ``forks``."""
        writer, self._writer = self._writer, None
        watcher, self._watcher = self._watcher, None
        for connection in [writer, watcher, *self._readers]:
            if connection is not None:
                connection.close()
        self._readers.clear()

    def orphaned(self) -> None:
        """In a child whose parent forked in the middle of a read; see ``forks``."""
        self._unusable = (
            "this process was forked by code that interrupted a call of Mailstrom;"
            " start it with the multiprocessing method 'spawn'"
        )

    def close(self) -> None:
        """Close this process's connections; idempotent. Later calls raise SpoolError."""
        self._unusable = self._unusable or "this client is closed; open a new one"
        with forks.inside():
            self.let_go()
        self._place.close()
