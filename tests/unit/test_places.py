"""Who takes a place, how much room there is, what is kept for whom, and whose wait is cut short."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import pytest

from mailstrom_workers import places
from mailstrom_workers.places import (
    KEPT,
    LOOKUP_FILES,
    MOST_LOOKUPS,
    OWN_FILES,
    QUIET_S,
    STRESS_S,
    WIDTH,
    Bounds,
    Free,
    bounds,
    free,
    lighten,
    longest,
)

NOW = 1_000.0
BOUNDS = Bounds(places=20, room=200, lookups=1)


@dataclass
class Seen:
    """A lane as ``places`` sees it."""

    waits_s: float = 0.0
    unproven: bool = False
    opening: bool = False
    parted: bool = False
    light: bool = False

    def put_down(self) -> None:
        self.light = True

    def waited_s(self, now_s: float) -> float:
        assert now_s == NOW
        return self.waits_s


def working(count: int, *, unproven: bool = False) -> list[Seen]:
    return [Seen(unproven=unproven) for _ in range(count)]


def quiet(count: int, seconds: float = 30.0, *, unproven: bool = True) -> list[Seen]:
    return [Seen(waits_s=seconds, unproven=unproven, opening=True) for _ in range(count)]


def test_what_works_takes_places_and_what_waits_for_its_host_takes_none() -> None:
    assert free([], BOUNDS, NOW) == Free(20, 20, full=False)
    assert free(working(5), BOUNDS, NOW).anywhere == 15
    assert free(working(20), BOUNDS, NOW) == Free(0, 0, full=False)
    assert free(working(15) + quiet(5), BOUNDS, NOW).anywhere == 5
    assert free(quiet(1, QUIET_S - 0.001), BOUNDS, NOW).anywhere == 19
    assert free(quiet(1, QUIET_S), BOUNDS, NOW).anywhere == 20


def test_what_was_leased_is_free_no_more() -> None:
    assert Free(5, 9, full=True).less(3) == Free(2, 6, full=True)
    assert Free(0, 2, full=False).less(3) == Free(0, 0, full=False)


def test_what_says_goodbye_takes_no_place_and_counts_for_the_room() -> None:
    leaving = [Seen(parted=True) for _ in range(200)]
    assert free(leaving[:100], BOUNDS, NOW).anywhere == 20
    assert free(leaving, BOUNDS, NOW) == Free(0, 0, full=True)


def test_a_quarter_of_the_places_is_kept_for_proven_sites_only_while_many_are_quiet() -> None:
    fresh = working(15, unproven=True)
    assert free(fresh, BOUNDS, NOW).anywhere == 5
    assert free(fresh + quiet(9), BOUNDS, NOW).anywhere == 5
    assert free(fresh + quiet(10), BOUNDS, NOW) == Free(0, 5, full=False)
    assert free(working(15) + quiet(10), BOUNDS, NOW).anywhere == 5, "they are proven"


def test_a_quarter_of_the_room_is_kept_for_proven_sites() -> None:
    assert free(quiet(149), BOUNDS, NOW) == Free(1, 20, full=False)
    assert free(quiet(150), BOUNDS, NOW) == Free(0, 20, full=True)
    assert free(quiet(150) + quiet(45, unproven=False), BOUNDS, NOW) == Free(0, 5, full=True)
    assert free(quiet(150) + quiet(50, unproven=False), BOUNDS, NOW) == Free(0, 0, full=True)


def test_where_content_is_short_who_waits_in_a_session_takes_a_place() -> None:
    at_dot = [Seen(waits_s=60.0, unproven=True) for _ in range(12)]
    assert free(at_dot, BOUNDS, NOW).anywhere == 15, "a quarter is kept: many are quiet"
    assert free(at_dot, BOUNDS, NOW, laden=True) == Free(3, 8, full=False)
    assert free(quiet(12), BOUNDS, NOW, laden=True).anywhere == 15, "they hold nothing"


def test_where_content_is_short_who_waits_in_a_session_holds_none() -> None:
    at_dot = [Seen(waits_s=QUIET_S), Seen(waits_s=QUIET_S - 0.001)]
    lighten([*at_dot, *(busy := working(2)), *(opening := quiet(2))], NOW)
    assert [lane.light for lane in (*at_dot, *busy, *opening)] == [True, *[False] * 5]


def test_one_place_is_for_anybody() -> None:
    one = Bounds(places=1, room=WIDTH, lookups=1)
    assert free([], one, NOW).anywhere == 1
    assert free(quiet(3), one, NOW).anywhere == 1
    assert free([*quiet(3), *working(1)], one, NOW).anywhere == 0


def test_the_room_is_a_multiple_of_the_places_and_bounded_by_descriptors() -> None:
    assert bounds(200, 100_000) == Bounds(200, 200 * WIDTH, MOST_LOOKUPS)
    assert bounds(200, resource.RLIM_INFINITY) == Bounds(200, 200 * WIDTH, MOST_LOOKUPS)
    assert bounds(10_000, 65_536).room == 65_536 - OWN_FILES - MOST_LOOKUPS * LOOKUP_FILES
    assert bounds(200, 1_024).room == (1_024 - OWN_FILES) // 2
    small = bounds(200, 64)
    assert small.places == small.room
    assert 2 * small.room <= 64 - OWN_FILES
    least = bounds(1, 1)
    assert least.places >= 1
    assert least.lookups == 1
    assert least.room - least.room // KEPT >= 1


def test_the_limit_of_descriptors_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.resource, "getrlimit", lambda _: (132, 4096))
    assert bounds(200) == bounds(200, 132)
    monkeypatch.setattr(places.resource, "getrlimit", lambda _: (4096, 4096))
    assert bounds(200) == bounds(200, 4096)


def test_the_longest_waits_for_a_session_are_cut_short_and_no_other() -> None:
    dot = Seen(waits_s=500.0)
    fresh = quiet(1, STRESS_S - 0.001)
    first, second, third = quiet(1, 40.0) + quiet(1, STRESS_S) + quiet(1, 20.0)
    lanes = [dot, *fresh, second, first, third]
    assert longest(lanes, 2, NOW) == [first, third]
    assert longest(lanes, 9, NOW) == [first, third, second]
    assert longest(lanes, 0, NOW) == []
