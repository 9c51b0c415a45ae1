"""The store confined to one thread, awaited from the event loop; exchanges share a commit.

Everything that lanes want settled, opened and claimed while one transaction runs goes into the
next one together. Between two write transactions the lock stays free for a moment, so that senders
come in. A result is handed back only when what must be durable is: claims are on disk before their
first byte is sent. A spool that cannot be written (busy, full, poisoned) is tried again for as long
as the worker lives: results of open sessions are kept in memory, never dropped.

What must not go on ends by ``crash``, which the host of the worker gives: a process ends at once;
an engine inside an application fails as a whole, and this thread with it. From then on nothing is
written here, and whoever waits is told ``StoreEnded``: for the spool it is a death.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeVar

from mailstrom import events
from mailstrom.clock import wall_ms
from mailstrom.errors import SpoolError, SpoolReplaced
from mailstrom.storage.base import Exchange, Work, WorkerStore

_T = TypeVar("_T")

Crash = Callable[[str, BaseException], NoReturn]
"""Ends the worker without unwinding into the spool: where, and what happened. What it held lapses,
which is always safe."""

FREE_LOCK_S = 0.002
SYNC_S = 0.05
"""Results reach the disk at the latest after this time: a power cut re-sends no more than that."""
RETRY_S = 0.25
_GATHER = 256


class _Request:
    __slots__ = ("call", "durable", "future", "work")

    def __init__(
        self,
        future: asyncio.Future[Any],
        call: Callable[[WorkerStore], Any] | None,
        work: Work | None,
        durable: bool,
    ) -> None:
        self.future = future
        self.call = call
        self.work = work
        self.durable = durable


class StoreEnded(Exception):
    """The store's thread has ended before this was done; the worker is over."""


class DBThread:
    """Owns a store on a thread of its own.

    Args:
        open_store: opens the store; called on the thread.
        crash: how the worker ends when it must not go on.
    """

    def __init__(self, open_store: Callable[[], WorkerStore], *, crash: Crash) -> None:
        self._open_store = open_store
        self._crash_host = crash
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        run = copy_context().run  # log lines go where the engine's go
        self._thread = threading.Thread(target=run, args=(self._run,), name="store", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._dead = False
        self._store: WorkerStore | None = None
        self._fresh: WorkerStore | None = None
        self._batch: list[_Request] = []  # what was taken from the queue and may be unanswered
        self._last_write = 0.0
        self._unsynced: float | None = None

    async def start(self) -> None:
        """Open the store; raises what opening it raised."""
        self._thread.start()
        await self._opened

    async def call(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb of the store; its exception is raised here."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._ask(_Request(future, function, None, False))
        return await future

    async def insist(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb that must happen, however long the spool cannot take it.

        For what would wedge a lane or a domain if it were given up. A refusal that is not the
        spool's trouble but a bug ends the worker: its lock falls and the janitor takes back
        what it held.
        """
        future: asyncio.Future[_T] = self._loop.create_future()

        def step(store: WorkerStore) -> _T:
            try:
                return self._persist(lambda: function(store))
            except StoreEnded:
                raise
            except BaseException as error:
                self._crash("a step that must happen", error)

        self._ask(_Request(future, step, None, False))
        return await future

    async def exchange(self, work: Work, *, durable: bool = False) -> Exchange:
        """Carry work into the next shared transaction; claims come back for its lanes alone.

        ``durable``: wait for the disk (claims always do).
        """
        if work.empty:
            return Exchange(frozenset(), frozenset(), [])
        future: asyncio.Future[Exchange] = self._loop.create_future()
        self._ask(_Request(future, None, work, durable or bool(work.claims)))
        return await future

    async def reopen(self, open_store: Callable[[], WorkerStore]) -> None:
        """Go on with a store opened anew, with other settings; the old one if that fails.

        Raises:
            SpoolError: it could not be opened.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def change(store: WorkerStore) -> None:
            self._fresh = open_store()

        self._ask(_Request(future, change, None, False))
        await future

    def here(self) -> bool:
        """Whether the caller is on this thread, in a step or in a line that it logs."""
        return threading.current_thread() is self._thread

    async def close(self) -> None:
        """Run what is queued, close the store, end the thread."""
        self._queue.put(None)
        await self._ended

    async def kill(self, patience_s: float) -> None:
        """Do nothing more, not even what is queued; a step under way is waited for a little."""
        self._bury()
        self._queue.put(None)
        await asyncio.wait({self._ended}, timeout=patience_s)

    def _ask(self, request: _Request) -> None:
        if self._dead:
            raise StoreEnded("the store's thread has ended")
        self._queue.put(request)

    def _bury(self) -> None:
        """On the loop: whoever waits, or asks from now on, is told that this is over."""
        self._dead = True
        while True:
            try:
                request = self._queue.get_nowait()
            except Empty:
                return
            if request is not None and not request.future.done():
                request.future.set_exception(StoreEnded("the store's thread has ended"))

    # --- on the thread ----------------------------------------------------------------------

    def _crash(self, where: str, error: BaseException) -> NoReturn:
        self._dead = True
        self._crash_host(where, error)

    def _run(self) -> None:
        try:
            self._store = self._open_store()
        except BaseException as error:
            self._tell(self._opened, error=error)
            self._tell(self._ended, result=None)
            return
        self._tell(self._opened, result=None)
        try:
            self._serve(self._store)
        except StoreEnded:
            pass
        except BaseException as error:
            # the loop would beat on, and every lane hang
            with contextlib.suppress(StoreEnded):
                self._crash("store thread", error)
        for opened in (self._store, self._fresh):
            with contextlib.suppress(SpoolError):
                if opened is not None:
                    opened.close()
        for request in self._batch:
            self._tell(request.future, error=StoreEnded("the store's thread has ended"))
        with contextlib.suppress(RuntimeError):  # the loop is gone; nobody waits any more
            self._loop.call_soon_threadsafe(self._bury)
        self._tell(self._ended, result=None)

    def _serve(self, store: WorkerStore) -> None:
        """Serve requests to the end; another store may be open then."""
        while True:
            first = self._next(store)
            requests: list[_Request | None] = [first]
            while len(requests) < _GATHER:
                try:
                    requests.append(self._queue.get_nowait())
                except Empty:
                    break
            self._batch = [request for request in requests if request is not None]
            self._exchange(store, [request for request in self._batch if request.work is not None])
            for request in self._batch:
                if request.call is not None and not self._dead:
                    self._call(store, request)
            if self._dead:
                return
            self._batch = []
            if self._unsynced is not None and (None in requests or self._fresh is not None):
                self._sync(store)
            if self._fresh is not None:
                store.close()
                store = self._store = self._fresh
                self._fresh = None
            if None in requests:
                return

    def _next(self, store: WorkerStore) -> _Request | None:
        """The next request; results that wait for the disk are synced while none comes."""
        while self._unsynced is not None:
            left = self._unsynced + SYNC_S - time.monotonic()
            try:
                return self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                self._sync(store)
        return self._queue.get()

    def _sync(self, store: WorkerStore) -> None:
        self._persist(store.sync)
        self._unsynced = None

    def _call(self, store: WorkerStore, request: _Request) -> None:
        assert request.call is not None
        try:
            result = request.call(store)
        except BaseException as error:  # belongs to whoever awaits it
            self._tell(request.future, error=error)
        else:
            self._tell(request.future, result=result)

    def _exchange(self, store: WorkerStore, requests: list[_Request]) -> None:
        if not requests:
            return
        work = Work()
        for request in requests:
            assert request.work is not None
            work.sessions += request.work.sessions
            work.settlements += request.work.settlements
            work.opens += request.work.opens
            work.claims += request.work.claims
        pause = FREE_LOCK_S - (time.monotonic() - self._last_write)
        if pause > 0:
            time.sleep(pause)
        try:
            result = self._persist(lambda: store.exchange(work, wall_ms()))
        except BaseException as error:
            # A broken invariant, that is a bug: it must not take its neighbours along, and
            # whoever awaits it must not wait for ever.
            if len(requests) > 1 and not self._dead:
                for request in requests:
                    self._exchange(store, [request])
            else:
                for request in requests:
                    self._tell(request.future, error=error)
            return
        self._last_write = time.monotonic()
        if self._unsynced is None:
            self._unsynced = self._last_write
        overdue = self._last_write - self._unsynced >= SYNC_S
        if overdue or any(request.durable for request in requests):
            self._sync(store)  # what escapes from it ends the worker: the exchange is committed
        for request in requests:
            assert request.work is not None
            lanes = frozenset(claim.lane for claim in request.work.claims)
            claimed = [row for row in result.claimed if row.lane in lanes] if lanes else []
            mine = Exchange(result.settled, result.opened, claimed, result.ended & lanes)
            self._tell(request.future, result=mine)

    def _persist(self, step: Callable[[], _T]) -> _T:
        """Try until the spool takes it: what was sent must be recorded."""
        told = False
        while True:
            if self._dead:
                raise StoreEnded("the store's thread has ended")
            try:
                return step()
            except SpoolReplaced as error:
                self._crash("store", error)  # a fresh one opens what has the name now
            except SpoolError as error:
                if not told:
                    events.engine_failed(where="store", error=str(error))
                    told = True
                time.sleep(RETRY_S)

    def _tell(
        self, future: asyncio.Future[Any], *, result: Any = None, error: BaseException | None = None
    ) -> None:
        def settle() -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop is gone; nobody waits any more
            return
