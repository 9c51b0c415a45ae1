"""The product's store service, driven by hand: what a worker asks, and when the disk has it.

Contract: the core is ``DBService.life``, so it is the product that decides which answer waits for a
sync. Time is the service's own and passes by its pauses alone; ``late`` is the moment at which no
request came in time. Where the service would try again until the spool takes it, whoever asked is
told: who has the lock, in whose midst this happens, cannot go on before, and a damaged image never
mends.

Must not know: what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn, cast

from mailstrom.errors import SpoolError
from mailstrom.storage.base import Exchange, Work
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom_workers.dbpace import SYNC_S
from mailstrom_workers.dbrequest import LATE, Late, Request, Wait
from mailstrom_workers.dbservice import DBService


class _Refused(Exception):
    """The spool cannot take it; not an error that the service waits for."""

    def __init__(self, error: SpoolError) -> None:
        super().__init__(str(error))
        self.error = error


class _Impatient:
    """A worker's store; who cannot write is told at once."""

    def __init__(self, store: SQLiteWorkerStore, mended: Callable[[], bool]) -> None:
        self._store = store
        self._mended = mended

    def sync(self) -> None:
        """See ``WorkerStore.sync``."""
        try:
            self._store.sync()
        except SpoolError as error:
            if self._mended():
                raise  # the service asks again
            raise _Refused(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        """See ``WorkerStore.exchange``."""
        try:
            return self._store.exchange(work, now_ms)
        except SpoolError as error:
            raise _Refused(error) from error


def _never() -> bool:
    return False


def _crash(where: str, error: BaseException) -> NoReturn:
    raise error


class PowerDB(DBService):
    """See ``DBService``; without a thread and without a running loop.

    Args:
        store: of one worker; closed with the service.
        now_ms: wall milliseconds.

    ``mended`` is asked when a sync is refused: whether it was only for this once.
    """

    def __init__(self, store: SQLiteWorkerStore, now_ms: Callable[[], int]) -> None:
        self.store = store
        self.mended: Callable[[], bool] = _never
        self._seconds = 0.0
        self._own = asyncio.new_event_loop()
        self._own.run_until_complete(self._found(now_ms))
        self._steps = self.life()
        self._wait: Wait = next(self._steps)

    async def _found(self, now_ms: Callable[[], int]) -> None:
        super().__init__(
            lambda: cast(SQLiteWorkerStore, _Impatient(self.store, lambda: self.mended())),
            crash=_crash, now_ms=now_ms, monotonic=lambda: self._seconds,
        )  # fmt: skip

    # --- what a world asks ------------------------------------------------------------------

    def carry(self, work: Work, *, durable: bool = False) -> Exchange:
        """See ``DBService.exchange``; it has been answered when this returns.

        Raises:
            SpoolBusy: somebody has the lock; nothing was done.
            SpoolError: it cannot be done.
        """
        asking = self.exchange(work, durable=durable)
        try:
            future = cast("asyncio.Future[Any]", asking.send(None))
            while not future.done():
                self._step()
            asking.send(None)
        except StopIteration as end:
            return cast(Exchange, end.value)
        except _Refused as error:
            raise error.error from None
        raise AssertionError("an exchange that waits for more than its answer")

    def late(self) -> bool:
        """No request came for as long as results may wait; whether there were such.

        Raises:
            SpoolError: the disk does not confirm them.
        """
        waited = self._core.pace.unsynced is not None
        self._seconds += SYNC_S
        try:
            self._step()
        except _Refused as error:
            raise error.error from None
        return waited

    def end(self) -> None:
        """As the process ends; what is unsynced stays so."""
        self._steps.close()
        self._own.close()

    @property
    def over(self) -> bool:
        """Whether it ended by what the spool refused."""
        return self._core.dead

    # --- how it is driven -------------------------------------------------------------------

    def _step(self) -> None:
        came: Request | Late | None = None
        if self._wait.request:
            came = LATE if self._queue.empty() else self._queue.get_nowait()
        elif self._wait.seconds is not None:
            self._seconds += self._wait.seconds
        self._wait = self._steps.send(came)

    async def start(self) -> None:
        """It has begun already."""
        await self._opened

    def here(self) -> bool:
        """See ``DBService.here``; nobody asks from within."""
        return False

    async def kill(self, patience_s: float) -> None:
        """See ``DBService.kill``."""
        self.end()

    def _later(self, callback: Callable[[], None]) -> None:
        callback()
