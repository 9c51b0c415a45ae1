"""Whether a directory's entries can have changed since somebody looked at them, by one ``stat``.

Making, removing or renaming an entry sets the directory's change time, which nobody can set by
hand. So what was found by name holds as long as that time stays. It has the grain of the file
system (a second at the worst): a look within the grain of the last change proves nothing, since
another change would not show. Only a directory left alone for ``MARGIN_NS`` is relied on.

A mount over one of the entries is no change of the directory and is not seen.
"""

from __future__ import annotations

import os
import time

MARGIN_NS = 2_000_000_000
"""More than the grain of any file system that a spool may lie on."""

Look = tuple[int, int, int]
"""Device, inode and change time (nanoseconds) of a directory."""


def look(folder: str) -> Look:
    """The directory of this name, now; taken before its entries are looked at.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    found = os.stat(folder)
    return found.st_dev, found.st_ino, found.st_ctime_ns


def steady(seen: Look) -> Look | None:
    """The look, if a later one that equals it means that no entry has changed; else None."""
    return seen if time.time_ns() - seen[2] > MARGIN_NS else None
