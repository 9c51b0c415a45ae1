"""The one connection of an engine's store, and its transactions.

Contract. Used by one thread. The connection is opened at the beginning, so that a spool that cannot
be used is refused at once, closed before a fork and opened again on demand; one that could not
leave its transaction is closed instead of being kept. It writes only to files that have their
names, and waits for the lock as ``patience`` says. Every use is within ``forks.inside``, and
SQLite's errors leave as ``spool_errors`` words them. Must not know: verbs, rows, checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import apsw

from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite import forks, schema
from mailstrom.storage.sqlite.connection import rolled_back, spool_errors
from mailstrom.storage.sqlite.patience import Patience
from mailstrom.storage.sqlite.place import Place

_T = TypeVar("_T")


class WorkerConnection:
    """A connection to one spool; ``SQLiteWorkerStore`` has the verbs.

    Args:
        path: what errors call the spool.
        place: where it lives; the schema there must be the current one.
        busy_ms: how long to wait for another writer.

    Attributes:
        patience: how it waits; to be bound again by whoever gave the connection another wait.
        locked_s: when the last transaction had the lock, monotonic seconds.
        freed_s: when it was committed, likewise.
    """

    def __init__(self, path: str, place: Place, busy_ms: int) -> None:
        self.path = path
        self.busy_ms = busy_ms
        self.patience = Patience(busy_ms)
        self.locked_s = self.freed_s = 0.0
        self._place = place
        self._sync = place.durable
        self._open: apsw.Connection | None = None
        self._unusable: str | None = None
        with forks.inside():
            self.opened()
        forks.watch(self)

    def opened(self) -> apsw.Connection:
        """The connection; closed by ``let_go`` and opened again. Only within ``forks.inside``."""
        if self._unusable is not None:
            raise SpoolError(f"{self.path}: {self._unusable}")
        if self._open is None:
            connection = self._place.connect(busy_ms=self.busy_ms, checkpoint_frames=0)
            try:
                schema.require(connection, self.path, client=False)
                self._sync.bind()
                self.patience.bind(connection)
            except BaseException:
                connection.close()
                raise
            self._open = connection
        return self._open

    def write(self, doing: str, step: Callable[[apsw.Connection], _T]) -> _T:
        """Run one step as one immediate transaction.

        Args:
            doing: for errors.

        Raises:
            SpoolError: nothing was written.
        """
        with forks.inside(), spool_errors(self.path, doing):
            connection = self.opened()
            self._sync.verify()  # without shared locks it would write over what others commit
            try:
                connection.execute("BEGIN IMMEDIATE")
                self.locked_s = time.monotonic()
                result = step(connection)
                connection.execute("COMMIT")
                self.freed_s = time.monotonic()
            except BaseException:
                if not rolled_back(connection):
                    self.let_go()
                raise
        return result

    def read(self, doing: str, sql: str, values: dict[str, Any]) -> list[Any]:
        """Every row of a statement.

        Raises:
            SpoolError: it could not be read.
        """
        with forks.inside(), spool_errors(self.path, doing):
            return self.opened().execute(sql, values).fetchall()

    # --- forks and the end ------------------------------------------------------------------

    def let_go(self) -> None:
        """Close the idle connection before a fork; see ``forks``."""
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    def orphaned(self) -> None:
        """In a child whose parent forked in the middle of a call; see ``forks``."""
        self._unusable = "this process was forked in the middle of a transaction"

    def close(self) -> None:
        """Close it; idempotent. Later calls raise SpoolError."""
        self._unusable = self._unusable or "this store is closed"
        with forks.inside():
            self.let_go()
        self._place.close()
