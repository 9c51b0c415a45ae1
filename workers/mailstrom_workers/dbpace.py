"""The pace of a store's service: when the lock is left free, and when results go to the disk.

Contract. Pure: it is told what was written and when, and says how long to wait. Between two writes
the lock stays free for about as long as it was held, so that senders get their half of the time and
what is asked meanwhile shares the next commit. What nothing on the wire waits for may wait for
company. Results that nobody waits for reach the disk within ``SYNC_S`` all the same. Must not know:
requests, the store, clocks.
"""

from __future__ import annotations

FREE_LOCK_S = 0.002
MOST_FREE_S = 0.015
"""The lock stays free for as long as it was held, within these bounds: what waits meanwhile shares
the next commit, and senders get their half of the time."""
SERIES_S = 0.005
"""Verbs that nobody shares are run for so long before the lock is left free."""
GATHER_S = 0.02
"""What nothing on the wire waits for is written at most so long after the last write, with what
comes meanwhile: an exchange costs as much as five messages in it."""
SYNC_S = 0.05
"""Results reach the disk at the latest after this time: a power cut re-sends no more than that."""


class Pace:
    """What was written, and what of it the disk has not yet; all times monotonic, in seconds.

    Attributes:
        last_write: when the lock was let go of, for all that is known.
        unsynced: since when something is committed that the disk need not have; None: it has all.
    """

    __slots__ = ("_held_s", "_series_s", "last_write", "unsynced")

    def __init__(self) -> None:
        self.last_write = float("-inf")
        self.unsynced: float | None = None
        self._held_s = 0.0  # how long the last exchange had the lock
        self._series_s = 0.0  # how long verbs have been run since the lock was left free

    def exchanged(self, locked_s: float, freed_s: float) -> None:
        """An exchange had the lock in between, and is committed.

        Neither its wait for the lock nor what it read behind the commit kept the lock from others.
        """
        self.last_write, self._held_s = freed_s, freed_s - locked_s
        if self.unsynced is None:
            self.unsynced = freed_s

    def ran(self, began: float, now: float) -> None:
        """A verb was run, which may have written until now."""
        self.last_write = now
        self._series_s += now - began

    def synced(self) -> None:
        """The disk has everything."""
        self.unsynced = None

    @property
    def series_over(self) -> bool:
        """Whether verbs have been run for so long that the lock is to be left free."""
        return self._series_s >= SERIES_S

    def leave_free(self, now: float) -> float:
        """How long the lock is to stay free before the next write, none where not above 0."""
        self._series_s = 0.0
        free_s = min(max(self._held_s, FREE_LOCK_S), MOST_FREE_S)
        return free_s - (now - self.last_write)

    def patience(self, now: float) -> float:
        """How long what is patient may wait for company, no longer where not above 0."""
        until = self.last_write + GATHER_S
        if self.unsynced is not None:
            until = min(until, self.unsynced + SYNC_S)
        return until - now

    def sync_in(self, now: float) -> float | None:
        """How long until results must go to the disk; None: it has all."""
        return None if self.unsynced is None else max(self.unsynced + SYNC_S - now, 0.0)

    def overdue(self, now: float) -> bool:
        """Whether the disk should have had results by now."""
        return self.unsynced is not None and now - self.unsynced >= SYNC_S
