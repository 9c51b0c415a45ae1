"""What many lanes ask of the store, served in shared transactions: the core, without a clock.

Everything that lanes want settled, opened and claimed while one transaction runs goes into the
next one together (``portions``). A result is handed back only when what must be durable is: claims
are on disk before their first byte is sent. A spool that cannot be written (busy, full, poisoned)
is tried again for as long as the worker lives: results of open sessions are kept in memory, never
dropped. What meets damage is put aside (``aside``) while the others have their turn; a drain does
not wait for it: whoever asked is told, and what was not recorded is in doubt, as after a death.

What must not go on ends by ``crash``, which the host of the worker gives: a process ends at once;
an engine inside an application fails as a whole, and this core with it. From then on nothing is
written here, and whoever waits is told ``StoreEnded``: for the spool it is a death.

Contract. A generator that yields its waits; whoever drives it does the waiting and sends what came.
It is asked on a loop and runs where it is driven, which may be another thread: what both touch is
the queue and two words, ``dead`` and ``draining``, each written whole and never taken back. Must
not know: threads, sleeping, futures, loops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NoReturn, TypeVar

from mailstrom.errors import SpoolCorrupt, SpoolError, SpoolReplaced
from mailstrom.storage.base import AnswerLost, Exchange, Work, WorkerStore
from mailstrom_workers.aside import Aside
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.dbpace import Pace
from mailstrom_workers.dbrequest import (
    OVER,
    Answers,
    Crash,
    Done,
    Late,
    Request,
    Steps,
    StoreEnded,
    Wait,
    nobody,
)
from mailstrom_workers.duewatch import DueWatch
from mailstrom_workers.portions import joined, learned, parts, portions, rows

_T = TypeVar("_T")

RETRY_S = 0.25
"""A spool that cannot be written is tried again after this time."""
_GATHER = 256


def _works(requests: Sequence[Request]) -> list[Work]:
    return [request.work for request in requests if request.work is not None]


class DBCore:
    """Serves what is asked of one store, to the end.

    Args:
        queue: what is asked; None is the end.
        answers: tells whoever asked.
        due: tells whoever watches.
        crash: how the worker ends when it must not go on.
        now_ms: wall milliseconds, for the store.
        monotonic: seconds, for what waits.

    Attributes:
        dead: from now on nothing is written.
        draining: damage is told to whoever asked, and not waited for.
        pace: when it writes, and what the disk has.
    """

    def __init__(
        self,
        queue: SimpleQueue[Request | None],
        answers: Answers,
        due: DueWatch,
        *,
        crash: Crash,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self.dead = False
        self.draining = False
        self.pace = Pace()
        self._queue = queue
        self._answers = answers
        self._due = due
        self._crash_host = crash
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._aside = Aside(monotonic)
        self._batch: list[Request] = []  # what was taken from the queue and may be unanswered
        self._each = 1.0  # rows that a claim takes for each message that it asks for
        self._store: WorkerStore | None = None
        self._fresh: WorkerStore | None = None

    def change(self, open_store: Callable[[], WorkerStore]) -> None:
        """Go on with another store behind what is being served; only in a step of this core.

        Raises:
            SpoolError: it could not be opened.
        """
        self._fresh = open_store()

    def crash(self, where: str, error: BaseException) -> NoReturn:
        """Write nothing more, and end the worker."""
        self.dead = True
        self._crash_host(where, error)

    def end(self) -> None:
        """Behind ``serve``, however it ended: close what is open, tell who is left."""
        for opened in (self._store, self._fresh):
            with contextlib.suppress(SpoolError):
                if opened is not None:
                    opened.close()
        for request in (*self._batch, *self._aside.take()):
            self._answers.tell(request.done, error=StoreEnded(OVER))

    def serve(self, store: WorkerStore) -> Steps[None]:
        """Serve requests to the end; another store may be open then. What else ends it is raised.

        Raises:
            StoreEnded: it must not go on, and the worker's host was told.
        """
        self._store = store
        while True:
            first = yield from self._next(store)
            requests: list[Request | None] = [] if isinstance(first, Late) else [first]
            if isinstance(first, Request) and first.work is not None:
                yield from self._gather(requests, first)
                yield from self._leave_free()  # and more comes meanwhile
            while len(requests) < _GATHER:
                try:
                    requests.append(self._queue.get_nowait())
                except Empty:
                    break
            fresh = [request for request in requests if request is not None]
            again = self._aside.take() if self.draining or self._aside.due() else []
            self._batch = [*fresh, *again]
            for some in portions([one for one in fresh if one.work is not None], self._rows):
                yield from self._exchange(store, some)
            for request in again:
                if request.work is not None:
                    yield from self._exchange(store, [request])
            for request in self._batch:
                if request.call is not None and not self.dead:
                    yield from self._call(store, request)
            if self.dead:
                return
            self._batch = []
            if self.pace.unsynced is not None and (None in requests or self._fresh is not None):
                yield from self._sync(store)
            if self._fresh is not None:
                store.close()
                store = self._store = self._fresh
                self._fresh = None
            if None in requests:
                return

    def _rows(self, request: Request) -> int:
        return 0 if request.work is None else rows(request.work, self._each)

    def _next(self, store: WorkerStore) -> Steps[Request | Late | None]:
        """The next request; while none comes results are synced, and what is due is looked at."""
        while True:
            now = self._monotonic()
            wait, sync_in = self._aside.wait_s(), self.pace.sync_in(now)
            syncing = sync_in is not None
            if syncing:
                wait = sync_in
            if self._due.watcher is not None:
                look = self._due.seconds(store, now)
                if wait is None or look < wait:
                    wait, syncing = look, False
            came = yield Wait(wait, request=True)
            if not isinstance(came, Late):
                return came
            if syncing:
                yield from self._sync(store)
            elif self._aside.due():
                return came

    def _gather(self, requests: list[Request | None], last: Request) -> Steps[None]:
        """Wait for more as long as nobody is in a hurry."""
        while last.patient and len(requests) < _GATHER:
            seconds = self.pace.patience(self._monotonic())
            if seconds <= 0:
                return
            came = yield Wait(seconds, request=True)
            if isinstance(came, Late):
                return
            requests.append(came)
            if came is None:
                return
            last = came

    def _corrupt(self, request: Request, error: SpoolCorrupt) -> None:
        """Put a request that met damage aside; when draining, whoever asked is told."""
        self._aside.say(error)
        if self.draining:
            self._answers.tell(request.done, error=error)
        else:
            self._aside.put(request)

    def _leave_free(self) -> Steps[None]:
        """Let others have the lock for a moment, where the last write was just now."""
        pause = self.pace.leave_free(self._monotonic())
        if pause > 0:
            yield Wait(pause, request=False)

    def _sync(self, store: WorkerStore) -> Steps[None]:
        yield from self._persist(store.sync)
        self.pace.synced()

    def _call(self, store: WorkerStore, request: Request) -> Steps[None]:
        call = request.call
        assert call is not None
        if self.pace.series_over:
            yield from self._leave_free()
        began = self._monotonic()
        try:
            if request.insisted:
                result = yield from self._insisted(lambda: call(store))
            else:
                result = call(store)
        except GeneratorExit:
            raise
        except SpoolCorrupt as error:
            if request.insisted:
                self._corrupt(request, error)
            else:
                self._answers.tell(request.done, error=error)
        except BaseException as error:  # belongs to whoever awaits it
            self._answers.tell(request.done, error=error)
        else:
            self._answers.tell(request.done, result)
        now = self._monotonic()
        self.pace.ran(began, now)
        self._due.stale = True
        if self.pace.overdue(now):
            yield from self._sync(store)  # nobody may be late for long

    def _insisted(self, step: Callable[[], _T]) -> Steps[_T]:
        try:
            return (yield from self._persist(step))
        except (StoreEnded, GeneratorExit, SpoolCorrupt):
            raise
        except BaseException as error:
            self.crash("a step that must happen", error)

    def _exchange(self, store: WorkerStore, requests: Sequence[Request]) -> Steps[None]:
        work = joined(_works(requests))
        yield from self._leave_free()
        began = self._monotonic()

        def step() -> Exchange:
            nonlocal began
            began = self._monotonic()
            return store.exchange(work, self._now_ms())

        try:
            result = yield from self._persist(step)
        except GeneratorExit:
            raise
        except AnswerLost as error:  # committed: nobody may do it again
            self.crash("an exchange that cannot be told of", error)
        except BaseException as error:
            # A broken invariant, that is a bug, or damage: it must not take its neighbours along,
            # and whoever awaits it must not wait for ever.
            if len(requests) > 1 and not self.dead:
                for request in requests:
                    yield from self._exchange(store, [request])
            elif isinstance(error, SpoolCorrupt):
                self._corrupt(requests[0], error)
            else:
                for request in requests:
                    self._answers.tell(request.done, error=error)
            return
        now = self._monotonic()
        if not result.locked_s:
            result = result._replace(locked_s=began, freed_s=now)
        self.pace.exchanged(result.locked_s, result.freed_s)
        self._each = learned(self._each, work.claims, result.claimed)
        self._due.stale = True
        durable = [request for request in requests if request.durable]
        if len(durable) < len(requests):  # who needs no disk does not wait for it
            self._hand_back([request for request in requests if not request.durable], result)
        if durable or self.pace.overdue(now):
            # what escapes from it ends the worker: the exchange is committed
            yield from self._sync(store)
        if durable:
            self._hand_back(durable, result)

    def _hand_back(self, requests: Sequence[Request], result: Exchange) -> None:
        """Each gets what its lanes claimed."""
        told: list[tuple[Done, Exchange]] = []
        for request, share in zip(requests, parts(result, _works(requests)), strict=True):
            told.append((request.done, share))
            request.done = nobody  # should a sync end the worker: it has its answer
        self._answers.tell_all(told)

    def _persist(self, step: Callable[[], _T]) -> Steps[_T]:
        """Try until the spool takes it: what was sent must be recorded. Damage is raised."""
        trouble = Complaint("store", self._monotonic)
        while True:
            if self.dead:
                raise StoreEnded(OVER)
            try:
                return step()
            except SpoolReplaced as error:
                self.crash("store", error)  # a fresh one opens what has the name now
            except SpoolCorrupt:
                raise
            except SpoolError as error:
                trouble.say(str(error))
            yield Wait(RETRY_S, request=False)
