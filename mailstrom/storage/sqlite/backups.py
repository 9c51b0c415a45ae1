"""Making a copy of a spool while it is in use.

A copy is written under a temporary name beside its target, marked (see ``copies``), synced, checked
as it lies on the disk, and only then given its name, which must be free: whatever goes wrong,
nothing is left and nothing overwritten. The source is read in one snapshot, so that senders and
workers neither wait nor make the copy begin anew; its WAL cannot start again meanwhile. (In memory
a commit waits for the snapshot: about 1.5 s for each GiB.) Until it is opened the copy is one file,
without a -wal.

Forks: the connections are the copy's own and open only within ``forks.inside``. Whoever forks waits
for one step at most: the copy then closes everything, lets the fork happen and begins anew, a
bounded number of times.

A crash may leave the temporary file. It is locked while it is made (``flock``), so the next copy to
the same target knows a dead one and deletes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import weakref
from collections.abc import Callable, Iterator

import apsw

from mailstrom.errors import SpoolBusy, SpoolCorrupt, SpoolError, SpoolFull, SpoolReadOnly
from mailstrom.storage.sqlite import copies, forks
from mailstrom.storage.sqlite.connection import abandon, spool_errors

STEP_PAGES = 1_024
"""Pages copied at a time: 4 MiB."""
CHECK_STEPS = 1_000
"""How often the check of the copy looks whether somebody wants to fork, in SQLite's steps."""
ATTEMPTS = 10
"""So often the copy is begun, where this process forks again and again."""
COMPANIONS = ("-wal", "-shm", "-journal")
_UNLINKABLE = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""How file systems without hard links say so."""
_KINDS: dict[int, type[SpoolError]] = {
    errno.EACCES: SpoolReadOnly,
    errno.EPERM: SpoolReadOnly,
    errno.EROFS: SpoolReadOnly,
    errno.ENOSPC: SpoolFull,
    errno.EDQUOT: SpoolFull,
}


def backup(connect: Callable[[], apsw.Connection], name: str, target: str, now_ms: int) -> None:
    """Copy a spool.

    Args:
        connect: opens a reading connection to it; called within ``forks.inside``.
        name: the spool's name, for the mark.
        target: path of the copy.
        now_ms: for the mark.

    Raises:
        SpoolBusy: this process forked so often that no copy could be finished.
        SpoolError: or another subclass; nothing is left at ``target``.
    """
    require_free(target, "a copy")
    sweep(target)
    for _ in range(ATTEMPTS):
        temporary = _Temporary(target)
        try:
            with spool_errors(name, f"copying it to {target}"):
                if not _fill(connect, name, temporary.path, now_ms):
                    continue
            temporary.sync()
            with spool_errors(name, f"checking the copy {target}"):
                if not checked(name, temporary.path):
                    continue
            temporary.give_name()
            return
        finally:
            temporary.end()
    raise SpoolBusy(
        f"{target}: this process forked {ATTEMPTS} times while the copy was made, and each time it"
        " had to begin anew; nothing is left of it: copy from a process that does not fork"
        " ('mailstrom store backup')"
    )


def require_free(target: str, what: str) -> None:
    """Raise unless ``target`` is a name that SQLite can open and nobody has.

    Args:
        what: is to get that name, for the error.

    Raises:
        SpoolError: it is none.
    """
    try:
        target.encode()
    except UnicodeEncodeError:
        raise SpoolError(
            f"{target!r} is not UTF-8, which SQLite needs; {what} needs another name"
        ) from None
    for path in (target, *(target + end for end in COMPANIONS)):
        if os.path.lexists(path):
            raise SpoolError(f"{path}: exists already; {what} needs a name of its own")


def _fill(connect: Callable[[], apsw.Connection], name: str, path: str, now_ms: int) -> bool:
    """Copy and mark; False where somebody wants to fork. Nothing is open afterwards."""
    with forks.inside(), contextlib.ExitStack() as opened:
        pid = os.getpid()
        source = connect()
        opened.callback(_end, pid, source, source.close)
        copy = opened_copy(path, opened)
        copy.execute("PRAGMA synchronous = OFF").fetchall()
        source.execute("BEGIN").fetchall()
        copies.marked(source)  # the first read: the snapshot begins here
        pages = copy.backup("main", source, "main")
        with contextlib.ExitStack() as copying:
            copying.callback(_end, pid, pages, pages.finish)
            while not pages.done:
                if forks.wanted() or pid != os.getpid():
                    return False
                pages.step(STEP_PAGES)
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        copies.mark(copy, name, now_ms)
    return True


def checked(name: str, path: str) -> bool:
    """Whether the copy is sound; False where somebody wants to fork.

    Raises:
        SpoolCorrupt: it is not.
    """
    with forks.inside(), contextlib.ExitStack() as opened:
        copy = opened_copy(path, opened)
        copy.set_progress_handler(forks.wanted, CHECK_STEPS)
        try:
            found = [row[0] for row in copy.execute("PRAGMA integrity_check(1)")]
        except apsw.InterruptError:
            return False
    if found != ["ok"]:
        raise SpoolCorrupt(
            f"{name}: the copy of it is damaged ({found[0]}), so the spool may be, too;"
            " run 'mailstrom store check'"
        )
    return True


def opened_copy(path: str, opened: contextlib.ExitStack) -> apsw.Connection:
    """The copy, which nobody else knows: no shared memory, and in the end no WAL."""
    copy = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    opened.callback(_end, os.getpid(), copy, copy.close)
    copy.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    return copy


def _end(pid: int, thing: object, close: Callable[[], object]) -> None:
    """Close what is open; in a child that a signal handler forked, it is the parent's."""
    if pid == os.getpid():
        close()
    else:
        abandon(thing)


class _Temporary:
    """The file that becomes the copy, locked as long as somebody works on it.

    Args:
        target: path of the copy.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        folder = _folder(target)
        with _system_errors(target):
            mode = 0o660 if os.stat(folder).st_mode & stat.S_ISGID else 0o600
            self.path, fd = _made(target, folder)
            self._fd: int | None = fd
            _making.add(self)
            try:
                os.fchmod(fd, mode)
            except BaseException:
                self.end()
                raise

    def _descriptor(self) -> int:
        if self._fd is None:
            raise SpoolError(f"{self._target}: the copy belongs to the parent of this process")
        return self._fd

    def sync(self) -> None:
        """Make what is written durable."""
        with _system_errors(self._target):
            os.fsync(self._descriptor())

    def give_name(self) -> None:
        """Give the copy its name unless somebody else took it meanwhile.

        The descriptor is closed before: nobody can have the spool open yet who would lose its locks
        by that.
        """
        self._descriptor()
        self._let_go()
        with _system_errors(self._target):
            try:
                os.link(self.path, self._target)
            except OSError as error:
                if error.errno not in _UNLINKABLE:
                    raise
                _replace(self.path, self._target)
            try:
                _sync_folder(_folder(self._target))
            except OSError:
                os.unlink(self._target)
                raise

    def end(self) -> None:
        """Delete the temporary name, unless this is a forked child: then it is the parent's."""
        if self in _making:
            _making.discard(self)
            _remove(self.path)
            self._let_go()

    def _let_go(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


_making: weakref.WeakSet[_Temporary] = weakref.WeakSet()


def _after_in_child() -> None:
    for temporary in list(_making):
        _making.discard(temporary)
        temporary._let_go()


os.register_at_fork(after_in_child=_after_in_child)


def _folder(target: str) -> str:
    return os.path.dirname(os.path.abspath(target))


def _made(target: str, folder: str) -> tuple[str, int]:
    """A new file beside the target, and its descriptor, which holds the lock."""
    while True:
        path = os.path.join(folder, f".{os.path.basename(target)}.copy-{os.urandom(8).hex()}")
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(fd).st_nlink > 0
        except BlockingIOError:
            free = False
        except OSError:  # no locks here: then nobody deletes it, either
            free = True
        if free:
            return path, fd
        os.close(fd)  # taken for a dead one before it was locked


def sweep(target: str) -> None:
    """Delete what makers of this copy left that were killed."""
    folder = _folder(target)
    ours = re.compile(re.escape(f".{os.path.basename(target)}.copy-") + "[0-9a-f]{16}")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if ours.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove_dead(os.path.join(folder, name))


def _remove_dead(path: str) -> None:
    """Delete a temporary file unless somebody works on it."""
    if os.stat(path, follow_symlinks=False).st_nlink > 1:
        # It got its name, and may be in use under it: to open and close it would drop locks.
        os.unlink(path)
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    for each in (path, *(path + end for end in COMPANIONS)):
        with contextlib.suppress(OSError):
            os.unlink(each)


def _replace(temporary: str, target: str) -> None:
    """Take the name with an empty file and put the copy in its place."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        os.replace(temporary, target)
    except OSError:
        os.unlink(target)
        raise


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _system_errors(target: str) -> Iterator[None]:
    """What the operating system refused, in the words of the store."""
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, SpoolError)
        raise kind(
            f"{target}: the copy cannot be written ({error.strerror}); nothing is left of it"
        ) from error
