"""Sessions of processes that end with us, even where we are killed and run no more.

Contract. ``hold`` names a process that leads a session of its own (``start_new_session``),
``let_go`` says that it was ended. A small process watches a pipe of ours: when its last writer is
gone, by whatever signal, it kills the groups that are still held. A number that was given to
another process meanwhile is not hit. Linux.
"""

from __future__ import annotations

import os
import sys
import threading

_GUARD = """
import os, signal, sys

def started(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[19]
    except OSError:
        return None

held = {}
for line in sys.stdin:
    word, pid = line.split()
    if word == "hold":
        held[int(pid)] = started(pid)
    else:
        held.pop(int(pid), None)
for pid, start in held.items():
    if started(pid) in (start, None):  # while a group has members its number is nobody else's
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass
"""


class _Guard:
    """The watching process, started with the first session, and started by nobody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: int | None = None
        self._pid = 0

    def tell(self, word: str, pid: int) -> None:
        """Write a line to it."""
        with self._lock:
            if self._pipe is None or self._pid != os.getpid():
                self._start()
            assert self._pipe is not None
            os.write(self._pipe, f"{word} {pid}\n".encode())

    def _start(self) -> None:
        ours, self._pid = os.pipe(), os.getpid()
        self._pipe = ours[1]
        argv = [sys.executable, "-I", "-S", "-c", _GUARD]
        actions = [(os.POSIX_SPAWN_DUP2, ours[0], 0)]
        os.posix_spawn(sys.executable, argv, {}, file_actions=actions, setsid=True)
        os.close(ours[0])


_guard = _Guard()


def hold(pid: int) -> None:
    """Have this session killed when we are gone."""
    _guard.tell("hold", pid)


def let_go(pid: int) -> None:
    """It has ended."""
    _guard.tell("ended", pid)
