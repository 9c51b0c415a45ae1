"""The n-th operation of a kind fails, once or from then on, as a broken disk makes it fail.

Three layers, told apart by the name of the operation, because each sees what the others do not:

* ``write``, ``sync``, ``open``, ... : SQLite's file layer (``torture_vfs``), our own sync included;
* ``call:fcntl``, ``call:mmap``, ... : SQLite's system calls, so locks and shared memory as well;
* ``os:open``, ``os:fsync``, ... : what the product asks of the system by itself (flag, directory).

And ``heap``: SQLite may have only ``n`` pieces of 2 KiB more than it has (SQLITE_NOMEM).

Settings of a process: those of ``Fault``, and

    token: a file that is made when the fault first fires (its pid in it); only one process of a
        family gets to make it, so the fault is in ONE process;
    module: only in processes whose command line has this word (empty: all).

A failed sync says nothing about which pages are gone. ``style`` "after" performs a write and then
fails; "half" performs half of one (-wal only). Nothing here knows what the product should do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apsw
from torture_vfs import Op, WatchedVFS, fault, watch_sync

_SPECIAL: dict[str, type[apsw.Error]] = {
    "NOMEM": apsw.NoMemError,
    "PROTOCOL": apsw.ProtocolError,
    "FULL": apsw.FullError,
    "CORRUPT": apsw.CorruptError,
}
_EXTENDED = {
    "BUSY": (apsw.BusyError, apsw.SQLITE_BUSY),
    "BUSY_RECOVERY": (apsw.BusyError, apsw.SQLITE_BUSY_RECOVERY),
    "BUSY_SNAPSHOT": (apsw.BusyError, apsw.SQLITE_BUSY_SNAPSHOT),
    "SHORT_READ": (apsw.IOError, apsw.SQLITE_IOERR_SHORT_READ),
}
OS_CALLS = (
    "open", "stat", "fsync", "write", "unlink", "mkdir", "chmod", "fchmod", "statvfs", "link",
    "symlink", "rename", "replace",
)  # fmt: skip
_C_CALLS: dict[str, tuple[Any, ...]] = {
    # result, arguments, what a failure returns
    "fcntl": (ctypes.c_int, (ctypes.c_int, ctypes.c_int, ctypes.c_void_p), -1),
    "mmap": (
        ctypes.c_void_p,
        (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long),
        ctypes.c_void_p(-1).value,
    ),
    "ftruncate": (ctypes.c_int, (ctypes.c_int, ctypes.c_long), -1),
    "pread64": (
        ctypes.c_ssize_t,
        (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long),
        -1,
    ),
    "pwrite64": (
        ctypes.c_ssize_t,
        (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long),
        -1,
    ),
    "open": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_int, ctypes.c_int), -1),
    "fstat": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p), -1),
    "stat": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_void_p), -1),
}
HEAP_STEP = 2_048
_DESCRIPTOR_OF = {"mmap": 4, "fcntl": 0, "ftruncate": 0, "pread64": 0, "pwrite64": 0, "fstat": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What fails.

    Args:
        op: the operation, with its layer as in the head of this module.
        file: db, wal, shm, journal, temp, flag, folder, other; empty: any.
        n: the first that fails, from 1.
        forever: all later ones, too.
        error: name of an errno, or one of SQLite's: NOMEM PROTOCOL FULL BUSY ...
        style: before, half or after: how much of a write is done.
    """

    op: str
    file: str = ""
    n: int = 1
    forever: bool = False
    error: str = "EIO"
    style: str = "before"


_real_stat, _UNLOCK = os.stat, fcntl.F_UNLCK


def _is_directory(path: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISDIR(_real_stat(path).st_mode)
    return False


def file_kind(path: str) -> str:
    """Which of a spool's files this is, shared memory and the flag included."""
    name = path.removesuffix(" (deleted)")
    for ending, kind in (("-wal", "wal"), ("-shm", "shm"), ("-journal", "journal")):
        if name.endswith(ending):
            return kind
    if "-run/poisoned" in name:
        return "flag"
    if name.endswith("-run") or _is_directory(name):
        return "folder"
    if name.endswith(".db") or ".copy-" in name:
        return "db"
    return "other" if name else "temp"


class Fuse:
    """Counts what matches and says when to fail.

    Args:
        first: called when a fault fires for the first time; False lets it pass after all.
    """

    def __init__(self, first: Callable[[], bool] = lambda: True) -> None:
        self._first = first
        self._fault: Fault | None = None
        self._count = 0
        self.fired = 0
        self.calls: SystemCalls | None = None

    def arm(self, fault: Fault) -> None:
        """From now on."""
        self._fault, self._count, self.fired = fault, 0, 0
        if fault.op == "heap":
            apsw.hard_heap_limit(apsw.memory_used() + fault.n * HEAP_STEP)
        if self.calls is not None and fault.op.startswith("call:"):
            self.calls.change(fault.op.removeprefix("call:"))

    def disarm(self) -> int:
        """No longer; how often it fired."""
        if self._fault is not None and self._fault.op == "heap":
            apsw.hard_heap_limit(0)
        self._fault = None
        if self.calls is not None:
            self.calls.restore()
        return self.fired

    def hit(self, op: str, kind: str, style: str = "") -> Fault | None:
        """The fault, if this operation is to fail now."""
        armed = self._fault
        if armed is None or op != armed.op or (armed.file and kind != armed.file):
            return None
        if style and (armed.style == "after") != (style == "after"):
            return None
        self._count += 1
        if self._count < armed.n or (self._count > armed.n and not armed.forever):
            return None
        if not self.fired and not self._first():
            self._fault = None
            return None
        self.fired += 1
        return armed


def error_of(armed: Fault, op: Op) -> BaseException:
    """What the file layer raises: SQLite's error, or the kernel's where the call is our own."""
    if op.name == "sync" and op.flags == 0:
        number = int(getattr(errno, armed.error, errno.EIO))
        return OSError(number, f"injected: {os.strerror(number)}", op.path)
    if armed.error in _SPECIAL:
        return _SPECIAL[armed.error](f"injected: {armed.error}")
    if armed.error in _EXTENDED:
        kind, code = _EXTENDED[armed.error]
        error = kind(f"injected: {armed.error}")
        error.extendedresult = code
        return error
    # SQLite tells a full disk only where it writes; a sync that finds no room is an I/O error.
    return fault(op.name, full=op.name == "write" and armed.error in ("ENOSPC", "EDQUOT"))


def half_write(op: Op) -> None:
    """The first half of a write to the -wal file, which no lock of SQLite's depends on."""
    if op.kind != "wal" or op.data is None:
        return
    fd = os.open(op.path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, op.data[: len(op.data) // 2], op.offset)
    finally:
        os.close(fd)


class SystemCalls:
    """SQLite's system calls; the one that a fault is armed for goes through the fuse.

    One at a time and only while it is armed: such a call must not come while an exception of the
    file layer is under way, which is how the other faults work.
    """

    def __init__(self, fuse: Fuse) -> None:
        self._vfs = apsw.VFS(f"calls-{id(self)}", "unix")
        self._fuse = fuse
        self._kept: list[Any] = []  # SQLite may be inside one when it is put back
        self._changed: dict[str, int] = {}

    def change(self, name: str) -> None:
        """Put this one through the fuse."""
        address = self._vfs.xGetSystemCall(name)
        result, arguments, failure = _C_CALLS[name]
        kind = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
        real = kind(address)
        place = _DESCRIPTOR_OF.get(name)

        def call(*values: Any) -> Any:
            armed = None
            if name != "fcntl" or not _unlocks(values):
                armed = self._fuse.hit(f"call:{name}", _kind_of_call(values, place))
            if armed is not None:
                ctypes.set_errno(int(getattr(errno, armed.error, errno.EIO)))
                return failure
            return real(*values)

        pointer = kind(call)
        self._kept = [*self._kept[-8:], real, pointer]
        own = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address is not None
        assert own is not None
        self._vfs.xSetSystemCall(name, own)
        self._changed.setdefault(name, address)

    def restore(self) -> None:
        """Give SQLite the system's own again."""
        for name, address in self._changed.items():
            self._vfs.xSetSystemCall(name, address)
        self._changed.clear()

    def close(self) -> None:
        """Restore, and nothing is left."""
        self.restore()
        self._vfs.unregister()


def _unlocks(values: tuple[Any, ...]) -> bool:
    """Whether this fcntl gives a lock back, which no kernel refuses, or asks for no lock at all."""
    if values[1] not in (fcntl.F_SETLK, fcntl.F_SETLKW):
        return True
    return bool(ctypes.cast(values[2], ctypes.POINTER(ctypes.c_short))[0] == _UNLOCK)


def _kind_of_call(values: tuple[Any, ...], place: int | None) -> str:
    if place is None:
        return file_kind(os.fsdecode(values[0] or b""))
    with contextlib.suppress(OSError):
        return file_kind(os.readlink(f"/proc/self/fd/{values[place]}"))
    return "other"


def watch_system(fuse: Fuse, folder: str) -> Callable[[], None]:
    """Put ``os.open`` and the like through a fuse, for paths below a folder; returns the undo."""
    reals: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in OS_CALLS}
    readlink = os.readlink

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            if fuse._fault is not None and fuse._fault.op == f"os:{name}":
                path = readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first
                if name in ("symlink", "link", "rename", "replace"):
                    path = args[0]
                text = os.path.abspath(os.fsdecode(path))
                if text.startswith(folder):
                    armed = fuse.hit(f"os:{name}", file_kind(text))
                    if armed is not None:
                        number = int(getattr(errno, armed.error, errno.EIO))
                        raise OSError(number, f"injected: {os.strerror(number)}", text)
            return real(first, *args, **kwargs)

        return call

    for name, real in reals.items():
        setattr(os, name, wrapped(name, real))

    def back() -> None:
        for name, real in reals.items():
            setattr(os, name, real)

    return back


def watch_files(
    fuse: Fuse,
    *,
    failed: Callable[[Op], object] = lambda op: None,
    done: Callable[[Op], object] = lambda op: None,
) -> tuple[Callable[[Op], None], Callable[[Op], None]]:
    """Two calls for a ``WatchedVFS``: what was done goes to ``done``, a failure to ``failed``."""

    def before(op: Op) -> None:
        armed = fuse.hit(op.name, op.kind, "before")
        if armed is not None:
            if armed.style == "half" and op.name == "write":
                half_write(op)
            failed(op)
            raise error_of(armed, op)

    def after(op: Op) -> None:
        done(op)
        armed = fuse.hit(op.name, op.kind, "after")
        if armed is not None:
            failed(op)
            raise error_of(armed, op)

    return before, after


@contextlib.contextmanager
def faults(
    folder: str,
    *,
    failed: Callable[[Op], object] = lambda op: None,
    done: Callable[[Op], object] = lambda op: None,
) -> Iterator[Fuse]:
    """Within this process: all three layers; every connection must be closed before the end."""
    fuse = Fuse()
    before, after = watch_files(fuse, failed=failed, done=done)
    vfs = WatchedVFS(before=before, after=after, name=f"errors-{id(fuse)}")
    undo = [watch_sync(vfs), watch_system(fuse, folder)]
    calls = fuse.calls = SystemCalls(fuse)
    try:
        yield fuse
    finally:
        calls.close()
        for back in reversed(undo):
            back()
        vfs.unregister()


_armed: list[object] = []  # for the life of a child process


def arm(settings: dict[str, Any]) -> None:
    """Arm one fault in this process, if it is the one that is meant."""
    if settings.get("module", "") not in " ".join(sys.orig_argv):
        return
    token = str(settings["token"])

    def first() -> bool:
        try:
            with open(token, "x", encoding="ascii") as stream:
                stream.write(f"{os.getpid()}\n")
        except FileExistsError:
            return False
        return True

    fuse = Fuse(first)
    wanted = {name: settings[name] for name in Fault.__slots__ if name in settings}
    before, after = watch_files(fuse)
    vfs = WatchedVFS(before=before, after=after)
    fuse.calls = SystemCalls(fuse)
    _armed.extend([fuse, vfs, watch_sync(vfs)])
    _armed.append(watch_system(fuse, str(settings["folder"])))
    fuse.arm(Fault(**wanted))
