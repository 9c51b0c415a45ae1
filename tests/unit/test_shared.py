"""A verb that many ask for: done together, and nobody bears another's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from mailstrom.errors import SpoolBusy, SpoolCorrupt
from mailstrom_workers import shared
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.shared import Shared


class Service:
    """A store's service that does one thing after the other, a turn of the loop each.

    Attributes:
        trouble: raised by the calls to come, one each; None: it goes well.
        stuck: while it is set nothing is answered.
    """

    def __init__(self) -> None:
        self.trouble: list[Exception | None] = []
        self.insisted = 0
        self.free = asyncio.Event()
        self.free.set()

    async def call(self, function: Callable[[Any], Any]) -> Any:
        await asyncio.sleep(0)
        await self.free.wait()
        trouble = self.trouble.pop(0) if self.trouble else None
        if trouble is not None:
            raise trouble
        return function(None)

    async def insist(self, function: Callable[[Any], Any]) -> Any:
        self.insisted += 1
        return await self.call(function)


class Verb:
    """Answers ten times what it is asked, and notes what came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, store: object, ones: Sequence[int]) -> list[int]:
        self.batches.append(list(ones))
        if -13 in ones:
            raise SpoolCorrupt("a page")
        return [10 * one for one in ones]


def story(tell: Callable[[Service, Verb, Shared[int, int]], Any]) -> Any:
    async def run() -> Any:
        service, verb = Service(), Verb()
        return await tell(service, verb, Shared(cast(DBService, service), verb))

    return asyncio.run(run())


def test_what_comes_together_is_done_together_and_each_gets_its_own_answer() -> None:
    async def tell(service: Service, verb: Verb, asked: Shared[int, int]) -> None:
        assert await asyncio.gather(*[asked.ask(n) for n in range(5)]) == [0, 10, 20, 30, 40]
        assert verb.batches == [[0, 1, 2, 3, 4]]
        assert await asked.ask(7) == 70
        assert service.insisted == 1, "one alone is insisted on at once"

    story(tell)


def test_what_is_asked_meanwhile_shares_the_next_call() -> None:
    async def tell(service: Service, verb: Verb, asked: Shared[int, int]) -> None:
        service.free.clear()
        first = asyncio.create_task(asked.ask(0))
        await asyncio.sleep(0)
        others = [asyncio.create_task(asked.ask(n)) for n in range(1, shared.MOST + 3)]
        await asyncio.sleep(0)
        service.free.set()
        assert await first == 0
        assert await asyncio.gather(*others) == [10 * n for n in range(1, shared.MOST + 3)]
        assert [len(batch) for batch in verb.batches] == [1, shared.MOST, 2]

    story(tell)


def test_damage_that_one_meets_is_no_other_ones() -> None:
    async def tell(service: Service, verb: Verb, asked: Shared[int, int]) -> None:
        said = await asyncio.gather(*[asked.ask(n) for n in (1, -13, 2)], return_exceptions=True)
        assert (said[0], said[2]) == (10, 20)
        assert isinstance(said[1], SpoolCorrupt)
        assert verb.batches == [[1, -13, 2], [1], [-13], [2]]

    story(tell)


def test_a_busy_spool_is_insisted_on() -> None:
    async def tell(service: Service, verb: Verb, asked: Shared[int, int]) -> None:
        service.trouble = [SpoolBusy("busy")]
        assert await asyncio.gather(asked.ask(1), asked.ask(2)) == [10, 20]
        assert service.insisted == 2

    story(tell)


def test_the_end_of_the_service_is_told_to_all() -> None:
    async def tell(service: Service, verb: Verb, asked: Shared[int, int]) -> None:
        service.trouble = [StoreEnded("over")]
        said = await asyncio.gather(asked.ask(1), asked.ask(2), return_exceptions=True)
        assert [type(one) for one in said] == [StoreEnded, StoreEnded]
        assert service.insisted == 0

    story(tell)


def test_who_stops_waiting_takes_nothing_from_the_others() -> None:
    async def tell(service: Service, verb: Verb, asked: Shared[int, int]) -> None:
        service.free.clear()
        asking = [asyncio.create_task(asked.ask(n)) for n in range(3)]
        await asyncio.sleep(0)
        asking[1].cancel()
        await asyncio.sleep(0)
        service.free.set()
        assert await asking[0] == 0
        assert await asking[2] == 20
        assert [0, 1, 2] in verb.batches, "it is done all the same"

    story(tell)


def test_a_bug_in_a_verb_reaches_whoever_asked() -> None:
    async def tell(service: Service, verb: Verb, asked: Shared[int, int]) -> None:
        service.trouble = [ValueError("a bug"), ValueError("again"), None]
        said = await asyncio.gather(asked.ask(1), asked.ask(2), return_exceptions=True)
        assert isinstance(said[0], ValueError)
        assert said[1] == 20
        service.trouble = [ValueError("third")]
        with pytest.raises(ValueError, match="third"):
            await asked.ask(3)

    story(tell)


def test_a_carrier_that_is_cancelled_before_it_begins_leaves_nobody_waiting() -> None:
    async def tell(service: Service, verb: Verb, shared: Shared[int, int]) -> None:
        asking = asyncio.create_task(shared.ask(1))
        await asyncio.sleep(0)
        (carrier,) = (one for one in asyncio.all_tasks() if one.get_name() == "shared verb")
        carrier.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await shared.ask(2) == 20
        assert verb.batches == [[2]]

    story(tell)
