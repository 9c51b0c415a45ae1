"""One message, stored on the thread that sends it: no other thread, and so no hop to one.

Contract. One call at a time. A signal handler may interrupt it at any bytecode, and there raise,
send, read, or fork:

* Between two bytecodes no lock of SQLite is held: the message is one statement, which is a
  transaction of its own (``inserting.step``). So others write meanwhile, the interrupted client's
  writing thread included, whose connection is another one.
* Whatever is raised comes out as it is (``interrupts``), and leaves the message stored or not
  stored and the connection as usable as it was.
* A fork closes the connection as if it were idle (``forks.yielding``). The statement, if it is
  still to come, then fails before it writes anything, and the caller goes the other way. The child,
  if it ever returns into the call, is told so, and stores nothing.

What takes several transactions is done elsewhere: long content, a log at its limit.
"""

from __future__ import annotations

import os
import time
from threading import get_ident

import apsw

from mailstrom import interrupts
from mailstrom.storage.client import CHUNK_BYTES, Submission
from mailstrom.storage.sqlite import forks, inserting
from mailstrom.storage.sqlite.checkpointer import Checkpointer
from mailstrom.storage.sqlite.connection import CLIENT_CHECKPOINT_FRAMES
from mailstrom.storage.sqlite.place import Place
from mailstrom.storage.sqlite.storing import Storing
from mailstrom.storage.sqlite.submissions import UNFIT, Row, encode, refusal

ASK_MS = 2
"""SQLite's own waits for a lock: two of a millisecond."""
LOOK_EACH = 64
"""So many messages from one look at the log's frames to the next."""
_EAGER, _LATER_S = 64, 0.008
"""After so many of them, so much longer between two."""


def _brief(writer: apsw.Connection) -> None:
    writer.set_busy_timeout(ASK_MS)


class SQLitePrompt(Storing):
    """``storage.client.Prompt`` on a SQLite spool.

    Args:
        path: what errors call the spool.
        place: where it lives; this object's own.
        busy_ms: how long to wait for another writer.
        pid: the process that it stores in.
    """

    def __init__(self, path: str, place: Place, busy_ms: int, pid: int) -> None:
        super().__init__(path, place, busy_ms)
        self._pid = pid
        self._brief: apsw.Connection | None = None  # it waits for a lock in ``_asked`` alone
        self._checkpointer = Checkpointer(path, CLIENT_CHECKPOINT_FRAMES, _brief)
        self._stored = 0
        forks.watch(self)

    def store(self, submission: Submission, now_ms: int) -> str | Exception | None:
        """See ``Prompt.store``."""
        if len(submission.content) > CHUNK_BYTES:
            return None
        self._sync.check()
        token = object()
        calls = forks.yielding
        try:
            # Enter first, look second: see forks.inside. Whoever is in the way of a fork goes away.
            calls[token] = get_ident()
            if forks.wanted():
                return None
            self._require_unreplaced()
            writer = self._write_connection()
            if writer is not self._brief:
                try:
                    _brief(writer)
                    writer.set_wal_hook(None)  # no Python within SQLite, where a handler could fork
                except apsw.ConnectionClosedError:  # one did so here
                    return None
                self._brief = writer
            if not self._log_room.lets(writer):
                return None
            try:
                row = encode(self.path, writer, submission, now_ms, self._staged)
            except UNFIT as error:
                if interrupts.raised(error):
                    raise
                return refusal(error)
            # Looked at after the connection was taken: a fork before this is seen here, one after
            # this has closed it.
            if self._pid != os.getpid():
                return None
            found = self._row(writer, submission, row)
            self._stored += 1
            if self._stored % LOOK_EACH == 0:
                self._checkpoint(writer)
        finally:
            calls.pop(token, None)
        if isinstance(found, str):
            self._durable("the message was written", submission.id)
        return found

    def _row(
        self, writer: apsw.Connection, submission: Submission, row: Row | str | Exception
    ) -> str | Exception | None:
        if not isinstance(row, Row):
            return row
        try:
            self._place.turn(self._asked, writer, row)
        except apsw.ConnectionClosedError:
            return None
        except Exception as error:
            if interrupts.raised(error):
                raise
            return self._insert(writer, (submission,), (row,), False, error)[0]
        return submission.id

    def _asked(self, writer: apsw.Connection, row: Row) -> None:
        """Insert it; where the lock is taken, ask each millisecond, and later on less often.

        SQLite's own waits grow to 100 ms, and whoever is in front keeps a crowd behind it. The
        waits are short ones one after the other, so that a signal handler has its turn between two.
        """
        rounds, until_s = 0, 0.0
        while True:
            try:
                inserting.step(writer, (row,))
                return
            except apsw.BusyError:
                now_s = time.monotonic()
                until_s = until_s or now_s + (self._busy_ms - ASK_MS) / 1000
                if now_s >= until_s:
                    raise
            rounds += 1
            if rounds > _EAGER:
                time.sleep(_LATER_S)

    def _checkpoint(self, writer: apsw.Connection) -> None:
        """Move frames out of a long log; what fails is tried again later."""
        try:
            frames, _ = writer.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP)
        except apsw.Error as error:  # a fork closed it
            if interrupts.raised(error):
                raise
        else:
            self._checkpointer(writer, "main", frames)

    def let_go(self) -> None:
        """See ``forks``; in the middle of a call, too, but not within SQLite."""
        writer = self._writer
        if writer is not None:
            try:
                writer.close()
            except apsw.ThreadingViolationError:  # a hook of ours was interrupted
                forks.keep()
                return
            self._writer = None

    def end(self, *, used: bool) -> None:
        """See ``Prompt.end``."""
        self._unusable = self._unusable or "this client is closed; open a new one"
        if not used:
            self.close()

    def forked(self, *, used: bool) -> None:
        """See ``Prompt.forked``."""
        if not used:
            self._place.close()
