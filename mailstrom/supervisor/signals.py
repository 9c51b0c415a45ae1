"""The supervisor's signals: counted where they come, obeyed where the loop turns.

Contract. Handlers only count; the kernel's wake-up byte makes ``wake_fd`` readable. TERM and INT
are ends; what comes within ``same_s`` of the last that counted is the same one again, since
``timeout`` and some terminals signal the process and its group. HUP is a reload. CHLD only wakes.
What was kept since the start (``early``) is counted first. Leaving ``installed`` puts mask and
dispositions back.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from mailstrom.clock import monotonic_ms
from mailstrom.supervisor.early import KEPT

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Signals:
    """Counts of signals, and a descriptor that wakes a ``poll``.

    Args:
        same_s: an end told so soon after the last that counted is no further one.
    """

    def __init__(self, same_s: float) -> None:
        self.ends = 0
        self.first_end: str | None = None
        self.reloads = 0
        self.wake_fd = -1
        self._same_s = same_s
        self._ended_s = 0.0

    def _count(self, number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            now_s = monotonic_ms() / 1000
            if not self.ends or now_s - self._ended_s >= self._same_s:
                self.first_end = self.first_end or signal.Signals(number).name
                self.ends += 1
                self._ended_s = now_s
        elif number == signal.SIGHUP:
            self.reloads += 1

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Count from here on, in the main thread."""
        self.wake_fd, write_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(write_fd, False)
        before_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._count) for number in _WATCHED}
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, KEPT)
        try:
            yield
        finally:
            # Kept before, kept again: a process that is about to exit is not ended otherwise.
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, disposition in before.items():
                signal.signal(number, disposition)
            signal.set_wakeup_fd(before_fd)
            os.close(self.wake_fd)
            os.close(write_fd)

    def drain_wakeups(self) -> None:
        """Forget the wake-up bytes; the counts say what happened."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake_fd, 4096):
                pass
