"""Files held by ``flock``: how one process knows, without a clock, whether another is alive.

The kernel frees the lock when the holder ends in whatever way; a stopped process keeps it. Held
descriptors are not inherited by started programs (close-on-exec).

``flock`` belongs to the open file, which a forked child shares: one that kept the descriptor would
keep a dead parent's lock for as long as it lives. So a child closes what it inherited, at once, and
a fork waits while a descriptor is being opened or closed here.

Who only asks (``is_free``) locks for a moment, and shared: askers never take each other for the
holder. One who takes the lock may meet an asker, and tries again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
import weakref
from pathlib import Path

_guard = threading.RLock()


class LockFile:
    """An exclusive lock on a file of its own.

    Args:
        path: the file; made if missing, never deleted while held.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd: int | None = None

    def acquire(self, content: object = None) -> bool:
        """Take the lock without waiting; True if it is ours now.

        ``content`` is written into the file as JSON, so that others can name the holder.
        """
        with _guard:
            return self._acquire(content)

    def _acquire(self, content: object) -> bool:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _share(fd, self.path)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        try:
            same = _same(fd, self.path)
        except FileNotFoundError:
            same = False
        if not same:  # deleted between open and lock: this lock would guard nothing
            os.close(fd)
            return self._acquire(content)
        if content is not None:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(content).encode() + b"\n", 0)
        self._fd = fd
        _holding.add(self)
        return True

    def release(self, *, delete: bool = False) -> None:
        """Give the lock back; idempotent."""
        with _guard:
            if self._fd is None:
                return
            if delete:
                self.path.unlink(missing_ok=True)
            else:  # emptied while still held: the next holder is never taken for this one
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, 0)
            _let_go(self._fd)
            self._fd = None

    def _forget(self) -> None:
        """In a forked child: it is the parent's, file and lock are left as they are."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def named(self) -> bool:
        """Whether the file we hold still has its name; else others cannot see that we live."""
        try:
            return self._fd is not None and _same(self._fd, self.path)
        except FileNotFoundError:
            return False

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None


_holding: weakref.WeakSet[LockFile] = weakref.WeakSet()


def _after_in_child() -> None:
    for lock in list(_holding):
        lock._forget()
    _guard.release()


os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_after_in_child
)


def _same(fd: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat(path))


def _share(fd: int, path: Path) -> None:
    """Give our own file the mode that its directory asks for: setgid means several users."""
    mode = 0o660 if os.stat(path.parent).st_mode & stat.S_ISGID else 0o600
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(fd, mode)


def make_directory(path: str | os.PathLike[str]) -> None:
    """The directory of lock files, where it is missing: with the modes that a new spool gives it.

    Somebody cleaned up, perhaps. What it is in says whether several users share the spool.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(path)
    try:
        os.makedirs(folder)
    except FileExistsError:
        return
    shared = os.stat(folder.parent).st_mode & stat.S_ISGID
    os.chmod(folder, 0o2770 if shared else 0o700)


def holder(path: str | os.PathLike[str]) -> dict[str, object]:
    """What the holder of a lock file wrote into it; empty when unreadable."""
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether nobody holds the lock: the process it stands for has ended."""
    with _guard:
        return _is_free(path)


def _is_free(path: str | os.PathLike[str]) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False  # another user's, and nobody knows: never taken for dead
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    _let_go(fd)
    return True


def _let_go(fd: int) -> None:
    """Unlock, and close: a child that was forked just now has the same file open for a moment."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
