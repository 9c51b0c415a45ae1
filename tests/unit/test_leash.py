"""What a harness started ends with it, even where it is killed and can clean up nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.engine import DEADLINE_S, alive
from tests.support.sockets import eventually

_LEASH = Path(__file__).parent.parent / "support" / "leash.py"
_HARNESS = """
import importlib.util, subprocess, sys
spec = importlib.util.spec_from_file_location("leash", sys.argv[1])
leash = importlib.util.module_from_spec(spec)
spec.loader.exec_module(leash)
sleeper = [sys.executable, "-I", "-S", "-c", "import os, time; os.fork(); time.sleep(600)"]
started = [subprocess.Popen(sleeper, start_new_session=True) for _ in range(2)]
for process in started:
    leash.hold(process.pid)
leash.let_go(started[1].pid)
print(*(process.pid for process in started), flush=True)
sys.stdin.read()
"""


def test_sessions_end_with_a_killed_harness_unless_they_were_let_go() -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _HARNESS, str(_LEASH)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as harness:  # fmt: skip
        assert harness.stdout is not None
        held, free = map(int, harness.stdout.readline().split())
        try:
            harness.kill()
            harness.wait(DEADLINE_S)
            eventually(lambda: not alive(held), DEADLINE_S, what="the end of the session")
            assert alive(free)
        finally:
            os.killpg(free, signal.SIGKILL)
