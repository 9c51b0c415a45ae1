"""What many lanes ask of the store, served in shared transactions: the core, without a clock.

Everything that lanes want settled, opened and claimed while one transaction runs goes into the
next one together. Between two write transactions the lock stays free for a moment, so that senders
come in. A result is handed back only when what must be durable is: claims are on disk before their
first byte is sent. A spool that cannot be written (busy, full, poisoned) is tried again for as long
as the worker lives: results of open sessions are kept in memory, never dropped.

Damage (``SpoolCorrupt``) is often in one place: a request that meets it is put aside and tried
again each second, while the others have their turn. A drain does not wait for it: whoever asked is
told, and what was not recorded is in doubt, as after a death.

What must not go on ends by ``crash``, which the host of the worker gives: a process ends at once;
an engine inside an application fails as a whole, and this service with it. From then on nothing is
written here, and whoever waits is told ``StoreEnded``: for the spool it is a death.

While it is idle it looks whether something became due, and tells whoever watches: by a number that
changes with other connections' commits, so that nothing is asked twice.

The serving half is a generator that yields its waits; whoever drives it does the waiting and sends
what came. ``dbthread.DBThread`` drives it on a thread of its own. Must not know: threads, sleeping.

Longer than a file should be: how it is asked and how it is served is safe only as seen together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, NoReturn, TypeVar

from mailstrom.clock import wall_ms
from mailstrom.errors import SpoolCorrupt, SpoolError, SpoolReplaced
from mailstrom.storage.base import Claimed, Exchange, Work, WorkerStore
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.portions import portions, rows

_T = TypeVar("_T")

Crash = Callable[[str, BaseException], NoReturn]
"""Ends the worker without unwinding into the spool: where, and what happened. What it held lapses,
which is always safe."""

FREE_LOCK_S = 0.002
SYNC_S = 0.05
"""Results reach the disk at the latest after this time: a power cut re-sends no more than that."""
RETRY_S = 0.25
MOST_FREE_S = 0.015
"""The lock stays free for as long as it was held, within these bounds: what waits meanwhile shares
the next commit, and senders get their half of the time."""
GATHER_S = 0.02
"""What nothing on the wire waits for is written at most so long after the last write, with what
comes meanwhile: an exchange costs as much as five messages in it."""
LOOK_S = 0.012
"""How often the workers together look whether somebody committed, where nothing rings; each its
share of the times, so that many of them cost an idle machine no more than one."""
ASLEEP_S = 1.0
"""Where a write to the spool rings, an idle worker looks by itself this often."""
SERIES_S = 0.005
"""Verbs that nobody shares are run for so long before the lock is left free."""
ASIDE_S = 1.0
"""What met damage is tried again after this time."""
_GATHER = 256
_OVER = "the store's service has ended"


class StoreEnded(Exception):
    """The store's service has ended before this was done; the worker is over."""


Done = Callable[[Any, BaseException | None], None]
"""Takes a result, or the error there is instead; called on the loop."""


def _settle(future: asyncio.Future[Any]) -> Done:
    """Whoever awaits a future, as somebody to be told."""

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return settle


class Request:
    """One thing asked of the store, and who waits for it."""

    __slots__ = ("call", "done", "durable", "insisted", "patient", "work")

    def __init__(
        self,
        done: Done,
        call: Callable[[WorkerStore], Any] | None = None,
        work: Work | None = None,
        *,
        durable: bool = False,
        insisted: bool = False,
        patient: bool = False,
    ) -> None:
        self.done = done
        self.call = call
        self.work = work
        self.durable = durable
        self.insisted = insisted
        self.patient = patient


def _rows(request: Request) -> int:
    return 0 if request.work is None else rows(request.work)


class Wait(NamedTuple):
    """What the driver of ``DBService.life`` is to wait for.

    Args:
        seconds: at most so long; None is without end.
        request: for the next request, which it sends (None: it closes); else it is a mere pause,
            and it sends nothing. ``Late`` is sent where none came in time.
    """

    seconds: float | None
    request: bool


class Late:
    """No request came in time."""


LATE = Late()


def _nobody(_result: Any, _error: BaseException | None) -> None:
    """Nobody waits."""


_NOTHING = Request(_nobody)
"""Makes the core see that it is watched, or waited for."""
Steps = Generator[Wait, Request | Late | None, _T]


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
        self._crash_host = crash
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._dead = False
        self._store: WorkerStore | None = None
        self._fresh: WorkerStore | None = None
        self._batch: list[Request] = []  # what was taken from the queue and may be unanswered
        self._aside: list[Request] = []  # what met damage
        self._aside_until = 0.0
        self._draining = False
        self._damage = Complaint("store", monotonic)
        self._last_write = float("-inf")
        self._series = 0.0  # how long verbs have been run since the lock was left free
        self._watcher: Callable[[], None] | None = None
        self._look_s = LOOK_S
        self._look_at = float("-inf")
        self._wake_at = float("-inf")
        self._armed = False  # a write to the spool will ring
        self._held_s = 0.0  # how long the last exchange had the lock
        self._version: int | None = None
        self._due_ms: int | None = None
        self._stale = True  # what is due was asked before the last write
        self._told = False
        self._unsynced: float | None = None

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
        self._armed = False
        self._put(_NOTHING)

    # --- on the loop ------------------------------------------------------------------------

    async def call(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb of the store; its exception is raised here."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._ask(Request(_settle(future), function))
        return await future

    async def insist(self, function: Callable[[WorkerStore], _T]) -> _T:
        """Run a verb that must happen, however long the spool cannot take it.

        For what would wedge a lane or a domain if it were given up. A refusal that is not the
        spool's trouble but a bug ends the worker: its lock falls and the janitor takes back
        what it held.
        """
        future: asyncio.Future[_T] = self._loop.create_future()
        self._ask(Request(_settle(future), function, insisted=True))
        return await future

    async def exchange(self, work: Work, *, durable: bool = False) -> Exchange:
        """Carry work into the next shared transaction; claims come back for its lanes alone.

        ``durable``: wait for the disk (claims always do).
        """
        if work.empty:
            return Exchange(frozenset(), frozenset(), [])
        future: asyncio.Future[Exchange] = self._loop.create_future()
        self.post(work, _settle(future), durable=durable)
        return await future

    def post(self, work: Work, done: Done, *, durable: bool = False, patient: bool = False) -> None:
        """``exchange`` for a caller that does not wait: ``done`` takes its outcome.

        ``patient``: it has enough to go on with for a while; see ``GATHER_S``.
        """
        durable = durable or bool(work.claims)
        self._ask(Request(done, work=work, durable=durable, patient=patient))

    def hurry(self) -> None:
        """Somebody whose request was patient waits for it now."""
        self._put(_NOTHING)

    async def reopen(self, open_store: Callable[[], WorkerStore]) -> None:
        """Go on with a store opened anew, with other settings; the old one if that fails.

        Raises:
            SpoolError: it could not be opened.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def change(store: WorkerStore) -> None:
            self._fresh = open_store()

        self._ask(Request(_settle(future), change))
        await future

    def watch(self, told: Callable[[], None] | None) -> None:
        """Have ``told`` called on the loop when something is due, or drained; None: no more of it.

        Once when something becomes due, and again whenever somebody else commits while it is.
        What stays due for want of a lane, or of a connection, is for whoever watches to ask about.
        """
        self._watcher = told
        self._put(_NOTHING)

    def drain(self) -> None:
        """From now on damage is told to whoever asked, and not waited for; who watches is told."""
        self._draining = True
        if self._watcher is not None:
            self._watcher()

    async def close(self) -> None:
        """Run what is queued, close the store, end the service."""
        self._draining = True
        self._put(None)
        await self._ended

    def _ask(self, request: Request) -> None:
        if self._dead:
            raise StoreEnded(_OVER)
        self._put(request)

    def _bury(self) -> None:
        """Whoever waits, or asks from now on, is told that this is over."""
        self._dead = True
        while True:
            try:
                request = self._queue.get_nowait()
            except Empty:
                return
            if request is not None:
                request.done(None, StoreEnded(_OVER))

    # --- the core ---------------------------------------------------------------------------

    def life(self) -> Steps[None]:
        """Open the store, serve, close it; what it yields is to be waited for."""
        try:
            self._store = self._open_store()
        except BaseException as error:
            self._tell(_settle(self._opened), error=error)
            self._tell(_settle(self._ended))
            return
        self._tell(_settle(self._opened))
        try:
            yield from self._serve(self._store)
        except (StoreEnded, GeneratorExit):
            pass
        except BaseException as error:
            # the loop would beat on, and every lane hang
            with contextlib.suppress(StoreEnded):
                self._crash("store service", error)
        for opened in (self._store, self._fresh):
            with contextlib.suppress(SpoolError):
                if opened is not None:
                    opened.close()
        for request in (*self._batch, *self._aside):
            self._tell(request.done, error=StoreEnded(_OVER))
        self._later(self._bury)
        self._tell(_settle(self._ended))

    def _crash(self, where: str, error: BaseException) -> NoReturn:
        self._dead = True
        self._crash_host(where, error)

    def _serve(self, store: WorkerStore) -> Steps[None]:
        """Serve requests to the end; another store may be open then."""
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
            again = self._again()
            self._batch = [*fresh, *again]
            for some in portions([one for one in fresh if one.work is not None], _rows):
                yield from self._exchange(store, some)
            for request in again:
                if request.work is not None:
                    yield from self._exchange(store, [request])
            for request in self._batch:
                if request.call is not None and not self._dead:
                    yield from self._call(store, request)
            if self._dead:
                return
            self._batch = []
            if self._unsynced is not None and (None in requests or self._fresh is not None):
                yield from self._sync(store)
            if self._fresh is not None:
                store.close()
                store = self._store = self._fresh
                self._fresh = None
            if None in requests:
                return

    def _gather(self, requests: list[Request | None], last: Request) -> Steps[None]:
        """Wait for more as long as nobody is in a hurry."""
        until = self._last_write + GATHER_S
        if self._unsynced is not None:
            until = min(until, self._unsynced + SYNC_S)
        while last.patient and len(requests) < _GATHER:
            seconds = until - self._monotonic()
            if seconds <= 0:
                return
            came = yield Wait(seconds, request=True)
            if isinstance(came, Late):
                return
            requests.append(came)
            if came is None:
                return
            last = came

    def _again(self) -> list[Request]:
        """What met damage, where its time has come."""
        if not self._aside or (self._monotonic() < self._aside_until and not self._draining):
            return []
        again, self._aside = self._aside, []
        return again

    def _corrupt(self, request: Request, error: SpoolCorrupt) -> None:
        """Put a request that met damage aside; when draining, whoever asked is told."""
        self._damage.say(str(error))
        if self._draining:
            self._tell(request.done, error=error)
            return
        self._aside.append(request)
        self._aside_until = self._monotonic() + ASIDE_S

    def _next(self, store: WorkerStore) -> Steps[Request | Late | None]:
        """The next request; while none comes results are synced, and what is due is looked at."""
        while True:
            now = self._monotonic()
            wait: float | None = ASIDE_S if self._aside else None
            syncing = self._unsynced is not None
            if self._unsynced is not None:
                wait = max(self._unsynced + SYNC_S - now, 0.0)
            if self._watcher is not None:
                look_at = max(self._look_at, self._wake_at) if self._armed else self._look_at
                if now >= look_at:
                    look_at = self._look_again(store, now)
                look = max(look_at - now, 0.0)
                if wait is None or look < wait:
                    wait, syncing = look, False
            came = yield Wait(wait, request=True)
            if not isinstance(came, Late):
                return came
            if syncing:
                yield from self._sync(store)
            elif self._aside and self._monotonic() >= self._aside_until:
                return came

    def _look_again(self, store: WorkerStore, now: float) -> float:
        """Look, and say when to look next; where nothing is due a write rings before that."""
        # Armed before the look: what is written after it rings. Not while there is work, whose own
        # writes would ring all the time.
        self._armed = not self._told
        if self._armed and not self._arm(store):
            self._armed = False
        due_s = self._look(store)
        self._armed = self._armed and not self._told
        self._look_at = now + self._look_s
        self._wake_at = now + min(due_s, ASLEEP_S)
        return max(self._look_at, self._wake_at) if self._armed else self._look_at

    def _look(self, store: WorkerStore) -> float:
        """Tell the watcher what became due, by others' commits or as time went by.

        Returns:
            Seconds until something that waits now will be due.
        """
        due_s = float("inf")
        changed = False
        try:
            version = store.version()
            changed = version != self._version
            now_ms = self._now_ms()
            if changed:
                self._look_s = LOOK_S * store.live_workers()
            if changed or self._stale:
                self._due_ms = store.next_due_ms(now_ms)
                self._version, self._stale = version, False
            due = self._due_ms is not None and self._due_ms <= now_ms
            if self._due_ms is not None:
                due_s = max(self._due_ms - now_ms, 0) / 1000
        except SpoolError:
            self._stale = due = True  # who looks meets it, too, and says so
        watcher = self._watcher  # another thread may change it
        if due and (changed or not self._told) and watcher is not None:
            self._later(watcher)
        self._told = due
        return due_s

    def _leave_free(self) -> Steps[None]:
        """Let others have the lock for a moment, where the last write was just now."""
        free_s = min(max(self._held_s, FREE_LOCK_S), MOST_FREE_S)
        pause = free_s - (self._monotonic() - self._last_write)
        if pause > 0:
            yield Wait(pause, request=False)
        self._series = 0.0

    def _sync(self, store: WorkerStore) -> Steps[None]:
        yield from self._persist(store.sync)
        self._unsynced = None

    def _call(self, store: WorkerStore, request: Request) -> Steps[None]:
        call = request.call
        assert call is not None
        began = self._monotonic()
        if self._series >= SERIES_S:
            yield from self._leave_free()
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
                self._tell(request.done, error=error)
        except BaseException as error:  # belongs to whoever awaits it
            self._tell(request.done, error=error)
        else:
            self._tell(request.done, result)
        self._last_write = self._monotonic()  # for all that is known here
        self._series += self._last_write - began
        self._stale = True
        if self._unsynced is not None and self._last_write - self._unsynced >= SYNC_S:
            yield from self._sync(store)  # nobody may be late for long

    def _insisted(self, step: Callable[[], _T]) -> Steps[_T]:
        try:
            return (yield from self._persist(step))
        except (StoreEnded, GeneratorExit, SpoolCorrupt):
            raise
        except BaseException as error:
            self._crash("a step that must happen", error)

    def _exchange(self, store: WorkerStore, requests: Sequence[Request]) -> Steps[None]:
        if not requests:
            return
        work = Work()
        for request in requests:
            assert request.work is not None
            work.sessions += request.work.sessions
            work.settlements += request.work.settlements
            work.opens += request.work.opens
            work.claims += request.work.claims
            work.lessons += request.work.lessons
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
        except BaseException as error:
            # A broken invariant, that is a bug, or damage: it must not take its neighbours along,
            # and whoever awaits it must not wait for ever.
            if len(requests) > 1 and not self._dead:
                for request in requests:
                    yield from self._exchange(store, [request])
            elif isinstance(error, SpoolCorrupt):
                self._corrupt(requests[0], error)
            else:
                for request in requests:
                    self._tell(request.done, error=error)
            return
        now = self._monotonic()
        if not result.locked_s:
            result = result._replace(locked_s=began, freed_s=now)
        # Neither the wait for the lock nor what was read behind the commit kept it from others.
        self._last_write, self._held_s = result.freed_s, result.freed_s - result.locked_s
        self._stale = True
        if self._unsynced is None:
            self._unsynced = self._last_write
        durable = [request for request in requests if request.durable]
        if len(durable) < len(requests):  # who needs no disk does not wait for it
            self._hand_back([request for request in requests if not request.durable], result)
        if durable or now - self._unsynced >= SYNC_S:
            # what escapes from it ends the worker: the exchange is committed
            yield from self._sync(store)
        if durable:
            self._hand_back(durable, result)

    def _hand_back(self, requests: Sequence[Request], result: Exchange) -> None:
        """Each gets what its lanes claimed, all by one call on the loop."""
        claimed: dict[int, list[Claimed]] = {}
        for row in result.claimed:
            claimed.setdefault(row.lane, []).append(row)
        told: list[tuple[Done, Exchange]] = []
        settled, opened, times = result.settled, result.opened, (result.locked_s, result.freed_s)
        for request in requests:
            assert request.work is not None
            lanes = [claim.lane for claim in request.work.claims]
            rows = [row for lane in lanes for row in claimed.get(lane, ())]
            ended, more = result.ended.intersection(lanes), result.more.intersection(lanes)
            told.append((request.done, Exchange(settled, opened, rows, ended, *times, more)))
            request.done = _nobody  # should a sync end the worker: it has its answer

        def tell() -> None:
            for done, exchange in told:
                try:
                    done(exchange, None)
                except Exception as error:  # a bug of one must not keep the others waiting
                    text = "what an exchange did could not be taken"
                    self._loop.call_exception_handler({"message": text, "exception": error})

        self._later(tell)

    def _persist(self, step: Callable[[], _T]) -> Steps[_T]:
        """Try until the spool takes it: what was sent must be recorded. Damage is raised."""
        trouble = Complaint("store", self._monotonic)
        while True:
            if self._dead:
                raise StoreEnded(_OVER)
            try:
                return step()
            except SpoolReplaced as error:
                self._crash("store", error)  # a fresh one opens what has the name now
            except SpoolCorrupt:
                raise
            except SpoolError as error:
                trouble.say(str(error))
            yield Wait(RETRY_S, request=False)

    def _tell(self, done: Done, result: Any = None, *, error: BaseException | None = None) -> None:
        self._later(lambda: done(result, error))
