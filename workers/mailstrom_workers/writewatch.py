"""A bell that rings when a file is written to: Linux's inotify(7), armed for one ring at a time.

So an engine at rest is woken by the commit that gives it work, and costs nothing meanwhile. It is a
hint and no more: a write may go unseen (another kernel behind a shared file system), so a watch is
relied on only once it rang, and whoever sleeps on it looks now and then all the same. Where there
is no inotify, or the user has no watch left, ``WriteWatch.open`` gives None.

Must not know: what is in the file, who waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable

_MODIFY = 0x2
_ONESHOT = 1 << 31
_EVENTS = 4096  # octets that hold all events of one watch


class WriteWatch:
    """An inotify instance, read by an event loop. Use ``open``.

    Args:
        loop: reads it.
        rung: called on the loop after a ring.
        fd: the instance.
        add: ``inotify_add_watch``.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rung: Callable[[], None],
        fd: int,
        add: Callable[[int, bytes, ctypes.c_uint32], int],
    ) -> None:
        self._loop = loop
        self._rung = rung
        self._fd = fd
        self._add = add
        self._proved = False
        loop.add_reader(fd, self._read)

    @classmethod
    def open(cls, loop: asyncio.AbstractEventLoop, rung: Callable[[], None]) -> WriteWatch | None:
        """A watch on nothing yet, or None where there is no such thing; called on the loop."""
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return None
        if fd < 0:
            return None
        return cls(loop, rung, fd, libc.inotify_add_watch)

    def arm(self, path: str) -> bool:
        """Ring once at the next write to the file; from any thread.

        Returns:
            Whether that may be relied on: it is armed, and a watch of this kind rang before.
        """
        fd = self._fd
        armed = (
            fd >= 0 and self._add(fd, os.fsencode(path), ctypes.c_uint32(_MODIFY | _ONESHOT)) >= 0
        )
        return armed and self._proved

    def close(self) -> None:
        """Ring no more; on the loop, idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, _EVENTS)
        self._proved = True
        self._rung()
