"""The only place that asks the machine for the time or its boot.

Wall milliseconds are what the spool stores; monotonic milliseconds (CLOCK_BOOTTIME where there is
one, so that a suspended machine does not stand still) are what liveness and expiry are judged by.
"""

from __future__ import annotations

import time
from functools import cache

_MONOTONIC = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def wall_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Milliseconds since boot; comparable between processes of one boot."""
    return time.clock_gettime_ns(_MONOTONIC) // 1_000_000


@cache
def boot_id() -> str:
    """A name for this boot of the machine; empty where the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as stream:
            return stream.read().decode().strip()
    except OSError:
        return ""
