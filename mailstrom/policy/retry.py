"""When a deferred recipient is due again.

The schedule is a tuple of delays; its last entry repeats until ``max_age`` (judged by whoever
knows the age). Jitter spreads recipients deferred together. A delay named by the server
(greylisting) is honoured for the first two deferrals, then the schedule rules, so that a server
which always says "later" cannot slow or speed us for ever. RFC 5321 section 4.5.4.1 asks for
retries of at least 30 minutes' spacing *in general* and a give-up time of 4 to 5 days; the early
short steps serve greylisting (RFC 6647).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

HINTS_HONOURED = 2
SHORTEST_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySchedule:
    """Delays between attempts.

    Args:
        schedule: seconds before attempt 2, 3, ...; the last entry repeats.
        max_age: seconds after acceptance at which a recipient expires.
        jitter: fraction of a delay by which it may be shortened or lengthened, 0 to below 1.

    Raises:
        ValueError: empty schedule, a delay or age that is not positive, jitter out of range.
    """

    schedule: tuple[float, ...] = (60, 180, 420, 900, 1800, 3600, 7200, 14400, 21600)
    max_age: float = 432_000.0
    jitter: float = 0.15

    def __post_init__(self) -> None:
        if not self.schedule:
            raise ValueError("retry schedule is empty: give at least one delay in seconds")
        for delay in (*self.schedule, self.max_age):
            if not (isfinite(delay) and delay > 0):
                raise ValueError(f"retry delay or age {delay!r}: give a positive number of seconds")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"retry jitter {self.jitter!r}: give a fraction from 0 to below 1")


def delay_s(
    deferrals: int, schedule: RetrySchedule, random01: float, hint_s: float | None = None
) -> float:
    """Seconds until the next attempt.

    Args:
        deferrals: how often the recipient was deferred before this time; 0 the first time.
        schedule: the delays.
        random01: a random number from 0 to 1; 0.5 means no jitter.
        hint_s: delay asked for by the server, in seconds, already bounded by ``outcome``.

    Returns:
        At least one second; within ``jitter`` of the scheduled delay, or of the hint and never
        before it (knocking early restarts many greylisters' clocks).
    """
    spread = 2 * min(max(random01, 0.0), 1.0) - 1
    if hint_s is not None and deferrals < HINTS_HONOURED:
        return max(hint_s * (1 + schedule.jitter * abs(spread)), SHORTEST_S)
    step = schedule.schedule[min(max(deferrals, 0), len(schedule.schedule) - 1)]
    return max(step * (1 + schedule.jitter * spread), SHORTEST_S)


def next_attempt_ms(
    now_ms: int,
    deferrals: int,
    schedule: RetrySchedule,
    random01: float,
    hint_s: float | None = None,
) -> int:
    """Wall milliseconds of the next attempt; arguments as for :func:`delay_s`.

    Args:
        now_ms: milliseconds since the epoch, UTC.
    """
    return now_ms + round(delay_s(deferrals, schedule, random01, hint_s) * 1000)
