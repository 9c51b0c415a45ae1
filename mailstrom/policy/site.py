"""How long a dead site rests, and one where our own code fails.

A suspended site is one row: its recipients keep their attempts and are not written. How many lanes
a site may have is decided where they are leased, in the spool's own transaction: it is exact over
all processes.
"""

from __future__ import annotations

from collections.abc import Sequence

SUSPENSION_JITTER = 0.15  # so that workers and sites do not all wake in the same second
CRASHED = "internal error: "
"""So the words begin of a site that rests since our own code failed there, and no host did."""
CRASH_S, MOST_CRASH_S = 1.0, 300.0


def suspension_s(failures: int, schedule: Sequence[float], random01: float) -> float:
    """Seconds a site rests after host trouble on all of its hosts.

    Args:
        failures: consecutive failures of the whole site, this one included; 1 or more.
        schedule: seconds for the first, second, ... failure; the last entry repeats.
        random01: a random number from 0 to 1; 0.5 means no jitter.

    Raises:
        ValueError: the schedule is empty.
    """
    if not schedule:
        raise ValueError("suspension schedule is empty: give at least one delay in seconds")
    step = schedule[min(max(failures, 1), len(schedule)) - 1]
    spread = 2 * min(max(random01, 0.0), 1.0) - 1
    return max(step * (1 + SUSPENSION_JITTER * spread), 1.0)


def crash_s(crashes: int) -> float:
    """Seconds a site rests when our own code failed there, which no host is to blame for.

    Args:
        crashes: so many in a row, this one included; 1 or more.
    """
    return float(min(CRASH_S * 2 ** min(max(crashes, 1) - 1, 16), MOST_CRASH_S))
