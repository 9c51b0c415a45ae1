"""The store confined to one thread, awaited from the event loop.

``dbcore.DBCore`` says what is served together, tried again and synced; this waits for it, with a
real clock. Log lines of the thread go where the engine's go.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from queue import Empty

from mailstrom.storage.base import WorkerStore
from mailstrom_workers.dbrequest import LATE, Crash, Late, Request, Wait
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.writewatch import WriteWatch


class DBThread(DBService):
    """Owns a store on a thread of its own.

    Args:
        open_store: opens the store; called on the thread.
        crash: how the worker ends when it must not go on.
    """

    def __init__(self, open_store: Callable[[], WorkerStore], *, crash: Crash) -> None:
        super().__init__(open_store, crash=crash)
        run = copy_context().run
        self._watch: WriteWatch | None = None
        self._thread = threading.Thread(target=run, args=(self._run,), name="store", daemon=True)

    async def start(self) -> None:
        """Open the store; raises what opening it raised."""
        self._watch = WriteWatch.open(self._loop, self._rung)
        self._ended.add_done_callback(lambda _: self._unwatch())
        try:
            self._thread.start()
        except BaseException:
            self._unwatch()
            raise
        await self._opened

    def here(self) -> bool:
        """Whether the caller is on this thread, in a step or in a line that it logs."""
        return threading.current_thread() is self._thread

    async def kill(self, patience_s: float) -> None:
        """Do nothing more, not even what is queued; a step under way is waited for a little."""
        self._bury()
        self._put(None)
        await asyncio.wait({self._ended}, timeout=patience_s)
        self._unwatch()  # the loop may be gone when the thread ends

    def _arm(self, store: WorkerStore) -> bool:
        path = store.watched()
        return path is not None and self._watch is not None and self._watch.arm(path)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def _later(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is gone; nobody waits any more
            return

    def _run(self) -> None:
        life = self.life()
        came: Request | Late | None = None
        while True:
            try:
                wait = life.send(came)
            except StopIteration:
                return
            came = self._wait(wait)

    def _wait(self, wait: Wait) -> Request | Late | None:
        if not wait.request:
            assert wait.seconds is not None
            time.sleep(wait.seconds)
            return None
        try:
            if wait.seconds is None or wait.seconds > 0:
                return self._queue.get(timeout=wait.seconds)
            return self._queue.get_nowait()
        except Empty:
            return LATE
