"""A VFS between SQLite and the operating system that asks before, and tells after, each operation.

Registered as the default, it is under every connection that the process opens, unknown to the
product. Shared memory (-shm) goes past it, as it goes past a disk. The sync of the -wal file that
the product makes itself (``durable.system_sync``) is an ``os.fdatasync``: ``watch_sync`` puts it
through the same two calls.

What ``before`` raises the operation fails with: ``fault()`` makes the exception. Used from child
processes by ``sitecustomize`` and inside tests by import; knows no kind of fault itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apsw


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on one file.

    Args:
        name: open, read, write, truncate, sync, lock, unlock, size, delete, access or close.
        path: the file; empty for an unnamed temporary one.
        kind: db, wal, journal or temp.
        offset: for read and write; the new size for truncate; the level for lock.
        data: for write (None before a read).
        flags: SQLite's, for open and sync.
    """

    name: str
    path: str
    kind: str
    offset: int = 0
    data: bytes | None = None
    flags: int = 0


Watch = Callable[[Op], object]


def kind_of(path: str) -> str:
    """Which of a database's files this is."""
    if not path:
        return "temp"
    return "wal" if path.endswith("-wal") else "journal" if path.endswith("-journal") else "db"


def fault(name: str, *, full: bool = False) -> apsw.Error:
    """The exception by which an operation of this name fails as a broken (or full) disk would."""
    if full:
        return apsw.FullError("injected: disk full")
    codes = {
        "read": apsw.SQLITE_IOERR_READ, "write": apsw.SQLITE_IOERR_WRITE,
        "truncate": apsw.SQLITE_IOERR_TRUNCATE, "sync": apsw.SQLITE_IOERR_FSYNC,
        "lock": apsw.SQLITE_IOERR_LOCK, "unlock": apsw.SQLITE_IOERR_UNLOCK,
        "size": apsw.SQLITE_IOERR_FSTAT, "delete": apsw.SQLITE_IOERR_DELETE,
        "access": apsw.SQLITE_IOERR_ACCESS, "close": apsw.SQLITE_IOERR_CLOSE,
    }  # fmt: skip
    if name == "open":
        return apsw.CantOpenError("injected: cannot open")
    error = apsw.IOError(f"injected: {name}")
    error.extendedresult = codes[name]
    return error


class WatchedFile(apsw.VFSFile):
    """One open file."""

    def __init__(self, vfs: WatchedVFS, name: Any, flags: list[int]) -> None:
        self._vfs = vfs
        text = name.filename() if isinstance(name, apsw.URIFilename) else (name or "")
        self.path = os.path.abspath(text) if text else ""
        self.kind = kind_of(self.path)
        op = Op("open", self.path, self.kind, flags=flags[0])
        vfs.before(op)
        super().__init__(vfs.base, name, flags)
        vfs.after(op)

    def _through(self, op: Op, call: Callable[[], Any]) -> Any:
        self._vfs.before(op)
        result = call()
        self._vfs.after(op)
        return result

    def xRead(self, amount: int, offset: int) -> bytes:
        op = Op("read", self.path, self.kind, offset)
        return bytes(self._through(op, lambda: super(WatchedFile, self).xRead(amount, offset)))

    def xWrite(self, data: Any, offset: int) -> None:
        op = Op("write", self.path, self.kind, offset, bytes(data))
        self._through(op, lambda: super(WatchedFile, self).xWrite(data, offset))

    def xTruncate(self, size: int) -> None:
        op = Op("truncate", self.path, self.kind, size)
        self._through(op, lambda: super(WatchedFile, self).xTruncate(size))

    def xSync(self, flags: int) -> None:
        op = Op("sync", self.path, self.kind, flags=flags)
        self._through(op, lambda: super(WatchedFile, self).xSync(flags))

    def xLock(self, level: int) -> None:
        op = Op("lock", self.path, self.kind, level)
        self._through(op, lambda: super(WatchedFile, self).xLock(level))

    def xUnlock(self, level: int) -> None:
        op = Op("unlock", self.path, self.kind, level)
        self._through(op, lambda: super(WatchedFile, self).xUnlock(level))

    def xFileSize(self) -> int:
        op = Op("size", self.path, self.kind)
        return int(self._through(op, lambda: super(WatchedFile, self).xFileSize()))

    def xClose(self) -> None:
        op = Op("close", self.path, self.kind)
        self._through(op, lambda: super(WatchedFile, self).xClose())


def _nothing(_op: Op) -> None:
    return None


class WatchedVFS(apsw.VFS):
    """The default VFS while it is registered.

    Args:
        before: called before each operation; what it raises, the operation fails with.
        after: called after each operation that succeeded.
    """

    def __init__(
        self, *, before: Watch = _nothing, after: Watch = _nothing, name: str = "watched"
    ) -> None:
        self.before, self.after = before, after
        self.base = apsw.vfs_names()[0]  # SQLite's own default
        super().__init__(name, self.base, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> WatchedFile:
        return WatchedFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        op = Op("delete", filename, kind_of(filename), flags=int(syncdir))
        self.before(op)
        super().xDelete(filename, syncdir)
        self.after(op)


def watch_sync(vfs: WatchedVFS) -> Callable[[], None]:
    """Put ``os.fdatasync`` through the same calls; returns what puts it back.

    The caller's file is told from its descriptor (Linux). What ``before`` raises comes out as the
    ``OSError`` that a kernel gives.
    """
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        op = Op("sync", path, kind_of(path))
        try:
            vfs.before(op)
        except apsw.Error as error:
            raise OSError(5, str(error), path) from error
        real(fd)
        vfs.after(op)

    os.fdatasync = fdatasync

    def back() -> None:
        os.fdatasync = real

    return back


@contextlib.contextmanager
def watched(*, before: Watch = _nothing, after: Watch = _nothing) -> Iterator[WatchedVFS]:
    """Within a test: the VFS under every connection opened here, and our own syncs with it.

    Every connection must be closed before the end.
    """
    vfs = WatchedVFS(before=before, after=after)
    back = watch_sync(vfs)
    try:
        yield vfs
    finally:
        back()
        vfs.unregister()
