"""Asking in a process of its own, for what may hang: a disk or a file server that answers no more.

No limit of time reaches a read that the kernel does not end. So a child asks, and whoever is left
waiting leaves it behind: killed, as soon as the kernel lets it be. It keeps the standard streams
open no more, whose reader would wait for it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

_GRACE_S = 0.5
"""For a child that answered, or was killed, to be gone."""


def apart(ask: Callable[[], bytes], seconds: float) -> bytes | None:
    """What ``ask`` returns, or None where it did not end in time.

    Args:
        ask: run in a fork of this process.
        seconds: how long it may take.

    Returns:
        Empty, too, where it raised or died.
    """
    try:
        readable, writable = os.pipe()
    except OSError:
        return ask()
    try:
        pid = os.fork()
    except OSError:  # no more processes
        os.close(readable)
        os.close(writable)
        return ask()
    if pid == 0:
        _answer(ask, writable)
    os.close(writable)
    try:
        return _heard(readable, time.monotonic() + seconds)
    finally:
        os.close(readable)
        _ended(pid)


def _answer(ask: Callable[[], bytes], writable: int) -> None:
    """The child's whole life."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        answer = ask()
        with open(writable, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _heard(readable: int, until: float) -> bytes | None:
    """All that the child says; None where it did not end in time."""
    said = b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([readable], [], [], left)[0]:
            break
        data = os.read(readable, 65_536)
        if not data:
            return said
        said += data
    return None


def _ended(pid: int) -> None:
    """See that it is gone; one that the kernel keeps is waited for a moment only."""
    until = time.monotonic() + _GRACE_S
    os.kill(pid, signal.SIGKILL)  # it was not waited for yet: the number is its own
    while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
        time.sleep(0.005)
