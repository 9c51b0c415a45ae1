"""A file system that is mounted and answers nothing: whoever asks it waits in the kernel.

As a disk that died, or a file server that is gone. By FUSE, whose other end is here: it agrees to
be mounted, hears everything and never replies. Root alone may mount it; ``possible`` says whether.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

DEVICE = "/dev/fuse"
_HEAD = struct.Struct("<IIQ")  # of a request: length, operation, number
_INIT = 26
_AGREED = struct.pack("<IIIIHHIIHH8I", 7, 31, 65_536, 0, 16, 12, 65_536, 1, 0, 0, *[0] * 8)
_DETACH = 2


def possible() -> bool:
    """Whether this process may mount one."""
    return os.geteuid() == 0 and os.access(DEVICE, os.R_OK | os.W_OK)


@contextlib.contextmanager
def dead_disk(folder: Path) -> Iterator[None]:
    """Mount it on an empty folder; whoever waits for it is set free at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"dead", bytes(folder), b"fuse", 0, options.encode()):
        os.close(fd)
        raise OSError(ctypes.get_errno(), "cannot mount", str(folder))
    listening = threading.Thread(target=_agree, args=(fd,), daemon=True)
    listening.start()
    try:
        yield
    finally:
        libc.umount2(bytes(folder), _DETACH)
        with contextlib.suppress(OSError):
            os.close(fd)


def _agree(fd: int) -> None:
    """Answer the mount's own question, and nothing that comes after it."""
    _, operation, number = _HEAD.unpack_from(os.read(fd, 1 << 18))
    assert operation == _INIT
    os.write(fd, struct.pack("<IiQ", 16 + len(_AGREED), 0, number) + _AGREED)
