"""A process that stood still is told from a world that did not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from mailstrom.types import RouteResult
from mailstrom_workers import resolver as resolvers
from mailstrom_workers.standstill import LATE_S, TICK_S, Standstill


class Clock:
    """A loop of which only the clock and one timer are there."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Callable[[], None]] = []

    def time(self) -> float:
        """Seconds."""
        return self.now

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> Any:
        """Keep it for ``turn``."""
        self.timers.append(callback)
        return self

    def cancel(self) -> None:
        """The timer."""
        self.timers.clear()

    def turn(self, seconds: float) -> None:
        """The next tick comes after so long."""
        self.now += seconds
        self.timers.pop()()


@pytest.fixture
def clock() -> Clock:
    """Its clock."""
    return Clock()


@pytest.fixture
def stillness(clock: Clock) -> Standstill:
    """On that clock."""
    return Standstill(cast(asyncio.AbstractEventLoop, clock))


def test_ticks_in_time_are_no_standstill(clock: Clock, stillness: Standstill) -> None:
    with stillness.watched():
        began = clock.now
        for _ in range(40):
            clock.turn(TICK_S + LATE_S / 2)
        assert not stillness.since(began)
    assert clock.timers == []


def test_a_late_tick_is_one_for_those_who_were_there(clock: Clock, stillness: Standstill) -> None:
    with stillness.watched():
        began = clock.now
        clock.turn(TICK_S + LATE_S)
        later = clock.now + 0.001
        clock.turn(TICK_S)
        assert stillness.since(began)
        assert not stillness.since(later)


def test_it_is_seen_before_the_tick_comes(clock: Clock, stillness: Standstill) -> None:
    with stillness.watched():
        began = clock.now
        clock.now += TICK_S + LATE_S
        assert stillness.since(began)


def test_a_pause_in_which_nobody_watched_is_none(clock: Clock, stillness: Standstill) -> None:
    with stillness.watched():
        pass
    clock.now += 3600
    with stillness.watched(), stillness.watched():
        began = clock.now
        clock.turn(TICK_S)
        assert not stillness.since(began)


@pytest.mark.parametrize("stood", [True, False])
def test_a_lookup_that_failed_over_a_standstill_is_made_again(
    stood: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def main() -> None:
        resolver = resolvers.Resolver([("127.0.0.1", 9)])
        loop = asyncio.get_running_loop()
        found = resolvers.Answer(
            outcome=resolvers.Outcome.RECORDS, records=((10, "mx.d.test"),), name="d.test", ttl_s=60
        )

        async def follow(name: str, kind: str) -> resolvers.Answer:
            asked.append(f"{kind} {name}")
            if len(asked) > 1:
                return found
            if stood:
                now = loop.time() + TICK_S + LATE_S
                monkeypatch.setattr(loop, "time", lambda: now)
            return resolvers.Answer(
                outcome=resolvers.Outcome.TEMPORARY, name=name, ttl_s=10, text="no answer in time"
            )

        monkeypatch.setattr(resolver, "_follow", follow)
        route = await resolver.route("d.test")
        if stood:
            assert route.result is RouteResult.MX
            assert asked == ["MX d.test", "MX d.test"]
        else:
            assert route.result is RouteResult.TEMPORARY
            assert asked == ["MX d.test"]

    asyncio.run(main())
