"""An engine process as the supervisor's child: hello, pipes, signals, heartbeat, exit status.

The process is started by the supervisor with a control pipe on standard input. It reports ready and
a beat each second from its event loop; end of file on the pipe means that the supervisor is gone,
and is treated as a drain. A drain that takes longer than ``[delivery] drain_timeout``, and a stop,
cut the connections and write down what is known; the supervisor kills who has not ended some
seconds later. What the spool sees of it is ``presence``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import NoReturn

from mailstrom import descriptors, events
from mailstrom.clock import monotonic_ms
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
from mailstrom.errors import MailstromError, SpoolCorrupt, SpoolError
from mailstrom_workers.loops import new_loop
from mailstrom_workers.presence import Presence, Work, enter

BEAT_S = 1.0
GATHER_S = 0.005
"""How long lines of the log wait for others; a kill loses as many."""
LEAST_FILES = 16
"""Descriptors for the event loop, the spool, the lock, and one connection with its look-ups."""
EXIT_CRASHED = 70
EXIT_DAMAGED = 1
EXIT_STOPPED = 1
EXIT_AGAIN = 75
EXIT_CONFIG = 78


def end_process(where: str, error: BaseException) -> NoReturn:
    """End the process without unwinding: its lock falls, and what it held lapses."""
    events.engine_failed(where=where, error=error)
    os._exit(EXIT_CRASHED)


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
    descriptors.raise_limit()
    trouble = _lack_of_files()
    if trouble is not None:  # an event loop without them fails in no orderly way
        events.engine_failed(where="start", error=trouble, kind=hello.kind, pid=os.getpid())
        return EXIT_AGAIN
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            loop = runner.get_loop()
            with events.gathered(lambda write: loop.call_later(GATHER_S, write)):
                return runner.run(_live(work, hello, config, lines, waiting))
    except MailstromError as error:
        events.engine_failed(where="start", error=error, kind=hello.kind, pid=os.getpid())
        return EXIT_AGAIN if isinstance(error, SpoolError) else EXIT_CONFIG


def _lack_of_files() -> str | None:
    """Why the process cannot open what it needs, or None."""
    held: list[int] = []
    try:
        while len(held) < LEAST_FILES:
            held.append(os.dup(0))
    except OSError as error:
        return (
            f"{error.strerror}: {len(held)} more can be opened, of {LEAST_FILES} that are needed at"
            " least; raise the limit of open files (ulimit -n, LimitNOFILE)"
        )
    finally:
        for fd in held:
            os.close(fd)
    return None


def _log(hello: Hello, config: Config) -> None:
    events.configure(config.log.level, config.log.format)
    events.bind(kind=hello.kind, slot=hello.slot, pid=os.getpid())


async def _live(
    work: Work, hello: Hello, config: Config, lines: LineBuffer, waiting: list[bytes]
) -> int:
    for fd in (hello.status_fd, *hello.sockets):
        os.set_inheritable(fd, False)
    os.set_blocking(hello.status_fd, False)
    presence = await enter(
        kind=hello.kind,
        slot=hello.slot,
        store=hello.store,
        config=config,
        crash=end_process,
        leads=lambda: True,
        restarts=hello.restarts,
        sockets=hello.sockets,
    )
    pipes = _Pipes(hello, presence, lines)
    presence.on_ready = lambda: pipes.report(Ready(worker=presence.worker))
    for line in waiting:
        pipes.obey(decode_command(line))
    loop = asyncio.get_running_loop()
    loop.add_reader(0, pipes.read)
    beats = asyncio.create_task(pipes.beat())
    try:
        await presence.run(work)
    except SpoolCorrupt as error:  # the drain did not wait for what cannot be recorded
        events.engine_failed(where="drain", error=error, kind=hello.kind, pid=os.getpid())
        return EXIT_DAMAGED
    finally:
        beats.cancel()
        loop.remove_reader(0)
    pipes.report(Drained())
    events.worker_stopped(kind=hello.kind, pid=os.getpid(), slot=hello.slot, cause=pipes.cause)
    return EXIT_STOPPED if pipes.stopping else 0


class _Pipes:
    """The supervisor's end of this worker: commands in, reports out.

    Attributes:
        stopping: it was told to stop at once.
        cause: why it ends, for the log.
    """

    def __init__(self, hello: Hello, presence: Presence, lines: LineBuffer) -> None:
        self._hello = hello
        self._presence = presence
        self._lines = lines
        self._adopting: asyncio.Task[None] | None = None
        self._limit: asyncio.TimerHandle | None = None
        self.stopping = False
        self.cause = "drained"

    def report(self, report: Ready | Beat | Drained) -> None:
        """Tell the supervisor; it may be gone."""
        with contextlib.suppress(OSError):  # gone, or stopped for so long that the pipe is full
            os.write(self._hello.status_fd, encode_report(report))

    async def beat(self) -> None:
        """Report from the loop each second that it turns; no spool can hold this back."""
        while True:
            self.report(Beat(monotonic_ms=monotonic_ms()))
            await asyncio.sleep(BEAT_S)

    def read(self) -> None:
        """Take in what the control pipe holds."""
        data = os.read(0, 65536)
        if not data:
            asyncio.get_running_loop().remove_reader(0)
            self._drain()  # orphaned: finish what is on the wire, claim nothing more
            return
        for line in self._lines.feed(data):
            self.obey(decode_command(line))

    def obey(self, command: Command) -> None:
        """Do what the supervisor says."""
        match command:
            case Drain():
                self._drain()
            case Stop():
                self._stop()
            case Reload(config=values):
                config = from_json(json.dumps(values).encode())
                _log(self._hello, config)
                before = self._adopting
                self._adopting = asyncio.create_task(self._adopt(config, before))
            case Lapse():
                self._presence.lapsed.set()
            case Hello():
                pass

    def _drain(self) -> None:
        """Finish what is on the wire, for as long as the configuration of now allows."""
        presence = self._presence
        presence.drain()
        if self._limit is None:
            seconds = presence.config.delivery.drain_timeout
            self._limit = asyncio.get_running_loop().call_later(seconds, self._break_off)

    def _break_off(self) -> None:
        if self._presence.sessions():
            self.cause = "drain timeout"
        self._presence.break_off()

    def _stop(self) -> None:
        """End now: what is known of the wire is written, and nothing more is waited for."""
        if not self._presence.sessions():
            events.flush()
            os._exit(EXIT_STOPPED)
        self.stopping, self.cause = True, "stopped"
        self._presence.drain()
        self._presence.break_off()

    async def _adopt(self, config: Config, before: asyncio.Task[None] | None) -> None:
        """In the order of the commands."""
        if before is not None:
            await before
        try:
            await self._presence.adopt(config)
        except SpoolError as error:  # the store's part comes with the next reload, or start
            events.engine_failed(where="reload", error=error)
