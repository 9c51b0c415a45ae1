"""A client's own checkpoint, in the place of SQLite's automatic one.

It differs in two things. A sync that fails in it poisons the spool: SQLite's own says nothing, so
that the commit would be acknowledged by a later sync which knows nothing of what the failed one
dropped. And in a poisoned spool it moves nothing: the WAL on the disk may have a gap, and a power
cut would replay the frames before it over pages from behind it. Only the repair moves pages then.
"""

from __future__ import annotations

import errno

import apsw

from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite import poison, turnstile

_SYNCS = frozenset({apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC})


def is_failed_sync(error: apsw.Error) -> bool:
    """Whether a sync of SQLite's own failed."""
    return isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) in _SYNCS


class Checkpointer:
    """A WAL hook; called after each commit, so that below the threshold it costs nothing.

    In a crowd others write while it moves frames, so that the log does not begin again: it goes on
    only when the log has grown by a quarter of the threshold, not behind each commit of each
    process.

    Args:
        path: the database file.
        frames: from how many frames in the WAL on it moves them.
    """

    __slots__ = ("_frames", "_from", "_path")

    def __init__(self, path: str, frames: int) -> None:
        self._path = path
        self._frames = self._from = frames

    def __call__(self, connection: apsw.Connection, schema: str, frames: int) -> int:
        """What fails here is tried again behind a later commit; this one has taken place."""
        if frames < self._from:
            if frames < self._frames:
                self._from = self._frames  # the log has begun again
            return apsw.SQLITE_OK
        try:
            poison.check_all(self._path)
            self._from = frames + self._frames // 4
            turnstile.leave(self._path)  # it takes long, and is in no writer's way
            connection.wal_checkpoint(schema, apsw.SQLITE_CHECKPOINT_PASSIVE)
        except SpoolError:
            pass
        except apsw.Error as error:
            if is_failed_sync(error):
                poison.poison(self._path, OSError(errno.EIO, str(error)))
        return apsw.SQLITE_OK
