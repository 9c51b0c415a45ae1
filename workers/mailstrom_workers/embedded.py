"""The engine inside an application: what ``Mailstrom.start()`` runs.

One daemon thread with an event loop of its own holds the whole crew: delivery workers, each with
its row, lock file and store thread as in a process of the supervisor, and a janitor that stands by
for the role. Next to a supervisor they are just more workers: lanes keep the connection limits
exact, and the supervisor's configuration stays the one that clients are told.

An application's process is never ended, its signals and standard output are never touched. What
ends a process of the supervisor fails this engine as a whole: connections are cut, nothing more is
written, the locks fall, and ``status()`` says why; for the spool that is a kill, which the next
janitor puts right. A worker that ends by an exception is cut in the same way, at once. Log lines go
to ``logging``.

A forked child has no engine: its lock descriptors are closed by ``lockfile``, and descriptors of
connections are replaced, so that nothing that the child does or does not do reaches the parent's
peers or its event loop.

Longer than a usual file: what other threads may do to a run, and what its own thread does
meanwhile, is safe or not only as seen together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from msgspec.structs import replace

from mailstrom import events
from mailstrom.config import Config, from_tables, load
from mailstrom.control import SUPERVISOR_LOCK
from mailstrom.errors import ConfigError, SpoolBusy
from mailstrom.lockfile import is_free
from mailstrom.storage import canonical, prepare, run_directory
from mailstrom.storage.schemes import scheme_of
from mailstrom.types import EngineState, WorkerStatus
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.delivery import deliver, resolver_of
from mailstrom_workers.janitor import keep
from mailstrom_workers.loops import new_loop
from mailstrom_workers.presence import Presence, Work, enter

READY_S = 60.0
"""From ``start()`` to every row saying ready; as the supervisor's patience with a child."""
GRACE_S = 2.0
"""For the janitor's last round behind the deliveries, for what is cut off to be written down, and
for it to end."""

LOOK_S = 0.25
DELIVERY = "delivery"
JANITOR = "janitor"

ConfigArgument = str | os.PathLike[str] | Mapping[str, object] | None


class EmbeddedEngine:
    """Delivers the mail of a spool from a background thread of this process.

    Args:
        store: name of the spool, as ``mailstrom.storage`` takes it; created if missing.
        workers: delivery workers; they share the thread, so that more than one seldom pays.
        config: a file, or its tables (``{"delivery": {"mode": "relay"}, ...}``), or None for the
            file in force, if there is one. It may name this store or none; with None another one
            is passed over.
        logger: a logger of the standard library, or its name; ``mailstrom`` when None.

    It has one life: ``start`` works once, and not after ``stop``. May be used from any thread, also
    in a handler of its own log lines, where ``stop`` asks and cannot wait.
    """

    def __init__(
        self,
        store: str,
        *,
        workers: int = 1,
        config: ConfigArgument = None,
        logger: logging.Logger | str | None = None,
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers is {workers!r}; it is a number from 1")
        self._store = store
        self._workers = workers
        self._argument = config
        named = "mailstrom" if logger is None else logger
        self._logger = logging.getLogger(named) if isinstance(named, str) else named
        self._begun = threading.Lock()
        self._stopped = False
        self._run: _Run | None = None
        _engines.add(self)

    def start(self) -> None:
        """Start, and return once every worker's row says ready.

        Raises:
            ConfigError: the configuration is unusable; nothing was started.
            SpoolError: the spool cannot be used; nothing is left running.
            RuntimeError: it was stopped before it was ready; or started before; or this process
                can have no more threads.
        """
        if not self._begun.acquire(blocking=False):
            raise RuntimeError(f"this engine of {self._store} had its life; make another")
        try:
            config = _configuration(self._store, self._argument)
            resolver_of(config)  # what only the resolver can refuse is refused here, too
            prepare(self._store, engine=True)
            run = self._run = _Run(self._store, config, self._workers, self._logger)
            if self._stopped:  # before it could see the run
                run.drop()
            else:
                run.begin()
            if not run.settled.wait(READY_S):
                raise SpoolBusy(
                    f"{self._store}: the engine was not ready after {READY_S:.0f} s;"
                    " is another process holding the spool?"
                )
            if run.error is not None:
                raise run.error
            if not run.ready:
                raise RuntimeError(
                    f"{self._store}: the engine was stopped before it was ready; start() again"
                )
        except BaseException:
            self.stop(0.0)
            raise

    def stop(self, timeout: float = 30.0) -> bool:
        """Finish what is on the wire, give the rest back, and end; never raises.

        Args:
            timeout: seconds until what is still on the wire is cut off. What was not sent whole
                goes back to the queue, what was and has no answer is in doubt.

        Returns:
            Whether everything was finished and given back; also where nothing ran.
        """
        self._stopped = True
        run = self._run  # read behind the word: ``start`` sees one, or this sees the other
        return run is None or run.end(timeout)

    def status(self) -> WorkerStatus:
        """What is known about it now; one that was made is to be started."""
        run = self._run
        if run is not None:
            return run.status()
        return WorkerStatus(state=EngineState.STOPPED if self._stopped else EngineState.STARTING)

    def forked(self) -> None:
        """In a child of a fork: this engine is the parent's, here is none. Idempotent."""
        run = self._run
        if run is not None and run.pid != os.getpid():
            self._run = None
            self._stopped = True
            run.forsake()


def _configuration(store: str, argument: ConfigArgument) -> Config:
    """The configuration for this store.

    Raises:
        ConfigError: it is unusable, or for another store.
    """
    environ = {name: text for name, text in os.environ.items() if name != "MAILSTROM_STORE"}
    if isinstance(argument, Mapping):
        config = from_tables(argument, environ=environ)
    else:
        config = load(argument, environ=environ)
    said = config.store if "store" in config.sources else None
    if argument is not None and said is not None and not _same(said, store):
        raise ConfigError(
            f"{config.sources['store']}: store is {said}, and this engine was started for {store};"
            " remove the key, or open that store"
        )
    return replace(config, store=store)


def _same(said: str, store: str) -> bool:
    """Whether a configured name is this store's, or one that is a new spool at each use."""
    found = canonical(said)
    if found == canonical(store):
        return True
    return found != canonical(said) and scheme_of(said) == scheme_of(store)


class _Run:
    """One life of the engine, from its start to its end.

    Attributes:
        settled: set when it is ready or has ended.
        ready: whether it ever was.
        over: set when it has ended and nothing of it is left.
        error: what ended it, or None.
    """

    def __init__(self, store: str, config: Config, workers: int, logger: logging.Logger) -> None:
        self.pid = os.getpid()
        self.settled = threading.Event()
        self.ready = False
        self.over = threading.Event()
        self.error: BaseException | None = None
        self._store = store
        self._config = config
        self._workers = workers
        self._logger = logger
        self._state = EngineState.STARTING
        self._drained = False
        self._crew: dict[asyncio.Task[None], Presence] = {}
        self._seats: list[asyncio.Task[None]] = []
        self._unready = workers + 1
        self._loop = new_loop()
        self._ending = asyncio.Event()
        self._deadline_s = float("inf")
        self._thread = threading.Thread(target=self._live, name="mailstrom", daemon=True)

    # --- from any thread --------------------------------------------------------------------

    def begin(self) -> None:
        """Start the thread; where that cannot be, this is over."""
        try:
            self._thread.start()
        except Exception:
            self.drop()
            raise

    def drop(self) -> None:
        """Never begun: end it."""
        self._loop.close()
        self._over()

    def end(self, timeout_s: float) -> bool:
        """Drain for at most so long, then cut; whether it was drained."""
        self._tell(lambda: self._ask_end(timeout_s))
        crew = list(self._crew.values())
        if threading.current_thread() is self._thread or any(p.db.here() for p in crew):
            return False  # asked by a handler of our own log lines: it must not wait for itself
        self.over.wait(min(timeout_s + 4 * GRACE_S, threading.TIMEOUT_MAX))
        return self._drained

    def status(self) -> WorkerStatus:
        """A snapshot."""
        crew = list(self._crew.values())
        return WorkerStatus(
            state=self._state,
            workers=tuple(p.worker for p in crew if p.kind == DELIVERY),
            sessions=sum(p.sessions() for p in crew),
            janitor=any(p.role for p in crew),
            error=None if self.error is None else f"{type(self.error).__name__}: {self.error}",
        )

    def forsake(self) -> None:
        """In a forked child: let go of every descriptor, and touch nothing that the parent sees.

        Each number stays taken (by /dev/null), since objects that know it are still there. The loop
        and its tasks are never collected: their ends would be run here.
        """
        _forsaken.append(self)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in self._loop.descriptors() - {nothing}:
            os.dup2(nothing, number, inheritable=False)
        os.close(nothing)

    def _tell(self, step: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(step)

    def _fail(self, where: str, error: BaseException) -> None:
        """Note what ends the engine, and have it cut; the first error is the one that is told."""
        if isinstance(error, StoreEnded):
            return  # the end of what failed before
        events.engine_failed(where=where, error=error)
        if self.error is None:
            self.error = error
        self._tell(lambda: self._ask_end(0.0))

    def _crash(self, where: str, error: BaseException) -> NoReturn:
        self._fail(where, error)
        raise StoreEnded(f"the engine has failed: {where}") from error

    # --- on its own thread ------------------------------------------------------------------

    def _live(self) -> None:
        events.log_into(self._logger)
        self._loop.set_exception_handler(self._stray)
        try:
            self._loop.run_until_complete(self._work())
        except BaseException as error:
            self._fail("engine", error)
        try:
            self._loop.run_until_complete(self._bury())
        except BaseException as error:
            self._fail("end", error)
        finally:
            self._loop.close()
            self._over()

    def _over(self) -> None:
        self._state = EngineState.STOPPED if self.error is None else EngineState.FAILED
        self.settled.set()
        self.over.set()

    async def _work(self) -> None:
        """The crew's life: deliveries drain first, the janitor behind them."""
        deliveries = [self._seat(DELIVERY, number, deliver) for number in range(self._workers)]
        janitor = self._seat(JANITOR, 0, keep)
        await self._ending.wait()
        if self.error is None:
            self._state = EngineState.DRAINING
        self._drain(deliveries)
        await self._until(deliveries, lambda: self._deadline_s)
        self._drained = self.error is None and all(task.done() for task in deliveries)
        await self._break_off(deliveries)
        await self._cut(deliveries)
        self._drain([janitor])
        until_s = self._loop.time() + GRACE_S
        if self.error is None:
            await self._until([janitor], lambda: until_s)

    def _seat(self, kind: str, number: int, work: Work) -> asyncio.Task[None]:
        task = self._loop.create_task(self._fill(kind, number, work), name=f"{kind} {number}")
        self._seats.append(task)
        task.add_done_callback(lambda task: self._crew.pop(task, None))
        return task

    async def _fill(self, kind: str, number: int, work: Work) -> None:
        """A worker from its start to its end; one that ends unasked has failed, and all with it."""
        events.bind(kind=kind, slot=number, pid=self.pid)
        presence: Presence | None = None
        try:
            presence = await enter(
                kind=kind,
                slot=number,
                store=self._store,
                config=self._config,
                crash=self._crash,
                leads=self._leads,
            )
            await self._serve(presence, work)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(f"{kind} {number}", error)
        else:
            events.worker_stopped(kind=kind, pid=self.pid, slot=number, cause="drained")
        finally:
            if presence is not None:  # however it ended: what it kept, nobody else could have
                await presence.cut(GRACE_S)

    async def _serve(self, presence: Presence, work: Work) -> None:
        presence.on_ready = self._one_ready
        presence.mates = lambda: [mate.worker for mate in self._crew.values()]
        task = asyncio.current_task()
        assert task is not None
        self._crew[task] = presence
        if self._ending.is_set():
            presence.drain()
        await presence.run(work)

    def _leads(self) -> bool:
        try:
            return is_free(os.path.join(run_directory(self._store), SUPERVISOR_LOCK))
        except OSError:  # no descriptor left, say: nobody is told, and no role kept, on a guess
            return False

    def _one_ready(self) -> None:
        self._unready -= 1
        if self._unready == 0 and self._state is EngineState.STARTING:
            self._state = EngineState.READY
            self.ready = True
            self.settled.set()

    def _ask_end(self, timeout_s: float) -> None:
        self._deadline_s = min(self._deadline_s, self._loop.time() + timeout_s)
        self._ending.set()

    def _drain(self, tasks: Collection[asyncio.Task[None]]) -> None:
        for task in tasks:
            presence = self._crew.get(task)
            if presence is not None:
                presence.drain()

    async def _until(
        self, tasks: Collection[asyncio.Task[None]], deadline_s: Callable[[], float]
    ) -> None:
        """Until all have ended; the deadline may come nearer meanwhile."""
        while left := [task for task in tasks if not task.done()]:
            wait_s = deadline_s() - self._loop.time()
            if wait_s <= 0:
                return
            await asyncio.wait(left, timeout=min(wait_s, LOOK_S))

    async def _break_off(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """Have those that are left cut their connections and write down what is known."""
        left = [self._crew[task] for task in tasks if task in self._crew]
        if self.error is not None or not left:
            return
        for presence in left:
            presence.break_off()
        until_s = self._loop.time() + GRACE_S
        await self._until(tasks, lambda: until_s)

    async def _cut(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """End those that are left as by a kill."""
        left = [task for task in tasks if not task.done()]
        cuts = [self._crew[task].cut(GRACE_S) for task in left if task in self._crew]
        for error in await asyncio.gather(*cuts, return_exceptions=True):
            if error is not None:
                self._fail("cut", error)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=GRACE_S)

    async def _bury(self) -> None:
        """Whatever is left, however it came."""
        await self._cut(self._seats)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=GRACE_S)
        await self._loop.shutdown_asyncgens()

    def _stray(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would print: an error that nobody awaits."""
        error = context.get("exception")
        if not isinstance(error, StoreEnded):
            events.engine_failed(where="loop", error=error or str(context.get("message")))


_engines: weakref.WeakSet[EmbeddedEngine] = weakref.WeakSet()
_forsaken: list[_Run] = []


def _after_in_child() -> None:
    for engine in list(_engines):
        engine.forked()


os.register_at_fork(after_in_child=_after_in_child)
