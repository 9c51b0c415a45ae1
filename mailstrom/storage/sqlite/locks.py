"""Who holds locks on a spool's -shm file, as Linux tells in /proc/locks.

Each process that reads or writes a WAL holds POSIX locks on bytes of that file. Nothing is opened
here but /proc: to open and close the -shm file would drop this process's locks. Where the system
does not tell (no /proc), nobody is named. Locks of processes in another container stand in no
/proc/locks that this one sees: the file itself is asked for them, by the descriptor that SQLite has
open here, and who holds them is told as process 0.

Source: SQLite's documentation of the WAL-index (walformat, section 2.3).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from mailstrom.storage.pinned import LogHolder
from mailstrom.storage.sqlite import frames

LOCKS, PROCESSES = "/proc/locks", "/proc"
UNNAMED = "a process that this system does not name (of another container? lsof, fuser)"
_OWN = b"mailstrom_workers."
_FIRST, _LAST = 120, 127  # the lock bytes; the first is the writer's
_LOCK = re.compile(r"^\d+: (\w+) +\w+ +(\w+) +(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\w+)$")


def writer(path: str) -> str | None:
    """Who holds the write lock of this spool in this moment, for a sentence; None if nobody does.

    Reads /proc: for when a call was refused, not before. None, too, where the system does not tell.
    """
    try:
        pids = writers(os.stat(f"{path}-shm"))
    except OSError:
        return None
    return who(pids[0]) if pids else None


def writers(shm: os.stat_result) -> list[int]:
    """Processes that have the write lock: one, or none; 0 where it is of another container."""
    return [pid for pid, mode, at in locked(shm) if mode == "WRITE" and at == _FIRST]


def who(pid: int) -> str:
    """A process for a sentence: id, command, and whether it was stopped."""
    if pid <= 0:
        return UNNAMED
    halted = ", stopped: kill -CONT lets it go on" if stopped(pid) else ""
    which = "this very process," if pid == os.getpid() else "process"
    return f"{which} {pid} ({named(pid).command}{halted})"


def stopped(pid: int) -> bool:
    """Whether a process stands still by a signal."""
    try:
        with open(f"{PROCESSES}/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def at_work(pid: int) -> bool:
    """Whether a process is one of an engine's own and runs: what it reads is read in a moment."""
    try:
        with open(f"{PROCESSES}/{pid}/cmdline", "rb") as stream:
            words = iter(stream.read().split(b"\0")[1:])
    except OSError:
        return False
    option = next((word for word in words if word in (b"-m", b"-c") or word[:1] != b"-"), b"")
    own = option == b"-m" and next(words, b"").startswith(_OWN)
    return own and not stopped(pid)


def locked(shm: os.stat_result) -> list[tuple[int, str, int]]:
    """(process, mode, byte) of the locks on a file; process 0 is one of another container."""
    device = (os.major(shm.st_dev), os.minor(shm.st_dev))
    exact: list[tuple[int, str, int]] = []
    by_inode: list[tuple[int, str, int]] = []  # some file systems show another device there
    for kind, mode, pid, major, minor, inode, first, last in _locks():
        if kind not in ("POSIX", "OFDLCK") or int(inode) != shm.st_ino or last == "EOF":
            continue
        for at in range(max(int(first), _FIRST), min(int(last), _LAST) + 1):
            by_inode.append((int(pid), mode, at))
            if (int(major, 16), int(minor, 16)) == device:
                exact.append((int(pid), mode, at))
    found = exact or by_inode
    told = {at for pid, _, at in found if pid != os.getpid()}
    return found + [(0, mode, at) for mode, at in _hidden(shm) if at not in told]


def _hidden(shm: os.stat_result) -> Iterator[tuple[str, int]]:
    """(mode, byte) of locks whose process is not of this container, as the file itself tells."""
    fd = frames.index_descriptor(shm) if sys.platform.startswith("linux") else None
    if fd is None:
        return
    import fcntl  # not every system has it

    for at in range(_FIRST, _LAST + 1):
        ask = frames.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
        with contextlib.suppress(OSError):  # closed by another thread meanwhile
            kind, _, _, _, pid = frames.FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, ask))
            if kind != fcntl.F_UNLCK and pid == 0:
                yield "WRITE" if kind == fcntl.F_WRLCK else "READ", at


def openers(shm: str) -> list[int]:
    """Other processes that have the file open, of those whose descriptors we may see."""
    found = []
    real = os.path.realpath(shm)
    for name in _listed(PROCESSES):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        folder = f"{PROCESSES}/{name}/fd"
        for fd in _listed(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{fd}") == real:
                    found.append(int(name))
                    break
    return sorted(found)


def named(pid: int) -> LogHolder:
    """A process and its command, as far as the system tells."""
    try:
        with open(f"{PROCESSES}/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            command = stream.read().strip()
    except OSError:
        command = ""
    return LogHolder(pid=pid, command=command or "unknown")


def _locks() -> Iterator[tuple[str, ...]]:
    try:
        with open(LOCKS, encoding="ascii", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return
    for line in lines:
        found = _LOCK.match(line)  # those that wait (->) hold nothing, and do not match
        if found is not None:
            yield found.groups()


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
