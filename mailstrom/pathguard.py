"""Keep the working directory off the import path of ``python -m``.

``-m`` puts the working directory first on the path, and an application's own ``email/`` or
``queue/`` there would be taken for the standard library's. So before anything else is imported,
and with nothing but ``os`` and ``sys`` (both loaded before the working directory counts), that
entry goes, unless it is the very folder that holds our package (a bare checkout). Equality, not
prefix: a virtual environment often lives below the working directory.
"""

from __future__ import annotations

import os
import sys


def guard() -> None:
    """Delete the first entry of the path where it is a foreign working directory."""
    if sys.flags.safe_path or not sys.path:
        return
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.realpath(sys.path[0]) != os.path.realpath(ours):
        del sys.path[0]
