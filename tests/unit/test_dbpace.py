"""The pace of a store's service: when the lock is left free, and when the disk gets results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_workers.dbpace import (
    FREE_LOCK_S,
    GATHER_S,
    MOST_FREE_S,
    SERIES_S,
    SYNC_S,
    Pace,
)

SECONDS = st.floats(0.0, 10.0)


def test_before_the_first_write_nothing_is_waited_for() -> None:
    pace = Pace()
    assert pace.leave_free(0.0) <= 0
    assert pace.patience(0.0) <= 0
    assert pace.sync_in(0.0) is None
    assert not pace.overdue(1e9)


@given(held=SECONDS, since=SECONDS)
def test_the_lock_stays_free_for_as_long_as_it_was_held_within_bounds(
    held: float, since: float
) -> None:
    pace = Pace()
    pace.exchanged(100.0, 100.0 + held)
    free_s = min(max(held, FREE_LOCK_S), MOST_FREE_S)
    assert pace.leave_free(100.0 + held + since) == pytest.approx(free_s - since, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), SECONDS), max_size=20))
def test_results_are_overdue_by_the_first_that_the_disk_has_not(
    steps: list[tuple[bool, float]],
) -> None:
    pace, now, first = Pace(), 0.0, None
    for synced, seconds in steps:
        now += seconds
        if synced:
            pace.synced()
            first = None
        else:
            pace.exchanged(now, now)
            first = now if first is None else first
        assert pace.unsynced == first
        assert pace.overdue(now) == (first is not None and now - first >= SYNC_S)
        due = None if first is None else max(first + SYNC_S - now, 0.0)
        assert pace.sync_in(now) == due
        assert due is None or pace.patience(now) <= max(due, 0.0) + 1e-9, "the disk comes first"


def test_who_is_patient_waits_for_company_but_not_beyond_the_disk() -> None:
    pace = Pace()
    pace.exchanged(5.0, 5.0)
    assert pace.patience(5.0) == pytest.approx(GATHER_S)
    pace.exchanged(5.0 + SYNC_S - 0.001, 5.0 + SYNC_S - 0.001)
    assert pace.patience(5.0 + SYNC_S - 0.001) == pytest.approx(0.001)


def test_a_series_of_verbs_ends_with_the_lock_left_free() -> None:
    pace = Pace()
    pace.ran(0.0, SERIES_S / 2)
    assert not pace.series_over
    pace.ran(SERIES_S, SERIES_S * 2)
    assert pace.series_over
    assert pace.leave_free(SERIES_S * 2) == pytest.approx(FREE_LOCK_S), "the last one may write"
    assert not pace.series_over
