"""Message ids: UUIDv7 (RFC 9562 section 5.7), so that ids sort by time of acceptance."""

from __future__ import annotations

import os

_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
"""A random digit with the two bits of RFC 9562's variant."""


def new_id(now_ms: int) -> str:
    """A fresh id as 36 characters of text.

    Args:
        now_ms: wall milliseconds, the first 48 bits of the id.
    """
    time, chance = f"{now_ms:012x}", os.urandom(10).hex()
    variant = _VARIANT[chance[3]]
    return f"{time[:8]}-{time[8:]}-7{chance[:3]}-{variant}{chance[4:7]}-{chance[7:19]}"
