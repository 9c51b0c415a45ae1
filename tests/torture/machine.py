"""Any order of verbs over several connections against a model, for each store, seed after seed.

The machine, its rules and its oracle are those of ``tests.storage.machine``; here it runs as often
as the plan says, each round from a seed of its own. A round that fails is told with the command
that repeats it (``-m tests.torture.machine STORE SEED``) and the steps that led there. What was
lost on the wire is counted by how its lane ended, so that a form that lost nothing is seen.

A round first walks through every death on the wire (``DEATHS``), one after the other and from a
place that the seed gives; no chance is in it. Then it wanders, as the seed draws. The same seed
gives the same steps: ids are counted by the machine, and nothing is drawn from the constants of
the modules that happen to be loaded.
"""

from __future__ import annotations

import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.storage.machine import DEATHS, SpoolMachine
from tests.storage.test_memory_machine import MemoryMachine
from tests.storage.test_sqlite_machine import SQLiteMachine
from tests.support.drawing import drawn_from_the_seed
from tests.support.trial import Plan
from tests.torture.table import Row

EXAMPLES = 10
"""Of a round's wandering; the first ones are the simplest."""
STEPS = 40
LONG_S = 840.0
"""Both stores together, in the long form."""
NOTES = 4_000
"""Characters of a failure's story that a finding keeps."""
EXPIRED = 6
"""Hours after which a death's mail is at an end, so that the next one has only its own."""
STORES: dict[str, type[SpoolMachine]] = {"memory": MemoryMachine, "file": SQLiteMachine}


@dataclass(frozen=True, slots=True)
class Driven:
    """Some rounds.

    Args:
        rounds: that were done.
        losses: recipients by state and end of the lane that had them; ``held``: held by doubt.
        died: of ``DEATHS``, those that found a recipient on the wire.
        trace: a checksum of all that the model said after each step.
    """

    row: Row
    rounds: int
    losses: Counter[str]
    died: frozenset[object]
    trace: int


def counted(machine: type[SpoolMachine]) -> type[SpoolMachine]:
    """The machine, with its steps, recipients and losses counted in class attributes."""

    class Counted(machine):  # type: ignore[valid-type, misc]
        steps = 0
        mails = 0
        lost: ClassVar[Counter[str]] = Counter()
        deaths: ClassVar[set[object]] = set()
        trace = 0

        @invariant()
        def counts(self) -> None:
            Counted.steps += 1
            rows = getattr(self, "rows", {})
            told = [(*key, row.state, row.attempts, row.lane) for key, row in rows.items()]
            Counted.trace = zlib.crc32(repr((getattr(self, "now", 0), told)).encode(), self.trace)

        def teardown(self) -> None:
            super().teardown()
            Counted.mails += len(getattr(self, "rows", ()))
            Counted.lost.update(getattr(self, "losses", ()))
            Counted.deaths.update(getattr(self, "died", ()))

    Counted.__name__ = machine.__name__
    return Counted


def walk(played: type[SpoolMachine], number: int) -> None:
    """Every death on the wire, each with fresh mail only; all invariants after every step."""
    machine = played()
    machine.start(number % len(DEATHS))
    try:
        for _ in DEATHS:
            place = machine.turn % len(DEATHS)
            who = place // 3 % 2
            machine.die_on_the_wire(who, 1 + place % 3)
            _look(machine)
            machine.time_passes(who, EXPIRED)
            _look(machine)
    except Exception as error:
        error.add_note(f"walking, death {place}: {DEATHS[place]}")
        machine.opened.close()
        raise
    machine.teardown()


def _look(machine: SpoolMachine) -> None:
    for one in machine.invariants:
        one.function(machine)


def wander(played: type[SpoolMachine], number: int) -> None:
    """Any order of verbs, as the seed draws."""
    # No shrinking, no second look: the seed tells it all again.
    one = settings(
        report_multiple_bugs=False,
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    with drawn_from_the_seed():
        run_state_machine_as_test(seed(number)(played), settings=one)


PLAYS: tuple[Callable[[type[SpoolMachine], int], None], ...] = (walk, wander)
"""Of a round."""


def _failures(error: BaseException) -> str:
    """The error, and those that it came behind: a machine that failed ends with a model gone wrong,
    and may fail at its end once more.
    """
    found: list[str] = []
    while True:
        frames = traceback.extract_tb(error.__traceback__)
        place = f", line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
        found.append(f"{type(error).__name__}: {error}{place}")
        if error.__context__ is None:
            return "; behind ".join(found)
        error = error.__context__


def drive(name: str, first: int, rounds: int, until_s: float) -> Driven:
    """Rounds of a store from consecutive seeds, as many as fit in the time."""
    played = counted(STORES[name])
    findings: list[str] = []
    done = 0
    for number in range(first, first + rounds):
        if time.monotonic() > until_s:
            break
        for play in PLAYS:
            try:
                play(played, number)
            except Exception as error:
                story = "\n".join(getattr(error, "__notes__", ()))[-NOTES:]
                again = f"PYTHONPATH=.:workers python -P -m tests.torture.machine {name} {number}"
                findings.append(f"seed {number}: {_failures(error)} ({again})\n{story}")
        done += 1
    row = Row(
        unit="step",
        part="property",
        fault=f"any order of verbs, {name}",
        tried=played.steps,  # type: ignore[attr-defined]
        messages=played.mails,  # type: ignore[attr-defined]
        findings=tuple(findings),
        seed=first,
    )
    return Driven(
        row=row,
        rounds=done,
        losses=played.lost,  # type: ignore[attr-defined]
        died=frozenset(played.deaths),  # type: ignore[attr-defined]
        trace=played.trace,  # type: ignore[attr-defined]
    )


def run(plan: Plan) -> Iterator[Row]:
    """Both stores; the memory store is the quicker one and gets more rounds."""
    begun = time.monotonic()
    long_s = LONG_S if plan.long else 3_600.0
    for number, (name, short) in enumerate((("memory", 2), ("file", 1))):
        until = begun + long_s * (number + 1) / 2
        found = drive(name, plan.seed * 100_000, plan.pick(short, 50_000), until)
        losses = ", ".join(f"{many} {word}" for word, many in sorted(found.losses.items()))
        plan.say(f"machine: {name}: {found.rounds} rounds, {found.row.tried:,} steps; {losses}")
        yield found.row


if __name__ == "__main__":
    _, _name, _seed = sys.argv
    told = drive(_name, int(_seed), 1, float("inf")).row
    sys.exit("\n".join(told.findings) or 0)
