"""The flag that a disk error was seen, for every process of a spool, and what stands in for it.

A failed sync may have taken frames of other processes with it, though their next sync succeeds. So
whoever sees one raises a flag beside the spool, and nobody acknowledges while it is there. It must
be seen by the others even where it cannot be written at once (no descriptor, no room, no right):

* a file, with a line for each failure;
* else a symbolic link of that name, which needs no descriptor;
* else a lock on the -wal file, held through the descriptor of whoever saw the error. Nothing else
  locks that file, and the kernel keeps the lock for the open description, whatever SQLite closes.
  Meanwhile a thread tries to write the flag.

A repair takes away only the flag that it began with: a failure that comes in between raises it
anew. Its file is locked for that (shared by those who write, alone by whoever removes it).
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from typing import NamedTuple

from mailstrom import interrupts
from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite.frames import FLOCK
from mailstrom.storage.sqlite.unchanged import Look, look, steady

RETRY_S = 0.25
"""How often a flag that could not be written is tried again."""
_ATTEMPTS = 3
_EFFECTIVE = os.access in os.supports_effective_ids
_LOCKED_BYTE = 1 << 62
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
_SET = getattr(fcntl, "F_OFD_SETLK", None)
_GET = getattr(fcntl, "F_OFD_GETLK", None)
_ASKED = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCKED_BYTE, 1, 0)
_FREE = struct.pack("h", fcntl.F_UNLCK)

_unwritten: dict[str, OSError] = {}  # path of a spool -> what its flag does not say yet
_bound: dict[str, set[int]] = {}  # path of a spool -> our descriptors of its -wal file
_trying: set[str] = set()
_calm: dict[str, Look | None] = {}  # path of a spool -> its run directory when it had no flag


class Mark(NamedTuple):
    """What a repair began with; ``clear`` removes nothing else."""

    file: tuple[int, ...] | None
    unwritten: OSError | None


def run_directory(path: str) -> str:
    """The directory beside a spool that holds lock files and flags."""
    return f"{path}-run"


def poison_path(path: str) -> str:
    """The flag that stops acknowledgements in every process."""
    return os.path.join(run_directory(path), "poisoned")


def bind(path: str, fd: int) -> None:
    """Note a descriptor of the -wal file; it carries the lock where no flag can be written."""
    _bound.setdefault(path, set()).add(fd)
    if path in _unwritten:
        _lock(fd, fcntl.F_RDLCK)


def unbind(path: str, fd: int) -> None:
    """Close it, unless it is the only sign that others have of an error; then it stays open."""
    held = _bound.get(path, set())
    if path in _unwritten and held == {fd}:
        return
    held.discard(fd)
    os.close(fd)


def poison(path: str, error: OSError) -> None:
    """Stop acknowledgements in every process; never raises.

    Args:
        path: the database file.
        error: what the sync failed with.
    """
    if _write(path, error):
        _forget(path)
        return
    _unwritten[path] = error
    for fd in _bound.get(path, ()):
        _lock(fd, fcntl.F_RDLCK)
    if path not in _trying:
        _trying.add(path)
        try:
            _thread.start_new_thread(_try_on, (path, os.getpid()))
        except Exception:  # no thread to be had: the next check tries, and the lock stands
            _trying.discard(path)


def calm(path: str, fd: int) -> bool:
    """Whether ``check`` and ``check_others`` would find nothing, by the two questions they ask.

    Asked twice for each message, so it stands here in one piece. False: one of them is to be asked.

    Args:
        fd: our descriptor of the -wal file.
    """
    if path in _unwritten or _GET is None:
        return False
    try:
        now = os.stat(f"{path}-run")
        return (
            _calm.get(path) == (now.st_dev, now.st_ino, now.st_ctime_ns)
            and fcntl.fcntl(fd, _GET, _ASKED)[:2] == _FREE
        )
    except OSError as error:
        if interrupts.raised(error):
            raise
        return False


def check(path: str) -> None:
    """Raise if the spool is poisoned.

    Raises:
        SpoolError: it is, or nobody can tell; nothing may be acknowledged.
    """
    waiting = _unwritten.get(path)
    if waiting is not None:
        poison(path, waiting)
    if path in _unwritten or _there(path):
        raise SpoolError(
            f"{path}: a disk error is being repaired; nothing can be acknowledged now"
            f" (flag {poison_path(path)})"
        )


def check_others(path: str, fd: int) -> None:
    """Raise if another process saw an error whose flag it cannot write.

    Args:
        fd: our descriptor of the -wal file.
    """
    if _GET is None:
        return
    if fcntl.fcntl(fd, _GET, _ASKED)[:2] != _FREE:
        raise SpoolError(
            f"{path}: another process saw a disk error and cannot write {poison_path(path)};"
            " nothing can be acknowledged until it can: make that directory writable"
        )


def check_all(path: str) -> None:
    """``check`` and ``check_others``, for who has no descriptor of the -wal file at hand."""
    check(path)
    for fd in tuple(_bound.get(path, ())):
        with contextlib.suppress(OSError):  # closed meanwhile
            check_others(path, fd)


def mark(path: str) -> Mark:
    """What is wrong when a repair begins; for ``clear``."""
    return Mark(_identity(poison_path(path)), _unwritten.get(path))


def clear(path: str, begun: Mark) -> bool:
    """Take away what a repair began with; False where something newer is there, or it cannot be.

    Only after the WAL was emptied and a fresh sync has succeeded.
    """
    if _unwritten.get(path) is not begun.unwritten:
        return False
    flag = poison_path(path)
    if begun.file is not None:
        try:
            if not _remove(flag, begun.file):
                return False
        except OSError:
            return False
    _forget(path)
    return _identity(flag) is None


def _remove(flag: str, expected: tuple[int, ...]) -> bool:
    if os.path.islink(flag):  # whoever failed since remembers it, and writes it when this is gone
        os.unlink(flag)
        return True
    fd = os.open(flag, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _identity(flag) != expected:
            return False
        os.unlink(flag)
    except FileNotFoundError:
        pass
    finally:
        os.close(fd)
    return True


def _identity(flag: str) -> tuple[int, ...] | None:
    try:
        found = os.lstat(flag)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _there(path: str) -> bool:
    """Whether there is a flag; while its directory stays as it is, that alone is looked at."""
    folder = run_directory(path)
    try:
        now = look(folder)
        if _calm.get(path) == now:
            return False
        try:
            os.stat(poison_path(path))
        except FileNotFoundError:
            look(folder)  # a flag is missed where the directory itself is missing
            _calm[path] = steady(now)
            return False
    except OSError as error:
        if interrupts.raised(error):
            raise
        raise _blind(folder, error) from error
    return True


def _blind(folder: str, error: OSError) -> SpoolError:
    return SpoolError(
        f"{folder}: cannot be looked into ({error.strerror}), so a disk error that others saw"
        " would be missed; nothing can be acknowledged: bring the directory back"
    )


def _write(path: str, error: OSError) -> bool:
    """Write the flag in one of its forms; whether everybody sees this failure in it."""
    flag = poison_path(path)
    line = f"{errno.errorcode.get(error.errno or 0, error)}\n".encode()
    for _ in range(_ATTEMPTS):
        made = True
        try:
            try:
                fd = os.open(flag, _APPEND | os.O_CREAT | os.O_EXCL, 0o660)
            except FileExistsError:
                made = False
                fd = os.open(flag, _APPEND)
        except FileNotFoundError:  # it was just removed, or there is no directory
            continue
        except OSError:
            break
        try:
            _share(fd, flag)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            told = os.write(fd, line) > 0
        except BlockingIOError:  # it is just being removed
            return False
        except OSError:  # no room for the line: a repair under way must see something newer
            told = made or _touched(fd)
        finally:
            kept = os.fstat(fd).st_nlink > 0
            os.close(fd)
        if kept:
            return told
    try:
        os.symlink(".", flag)
    except OSError:
        return False
    return True


def finding(path: str) -> list[str]:
    """A sentence about a flag that is there, with its age; none otherwise. Looks at names only."""
    flag = poison_path(path)
    try:
        since_s = os.lstat(flag).st_mtime
    except OSError:
        return []
    return [
        f"nothing can be acknowledged: a disk error was seen {max(0, int(time.time() - since_s))} s"
        f" ago (flag {flag}), and is not repaired: {unrepaired(path)}"
    ]


def unrepaired(path: str) -> str:
    """What may keep a repair from ending, and what to do; the same words while it is the same."""
    flag = poison_path(path)
    try:
        found = os.lstat(flag)
    except FileNotFoundError:
        return f"{flag} cannot be written by a process that saw the error: let it write there"
    except OSError as error:
        return f"{flag} cannot be looked at ({error.strerror}): bring its directory back"
    us, folder = os.geteuid(), os.path.dirname(flag)
    if stat.S_ISDIR(found.st_mode):
        return f"{flag} is a directory of user id {found.st_uid}, and no flag of ours: remove it"
    if not os.access(folder, os.W_OK, effective_ids=_EFFECTIVE):
        return f"user id {us} may not remove anything from {folder}: let it write there"
    if not stat.S_ISLNK(found.st_mode) and not os.access(flag, os.W_OK, effective_ids=_EFFECTIVE):
        return f"{flag} belongs to user id {found.st_uid}: give it (chown) to the engine's user"
    return (
        "a running engine repairs it once the disk takes writes again and no process keeps the"
        " write lock or the write-ahead log ('note:' lines of 'mailstrom store check')"
    )


def _touched(fd: int) -> bool:
    before = os.fstat(fd).st_mtime_ns
    with contextlib.suppress(OSError):
        os.utime(fd)
    return os.fstat(fd).st_mtime_ns != before  # the clock of file systems ticks in milliseconds


def _share(fd: int, flag: str) -> None:
    """Let whoever repairs the spool take the flag away, whatever our umask and whoever we are."""
    with contextlib.suppress(OSError):
        folder, found = os.stat(os.path.dirname(flag)), os.fstat(fd)
        if found.st_uid == os.geteuid():
            os.fchmod(fd, 0o660)
            if found.st_uid == 0 and folder.st_uid != 0:
                os.fchown(fd, folder.st_uid, folder.st_gid)


def _forget(path: str) -> None:
    if _unwritten.pop(path, None) is not None:
        for fd in _bound.get(path, ()):
            _lock(fd, fcntl.F_UNLCK)


def _lock(fd: int, kind: int) -> None:
    if _SET is not None:
        with contextlib.suppress(OSError):  # EMFILE and the like cannot meet a lock
            fcntl.fcntl(fd, _SET, FLOCK.pack(kind, os.SEEK_SET, _LOCKED_BYTE, 1, 0))


def _try_on(path: str, pid: int) -> None:
    """Write the flag as soon as it can be; ends where there is no such spool any more."""
    try:
        while (waiting := _unwritten.get(path)) is not None and pid == os.getpid():
            time.sleep(RETRY_S)
            if _unwritten.get(path) is not waiting:
                continue  # somebody else wrote it meanwhile: once more would be one repair more
            if not os.path.exists(path) or _write(path, waiting):
                _forget(path)
    finally:
        _trying.discard(path)
