"""A verb of the store that many ask for one by one, and that is done for all who ask together.

Contract. What is asked while the store works is done by the next call, all of it at once, in the
order in which it came; nothing waits for company. Each who asks gets its own answer. A call that
fails for several is made again for each alone, insisted on: what one of them meets (damage, a bug)
is no other's trouble. Must not know: what the verb does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mailstrom.storage.base import WorkerStore
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.dbservice import DBService

MOST = 64
"""So many share one transaction, so that its lock is not held for long."""

_One = TypeVar("_One")
_Answer = TypeVar("_Answer")
Verb = Callable[[WorkerStore, Sequence[_One]], Sequence[_Answer]]


class Shared(Generic[_One, _Answer]):
    """Gathers what is asked of one verb; used from one event loop.

    Args:
        db: serves the store.
        verb: does it for several, in one transaction; answers in their order.
    """

    def __init__(self, db: DBService, verb: Verb[_One, _Answer]) -> None:
        self._db = db
        self._verb = verb
        self._waiting: list[tuple[_One, asyncio.Future[_Answer]]] = []
        self._carrier: asyncio.Task[None] | None = None

    async def ask(self, one: _One) -> _Answer:
        """Have it done, however long the spool cannot take it (``DBService.insist``).

        Who stops waiting takes nothing back.

        Raises:
            SpoolCorrupt: it met damage, and the worker drains.
            StoreEnded: the worker is over.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Answer] = loop.create_future()
        self._waiting.append((one, answer))
        if self._carrier is None:
            self._carrier = loop.create_task(self._carry(), name="shared verb")
            self._carrier.add_done_callback(self._unbegun)
        return await answer

    def _unbegun(self, carrier: asyncio.Task[None]) -> None:
        """Who was cancelled before its first step could tell nobody."""
        if self._carrier is carrier:
            self._carrier = None
            for _, answer in self._waiting:
                answer.cancel()
            self._waiting.clear()

    async def _carry(self) -> None:
        batch: list[tuple[_One, asyncio.Future[_Answer]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._do(batch)
        except asyncio.CancelledError:  # the loop ends
            for _, answer in (*batch, *self._waiting):
                answer.cancel()
            raise
        finally:
            self._carrier = None

    async def _do(self, batch: Sequence[tuple[_One, asyncio.Future[_Answer]]]) -> None:
        if len(batch) == 1:
            await self._alone(*batch[0])
            return
        verb = self._verb
        ones = [one for one, _ in batch]
        try:
            answers = await self._db.call(lambda store: verb(store, ones))
        except StoreEnded as error:
            for _, answer in batch:
                _fail(answer, error)
        except Exception:
            await asyncio.gather(*[self._alone(one, answer) for one, answer in batch])
        else:
            for (_, answer), said in zip(batch, answers, strict=True):
                if not answer.done():
                    answer.set_result(said)

    async def _alone(self, one: _One, answer: asyncio.Future[_Answer]) -> None:
        verb = self._verb
        try:
            (said,) = await self._db.insist(lambda store: verb(store, [one]))
        except Exception as error:
            _fail(answer, error)
        else:
            if not answer.done():
                answer.set_result(said)


def _fail(answer: asyncio.Future[_Answer], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
