"""Processes under measurement: started in sessions of their own, their CPU, memory, and strangers.

Contract. Linux; all from /proc, no cgroups. A family is a process and all that descend from it; its
CPU counts what its members used and what children they have reaped used. Whatever else the machine
did meanwhile, kernel threads apart (they write our pages), is foreign load: what a kernel thread
used that has ended meanwhile is in doubt for that time alone, not for its life. The wall is taken
around the machine's counters, so that no stretch is shorter than what they tell. Only processes
started here are ever signalled, by id or by the session that was made for them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")
STOP_S = 40.0
SAMPLE_S = 0.5
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD; a zombie has no memory of its own either


class Started:
    """A process in a session of its own; a context manager that ends it, and its children.

    Args:
        command: program and arguments.
        environ: its environment; None means ours.
        log: file for its output and errors; None throws them away.
        piped: whether its standard output is read here (and errors go to ``log``).
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        piped: bool = False,
    ) -> None:
        self.log = log
        sink = log.open("ab") if log else None
        try:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env=None if environ is None else dict(environ),
                cwd=cwd,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else sink or subprocess.DEVNULL,
                stderr=sink or subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            if sink:
                sink.close()

    @property
    def pid(self) -> int:
        """The process's id, which is its session's, too."""
        return self.process.pid

    def words(self) -> str:
        """The end of what it logged, for an error's text."""
        if self.log is None or not self.log.exists():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")[-300:]

    def stop(self, *, first: signal.Signals = signal.SIGTERM) -> int:
        """Ends it and what is left of its session; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(first)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        members = _session(self.pid)
        for member in members:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                continue
        status = self.process.wait(STOP_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _stat(pid: int | str) -> list[str]:
    """Fields of /proc/PID/stat from the state on; [] for one that has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _all() -> dict[int, list[str]]:
    return {
        int(name): stat for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(name))
    }


def _session(leader: int) -> list[int]:
    return [pid for pid, stat in _all().items() if int(stat[3]) == leader and stat[0] != "Z"]


def _members(roots: Iterable[int], everyone: Mapping[int, Sequence[str]]) -> set[int]:
    found = {root for root in roots if root in everyone}
    found |= {pid for pid, stat in everyone.items() if int(stat[3]) in found}  # their sessions
    while True:
        more = {pid for pid, stat in everyone.items() if int(stat[1]) in found} - found
        if not more:
            return found
        found |= more


def family(roots: Iterable[int]) -> set[int]:
    """Ids of the processes, their sessions' members and all their descendants, alive now."""
    return _members(roots, _all())


def _used(stats: Iterable[Sequence[str]]) -> float:
    return sum(sum(map(int, stat[11:15])) for stat in stats) / TICKS


def cpu_s(roots: Iterable[int]) -> float:
    """CPU seconds of a family so far, children that it reaped included."""
    everyone = _all()
    return _used(everyone[pid] for pid in _members(roots, everyone))


def pss_mib(pids: Iterable[int]) -> float:
    """Memory of processes in MiB, pages that they share counted once (PSS)."""
    return _memory_mib(pids, "Pss:")


def rss_mib(pids: Iterable[int]) -> float:
    """Memory of processes in MiB, pages that they share counted for each (RSS)."""
    return _memory_mib(pids, "Rss:")


def _memory_mib(pids: Iterable[int], name: str) -> float:
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith(name):
                total += int(line.split()[1])
    return total / 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The machine at one moment; CPU in seconds so far.

    Args:
        since_s: monotonic, just before ``busy_s`` was read.
        until_s: just behind it.
        busy_s: of the whole machine, all but idle.
        family_s: of the family under measurement.
        ours_s: of this program and all that it started.
        kernel_s: of each kernel thread, by its id and its start.
    """

    since_s: float
    until_s: float
    busy_s: float
    family_s: float
    ours_s: float
    kernel_s: Mapping[tuple[int, str], float]

    def foreign_s(self, before: Look) -> float:
        """What others used since an earlier look; not below 0, whatever the ticks say."""
        known = max(0.0, self.ours_s - before.ours_s)
        for thread, used in self.kernel_s.items():
            known += max(0.0, used - before.kernel_s.get(thread, 0.0))
        return max(0.0, self.busy_s - before.busy_s - known)


def kernel_s(everyone: Mapping[int, Sequence[str]]) -> dict[tuple[int, str], float]:
    """CPU seconds of each kernel thread, of the fields of /proc/PID/stat from the state on."""
    return {
        (pid, stat[19]): _used([stat])
        for pid, stat in everyone.items()
        if int(stat[6]) & _KERNEL_THREAD
    }


def look(roots: Iterable[int]) -> Look:
    """The machine now, with the family of these."""
    since_s = time.monotonic()
    numbers = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    until_s = time.monotonic()
    user, nice, system, _idle, _wait, irq, softirq = map(int, numbers[:7])
    everyone = _all()
    return Look(
        since_s=since_s,
        until_s=until_s,
        busy_s=(user + nice + system + irq + softirq) / TICKS,
        family_s=_used(everyone[pid] for pid in _members(roots, everyone)),
        ours_s=_used(everyone[pid] for pid in _members([os.getpid()], everyone)),
        kernel_s=kernel_s(everyone),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a stretch of time cost.

    Args:
        cpu_s: of the family.
        busy_cores: of the whole machine, in cores.
        foreign_cores: of others than this program, what it started, and the kernel.
        pss_mib: highest sum of the family's memory; 0 where it was not asked for.
    """

    wall_s: float
    cpu_s: float
    busy_cores: float
    foreign_cores: float
    pss_mib: float


class Meter:
    """Measures a family from its making until :meth:`stop`.

    Args:
        roots: the family's heads, asked anew each time, as they may change.
        memory: whether memory is sampled, every half second.
    """

    def __init__(self, roots: Callable[[], Iterable[int]], *, memory: bool = False) -> None:
        self._roots = roots
        self._peak = 0.0
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True) if memory else None
        self._first = look(roots())
        if self._sampler:
            self._sampler.start()

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, pss_mib(family(self._roots())))
            if self._over.wait(SAMPLE_S):
                return

    def stop(self) -> Used:
        """What was used since the making."""
        first, last = self._first, look(self._roots())
        self._over.set()
        if self._sampler:
            self._sampler.join()
        wall_s = max(1e-6, last.until_s - first.since_s)
        return Used(
            wall_s=wall_s,
            cpu_s=last.family_s - first.family_s,
            busy_cores=(last.busy_s - first.busy_s) / wall_s,
            foreign_cores=last.foreign_s(first) / wall_s,
            pss_mib=self._peak,
        )
