"""Retries, restarts, suspensions, lanes, timeouts: monotone and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.policy.pace import claim_size
from mailstrom.policy.restart import DEFAULT_SCHEDULE, restart_delay_s
from mailstrom.policy.retry import RetrySchedule, delay_s, next_attempt_ms
from mailstrom.policy.site import suspension_s
from mailstrom.policy.timeouts import Timeouts

delays = st.lists(st.floats(2, 1e6), min_size=1, max_size=12).map(lambda d: tuple(sorted(d)))
unit = st.floats(0, 1)
counts = st.integers(0, 10_000)


def test_the_default_schedule() -> None:
    schedule = RetrySchedule()
    minutes = [delay_s(n, schedule, 0.5) / 60 for n in range(11)]
    assert minutes == [1, 3, 7, 15, 30, 60, 120, 240, 360, 360, 360]
    assert (schedule.max_age, schedule.jitter) == (5 * 86_400, 0.15)


@given(delays, st.floats(0, 0.99), st.integers(0, 30), unit)
def test_a_delay_stays_within_the_jitter_of_its_step(
    steps: tuple[float, ...], jitter: float, deferrals: int, random01: float
) -> None:
    schedule = RetrySchedule(schedule=steps, jitter=jitter)
    step = steps[min(deferrals, len(steps) - 1)]
    delay = delay_s(deferrals, schedule, random01)
    assert delay >= 1
    assert delay <= step * (1 + jitter) * 1.000001
    assert delay >= step * (1 - jitter) * 0.999999 or delay == 1


@given(delays, unit, st.integers(0, 30))
def test_later_deferrals_never_wait_less(
    steps: tuple[float, ...], random01: float, deferrals: int
) -> None:
    schedule = RetrySchedule(schedule=steps)
    assert delay_s(deferrals, schedule, random01) <= delay_s(deferrals + 1, schedule, random01)


@given(st.floats(1, 3600), unit)
def test_a_hint_is_honoured_twice_and_never_early(hint_s: float, random01: float) -> None:
    schedule = RetrySchedule()
    for deferrals in (0, 1):
        assert hint_s <= delay_s(deferrals, schedule, random01, hint_s) <= hint_s * 1.151
    plain = delay_s(2, schedule, random01)
    assert delay_s(2, schedule, random01, hint_s) == plain


def test_next_attempt_is_in_wall_milliseconds() -> None:
    assert next_attempt_ms(1_700_000_000_000, 0, RetrySchedule(), 0.5) == 1_700_000_060_000
    assert next_attempt_ms(0, 0, RetrySchedule(), 0.5, hint_s=310) == 310_000


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": ()},
        {"schedule": (0,)},
        {"schedule": (60, -1)},
        {"schedule": (float("nan"),)},
        {"max_age": 0},
        {"jitter": 1.0},
        {"jitter": -0.1},
    ],
)
def test_a_senseless_schedule_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="retry"):
        RetrySchedule(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exits", "delay"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 5), (5, 10), (6, 30), (1000, 30)]
)
def test_restart_delays(exits: int, delay: float) -> None:
    assert restart_delay_s(exits) == delay


@given(counts)
def test_restart_delays_are_monotone_and_bounded(exits: int) -> None:
    assert restart_delay_s(exits) <= restart_delay_s(exits + 1) <= DEFAULT_SCHEDULE[-1]


def test_without_a_schedule_a_child_restarts_at_once() -> None:
    assert restart_delay_s(9, ()) == 0


@given(delays, st.integers(1, 100), unit)
def test_suspensions_are_monotone_and_bounded(
    steps: tuple[float, ...], failures: int, random01: float
) -> None:
    first = suspension_s(failures, steps, random01)
    assert 1 <= first <= suspension_s(failures + 1, steps, random01) <= steps[-1] * 1.15 + 1


def test_a_suspension_needs_a_schedule() -> None:
    with pytest.raises(ValueError, match="suspension"):
        suspension_s(1, (), 0.5)


@given(counts, counts, st.integers(1, 1000))
def test_a_claim_is_an_even_share_within_bounds(due: int, lanes: int, most: int) -> None:
    size = claim_size(due, lanes, most)
    assert 1 <= size <= most
    assert size == most or size * max(lanes, 1) >= due


def test_the_timeouts_are_those_of_the_rfc() -> None:
    times = Timeouts()
    assert (times.greeting, times.mail, times.rcpt) == (300, 300, 300)
    assert (times.data, times.body, times.dot) == (120, 180, 600)
    assert (times.connect, times.behind, times.rset, times.quit) == (30, 30, 20, 5)
    assert (times.ehlo, times.starttls, times.auth) == (300, 300, 300)


@pytest.mark.parametrize("bad", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_a_positive_number(bad: float) -> None:
    with pytest.raises(ValueError, match="'dot'"):
        Timeouts(dot=bad)
