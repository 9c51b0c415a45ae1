"""Whether this process stood still: stopped, suspended, or starved of its processor.

What a process awaited while it stood still may have come in time, and its timers call it late all
the same. ``Standstill`` ticks while somebody watches; a tick that comes far too late tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

TICK_S = 0.25
LATE_S = 1.0
"""A tick that comes so much too late means that the process stood still."""


class Standstill:
    """Ticks on an event loop while somebody watches.

    Args:
        loop: whose turns are counted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watching = 0
        self._ticked = 0.0
        self._stood = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tick meanwhile."""
        self._watching += 1
        if self._timer is None:
            self._ticked = self._loop.time()
            self._timer = self._loop.call_later(TICK_S, self._tick)
        try:
            yield
        finally:
            self._watching -= 1
            if not self._watching and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def since(self, began: float) -> bool:
        """Whether the process stood still at some time since ``began`` (loop time), watched."""
        self._look()
        return self._stood >= began

    def _look(self) -> None:
        now = self._loop.time()
        if now - self._ticked >= TICK_S + LATE_S:
            self._stood = now
        self._ticked = now

    def _tick(self) -> None:
        self._look()
        self._timer = self._loop.call_later(TICK_S, self._tick)
