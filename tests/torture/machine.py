"""Any order of verbs over several connections against a model, for each store, seed after seed.

The machine, its rules and its oracle are those of ``tests.storage.machine``; here it runs as often
as the plan says, each round from a seed of its own. A round that fails is told with its seed and
the steps that led there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

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


def counted(machine: type[SpoolMachine]) -> type[SpoolMachine]:
    """The machine, with its steps and recipients counted in ``steps`` and ``mails``."""

    class Counted(machine):  # type: ignore[valid-type, misc]
        steps = 0
        mails = 0

        @invariant()
        def counts(self) -> None:
            Counted.steps += 1

        def teardown(self) -> None:
            super().teardown()
            Counted.mails += len(getattr(self, "rows", ()))

    Counted.__name__ = machine.__name__
    return Counted


def drive(
    machine: type[SpoolMachine], name: str, first: int, rounds: int, until_s: float
) -> tuple[Row, int]:
    """Rounds from consecutive seeds, as many as fit in the time; the row, and the rounds done."""
    played = counted(machine)
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
            findings.append(f"seed {number}: {type(error).__name__}: {error}\n{story}")
        done += 1
    return Row(
        part="property",
        fault=f"any order of verbs, {name}",
        tried=played.steps,  # type: ignore[attr-defined]
        messages=played.mails,  # type: ignore[attr-defined]
        findings=tuple(findings),
        seed=first,
    ), done


def run(plan: Plan) -> Iterator[Row]:
    """Both stores; the memory store is the quicker one and gets more rounds."""
    begun = time.monotonic()
    long_s = LONG_S if plan.long else 3_600.0
    for number, (machine, name, short) in enumerate(
        ((MemoryMachine, "memory", 2), (SQLiteMachine, "file", 1))
    ):
        until = begun + long_s * (number + 1) / 2
        row, rounds = drive(machine, name, plan.seed * 100_000, plan.pick(short, 50_000), until)
        plan.say(f"machine: {name}: {rounds} rounds, {row.tried:,} steps")
        yield row
