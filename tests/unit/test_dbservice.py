"""The core of the store's service in virtual time: who waits for whom, the lock and the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest

from mailstrom.errors import SpoolCorrupt
from mailstrom.storage.base import (
    MOST_ROWS,
    AnswerLost,
    Claimed,
    ClaimRequest,
    Exchange,
    Open,
    Work,
    WorkerStore,
)
from mailstrom_workers.aside import ASIDE_S
from mailstrom_workers.dbpace import FREE_LOCK_S, GATHER_S, MOST_FREE_S, SYNC_S
from mailstrom_workers.dbrequest import LATE, Late, Request, StoreEnded, Wait
from mailstrom_workers.dbservice import DBService


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
        db._core.pace.last_write = store.now_s
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


def claiming(*lanes: int, limit: int = 8) -> Work:
    return Work(claims=[ClaimRequest(lane=lane, limit=limit, max_bytes=1) for lane in lanes])


def claimed(*lanes: int) -> list[Claimed]:
    return [cast(Claimed, SimpleNamespace(lane=lane)) for lane in lanes]


def test_of_claims_that_share_an_exchange_each_is_told_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One left something behind, one has all, one may claim nothing any more."""

    def story(db: Driven, store: Store) -> None:
        done = Exchange(
            frozenset(), frozenset({9}), claimed(3, 2, 3), ended=frozenset({4}), more=frozenset({2})
        )
        came = list[list[int]]()

        def exchange(work: Work, now_ms: int) -> Exchange:
            came.append([claim.lane for claim in work.claims])
            return done

        monkeypatch.setattr(store, "exchange", exchange)
        db.told.clear()
        for lane in (2, 3, 4):
            db.post(claiming(lane), db.take(f"lane {lane}"))
        db.serve()
        assert came == [[2, 3, 4]]
        assert [[row.lane for row in one.claimed] for one in db.told] == [[2], [3, 3], []]
        assert [set(one.more) for one in db.told] == [{2}, set(), set()]
        assert [set(one.ended) for one in db.told] == [set(), set(), {4}]
        assert [set(one.opened) for one in db.told] == [{9}, {9}, {9}]

    driven(story)


def test_claims_of_messages_with_many_recipients_share_less_of_an_exchange_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At first each of a hundred would share it; most would be told to ask again."""

    def story(db: Driven, store: Store) -> None:
        lanes, came = range(2, 9), list[list[int]]()

        def exchange(work: Work, now_ms: int) -> Exchange:
            came.append([claim.lane for claim in work.claims])
            rows = claimed(*[came[-1][0]] * 320)  # the first is served
            return Exchange(frozenset(), frozenset(), rows, more=frozenset(came[-1]))

        monkeypatch.setattr(store, "exchange", exchange)
        for _ in range(2):
            for lane in lanes:
                db.post(claiming(lane), db.take("told"))
            db.serve()
        assert came == [[*lanes], [2, 3], [4, 5], [6, 7], [8]]

    driven(story)


def test_what_is_committed_and_cannot_be_told_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker ends, as after a death: what the exchange opened nobody else knows of."""
    store, told, crashed = Store(), list[BaseException | None](), list[BaseException]()

    def exchange(work: Work, now_ms: int) -> Exchange:
        store.steps.append("exchange")
        raise AnswerLost

    def crash(where: str, error: BaseException) -> NoReturn:
        crashed.append(error)
        raise StoreEnded(where)

    monkeypatch.setattr("tests.unit.test_dbservice._crash", crash)
    monkeypatch.setattr(store, "exchange", exchange)

    async def story() -> None:
        db = Driven(store)
        for lane in (2, 3):
            db.post(claiming(lane), lambda _result, error: told.append(error))
        with pytest.raises(StopIteration):
            db.serve()

    asyncio.run(story())
    assert store.steps == ["exchange", "close"]
    assert [type(error) for error in crashed] == [AnswerLost]
    assert [type(error) for error in told] == [StoreEnded, StoreEnded]


def damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What opens recipients above 100 meets damage; which of them were tried, in order."""
    tried: list[int] = []
    taken = store.exchange

    def exchange(work: Work, now_ms: int) -> Exchange:
        recipients = [r for one in work.opens for r in one.recipients]
        if any(r > 100 for r in recipients):
            tried.extend(recipients)
            raise SpoolCorrupt("a page")
        return taken(work, now_ms)

    monkeypatch.setattr(store, "exchange", exchange)
    return tried


def test_what_met_damage_has_its_turn_again_though_others_come_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def story(db: Driven, store: Store) -> None:
        tried = damaged(store, monkeypatch)
        began, number = store.now_s, 101
        while tried.count(101) < 2:
            assert store.now_s - began < 2 * ASIDE_S
            db.post(opening(number), lambda *_: None)
            db.serve()
            number += 1
            store.now_s += ASIDE_S / 4

    driven(story)


def test_a_drain_tries_what_met_damage_at_once_a_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BaseException | None] = []

    def story(db: Driven, store: Store) -> None:
        tried = damaged(store, monkeypatch)
        db.post(opening(101), lambda _result, error: told.append(error))
        db.serve()
        assert (tried, told) == ([101], [])
        before = store.now_s
        db.drain()
        db.serve()
        assert tried == [101, 101]
        assert store.now_s - before < ASIDE_S / 2, "nobody else had to come, and no time to pass"

    driven(story)
    assert [type(error) for error in told] == [SpoolCorrupt]


@pytest.mark.parametrize("held_s", [0.0, MOST_FREE_S])
def test_the_time_that_the_lock_is_left_free_is_no_time_of_verbs(held_s: float) -> None:
    def story(db: Driven, store: Store) -> None:
        store.held_s = held_s
        db.post(opening(1), db.take("one"))
        db.serve()
        db.waits.clear()

        def verb(_: WorkerStore) -> None:
            store.now_s += 0.001

        for _ in range(50):
            db._ask(Request(lambda _result, _error: None, verb))
        db.serve()
        pauses = [wait for wait in db.waits if not wait.request]
        assert 8 <= len(pauses) <= 10, "one behind each 5 ms"

    driven(story)
