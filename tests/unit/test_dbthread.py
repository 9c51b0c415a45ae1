"""The store thread: shared transactions, what must happen happens, nothing queued is lost."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from mailstrom.clock import wall_ms
from mailstrom.errors import SpoolBusy, SpoolCorrupt, SpoolReplaced
from mailstrom.storage.base import ClaimRequest, Exchange, Open, Work, WorkerStore
from mailstrom_workers import aside, dbcore, dbpace, duewatch
from mailstrom_workers.dbrequest import StoreEnded, Wait
from mailstrom_workers.dbthread import DBThread


class FakeStore:
    """Counts what it is asked for; fails as told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.works: list[Work] = []
        self.trouble: list[BaseException] = []
        self.bad_lane = -1
        self.damaged_lane = -1
        self.closed = False
        self.commits = 0
        self.due_ms: int | None = None
        self.looks: list[str] = []
        self.file: str | None = None

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        if self.trouble:
            raise self.trouble.pop(0)
        if any(request.lane == self.bad_lane for request in work.opens):
            raise ValueError("broken invariant")
        if any(request.lane == self.damaged_lane for request in work.opens):
            self.steps.append("damaged")
            raise SpoolCorrupt("a page")
        self.works.append(work)
        self.steps.append("exchange")
        opened = frozenset(r for request in work.opens for r in request.recipients)
        return Exchange(settled=frozenset(), opened=opened, claimed=[])

    def sync(self) -> None:
        self.steps.append("sync")

    def version(self) -> int:
        self.looks.append("version")
        if self.commits < 0:
            raise SpoolBusy("busy")
        return self.commits

    def next_due_ms(self, now_ms: int) -> int | None:
        self.looks.append("due")
        return self.due_ms

    def watched(self) -> str | None:
        return self.file

    def live_workers(self) -> int:
        return 1

    def release(self, lane: int) -> str:
        if self.trouble:
            raise self.trouble.pop(0)
        if lane == self.damaged_lane:
            raise SpoolCorrupt("a page")
        self.steps.append(f"release {lane}")
        return "released"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def end(where: str, error: BaseException) -> NoReturn:
    """As the engine inside an application does: note it, and end this thread."""
    crashes.append((where, error))
    raise StoreEnded(where)


crashes: list[tuple[str, BaseException]] = []


async def thread_of(store: FakeStore) -> DBThread:
    db = DBThread(lambda: cast(WorkerStore, store), crash=end)
    await db.start()
    return db


def opening(lane: int) -> Work:
    return Work(opens=[Open(lane=lane, recipients=(lane,), session="s")])


def release(lane: int) -> Any:
    return lambda store: store.release(lane)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbcore, "RETRY_S", 0.001)
    crashes.clear()


def test_lanes_that_ask_together_share_a_transaction(store: FakeStore) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        under_way.set()
        assert go_on.wait(20)

    async def story() -> list[Exchange]:
        db = await thread_of(store)
        first = asyncio.ensure_future(db.call(slow))
        await asyncio.to_thread(under_way.wait, 20)
        asking = asyncio.gather(*(db.exchange(opening(lane)) for lane in range(20)))
        await asyncio.sleep(0)  # all are queued
        go_on.set()
        found = await asking
        await first
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


def test_what_meets_damage_waits_while_the_others_go_on(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "ASIDE_S", 0.001)
    store.damaged_lane = 3

    async def story() -> tuple[list[Exchange], Exchange, object]:
        db = await thread_of(store)
        damaged = asyncio.create_task(db.exchange(opening(3)))
        stuck = asyncio.create_task(db.insist(release(3)))
        others = await asyncio.gather(*(db.exchange(opening(lane)) for lane in range(3)))
        async with asyncio.timeout(20):
            while store.steps.count("damaged") < 3:  # noqa: ASYNC110 - the thread tells nobody
                await asyncio.sleep(0.001)
        assert not damaged.done()
        assert not stuck.done()
        store.damaged_lane = -1  # a disk may read well again
        found = others, await damaged, await stuck
        await db.close()
        return found

    others, late, released = asyncio.run(story())
    assert [lane in one.opened for lane, one in enumerate(others)] == [True] * 3
    assert late.opened == {3}
    assert released == "released"


def test_a_drain_does_not_wait_for_a_damaged_spool(store: FakeStore) -> None:
    store.damaged_lane = 3

    async def story() -> None:
        db = await thread_of(store)
        before = asyncio.create_task(db.exchange(opening(3)))
        await db.exchange(opening(1))
        db.drain()
        with pytest.raises(SpoolCorrupt):
            await before
        with pytest.raises(SpoolCorrupt):
            await db.insist(release(3))
        await db.close()

    asyncio.run(asyncio.wait_for(story(), 20))
    assert store.closed
    assert not crashes


def test_closing_tells_who_waits_for_a_damaged_page(store: FakeStore) -> None:
    store.damaged_lane = 3

    async def story() -> None:
        db = await thread_of(store)
        stuck = asyncio.create_task(db.exchange(opening(3)))
        await db.exchange(opening(1))
        await db.close()
        with pytest.raises(SpoolCorrupt):
            await stuck

    asyncio.run(asyncio.wait_for(story(), 20))


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


def test_a_bug_in_what_must_happen_ends_the_worker_and_tells_whoever_waits(
    store: FakeStore,
) -> None:
    bug = KeyError("no such lane")
    store.trouble = [bug]

    async def story() -> list[object]:
        db = await thread_of(store)
        waiting = [
            asyncio.ensure_future(db.insist(release(1))),
            asyncio.ensure_future(db.call(release(2))),
            asyncio.ensure_future(db.call(release(3))),
        ]
        found = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(StoreEnded):
            await db.insist(release(4))
        await db.close()
        return list(found)

    found = asyncio.run(story())
    assert crashes == [("a step that must happen", bug)]
    assert [isinstance(one, StoreEnded) for one in found] == [True] * 3
    assert store.steps == []
    assert store.closed


def test_a_replaced_spool_is_written_no_more(store: FakeStore) -> None:
    store.trouble = [SpoolReplaced("replaced")]

    async def story() -> list[object]:
        db = await thread_of(store)
        found = await asyncio.gather(
            *(db.exchange(opening(lane)) for lane in range(9)), return_exceptions=True
        )
        await db.close()
        return list(found)

    assert all(isinstance(one, StoreEnded) for one in asyncio.run(story()))
    assert [where for where, _ in crashes] == ["store"]
    assert store.works == []


def test_killed_it_does_nothing_more_not_even_what_is_queued(store: FakeStore) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> str:
        under_way.set()
        go_on.wait(20)
        return "done"

    async def story() -> list[object]:
        db = await thread_of(store)
        first = asyncio.ensure_future(db.call(slow))
        await asyncio.to_thread(under_way.wait, 20)
        queued = [
            asyncio.ensure_future(db.exchange(opening(1))),
            asyncio.ensure_future(db.insist(release(2))),
        ]
        await asyncio.sleep(0)
        await db.kill(0.0)
        found: list[object] = list(await asyncio.gather(*queued, return_exceptions=True))
        go_on.set()
        await db.close()
        return [await first, *found]

    done, *refused = asyncio.run(story())
    assert done == "done"
    assert all(isinstance(one, StoreEnded) for one in refused)
    assert store.steps == []
    assert store.closed


def test_killed_it_insists_no_longer(store: FakeStore) -> None:
    store.trouble = [SpoolBusy("busy")] * 1_000_000

    async def story() -> object:
        db = await thread_of(store)
        waiting = asyncio.ensure_future(db.insist(release(1)))
        whole = len(store.trouble)
        async with asyncio.timeout(20):
            while len(store.trouble) == whole:  # noqa: ASYNC110 - the thread tells nobody
                await asyncio.sleep(0.001)
        await db.kill(20.0)
        (found,) = await asyncio.gather(waiting, return_exceptions=True)
        return found

    assert isinstance(asyncio.run(story()), StoreEnded)
    assert store.closed


def test_a_store_is_changed_for_another_between_two_steps(store: FakeStore) -> None:
    other = FakeStore()

    async def story() -> None:
        db = await thread_of(store)
        await db.exchange(opening(1))
        await db.reopen(lambda: cast(WorkerStore, other))
        await db.insist(release(2))
        await db.close()

    asyncio.run(story())
    assert store.steps == ["exchange", "sync"]  # nothing is left unsynced behind
    assert store.closed
    assert other.steps == ["release 2"]
    assert other.closed


def test_a_store_that_cannot_be_opened_anew_leaves_the_old_one(store: FakeStore) -> None:
    def fail() -> WorkerStore:
        raise SpoolBusy("busy")

    async def story() -> None:
        db = await thread_of(store)
        with pytest.raises(SpoolBusy):
            await db.reopen(fail)
        await db.insist(release(1))
        await db.close()

    asyncio.run(story())
    assert store.steps == ["release 1"]


def test_killed_while_it_opens_it_closes_what_it_gets(store: FakeStore) -> None:
    opening, on = threading.Event(), threading.Event()

    def slow() -> WorkerStore:
        opening.set()
        assert on.wait(20)
        return cast(WorkerStore, store)

    async def story() -> None:
        db = DBThread(slow, crash=end)
        start = asyncio.ensure_future(db.start())
        await asyncio.to_thread(opening.wait, 20)
        start.cancel()
        await db.kill(0.0)
        with pytest.raises(StoreEnded):
            await db.call(release(1))
        on.set()
        await db.kill(20)

    asyncio.run(story())
    assert store.closed
    assert store.steps == []


def test_a_worker_that_ends_after_a_reopening_closes_the_new_store(store: FakeStore) -> None:
    fresh = FakeStore()
    fresh.trouble = [KeyError("no such lane")]

    async def story() -> None:
        db = await thread_of(store)
        await db.reopen(lambda: cast(WorkerStore, fresh))
        await db.call(lambda now: None)
        with pytest.raises(StoreEnded):
            await db.insist(release(1))
        await db.kill(20)

    asyncio.run(story())
    assert (store.closed, fresh.closed) == (True, True)


def test_one_that_cannot_take_its_outcome_leaves_its_neighbours_alone(store: FakeStore) -> None:
    complaints: list[object] = []

    def refuse(_result: object, _error: BaseException | None) -> None:
        raise KeyError("a bug of this lane")

    async def story() -> Exchange:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
        db = await thread_of(store)
        db.post(opening(1), refuse)
        found = await db.exchange(opening(2))
        await db.close()
        return found

    assert 2 in asyncio.run(asyncio.wait_for(story(), 20)).opened
    assert [type(one) for one in complaints] == [KeyError]


def test_what_a_commit_did_is_told_by_one_call_on_the_loop(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    told: list[int] = []
    later = DBThread._later

    def counted(self: DBThread, callback: Callable[[], None]) -> None:
        def call() -> None:
            before = len(told)
            callback()
            calls.append(len(told) - before)

        later(self, call)

    under_way, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        under_way.set()
        assert go_on.wait(20)

    async def story() -> None:
        monkeypatch.setattr(DBThread, "_later", counted)
        db = await thread_of(store)
        first = asyncio.ensure_future(db.call(slow))
        await asyncio.to_thread(under_way.wait, 20)
        for lane in range(20):
            db.post(opening(lane), lambda result, error, lane=lane: told.append(lane))
        go_on.set()
        await first
        await db.exchange(opening(99))
        await db.close()

    asyncio.run(asyncio.wait_for(story(), 20))
    assert told == list(range(20))
    assert 20 in calls


class Watch:
    """Counts what it is told."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.told = 0

    def __call__(self) -> None:
        self.told += 1

    async def looks(self, more: int) -> None:
        """Wait until the store was looked at so often again, and the word of it came."""
        whole = self.store.looks.count("version") + more
        async with asyncio.timeout(20):
            while self.store.looks.count("version") < whole:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)


def watching(store: FakeStore, story: Callable[[DBThread, Watch], Awaitable[None]]) -> None:
    async def whole() -> None:
        db = await thread_of(store)
        watch = Watch(store)
        db.watch(watch)
        await watch.looks(2)
        await story(db, watch)
        await db.close()

    asyncio.run(asyncio.wait_for(whole(), 20))


def test_a_foreign_commit_is_told_when_something_is_due(store: FakeStore) -> None:
    async def story(db: DBThread, watch: Watch) -> None:
        store.commits += 1
        await watch.looks(2)
        assert watch.told == 0, "nothing is due"
        store.due_ms = 0
        await watch.looks(2)
        assert watch.told == 0, "nobody committed: it was not asked again"
        store.commits += 1
        await watch.looks(2)
        assert watch.told == 1
        await watch.looks(3)
        assert watch.told == 1, "told once"
        store.commits += 1
        await watch.looks(2)
        assert watch.told == 2, "there may be more"

    watching(store, story)
    assert store.looks.count("due") == 4


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_write_to_the_spool_wakes_who_sleeps_on_it(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duewatch, "ASLEEP_S", 3600.0)
    file = tmp_path / "log"
    file.touch()
    store.file = str(file)

    async def story(db: DBThread, watch: Watch) -> None:
        async with asyncio.timeout(20):
            while not db._due.armed:  # a watch that never rang is not slept on
                file.write_bytes(b"a")
                await asyncio.sleep(0.001)
            store.due_ms = 0
            store.commits += 1
            assert db._due.armed
            file.write_bytes(b"b")
            while not watch.told:  # noqa: ASYNC110 - it is told, that is what is tested
                await asyncio.sleep(0.001)
        assert not db._due.armed, "with work in hand it does not sleep"

    watching(store, story)


def test_where_nothing_can_be_watched_it_looks_by_itself(store: FakeStore, tmp_path: Path) -> None:
    store.file = str(tmp_path / "missing")

    async def story(db: DBThread, watch: Watch) -> None:
        await watch.looks(3)
        store.due_ms = 0
        store.commits += 1
        await watch.looks(2)
        assert watch.told == 1
        assert not db._due.armed

    watching(store, story)


def test_what_falls_due_as_time_goes_by_is_told(store: FakeStore) -> None:
    async def story(db: DBThread, watch: Watch) -> None:
        store.due_ms = wall_ms() + 60
        store.commits += 1
        await watch.looks(1)
        async with asyncio.timeout(20):
            while not watch.told:  # noqa: ASYNC110 - it is told, that is what is tested
                await asyncio.sleep(0.001)
        assert wall_ms() >= store.due_ms
        assert store.looks.count("due") == 2

    watching(store, story)


def test_own_writes_make_it_ask_again_what_is_due(store: FakeStore) -> None:
    async def story(db: DBThread, watch: Watch) -> None:
        store.due_ms = 0
        await db.exchange(opening(1))
        await watch.looks(2)
        assert watch.told == 1

    watching(store, story)


def test_a_spool_that_cannot_be_looked_at_is_told_once(store: FakeStore) -> None:
    async def story(db: DBThread, watch: Watch) -> None:
        store.commits = -1
        await watch.looks(4)
        assert watch.told == 1, "who looks then meets it, too"
        store.commits = 7
        await watch.looks(2)
        assert watch.told == 1

    watching(store, story)


def test_a_drain_is_told_and_nothing_is_looked_at_when_nobody_watches(store: FakeStore) -> None:
    async def story(db: DBThread, watch: Watch) -> None:
        db.watch(None)
        await db.exchange(opening(1))
        looked = len(store.looks)
        async with asyncio.timeout(20):
            while "sync" not in store.steps:  # noqa: ASYNC110 - the thread tells nobody
                await asyncio.sleep(0.001)
        assert len(store.looks) == looked, "it waited longer than between two looks"
        assert dbpace.SYNC_S > 2 * duewatch.LOOK_S
        db.watch(watch)
        db.drain()
        assert watch.told == 1

    watching(store, story)


def test_results_reach_the_disk_while_it_is_watched(store: FakeStore) -> None:
    async def story(db: DBThread, watch: Watch) -> None:
        await db.exchange(opening(1))
        async with asyncio.timeout(20):
            while "sync" not in store.steps:  # noqa: ASYNC110 - the thread tells nobody
                await asyncio.sleep(0.001)

    watching(store, story)


def test_the_lock_is_left_free_between_commits_and_between_many_verbs(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    wait = DBThread._wait

    def noted(self: DBThread, wanted: Wait) -> Any:
        if wanted.request:
            return wait(self, wanted)
        pauses.append(wanted.seconds or 0.0)  # noted, and not waited for
        return None

    monkeypatch.setattr(DBThread, "_wait", noted)
    for name in ("FREE_LOCK_S", "MOST_FREE_S"):  # longer than any test stands still
        monkeypatch.setattr(dbpace, name, 3600.0)
    monkeypatch.setattr(dbpace, "SERIES_S", 0.0)

    async def story() -> None:
        db = await thread_of(store)
        await db.exchange(opening(1))
        assert pauses == []
        await db.exchange(opening(2))
        assert pauses
        pauses.clear()
        await db.call(release(1))
        await db.call(release(2))
        assert pauses
        await db.close()

    asyncio.run(asyncio.wait_for(story(), 20))
    assert all(0 < pause <= 3600.0 for pause in pauses)
