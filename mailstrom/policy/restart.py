"""How long the supervisor waits before it starts a dead child again.

The first exit within the window is answered at once (a crash is usually alone); each further exit
takes the next delay of the schedule and the last one repeats, so a child that dies at start costs
a bounded number of processes a minute. Knows no clock: the caller counts exits in its window.
"""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_SCHEDULE = (1.0, 2.0, 5.0, 10.0, 30.0)


def restart_delay_s(exits_in_window: int, schedule: Sequence[float] = DEFAULT_SCHEDULE) -> float:
    """Seconds before the next start.

    Args:
        exits_in_window: how often this slot's child ended within the caller's window, this exit
            included.
        schedule: seconds for the second, third, ... exit; the last repeats; empty means no wait.

    Returns:
        0 for the first exit, else an entry of the schedule.
    """
    if exits_in_window <= 1 or not schedule:
        return 0.0
    return float(schedule[min(exits_in_window - 2, len(schedule) - 1)])
