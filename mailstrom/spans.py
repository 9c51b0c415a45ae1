"""Spans of time as a person reads them."""

from __future__ import annotations

_STEPS = (
    (86_400_000, "d", 3_600_000, "h"), (3_600_000, "h", 60_000, "m"), (60_000, "m", 1_000, "s"),
)  # fmt: skip


def span_text(ms: int | float) -> str:
    """A span in at most two units: ``850ms``, ``12.3s``, ``4m 10s``, ``3h 5m``, ``2d 4h``."""
    left = max(int(ms), 0)
    if left < 1_000:
        return f"{left}ms"
    if left < 60_000:
        return f"{left / 1000:.1f}s".replace(".0s", "s")
    for size, unit, smaller, small_unit in _STEPS:
        if left >= size:
            rest = left % size // smaller
            return f"{left // size}{unit}" + (f" {rest}{small_unit}" if rest else "")
    raise AssertionError(left)
