"""A signal handler that sends while the main thread is sending: no deadlock, nothing lost."""

from __future__ import annotations

import builtins
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Mailstrom

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


@pytest.mark.timeout(300)
def test_thousands_of_interrupts(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", SCRIPT, str(tmp_path / "spool.db")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert ran.returncode == 0, ran.stderr
    interrupts, stored = map(int, ran.stdout.split())
    assert interrupts >= 3_000
    assert stored > 100


HALF_MADE = """
import sys
from importlib.machinery import PathFinder
from mailstrom import Mailstrom

client = Mailstrom(sys.argv[1], timeout=30)
message = b"From: a@example.com\\r\\nTo: b@example.org\\r\\n\\r\\nbody\\r\\n"
client.send(message)
sys.modules.pop("socket", None)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name != "socket":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def interrupted(module):  # as a signal would, when nothing of the module is there yet
            client.send(message)
            run(module)
        spec.loader.exec_module = interrupted
        return spec

sys.meta_path.insert(0, Interrupt())
import socket
print(client.query("SELECT count(*) FROM messages")[0][0])
client.close()
"""


def test_an_interrupted_import_of_the_application_does_not_keep_a_handler_from_sending(
    tmp_path: Path,
) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", HALF_MADE, str(tmp_path / "spool.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert (ran.stdout, ran.returncode) == ("2\n", 0), ran.stderr


def test_sending_imports_nothing_once_the_room_is_there(
    client: Mailstrom, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.send(message)
    real, imported = builtins.__import__, list[str]()

    def watched(name: str, globals: Any = None, *rest: Any) -> Any:
        if globals and str(globals.get("__name__")).startswith("mailstrom"):
            imported.append(f"{name} by {globals['__name__']}")
        return real(name, globals, *rest)

    monkeypatch.setattr(builtins, "__import__", watched)
    client.send(message, recipients=["c@example.org"], tags=["x"], metadata={"n": 1})
    client.send(message, idempotency_key="k", send_at=timedelta(hours=1))
    assert imported == []
