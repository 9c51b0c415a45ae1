"""A client's own checkpoint, in the place of SQLite's automatic one.

It differs in two things. A sync that fails in it poisons the spool: SQLite's own says nothing, so
that the commit would be acknowledged by a later sync which knows nothing of what the failed one
dropped. And in a poisoned spool it moves nothing: the WAL on the disk may have a gap, and a power
cut would replay the frames before it over pages from behind it. Only the repair moves pages then.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import apsw

from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite import poison, turnstile

ROUNDS = 4
"""So often frames are moved in a row while others write more: each round leaves fewer."""
LITTLE_FRAMES = 500
"""So many are moved with the write lock, at most: some milliseconds."""
WAIT_MS = 20
"""So long writers may wait for readers to end, so that the log can begin again."""
_SYNCS = frozenset({apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC})


def is_failed_sync(error: apsw.Error) -> bool:
    """Whether a sync of SQLite's own failed."""
    return isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) in _SYNCS


class Checkpointer:
    """A WAL hook; called after each commit, so that below the threshold it costs nothing.

    In a crowd others write while it moves frames, so that the log does not begin again: it goes on
    only when the log has grown by a quarter of the threshold, not behind each commit of each
    process. Then it moves the last of them with the write lock, as the engine does: two processes
    that write without a pause would else write a log without an end.

    Args:
        path: the database file.
        frames: from how many frames in the WAL on it moves them.
        patience: gives the connection its own way of waiting for a lock back.
    """

    __slots__ = ("_frames", "_from", "_path", "_patience")

    def __init__(self, path: str, frames: int, patience: Callable[[apsw.Connection], None]) -> None:
        self._path = path
        self._frames = self._from = frames
        self._patience = patience

    def __call__(self, connection: apsw.Connection, schema: str, frames: int) -> int:
        """What fails here is tried again behind a later commit; this one has taken place."""
        if frames < self._from:
            if frames < self._frames:
                self._from = self._frames  # the log has begun again
            return apsw.SQLITE_OK
        try:
            poison.check_all(self._path)
            grown, self._from = self._from > self._frames, frames + self._frames // 4
            turnstile.leave(self._path)  # it takes long, and is in no writer's way
            left = self._move(connection, schema)
            if grown and left <= LITTLE_FRAMES:
                self._begin_again(connection, schema)
        except SpoolError:
            pass
        except apsw.Error as error:
            if is_failed_sync(error):
                poison.poison(self._path, OSError(errno.EIO, str(error)))
        return apsw.SQLITE_OK

    def _move(self, connection: apsw.Connection, schema: str) -> int:
        """Move frames that no reader needs; how many are left, those that came meanwhile."""
        left, before = 0, -1
        for _ in range(ROUNDS):
            found, moved = connection.wal_checkpoint(schema, apsw.SQLITE_CHECKPOINT_PASSIVE)
            left = found - moved
            if left <= LITTLE_FRAMES or moved == before:  # a reader needs the rest
                break
            before = moved
        return left

    def _begin_again(self, connection: apsw.Connection, schema: str) -> None:
        """Move the last frames and have the next writer begin the log again, if nobody reads it."""
        poison.check_all(self._path)  # it may be so since
        connection.set_busy_timeout(WAIT_MS)
        try:
            connection.wal_checkpoint(schema, apsw.SQLITE_CHECKPOINT_RESTART)
        finally:
            self._patience(connection)
