"""How a writer waits for SQLite's lock: it asks each millisecond.

SQLite's own waits grow to 100 ms, which is long beside the few milliseconds that a worker or a
client holds the lock: two busy workers would wait for each other more than they work, and a client
behind them would find the lock taken again and again. For few processes: a crowd that asks as often
keeps the processors busy with asking, so that clients have one of them in front (``turnstile``).

Whatever gives the connection a wait of SQLite's own meanwhile binds this anew: the last one holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import apsw

_ASK_S = 0.001


class Patience:
    """The busy handler of one connection that writes.

    Args:
        busy_ms: how long the lock is waited for.
        pause: waits for so many seconds.
    """

    __slots__ = ("_busy_s", "_pause", "_since")

    def __init__(self, busy_ms: int, pause: Callable[[float], None] = time.sleep) -> None:
        self._busy_s = busy_ms / 1000
        self._pause = pause
        self._since = 0.0

    def bind(self, connection: apsw.Connection) -> None:
        """Have the connection wait so."""
        connection.set_busy_handler(self)

    def __call__(self, looks: int) -> bool:
        """Wait a moment; False where the time is over."""
        now = time.monotonic()
        if looks == 0:
            self._since = now
        if now - self._since >= self._busy_s:
            return False
        self._pause(_ASK_S)
        return True
