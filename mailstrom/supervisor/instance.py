"""The lock that makes a spool's supervisor the only one.

A flock on ``<store>-run/supervisor.lock``, which the kernel frees at death, so nothing here is
judged by age or by a pid file. The content (JSON: pid, host) only serves to name the holder to a
person. The descriptor is not inherited by children: an orphan must not keep the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from mailstrom.clock import monotonic_ms

_PATIENCE_MS = 1000
_STEP_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock: 0 and ``"unknown"`` where the file does not say."""

    pid: int = 0
    host: str = "unknown"


def lock_path(store: str) -> Path:
    """Path of the instance lock of the spool at ``store``."""
    return Path(f"{store}-run") / "supervisor.lock"


def take_lock(store: str) -> int | Holder:
    """Take the spool's supervisor lock for this process.

    Args:
        store: path of the spool; its run directory exists.

    Returns:
        The descriptor to hand to ``release_lock``, or who holds the lock already.

    Raises:
        OSError: the lock file cannot be opened or written.
    """
    # Group-writable, as the spool is: another member of the group may be the next supervisor.
    descriptor = os.open(lock_path(store), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        deadline_ms = monotonic_ms() + _PATIENCE_MS
        while not _locked(descriptor):
            holder = _parse(os.pread(descriptor, 4096, 0))
            # Nobody living is named: the holder has not written yet, or a killed one's last child
            # has not reached its exec, where the descriptor closes. Either takes moments.
            if _plausible(holder) or monotonic_ms() > deadline_ms:
                os.close(descriptor)
                return holder
            time.sleep(_STEP_S)
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content.encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def release_lock(descriptor: int) -> None:
    """Give the lock back.

    Args:
        descriptor: what ``take_lock`` returned; closed here.
    """
    # Emptied while still held, so that the next holder is never taken for this one.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse(content: bytes) -> Holder:
    try:
        fields = json.loads(content)
        return Holder(pid=int(fields["pid"]), host=str(fields["host"])[:255])
    except (ValueError, KeyError, TypeError):
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
