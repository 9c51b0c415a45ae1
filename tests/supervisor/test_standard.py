"""Descriptors 0 to 2 that were closed before the start lead nowhere, and to no file of ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from mailstrom.supervisor.standard import open_standard
open_standard()
held = [os.open("/dev/zero", os.O_RDONLY) for _ in range(2)]
sys.stdout.write("out\\n"); sys.stdout.flush()
sys.stderr.write("err\\n"); sys.stderr.flush()
if not min(held) > 2:
    os._exit(9)
child = os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", "echo out && echo err >&2"])
os._exit(child)
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_ones_are_opened_and_others_stay(closed: str) -> None:
    ran = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-P", "-c", SCRIPT],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ("" if ">&-" in closed.split() else "out\nout\n")
    assert ran.stderr == ("" if "2>&-" in closed else "err\nerr\n")
