"""Domains whose DNS never answers hold up no others, however many there are: in virtual time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, cast

import pytest

from mailstrom.config import from_tables
from mailstrom.policy.answers import nowhere
from mailstrom.storage.base import DueDomain, Failure, RouteAnswer
from mailstrom.types import Host, Route, RouteResult
from mailstrom_workers import places as places_module
from mailstrom_workers.context import Context, Settings
from mailstrom_workers.engine import Engine
from mailstrom_workers.lookups import FAILING
from mailstrom_workers.machine import Machine
from mailstrom_workers.places import MOST_LOOKUPS
from tests.torture.sim_loop import VirtualLoop

TIMEOUT_S = 5.0
FIRST_S = TIMEOUT_S / 7
ANSWER_S = 0.05
STORE_S = 0.002


class Store:
    """A cache of routes: who is ready first is taken first, as in the real one.

    Attributes:
        at: domain -> when its route was found, in seconds.
        failures: domain -> how often it was not.
        given: domains that were given back, each time.
        most_taken: the most of one look.
    """

    log_full = False

    def __init__(self) -> None:
        self._ready: list[tuple[int, int, str]] = []
        self._order = 0
        self.at: dict[str, float] = {}
        self.failures: dict[str, int] = {}
        self.given: list[str] = []
        self.most_taken = 0

    def add(self, names: Sequence[str], ready_ms: int, failures: int = 0) -> None:
        """Mail waits for these."""
        for name in names:
            self._order += 1
            heapq.heappush(self._ready, (ready_ms, self._order, name))
            self.failures.setdefault(name, failures)

    def room_bytes(self) -> None:
        return None

    def use_routes(self, policy: str, now_ms: int) -> bool:
        return False

    def next_due_ms(self, now_ms: int) -> int | None:
        return self._ready[0][0] if self._ready else None

    def due_domains(self, worker: int, limit: int, now_ms: int) -> list[DueDomain]:
        taken: list[DueDomain] = []
        while len(taken) < limit and self._ready and self._ready[0][0] <= now_ms:
            _, _, name = heapq.heappop(self._ready)
            taken.append(DueDomain(name=name, cached=None, failures=self.failures[name]))
        self.most_taken = max(self.most_taken, len(taken))
        return taken

    def give_back(self, worker: int, domains: Mapping[str, int]) -> None:
        for name, retry_ms in domains.items():
            self.given.append(name)
            self.add([name], retry_ms)

    def put_routes(self, worker: int, answers: Sequence[RouteAnswer], now_ms: int) -> list[bool]:
        for answer in answers:
            name = answer.route.domain
            if answer.route.result is RouteResult.TEMPORARY:
                self.failures[name] += 1
                self.add([name], answer.expires_ms)
            else:
                self.at[name] = now_ms / 1000
        return [False] * len(answers)

    def last_event(self) -> int:
        return 0

    def failed_since(self, before: int, *, domain: str) -> list[Failure]:
        return []

    def due_sites(self, now_ms: int) -> list[int]:
        return []

    def open_sites(self, worker: int, **_: int) -> list[int]:
        return []

    def live_workers(self) -> int:
        return 1


class Service:
    """Asks the store, after its time."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def call(self, function: Callable[[Any], Any]) -> Any:
        await asyncio.sleep(STORE_S)
        return function(self.store)

    insist = call

    def watch(self, told: Callable[[], None] | None) -> None:
        """Nobody is told."""


class Names:
    """A resolver: a domain called ``dead`` is silent while it is ``down``.

    Attributes:
        most: the most lookups that were under way at once.
    """

    places = MOST_LOOKUPS
    first_s = FIRST_S

    def __init__(self) -> None:
        self.open = self.most = 0
        self.down = True
        self.asked = 0

    async def route(self, domain: str) -> Route:
        self.open += 1
        self.asked += 1
        self.most = max(self.most, self.open)
        try:
            if self.down and domain.startswith("dead"):
                await asyncio.sleep(TIMEOUT_S)
                return nowhere(domain, RouteResult.TEMPORARY, 60, "no answer in time")
            await asyncio.sleep(ANSWER_S)
        finally:
            self.open -= 1
        hosts = (Host(preference=10, name=f"mx.{domain}"),)
        return Route(domain=domain, result=RouteResult.MX, hosts=hosts, ttl_s=300)


class Rig:
    """An engine that has nothing but domains to look up."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.store, self.names = Store(), Names()
        tables = {"store": "s.db", "dns": {"timeout": f"{TIMEOUT_S}s"}}
        self.ctx = Context(
            worker=1, db=cast(Any, Service(self.store)), settings=Settings.of(from_tables(tables)),
            resolver=cast(Any, self.names),
            machine=Machine(wall_ms=lambda: int(self.loop.time() * 1000)),
        )  # fmt: skip
        self.engine = Engine(self.ctx)

    def dead(self, count: int, failures: int = 0) -> None:
        """So many domains of a dead DNS wait."""
        names = [f"dead{number}.test" for number in range(count)]
        self.store.add(names, self.ctx.now_ms(), failures)

    async def good(self, count: int = 50) -> float:
        """So many good new ones wait now; seconds until the last of them was routed."""
        before = self.loop.time()
        names = [f"good{int(before * 1000)}-{number}.test" for number in range(count)]
        self.store.add(names, self.ctx.now_ms())
        while not self.store.at.keys() >= set(names):
            assert self.loop.time() < before + 3600, "they are never routed"
            await asyncio.sleep(0.1)
        return max(self.store.at[name] for name in names) - before


Tell = Callable[[Callable[[Rig], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Run a story beside a running engine, in virtual time."""
    monkeypatch.setattr(places_module.resource, "getrlimit", lambda _: (20_000, 20_000))

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
            assert rig.names.most <= MOST_LOOKUPS
            assert rig.store.most_taken <= MOST_LOOKUPS // FAILING

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(whole())

    return run


def test_fifty_good_domains_are_routed_behind_five_thousand_of_a_dead_dns(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.dead(5_000)
        # each of the dead has one second's patience at most, and so many have it together
        assert await rig.good() < 5_000 / MOST_LOOKUPS * (FIRST_S + 0.3) + 1

    tell(story)


@pytest.mark.parametrize("count", [1_000, 10_000, 60_000])
def test_domains_that_failed_before_hold_up_nobody_however_many_they_are(
    tell: Tell, count: int
) -> None:
    async def story(rig: Rig) -> None:
        rig.dead(count, failures=3)
        waited = await rig.good()
        assert waited < 1 + count / 10_000  # the work of giving so many back, no wait for silence
        assert rig.names.asked < 50 + MOST_LOOKUPS  # nobody was asked in haste
        for _ in range(5):
            await asyncio.sleep(20)
            assert await rig.good() < 2

    tell(story)


def test_a_domain_that_failed_has_all_its_time_at_the_next_try_and_none_starves(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.dead(3_000, failures=1)
        await asyncio.sleep(300)
        tried = [count for name, count in rig.store.failures.items() if name.startswith("dead")]
        assert min(tried) > 1

    tell(story)


def test_without_others_that_wait_a_first_try_has_all_its_time(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.dead(MOST_LOOKUPS - 1)
        await asyncio.sleep(TIMEOUT_S - 0.5)
        assert rig.names.open == MOST_LOOKUPS - 1

    tell(story)


def test_when_the_dns_is_back_all_that_is_due_is_routed_soon(tell: Tell) -> None:
    async def story(rig: Rig) -> None:
        rig.dead(1_000, failures=3)
        await asyncio.sleep(2)
        rig.names.down = False
        rig.store.add([f"back{number}.test" for number in range(20_000)], rig.ctx.now_ms(), 3)
        back = rig.loop.time()
        while sum(name.startswith("back") for name in rig.store.at) < 20_000:
            assert rig.loop.time() < back + 75
            await asyncio.sleep(1)

    tell(story)


@pytest.mark.parametrize(("files", "places"), [(1024, 124), (256, 28), (10_000, 1024)])
def test_lookups_leave_descriptors_for_connections(
    tell: Tell, monkeypatch: pytest.MonkeyPatch, files: int, places: int
) -> None:
    monkeypatch.setattr(places_module.resource, "getrlimit", lambda _: (files, files))

    async def story(rig: Rig) -> None:
        rig.dead(5_000)
        await rig.good(1)
        assert rig.names.most == places

    tell(story)
