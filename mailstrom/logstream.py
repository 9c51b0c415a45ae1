"""Whole lines to a stream, in few writes, and never waiting for a reader.

Contract. A line is written at once; or, between ``gather`` and ``at_once``, with those that follow
it shortly, in the order in which they came. One write carries at most PIPE_BUF octets, which POSIX
makes atomic on pipes: processes that share one never mix their lines. Where a pipe has no room,
lines are dropped and counted, since a pipe that nobody empties must not stop mail, or a drain. What
cannot be written (closed pipe, full disk) is dropped; a line cut short by a full disk is ended
before the next begins. An error's line waits for nothing, nor do those before it. In a forked child
nothing waits: what did is its parent's to write.

The stream's buffer is passed by: what a write refused must not stay in it for the interpreter's
end to fail on. May be used from any thread, and by what interrupts its own: a finalizer, a signal's
handler.

Must not know: events, levels' meaning, formats, event loops.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections.abc import Callable
from typing import Protocol, TextIO
from weakref import WeakSet

PIPE_BUF = 4096  # POSIX: writes up to this many bytes are atomic on Linux pipes

Later = Callable[[Callable[[], None]], object]
"""Calls what it is given soon, on the thread that calls it; an event loop's ``call_soon``, say."""


class _Raw(Protocol):
    def write(self, data: bytes, /) -> int | None: ...


class LineStream:
    """Where lines go, by the names of their levels.

    Args:
        stream: where lines go.
        dropped: told how many lines were dropped, once one could be written again.
        later: as ``gather`` takes it; None: each line at once.
    """

    def __init__(
        self, stream: TextIO, dropped: Callable[[int], None], later: Later | None = None
    ) -> None:
        self._stream = stream
        self._tell = dropped
        self._lock = threading.RLock()
        self._waiting: list[bytes] = []
        self._octets = 0
        self._due = False
        self._later: Later | None = None
        self._thread = 0
        self._dropped = 0
        self._torn = False
        self._room: select.poll | None = None
        buffer = getattr(stream, "buffer", None)
        self._raw: _Raw | None = getattr(buffer, "raw", buffer)
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
            kind = os.fstat(stream.fileno()).st_mode
            if not stat.S_ISREG(kind):
                self._room = select.poll()
                self._room.register(stream.fileno(), select.POLLOUT)
        if later is not None:
            self.gather(later)
        _streams.add(self)

    def gather(self, later: Later) -> None:
        """From now on lines of this thread wait for ``later``, or until they fill a write."""
        self._thread = threading.get_ident()
        self._later = later

    def at_once(self) -> None:
        """From now on no line waits; those that do are written."""
        self._later = None
        self.flush()

    def forked(self) -> None:
        """In a child: no loop turns for us, and the lock may be that of a thread we have not."""
        self._lock = threading.RLock()
        self._later = None
        self._waiting, self._octets, self._due = [], 0, False

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._due = False
            lost = self._write()
        if lost:
            self._tell(lost)

    def msg(self, line: bytes) -> None:
        """Take a line without its end; see the head of this file. Never raises."""
        size = len(line) + 1
        with self._lock:
            lost = self._write() if self._octets + size > PIPE_BUF else 0
            self._waiting.append(line)
            self._octets += size
            if threading.get_ident() != self._thread or not self._soon():
                lost += self._write()
        if lost:
            self._tell(lost)

    debug = info = warning = log = msg

    def error(self, line: bytes) -> None:
        """As ``msg``, and nothing waits behind it: the process may end with this line."""
        self.msg(line)
        self.flush()

    critical = error

    def _soon(self) -> bool:
        """Whether what waits is going to be written; a loop that was closed will not do it."""
        if self._later is None:
            return False
        if not self._due:
            with contextlib.suppress(RuntimeError):
                self._later(self.flush)
                self._due = True
        return self._due

    def _write(self) -> int:
        """All that waits, in one write; returns how many lines had been dropped before it."""
        if not self._waiting:
            return 0
        lines, self._waiting, self._octets = self._waiting, [], 0
        lines.append(b"")
        data = b"\n".join(lines)
        # ValueError: the stream was closed; OSError: pipe or disk
        with contextlib.suppress(OSError, ValueError):
            full = self._room is not None and not self._room.poll(0)
            if full or not self._put(data):
                self._dropped += len(lines) - 1
                return 0
            lost, self._dropped = self._dropped, 0
            return lost
        return 0

    def _put(self, data: bytes) -> bool:
        """Whether there was room: where processes share a pipe another may have taken it."""
        if self._raw is None:
            self._stream.write(data.decode("utf-8"))
            self._stream.flush()
            return True
        self._stream.flush()  # what somebody printed comes first
        if self._torn:
            data = b"\n" + data
        written = self._raw.write(data)
        if written is None:
            return False
        while written is not None and written < len(data):
            data, self._torn = data[written:], True
            written = self._raw.write(data)
        self._torn = self._torn and written is None
        return True


_streams: WeakSet[LineStream] = WeakSet()


def _after_fork_in_child() -> None:
    for stream in list(_streams):
        stream.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
