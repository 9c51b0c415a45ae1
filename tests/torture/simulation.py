"""The worker core in virtual time: thousands of stories, each from one seed, judged to the end.

Contract. ``run(plan)`` tells the stories of the seeds from ``plan.seed`` on; ``story(seed, ...)``
is one of them. A story that is not right is a finding with the command that tells it again, and
its trace (``-m tests.torture.simulation SEED``). Workers, janitor, store and dialogue are the
product's; time, network, DNS, peers and deaths are simulated (``sim_world``), judged by
``sim_oracle``. Stories only compute, so two processes tell them, each every other one; they are
judged in the order of their seeds.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path

import apsw

from mailstrom.storage.sqlite import schema
from tests.support.trial import Plan
from tests.torture.memory import in_memory
from tests.torture.sim_oracle import Judged, judge
from tests.torture.sim_world import World
from tests.torture.table import Row

SHORT, LONG = 500, 10_000
TELLERS = 2
"""Processes that tell stories beside each other."""
TWICE_OF = 50
"""One story of so many is told twice."""
_KINDS = (
    ("kill ", "worker or janitor killed between any two steps"),
    ("reboot,", "power cut that takes commits along"),
    ("reboot", "all killed at once, another boot"),
    ("stop ", "worker or janitor stopped"),
    ("lock lost", "lapsed although alive"),
    ("drain", "drained under load"),
    ("reload", "configuration reloaded under load"),
    ("damage", "verdicts and claims met damage, under a drain"),
    ("store ", "spool busy or full"),
    ("sync failed", "sync failed"),
    ("dns ", "DNS failed, or said no"),
    ("domain moves", "domain moved to another site"),
    ("clock jump", "wall clock jumped"),
    ("client ", "cancelled, held, released, retried, resolved meanwhile"),
    ("connect ", "connection refused, or never made"),
    ("dot ", "trouble at the final dot"),
    ("", "trouble at another reply"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One story.

    Args:
        trace: digest of all that happened, in order.
        recovery_s: virtual seconds from the last fault until nothing waited.
    """

    seed: int
    judged: Judged
    trace: str
    lines: tuple[str, ...]
    faults: dict[str, int]
    recovery_s: float


@contextmanager
def spools(folder: Path) -> Iterator[Path]:
    """A place for spools, in memory where there is such; and an empty spool in it to copy."""
    with in_memory(folder, "simulation") as place:
        empty = str(place / "empty.db")
        schema.prepare(empty, engine=True)
        connection = apsw.Connection(empty)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()
        yield place


def story(seed: int, place: Path) -> Told:
    """Tell the story of a seed.

    Args:
        place: as ``spools`` gives it.
    """
    folder = place / "story"
    folder.mkdir()
    world = World(seed, folder, place / "empty.db")
    try:
        world.run()
        judged = judge(world)
    except Exception as error:
        error.add_note(f"{again(seed)}; the end of its trace:\n" + "\n".join(world.trace[-40:]))
        raise
    finally:
        world.close()
        shutil.rmtree(folder)
    return Told(
        seed=seed,
        judged=judged,
        trace=sha256("\n".join(world.trace).encode()).hexdigest(),
        lines=tuple(world.trace),
        faults=dict(world.faults),
        recovery_s=world.finished_s,
    )


def again(seed: int) -> str:
    """The command that tells a story again."""
    return f"PYTHONPATH=.:workers python -P -m tests.torture.simulation {seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """A story without its trace, as one process hands it to another.

    Args:
        same: whether it came out the same when it was told again; None where it was told once.
        error: the traceback of what it raised.
    """

    told: Told | None = None
    same: bool | None = None
    error: str = ""


def _tell(plan: Plan, first: int, to: Connection, others: Sequence[Connection]) -> None:
    """Tell every ``TELLERS``-th story from number ``first`` on, until nobody listens.

    Args:
        others: inherited ends of pipes; while one of them is open, it is listened to.
    """
    for end in others:
        end.close()
    with spools(plan.folder) as place:
        for number in itertools.count(first, TELLERS):
            seed = plan.seed + number
            try:
                told = story(seed, place)
                same = None
                if number % TWICE_OF == 0:
                    same = story(seed, place).trace == told.trace
                heard = _Heard(told=replace(told, lines=()), same=same)
            except Exception as error:
                heard = _Heard(error="".join(traceback.format_exception(error)))
            try:
                to.send(heard)
            except BrokenPipeError:
                return


@contextmanager
def _stories(plan: Plan) -> Iterator[Iterator[_Heard]]:
    """The stories in the order of their seeds, without end; told until the block is left."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(TELLERS)]
    ends = [listening for listening, _ in pipes]
    held = [end for pipe in pipes for end in pipe]
    tellers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
        for first, (_, speaking) in enumerate(pipes):
            others = [end for end in held if end is not speaking]
            teller = context.Process(
                target=_tell, args=(plan, first, speaking, others), daemon=True
            )
            teller.start()
            tellers.append(teller)
    for _, speaking in pipes:
        speaking.close()
    try:
        yield (end.recv() for end in itertools.cycle(ends))
    finally:
        for end in ends:
            end.close()
        for teller in tellers:
            teller.join()


def run(plan: Plan) -> Iterator[Row]:
    """The stories, and a row for each kind of fault."""
    faults: Counter[str] = Counter()
    findings: list[str] = []
    tried = messages = lost = silent = marked = repeated = 0
    worst_s = 0.0
    count = plan.pick(SHORT, LONG)
    gc.freeze()
    with _stories(plan) as stories:
        for number, heard in enumerate(stories):
            seed, told = plan.seed + number, heard.told
            if told is None:
                raise RuntimeError(heard.error)
            tried += bool(told.faults)  # one in which all went well is no fault
            if heard.same is not None:
                repeated += 1
                if not heard.same:
                    findings.append(f"seed {seed}: two runs differ ({again(seed)})")
            faults.update(told.faults)
            judged = told.judged
            messages, marked = messages + judged.messages, marked + judged.marked
            lost, silent = lost + judged.lost, silent + judged.silent
            worst_s = max(worst_s, told.recovery_s)
            for text in judged.findings:
                findings.append(f"{text} ({again(seed)})")
                plan.say(f"seed {seed}: {text}")
            if number % 500 == 499:
                plan.say(f"{number + 1} stories, {sum(faults.values())} faults")
            if tried == count:
                break
    gc.unfreeze()
    yield Row(
        unit="story",
        part="simulation",
        fault=f"stories of one seed each, {repeated} of them told twice",
        tried=tried,
        messages=messages,
        lost=lost,
        silent=silent,
        marked=marked,
        worst_recovery_s=worst_s,
        findings=tuple(findings),
        seed=plan.seed,
    )
    for text, tried in _by_kind(faults).items():
        yield Row(part="simulation", fault=text, tried=tried, seed=plan.seed)


def _by_kind(faults: Counter[str]) -> dict[str, int]:
    found = dict.fromkeys((text for _, text in _KINDS), 0)
    for fault, tried in faults.items():
        found[next(text for start, text in _KINDS if fault.startswith(start))] += tried
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as _folder, spools(Path(_folder)) as _place:
        _told = story(int(sys.argv[1]), _place)
    print(*_told.lines, sep="\n")
    sys.exit("\n".join(_told.judged.findings) or 0)
