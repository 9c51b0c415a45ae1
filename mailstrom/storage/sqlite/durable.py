"""The durable commit: sync the -wal file after the write lock is free, before anyone is told.

A commit under ``synchronous=NORMAL`` holds the lock for microseconds and leaves its frames in the
page cache; ``fdatasync`` of the -wal file then makes every frame written so far durable. Sound
because frames are checksummed in order, a checkpoint syncs WAL and database before the WAL starts
again, and PERSIST_WAL keeps the file from being deleted.

The descriptor is kept open: Linux reports a failed write-back once per descriptor, so a fresh one
could miss it. It is compared with the path by inode before it is relied on: another inode means
that the spool was replaced under us, and nothing is acknowledged.

A sync error poisons the spool for every process (``poison``) until the engine has written the WAL
anew, emptied it and synced afresh.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from mailstrom import interrupts
from mailstrom.errors import SpoolError, SpoolReadOnly, SpoolReplaced
from mailstrom.storage.sqlite import frames, poison
from mailstrom.storage.sqlite.connection import advice, read_only_sentence
from mailstrom.storage.sqlite.poison import Mark, poison_path, run_directory
from mailstrom.storage.sqlite.unchanged import Look, look, steady

__all__ = ["Sync", "WalSync", "poison_path", "run_directory", "system_sync"]

Sync = Callable[[int], None]


def system_sync(fd: int) -> None:
    """``fdatasync`` where there is one; ``F_FULLFSYNC`` where a plain sync stops at the drive."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
        return
    import fcntl

    fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]


class LocksLost(SpoolReplaced):
    """The -shm file is another one: what was written may be in the spool, or be overwritten."""


class WalSync:
    """Keeps a descriptor on the -wal file and makes commits durable.

    Args:
        path: the database file.
        sync: the system's sync; tests record it or make it fail.
    """

    def __init__(self, path: str, sync: Sync = system_sync) -> None:
        self._path = path
        self._wal = f"{path}-wal"
        self._shm = f"{path}-shm"
        self._sync = sync
        self._fd: int | None = None
        self._files: tuple[int, ...] = ()
        self._folder = os.path.dirname(path) or "."
        self._seen: Look | None = None  # the directory, when its files were ours
        self._known = frames.Known()  # of the log, by the repairs so far
        self._pid = os.getpid()

    def __call__(self) -> None:
        """Make every commit so far durable; before the commit it is for, ``check`` was asked.

        Where the files cannot be looked at, so that it is not even tried, all stop as if it had
        failed: otherwise somebody would be told of the commit, from memory, and a power cut would
        take it back. The repair makes it durable. A flag that is there already may be about to go
        with a repair that began before the commit, so it is raised anew.

        Raises:
            SpoolError: the disk refused, or the spool is poisoned; nothing committed since the
                last success may be acknowledged.
        """
        try:
            fd = self._descriptor()
        except SpoolReplaced:
            raise
        except SpoolError as error:
            if interrupts.raised(error):
                raise
            if self._fd is not None and isinstance(error.__cause__, OSError):
                self.poison(error.__cause__)
            raise
        try:
            self._sync(fd)
        except OSError as error:
            if interrupts.raised(error):
                raise
            self.poison(error)
            raise SpoolError(
                f"{self._path}: the disk did not confirm a write ({error}); acknowledgements stop"
                " until the engine has repaired the spool"
            ) from error
        self.check()  # another process's failure, even during our sync, may have hit our frames

    def check(self) -> None:
        """Raise if the spool is poisoned."""
        fd = self._fd
        if fd is not None and poison.calm(self._path, fd):
            return
        poison.check(self._path)
        if fd is None:
            return
        try:
            poison.check_others(self._path, fd)
        except OSError as error:
            if error.errno != errno.EBADF or self._fd == fd:
                raise
            self.check()  # who only reads asks from any thread, and it was closed, or is another

    def poison(self, error: OSError) -> None:
        """Raise the flag for every process; until it can be written, this one remembers."""
        poison.poison(self._path, error)

    def begin_repair(self) -> Mark:
        """What is wrong now; ``heal`` ends that and nothing that comes after it.

        The log is proved here, before the write lock is taken, so that ``rewrite`` is quick. What
        is wrong with it counts there, where nobody writes meanwhile.
        """
        begun = poison.mark(self._path)
        with contextlib.suppress(SpoolError, OSError):
            frames.prove(self._path, self._descriptor(), self._known)
        return begun

    def heal(self, begun: Mark) -> bool:
        """Take the flag away; only after the WAL was emptied and a fresh sync has succeeded.

        Returns:
            False where it cannot be taken away, or the disk failed again since.
        """
        return poison.clear(self._path, begun)

    def rewrite(self) -> None:
        """Write the -wal file anew, byte for byte, and sync it; the caller has the write lock.

        What a failed sync dropped is in the page cache still and nowhere else, and no later sync
        writes it. Until it is on the disk again no page may be moved to the database: a power cut
        would replay the frames before the gap over pages from behind it. Then every frame of it is
        to be moved, whatever was: the database may have been dropped, too (``frames.move_again``).

        Raises:
            FramesLost: it is not in the page cache, either: nothing is synced, and no page may be
                moved.
            SpoolError: nobody can tell, or it grew by too much since ``begin_repair``.
            OSError: the file can be neither read nor written.
        """
        fd = self._descriptor()
        for place, data in frames.proved(self._path, fd, self._known):
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], place + written)
        self._sync(fd)
        frames.move_again(self._path)

    def fresh(self) -> None:
        """Sync the -wal file regardless of the flag, and its directory; part of a repair."""
        self.bind()
        self._sync(self._descriptor())

    def bind(self) -> None:
        """Take the descriptor of the -wal that a connection opened just now writes to.

        Raises:
            SpoolError: it cannot be opened (no descriptors left, say); that poisons nobody.
        """
        self.close()
        self._pid = os.getpid()
        try:
            self._fd = os.open(self._wal, os.O_RDWR | os.O_CLOEXEC)
            poison.bind(self._path, self._fd)
            self._files = self._identity()
            self._seen = None
            # The -wal file may be new: its directory entry must survive, too.
            directory = os.open(os.path.dirname(os.path.abspath(self._wal)), os.O_RDONLY)
            try:
                os.fsync(directory)
            except OSError as error:
                self.poison(error)
                raise
            finally:
                os.close(directory)
        except OSError as error:
            self.close()
            if error.errno in (errno.EACCES, errno.EROFS):
                doing = f"{self._wal}: {error.strerror}"
                raise SpoolReadOnly(read_only_sentence(self._path, doing)) from error
            raise SpoolError(
                f"{self._wal}: cannot be opened for writing: {error.strerror}{advice(error)}"
            ) from error

    def verify(self) -> None:
        """Raise unless the files are those that our connection has open.

        While a connection is open nothing of ours deletes or renews the -wal file; a changed inode
        means that somebody replaced the spool, and that our commits go to files without a name.

        Raises:
            SpoolReplaced: nothing committed here since then exists for anybody else.
        """
        if self._fd is None:
            return
        try:
            now = look(self._folder)
            if now == self._seen:
                return
            found = self._identity()
        except FileNotFoundError:
            found = ()
        except OSError as error:
            if interrupts.raised(error):
                raise
            raise SpoolError(
                f"{self._path}: cannot be looked at ({error.strerror}), so nobody knows whether it"
                " is the same spool still; nothing is acknowledged"
            ) from error
        if found == self._files:
            self._seen = steady(now)
            return
        if found[:4] == self._files[:4]:
            raise LocksLost(
                f"{self._path}: its -shm file was deleted or replaced under this process, which"
                " shares no locks with newcomers any more; nothing is acknowledged: try again"
            )
        raise SpoolReplaced(
            f"{self._path}: the spool's files were replaced or deleted under this process;"
            " what it wrote since is not in the spool, so nothing is acknowledged"
        )

    def spool(self) -> tuple[int, ...]:
        """Device and inode of the database, as it was bound."""
        return self._files[:2]

    def log_bytes(self) -> int:
        """Length of the -wal file that we have open; ``verify`` says whether it is the spool's.

        Raises:
            SpoolError: nobody can tell.
        """
        try:
            return 0 if self._fd is None else os.fstat(self._fd).st_size
        except OSError as error:
            if interrupts.raised(error):
                raise
            raise SpoolError(f"{self._wal}: cannot be looked at ({error.strerror})") from error

    def _identity(self) -> tuple[int, ...]:
        """Device and inode of the database, its -wal and its -shm, by name; opens nothing."""
        database, wal = os.stat(self._path), os.stat(self._wal)
        found = database.st_dev, database.st_ino, wal.st_dev, wal.st_ino
        try:
            shared = os.stat(self._shm)
        except FileNotFoundError:
            return found
        return *found, shared.st_dev, shared.st_ino

    def _descriptor(self) -> int:
        if self._fd is None or self._pid != os.getpid():
            self.bind()  # in a forked child the parent's is shared, errors included
        self.verify()
        assert self._fd is not None
        return self._fd

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, None  # first: its number is another file's as soon as it is closed
        if fd is not None:
            poison.unbind(self._path, fd)
