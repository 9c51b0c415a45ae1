"""What a disk durably holds of a spool, when a failed sync drops what was not on it yet.

A failed ``fdatasync`` does not say which pages are lost; Linux marks them clean, so the next sync
succeeds without them, while readers still find them in the page cache. ``Disk`` keeps, beside the
real files, what would be left after a power cut:

* a write waits until a sync of its file succeeds;
* a failed sync drops the data of what waits: nothing but the length of the file survives;
* what is written again after that waits again, so only writing it anew can bring it back.

Fed by the file layer (``torture_vfs.Op``) and by ``os.pwrite`` on the -wal. An image may keep any
part of what still waits, in pieces of 512 bytes. Not modelled: directory entries (the power cuts'
part has them), and pages that vanish from the cache of the running system as well.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.errors_inject import Op

PIECE = 512


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)


def _apply(held: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:  # a truncation, or a length alone
        if len(held) > offset:
            del held[offset:]
        else:
            held.extend(bytes(offset - len(held)))
        return
    if len(held) < offset + len(data):
        held.extend(bytes(offset + len(data) - len(held)))
    held[offset : offset + len(data)] = data


class Disk:
    """The durable side of the spool's files.

    Args:
        spool: path of the database.
    """

    def __init__(self, spool: Path) -> None:
        self.spool = str(spool)
        self._files: dict[str, _File] = {}
        self.dropped = 0
        self.failures = 0
        for path in (self.spool, f"{self.spool}-wal"):
            held = bytearray(Path(path).read_bytes()) if os.path.exists(path) else bytearray()
            self._files[path] = _File(durable=held)

    def done(self, op: Op) -> None:
        """An operation that succeeded."""
        file = self._files.get(op.path)
        if file is None:
            return
        if op.name == "write":
            file.waiting.append((op.offset, op.data))
        elif op.name == "truncate":
            file.waiting.append((op.offset, None))
        elif op.name == "sync":
            for offset, data in file.waiting:
                _apply(file.durable, offset, data)
            file.waiting.clear()

    def failed(self, op: Op) -> None:
        """An operation that failed; a sync takes the data of all that waited with it."""
        file = self._files.get(op.path)
        if file is None or op.name != "sync":
            return
        self.failures += 1
        self.dropped += sum(data is not None for _, data in file.waiting)
        length = len(file.durable)
        for offset, data in file.waiting:
            length = offset if data is None else max(length, offset + len(data))
            if data is None:
                _apply(file.durable, min(length, len(file.durable)), None)
        _apply(file.durable, length, None)
        file.waiting.clear()

    def image(self, folder: Path, dice: random.Random) -> Path:
        """Write what a power cut now leaves into ``folder``; its database."""
        copy = folder / os.path.basename(self.spool)
        keep = dice.choice((0.0, 0.5, 1.0))
        for path, file in self._files.items():
            held = bytearray(file.durable)
            for offset, data in file.waiting:
                if data is None:
                    if dice.random() < keep:
                        _apply(held, offset, None)
                    continue
                for start in range(0, len(data), PIECE):
                    if dice.random() < keep:
                        _apply(held, offset + start, data[start : start + PIECE])
            Path(path.replace(self.spool, str(copy))).write_bytes(held)
        return copy

    def watch_pwrite(self) -> Callable[[], None]:
        """Learn of what the product writes to the -wal by itself; returns the undoing."""
        real = os.pwrite

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            written = real(fd, data, offset)
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path in self._files:
                self._files[path].waiting.append((offset, bytes(data[:written])))
            return written

        os.pwrite = pwrite

        def back() -> None:
            os.pwrite = real

        return back
