"""An idle worker looks whether something became due, and tells whoever watches.

Contract. It looks by a number that changes with other connections' commits, so that nothing is
asked twice. Where a write to the spool rings (``arm``) it sleeps until then, as long as it has no
work: its own writes would ring all the time. Whoever watches is told once when something becomes
due, and again whenever somebody else commits while it is. ``watcher`` and ``rung`` belong to the
loop, everything else to where the store is used. Must not know: requests, transactions, sleeping.
"""

from __future__ import annotations

from collections.abc import Callable

from mailstrom.errors import SpoolError
from mailstrom.storage.base import WorkerStore
from mailstrom_workers.dbrequest import Later

LOOK_S = 0.012
"""How often the workers together look whether somebody committed, where nothing rings; each its
share of the times, so that many of them cost an idle machine no more than one."""
ASLEEP_S = 1.0
"""Where a write to the spool rings, an idle worker looks by itself this often."""


class DueWatch:
    """Looks at one spool for one worker.

    Args:
        later: runs something on the watcher's loop.
        arm: has the next write ring (``rung``); False where that cannot be relied on.
        now_ms: wall milliseconds.

    Attributes:
        watcher: called on the loop when something is due; None: nobody watches.
        armed: a write to the spool will ring.
        stale: what is due was asked before the last write of our own.
    """

    def __init__(
        self, later: Later, arm: Callable[[WorkerStore], bool], now_ms: Callable[[], int]
    ) -> None:
        self._later = later
        self._arm = arm
        self._now_ms = now_ms
        self.watcher: Callable[[], None] | None = None
        self.armed = False
        self.stale = True
        self._look_s = LOOK_S
        self._look_at = float("-inf")
        self._wake_at = float("-inf")
        self._version: int | None = None
        self._due_ms: int | None = None
        self._told = False

    def rung(self) -> None:
        """Somebody wrote to the spool: whoever serves it is to look again."""
        self.armed = False

    def seconds(self, store: WorkerStore, now: float) -> float:
        """How long until the next look; it looks where that is now.

        Args:
            now: monotonic seconds.
        """
        look_at = max(self._look_at, self._wake_at) if self.armed else self._look_at
        if now >= look_at:
            look_at = self._look_again(store, now)
        return max(look_at - now, 0.0)

    def _look_again(self, store: WorkerStore, now: float) -> float:
        """Look, and say when to look next; where nothing is due a write rings before that."""
        # Armed before the look: what is written after it rings. Not while there is work, whose own
        # writes would ring all the time.
        self.armed = not self._told
        if self.armed and not self._arm(store):
            self.armed = False
        due_s = self._look(store)
        self._look_at = now + self._look_s
        self._wake_at = now + min(due_s, ASLEEP_S)
        return max(self._look_at, self._wake_at) if self.armed else self._look_at

    def _look(self, store: WorkerStore) -> float:
        """Tell the watcher what became due, by others' commits or as time went by.

        Returns:
            Seconds until something that waits now will be due.
        """
        due_s = float("inf")
        changed = False
        try:
            version = store.version()
            changed = version != self._version
            now_ms = self._now_ms()
            if changed:
                self._look_s = LOOK_S * store.live_workers()
            if changed or self.stale:
                self._due_ms = store.next_due_ms(now_ms)
                self._version, self.stale = version, False
            due = self._due_ms is not None and self._due_ms <= now_ms
            if self._due_ms is not None:
                due_s = max(self._due_ms - now_ms, 0) / 1000
        except SpoolError:
            self.stale = due = True  # who looks meets it, too, and says so
        told, self._told = self._told, due
        if due:
            self.armed = False  # only ever lowered here: a ring that comes meanwhile is not undone
        watcher = self.watcher  # another thread may change it
        if due and (changed or not told) and watcher is not None:
            self._later(watcher)
        return due_s
