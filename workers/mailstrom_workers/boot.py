"""What every engine process does around its work: hello, lock, row, heartbeat, commands, end.

The process is started by the supervisor with a control pipe on standard input. It takes a lock file
of its own before its row can be seen, so that the row is never mistaken for a dead one; it reports
ready and a beat each second from its event loop; end of file on the pipe means that the supervisor
is gone, and is treated as a drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mailstrom import events
from mailstrom.clock import boot_id, monotonic_ms, wall_ms
from mailstrom.config import Config, from_json
from mailstrom.control import (
    COMMAND_LIMIT,
    Beat,
    Command,
    Drain,
    Drained,
    Hello,
    Lapse,
    LineBuffer,
    Ready,
    Reload,
    Stop,
    decode_command,
    encode_report,
)
from mailstrom.errors import MailstromError, SpoolError, SpoolReplaced
from mailstrom.lockfile import LockFile
from mailstrom.storage import open_worker_store, run_directory
from mailstrom.storage.base import WorkerStore
from mailstrom.types import OnDoubt
from mailstrom_workers.dbthread import DBThread, crash

BEAT_S = 1.0
ROW_BEAT_S = 5.0


@dataclass(slots=True)
class Child:
    """An engine process as its work sees it."""

    hello: Hello
    config: Config
    worker: int
    db: DBThread
    lock: LockFile
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    reloaded: asyncio.Event = field(default_factory=asyncio.Event)
    lapsed: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: Callable[[], int] = lambda: 0
    state: str = "starting"
    status_fd: int = -1

    def report(self, report: Ready | Beat | Drained) -> None:
        """Tell the supervisor; it may be gone."""
        with contextlib.suppress(OSError):  # gone, or stopped for so long that the pipe is full
            os.write(self.status_fd, encode_report(report))

    async def beat(self) -> None:
        """Write the heartbeat into our row, for people; end if the row says that we are dead.

        A worker that was lapsed by mistake gets no lane again; a fresh process does.
        """
        state, sessions, now_ms = self.state, self.sessions(), wall_ms()

        def step(store: WorkerStore) -> bool:
            store.verify()
            store.beat(self.worker, state=state, sessions=sessions, now_ms=now_ms)
            return any(row.seq == self.worker for row in store.workers())

        try:
            alive = await self.db.call(step)
        except SpoolReplaced as error:
            crash("beat", error)
        except SpoolError:
            return  # busy or full: the next beat is near, and the janitor needs the thread
        if self.state == "ended":
            return
        if not alive or not self.lock.named:
            events.engine_failed(
                where="row", error="this process was taken for dead, or its lock file is gone"
            )
            os._exit(1)

    async def ready(self) -> None:
        """The work has begun: the row says so before the supervisor hears it."""
        self.state = "ready"
        now_ms = wall_ms()
        await self.db.insist(
            lambda store: store.beat(self.worker, state="ready", sessions=0, now_ms=now_ms)
        )
        self.report(Ready(worker=self.worker))
        events.worker_ready(
            kind=self.hello.kind, pid=os.getpid(), slot=self.hello.slot, worker=self.worker
        )


Work = Callable[[Child], Awaitable[None]]


def main(work: Work) -> int:
    """Run an engine process to its end; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the supervisor tells us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    lines = LineBuffer(COMMAND_LIMIT)
    waiting: list[bytes] = []
    while not waiting:
        data = os.read(0, 65536)
        if not data:
            print(
                f"{sys.argv[0]}: started by hand; this process is a child of the supervisor:"
                " run 'python -m mailstrom.supervisor'",
                file=sys.stderr,
            )
            return 64
        waiting = lines.feed(data)
    hello = decode_command(waiting.pop(0))
    if not isinstance(hello, Hello):
        raise SystemExit("the first command on the control pipe must be hello")
    config = from_json(json.dumps(hello.config).encode())
    _log(hello, config)
    try:
        return asyncio.run(_live(work, hello, config, lines, waiting))
    except MailstromError as error:
        events.engine_failed(where="start", error=error, kind=hello.kind, pid=os.getpid())
        return 75 if isinstance(error, SpoolError) else 78


def _log(hello: Hello, config: Config) -> None:
    events.configure(config.log.level, config.log.format)
    events.bind(kind=hello.kind, slot=hello.slot, pid=os.getpid())


async def _live(
    work: Work, hello: Hello, config: Config, lines: LineBuffer, waiting: list[bytes]
) -> int:
    os.set_inheritable(hello.status_fd, False)
    os.set_blocking(hello.status_fd, False)
    name = f"{hello.kind}-{os.getpid()}-{secrets.token_hex(4)}.lock"
    os.makedirs(run_directory(hello.store), exist_ok=True)
    lock = LockFile(os.path.join(run_directory(hello.store), name))
    for _ in range(500):
        if lock.acquire({"pid": os.getpid(), "kind": hello.kind}):
            break
        await asyncio.sleep(0.01)  # a janitor probes it: moments
    else:
        raise SpoolError(f"{lock.path}: cannot be locked; is another process holding it?")
    # Lost on the wire once: sent again at once; lost again: after the pauses of any retry.
    delays_ms = (0, *(int(seconds * 1000) for seconds in config.retry.schedule))
    db = DBThread(lambda: open_worker_store(hello.store, doubt_delays_ms=delays_ms))
    await db.start()

    def register(store: WorkerStore) -> int:
        return store.register(
            kind=hello.kind,
            pid=os.getpid(),
            host=socket.gethostname(),
            boot=boot_id(),
            lock=name,
            restarts=hello.restarts,
            now_ms=wall_ms(),
        ).seq

    child = Child(hello, config, await db.call(register), db, lock, status_fd=hello.status_fd)
    loop = asyncio.get_running_loop()
    for line in waiting:
        _obey(child, decode_command(line))
    loop.add_reader(0, _read_commands, child, lines)
    beats = asyncio.create_task(_beat(child))
    try:
        await work(child)
        child.state = "ended"
    finally:
        beats.cancel()
        loop.remove_reader(0)
    worker, now_ms = child.worker, wall_ms()
    on_doubt = OnDoubt(child.config.delivery.on_doubt)
    await db.insist(
        lambda store: store.retire(worker, state="stopped", now_ms=now_ms, on_doubt=on_doubt)
    )
    await db.close()
    child.report(Drained())
    lock.release(delete=True)
    events.worker_stopped(kind=hello.kind, pid=os.getpid(), slot=hello.slot, cause="drained")
    return 0


def _read_commands(child: Child, lines: LineBuffer) -> None:
    data = os.read(0, 65536)
    if not data:
        asyncio.get_running_loop().remove_reader(0)
        child.draining.set()  # orphaned: finish what is on the wire, claim nothing more
        return
    for line in lines.feed(data):
        _obey(child, decode_command(line))


def _obey(child: Child, command: Command) -> None:
    match command:
        case Drain():
            child.state = "draining"
            child.draining.set()
        case Stop():
            os._exit(1)  # at once: what is on the wire lapses in doubt
        case Reload(config=config):
            child.config = from_json(json.dumps(config).encode())
            _log(child.hello, child.config)
            child.reloaded.set()
        case Lapse():
            child.lapsed.set()
        case Hello():
            pass


async def _beat(child: Child) -> None:
    """Reports from the loop each second, and a row for people every few."""
    next_row = 0.0
    loop = asyncio.get_running_loop()
    row: asyncio.Task[None] | None = None  # a busy spool must not hold back the heartbeat
    while True:
        child.report(Beat(monotonic_ms=monotonic_ms()))
        if loop.time() >= next_row and child.state != "starting" and (row is None or row.done()):
            next_row = loop.time() + ROW_BEAT_S
            row = asyncio.create_task(child.beat())
        await asyncio.sleep(BEAT_S)
