"""Which other processes have a spool open, and by which copies of SQLite.

Two copies of SQLite in one process drop each other's POSIX locks. Each copy opens the log's index
(the -shm file) once, however many connections it has, so a process that has it open twice has the
spool open by two copies. Files are told by device and inode, never opened: to open and close one of
the spool's would drop this process's locks. Linux; where the system shows no descriptors (another
user's process) the process is only numbered.

Must not know: rows, connections.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from functools import cache

from mailstrom.storage.examined import Sharer
from mailstrom.storage.sqlite import locks

_LIBRARY = re.compile(r"/(?:lib)?sqlite3[^/]*\.so[^/]*$")
_OURS = re.compile(r"/apsw/[^/]*\.so$")
_VERSION = re.compile(rb"\x00(3\.\d{1,2}\.\d{1,2})\x00")
_LONGEST_LIBRARY = 32 << 20
_WRITES = os.O_WRONLY | os.O_RDWR

LOOK_S = 2.0
"""On a machine with very many processes: those that hold locks on the spool are looked at first."""

File = tuple[int, int]


def sharers(path: str) -> tuple[tuple[Sharer, ...], tuple[int, ...]]:
    """Other processes that have the spool open, and those that only their locks tell of.

    Args:
        path: the database file.
    """
    files = {name: _file(f"{path}{name}") for name in ("", "-shm")}
    try:
        named = {pid for pid, _, _ in locks.locked(os.stat(f"{path}-shm")) if pid > 0}
        locking = named - {os.getpid()}
    except OSError:
        locking = set()
    found, seen = [], set()
    deadline = time.monotonic() + LOOK_S
    for pid in (*sorted(locking), *(pid for pid in _processes() if pid not in locking)):
        if time.monotonic() > deadline:
            break
        opened = _opened(pid, files)
        if opened is not None:
            seen.add(pid)
            if opened != (0, 0, False):
                found.append(_sharer(pid, *opened))
    return tuple(found), tuple(sorted(locking - seen))


def _sharer(pid: int, copies: int, databases: int, writes: bool) -> Sharer:
    ours, libraries = _libraries(pid)
    return Sharer(
        pid=pid,
        command=locks.named(pid).command,
        copies=max(copies, min(databases, 1)),
        writes=writes,
        ours=ours,
        libraries=tuple((name, _version(pid, name)) for name in libraries),
    )


def _file(path: str) -> File | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _processes() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for name in os.listdir(locks.PROCESSES):
            if name.isdigit() and int(name) != os.getpid():
                yield int(name)


def _opened(pid: int, files: dict[str, File | None]) -> tuple[int, int, bool] | None:
    """(descriptors of the index, of the database, whether one writes); None where we may not see.

    One that only reads everything opens the index for reading, or not at all.
    """
    folder = f"{locks.PROCESSES}/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    indexes, databases, writes = 0, 0, False
    for name in names:
        file = _file(f"{folder}/{name}")
        if file is None:
            continue
        if file == files["-shm"]:
            indexes += 1
        elif file == files[""]:
            databases += 1
            writes = writes or _writes(pid, name)
    return indexes, databases, writes


def _writes(pid: int, descriptor: str) -> bool:
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"{locks.PROCESSES}/{pid}/fdinfo/{descriptor}", encoding="ascii") as stream,
    ):
        for line in stream:
            if line.startswith("flags:"):
                return bool(int(line.split()[1], 8) & _WRITES)
    return False


def _libraries(pid: int) -> tuple[bool, tuple[str, ...]]:
    """Whether the copy that Mailstrom brings is loaded there, and which others are."""
    ours, others = False, set()
    with (
        contextlib.suppress(OSError),
        open(f"{locks.PROCESSES}/{pid}/maps", encoding="utf-8", errors="replace") as stream,
    ):
        for line in stream:
            name = line[line.find("/") :].strip() if "/" in line else ""
            ours = ours or bool(_OURS.search(name))
            if _LIBRARY.search(name):
                others.add(name)
    return ours, tuple(sorted(others))


def _version(pid: int, library: str) -> str:
    for place in (f"{locks.PROCESSES}/{pid}/root{library}", library):
        try:
            found = os.stat(place)
        except OSError:
            continue
        return _read_version(place, found.st_dev, found.st_ino)
    return ""


@cache
def _read_version(place: str, device: int, inode: int) -> str:
    """The version in a library's text; empty where it does not say exactly one."""
    try:
        with open(place, "rb") as stream:
            text = stream.read(_LONGEST_LIBRARY)
    except OSError:
        return ""
    versions = set(_VERSION.findall(text))
    return versions.pop().decode() if len(versions) == 1 else ""
