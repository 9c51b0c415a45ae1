"""Disk errors: the n-th operation fails, once or from then on, until a pass meets no fault.

Two halves. In one process (``errors_world``), for breadth: every verb of the stores, every kind of
operation of SQLite's file layer, of its system calls, and of what the product asks of the system
itself. As real processes (``errors_processes``), for the rule that after a failed sync in ANY
process NO process acknowledges until a repair. Each case is told by verb, fault and seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.support.trial import Plan
from tests.torture.errors_inject import Fault
from tests.torture.errors_processes import run as run_processes
from tests.torture.errors_world import VERBS, Verb, World
from tests.torture.memory import in_memory
from tests.torture.table import Row

EACH = 400
"""The long form fails each operation up to this one, then passes over more and more of them."""
PROMISED = ("acknowledged", "said to be stored by a status")
"""What ``World`` calls the messages whose absence is a loss."""
MOST = 1 << 20
"""No verb needs more operations of a kind than this; a sweep that does not end is a finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A kind of operation, failing at each place where it occurs.

    Args:
        family: row of the table.
        forever: whether "from then on" is tried, too; SQLite waits ten seconds on broken locks.
    """

    family: str
    op: str
    file: str = ""
    error: str = "EIO"
    style: str = "before"
    forever: bool = True


def _sweeps(family: str, *rows: tuple[str, ...], forever: bool = True) -> tuple[Sweep, ...]:
    names = ("op", "file", "error", "style")
    return tuple(
        Sweep(family=family, forever=forever, **dict(zip(names, row, strict=False)))  # type: ignore[arg-type]
        for row in rows
    )


SWEEPS = (
    *_sweeps("write fails", ("write", "wal"), ("write", "wal", "EIO", "half"),
             ("write", "wal", "EIO", "after"), ("write", "db"), ("call:pwrite64", "shm", "ENOSPC")),
    *_sweeps("disk full at a write", ("write", "wal", "ENOSPC"), ("write", "db", "ENOSPC")),
    *_sweeps("sync fails, what it held is dropped", ("sync", "wal"), ("sync", "db"),
             ("sync", "wal", "ENOSPC")),
    *_sweeps("read fails", ("read", "wal"), ("read", "db"), ("call:pread64", "wal"),
             ("call:pread64", "db")),
    *_sweeps("open, size, truncate fail", ("open",), ("truncate",), ("size",),
             ("call:ftruncate",), ("call:open", "", "EMFILE"), ("call:fstat",), ("call:stat",)),
    *_sweeps("lock fails", ("lock", "", "EIO"), ("lock", "", "PROTOCOL"), ("call:fcntl", "db")),
    *_sweeps("lock or shared memory fails", ("call:fcntl", "shm"), ("lock", "", "BUSY_RECOVERY"),
             ("call:mmap", "shm", "ENOMEM"), forever=False),
    *_sweeps("memory runs out", ("heap",), forever=False),
    *_sweeps("flag, directory or descriptor fails", ("os:open", "", "EMFILE"), ("os:open",),
             ("os:stat",), ("os:fsync",), ("os:unlink",), ("os:mkdir",), ("os:statvfs",),
             ("os:link",), ("os:write",), ("os:fchmod",)),
)  # fmt: skip


@dataclass(slots=True)
class _Sum:
    tried: int = 0
    messages: int = 0
    lost: int = 0
    silent: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, found: list[str]) -> None:
        for text in found:
            self.lost += any(f": {said}, not in" in text for said in PROMISED)
            self.silent += "its delivery is recorded" in text
            self.findings.append(text)


def run(plan: Plan) -> Iterator[Row]:
    """Both halves; see the head of this module."""
    yield from sweep(plan)
    yield from run_processes(plan)


def sweep(
    plan: Plan, verbs: tuple[Verb, ...] = VERBS, sweeps: tuple[Sweep, ...] = SWEEPS
) -> Iterator[Row]:
    """The half in this process: a row for each family of faults."""
    with in_memory(plan.folder, "errors") as memory:
        yield from _swept(replace(plan, folder=memory), verbs, sweeps)


def _swept(plan: Plan, verbs: tuple[Verb, ...], sweeps: tuple[Sweep, ...]) -> Iterator[Row]:
    sums: dict[str, _Sum] = {one.family: _Sum() for one in sweeps}
    by_sweep = dict.fromkeys(sweeps, 0)
    for number, verb in enumerate(verbs):
        for family in sums:
            folder = plan.folder / f"{verb.__name__}-{len(family)}"
            folder.mkdir()
            with World(folder, plan.seed * 1_000 + number) as world:
                for one in (one for one in sweeps if one.family == family):
                    for forever in (False, True) if one.forever else (False,):
                        fired = _until_it_passes(plan, world, verb, one, forever)
                        sums[family].tried += fired
                        by_sweep[one] += fired
                sums[family].messages += len(world.acked)
                sums[family].add(world.findings)
            for left in plan.folder.glob(f"{folder.name}*"):
                shutil.rmtree(left)
        plan.say(f"{verb.__name__}: {sum(one.tried for one in sums.values())} faults so far")
    for kind, fired in by_sweep.items():
        if not fired:
            sums[kind.family].findings.append(f"{kind}: it was never brought about")
    for family, one in sums.items():
        yield Row(
            part="errors", fault=family, tried=one.tried, messages=one.messages, lost=one.lost,
            silent=one.silent, findings=tuple(one.findings), seed=plan.seed,
        )  # fmt: skip


def _until_it_passes(plan: Plan, world: World, verb: Verb, one: Sweep, forever: bool) -> int:
    """Raise n until the verb passes without the fault; how many faults fired."""
    fired, n = 0, 1
    while n < MOST:
        fault = Fault(
            op=one.op, file=one.file, error=one.error, style=one.style, n=n, forever=forever
        )
        deep = one.op == "sync" or world.trials % plan.pick(10, 4) == 0
        if not world.trial(verb, fault, deep=deep):
            break
        fired += 1
        # The short form passes over most of the many.
        n += 1 if n < plan.pick(4, EACH) else n
    else:
        world.findings.append(f"{verb.__name__}: {one} does not end within {MOST} operations")
    return fired
