"""A fork while another thread loads the message room: the child sends, or says why it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, threading
from importlib.machinery import PathFinder
from mailstrom import Mailstrom, SpoolBusy, SpoolError
from mailstrom.storage.sqlite import forks

path, case = sys.argv[1:]
message = b"From: a@example.com\\r\\nTo: b@example.org\\r\\n\\r\\nbody\\r\\n"
importing, go = threading.Event(), threading.Event()

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name != "mailstrom.message.compose":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def run_late(module):  # a fork itself waits for find_spec(), not for this
            importing.set()
            assert go.wait(30)
            run(module)
        spec.loader.exec_module = run_late
        return spec

sys.meta_path.insert(0, Gate())
client = Mailstrom(path, timeout=30)
sending = threading.Thread(target=client.send, args=(message,))
sending.start()
assert importing.wait(30)
if case == "ends":
    # Hooks run last in, first out: the import goes on only when the fork has begun.
    os.register_at_fork(before=lambda: threading.Timer(0.1, go.set).start())
else:
    forks.LONGEST_WAIT_S = 0.05
child = os.fork()
if child == 0:
    code = 3
    try:
        client.send(message)
        code = 0
    except SpoolBusy:
        code = 2
    except SpoolError as error:
        code = 1 if "spawn" in str(error) else 3
    finally:
        os._exit(code)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
sending.join(30)
client.send(message)
assert client.check() == []
print(code, client.query("SELECT count(*) FROM messages")[0][0])
client.close()
"""


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        pytest.param("ends", "0 3", id="the fork waits for the import and the child sends"),
        pytest.param("hangs", "1 2", id="it waited in vain and the child refuses at once"),
    ],
)
def test_a_fork_during_the_first_send(tmp_path: Path, case: str, outcome: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", SCRIPT, tmp_path / "spool.db", case],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == outcome, ran.stderr


INTERRUPTED = """
import signal, sys, threading
from importlib.machinery import PathFinder
from mailstrom import EngineState, Mailstrom

importing, go = threading.Event(), threading.Event()

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name != "asyncio.streams":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def run_late(module):
            importing.set()
            assert go.wait(30)
            run(module)
        spec.loader.exec_module = run_late
        return spec

sys.meta_path.insert(0, Gate())
client = Mailstrom(sys.argv[1], timeout=30)
main = threading.main_thread().ident

def interrupt():
    assert importing.wait(30)
    signal.pthread_kill(main, signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    client.start()
except KeyboardInterrupt:
    print("interrupted")
go.set()
client.start(config={"dns": {"nameservers": ["127.0.0.1:9"]}})
print(client.worker_status().state is EngineState.READY, client.stop(30))
client.close()
"""


def test_an_interrupted_start_leaves_no_half_made_module(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", INTERRUPTED, tmp_path / "spool.db"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["interrupted", "True True"], ran.stderr
