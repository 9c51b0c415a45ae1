"""The store confined to one thread, awaited from the event loop; exchanges share a commit.

Everything that lanes want settled, opened and claimed while one transaction runs goes into the
next one together. Between two write transactions the lock stays free for a moment, so that senders
come in. A result is handed back only when what must be durable is: claims are on disk before their
first byte is sent. A spool that cannot be written (busy, full, poisoned) is tried again for as long
as the worker lives: results of open sessions are kept in memory, never dropped.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeVar

from mailstrom import events
from mailstrom.clock import wall_ms
from mailstrom.errors import SpoolError, SpoolReplaced
from mailstrom.storage.base import Exchange, Work, WorkerStore

_T = TypeVar("_T")

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


def crash(where: str, error: BaseException) -> NoReturn:
    """End the process without unwinding: what it held lapses, which is always safe."""
    events.engine_failed(where=where, error=error)
    os._exit(70)


class DBThread:
    """Owns a store on a thread of its own.

    Args:
        open_store: opens the store; called on the thread.
    """

    def __init__(self, open_store: Callable[[], WorkerStore]) -> None:
        self._open_store = open_store
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._last_write = 0.0
        self._unsynced: float | None = None

    async def start(self) -> None:
        """Open the store; raises what opening it raised."""
        self._thread.start()
        await self._opened

    async def call(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb of the store; its exception is raised here."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._queue.put(_Request(future, function, None, False))
        return await future

    async def insist(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb that must happen, however long the spool cannot take it.

        For what would wedge a lane or a domain if it were given up. A refusal that is not the
        spool's trouble but a bug ends the process: its lock falls and the janitor takes back
        what it held.
        """
        future: asyncio.Future[_T] = self._loop.create_future()

        def step(store: WorkerStore) -> _T:
            try:
                return self._persist(lambda: function(store))
            except BaseException as error:
                crash("a step that must happen", error)

        self._queue.put(_Request(future, step, None, False))
        return await future

    async def exchange(self, work: Work, *, durable: bool = False) -> Exchange:
        """Carry work into the next shared transaction; claims come back for its lanes alone.

        ``durable``: wait for the disk (claims always do).
        """
        if work.empty:
            return Exchange(frozenset(), frozenset(), [])
        future: asyncio.Future[Exchange] = self._loop.create_future()
        self._queue.put(_Request(future, None, work, durable or bool(work.claims)))
        return await future

    async def close(self) -> None:
        """Run what is queued, close the store, end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- on the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            store = self._open_store()
        except BaseException as error:
            self._tell(self._opened, error=error)
            return
        self._tell(self._opened, result=None)
        try:
            self._serve(store)
        except BaseException as error:
            crash("store thread", error)  # the loop would beat on, and every lane hang
        store.close()

    def _serve(self, store: WorkerStore) -> None:
        while True:
            first = self._next(store)
            requests: list[_Request | None] = [first]
            while len(requests) < _GATHER:
                try:
                    requests.append(self._queue.get_nowait())
                except Empty:
                    break
            self._exchange(store, [r for r in requests if r is not None and r.work is not None])
            for request in requests:
                if request is not None and request.call is not None:
                    self._call(store, request)
            if None in requests:
                if self._unsynced is not None:
                    self._sync(store)
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
            if len(requests) > 1:
                for request in requests:
                    self._exchange(store, [request])
            else:
                self._tell(requests[0].future, error=error)
            return
        self._last_write = time.monotonic()
        if self._unsynced is None:
            self._unsynced = self._last_write
        overdue = self._last_write - self._unsynced >= SYNC_S
        if overdue or any(request.durable for request in requests):
            self._sync(store)  # what escapes from it ends the process: the exchange is committed
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
            try:
                return step()
            except SpoolReplaced as error:
                crash("store", error)  # a fresh process opens what has the name now
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
