"""A client's look at the write-ahead log before it writes: at the limit nothing more is accepted.

Contract. Below ``wal.LEAST_LIMIT_BYTES`` one look at its length and nothing else. At the limit the
call is refused with the name of the process that keeps the log from being emptied (``wal.pinned``),
before a byte is written. Where no engine runs nobody else would empty the log, so now and then it
is tried here, and at once where nobody pins it any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import apsw

from mailstrom.errors import SpoolFull
from mailstrom.storage.pinned import mebibytes
from mailstrom.storage.sqlite import wal
from mailstrom.storage.sqlite.connection import spool_errors
from mailstrom.storage.sqlite.place import Place

LOOK_S = 0.25
"""For so long ``lets`` believes the limit that it read; the limit is the configuration's."""
EMPTY_S = 1.0
"""How often a client that is refused for a full log tries to empty it."""


class LogRoom:
    """Whether a client may write.

    Args:
        path: what errors call the spool.
        place: where it lives.
        busy_ms: the writer's busy timeout.
    """

    def __init__(self, path: str, place: Place, busy_ms: int) -> None:
        self._path = path
        self._place = place
        self._busy_ms = busy_ms
        self._emptied = float("-inf")
        self._limit = 0
        self._looked = float("-inf")

    def lets(self, writer: apsw.Connection) -> bool:
        """Whether the log is below its limit; nothing is done where it is not: see ``require``.

        Raises:
            SpoolError: nobody can tell.
        """
        size = self._place.durable.log_bytes()
        if size < wal.LEAST_LIMIT_BYTES:
            return True
        now = time.monotonic()
        if now >= self._looked + LOOK_S:
            with spool_errors(self._path, "looking at the write-ahead log"):
                self._limit = wal.limit_bytes(writer)
            self._looked = now
        return size < self._limit

    def require(self, writer: Callable[[], apsw.Connection]) -> None:
        """Refuse while a reader pins a log that is at its limit.

        Args:
            writer: gives the client's writing connection; called only where the log is long.

        Raises:
            SpoolFull: names who pins it; nothing was written.
        """
        if self._place.log_bytes() < wal.LEAST_LIMIT_BYTES:
            return
        with spool_errors(self._path, "looking at the write-ahead log"):
            connection = writer()
            limit = wal.limit_bytes(connection)
            if self._place.log_bytes() < limit:
                return
            found = wal.pinned(self._path)
            over = found.sure and not found.holders
            if over or time.monotonic() >= self._emptied + EMPTY_S:
                self._emptied = time.monotonic()
                ask = self._place.durable.check
                wal.empty(connection, busy_ms=self._busy_ms, ask=ask, shorten=True)
            size = self._place.log_bytes()
            if size >= limit:
                found = wal.lasting(self._path, found)
                raise SpoolFull(
                    f"{self._path}: the write-ahead log has {mebibytes(size)} and its limit is"
                    f" {mebibytes(limit)} ([spool] wal_limit): {wal.sentence(found)} keeps it from"
                    " being emptied; end its read transaction, or the process; nothing was written"
                )
