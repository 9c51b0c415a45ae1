"""An engine process as the supervisor's child: hello, pipes, signals, heartbeat, exit status.

The process is started by the supervisor with a control pipe on standard input. It reports ready and
a beat each second from its event loop; end of file on the pipe means that the supervisor is gone,
and is treated as a drain. What the spool sees of it is ``presence``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import NoReturn

from mailstrom import events
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
EXIT_CRASHED = 70
EXIT_DAMAGED = 1


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
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            loop = runner.get_loop()
            with events.gathered(lambda write: loop.call_later(GATHER_S, write)):
                return runner.run(_live(work, hello, config, lines, waiting))
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
    presence = await enter(
        kind=hello.kind,
        slot=hello.slot,
        store=hello.store,
        config=config,
        crash=end_process,
        leads=lambda: True,
        restarts=hello.restarts,
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
    events.worker_stopped(kind=hello.kind, pid=os.getpid(), slot=hello.slot, cause="drained")
    return 0


class _Pipes:
    """The supervisor's end of this worker: commands in, reports out."""

    def __init__(self, hello: Hello, presence: Presence, lines: LineBuffer) -> None:
        self._hello = hello
        self._presence = presence
        self._lines = lines
        self._adopting: asyncio.Task[None] | None = None

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
            self._presence.drain()  # orphaned: finish what is on the wire, claim nothing more
            return
        for line in self._lines.feed(data):
            self.obey(decode_command(line))

    def obey(self, command: Command) -> None:
        """Do what the supervisor says."""
        match command:
            case Drain():
                self._presence.drain()
            case Stop():
                events.flush()
                os._exit(1)  # at once: what is on the wire lapses in doubt
            case Reload(config=values):
                config = from_json(json.dumps(values).encode())
                _log(self._hello, config)
                before = self._adopting
                self._adopting = asyncio.create_task(self._adopt(config, before))
            case Lapse():
                self._presence.lapsed.set()
            case Hello():
                pass

    async def _adopt(self, config: Config, before: asyncio.Task[None] | None) -> None:
        """In the order of the commands."""
        if before is not None:
            await before
        try:
            await self._presence.adopt(config)
        except SpoolError as error:  # the store's part comes with the next reload, or start
            events.engine_failed(where="reload", error=error)
