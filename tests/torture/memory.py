"""Where spools of a single process lie: in memory, where there is room, else in the plan's folder.

Only for parts that decide by themselves what a disk has kept (recorded, virtual, or failing by
injection): to them a real disk is nothing but slow. What ends real processes keeps to a disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM_BYTES = 512 << 20


@contextmanager
def in_memory(folder: Path, part: str) -> Iterator[Path]:
    """A directory of one's own, removed at the end.

    Args:
        folder: where, if not in memory.
        part: told in its name.
    """
    parent = folder
    with suppress(OSError):
        space = os.statvfs(MEMORY)
        if space.f_bavail * space.f_frsize > ROOM_BYTES and os.access(MEMORY, os.W_OK):
            parent = MEMORY
    made = Path(tempfile.mkdtemp(prefix=f"mailstrom-{part}-", dir=parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
