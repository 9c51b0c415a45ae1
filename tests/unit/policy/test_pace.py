"""How far a lane goes ahead of its wire: bounded whatever happens, and by its pace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.policy.pace import (
    AMPLE,
    CLAIM_MESSAGES,
    CLAIM_S,
    DRY_S,
    FIRST_CLAIM,
    MOST_OPENED,
    SLOW_CLAIM,
    ClaimPace,
    OpenWindow,
)

MANY = 10_000


def pace(due: int = MANY, lanes: int = 1) -> ClaimPace:
    """Of a lane whose session is fed since 100.0."""
    made = ClaimPace(due, lanes)
    made.resume(100.0)
    return made


def paced(each_s: float, ends: int) -> ClaimPace:
    """Of a lane that delivered so many, one after the other, and was told that more is due."""
    made = pace()
    for number in range(1, ends + 1):
        made.ended(100.0 + number * each_s)
    return made


# The size of a claim


def test_the_constants_belong_together() -> None:
    assert SLOW_CLAIM < FIRST_CLAIM < MOST_OPENED < CLAIM_MESSAGES


def test_a_lane_begins_small_and_doubles_until_its_pace_is_known() -> None:
    one = pace()
    sizes = [one.size]
    for _ in range(6):
        one.found(one.size, 100.0, more=True)
        sizes.append(one.size)
    assert sizes == [FIRST_CLAIM, 16, 32, 64, 128, CLAIM_MESSAGES, CLAIM_MESSAGES]
    one.ended(100.0 + CLAIM_S)
    assert one.size == 1, "what was measured counts more than what was guessed"
    one.found(1, 101.0, more=True)
    assert one.size == 1


def test_claims_that_find_less_than_they_asked_for_do_not_grow() -> None:
    one = pace()
    for _ in range(6):  # what may be held is spent: message by message
        one.found(1, 100.0, more=True)
    assert one.size == FIRST_CLAIM
    one.found(FIRST_CLAIM, 100.0, more=True)
    assert one.size == 2 * FIRST_CLAIM


@pytest.mark.parametrize(("due", "lanes", "size"), [(3, 1, 3), (30, 20, 2), (0, 20, 1), (9, 9, 1)])
def test_a_first_claim_is_no_more_than_an_even_share(due: int, lanes: int, size: int) -> None:
    assert pace(due, lanes).size == size


@pytest.mark.parametrize(("each_s", "size"), [(0.005, 100), (0.05, 10), (0.2, 2), (3.0, 1)])
def test_a_claim_is_what_the_lane_delivers_in_its_time(each_s: float, size: int) -> None:
    assert abs(paced(each_s, 200).size - size) <= 1


def test_a_quick_lane_claims_no_more_than_the_bound() -> None:
    assert paced(1e-4, 3_000).size == CLAIM_MESSAGES


def test_what_went_before_a_session_says_nothing_about_its_pace() -> None:
    one = paced(0.02, 12)
    size = one.size
    one.resume(500.0)
    for number in range(1, 12):
        one.ended(500.0 + number * 0.02)
        assert one.size == size, "not yet measured"
    for number in range(12, 15):
        one.ended(500.0 + number * 0.02)
    assert abs(one.size - CLAIM_S / 0.02) <= 1


def test_who_fell_silent_goes_on_message_by_message_until_its_pace_is_known() -> None:
    one = paced(0.005, 200)
    one.silent()
    assert one.size == 1
    one.found(1, 110.0, more=True)
    assert one.size == 1, "it is not doubled"
    one.resume(200.0)
    for number in range(1, 101):
        one.ended(200.0 + number * 0.005)
    assert one.size > 50


# When to claim


def test_it_claims_ahead_when_half_is_left() -> None:
    one = paced(0.01, 100)
    half = one.size // 2
    assert half > 20
    assert not one.wants(half + 1, 101.0, wire=True, spent=False)
    assert one.wants(half, 101.0, wire=True, spent=False)
    assert one.wants(0, 101.0, wire=True, spent=False)


def test_before_its_pace_is_known_it_claims_when_half_of_the_last_claim_is_gone() -> None:
    one = pace()
    for last in (FIRST_CLAIM, 2 * FIRST_CLAIM, 4 * FIRST_CLAIM):
        one.found(last, 100.0, more=True)
        assert one.size == 2 * last
        assert not one.wants(last - 1, 100.0, wire=True, spent=False), "nothing was delivered yet"
        assert not one.wants(last // 2 + 1, 100.0, wire=True, spent=False)
        assert one.wants(last // 2, 100.0, wire=True, spent=False)


@pytest.mark.parametrize(("ahead", "wire"), [(1, False), (0, True), (1, True)])
def test_a_slow_lane_or_a_spent_budget_waits_until_nothing_is_in_hand(
    ahead: int, wire: bool
) -> None:
    slow, quick = paced(0.2, 20), paced(0.01, 100)
    assert slow.size == SLOW_CLAIM
    assert not slow.wants(ahead, 900.0, wire=wire, spent=False)
    assert slow.wants(0, 900.0, wire=False, spent=False)
    assert quick.wants(ahead, 900.0, wire=wire, spent=False)
    assert not quick.wants(ahead, 900.0, wire=wire, spent=True)
    assert quick.wants(0, 900.0, wire=False, spent=True), "else its budget were never free"


def test_a_claim_that_found_nothing_is_not_repeated_at_once() -> None:
    one = paced(0.01, 100)
    one.dry(101.0)
    assert one.exhausted
    assert not one.wants(1, 101.0 + DRY_S / 2, wire=True, spent=False)
    assert one.wants(1, 101.0 + DRY_S, wire=True, spent=False)
    assert not one.wants(0, 999.0, wire=False, spent=False), "the engine calls when something is"
    one.called()
    assert not one.exhausted
    assert one.wants(0, 999.0, wire=False, spent=False)


def test_a_site_that_was_looked_through_counts_as_dry_when_its_part_is_taken() -> None:
    one = pace(due=5)
    one.found(5, 100.0, more=False)
    assert one.exhausted
    assert not one.wants(1, 100.0 + DRY_S / 2, wire=True, spent=False)


def test_what_a_claim_left_behind_is_due_though_the_lease_did_not_know_of_it() -> None:
    one = pace(due=5)
    one.found(5, 100.0, more=True)
    assert not one.exhausted
    slow = pace(due=1)
    slow.found(1, 100.0, more=True)
    assert slow.exhausted, "one by one the lane asks only when it is called"


@pytest.mark.parametrize(("each_s", "limit", "even"), [(0.01, 200, 10), (0.01, 4, 4), (9.0, 50, 1)])
def test_what_a_lane_delivers_at_once_it_takes_though_others_find_less(
    each_s: float, limit: int, even: int
) -> None:
    assert abs(paced(each_s, 50).even(limit) - even) <= 1
    assert pace().even(200) == 1, "before anything was heard"


# Whatever happens

STEPS: list[Callable[[ClaimPace, float, int], None]] = [
    lambda one, now, count: one.ended(now),
    lambda one, now, count: one.begun(now),
    lambda one, now, count: one.resume(now),
    lambda one, now, count: one.silent(),
    lambda one, now, count: one.found(count, now, more=True),
    lambda one, now, count: one.found(count, now, more=False),
    lambda one, now, count: one.dry(now),
    lambda one, now, count: one.called(),
]
steps = st.tuples(st.sampled_from(STEPS), st.floats(0, 1e4), st.integers(0, 10**6))


@given(st.integers(0, 10**9), st.integers(0, 100), st.lists(steps, max_size=60))
def test_a_claim_stays_within_its_bounds(
    due: int,
    lanes: int,
    story: list[tuple[Callable[[ClaimPace, float, int], None], float, int]],
) -> None:
    one, now = ClaimPace(due, lanes), 0.0
    for step, seconds, count in story:
        now += seconds
        step(one, now, count)
        assert 1 <= one.size <= CLAIM_MESSAGES
        assert 1 <= one.even(one.size) <= one.size
        assert not one.wants(one.size, now, wire=True, spent=False)
        assert one.wants(0, now, wire=False, spent=True) is not one.exhausted


# The window


def test_the_window_grows_by_half_while_the_wire_waits() -> None:
    window = OpenWindow()
    sizes = [window.size]
    for _ in range(11):
        window.ran_dry()
        sizes.append(window.size)
    assert sizes == [1, 2, 3, 4, 6, 9, 13, 19, 28, MOST_OPENED, MOST_OPENED, MOST_OPENED]


def test_a_window_that_was_full_for_long_shrinks_by_one() -> None:
    window = OpenWindow()
    for _ in range(4):
        window.ran_dry()
    assert window.size == 6
    for _ in range(AMPLE - 1):
        window.left(5)
    for _ in range(1_000):
        window.left(4)  # not full
    assert window.size == 6
    window.left(5)
    assert window.size == 5
    for _ in range(AMPLE):
        window.left(5)  # an urgent one came on top
    assert window.size == 4


def test_a_wire_that_waits_starts_the_count_anew() -> None:
    window = OpenWindow()
    for _ in range(20):
        window.ran_dry()
    for _ in range(AMPLE - 1):
        window.left(MOST_OPENED)
    window.ran_dry()
    window.left(MOST_OPENED)
    assert window.size == MOST_OPENED


@given(st.lists(st.one_of(st.none(), st.integers(0, 60)), max_size=20), st.integers(1, AMPLE))
def test_a_window_stays_within_its_bounds(story: list[int | None], times: int) -> None:
    window = OpenWindow()
    for opened in story:
        for _ in range(times):
            if opened is None:
                window.ran_dry()
            else:
                window.left(opened)
            assert 1 <= window.size <= MOST_OPENED
