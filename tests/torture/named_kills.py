"""Processes that die, stop or fail at every named step of the crash table.

``named_points.POINTS`` is the table of points; this file makes cases of it, plays them on engines
(``named_stage``) and in clients (``named_clients``), a few beside each other, and sums up a row for
each row of the crash table and kind of fault. A finding names its case, which repeats it:

    python -m tests.torture.named_kills "lane.opened kill 5 1 hold"

(point, fault, recipients of a message, visit, and ``hold`` for mail held when in doubt).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from typing import cast

from tests.support.trial import Plan
from tests.torture.named_clients import Clients
from tests.torture.named_points import CLIENT_SCENES, CLOCK_SCENES, ENDING_SCENES, POINTS, Scene
from tests.torture.named_stage import Do, Result, Stage
from tests.torture.table import Row

PART = "named kills"
STAGES = 3
"""Engines that are tormented beside each other; much of a case is waiting."""
CASES_OF_A_STAGE = 60
"""Then a fresh engine and network: what piles up must not slow the later cases down."""
_WORDS: dict[str, str] = {
    "kill": "killed",
    "raise": "an error raised",
    "stop": "stopped for 3 s",
    "stop_kill": "stopped, then killed",
}
_FIRST_HIT = {"lane.kept": 2, "lane.again": 2, "lapse.piece": 2}
"""Points that mean a later visit: of the second message, say."""
_STATEMENTS = {"migration.statement", "creation.statement", "restore.step"}
"""Points that are many: each visit is another step."""
_NO_RAISE = ENDING_SCENES
"""An error in the supervisor's own code is a bug there and ends it; nobody stands in for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault.

    Args:
        point: its name.
        do: kill, raise, stop (for three seconds), stop_kill.
        size: recipients of a message.
        hit: at which visit.
        hold: with ``on_doubt="hold"``.
    """

    point: str
    do: Do = "kill"
    size: int = 1
    hit: int = 1
    hold: bool = False

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        return f"{self.point} {self.do} {self.size} {self.hit}{' hold' * self.hold}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """A case from its words.

        Raises:
            ValueError: it is none, or there is no such point.
        """
        point, do, size, hit, *more = text.split()
        if point not in POINTS or do not in _WORDS:
            raise ValueError(f"no such case: {text!r}")
        return cls(point=point, do=cast(Do, do), size=int(size), hit=int(hit), hold=bool(more))

    @property
    def scene(self) -> Scene:
        """What is going on."""
        return POINTS[self.point].scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A case and what it showed."""

    case: Case
    result: Result


def cases(*, long: bool, seed: int = 1) -> list[Case]:
    """Every case of a form, in the order of the seed.

    Args:
        long: every point with every fault, one and five recipients, up to three visits; else
            every point killed once, some of them stopped, or with mail that is held in doubt.
    """
    found: list[Case] = []
    for number, (name, point) in enumerate(POINTS.items()):
        first = _FIRST_HIT.get(name, 1)
        if name in _STATEMENTS:
            found += _steps(name, point.hits, long=long)
            continue
        size = 5 if name == "lapse.piece" else (1, 5)[number % 2]
        if not long:
            found.append(Case(point=name, size=size, hit=first))
            if point.hold:
                found.append(Case(point=name, size=6 - size, hit=first, hold=True))
            if point.stands:
                found.append(Case(point=name, size=6 - size, hit=first, do="stop_kill"))
            continue
        for each in (1, 5):
            for hit in range(first, max(first, min(point.hits, 3)) + 1):
                found.append(Case(point=name, size=each, hit=hit))
            if point.hold:
                found.append(Case(point=name, size=each, hit=first, hold=True))
            if point.scene not in _NO_RAISE and point.spec.get("when") != "half":
                found.append(Case(point=name, size=each, hit=first, do="raise"))
        if point.scene not in CLIENT_SCENES:
            found.append(Case(point=name, size=size, hit=first, do="stop_kill"))
            if point.scene not in _NO_RAISE:
                found.append(Case(point=name, size=6 - size, hit=first, do="stop"))
    if not long:
        found += [
            Case(point="lane.claimed", do="stop_kill"),
            Case(point="wire.dot", do="stop_kill", size=5),
            Case(point="lapse.COMMIT", do="stop_kill"),
            Case(point="settle.commit", do="raise", size=5),
            Case(point="open.commit", do="raise"),
            Case(point="client.writing", do="raise"),
        ]
    Random(seed).shuffle(found)
    return found


def _steps(name: str, most: int, *, long: bool) -> list[Case]:
    """A step is a visit; more steps than there are would inject nothing, so they are counted."""
    step = 1 if long or name != "creation.statement" else 9
    return [Case(point=name, hit=hit) for hit in range(1, most + 1, step)]


def play(plan: Plan, wanted: Sequence[Case]) -> list[Outcome]:
    """Play cases, on several engines at once; in the order in which they ended."""
    outcomes: list[Outcome] = []
    ordinary: SimpleQueue[Case] = SimpleQueue()
    ending = [case for case in wanted if case.scene in ENDING_SCENES]
    clock = [case for case in wanted if case.scene in CLOCK_SCENES]
    client = [case for case in wanted if case.scene in CLIENT_SCENES]
    scenes = frozenset(point.scene for point in POINTS.values())
    rest = scenes - ENDING_SCENES - CLOCK_SCENES - CLIENT_SCENES
    count = 0
    for case in wanted:
        if case.scene in rest:
            ordinary.put(case)
            count += 1
    jobs: list[Callable[[], None]] = []
    if client:
        jobs.append(lambda: _clients(plan, client, outcomes))
    for name, own, armed in (("ends", ending, ENDING_SCENES), ("clock", clock, CLOCK_SCENES)):
        if own:
            queue: SimpleQueue[Case] = SimpleQueue()
            for case in own:
                queue.put(case)
            jobs.append(
                lambda name=name, queue=queue, armed=armed: _engine(  # type: ignore[misc]
                    plan, name, queue, armed, outcomes
                )
            )
    for number in range(min(STAGES - 1, -(-count // 8))):
        jobs.append(
            lambda number=number: _engine(  # type: ignore[misc]
                plan, f"engine{number}", ordinary, rest, outcomes
            )
        )
    with ThreadPoolExecutor(max_workers=STAGES) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
    return outcomes


def _clients(plan: Plan, wanted: Sequence[Case], outcomes: list[Outcome]) -> None:
    folder = plan.folder / "clients"
    folder.mkdir()
    over: set[str] = set()
    with Clients(folder) as clients:
        for case in sorted(wanted, key=lambda case: case.hit):
            if case.point in over:
                continue
            found = clients.case(case.point, hit=case.hit, do=case.do, size=case.size)
            if not found.hit and case.point in _STATEMENTS and case.hit > 1:
                over.add(case.point)  # the step before was the last
                continue
            if not found.hit:
                found.findings.append("the point was not reached")
            outcomes.append(
                Outcome(
                    case=case,
                    result=Result(
                        hit=found.hit,
                        recipients=found.recipients,
                        lost=found.lost,
                        findings=found.findings,
                    ),
                )
            )


def _engine(
    plan: Plan,
    name: str,
    queue: SimpleQueue[Case],
    armed: frozenset[Scene],
    outcomes: list[Outcome],
) -> None:
    """Play what is in the queue on one engine after the other, until it is empty."""
    number = 0
    while not queue.empty():
        number += 1
        with Stage(plan.folder / f"{name}.{number}", armed) as stage:
            for _ in range(CASES_OF_A_STAGE):
                try:
                    case = queue.get_nowait()
                except Empty:
                    return
                started = time.monotonic()
                result = stage.case(
                    case.point, do=case.do, size=case.size, hit=case.hit, hold=case.hold
                )
                outcomes.append(Outcome(case=case, result=result))
                if result.findings or plan.long:
                    took = time.monotonic() - started
                    plan.say(f"{case}: {took:.1f} s {'; '.join(result.findings)}")


def rows(outcomes: Sequence[Outcome], seed: int) -> list[Row]:
    """A row for each row of the crash table and kind of fault."""
    by: dict[tuple[str, Do], list[Outcome]] = {}
    for outcome in outcomes:
        case = outcome.case
        by.setdefault((POINTS[case.point].row, case.do), []).append(outcome)
    return [_row(row, do, own, seed) for (row, do), own in sorted(by.items(), key=_place)]


def _place(item: tuple[tuple[str, Do], list[Outcome]]) -> tuple[int, int, str]:
    (row, do), _ = item
    return "CWJS".index(row[0]), int(row[1:]), do


def _row(row: str, do: Do, own: Sequence[Outcome], seed: int) -> Row:
    names = {outcome.case.point.partition(".")[0] for outcome in own}
    findings = [
        f"{text} (case: {outcome.case})" for outcome in own for text in outcome.result.findings
    ]
    recoveries = [one.result.recovery_s for one in own if one.result.recovery_s is not None]
    return Row(
        part=PART,
        fault=f"{row}: {', '.join(sorted(names))}: {_WORDS[do]}",
        tried=sum(outcome.result.hit for outcome in own),
        messages=sum(outcome.result.recipients for outcome in own),
        lost=sum(outcome.result.lost for outcome in own),
        silent=sum(outcome.result.silent for outcome in own),
        marked=sum(outcome.result.marked for outcome in own),
        worst_recovery_s=max(recoveries, default=None),
        findings=tuple(findings),
        seed=seed,
    )


def run(plan: Plan) -> Iterator[Row]:
    """Every named step."""
    outcomes = play(plan, cases(long=plan.long, seed=plan.seed))
    yield from rows(outcomes, plan.seed)


def main(texts: Sequence[str]) -> int:
    """Repeat single cases; 1 if one is not clean."""
    with tempfile.TemporaryDirectory(prefix="mailstrom-named-kills-") as folder:
        plan = Plan(folder=Path(folder), say=lambda line: print(line, file=sys.stderr))
        outcomes = play(plan, [Case.parse(text) for text in texts])
    for outcome in outcomes:
        print(outcome.case, outcome.result)
    return int(any(outcome.result.findings or not outcome.result.hit for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
