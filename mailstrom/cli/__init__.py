"""The command line ``mailstrom``: a thin shell over the client, the views and the supervisor.

Commands load what they need when they run, so that ``mailstrom version`` and shell completion
stay fast. Speaks neither DNS nor SMTP; knows no SQL but that of the public views.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` when None.
    Returns:
        the exit code, one of ``mailstrom.cli.exits``.
    """
    if argv is None and sys.argv[1:2] == ["serve"]:  # this process is the engine's from here on
        from mailstrom.supervisor.early import keep_signals

        keep_signals()
    from mailstrom.cli.app import run

    return run(argv)
