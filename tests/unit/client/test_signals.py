"""A signal handler that sends while the main thread is sending: no deadlock, nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, threading
from mailstrom import Mailstrom

client = Mailstrom(sys.argv[1], timeout=30)
message = b"From: a@example.com\\r\\nTo: b@example.org\\r\\n\\r\\nbody\\r\\n"
ids, interrupts, depth = [], 0, 0

def interrupted(number, frame):
    global interrupts, depth
    interrupts += 1
    if depth < 3 and interrupts % 5 == 0:  # nested, too, but not without end
        depth += 1
        ids.append(client.send(message))
        ids.append(client.status(ids[-1]).id)
        depth -= 1

signal.signal(signal.SIGUSR1, interrupted)
signal.signal(signal.SIGALRM, interrupted)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
sent = 0
while interrupts < 3000:
    ids.append(client.send(message))
    client.status(ids[-1])
    sent += 1
    if sent % 7 == 0:
        signal.raise_signal(signal.SIGUSR1)
signal.setitimer(signal.ITIMER_REAL, 0)
stored = client.query("SELECT count(*) FROM messages")[0][0]
assert stored == len(set(ids)), (stored, len(set(ids)))
assert client.check() == []
client.close()
print(interrupts, stored)
"""


@pytest.mark.timeout(90)
def test_thousands_of_interrupts(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", SCRIPT, str(tmp_path / "spool.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert ran.returncode == 0, ran.stderr
    interrupts, stored = map(int, ran.stdout.split())
    assert interrupts >= 3_000
    assert stored > 100
