"""A scripted child for a real supervisor: speaks the control protocol and misbehaves on request.

Run as ``python -P fakechild.py --act NAME [--trace FILE]``. Everything it meets (hello, commands,
end of file) is appended to the trace as one JSON object per line, so that a test can wait for it
and compare. Knows the protocol only, nothing of the engine. Acts:

    well         ready, beats; drain, stop and end of file end it
    dies         exits 3 before it is ready
    dies-once    exits 3 unless it was started again, then ``well``
    mute         never ready
    silent       ready, then no beat
    stubborn     ``well``, but neither drain nor stop ends it
    nonsense     ready, then a line that is no report
    blocked      ready, then neither reads nor beats nor ends on its own, until killed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from dataclasses import dataclass

from mailstrom.clock import monotonic_ms
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
    Report,
    Stop,
    decode_command,
    encode_report,
)

BEAT_S = 0.05
STDIN = 0


def _address(fd: int) -> str:
    """Where an inherited socket listens; it stays open."""
    with socket.socket(fileno=os.dup(fd)) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        host, port = listening.getsockname()[:2]
    return f"{host}:{port}"


@dataclass(slots=True, kw_only=True)
class FakeChild:
    """One run of an act; ``restarts`` and ``status_fd`` come with the hello."""

    act: str
    trace: str | None
    hello: Hello | None = None

    def note(self, saw: str, **fields: object) -> None:
        if self.trace is None:
            return
        hello = self.hello
        whose = {} if hello is None else {"kind": hello.kind, "slot": hello.slot}
        line = json.dumps({"saw": saw, "pid": os.getpid(), **whose, **fields}) + "\n"
        descriptor = os.open(self.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def report(self, report: Report) -> None:
        assert self.hello is not None
        with contextlib.suppress(BrokenPipeError):  # the end of file says it, too
            os.write(self.hello.status_fd, encode_report(report))

    def obey(self, command: Command) -> int | None:
        """Act on a command; a number ends the process with that status."""
        match command:
            case Hello():
                self.hello = command
                return self.greet(command)
            case Drain() if self.act != "stubborn":
                self.note("drain")
                self.report(Drained())
                return 0
            case Stop() if self.act != "stubborn":
                self.note("stop")
                return 0
            case Reload():
                self.note("reload", config=command.config)
            case Lapse():
                self.note("lapse", dead=command.pid)
            case _:
                self.note(type(command).__name__.lower())
        return None

    def greet(self, hello: Hello) -> int | None:
        self.note(
            "hello",
            restarts=hello.restarts,
            supervisor_pid=hello.supervisor_pid,
            parent=os.getppid(),
            store=hello.store,
            config=hello.config,
            cwd=os.getcwd(),
            path=sys.path,
            blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            descriptors=sorted(int(name) for name in os.listdir("/proc/self/fd"))
            if os.path.isdir("/proc/self/fd")
            else None,
            status_fd=hello.status_fd,
            sockets=hello.sockets,
            listening=[_address(fd) for fd in hello.sockets],
        )
        if self.act == "dies" or (self.act == "dies-once" and not hello.restarts):
            return 3
        if self.act != "mute":
            self.report(Ready(worker=hello.slot + 1))
        if self.act == "nonsense":
            os.write(hello.status_fd, b'{"mood": "odd"}\n')
        if self.act == "blocked":
            signal.pause()
        return None

    def run(self) -> int:
        lines = LineBuffer(COMMAND_LIMIT)
        with selectors.DefaultSelector() as selector:
            selector.register(STDIN, selectors.EVENT_READ)
            while True:
                if selector.select(BEAT_S):
                    data = os.read(STDIN, 65_536)
                    if not data:
                        self.note("eof")
                        return 0
                    for line in lines.feed(data):
                        status = self.obey(decode_command(line))
                        if status is not None:
                            return status
                if self.hello is not None and self.act not in {"silent", "mute"}:
                    self.report(Beat(monotonic_ms=monotonic_ms()))


def main() -> int:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser()
    parser.add_argument("--act", default="well")
    parser.add_argument("--trace")
    arguments = parser.parse_args()
    return FakeChild(act=arguments.act, trace=arguments.trace).run()


if __name__ == "__main__":
    sys.exit(main())
