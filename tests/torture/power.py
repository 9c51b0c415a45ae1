"""Power cuts: thousands of images of a disk, at any moment of many kinds of life, each reopened.

Runs are recorded once (``power_world`` on the real stores, ``disk_record`` under them) and cut many
times (``disk_image``, which says what the model of a disk covers); each image is opened as the next
boot does and judged by ``power_oracle``. Rows by what was being done when the power went. An image
counts where something that was written is missing from it, or a verb was under way.

Everything is repeated by the seed: a finding names seed, run and step of its image, and ends with
the command that plays its run again (``-m tests.torture.power SEED RUN short|long``).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TypeVar

from mailstrom.storage.sqlite import upkeep
from mailstrom.storage.sqlite.client import SQLiteClientStore
from tests.support.trial import Plan
from tests.torture.disk_image import Disk, Image
from tests.torture.disk_record import Recorder, recording
from tests.torture.memory import in_memory
from tests.torture.power_copies import BACKUP, CopyWorld, judge_copy
from tests.torture.power_known import Known
from tests.torture.power_old import Old, of_old
from tests.torture.power_oracle import SPOOL, Judgement, judge
from tests.torture.power_repair import ROUNDS, RepairWorld
from tests.torture.power_world import World
from tests.torture.table import Row

BOOT = "boot-before"
CREATION, MIGRATION, NESTED = "creation of a spool", "migration of a 0.1.0 spool", "recovery"
COPIES = "backup, restore and adoption"
REPAIR = "the repair after a failed sync"
_MOST_FINDINGS = 20
_World = TypeVar("_World", bound=World)


@dataclass(slots=True)
class Count:
    """A row in the making."""

    tried: int = 0
    messages: int = 0
    lost: int = 0
    silent: int = 0
    marked: int = 0
    worst_s: float = 0.0
    findings: list[str] = field(default_factory=list)

    def add(self, found: Judgement, where: str, messages: int, tried: int = 1) -> None:
        """One more image."""
        self.tried += tried
        self.messages += messages
        self.lost += found.lost
        self.silent += found.silent
        self.marked += found.marked
        self.worst_s = max(self.worst_s, found.recovery_s)
        if len(self.findings) < _MOST_FINDINGS:
            self.findings += [f"{where}: {text}" for text in found.findings]

    def take(self, run: Count, again: str) -> None:
        """All of a run; ``again``: the command that repeats it."""
        self.tried += run.tried
        self.messages += run.messages
        self.lost += run.lost
        self.silent += run.silent
        self.marked += run.marked
        self.worst_s = max(self.worst_s, run.worst_s)
        if len(self.findings) < _MOST_FINDINGS:
            self.findings += [f"{text} ({again})" for text in run.findings]

    def row(self, fault: str, seed: int) -> Row:
        """The row."""
        return Row(
            unit="image",
            part="power", fault=f"power cut during {fault}", tried=self.tried,
            messages=self.messages, lost=self.lost, silent=self.silent, marked=self.marked,
            worst_recovery_s=self.worst_s, findings=tuple(self.findings), seed=seed,
        )  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every kind; a row for each."""
    counts: dict[str, Count] = {}
    pick = plan.pick
    runs = (
        *range(pick(6, 32)),
        *range(1_000, 1_000 + pick(5, 20)),
        *range(2_000, 2_000 + pick(2, 10)),
        *range(3_000, 3_000 + pick(2, 16)),
        *range(4_000, 4_000 + pick(2, 12)),
        *range(5_000, 5_000 + pick(2, 18)),
    )
    with ground(plan.folder) as folder:
        old = cache(lambda: of_old(os.path.join(folder, "old")))
        for number in runs:
            for fault, count in play(folder, plan, number, old).items():
                counts.setdefault(fault, Count()).take(count, again(plan, number))
            plan.say(f"run {number}: {sum(one.tried for one in counts.values())} images")
    for fault, count in counts.items():
        yield count.row(fault, plan.seed)


def again(plan: Plan, number: int) -> str:
    """The command that repeats a run."""
    form = "long" if plan.long else "short"
    return f"PYTHONPATH=.:workers python -P -m tests.torture.power {plan.seed} {number} {form}"


def play(folder: str, plan: Plan, number: int, old: Callable[[], Old]) -> dict[str, Count]:
    """One run, whose number says of what kind it is; what came of it, by fault.

    Args:
        folder: for its files.
        old: gives the spool of an earlier release.
    """
    counts: dict[str, Count] = {}
    pick, seed = plan.pick, plan.seed
    match number // 1_000:
        case 0:
            images(folder, seed, number, pick(100, 240), counts, verbs=pick(130, 220))
        case 1:
            images(folder, seed, number, pick(30, 40), counts, CREATION, verbs=3)
        case 2:
            images(folder, seed, number, pick(50, 80), counts, MIGRATION, verbs=3, old=old())
        case 3:
            images(folder, seed, number, pick(10, 20), counts, NESTED, verbs=100, nested=4)
        case 5:
            repairs(folder, seed, number, pick(45, 60), counts)
        case _:
            copies(folder, seed, number, pick(60, 80), counts)
    return counts


@contextmanager
def ground(folder: Path) -> Iterator[str]:
    """A folder in memory where there is room, else in the plan's own."""
    spare = upkeep.SPARE_PAGES
    upkeep.SPARE_PAGES = 4  # a small spool gives pages back, too
    try:
        with in_memory(folder, "power") as made:
            yield str(made)
    finally:
        upkeep.SPARE_PAGES = spare


def images(
    folder: str, seed: int, number: int, many: int, counts: dict[str, Count],
    fault: str | None = None, *, verbs: int, nested: int = 0, old: Old | None = None,
    world_type: type[World] = World,
) -> None:  # fmt: skip
    """Record one run, cut it often, and count.

    Args:
        folder: for its files.
        seed, number: what repeats it.
        many: images.
        counts: by fault; ``fault`` None: by what was under way.
        verbs: how long it is.
        nested: power cuts within each recovery.
        old: the spool of an earlier release that is migrated.
        world_type: for worlds in which something is broken on purpose.
    """
    random = Random(f"{seed}/{number}")
    place = os.path.join(folder, f"run-{number}")
    os.mkdir(place)
    path = os.path.join(place, SPOOL)
    if old is not None:
        old.copy(path)
    elif fault != CREATION:
        SQLiteClientStore(path).close()
    with recording(place) as recorder:
        world = world_type(path, random, boot=BOOT, name="m", recorder=recorder)
        try:
            if old is not None:
                world.inherit(old)
            world.open_clients(3)
            if fault in (CREATION, MIGRATION):
                world.send()
            world.open_engine(2)
            for _ in range(verbs):
                world.verb()
        finally:
            world.close()
    shutil.rmtree(place)
    for image, cut, known in cuts(recorder, world, random, many):
        label, now = world.moment(cut)
        young = fault in (CREATION, MIGRATION) and known.floor == 0
        found = judge(
            image, f"{place}-image", known, () if young else world.states, random,
            now=now, drain=random.random() < 0.3, nested=nested,
        )  # fmt: skip
        where = f"seed {seed}, run {number}, step {cut} of {len(recorder.steps)} ({image.mode})"
        recipients = sum(len(one.recipients) for one in known.acked.values())
        count = counts.setdefault(fault or label, Count())
        count.add(found, where, recipients, 1 + nested)


def cuts(
    recorder: Recorder, world: World, random: Random, many: int, *, since: int = 1,
    chosen: Sequence[int] = (),
) -> Iterator[tuple[Image, int, Known]]:  # fmt: skip
    """So many moments of a recorded run, in order: an image, the step, and what was known then.

    Args:
        since: not before this step.
        chosen: the steps, where they are not left to chance.
    """
    steps, disk, known = recorder.steps, Disk(recorder.base), world.before.copy()
    kinds: dict[str, list[range]] = {}
    for (start, label, _), (end, _, _) in pairwise(world.labels):
        if since <= start < end:
            kinds.setdefault(label, []).append(range(start + 1, end + 1))
    chosen = list(chosen)
    for _ in range(
        many - len(chosen)
    ):  # half of them by steps, half by what is done, which is not equally long
        cut = random.randrange(since, len(steps))
        if kinds and random.random() < 0.5:
            cut = random.choice(random.choice(kinds[random.choice(list(kinds))]))
        chosen.append(cut)
    chosen = sorted(min(cut, len(steps) - 1) for cut in chosen)
    at, facts = 0, 0
    for cut in chosen:
        while at < cut:
            disk.take(steps[at])
            at += 1
        image = disk.image(random)
        while image.lost == 0:  # a cut that takes nothing away is none: go on to one that does
            if disk.unsynced == 0 or random.random() < 0.2:
                disk.take(steps[at])
                at += 1
            if at == len(steps):
                return
            image = disk.image(random)
        while facts < len(world.facts) and world.facts[facts].at <= at:
            known.learn(world.facts[facts].kind, world.facts[facts].what)
            facts += 1
        yield image, at, known


@contextmanager
def recorded(
    folder: str, number: int, random: Random, world_type: type[_World]
) -> Iterator[tuple[str, Recorder, _World]]:
    """A new spool with three clients and an engine, recorded; its folder is gone afterwards."""
    place = os.path.join(folder, f"run-{number}")
    os.mkdir(place)
    path = os.path.join(place, SPOOL)
    SQLiteClientStore(path).close()
    with recording(place) as recorder:
        world = world_type(path, random, boot=BOOT, name="m", recorder=recorder)
        try:
            world.open_clients(3)
            world.open_engine(2)
            yield place, recorder, world
        finally:
            world.close()
    shutil.rmtree(place)


def copies(folder: str, seed: int, number: int, many: int, counts: dict[str, Count]) -> None:
    """Backup, restore and adoption of one spool in use, cut often."""
    random = Random(f"{seed}/{number}")
    with recorded(folder, number, random, CopyWorld) as (place, recorder, world):
        marks = world.copied(recorder)
    (before,) = (known for _, stage, known in marks if stage == BACKUP)
    for image, cut, known in cuts(recorder, world, random, many, since=marks[1][0]):
        stage = max(stage for at, stage, _ in marks if at <= cut)
        found = judge_copy(image, f"{place}-image", stage, before, known, random, world.now)
        where = f"seed {seed}, run {number}, step {cut} of {len(recorder.steps)} ({image.mode})"
        recipients = sum(len(one.recipients) for one in known.acked.values())
        counts.setdefault(COPIES, Count()).add(found, where, recipients)


def repairs(
    folder: str, seed: int, number: int, many: int, counts: dict[str, Count],
    world_type: type[RepairWorld] = RepairWorld,
) -> None:  # fmt: skip
    """Syncs fail and drop what they were for; the power goes at each operation of the repairs."""
    random = Random(f"{seed}/{number}")
    with recorded(folder, number, random, world_type) as (place, recorder, world):
        for _ in range(ROUNDS):
            world.fail_and_mend()
    for image, cut, known in cuts(
        recorder, world, random, many, chosen=world.chosen(many, len(recorder.steps) - 1)
    ):
        flagged = random.random() < 0.5  # neither its name nor that it is gone was synced
        nested = 2 if flagged and random.random() < 0.3 else 0
        found = judge(
            image, f"{place}-image", known, world.states, random, now=world.moment(cut)[1],
            drain=random.random() < 0.2, nested=nested, flagged=flagged,
        )  # fmt: skip
        where = f"seed {seed}, run {number}, step {cut} of {len(recorder.steps)} ({image.mode})"
        recipients = sum(len(one.recipients) for one in known.acked.values())
        counts.setdefault(REPAIR, Count()).add(found, where, recipients, 1 + nested)


if __name__ == "__main__":
    _, _seed, _number, _form = sys.argv
    with tempfile.TemporaryDirectory() as _folder, ground(Path(_folder)) as _ground:
        _plan = Plan(folder=Path(_folder), seed=int(_seed), long=_form == "long")
        _found = play(_ground, _plan, int(_number), lambda: of_old(os.path.join(_ground, "old")))
        _texts = [text for _count in _found.values() for text in _count.findings]
    print(f"{sum(_count.tried for _count in _found.values())} images, {len(_texts)} findings")
    sys.exit("\n".join(_texts) or 0)
