"""Processes that tests start beside their own: modules of the tests, and small programs.

The checkout is found last: ``mailstrom`` is the one that is installed, or on ``PYTHONPATH``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.engine import environment

ROOT = Path(__file__).resolve().parents[2]
_RUN = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1));"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of ``tests``.

    Args:
        module: its dotted name.
        arguments: its own.
    """
    return [sys.executable, "-P", "-c", _RUN, str(ROOT), module, *arguments]


@contextmanager
def beside(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another program, once it has got as far as to print ``ready``; killed at the end.

    Args:
        program: Python text; what it reads from standard input is ours to write.
        arguments: its own.
    """
    argv = [sys.executable, "-P", "-c", program, *arguments]
    with subprocess.Popen(
        argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
