"""Modules of the tests as processes of their own.

The checkout is found last: ``mailstrom`` is the one that is installed, or on ``PYTHONPATH``.
"""

from __future__ import annotations

import sys
from pathlib import Path

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
