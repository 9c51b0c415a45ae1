"""One exchange of a lane at a time, what comes together in one, and no error that is nobody's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from mailstrom.storage.base import Exchange, Work
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.exchanges import Exchanges, Wanted
from tests.torture.sim_loop import VirtualLoop

ANSWER = Exchange(frozenset(), frozenset(), [])


class Service:
    """A store's service that answers when it is told to."""

    def __init__(self) -> None:
        self.posted: list[tuple[Work, bool, bool]] = []
        self.waiting: list[Callable[..., None]] = []
        self.hurried = 0
        self.dead: Exception | None = None

    def post(self, work: Work, done: Callable[..., None], *, durable: bool, patient: bool) -> None:
        """See ``DBService.post``."""
        if self.dead is not None:
            raise self.dead
        self.posted.append((work, durable, patient))
        self.waiting.append(done)

    def hurry(self) -> None:
        """See ``DBService.hurry``."""
        self.hurried += 1

    def answer(self, error: BaseException | None = None) -> None:
        """Answer the one exchange that is under way."""
        (done,) = self.waiting
        self.waiting.clear()
        done(None if error is not None else ANSWER, error)


class Lane:
    """Who wants exchanges; ``wanted`` holds them in order."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []
        self.answers: list[Exchange] = []
        self.errors: list[Exception] = []
        self.turns = 0
        self.broken: Exception | None = None

    def wants(self) -> Wanted | None:
        """See ``Owner``."""
        return self.wanted.pop(0) if self.wanted else None

    def came(self, exchange: Exchange) -> None:
        """See ``Owner``."""
        if self.broken is not None:
            raise self.broken
        self.answers.append(exchange)

    def fail(self, error: Exception) -> None:
        """See ``Owner``."""
        self.errors.append(error)

    def turned(self) -> None:
        """See ``Owner``."""
        self.turns += 1


class Rig:
    """The parts, on a running loop."""

    def __init__(self) -> None:
        self.db, self.lane = Service(), Lane()
        self.exchanges = Exchanges(cast(DBService, self.db), self.lane)

    def want(self, *, durable: bool = False, patient: bool = False) -> Work:
        """One more is wanted."""
        work = Work()
        self.lane.wanted.append(Wanted(work, durable, patient))
        return work

    async def turn(self) -> None:
        """Let the loop turn."""
        await asyncio.sleep(0.001)


Story = Callable[[Rig], Coroutine[Any, Any, None]]


@pytest.fixture
def tell() -> Callable[[Story], None]:
    """Run a story in virtual time."""

    def run(story: Story) -> None:
        async def whole() -> None:
            await story(Rig())

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(whole())

    return run


def test_what_is_stirred_together_is_asked_once_and_later(tell: Callable[[Story], None]) -> None:
    async def story(rig: Rig) -> None:
        one = rig.want(durable=True)
        rig.want()
        for _ in range(3):
            rig.exchanges.stir()
            assert rig.exchanges.busy
        assert rig.db.posted == [], "more may be told behind this"
        await rig.turn()
        assert len(rig.db.posted) == 1
        assert rig.db.posted[0][0] is one
        assert rig.db.posted[0][1:] == (True, False)
        assert rig.lane.turns == 1

    tell(story)


def test_what_is_stirred_meanwhile_is_asked_at_once_behind_the_answer(
    tell: Callable[[Story], None],
) -> None:
    async def story(rig: Rig) -> None:
        rig.want()
        rig.exchanges.turn()
        second = rig.want(patient=True)
        rig.exchanges.stir()
        rig.exchanges.turn()
        await rig.turn()
        assert len(rig.db.posted) == 1
        assert rig.exchanges.asking
        rig.db.answer()
        assert rig.lane.answers == [ANSWER]
        assert len(rig.db.posted) == 2
        assert rig.db.posted[1][0] is second
        rig.db.answer()
        assert not rig.exchanges.busy
        assert len(rig.db.posted) == 2
        assert rig.lane.turns == 2

    tell(story)


def test_where_nothing_is_wanted_nothing_is_asked(tell: Callable[[Story], None]) -> None:
    async def story(rig: Rig) -> None:
        rig.exchanges.stir()
        await rig.turn()
        assert not rig.exchanges.busy
        assert rig.db.posted == []
        assert rig.lane.turns == 1, "who waits for it to rest is told"

    tell(story)


def test_only_what_is_patient_is_hurried_and_once(tell: Callable[[Story], None]) -> None:
    async def story(rig: Rig) -> None:
        rig.exchanges.hurry()
        rig.want()
        rig.exchanges.turn()
        rig.exchanges.hurry()
        assert rig.db.hurried == 0
        rig.want(patient=True)
        rig.db.answer()
        rig.exchanges.hurry()
        rig.exchanges.hurry()
        assert rig.db.hurried == 1
        rig.want(patient=True)
        rig.db.answer()
        rig.db.answer()
        rig.exchanges.hurry()
        assert rig.db.hurried == 1, "it is answered"

    tell(story)


@pytest.mark.parametrize("error", [StoreEnded("over"), ZeroDivisionError()])
def test_an_error_for_an_answer_is_the_owners(
    tell: Callable[[Story], None], error: Exception
) -> None:
    async def story(rig: Rig) -> None:
        rig.want()
        rig.exchanges.turn()
        rig.db.answer(error)
        assert rig.lane.errors == [error]
        assert rig.lane.answers == []
        assert rig.lane.turns == 1
        assert not rig.exchanges.busy

    tell(story)


def test_an_owner_that_chokes_on_an_answer_is_told_and_the_service_is_not(
    tell: Callable[[Story], None],
) -> None:
    async def story(rig: Rig) -> None:
        rig.want()
        rig.want()
        rig.exchanges.turn()
        rig.lane.broken = MemoryError()
        rig.db.answer()
        assert rig.lane.errors == [rig.lane.broken]
        assert len(rig.db.posted) == 1, "nothing more is asked behind it"
        assert rig.lane.turns == 1

    tell(story)


def test_a_service_that_takes_nothing_more_leaves_no_exchange_under_way(
    tell: Callable[[Story], None],
) -> None:
    async def story(rig: Rig) -> None:
        rig.db.dead = StoreEnded("over")
        rig.want()
        rig.exchanges.stir()
        await rig.turn()
        assert rig.lane.errors == [rig.db.dead]
        assert not rig.exchanges.busy
        rig.want()
        with pytest.raises(StoreEnded):
            rig.exchanges.turn()

    tell(story)
