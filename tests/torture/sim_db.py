"""The worker's store service driven on the simulated loop, and a spool that fails by chance.

Contract: the core is the product's (``DBService.life``); this waits for it in virtual time, lets
time pass before a step and before its answer is heard, and can end between any two of them as a
killed process does. ``Failing`` refuses verbs before they begin, as a busy or full spool does.

Must not know: what is asked of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import Empty
from typing import Any, cast

from mailstrom.storage.base import Exchange, WorkerStore
from mailstrom_workers.dbrequest import LATE, Crash, Late, Request, StoreEnded, Wait
from mailstrom_workers.dbservice import DBService
from tests.torture.sim_loop import VirtualLoop

_SPARED = frozenset({"close", "verify"})


class Failing:
    """A store whose verbs raise what ``fault`` raises; else it is the store.

    Args:
        store: the real one.
        fault: called with the verb's name before each.
    """

    def __init__(self, store: WorkerStore, fault: Callable[[str], None]) -> None:
        self._store = store
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found) or name in _SPARED:
            return found
        fault = self._fault

        def verb(*args: Any, **kwargs: Any) -> Any:
            fault(name)
            result = found(*args, **kwargs)
            # what the store measures is real time, which is no part of the simulated
            return result._replace(locked_s=0.0) if isinstance(result, Exchange) else result

        self.__dict__[name] = verb
        return verb


class SimulatedDB(DBService):
    """See ``DBService``; without a thread.

    Args:
        wait_s: gives the seconds that a step takes, and that its answer is under way.
        fault: see ``Failing``.
    """

    def __init__(
        self,
        open_store: Callable[[], WorkerStore],
        *,
        crash: Crash,
        now_ms: Callable[[], int],
        wait_s: Callable[[], float],
        fault: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            lambda: self._failing(open_store), crash=crash, now_ms=now_ms, monotonic=loop.time
        )
        assert isinstance(loop, VirtualLoop)
        self._virtual = loop
        self._wait_s = wait_s
        self._fault = fault
        self._told_s = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._steps = self.life()
        self._inside = False
        self._finished = False

    def _failing(self, open_store: Callable[[], WorkerStore]) -> WorkerStore:
        return cast(WorkerStore, Failing(open_store(), self._fault))

    async def start(self) -> None:
        """See ``DBService.start``."""
        asyncio.get_running_loop().create_task(self._drive(), name="store")
        await self._opened

    async def reopen(self, open_store: Callable[[], WorkerStore]) -> None:
        """See ``DBService.reopen``."""
        await super().reopen(lambda: self._failing(open_store))

    def here(self) -> bool:
        """See ``DBService.here``."""
        return self._inside

    async def kill(self, patience_s: float) -> None:
        """See ``DBService.kill``."""
        self.die()

    def die(self) -> None:
        """As the process is killed: not a step more, the connection is closed."""
        self._bury()
        if self._inside:
            return  # it crashed in a step, and ends by itself behind it
        while not self._finished:
            self._step(None)
        if self._waiter is not None:
            _wake(self._waiter)

    def _put(self, request: Request | None) -> None:
        super()._put(request)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _later(self, callback: Callable[[], None]) -> None:
        if self._virtual.is_closed():
            return
        self._told_s = max(self._told_s, self._virtual.time() + self._wait_s())
        self._virtual.call_at(self._told_s, callback)

    def _step(self, came: Request | Late | None) -> Wait | None:
        self._inside = True
        try:
            return self._steps.send(came)
        except StopIteration:
            self._finished = True
            return None
        finally:
            self._inside = False

    async def _drive(self) -> None:
        came: Request | Late | None = None
        while not self._finished:
            wait = self._step(came)
            if wait is None:
                return
            if wait.request:
                came = await self._await_request(wait.seconds)
            else:
                assert wait.seconds is not None
                await asyncio.sleep(wait.seconds)
                came = None

    async def _await_request(self, seconds: float | None) -> Request | Late | None:
        loop = self._virtual
        deadline_s = None if seconds is None else loop.time() + seconds
        while not self._finished:
            if not self._queue.empty():
                await asyncio.sleep(self._wait_s())  # others come meanwhile, or the end
                try:
                    return self._queue.get_nowait()
                except Empty:
                    return None
            if deadline_s is not None and loop.time() >= deadline_s:
                return LATE
            self._waiter = waiter = loop.create_future()
            timer = None
            if deadline_s is not None:
                timer = loop.call_at(deadline_s, _wake, waiter)
            await waiter
            if timer is not None:
                timer.cancel()
        return None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


__all__ = ["Failing", "SimulatedDB", "StoreEnded"]
