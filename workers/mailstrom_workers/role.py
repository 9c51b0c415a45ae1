"""Who is the janitor of a spool: a lock file that one worker holds; who cannot get it waits for it.

An engine that does not lead (``Presence.leads``) leaves it to the supervisor's janitor, which is
started again when it dies, and gives it back as soon as a supervisor is there: an application may
stand still with the lock, and nobody watches it. It stands in only when nobody has had the role for
long, and then for one round at a time.

Must not know: what a janitor does.
"""

from __future__ import annotations

import os

from mailstrom.control import JANITOR_LOCK
from mailstrom.lockfile import LockFile, is_free
from mailstrom.storage import run_directory
from mailstrom_workers.presence import Presence

PATIENCE_MS = 15_000
"""So long the role may be free before an engine that does not lead takes it."""


class Role:
    """The janitor's role at one spool, for one worker.

    Held on and on by the engine that leads. One that does not lead and stands in lets go of it
    every other round, in which the supervisor's janitor finds it free.

    Args:
        presence: the worker; told in ``presence.role``.
    """

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._lock = LockFile(os.path.join(run_directory(presence.store), JANITOR_LOCK))
        self._free_since_ms: int | None = None

    def take(self) -> bool:
        """Take it if it is free and ours to take; whether we have it."""
        if self._lock.held:
            if not self._presence.leads():
                self.give()
        elif self._may() and self._lock.acquire({"pid": os.getpid()}):
            self._presence.role = True
        return self._presence.role

    def _may(self) -> bool:
        if self._presence.leads():
            self._free_since_ms = None
            return True
        if not is_free(self._lock.path):
            self._free_since_ms = None
            return False
        now_ms = self._presence.machine.monotonic_ms()
        if self._free_since_ms is None:
            self._free_since_ms = now_ms
        return now_ms - self._free_since_ms > PATIENCE_MS

    def give(self) -> None:
        """Let the next one have it."""
        self._lock.release()
        self._presence.role = False
