"""The engine's look: one visit to the store, nothing lost by its trouble, idle lanes left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailstrom.config import from_tables
from mailstrom.errors import SpoolBusy
from mailstrom.storage.base import DueDomain, Lane
from mailstrom.types import Host
from mailstrom_workers import engine as engine_module
from mailstrom_workers import places, router
from mailstrom_workers.context import READ_AHEAD_BYTES, Context, Settings
from mailstrom_workers.engine import Engine
from mailstrom_workers.router import Patience
from tests.torture.sim_loop import VirtualLoop

DEAD = 9
"""A site with due work whose one lane hears nothing."""


def lane(site: int) -> Lane:
    """A lane at a site of its own."""
    return Lane(
        token=site, site=site, site_key=f"site {site}", provider=None, due=1,
        hosts=(Host(preference=10, name=f"mx{site}.test"),),
    )  # fmt: skip


class Store:
    """Says what is due, and leases what the story wants.

    Attributes:
        leases: given by the calls to come; an exception is raised.
        leasing: how often lanes were asked for.
        proven: for each lease, whether only sites that took mail last time were meant.
    """

    log_full = False

    def __init__(self) -> None:
        self.sites: list[int] = []
        self.open: list[int] = []
        self.domains: list[DueDomain] = []
        self.leases: list[list[Lane] | Exception] = []
        self.leasing = 0
        self.proven: list[bool] = []

    def room_bytes(self) -> None:
        return None

    def use_routes(self, policy: str, now_ms: int) -> bool:
        return False

    def next_due_ms(self, now_ms: int) -> int | None:
        return now_ms if self.sites or self.domains else None

    def due_domains(self, worker: int, limit: int, now_ms: int) -> list[DueDomain]:
        taken, self.domains = self.domains, []
        return taken

    def due_sites(self, now_ms: int) -> list[int]:
        return self.sites

    def open_sites(self, worker: int, **_: int) -> list[int]:
        return self.open or (self.sites if self.leases else [])

    def live_workers(self) -> int:
        return 1

    def lease(self, worker: int, *, want: int, proven: bool = False, **_: int) -> list[Lane]:
        self.leasing += 1
        self.proven.append(proven)
        found = self.leases.pop(0) if self.leases else []
        if isinstance(found, Exception):
            raise found
        assert len(found) <= want
        return found


class Service:
    """Asks the store at once.

    Attributes:
        visits: how often.
        tell: whom the engine has told when something is due.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.visits = 0
        self.tell: Callable[[], None] | None = None

    async def call(self, function: Callable[[Any], Any]) -> Any:
        self.visits += 1
        return function(self.store)

    insist = call

    def watch(self, told: Callable[[], None] | None) -> None:
        """Nobody is told but by the story: else the engine looks by itself."""
        self.tell = told


class Run:
    """A lane that ends once it is told to look; idle when the story says so."""

    made: list[Run]
    connected = None
    parted = opening = unproven = False
    waits_s = 0.0
    cut = light = False

    def __init__(self, ctx: Context, lane: Lane, lanes: int, rest_s: float) -> None:
        self.lane, self.idle, self.over = lane, False, asyncio.Event()
        self.began, self.rest_s = asyncio.get_running_loop().time(), rest_s
        self.error: Exception | None = None
        self.settling = SimpleNamespace(took=False)
        self.called = 0
        Run.made.append(self)

    def call(self) -> None:
        self.called += 1

    def look(self) -> None:
        self.over.set()

    def waited_s(self, now_s: float) -> float:
        return self.waits_s

    def put_down(self) -> None:
        self.light = True

    def give_up(self) -> None:
        self.cut = True
        self.over.set()

    def end(self, error: Exception) -> None:
        """Raise."""
        self.error = error
        self.over.set()

    async def run(self) -> None:
        await self.over.wait()
        if self.error is not None:
            raise self.error


class Rig:
    """An engine of two connections whose lanes are ``Run``s."""

    def __init__(self) -> None:
        self.store = Store()
        self.db = Service(self.store)
        tables = {"store": "s.db", "delivery": {"max_connections": 2}}
        settings = Settings.of(from_tables(tables))
        self.ctx = Context(
            worker=1, db=cast(Any, self.db), settings=settings,
            resolver=cast(Any, SimpleNamespace(places=1024, first_s=0.7)),
        )  # fmt: skip
        self.engine = Engine(self.ctx)

    def idle(self) -> None:
        """No lane has work."""
        for run in Run.made:
            run.idle = True

    async def looked(self, times: int = 3) -> None:
        """Let it look so often."""
        for _ in range(times):
            self.ctx.wake()
            await asyncio.sleep(0.3)


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Rig], Any]], None]:
    """Run a story beside a running engine, in virtual time."""
    Run.made = []
    monkeypatch.setattr(engine_module, "LaneRun", Run)

    def run(story: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            rig = Rig()
            running = asyncio.create_task(rig.engine.run())
            try:
                await story(rig)
            finally:
                rig.ctx.draining.set()
                rig.ctx.wake()
                await running

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(whole())

    return run


Tell = Callable[[Callable[[Rig], Any]], None]


def test_a_due_site_that_can_take_no_lane_ends_no_idle_lane(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites, rig.store.leases = [1, 2], [[lane(1), lane(2)]]
        await rig.looked(1)
        rig.idle()
        rig.store.sites = [DEAD]  # its lane is another worker's, and waits for a greeting
        await rig.looked()
        assert not rig.ctx.crowded
        assert rig.ctx.unserved == {DEAD}
        assert not any(run.over.is_set() for run in Run.made)

    tell(story)


def test_a_due_site_with_room_for_a_lane_ends_idle_ones_where_all_connections_are_used(
    tell: Tell,
) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites, rig.store.leases = [1, 2], [[lane(1), lane(2)]]
        await rig.looked(1)
        rig.idle()
        rig.store.sites = rig.store.open = [3]
        await rig.looked()
        assert all(run.over.is_set() for run in Run.made)

    tell(story)


def test_an_idle_lane_is_called_for_work_at_its_site(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites, rig.store.leases = [1], [[lane(1)]]
        await rig.looked(1)
        rig.idle()
        rig.store.sites = [1]
        await rig.looked(1)
        assert Run.made[0].called
        assert rig.ctx.unserved == frozenset()

    tell(story)


def test_a_look_is_one_visit_to_the_store(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites = [DEAD]
        await rig.looked(1)
        before = rig.db.visits
        rig.ctx.wake()
        await asyncio.sleep(0.001)
        assert rig.db.visits == before + 1

    tell(story)


def test_domains_that_were_taken_are_routed_though_the_lease_failed(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed: list[str] = []

    async def route(ctx: Context, due: DueDomain, patience: Patience) -> None:
        routed.append(due.name)

    monkeypatch.setattr(router, "route", route)

    async def story(rig: Rig) -> None:
        rig.store.sites = [1]
        rig.store.domains = [DueDomain(name="d.test", cached=None, failures=0)]
        rig.store.leases = [SpoolBusy("another has the lock")]
        await rig.looked(1)
        assert routed == ["d.test"]

    tell(story)


def test_where_no_site_has_room_nobody_asks_for_a_lane(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites = [DEAD]
        await rig.looked()
        assert rig.store.leasing == 0, "a lease is a write"
        rig.store.leases = [[lane(1)]]
        rig.store.sites = [1]
        await rig.looked(1)
        assert rig.store.leasing == 1

    tell(story)


@pytest.mark.parametrize("connections", [1, 2])
def test_a_site_with_room_is_found_behind_a_thousand_due_ones_without(
    tell: Tell, connections: int
) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites, rig.store.leases = [1], [[lane(1)] + [lane(2)] * (connections - 1)]
        await rig.looked(1)
        rig.idle()
        rig.store.sites = [DEAD]  # the store names no more than a thousand: 3 is not among them
        rig.store.open = [3]
        rig.store.leases = [[lane(3)]]
        await rig.looked(1)
        if connections == 1:
            assert [run.lane.site for run in Run.made] == [1, 3]
        else:  # no connection is left for it: idle lanes make room
            assert all(run.over.is_set() for run in Run.made[:2])

    tell(story)


def test_beside_a_full_site_what_others_commit_is_looked_at_soon_and_not_at_once(
    tell: Tell,
) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites = [DEAD]
        await rig.looked(1)
        rig.ctx.wake()
        await asyncio.sleep(0)
        assert rig.db.tell is not None
        before = rig.db.visits
        for _ in range(100):  # others commit all the time
            rig.db.tell()
            await asyncio.sleep(0.001)
        looks = rig.db.visits - before
        assert 1 <= looks <= 0.1 / engine_module.AGAIN_S + 1
        rig.store.leases, rig.store.sites = [[lane(1)]], [DEAD, 1]
        rig.db.tell()
        await asyncio.sleep(engine_module.AGAIN_S)
        assert rig.store.leasing == 1

    tell(story)


def hang(seconds: float = 60.0) -> None:
    """The hosts of all lanes say nothing, and never did."""
    for run in Run.made:
        run.opening = run.unproven = True
        run.waits_s = seconds


def test_hosts_that_say_nothing_take_no_connection_from_others(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites, rig.store.leases = [1, 2], [[lane(1), lane(2)]]
        await rig.looked(1)
        rig.store.sites, rig.store.leases = [3], [[lane(3)]]
        await rig.looked(1)
        assert len(Run.made) == 2, "both have just begun"
        hang()
        await rig.looked(1)
        assert [run.lane.site for run in Run.made] == [1, 2, 3]
        assert not any(run.over.is_set() for run in Run.made), "they are waited for all the same"

    tell(story)


def test_who_keeps_content_in_hand_takes_a_connection_where_no_more_may_be_held(
    tell: Tell,
) -> None:
    async def story(rig: Rig) -> None:
        rig.store.sites, rig.store.leases = [1, 2], [[lane(1), lane(2)]]
        await rig.looked(1)
        hang()
        for run in Run.made:
            run.opening = False  # they wait for a reply
        rig.ctx.stream(READ_AHEAD_BYTES)
        rig.store.sites, rig.store.leases = [3], [[lane(3)]]
        await rig.looked(1)
        assert len(Run.made) == 2
        assert all(run.light for run in Run.made)  # as far as they could be
        rig.ctx.stream(-1)
        await rig.looked(1)
        assert len(Run.made) == 3

    tell(story)


def test_very_many_lanes_are_not_counted_at_each_look(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "COUNT_S", 0.01)  # as if they were 500 times as many
    counted: list[float] = []
    free = engine_module.free

    def count(lanes: Any, *args: Any, **facts: Any) -> Any:
        counted.append(asyncio.get_running_loop().time())
        return free(lanes, *args, **facts)

    monkeypatch.setattr(engine_module, "free", count)

    async def story(rig: Rig) -> None:
        rig.store.sites, rig.store.leases = [1, 2], [[lane(1), lane(2)]]
        await rig.looked(1)
        rig.store.sites, rig.store.open = [1, 2, 3], [3]
        counted.clear()
        visits = rig.db.visits
        for _ in range(100):
            rig.ctx.wake()
            await asyncio.sleep(0.001)
        assert rig.db.visits - visits >= 100
        assert 4 <= len(counted) <= 7
        rig.store.leases, rig.store.open = [[lane(3)]], []
        Run.made[0].over.set()  # gives back its place, right behind a count
        await asyncio.sleep(0.03)
        assert [run.lane.site for run in Run.made] == [1, 2, 3]
        rig.ctx.wake()
        await asyncio.sleep(0.001)
        rig.ctx.paused_until = asyncio.get_running_loop().time() + 60
        visits = rig.db.visits
        await asyncio.sleep(5)
        assert rig.db.visits - visits < 5 / engine_module.AGAIN_S + 10, "a pause is no busy one"

    tell(story)


def test_where_no_room_is_left_those_waited_for_longest_give_theirs(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "WIDTH", 2)  # four in all, of which one is kept

    async def story(rig: Rig) -> None:
        for first in (1, 3):
            rig.store.sites, rig.store.leases = [first, 9], [[lane(first)]]
            await rig.looked(1)
            hang(3.0)
        rig.store.sites, rig.store.leases = [2], [[lane(2)]]
        await rig.looked(1)
        hang(3.0)
        rig.store.sites = rig.store.open = [4]
        before = len(rig.store.proven)
        await rig.looked(1)
        asked = rig.store.proven[before:]
        assert asked
        assert all(asked), "the last one is for sites that took mail"
        assert not any(run.cut for run in Run.made), "no host was waited for long enough"
        Run.made[1].waits_s = 30.0
        await rig.looked(1)
        assert [run.cut for run in Run.made] == [False, True, False]

    tell(story)


def test_a_drain_and_a_pause_lease_nothing_whatever_is_free(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.ctx.paused_until = asyncio.get_running_loop().time() + 5
        rig.store.sites, rig.store.leases = [1], [[lane(1)]]
        await rig.looked()
        assert rig.store.leasing == 0
        await asyncio.sleep(5)
        await rig.looked(1)
        assert rig.store.leasing == 1

    tell(story)
