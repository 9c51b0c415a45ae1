"""Standard streams that were closed before the start: nowhere, and not some file of ours.

Where descriptor 1 or 2 is free, the next file that is opened gets it, a lock or a pipe say, and
what some library writes there goes into it; children inherit it. So they are opened, on the null
device, before anything else. Log lines then go nowhere.

Must not know: what is written there.
"""

from __future__ import annotations

import os
import sys


def open_standard() -> None:
    """Open those of the three that are closed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # closed, so that it is the lowest free one
            os.open(os.devnull, os.O_RDONLY if fd == 0 else os.O_WRONLY)
            os.set_inheritable(fd, True)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w", encoding="utf-8", closefd=False))
