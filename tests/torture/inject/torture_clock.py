"""The clocks of a process, shifted by what a file says; it may change at any time.

Settings: ``{"file": PATH}``, which holds milliseconds to add to the wall clock and, if it names a
second number, to the monotonic one (missing or empty: 0). All of the product reads both through
``mailstrom.clock``; the event loop's own time is left alone, as it is by a suspended machine.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from torture_hooks import after_import


def arm(settings: dict[str, Any]) -> None:
    """Shift ``mailstrom.clock.wall_ms`` and ``monotonic_ms``."""
    path = str(settings["file"])
    seen: tuple[int, tuple[int, int]] = (0, (0, 0))  # modification time, offsets

    def offsets() -> tuple[int, int]:
        nonlocal seen
        try:
            stamp = os.stat(path).st_mtime_ns
        except FileNotFoundError:
            return (0, 0)
        if stamp != seen[0]:
            with open(path, encoding="ascii") as stream:
                wall, monotonic = (*stream.read().split(), "0", "0")[:2]
            seen = (stamp, (int(wall), int(monotonic)))
        return seen[1]

    def shift(module: ModuleType) -> None:
        wall_ms, monotonic_ms = module.wall_ms, module.monotonic_ms
        module.wall_ms = lambda: wall_ms() + offsets()[0]
        module.monotonic_ms = lambda: monotonic_ms() + offsets()[1]

    after_import("mailstrom.clock", shift)
