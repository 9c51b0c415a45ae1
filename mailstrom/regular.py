"""Reads the beginning of a file that somebody named, and never waits for it.

A FIFO would be waited for until somebody writes to it, and a device has no end: what is named in a
configuration is a regular file, or it is refused. Opened without waiting, then looked at, so that
nothing can be put in its place in between. Knows nothing of what files hold.
"""

from __future__ import annotations

import errno
import os
import stat


def beginning(file: str | os.PathLike[str], most: int) -> bytes:
    """The first octets of a regular file; symbolic links are followed.

    Args:
        file: its path.
        most: octets that are read; fewer are the whole file.

    Raises:
        OSError: it cannot be opened or read, or is no regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as stream:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file")
        pieces: list[bytes] = []
        while most > 0 and (piece := stream.read(most)):
            pieces.append(piece)
            most -= len(piece)
    return b"".join(pieces)
