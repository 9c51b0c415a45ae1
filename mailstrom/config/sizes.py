"""Sizes as people write them: ``"10MB" "25MiB"`` to bytes and back; a bare number is bytes.

Decimal units (kB, MB, GB) count in thousands, binary ones (KiB, MiB, GiB) in 1,024s.
"""

from __future__ import annotations

import re
from decimal import Decimal

UNITS = {
    "B": 1,
    "kB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
}  # fmt: skip

_FORM = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,3})?) ?([A-Za-z]+)")
_WORDS = {unit.lower(): count for unit, count in UNITS.items()}


def octets(text: str) -> int:
    """Bytes of a size.

    Args:
        text: a decimal number and a unit, for example ``"1.5MiB"``; case does not matter.
    Raises:
        ValueError: anything else, or no whole number of bytes.
    """
    match = _FORM.fullmatch(text)
    unit = None if match is None else _WORDS.get(match[2].lower())
    if match is None or unit is None:
        raise ValueError(
            f"{text!r} is no size: write a number of bytes, or a number and a unit,"
            ' as "500kB", "10MB", "25MiB"'
        )
    count = Decimal(match[1]) * unit
    if count != int(count):
        raise ValueError(f"{text!r} is no whole number of bytes")
    return int(count)


def size(value: int) -> str:
    """The shortest text whose ``octets()`` is ``value``."""
    for unit in ("GiB", "GB", "MiB", "MB", "KiB", "kB"):
        count, rest = divmod(value, UNITS[unit])
        if count and rest == 0:
            return f"{count}{unit}"
    return f"{value}B"
