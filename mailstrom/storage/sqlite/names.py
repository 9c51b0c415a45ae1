"""One file, one name: a spool that a hard link gave a second name is not opened.

SQLite finds the -wal and -shm files by the name that it was given. Whoever opens the same database
by another name has a log of its own and shares no lock with the others: both write over each other,
and the file is damaged. A symbolic link is followed (``provider``); of two hard links none is the
right one.

Contract. Each connection asks here, by ``require_one``, before it writes anything; so of two names
none is ever opened first. Whoever had the file open by this name while it was the only one may open
it again: a second name that comes later (a backup that links for a moment) stops no process that
works on the spool, and nobody can open it by that name. Names that a copy or a restore left where
it was killed are known, and deleted (``sweep``). Must not know: connections, locks. What it cannot
see is a file that is mounted by itself at a second place: it has one name.
"""

from __future__ import annotations

import contextlib
import os
import re

from mailstrom import interrupts
from mailstrom.errors import SpoolError

_OURS = r"\.{name}\.copy-[0-9a-f]{{16}}|{name}\.replaced-[0-9TZ-]+"
"""A copy that was to get this name; the former spool, before a restore had put it aside."""

_alone: dict[str, tuple[int, int]] = {}
"""Device and inode of what this process opened while it had one name, by that name."""


def require_one(path: str) -> bool:
    """Raise where a file has a second name, unless this process knows it from when it had one.

    Args:
        path: the database file.

    Returns:
        Whether there are second names for ``sweep``.

    Raises:
        SpoolError: says the other name, where it lies beside.
    """
    try:
        found = os.stat(path)
        file = found.st_dev, found.st_ino
        if found.st_nlink > 1:
            if _alone.get(path) == file:
                return False
            ours = _left(path, file)
            if len(ours) + 1 < found.st_nlink:
                raise SpoolError(_sentence(path, file, ours))
            return True
    except FileNotFoundError:
        return False  # whoever opens it will say so
    except OSError as error:
        if interrupts.raised(error):
            raise
        raise SpoolError(f"{path}: cannot be looked at ({error.strerror})") from error
    _alone[path] = file
    return False


def sweep(path: str) -> None:
    """Delete second names that a copy or a restore left.

    Args:
        path: the database file; open, with a lock that a restore under way would have.
    """
    with contextlib.suppress(OSError):
        found = os.stat(path)
        for other in _left(path, (found.st_dev, found.st_ino)):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samefile(f"{other}-wal", f"{path}-wal"):
                    os.unlink(f"{other}-wal")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(other)


def _left(path: str, file: tuple[int, int]) -> list[str]:
    ours = re.compile(_OURS.format(name=re.escape(os.path.basename(path))))
    return [each for each in _others(path, file) if ours.fullmatch(os.path.basename(each))]


def _others(path: str, file: tuple[int, int]) -> list[str]:
    """Other names of a file in its directory."""
    found = []
    with os.scandir(os.path.dirname(os.path.abspath(path))) as entries:
        for entry in entries:
            if entry.name == os.path.basename(path):
                continue
            with contextlib.suppress(OSError):
                look = entry.stat(follow_symlinks=False)
                if (look.st_dev, look.st_ino) == file:
                    found.append(entry.path)
    return found


def _sentence(path: str, file: tuple[int, int], ours: list[str]) -> str:
    others = [other for other in _others(path, file) if other not in ours]
    where = f": {others[0]}" if others else f" (find / -samefile {path} tells it)"
    return (
        f"{path}: has a second name, a hard link{where}; opened by two names a spool is damaged, so"
        " it is opened by none: delete the name that it should not have"
    )
