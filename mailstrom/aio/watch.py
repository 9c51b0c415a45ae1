"""Changes of the spool for one event loop: one look at its revision for all who wait.

``Watch`` counts changes: who waits takes ``generation``, reads, and sleeps ``after(generation)``;
a commit between the two is seen as a change afterwards. ``Finals`` waits for messages to be
completed and reads all that are awaited at once, so that a thousand waiting coroutines cost one
statement a change. The looks run on a thread; while nobody waits there are none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mailstrom.client.waiting import DISTRUST_S, LONGEST_S, SHORTEST_S
from mailstrom.errors import MessageNotFound
from mailstrom.types import MessageStatus

_REST = 4.0
"""Reading the awaited statuses takes at most one part in so many and one of the time."""


class Watch:
    """Counts changes of the spool while somebody waits for one.

    Args:
        loop: where everybody waits.
        revision: ``ClientStore.revision`` on a thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, revision: Callable[[], Awaitable[int]]
    ) -> None:
        self.generation = 0
        self._loop = loop
        self._revision = revision
        self._seen: int | None = None
        self._pause = SHORTEST_S
        self._told = 0.0
        self._waiting: set[asyncio.Future[None]] = set()
        self._looking: asyncio.Task[None] | None = None

    async def after(self, generation: int) -> None:
        """Return when something was committed since ``generation`` was taken.

        Raises:
            SpoolError: the spool cannot be looked at, or the client was closed.
        """
        if self.generation != generation:
            return
        waiting = self._loop.create_future()
        self._waiting.add(waiting)
        if self._looking is None or self._looking.done():
            self._looking = self._loop.create_task(self._look())
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    async def _look(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(self._pause)
                found = await self._revision()
                now = self._loop.time()
                if found != self._seen or now - self._told >= DISTRUST_S:
                    self._seen, self._told, self._pause = found, now, SHORTEST_S
                    self.generation += 1
                    self._wake(None)
                else:
                    self._pause = min(self._pause * 1.5, LONGEST_S)
        except BaseException as error:
            # Cancelled is this task when the loop ends, and so are all who wait.
            self._wake(error if isinstance(error, Exception) else None)
            if not isinstance(error, Exception):
                raise

    def _wake(self, error: Exception | None) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                if error is None:
                    waiting.set_result(None)
                else:
                    waiting.set_exception(error)
        self._waiting.clear()


class Finals:
    """Waits until messages are completed.

    Args:
        watch: tells when to look.
        statuses: ``Mailstrom.statuses`` on a thread.
        unknown: the error for an id that is not there.
    """

    def __init__(
        self,
        watch: Watch,
        statuses: Callable[[list[str]], Awaitable[dict[str, MessageStatus]]],
        unknown: Callable[[str], MessageNotFound],
    ) -> None:
        self._watch = watch
        self._statuses = statuses
        self._unknown = unknown
        self._awaited: dict[str, set[asyncio.Future[MessageStatus]]] = {}
        self._new: set[str] = set()
        self._reading: asyncio.Task[None] | None = None
        self._first: asyncio.Task[None] | None = None

    def expect(self, id: str) -> asyncio.Future[MessageStatus]:
        """A future for the completed message, or an error; ``forget`` it in any case.

        It is looked at once as soon as may be, with all that are new by then, and then with all
        that are awaited whenever something was committed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[MessageStatus] = loop.create_future()
        self._awaited.setdefault(id, set()).add(future)
        self._new.add(id)
        if self._reading is None or self._reading.done():
            self._reading = loop.create_task(self._read(self._watch.generation))
        if self._first is None or self._first.done():
            self._first = loop.create_task(self._look())
        return future

    def forget(self, id: str, future: asyncio.Future[MessageStatus]) -> None:
        """Nobody waits for it any more."""
        if not future.cancel() and not future.cancelled():
            future.exception()  # looked at, so that nobody complains of one that nobody awaited
        awaited = self._awaited.get(id, set())
        awaited.discard(future)
        if not awaited:
            self._awaited.pop(id, None)
        if not self._awaited and self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def _look(self) -> None:
        try:
            while self._new:
                asked = [id for id in self._new if id in self._awaited]
                self._new.clear()
                await self._ask(asked)
        except Exception as error:
            self._fail(error)

    async def _read(self, generation: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._awaited:
                await self._watch.after(generation)
                generation = self._watch.generation
                began = loop.time()
                await self._ask(list(self._awaited))
                await asyncio.sleep(_REST * (loop.time() - began))
        except Exception as error:
            self._fail(error)

    async def _ask(self, asked: list[str]) -> None:
        """Look once; who came since the look began is told nothing by it."""
        waiting = {id: frozenset(self._awaited[id]) for id in asked}
        found = await self._statuses(asked)
        for id, futures in waiting.items():
            self._tell(id, futures, found.get(id))

    def _fail(self, error: Exception) -> None:
        # Everybody's: the spool cannot be read.
        for futures in list(self._awaited.values()):
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    def _tell(
        self,
        id: str,
        futures: frozenset[asyncio.Future[MessageStatus]],
        status: MessageStatus | None,
    ) -> None:
        if status is not None and not status.completed:
            return
        for future in futures:
            if future.done():
                continue
            if status is None:
                future.set_exception(self._unknown(id))
            else:
                future.set_result(status)
