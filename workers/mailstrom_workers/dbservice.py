"""The store as lanes ask it: verbs, shared transactions, and who watches for work.

Contract. Everything here is called on the event loop, but for ``life``, the core's steps
(``dbcore``), which whoever drives it runs where the store is used: ``dbthread.DBThread`` on a
thread of its own. What is asked goes through one queue, and is answered on the loop. After the end,
by ``close`` or by a crash, whoever waits or asks is told ``StoreEnded``. Must not know: threads,
sleeping.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from mailstrom.clock import wall_ms
from mailstrom.storage.base import Exchange, Work, WorkerStore
from mailstrom_workers.dbcore import DBCore
from mailstrom_workers.dbrequest import (
    NOTHING,
    OVER,
    Answers,
    Crash,
    Done,
    Request,
    Steps,
    StoreEnded,
    settle,
)
from mailstrom_workers.duewatch import DueWatch

_T = TypeVar("_T")


class DBService(ABC):
    """A store's requests and the core that serves them; abstract in how it is driven.

    Args:
        open_store: opens the store; called where the core runs.
        crash: how the worker ends when it must not go on.
        now_ms: wall milliseconds, for the store.
        monotonic: seconds, for what waits.
    """

    def __init__(
        self,
        open_store: Callable[[], WorkerStore],
        *,
        crash: Crash,
        now_ms: Callable[[], int] = wall_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_store = open_store
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._answers = Answers(self._loop, self._later)
        self._due = DueWatch(self._later, self._arm, now_ms)
        self._core = DBCore(
            self._queue, self._answers, self._due, crash=crash, now_ms=now_ms, monotonic=monotonic
        )

    # --- how it is driven -------------------------------------------------------------------

    @abstractmethod
    async def start(self) -> None:
        """Open the store; raises what opening it raised."""

    @abstractmethod
    def here(self) -> bool:
        """Whether the caller is inside the core, in a step or in a line that it logs."""

    @abstractmethod
    async def kill(self, patience_s: float) -> None:
        """Do nothing more, not even what is queued; a step under way is waited for a little."""

    @abstractmethod
    def _later(self, callback: Callable[[], None]) -> None:
        """Run something on the loop; nothing where that is gone, since nobody waits any more."""

    def _put(self, request: Request | None) -> None:
        self._queue.put(request)

    def _arm(self, store: WorkerStore) -> bool:
        """Have ``_rung`` called at the next write; False where that cannot be relied on."""
        return False

    def _rung(self) -> None:
        """Somebody wrote to the spool: look again."""
        self._due.rung()
        self._put(NOTHING)

    def life(self) -> Steps[None]:
        """Open the store, serve, close it; what it yields is to be waited for."""
        try:
            store = self._open_store()
        except BaseException as error:
            self._answers.tell(settle(self._opened), error=error)
            self._answers.tell(settle(self._ended))
            return
        self._answers.tell(settle(self._opened))
        try:
            yield from self._core.serve(store)
        except (StoreEnded, GeneratorExit):
            pass
        except BaseException as error:
            # the loop would beat on, and every lane hang
            with contextlib.suppress(StoreEnded):
                self._core.crash("store service", error)
        self._core.end()
        self._later(self._bury)
        self._answers.tell(settle(self._ended))

    # --- on the loop ------------------------------------------------------------------------

    async def call(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb of the store; its exception is raised here."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._ask(Request(settle(future), function))
        return await future

    async def insist(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb that must happen, however long the spool cannot take it.

        For what would wedge a lane or a domain if it were given up. A refusal that is not the
        spool's trouble but a bug ends the worker: its lock falls and the janitor takes back
        what it held.
        """
        future: asyncio.Future[_T] = self._loop.create_future()
        self._ask(Request(settle(future), function, insisted=True))
        return await future

    async def exchange(self, work: Work, *, durable: bool = False) -> Exchange:
        """Carry work into the next shared transaction; claims come back for its lanes alone.

        ``durable``: wait for the disk (claims always do).
        """
        if work.empty:
            return Exchange(frozenset(), frozenset(), [])
        future: asyncio.Future[Exchange] = self._loop.create_future()
        self.post(work, settle(future), durable=durable)
        return await future

    def post(self, work: Work, done: Done, *, durable: bool = False, patient: bool = False) -> None:
        """``exchange`` for a caller that does not wait: ``done`` takes its outcome.

        ``patient``: it has enough to go on with for a while; see ``dbpace.GATHER_S``.
        """
        durable = durable or bool(work.claims)
        self._ask(Request(done, work=work, durable=durable, patient=patient))

    def hurry(self) -> None:
        """Somebody whose request was patient waits for it now."""
        self._put(NOTHING)

    async def reopen(self, open_store: Callable[[], WorkerStore]) -> None:
        """Go on with a store opened anew, with other settings; the old one if that fails.

        Raises:
            SpoolError: it could not be opened.
        """
        await self.call(lambda _: self._core.change(open_store))

    def watch(self, told: Callable[[], None] | None) -> None:
        """Have ``told`` called on the loop when something is due, or drained; None: no more of it.

        Once when something becomes due, and again whenever somebody else commits while it is.
        What stays due for want of a lane, or of a connection, is for whoever watches to ask about.
        """
        self._due.watcher = told
        self._put(NOTHING)

    def drain(self) -> None:
        """From now on damage is told to whoever asked, and not waited for; who watches is told.

        What waits because of it is tried at once, a last time.
        """
        self._core.draining = True
        self._put(NOTHING)  # behind the word: what is put aside meanwhile is seen, too
        if self._due.watcher is not None:
            self._due.watcher()

    async def close(self) -> None:
        """Run what is queued, close the store, end the service."""
        self._core.draining = True
        self._put(None)
        await self._ended

    def _ask(self, request: Request) -> None:
        if self._core.dead:
            raise StoreEnded(OVER)
        self._put(request)

    def _bury(self) -> None:
        """Whoever waits, or asks from now on, is told that this is over."""
        self._core.dead = True
        while True:
            try:
                request = self._queue.get_nowait()
            except Empty:
                return
            if request is not None:
                request.done(None, StoreEnded(OVER))
