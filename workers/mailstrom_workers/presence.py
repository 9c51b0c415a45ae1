"""An engine worker as others see it: a lock file, a row, beats, and how both end.

One piece for a child process of the supervisor (``boot``) and for an engine inside an application
(``embedded``). The lock file is taken before the row can be seen, so that the row is never mistaken
for a dead one; a worker whose row says that it is dead, or whose lock file lost its name, ends: it
would get no lane again. There are two ends. ``run`` returns: everything was given back, the row
says stopped, the file is gone. ``cut``: nothing is written any more and the lock is freed with the
row as it is, which is what a killed process leaves; the janitor takes back what it held. Where
``run`` raises, its host exits or cuts: the work has failed, and who keeps the lock keeps the mail.

Must not know: pipes, signals, the supervisor's protocol, what the work is.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from mailstrom import events
from mailstrom.config import Config
from mailstrom.errors import SpoolCorrupt, SpoolError, SpoolReplaced
from mailstrom.lockfile import LockFile, make_directory
from mailstrom.storage import open_worker_store, run_directory
from mailstrom.storage.base import WorkerStore
from mailstrom.types import OnDoubt
from mailstrom_workers import reporting
from mailstrom_workers.dbrequest import Crash
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.dbthread import DBThread
from mailstrom_workers.loops import name_of
from mailstrom_workers.machine import THIS, Machine

ROW_BEAT_S = 5.0
LOCK_TRIES = 500
LOCK_WAIT_S = 0.01


OpenStore = Callable[[str, Config], WorkerStore]


class Serve(Protocol):
    """Makes the service of a store; see ``DBThread``."""

    def __call__(self, open_store: Callable[[], WorkerStore], *, crash: Crash) -> DBService:
        """Not started yet."""
        ...


def _nothing() -> None:
    return


@dataclass(slots=True, kw_only=True, eq=False)
class Presence:
    """A registered worker.

    Args:
        kind: ``delivery``, ``listener`` or ``janitor``.
        slot: its place among its kind.
        store: name of the spool.
        config: what holds now; a reload replaces it and sets ``reloaded``.
        leads: asked whether this engine's configuration is the spool's, or another engine's is.
        worker: the number of its row.
        machine: where it runs.
        open_store: opens the store; None: by its name.
        sockets: inherited descriptors that listen.
        crash: how it ends when it must not go on.
        sessions: tells how many connections are open.
        hang_up: cuts them, and nothing more is written.
        break_off: cuts them, and what is known then is written: ends a drain that takes too long.
        on_ready: called once the row says ready.
        mates: tells the rows of the other workers of this process.
        role: whether it holds the janitor's role.
        stored: what the store goes by, where that is not ``config``: a reload it could not follow.
    """

    kind: str
    slot: int
    store: str
    config: Config
    leads: Callable[[], bool]
    worker: int
    db: DBService
    lock: LockFile
    crash: Crash
    machine: Machine = THIS
    open_store: OpenStore | None = None
    sockets: tuple[int, ...] = ()
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    reloaded: asyncio.Event = field(default_factory=asyncio.Event)
    lapsed: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: Callable[[], int] = lambda: 0
    hang_up: Callable[[], None] = _nothing
    break_off: Callable[[], None] = _nothing
    on_ready: Callable[[], None] = _nothing
    mates: Callable[[], Collection[int]] = tuple
    role: bool = False
    stored: Config | None = None
    state: str = "starting"

    async def ready(self) -> None:
        """The work has begun: the row says so before anybody else hears it."""
        self.state = "ready"
        now_ms = self.machine.wall_ms()
        await self.db.insist(
            lambda store: store.beat(self.worker, state="ready", sessions=0, now_ms=now_ms)
        )
        self.on_ready()
        events.worker_ready(
            kind=self.kind,
            pid=os.getpid(),
            slot=self.slot,
            worker=self.worker,
            loop=name_of(asyncio.get_running_loop()),
        )

    def drain(self) -> None:
        """Claim nothing more, finish what is on the wire, give the rest back."""
        if self.state != "ended":
            self.state = "draining"
        self.draining.set()
        self.db.drain()

    async def adopt(self, config: Config) -> None:
        """Go on with another configuration, between transactions.

        Raises:
            SpoolError: the store could not take over its part; the rest holds, and the next call
                tries it again.
        """
        stored = self.stored or self.config
        self.stored, self.config = stored, config
        self.reloaded.set()
        if stored.retry.schedule != config.retry.schedule:
            await self.db.reopen(lambda: (self.open_store or _open)(self.store, config))
        elif not reporting.same(stored, config):
            await self.db.call(lambda store: reporting.use(store, config))
        self.stored = config

    async def run(self, work: Work) -> None:
        """Work to the end, with beats; then retire and free the lock."""
        beats = asyncio.create_task(self._beats())
        try:
            try:
                await work(self)
                self.state = "ended"
            finally:
                beats.cancel()
            worker, now_ms = self.worker, self.machine.wall_ms()
            on_doubt = OnDoubt(self.config.delivery.on_doubt)
            await self.db.insist(
                lambda store: store.retire(
                    worker, state="stopped", now_ms=now_ms, on_doubt=on_doubt
                )
            )
        except SpoolCorrupt:  # the row stays as a killed process leaves it
            await self.db.close()
            raise
        await self.db.close()
        self.lock.release(delete=True)

    async def cut(self, patience_s: float) -> None:
        """End as by a kill: connections cut, nothing written, lock freed with the row as it is.

        The lock falls whatever happens here. After a whole ``run`` there is nothing left to cut.

        Args:
            patience_s: how long a step of the store that is under way is waited for.
        """
        try:
            self.hang_up()
        finally:
            try:
                await self.db.kill(patience_s)
            finally:
                self.lock.release()

    async def _beats(self) -> None:
        """Write the heartbeat into our row, for people; end if the row says that we are dead."""
        while True:
            await asyncio.sleep(ROW_BEAT_S)
            await self._beat()

    async def _beat(self) -> None:
        state, sessions, now_ms = self.state, self.sessions(), self.machine.wall_ms()

        def step(store: WorkerStore) -> bool:
            store.verify()
            store.beat(self.worker, state=state, sessions=sessions, now_ms=now_ms)
            return any(row.seq == self.worker for row in store.workers())

        try:
            alive = await self.db.call(step)
        except SpoolReplaced as error:
            self.crash("beat", error)
        except SpoolError:
            return  # busy or full: the next beat is near, and the janitor needs the thread
        if self.state != "ended" and not (alive and self.lock.named):
            self.crash(
                "row", SpoolError("this worker was taken for dead, or its lock file is gone")
            )


Work = Callable[[Presence], Awaitable[None]]


async def enter(
    *,
    kind: str,
    slot: int,
    store: str,
    config: Config,
    crash: Crash,
    leads: Callable[[], bool],
    restarts: int = 0,
    machine: Machine = THIS,
    serve: Serve = DBThread,
    open_store: OpenStore | None = None,
    sockets: tuple[int, ...] = (),
) -> Presence:
    """Take a lock file of our own, open the store, register.

    Args:
        restarts: how often its place was filled before.
        machine: where it runs.
        serve: who serves the store that is opened.
        open_store: opens it; None: by its name.
        sockets: inherited descriptors that listen.

    Raises:
        SpoolError: the lock cannot be taken, or the spool not be opened; nothing is left behind.
    """
    name = f"{kind}-{os.getpid()}-{machine.token(4)}.lock"
    folder = run_directory(store)
    make_directory(folder)
    lock = LockFile(os.path.join(folder, name))
    for _ in range(LOCK_TRIES):
        if lock.acquire({"pid": os.getpid(), "kind": kind}):
            break
        await asyncio.sleep(LOCK_WAIT_S)  # a janitor probes it: moments
    else:
        raise SpoolError(f"{lock.path}: cannot be locked; is another process holding it?")

    def register(store: WorkerStore) -> int:
        return store.register(
            kind=kind,
            pid=os.getpid(),
            host=socket.gethostname(),
            boot=machine.boot_id(),
            lock=name,
            restarts=restarts,
            now_ms=machine.wall_ms(),
        ).seq

    db = serve(lambda: (open_store or _open)(store, config), crash=crash)
    try:
        await db.start()
    except BaseException:
        lock.release(delete=True)
        await db.kill(0.0)  # cancelled, the thread is still opening: it closes what it gets
        raise
    try:
        worker = await db.call(register)
    except BaseException:
        try:
            await db.kill(0.0)
        finally:
            lock.release()  # the row may be there: a janitor finds it dead
        raise
    return Presence(
        kind=kind,
        slot=slot,
        store=store,
        config=config,
        leads=leads,
        worker=worker,
        db=db,
        lock=lock,
        crash=crash,
        machine=machine,
        open_store=open_store,
        sockets=sockets,
    )


def _open(store: str, config: Config) -> WorkerStore:
    # Lost on the wire once: sent again at once; lost again: after the pauses of any retry.
    delays_ms = (0, *(int(seconds * 1000) for seconds in config.retry.schedule))
    opened = open_worker_store(store, doubt_delays_ms=delays_ms)
    reporting.use(opened, config)
    return opened
