"""The lock that makes a spool's supervisor the only one.

A flock on ``<store>-run/supervisor.lock``, which the kernel frees at death, so nothing here is
judged by age or by a pid file. The content (JSON: pid, host) only serves to name the holder to a
person. The descriptor is not inherited by children: an orphan must not keep the lock.

Deleting the file makes the lock worth nothing: the next supervisor makes a new one. So the holder
looks whether its file has the name still, and takes the name again where nobody else has.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from mailstrom import lockfile
from mailstrom.clock import monotonic_ms
from mailstrom.control import SUPERVISOR_LOCK
from mailstrom.lockfile import LockFile
from mailstrom.storage import run_directory

_PATIENCE_MS = 1000
_STEP_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock: 0 and ``"unknown"`` where the file does not say."""

    pid: int = 0
    host: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a look at our own lock found; neither field is set where all is as it was.

    Args:
        retaken: the file had been deleted or replaced, and is ours again.
        rival: who has it now.
    """

    retaken: bool = False
    rival: Holder | None = None


def lock_path(store: str) -> Path:
    """Path of the instance lock of the spool at ``store``."""
    return Path(run_directory(store)) / SUPERVISOR_LOCK


def take_lock(store: str) -> LockFile | Holder:
    """Take the spool's supervisor lock for this process.

    Args:
        store: path of the spool; its run directory exists.

    Returns:
        The held lock, to be released at the end, or who holds it already.

    Raises:
        OSError: the lock file cannot be opened or written.
    """
    lock = LockFile(lock_path(store))
    deadline_ms = monotonic_ms() + _PATIENCE_MS
    while not lock.acquire({"pid": os.getpid(), "host": socket.gethostname()}):
        holder = _named(lock_path(store))
        # Nobody living is named: the holder has not written yet, or a killed one's last child
        # has not reached its exec, where the descriptor closes. Either takes moments.
        if _plausible(holder) or monotonic_ms() > deadline_ms:
            return holder
        time.sleep(_STEP_S)
    return lock


class Instance:
    """The lock of a supervisor that serves, looked after until it ends.

    Args:
        store: path of the spool.
        lock: held, by ``take_lock``.
    """

    def __init__(self, store: str, lock: LockFile) -> None:
        self.path = lock_path(store)
        self._store = store
        self._lock = lock

    def look(self) -> Standing:
        """See that nobody else can take the name; take it again where our file lost it.

        Returns:
            Whether it had to be taken again, or who was faster. A name that comes back between
            the two looks, with a directory that was moved away, is our own file's: its lock
            refuses this process too, and that is no rival.

        Raises:
            OSError: the directory is gone, say, and nobody can tell now; ask again.
        """
        if self._lock.named:
            return Standing()
        taken = take_lock(self._store)
        if isinstance(taken, Holder):
            return Standing() if self._lock.named else Standing(rival=taken)
        former, self._lock = self._lock, taken
        former.release()
        return Standing(retaken=True)

    def release(self) -> None:
        """Give the lock back; idempotent."""
        self._lock.release()


def _named(path: Path) -> Holder:
    fields = lockfile.holder(path)
    try:
        return Holder(pid=int(str(fields["pid"])), host=str(fields["host"])[:255])
    except (ValueError, KeyError):
        return Holder()


def _plausible(holder: Holder) -> bool:
    """Whether the words can be the present holder's and not a killed predecessor's."""
    if not holder.pid:
        return False
    if holder.host != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
