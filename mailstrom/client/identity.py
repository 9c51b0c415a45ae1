"""Message ids: UUIDv7 (RFC 9562 section 5.7), so that ids sort by time of acceptance."""

from __future__ import annotations

import os


def new_id(now_ms: int) -> str:
    """A fresh id as 36 characters of text.

    Args:
        now_ms: wall milliseconds, the first 48 bits of the id.
    """
    bits = now_ms.to_bytes(6, "big") + os.urandom(10)
    number = int.from_bytes(bits, "big")
    number = number & ~(0xF << 76) | 0x7 << 76  # version 7
    number = number & ~(0x3 << 62) | 0x2 << 62  # RFC 9562 variant
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
