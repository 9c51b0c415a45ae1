"""One child process and the place it fills: spawn, talk, listen, reap, and when to start again.

Knows pipes, signals by process id and exit statuses; knows nothing of why a child should start or
end (``supervision`` decides), nor of what children do. Times are seconds of the supervisor's own
monotonic clock, handed in. A child is reaped only here, by its ``Popen``, and a process id is
signalled only before that: a recycled id is never hit. Both pipes close at the reaping.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mailstrom.control import (
    COMMAND_LIMIT,
    REPORT_LIMIT,
    Command,
    Hello,
    LineBuffer,
    Ready,
    decode_report,
    encode_command,
)
from mailstrom.policy.restart import restart_delay_s

_READ_BYTES = 65_536
_BACKLOG_BYTES = 4 * COMMAND_LIMIT

# Children start with these blocked, so that a terminal's Ctrl-C or hang-up, which reaches the whole
# process group, cannot end one between its exec and its own first lines. They then ignore them.
_TERMINAL_SIGNALS = {signal.SIGINT, signal.SIGHUP}


def exit_cause(returncode: int) -> str:
    """How a process ended, in words.

    Args:
        returncode: as ``Popen`` has it: an exit status, or a signal's number made negative.

    Returns:
        ``"exit 1"`` or ``"signal 9 (SIGKILL)"``.
    """
    if returncode >= 0:
        return f"exit {returncode}"
    try:
        return f"signal {-returncode} ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"signal {-returncode}"


def working_directory() -> str:
    """Where this process was started; empty where that folder is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def child_environment(environ: dict[str, str], folder: str) -> dict[str, str]:
    """The environment for a child, whose working directory is ``/``.

    A relative ``PYTHONPATH`` means the folder its user was in, so it is made absolute; empty
    entries, which Python takes for "wherever I am", go.

    Args:
        environ: the parent's environment.
        folder: the parent's working directory at its start; empty where that is gone.
    """
    entries = environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = [
        os.path.join(folder, entry)
        for entry in entries
        if entry and (folder or os.path.isabs(entry))
    ]
    environment = {name: value for name, value in environ.items() if name != "PYTHONPATH"}
    if absolute:
        environment["PYTHONPATH"] = os.pathsep.join(absolute)
    return environment


@dataclass(slots=True, kw_only=True)
class Child:
    """A living process of ours, until ``reap`` returns a cause.

    Args:
        process: the process; nobody else waits for it.
        control_fd: our end of its standard input, not blocking.
        status_fd: our end of its status pipe, not blocking.
        heard_s: when its last bytes arrived; before it is ready, when it started.
        listening: whether its status pipe is still open.
        ready: whether it reported so; ``worker`` is then the number of its row.
        killed: why we killed it, if we did.
        unsent: commands that its pipe has not taken yet.
    """

    process: subprocess.Popen[bytes]
    control_fd: int
    status_fd: int
    heard_s: float
    listening: bool = True
    ready: bool = False
    worker: int | None = None
    killed: str | None = None
    unsent: bytearray = field(default_factory=bytearray)
    lines: LineBuffer = field(default_factory=lambda: LineBuffer(REPORT_LIMIT))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def send(self, command: Command) -> None:
        """Queue a command and write what the pipe takes now; never blocks.

        Raises:
            ControlError: the command is too long for a line.
        """
        self.unsent += encode_command(command)
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes of the queued commands; ``unsent`` holds the rest."""
        try:
            while self.unsent:
                del self.unsent[: os.write(self.control_fd, self.unsent)]
        except BlockingIOError:
            if len(self.unsent) > _BACKLOG_BYTES:
                self.kill("does not read its control pipe")
        except BrokenPipeError:
            # It closed its end or is dead; the reaping, or the watchdog, takes it from here.
            self.unsent.clear()

    def hear(self, now_s: float) -> None:
        """Take in what the status pipe holds; never blocks.

        Args:
            now_s: the arrival time to note, whatever the bytes say.

        Raises:
            ControlError: the child breaks the protocol.
        """
        try:
            data = os.read(self.status_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.listening = False
            return
        for report in map(decode_report, self.lines.feed(data)):
            if isinstance(report, Ready):
                self.ready, self.worker = True, report.worker
        # Chatter before ready buys no time: the start has its own limit.
        if self.ready:
            self.heard_s = now_s

    def kill(self, reason: str) -> None:
        """End it with SIGKILL; the first reason given is kept in ``killed``."""
        self.killed = self.killed or reason
        self.process.kill()

    def reap(self) -> str | None:
        """Collect it if it is dead, and close its pipes.

        Returns:
            How it ended, in words, or None while it lives.
        """
        returncode = self.process.poll()
        if returncode is None:
            return None
        os.close(self.control_fd)
        os.close(self.status_fd)
        return exit_cause(returncode)

    def overdue(self, now_s: float, *, watchdog_s: float, ready_s: float) -> str | None:
        """Why the watchdog should kill it, or None.

        Args:
            now_s: the present.
            watchdog_s: longest silence of a child that was ready.
            ready_s: longest time from the start to ready.
        """
        silent_s = now_s - self.heard_s
        if self.ready:
            return f"no heartbeat for {silent_s:.1f} s" if silent_s > watchdog_s else None
        return f"not ready after {silent_s:.1f} s" if silent_s > ready_s else None


@dataclass(slots=True, kw_only=True)
class Slot:
    """A place for one child of a kind; outlives the children that fill it.

    Args:
        kind: ``"delivery"``, ``"listener"`` or ``"janitor"``.
        number: its place among its kind, from 0.
        start_s: when a child is to be started here; None while one lives or none is wanted.
    """

    kind: str
    number: int
    start_s: float | None
    child: Child | None = None
    restarts: int = 0
    started_s: float | None = None
    exits_s: deque[float] = field(default_factory=deque)

    def lost(
        self, now_s: float, schedule: Sequence[float], *, window_s: float, gap_s: float
    ) -> float:
        """Note that the child died unasked, and plan the next start.

        Args:
            now_s: when it died.
            schedule: back-off in seconds, as ``policy.restart`` takes it.
            window_s: deaths longer ago than this are forgotten.
            gap_s: shortest time between two starts.

        Returns:
            Seconds from ``now_s`` to the planned start.
        """
        self.child = None
        self.exits_s.append(now_s)
        while self.exits_s[0] < now_s - window_s:
            self.exits_s.popleft()
        delay_s = restart_delay_s(len(self.exits_s), schedule)
        earliest_s = now_s if self.started_s is None else self.started_s + gap_s
        self.start_s = max(now_s + delay_s, earliest_s)
        return self.start_s - now_s


def spawn(
    argv: Sequence[str],
    *,
    slot: Slot,
    store: str,
    config: dict[str, object],
    environment: dict[str, str],
    now_s: float,
    sockets: Sequence[int] = (),
) -> Child:
    """Start a process for ``slot`` and send it its ``Hello``.

    Args:
        argv: the command, absolute or found on PATH.
        slot: the place it fills.
        store: path of the spool.
        config: the effective configuration as JSON values.
        environment: the child's environment.
        now_s: the time of the start.
        sockets: descriptors that listen, which it inherits.

    Raises:
        OSError: the process could not be made; nothing is left open.
        ControlError: the configuration is too long for a line.
    """
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        command_end, control_fd = os.pipe()
        theirs.callback(os.close, command_end)
        ours.callback(os.close, control_fd)
        status_fd, report_end = os.pipe()
        ours.callback(os.close, status_fd)
        theirs.callback(os.close, report_end)
        os.set_blocking(control_fd, False)
        os.set_blocking(status_fd, False)
        hello = Hello(
            kind=slot.kind,
            slot=slot.number,
            restarts=slot.restarts,
            supervisor_pid=os.getpid(),
            status_fd=report_end,
            store=store,
            config=config,
            sockets=tuple(sockets),
        )
        first_line = encode_command(hello)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=command_end,
                cwd="/",
                env=environment,
                pass_fds=(report_end, *sockets),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ours.pop_all()
    child = Child(process=process, control_fd=control_fd, status_fd=status_fd, heard_s=now_s)
    child.unsent += first_line
    child.flush()
    return child
