"""Processes of an engine as the kernel shows them: who lives, what they hold, and exact signals.

Contract. A supervisor of the harness leads a session of its own (``setsid``), and all that it
starts stays in it, so that a session names an engine's processes without asking the engine. A
signal goes through a descriptor of the process, and only after its session was seen again: a
recycled number is never hit. Linux. Must not know: the spool, the log.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.sockets import eventually

PATIENCE_S = 10.0
_KINDS = {
    b"mailstrom_workers.delivery": "delivery",
    b"mailstrom_workers.janitor": "janitor",
    b"mailstrom.supervisor": "supervisor",
}
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A living process.

    Args:
        kind: delivery, janitor, supervisor; ``other`` for one between fork and exec.
        state: the kernel's letter: R, S, D, T (stopped), ...
        started: clock ticks since the boot; with the id it names the process for ever.
    """

    pid: int
    parent: int
    session: int
    kind: str
    state: str
    started: int


def look(pid: int) -> Process | None:
    """What the kernel says of a process; None if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except _GONE:
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    parent, session = int(fields[1]), int(fields[3])
    kind = next((_KINDS[word] for word in argv if word in _KINDS), "other")
    if kind == "supervisor" and pid != session:
        kind = "other"  # a child that has not reached its exec
    return Process(
        pid=pid, parent=parent, session=session, kind=kind, state=fields[0],
        started=int(fields[19]),
    )  # fmt: skip


def members(sessions: Collection[int], kind: str | None = None) -> list[Process]:
    """Living processes of these sessions, by id."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    found = (look(pid) for pid in pids)
    return [
        one
        for one in found
        if one is not None and one.session in sessions and kind in (None, one.kind)
    ]


@contextlib.contextmanager
def _held(process: Process) -> Iterator[int | None]:
    """A descriptor of exactly this process, or None if it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        now = look(process.pid)
        same = now is not None and (now.session, now.started) == (process.session, process.started)
        yield descriptor if same else None
    finally:
        os.close(descriptor)


def strike(process: Process, number: int) -> bool:
    """Send a signal; whether there was somebody to get it."""
    with _held(process) as descriptor:
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        return True


def freeze(process: Process) -> bool:
    """Stop it and wait until every thread stands; whether it was there."""
    if not strike(process, signal.SIGSTOP):
        return False

    def stands() -> bool:
        states = set()
        try:
            for thread in os.listdir(f"/proc/{process.pid}/task"):
                stat = Path(f"/proc/{process.pid}/task/{thread}/stat").read_text()
                states.add(stat.rpartition(")")[2].split()[0])
        except _GONE:
            return True
        return states <= {"T", "Z", "X"}

    eventually(stands, PATIENCE_S, what=f"every thread of {process.pid} standing", interval=0.001)
    return True


def open_connections(pid: int, port: int) -> int:
    """TCP connections to a remote port that a process holds now; 0 if it is gone."""
    inodes = {
        target.removeprefix("socket:[").removesuffix("]")
        for target in descriptors(pid).values()
        if target.startswith("socket:[")
    }
    found = 0
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except _GONE:
        return 0
    for line in lines:
        words = line.split()
        found += int(words[2].rpartition(":")[2], 16) == port and words[9] in inodes
    return found


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open: descriptor -> what it leads to; empty if it is gone."""
    held = {}
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(*_GONE):
                held[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    except _GONE:
        return {}
    return held
