"""How a worker begins to write: behind the client that is in front of the lock.

SQLite gives its lock to whoever asks first once it is free. Two busy workers ask each other's lock
away: each asks all the time that the other has it, and a client that asks as often loses every
second time, some milliseconds of work each. So a worker that had to wait, and has the lock at last,
looks whether a client has the turn (``turnstile``). Then it lets go and begins again a moment
later, once: the client in front asks each millisecond, and holds the lock for less than that.

Contract. Advice, like the turn: nothing is wrong without it, and it costs a worker ``PASS_S`` at
most, also where the client in front was stopped. Who has the turn the system tells (/proc/locks);
to ask for it would be to take it. Where it does not tell, nobody is let pass.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import apsw

from mailstrom.storage.sqlite import locks

PASS_S = 0.0015
"""A client in front asks once in this time, and one behind it may, too."""
_ASK_S = 0.001


class Courtesy:
    """Begins the writing transactions of one worker's connection.

    Args:
        turn: the FIFO that clients lock (``turnstile.turn_path``); None where there is none.
        busy_ms: how long the lock is waited for.
        pause: waits for so many seconds.
    """

    def __init__(
        self, turn: str | None, busy_ms: int, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._turn = turn
        self._busy_s = busy_ms / 1000
        self._pause = pause
        self._waited = False
        self._since = 0.0

    def bind(self, connection: apsw.Connection) -> None:
        """Have it ask for locks each millisecond.

        SQLite's own waits grow to 100 ms, which is long beside the few milliseconds that a worker
        holds the lock: two busy workers would wait for each other more than they work. For few
        processes: a crowd that asks as often keeps the processors busy with asking.
        """
        connection.set_busy_handler(self._wait)

    def _wait(self, looks: int) -> bool:
        now = time.monotonic()
        if looks == 0:
            self._waited, self._since = True, now
        if now - self._since >= self._busy_s:
            return False
        self._pause(_ASK_S)
        return True

    def begin(self, connection: apsw.Connection) -> None:
        """Begin an immediate transaction; where this raises, one may be open.

        Raises:
            apsw.BusyError: the lock could not be had in time.
        """
        self._waited = False
        connection.execute("BEGIN IMMEDIATE")
        if self._waited and self._in_front():
            connection.execute("ROLLBACK")
            self._pause(PASS_S)
            connection.execute("BEGIN IMMEDIATE")

    def _in_front(self) -> bool:
        """Whether a client has the turn, and so waits for the lock that we have."""
        if self._turn is None:
            return False
        try:
            inode = os.stat(self._turn).st_ino
            with open(locks.LOCKS, "rb") as stream:
                return b":%d 0 EOF" % inode in stream.read()
        except OSError:
            return False
