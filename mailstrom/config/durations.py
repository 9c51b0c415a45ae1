"""Durations as people write them: ``"500ms" "30s" "5m" "4h" "5d"`` to seconds and back.

A number always carries one unit: "30" leaves open whether seconds or minutes were meant.
"""

from __future__ import annotations

import re
from decimal import Decimal

UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
UNITS["d"] = Decimal(86400)

_FORM = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")


def seconds(text: str) -> float:
    """Seconds of a duration.

    Args:
        text: a decimal number and a unit, for example ``"1.5h"``.
    Raises:
        ValueError: anything else.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is no duration: write a number and a unit,"
            ' as "500ms", "30s", "5m", "4h", "5d"'
        )
    return float(Decimal(match[1]) * UNITS[match[2]])


def duration(value: float) -> str:
    """The shortest text whose ``seconds()`` is ``value`` to the millisecond."""
    thousandths = round(value * 1000)
    if thousandths == 0:
        return "0s"
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(thousandths, int(UNITS[unit] * 1000))
        if rest == 0:
            return f"{count}{unit}"
    return f"{thousandths}ms"
