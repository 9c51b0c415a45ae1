"""The system calls of one ``send()``: the lock is released, then the disk, then the answer.

Run with ``-s`` to see the decisive lines.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.debian import strace

SCRIPT = """
import os, sys
from mailstrom import Mailstrom

message = b"From: a@example.com\\r\\nTo: b@example.org\\r\\n\\r\\nbody\\r\\n"

def send(client, number):
    os.write(1, b"sending %d\\n" % number)
    client.send(message)
    os.write(1, b"returned %d\\n" % number)

client = Mailstrom(sys.argv[1])
send(client, 1)
send(client, 2)
client.close()
client = Mailstrom(sys.argv[1])
send(client, 3)
client.close()
"""

# The write lock of a WAL is byte 120 of the -shm file (WAL_WRITE_LOCK).
LOCKED = re.compile(r"fcntl\(\d+<[^>]*spool\.db-shm>.*F_WRLCK.*l_start=120, l_len=1")
FREED = re.compile(r"fcntl\(\d+<[^>]*spool\.db-shm>.*F_UNLCK.*l_start=120, l_len=1")
WRITTEN = re.compile(r"pwrite64\(\d+<[^>]*spool\.db-wal>")
SYNCED = re.compile(r"fdatasync\(\d+<[^>]*spool\.db-wal>")
ANY_SYNC = re.compile(r"f(data)?sync\(")


def between(calls: tuple[str, ...], number: int) -> list[str]:
    """Calls from the marker before a send to the one after it, both included."""
    first = next(n for n, call in enumerate(calls) if f'"sending {number}\\n"' in call)
    last = next(n for n, call in enumerate(calls) if f'"returned {number}\\n"' in call)
    return list(calls[first : last + 1])


def where(calls: list[str], pattern: re.Pattern[str]) -> list[int]:
    return [n for n, call in enumerate(calls) if pattern.search(call)]


@pytest.mark.debian
def test_lock_released_then_fdatasync_then_return(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    traced = strace(
        [sys.executable, "-P", "-c", SCRIPT, str(path)],
        calls="fcntl,fdatasync,fsync,pwrite64,write",
        environ={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert traced.returncode == 0, traced.stderr
    for number, what in ((1, "first"), (2, "next"), (3, "after closing all and opening anew")):
        calls = between(traced.calls, number)
        written, freed, synced = (where(calls, p) for p in (WRITTEN, FREED, SYNCED))
        locked = where(calls, LOCKED)
        print(f"\nsend {number} ({what}):")
        for n in sorted({0, *locked[-1:], *written[-1:], *freed[-1:], *synced, len(calls) - 1}):
            print("   ", calls[n])
        assert len(synced) == 1, "one flush of the disk a message"
        assert written[-1] < freed[-1] < synced[0] < len(calls) - 1
        held = calls[locked[-1] : freed[-1]]
        assert not where(held, ANY_SYNC), "nobody waits for the disk with the lock in hand"
