"""How long a site is left alone whose lanes raise, who is told, and who is not concerned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailstrom import events
from mailstrom.errors import SpoolBusy
from mailstrom.policy.site import CRASHED, MOST_CRASH_S
from mailstrom.storage.base import Lane, Suspension
from mailstrom.types import Host, Reason
from mailstrom_workers.context import Context
from mailstrom_workers.crashes import MOST_SITES, MOST_SPOOL_S, Crashes
from mailstrom_workers.lane import LaneRun
from tests.torture.sim_loop import VirtualLoop
from tests.unit import test_engine
from tests.unit.lane_rig import Rig as LaneRig
from tests.unit.lane_rig import row
from tests.unit.test_engine import Rig, Tell

tell = test_engine.tell
BUG = KeyError("what is this")


def lane(site: int = 1, *, token: int = 1, failing: bool = False) -> Lane:
    return Lane(
        token=token, site=site, site_key=f"site {site}", provider=None, due=1,
        hosts=(Host(preference=10, name="mx.test"),), failing=failing,
    )  # fmt: skip


class Store:
    """Keeps suspensions, or refuses them."""

    def __init__(self) -> None:
        self.suspended: list[Suspension] = []
        self.refuses: Exception | None = None

    async def call(self, function: Callable[[Any], Any]) -> Any:
        return function(self)

    def suspend(self, suspension: Suspension, now_ms: int) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.suspended.append(suspension)
        return 1


def told(story: Callable[[Crashes, Store], Coroutine[Any, Any, None]]) -> None:
    """Run a story in virtual time."""

    async def whole() -> None:
        store = Store()
        ctx = SimpleNamespace(db=store, worker=7, now_ms=lambda: 1_000_000)
        await story(Crashes(cast(Context, ctx)), store)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(whole())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_each_crash_in_a_row_doubles_the_pause_up_to_a_bound() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        seen = []
        for _ in range(11):
            seen.append(crashes.crashed(lane(), now(), BUG))
            assert crashes.rest_s(lane()) == seen[-1]
            assert crashes.rest_s(lane(2)) == 0.0, "no other site is concerned"
            await asyncio.sleep(seen[-1])
            assert crashes.rest_s(lane()) == 0.0
        assert seen == [1, 2, 4, 8, 16, 32, 64, 128, 256, MOST_CRASH_S, MOST_CRASH_S]

    told(story)


def test_lanes_that_crash_together_count_once() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        began = now()
        await asyncio.sleep(5.0)
        assert crashes.crashed(lane(), began, BUG) == 1.0
        await asyncio.sleep(0.5)
        assert crashes.crashed(lane(token=2), began, BUG) == 0.5
        await asyncio.sleep(0.5)
        assert crashes.crashed(lane(token=3), now(), BUG) == 2.0

    told(story)


def test_a_lane_begun_in_the_moment_of_a_crash_crashed_with_it() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        assert crashes.crashed(lane(), now(), BUG) == 1.0
        assert crashes.crashed(lane(token=2), now(), BUG) == 1.0

    told(story)


def test_only_a_lane_begun_since_that_ends_well_begins_the_count_anew() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        before = now()
        await asyncio.sleep(1.0)
        crashes.crashed(lane(), before, BUG)
        crashes.ended(lane(token=2), before)
        assert crashes.rest_s(lane()) == 1.0
        await asyncio.sleep(1.0)
        crashes.ended(lane(token=3), now())
        assert crashes.crashed(lane(token=4), now(), BUG) == 1.0
        await asyncio.sleep(1.0)
        assert crashes.crashed(lane(token=5), now(), BUG) == 2.0
        await asyncio.sleep(2.0)
        assert crashes.crashed(lane(token=6), now(), BUG, took=True) == 1.0, "a host took mail"

    told(story)


def test_the_spool_says_it_and_who_ends_the_pause_there_is_obeyed() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        crashes.crashed(lane(), now(), BUG)
        await crashes.write(lane(), now(), BUG)
        [row] = store.suspended
        assert (row.site, row.until_ms, row.reason) == (1, 1_001_000, Reason.LOCAL)
        assert (row.by, row.text) == ("worker 7", f"{CRASHED}KeyError: 'what is this'")
        assert crashes.rest_s(lane(failing=True)) == 0.0, "a person ended it"
        assert crashes.rest_s(lane()) == 1.0, "another lane's delivery did: it was not for this"
        await asyncio.sleep(1.0)
        await crashes.write(lane(), now(), BUG)
        assert len(store.suspended) == 1, "the pause is over"

    told(story)


def test_a_spool_that_cannot_say_it_is_no_way_round_the_pause() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        store.refuses = SpoolBusy("another has the lock")
        crashes.crashed(lane(), now(), BUG)
        await crashes.write(lane(), now(), BUG)
        assert crashes.rest_s(lane(failing=True)) == 1.0

    told(story)


def test_what_the_spool_refuses_pauses_for_seconds_and_blames_nobody() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        error = SpoolBusy("another has the lock")
        seen = []
        for _ in range(5):
            seen.append(crashes.crashed(lane(), now(), error))
            await crashes.write(lane(), now(), error)
            await asyncio.sleep(seen[-1])
        assert seen == [1, 2, 4, MOST_SPOOL_S, MOST_SPOOL_S]
        assert store.suspended == []

    told(story)


def test_what_is_remembered_is_bounded() -> None:
    async def story(crashes: Crashes, store: Store) -> None:
        for site in range(MOST_SITES + 5):
            crashes.crashed(lane(site), now(), BUG)
        assert crashes.rest_s(lane(4)) == 0.0
        assert crashes.rest_s(lane(5)) == 1.0

    told(story)


@pytest.mark.parametrize("others", [True, False])
def test_a_lane_that_raises_is_told_with_its_site_and_the_next_one_rests(
    tell: Tell, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(events, "engine_failed", lambda **fields: lines.append(fields))
    suspended: list[Suspension] = []

    async def story(rig: Rig) -> None:
        rig.store.suspend = lambda row, now_ms: suspended.append(row)  # type: ignore[attr-defined]
        rig.store.sites = [1]
        rig.store.leases = [[lane(), lane(token=2)] if others else [lane()]]
        await rig.looked(1)
        test_engine.Run.made[0].end(BUG)
        await asyncio.sleep(0.1)
        [line] = lines
        assert (line["where"], line["site"], line["pause_s"]) == ("lane 1", "site 1", 1.0)
        assert line["error"] is BUG
        assert len(suspended) == (not others), "lanes that work go on"
        rig.store.leases = [[lane(token=3)]]
        await rig.looked(1)
        assert 0.0 < test_engine.Run.made[-1].rest_s < 1.0

    tell(story)


@pytest.mark.parametrize("drained", [True, False])
def test_a_lane_that_rests_claims_nothing_until_then_unless_a_drain_ends_it(
    monkeypatch: pytest.MonkeyPatch, drained: bool
) -> None:
    rig = LaneRig(monkeypatch, row(1))
    ends: list[float] = []
    began = rig.loop.time()

    async def main() -> None:
        made = rig.lane()
        resting = LaneRun(made.ctx, made.lane, 1, 30.0)
        running = asyncio.ensure_future(resting.run())
        await asyncio.sleep(10.0)
        resting.look()
        await asyncio.sleep(10.0)
        assert resting.parted
        assert rig.store.work == []
        if drained:
            resting.ctx.draining.set()
            resting.look()
        await running
        ends.append(rig.loop.time())

    rig.loop.run_until_complete(main())
    rig.loop.close()
    assert (ends[0] - began < 21.0) == drained
    assert rig.store.states[1] == ("queued" if drained else "delivered")
