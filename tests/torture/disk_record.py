"""Writes down what a process asks of the files in one folder, as steps of a ``disk_image`` journal.

Contract. Within ``recording(folder)`` every connection that the process opens goes through the
watched VFS, and the calls of ``os`` that the product uses on files beside (fsync of a file or of
the folder, link, rename, unlink, writing by a descriptor, also at a place of it) through this
module. ``steps`` grows in the order in which things happened; ``between`` is called just before a
write or a sync, so that somebody else can do something at that very moment; what it raises, a step
of SQLite fails with. A sync covers what was written before it began; ``drop`` writes down that one
fails.

SQLite syncs the directory with the first sync of a rollback journal that it made (os_unix.c); no
VFS can see that, so it is written down here. Nobody may write through a descriptor whose file got
another name meanwhile: steps find their file by its name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import apsw

from tests.torture.disk_image import Step
from tests.torture.inject.torture_vfs import Op, kind_of, watched


def _nobody(_op: Op) -> None:
    return None


class Recorder:
    """The journal of one folder.

    Args:
        folder: absolute path; what is in it now is taken as durable (``base``).
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.between: Callable[[Op], object] = _nobody
        self.piece = 1 << 30  # what one call of os.pwrite takes at most
        self.base: dict[str, bytes] = {}
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not name.endswith("-shm"):
                with open(path, "rb") as stream:
                    self.base[name] = stream.read()
        self._inodes = {name: number for number, name in enumerate(self.base, 1)}
        self._newest = len(self._inodes)
        self._began: dict[int, int] = {}
        self._unnamed: set[str] = set()  # journals whose first sync is one of the folder, too

    def _name(self, path: str) -> str | None:
        folder, name = os.path.split(os.path.abspath(path))
        return name if folder == self.folder and not name.endswith("-shm") else None

    def _add(self, what: str, name: str = "", **more: Any) -> None:
        more.setdefault("inode", self._inodes.get(name, 0))
        self.steps.append(Step(what, name, **more))

    def _create(self, name: str) -> None:
        if name not in self._inodes:
            self._newest += 1
            self._inodes[name] = self._newest
            self._add("create", name)

    def drop(self, op: Op) -> None:
        """This sync, which was about to begin, fails: what waited for it is on no disk."""
        name = self._name(op.path)
        assert name is not None
        assert op.name == "sync"
        self._began.pop(id(op), None)
        self._add("drop", name, since=len(self.steps))

    # --- SQLite -----------------------------------------------------------------------------

    def before(self, op: Op) -> None:
        """A step of SQLite, or our own sync of the -wal file, is about to be taken."""
        if self._name(op.path) is None:
            return
        if op.name == "sync":
            self._began[id(op)] = len(self.steps)
        if op.name in ("sync", "write", "truncate"):
            self.between(op)

    def after(self, op: Op) -> None:
        """It was taken."""
        name = self._name(op.path)
        if name is None:
            return
        match op.name:
            case "open" if op.flags & apsw.SQLITE_OPEN_CREATE and os.path.exists(op.path):
                if op.kind == "journal":
                    self._unnamed.add(name)
                self._create(name)
            case "write":
                assert op.data is not None
                self._add("write", name, offset=op.offset, data=op.data)
            case "truncate":
                self._add("truncate", name, offset=op.offset)
            case "sync":
                began = self._began.pop(id(op))
                self._add("sync", name, since=began)
                if name in self._unnamed:
                    self._unnamed.discard(name)
                    self._add("sync_names", since=began)
            case "delete":
                self._gone(name)
                if op.flags:
                    self._add("sync_names", since=len(self.steps))

    def _gone(self, name: str) -> None:
        if name in self._inodes:
            self._add("unlink", name)
            del self._inodes[name]

    # --- files beside it --------------------------------------------------------------------

    def patched(self) -> dict[str, Callable[..., Any]]:
        """The calls of ``os`` to be replaced, by name."""
        real = {name: getattr(os, name) for name in (
            "open", "write", "pwrite", "fsync", "link", "rename", "replace", "unlink",
        )}  # fmt: skip

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            fd: int = real["open"](path, flags, *rest, **more)
            if flags & os.O_CREAT and (name := self._name(os.fspath(path))):
                self._create(name)
            return fd

        def write(fd: int, data: Any) -> int:
            done: int = real["write"](fd, data)
            if name := self._name(os.readlink(f"/proc/self/fd/{fd}")):
                offset = os.lseek(fd, 0, os.SEEK_CUR) - done
                self._add("write", name, offset=offset, data=bytes(data)[:done])
            return done

        def pwrite(fd: int, data: Any, offset: int) -> int:
            path = os.readlink(f"/proc/self/fd/{fd}")
            name = self._name(path)
            if name is None:
                return int(real["pwrite"](fd, data, offset))
            self.between(Op("write", path, kind_of(path), offset, bytes(data)))
            done = int(real["pwrite"](fd, data[: self.piece], offset))
            self._add("write", name, offset=offset, data=bytes(data[:done]))
            return done

        def fsync(fd: int) -> None:
            path, began = os.readlink(f"/proc/self/fd/{fd}"), len(self.steps)
            real["fsync"](fd)
            if path == self.folder:
                self._add("sync_names", since=began)
            elif name := self._name(path):
                self._add("sync", name, since=began)

        def link(one: Any, other: Any, **more: Any) -> None:
            real["link"](one, other, **more)
            old, new = self._name(os.fspath(one)), self._name(os.fspath(other))
            if old and new:
                self._inodes[new] = self._inodes[old]
                self._add("create", new)

        def move(call: str) -> Callable[..., None]:
            def moved(one: Any, other: Any, **more: Any) -> None:
                real[call](one, other, **more)
                old, new = self._name(os.fspath(one)), self._name(os.fspath(other))
                if old in self._inodes and new:
                    inode = self._inodes.pop(old)
                    self._inodes[new] = inode
                    self._add("rename", old, inode=inode, to=new)

            return moved

        def unlink(path: Any, **more: Any) -> None:
            real["unlink"](path, **more)
            if name := self._name(os.fspath(path)):
                self._gone(name)

        return {
            "open": opened, "write": write, "pwrite": pwrite, "fsync": fsync, "link": link,
            "rename": move("rename"), "replace": move("replace"), "unlink": unlink,
        }  # fmt: skip


@contextlib.contextmanager
def recording(folder: str) -> Iterator[Recorder]:
    """Write down everything in a folder. Every connection must be closed before the end."""
    recorder = Recorder(folder)
    patches = recorder.patched()
    real = {name: getattr(os, name) for name in patches}
    with watched(before=recorder.before, after=recorder.after):
        for name, call in patches.items():
            setattr(os, name, call)
        try:
            yield recorder
        finally:
            for name, call in real.items():
                setattr(os, name, call)
