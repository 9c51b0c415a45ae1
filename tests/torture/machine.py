"""Any order of verbs over several connections against a model, for each store, seed after seed.

The machine, its rules and its oracle are those of ``tests.storage.machine``; here it runs as often
as the plan says, each round from a seed of its own. A round that fails is told with the command
that repeats it (``-m tests.torture.machine STORE SEED``) and the steps that led there. What was
lost on the wire is counted by how its lane ended, so that a form that lost nothing is seen.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.storage.machine import SpoolMachine
from tests.storage.test_memory_machine import MemoryMachine
from tests.storage.test_sqlite_machine import SQLiteMachine
from tests.torture.plan import Plan
from tests.torture.table import Row

EXAMPLES = 10
"""Of a round; the first ones are the simplest."""
STEPS = 40
LONG_S = 840.0
"""Both stores together, in the long form."""
NOTES = 4_000
"""Characters of a failure's story that a finding keeps."""
STORES: dict[str, type[SpoolMachine]] = {"memory": MemoryMachine, "file": SQLiteMachine}


@dataclass(frozen=True, slots=True)
class Driven:
    """Some rounds.

    Args:
        rounds: that were done.
        losses: recipients by state and end of the lane that had them; ``held``: held by doubt.
    """

    row: Row
    rounds: int
    losses: Counter[str]


def counted(machine: type[SpoolMachine]) -> type[SpoolMachine]:
    """The machine, with its steps, recipients and losses counted in class attributes."""

    class Counted(machine):  # type: ignore[valid-type, misc]
        steps = 0
        mails = 0
        lost: ClassVar[Counter[str]] = Counter()

        @invariant()
        def counts(self) -> None:
            Counted.steps += 1

        def teardown(self) -> None:
            super().teardown()
            Counted.mails += len(getattr(self, "rows", ()))
            Counted.lost.update(getattr(self, "losses", ()))

    Counted.__name__ = machine.__name__
    return Counted


def drive(name: str, first: int, rounds: int, until_s: float) -> Driven:
    """Rounds of a store from consecutive seeds, as many as fit in the time."""
    played = counted(STORES[name])
    findings: list[str] = []
    done = 0
    for number in range(first, first + rounds):
        if time.monotonic() > until_s:
            break
        # No shrinking, no second look: the seed tells it all again.
        one = settings(
            report_multiple_bugs=False,
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False,
        )  # fmt: skip
        try:
            run_state_machine_as_test(seed(number)(played), settings=one)
        except Exception as error:
            story = "\n".join(getattr(error, "__notes__", ()))[-NOTES:]
            again = f"PYTHONPATH=.:workers python -P -m tests.torture.machine {name} {number}"
            findings.append(f"seed {number}: {type(error).__name__}: {error} ({again})\n{story}")
        done += 1
    row = Row(
        part="property",
        fault=f"any order of verbs, {name}",
        tried=played.steps,  # type: ignore[attr-defined]
        messages=played.mails,  # type: ignore[attr-defined]
        findings=tuple(findings),
        seed=first,
    )
    return Driven(row, done, played.lost)  # type: ignore[attr-defined]


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
