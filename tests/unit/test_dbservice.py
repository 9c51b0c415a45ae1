"""The core of the store's service in virtual time: who waits for whom, the lock and the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn, cast

import pytest

from mailstrom.storage.base import ClaimRequest, Exchange, Open, Work, WorkerStore
from mailstrom_workers.dbservice import (
    FREE_LOCK_S,
    GATHER_S,
    LATE,
    MOST_FREE_S,
    SYNC_S,
    DBService,
    Late,
    Request,
    Wait,
)
from mailstrom_workers.portions import MOST_ROWS


class Store:
    """Takes ``held_s`` of virtual time behind a lock that came after ``waited_s``."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.held_s = self.waited_s = self.read_s = 0.0
        self.says = True
        self.now_s = 100.0

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        self.steps.append("exchange")
        opened = frozenset(r for one in work.opens for r in one.recipients)
        locked_s = self.now_s + self.waited_s
        freed_s = locked_s + self.held_s
        self.now_s = freed_s + self.read_s
        times = (locked_s, freed_s) if self.says else ()
        return Exchange(frozenset(), opened, [], frozenset(), *times)

    def sync(self) -> None:
        self.steps.append("sync")

    def close(self) -> None:
        self.steps.append("close")


class Driven(DBService):
    """Driven by hand; what it tells is noted among the store's steps."""

    def __init__(self, store: Store) -> None:
        self.store = store
        super().__init__(
            lambda: cast(WorkerStore, store),
            crash=_crash,
            now_ms=lambda: int(store.now_s * 1000),
            monotonic=lambda: store.now_s,
        )
        self.waits: list[Wait] = []
        self.steps = self.life()
        self.wait = self.steps.send(None)
        self.told: list[Exchange] = []

    async def start(self) -> None:
        raise AssertionError

    def here(self) -> bool:
        return True

    async def kill(self, patience_s: float) -> None:
        raise AssertionError

    def _later(self, callback: Callable[[], None]) -> None:
        callback()

    def take(self, name: str) -> Callable[[Exchange, BaseException | None], None]:
        """Somebody who is told an outcome."""

        def done(exchange: Exchange, error: BaseException | None) -> None:
            assert error is None
            self.store.steps.append(name)
            self.told.append(exchange)

        return done

    def serve(self) -> None:
        """Go on until nothing is asked, and it waits."""
        while not (self.wait.request and self._queue.empty()):
            came: Request | Late | None = None
            if self.wait.request:
                came = self._queue.get_nowait()
            else:
                self.store.now_s += self.wait.seconds or 0.0
            self._go(came)

    def late(self) -> None:
        """Nobody asks for as long as it waits."""
        assert self.wait.request
        assert self.wait.seconds is not None
        self.store.now_s += self.wait.seconds
        self._go(LATE)
        self.serve()

    def _go(self, came: Request | Late | None) -> None:
        self.waits.append(self.wait)
        self.wait = self.steps.send(came)


def _crash(where: str, error: BaseException) -> NoReturn:
    raise AssertionError(where) from error


def driven(story: Callable[[Driven, Store], None]) -> list[str]:
    """Run a story with a service that has just written; returns what was done, and who was told."""
    store = Store()

    async def whole() -> None:
        db = Driven(store)
        db.post(opening(0), db.take("first"))
        db.serve()
        store.steps.clear()
        db.waits.clear()
        story(db, store)
        done.extend(store.steps)
        db.steps.close()

    done: list[str] = []
    asyncio.run(whole())
    return done


def opening(recipient: int) -> Work:
    return Work(opens=[Open(lane=1, recipients=(recipient,), session="s")])


def claim() -> Work:
    return Work(claims=[ClaimRequest(lane=2, limit=1, max_bytes=1)])


def pauses(db: Driven) -> list[float]:
    """How long it paused, but for what rounding made of nothing."""
    seconds = [wait.seconds or 0.0 for wait in db.waits if not wait.request]
    return [one for one in seconds if one > 1e-9]


def test_only_who_claims_waits_for_the_disk() -> None:
    def story(db: Driven, store: Store) -> None:
        db.post(claim(), db.take("claimed"))
        db.post(opening(1), db.take("opened"))
        db.serve()

    assert driven(story)[:4] == ["exchange", "opened", "sync", "claimed"]


def test_what_must_be_durable_is_not_told_before_it_is() -> None:
    def story(db: Driven, store: Store) -> None:
        db.post(opening(1), db.take("durable"), durable=True)
        db.serve()

    assert driven(story)[:3] == ["exchange", "sync", "durable"]


def test_the_lock_is_left_free_for_as_long_as_it_was_held_and_not_as_it_was_waited_for() -> None:
    def story(db: Driven, store: Store) -> None:
        store.waited_s, store.held_s, store.read_s = 0.5, 0.004, 0.001
        db.post(opening(1), db.take("a"))
        db.serve()
        store.waited_s = store.held_s = store.read_s = 0.0
        db.waits.clear()
        db.post(opening(2), db.take("b"))
        db.serve()
        assert pauses(db) == [pytest.approx(0.003)], "content was read while it was free"
        db.waits.clear()
        store.held_s = 1.0
        db.post(opening(3), db.take("c"))
        db.serve()
        assert pauses(db) == [pytest.approx(FREE_LOCK_S)]
        db.waits.clear()
        db.post(opening(4), db.take("d"))
        db.serve()
        assert pauses(db) == [pytest.approx(MOST_FREE_S)]

    driven(story)


def test_what_is_opened_is_as_fresh_as_the_lock() -> None:
    def story(db: Driven, store: Store) -> None:
        store.waited_s, store.held_s, store.read_s = 0.5, 0.004, 7.0
        began = store.now_s
        db.post(opening(1), db.take("a"))
        db.serve()
        assert db.told[-1].locked_s == pytest.approx(began + FREE_LOCK_S + 0.5)
        store.says, began = False, store.now_s
        db.post(opening(2), db.take("b"))
        db.serve()
        assert db.told[-1].locked_s == pytest.approx(began), "a store that does not say"

    driven(story)


def test_who_is_patient_waits_for_others_and_who_is_not_takes_him_along() -> None:
    def story(db: Driven, store: Store) -> None:
        db.post(opening(1), db.take("patient"), patient=True)
        db.post(opening(2), db.take("patient, too"), patient=True)
        db.serve()
        assert store.steps == []
        assert db.wait.seconds == pytest.approx(GATHER_S)
        db.post(opening(3), db.take("hurried"))
        db.serve()

    assert driven(story) == ["exchange", "patient", "patient, too", "hurried"]


def test_patience_ends_by_itself_and_when_it_is_said() -> None:
    def story(db: Driven, store: Store) -> None:
        began = store.now_s
        db.post(opening(1), db.take("a"), patient=True)
        db.serve()
        assert store.steps == []
        db.late()
        assert store.steps == ["exchange", "a"]
        assert store.now_s == pytest.approx(began + GATHER_S)
        store.steps.clear()
        db.post(opening(2), db.take("b"), patient=True)
        db.serve()
        assert store.steps == []
        db.hurry()
        db.serve()
        assert store.steps == ["exchange", "b"]

    driven(story)


def test_who_is_patient_after_a_rest_does_not_wait() -> None:
    def story(db: Driven, store: Store) -> None:
        store.now_s += GATHER_S
        db.post(opening(1), db.take("a"), patient=True)
        db.serve()

    assert driven(story) == ["exchange", "a"]


def test_no_patience_keeps_results_from_the_disk() -> None:
    def story(db: Driven, store: Store) -> None:
        store.now_s += SYNC_S - 0.001  # since the first write, which is not on the disk
        db._last_write = store.now_s
        db.post(opening(1), db.take("a"), patient=True)
        db.serve()
        assert db.wait.seconds == pytest.approx(0.001)
        db.late()

    assert driven(story)[:3] == ["exchange", "a", "sync"]


def test_verbs_without_end_keep_no_result_from_the_disk() -> None:
    def story(db: Driven, store: Store) -> None:
        def verb(_: WorkerStore) -> None:
            store.now_s += SYNC_S / 2
            store.steps.append("verb")

        for _ in range(5):
            db._ask(Request(lambda _result, _error: None, verb))
        db.serve()

    assert driven(story)[:4] == ["verb", "verb", "sync", "verb"]


def test_what_many_rows_take_is_cut_and_the_lock_is_free_in_between() -> None:
    def story(db: Driven, store: Store) -> None:
        for lane in range(3):
            recipients = tuple(range(lane * MOST_ROWS, lane * MOST_ROWS + MOST_ROWS // 2))
            work = Work(opens=[Open(lane=lane, recipients=recipients, session="s")])
            db.post(work, db.take(f"lane {lane}"))
        db.serve()
        assert sum(not wait.request for wait in db.waits) == 3, "in front, between, and for more"

    assert driven(story) == ["exchange", "lane 0", "lane 1", "exchange", "lane 2"]
