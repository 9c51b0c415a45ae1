"""The store thread: shared transactions, what must happen happens, nothing queued is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from mailstrom.errors import SpoolBusy
from mailstrom.storage.base import ClaimRequest, Exchange, Open, Work, WorkerStore
from mailstrom_workers import dbthread
from mailstrom_workers.dbthread import DBThread


class FakeStore:
    """Counts what it is asked for; fails as told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.works: list[Work] = []
        self.trouble: list[BaseException] = []
        self.bad_lane = -1
        self.closed = False

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        if self.trouble:
            raise self.trouble.pop(0)
        if any(request.lane == self.bad_lane for request in work.opens):
            raise ValueError("broken invariant")
        self.works.append(work)
        self.steps.append("exchange")
        opened = frozenset(r for request in work.opens for r in request.recipients)
        return Exchange(settled=frozenset(), opened=opened, claimed=[])

    def sync(self) -> None:
        self.steps.append("sync")

    def release(self, lane: int) -> str:
        if self.trouble:
            raise self.trouble.pop(0)
        self.steps.append(f"release {lane}")
        return "released"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


async def thread_of(store: FakeStore) -> DBThread:
    db = DBThread(lambda: cast(WorkerStore, store))
    await db.start()
    return db


def opening(lane: int) -> Work:
    return Work(opens=[Open(lane=lane, recipients=(lane,), session="s")])


def release(lane: int) -> Any:
    return lambda store: store.release(lane)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbthread, "RETRY_S", 0.001)


def test_lanes_that_ask_together_share_a_transaction(store: FakeStore) -> None:
    async def story() -> list[Exchange]:
        db = await thread_of(store)
        found = await asyncio.gather(*(db.exchange(opening(lane)) for lane in range(20)))
        await db.close()
        return found

    found = asyncio.run(story())
    assert [lane in one.opened for lane, one in enumerate(found)] == [True] * 20
    assert len(store.works) < 20


def test_a_claim_is_on_disk_before_it_is_handed_back(store: FakeStore) -> None:
    async def story() -> list[str]:
        db = await thread_of(store)
        await db.exchange(Work(claims=[ClaimRequest(lane=1, limit=1, max_bytes=1)]))
        steps = list(store.steps)
        await db.close()
        return steps

    assert asyncio.run(story()) == ["exchange", "sync"]


def test_results_reach_the_disk_though_nobody_asks(store: FakeStore) -> None:
    async def story() -> None:
        db = await thread_of(store)
        await db.exchange(opening(1))
        async with asyncio.timeout(20):
            while "sync" not in store.steps:  # noqa: ASYNC110 - the thread tells nobody
                await asyncio.sleep(0.005)
        await db.close()

    asyncio.run(story())
    assert store.steps == ["exchange", "sync"]


def test_a_busy_spool_is_tried_again_until_the_results_are_in(store: FakeStore) -> None:
    store.trouble = [SpoolBusy("busy"), SpoolBusy("busy")]

    async def story() -> Exchange:
        db = await thread_of(store)
        found = await db.exchange(opening(1))
        await db.close()
        return found

    assert asyncio.run(story()).opened == {1}


def test_what_must_happen_outlasts_a_busy_spool(store: FakeStore) -> None:
    store.trouble = [SpoolBusy("busy"), SpoolBusy("busy")]

    async def story() -> object:
        db = await thread_of(store)
        result = await db.insist(release(7))
        await db.close()
        return result

    assert asyncio.run(story()) == "released"


def test_what_may_fail_tells_its_caller(store: FakeStore) -> None:
    store.trouble = [SpoolBusy("busy")]

    async def story() -> None:
        db = await thread_of(store)
        try:
            with pytest.raises(SpoolBusy):
                await db.call(release(7))
        finally:
            await db.close()

    asyncio.run(story())


def test_a_broken_invariant_leaves_its_neighbours_alone(store: FakeStore) -> None:
    store.bad_lane = 3

    async def story() -> list[object]:
        db = await thread_of(store)
        found = await asyncio.gather(
            *(db.exchange(opening(lane)) for lane in range(6)), return_exceptions=True
        )
        await db.close()
        return list(found)

    found = asyncio.run(story())
    assert [isinstance(one, ValueError) for one in found] == [lane == 3 for lane in range(6)]


def test_closing_runs_what_is_queued_and_syncs(store: FakeStore) -> None:
    async def story() -> list[object]:
        db = await thread_of(store)
        waiting = [
            asyncio.ensure_future(db.exchange(opening(1))),
            asyncio.ensure_future(db.call(release(2))),
        ]
        await asyncio.sleep(0)  # both are queued
        await db.close()
        return await asyncio.gather(*waiting)

    assert asyncio.run(story())[1] == "released"
    assert store.steps[-1] == "sync"
    assert store.closed
