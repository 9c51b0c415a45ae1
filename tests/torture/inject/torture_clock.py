"""The wall clock of a process, shifted by what a file says; it may change at any time.

Settings: ``{"file": PATH}``, which holds milliseconds to add (missing or empty: 0). All of the
product reads the wall clock through ``mailstrom.clock``; monotonic time is left alone.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from torture_hooks import after_import


def arm(settings: dict[str, Any]) -> None:
    """Shift ``mailstrom.clock.wall_ms``."""
    path = str(settings["file"])
    seen: tuple[int, int] = (0, 0)  # modification time, offset

    def offset() -> int:
        nonlocal seen
        try:
            stamp = os.stat(path).st_mtime_ns
        except FileNotFoundError:
            return 0
        if stamp != seen[0]:
            with open(path, encoding="ascii") as stream:
                seen = (stamp, int(stream.read() or "0"))
        return seen[1]

    def shift(module: ModuleType) -> None:
        real = module.wall_ms
        module.wall_ms = lambda: real() + offset()

    after_import("mailstrom.clock", shift)
