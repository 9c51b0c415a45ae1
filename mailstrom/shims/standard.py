"""Standard input and output as octets, whoever opened them.

A caller may hand on a pipe or terminal that somebody made non-blocking (it is so for all who share
it): then reading and writing wait here instead of failing.
"""

from __future__ import annotations

import os
import select

_READ = 65_536


def read_input() -> bytes:
    """What comes next on standard input; nothing at its end.

    Raises:
        OSError: it cannot be read.
    """
    while True:
        try:
            return os.read(0, _READ)
        except BlockingIOError:
            select.select([0], [], [])


def write_output(octets: bytes) -> None:
    """All of it, to standard output.

    Raises:
        OSError: it cannot be written.
    """
    left = memoryview(octets)
    while left:
        try:
            left = left[os.write(1, left) :]
        except BlockingIOError:
            select.select([], [1], [])
