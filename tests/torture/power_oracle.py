"""Judges one image of a disk after a power cut: opens it as the next boot does, and looks.

Contract. ``judge`` writes the image into a folder, opens it with the real stores and checks, in
this order: that it opens; that ``store check`` finds nothing; that its state is one which the spool
had, and none older than what was promised (so no transaction is torn or taken out of the middle;
what one power cut took of the log the next may bring back, until a later commit is durable: its
frames lie there still, and a frame before them is written again, byte for byte);
that every acknowledged message is there with all recipients and its bytes; that an idempotency key
still answers. Where the flag of a failed sync lies there, a repair must end and change nothing.
Then the next boot lapses the workers of the one before, as the janitor does, and each recipient
must have as many attempts that are delivered or in doubt as the far end has copies. Last an engine
brings everything to its end, and no token comes again.

What is wrong is told in sentences; nothing here decides what is clean.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import apsw

from mailstrom.errors import SpoolBusy, SpoolError
from mailstrom.storage.sqlite.durable import poison_path
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.types import Change, MessageStatus
from tests.storage.spool import HOUR, change
from tests.torture.disk_image import Disk, Image
from tests.torture.disk_record import Recorder, recording
from tests.torture.power_known import KEPT_MS, Known, Pair, state_of
from tests.torture.power_world import World

NEXT_BOOT = "boot-after"
SPOOL = "spool.db"
_FLAG = "a disk error was seen"


@dataclass(slots=True)
class Judgement:
    """What became of one image.

    Args:
        lost: acknowledged recipients that are gone.
        silent: recipients that the far end has and nothing tells of.
        marked: recipients that the boot put in doubt.
        recovery_s: from the opening to the first moment at which an engine may claim.
    """

    lost: int = 0
    silent: int = 0
    marked: int = 0
    recovery_s: float = 0.0
    findings: list[str] = field(default_factory=list)


def judge(
    image: Image, folder: str, known: Known, states: Sequence[bytes], random: Random,
    *, now: int, drain: bool, nested: int = 0, boot: str = NEXT_BOOT,
    earlier: Sequence[bytes] = (), flagged: bool = False,
) -> Judgement:  # fmt: skip
    """Judge an image.

    Args:
        image: what the disk shows.
        folder: for it; made, and gone afterwards.
        known: what was promised at the cut.
        states: every state the spool had.
        random: decides what is tried.
        now: milliseconds.
        drain: whether an engine brings everything to its end.
        nested: so many further power cuts during this recovery and what follows.
        boot: name of the boot that opens it.
        earlier: states of the boot before, for as long as none of this one's commits is promised.
        flagged: the flag that a sync failed is still there.
    """
    found = Judgement()
    _lay_out(image, folder, flagged)
    try:
        if nested:
            with recording(folder) as recorder:
                world = _world(folder, known, random, now, boot, recorder)
                _boot(world, states, earlier, found, drain)
            may_return = states[known.floor : known.latest + 2]
            _again(recorder, world, known, may_return, folder, random, found, nested, flagged)
        else:
            _boot(_world(folder, known, random, now, boot, None), states, earlier, found, drain)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _lay_out(image: Image, folder: str, flagged: bool) -> None:
    os.mkdir(folder)
    for name, data in image.files.items():
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(data)
    if flagged:
        flag = poison_path(os.path.join(folder, SPOOL))
        os.mkdir(os.path.dirname(flag))
        with open(flag, "wb") as stream:
            stream.write(b"EIO\n")


def _world(
    folder: str, known: Known, random: Random, now: int, boot: str, recorder: Recorder | None
) -> World:
    return World(
        os.path.join(folder, SPOOL), random, boot=boot, name=boot, recorder=recorder, known=known,
        now=now + HOUR, keen=0.0,
    )  # fmt: skip


def _boot(
    world: World, states: Sequence[bytes], earlier: Sequence[bytes], found: Judgement, drain: bool
) -> None:
    known = world.known.copy()
    try:
        started = time.monotonic()
        try:
            world.open_clients(1)
        except SpoolError as error:
            found.findings.append(f"cannot be opened: {error}")
            found.lost += sum(len(one.recipients) for one in known.acked.values())
            return
        flagged = os.path.lexists(poison_path(world.path))
        told = world.clients[0].check()
        found.findings += [f"check: {text}" for text in told if not (flagged and _FLAG in text)]
        _state(world, known, states, earlier, found)
        _accepted(world, known, found)
        if flagged:
            if not any(_FLAG in text for text in told):
                found.findings.append("check: says nothing of the flag")
            _mended(world, found)
            _state(world, known, states, earlier, found)
        _keys(world, known, found)
        if world.random.random() < 0.3:
            _meddle(world)
        checked = time.monotonic()
        world.open_engine(1)
        assert world.janitor is not None
        for row in world.janitor.workers():
            if row.boot != world.boot:
                found.marked += world.janitor.lapse(
                    row.seq, boot=world.boot, now_ms=world.now
                ).in_doubt
                world.note()
                with world.promising():
                    world.janitor.sync()
        found.recovery_s = time.monotonic() - checked + (checked - started if not states else 0.0)
        _told(world, found, "before it can be claimed")
        if drain:
            _end(world, known, found)
    except SpoolBusy as error:
        found.findings.append(f"busy, and nobody else is there: {error}")
    except Exception as error:  # whatever damage makes of it is a finding
        found.findings.append(f"opened, and fails: {type(error).__name__}: {error}")
    finally:
        world.close()


def _mended(world: World, found: Judgement) -> None:
    """What the janitor does where the flag outlived the power cut."""
    store = SQLiteWorkerStore(world.path, sync=world.disk_sync)
    try:
        with world.promising() as kept:
            kept.append(store.repair())
        if not kept[0] or store.poisoned:
            found.findings.append(f"flagged, and not repaired: {store.unrepaired()}")
    finally:
        store.close()
    found.findings += [f"repaired; check: {text}" for text in world.clients[0].check()]


def _state(
    world: World, known: Known, states: Sequence[bytes], earlier: Sequence[bytes], found: Judgement
) -> None:
    if not states:
        return
    connection = apsw.Connection(world.path, flags=apsw.SQLITE_OPEN_READWRITE)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    try:
        state = state_of(connection)
    finally:
        connection.close()
    numbers = [number for number, one in enumerate(states[: known.latest + 2]) if one == state]
    if not numbers and known.floor == 0 and state in earlier:
        return
    if not numbers:
        found.findings.append("holds a state that the spool never had")
    elif numbers[-1] < known.floor:
        found.findings.append(
            f"goes back to state {numbers[-1]}, though {known.floor} of {known.latest} was promised"
        )


def _accepted(world: World, known: Known, found: Judgement) -> None:
    client = world.clients[0]
    there = client.statuses(list(known.acked))
    for id, one in known.acked.items():
        if id in known.purgeable:
            continue
        status = there.get(id)
        gone = set(one.recipients) - set(status.recipients if status is not None else ())
        if gone:
            found.lost += len(gone)
            found.findings.append(f"{id}: acknowledged, and without {sorted(gone)[0]}")
            continue
        if client.content(id) != one.content:
            found.findings.append(f"{id}: its bytes are not those that were accepted")
    begun = [id for id in known.begun if id not in known.acked]
    for id, half in client.statuses(begun).items():
        if set(half.recipients) != set(known.begun[id].recipients):
            found.findings.append(f"{id}: stored by half")


def _keys(world: World, known: Known, found: Judgement) -> None:
    """Whoever was answered, and whoever was not, sends again under the key."""
    keys = [
        one.idempotency
        for one in known.begun.values()
        if one.idempotency
        and one.id not in known.purgeable
        and world.now - one.created_ms < KEPT_MS
    ]
    for key in list(dict.fromkeys(keys))[-2:]:
        group = [one for one in known.begun.values() if one.idempotency == key]
        acked = [one.id for one in group if one.id in known.acked]
        twin = group[-1]._replace(id=f"{group[-1].id}-{world.boot}")
        world.tell("begun", twin)
        with world.promising():
            (answer,) = world.clients[0].enqueue([twin], world.now)
        if answer not in (acked or [one.id for one in [*group, twin]]):
            found.findings.append(f"{group[0].id}: its key answers {answer!r}")
            continue
        world.tell("acked", world.known.begun[str(answer)])
        stored = world.clients[0].statuses([one.id for one in [*group, twin]])
        if len(stored) != 1:
            found.findings.append(f"{sorted(stored)}: stored under one key")


def _meddle(world: World) -> None:
    """People may come before the engine: what they say must hide no copy at the far end."""
    for id, _ in sorted(world.known.far):
        words = world.random.choice(((Change.HOLD, Change.RELEASE), (Change.CANCEL,)))
        for word in words:
            with world.promising() as kept:
                kept.append(change(world.clients[0], word, [id], None, world.now) > 0)


def _told(world: World, found: Judgement, when: str) -> None:
    rows = world.clients[0].query(
        "SELECT message_id, recipient, verdict, in_doubt FROM attempts", (), 5
    )
    told: Counter[Pair] = Counter()
    for id, address, verdict, doubt in rows:
        told[str(id), str(address)] += bool(doubt) or verdict == "delivered"
    for pair, copies in world.known.far.items():
        if copies > told[pair] and pair[0] not in world.known.purgeable:
            found.silent += 1
            word = _status(world, pair)
            found.findings.append(
                f"{pair[1]} of {pair[0]}: {copies} copies at the far end, {told[pair]} told of"
                f" {when} ({word})"
            )


def _status(world: World, pair: Pair) -> str:
    status: MessageStatus | None = world.clients[0].statuses([pair[0]]).get(pair[0])
    return "gone" if status is None else str(status.recipients[pair[1]].status)


def _end(world: World, known: Known, found: Judgement) -> None:
    world.known.tokens = set()
    trouble = world.drain()
    again = world.known.tokens & known.tokens
    world.known.tokens |= known.tokens
    if again:
        found.findings.append(f"lane {min(again)} was given out twice")
    if trouble:
        found.findings.append(trouble)
    found.findings += [f"check at the end: {text}" for text in world.clients[0].check()]
    _told(world, found, "at the end")
    for id, status in world.clients[0].statuses(list(world.known.acked)).items():
        for address, one in status.recipients.items():
            pair = (id, address)
            if (
                one.status == "delivered"
                and not world.known.far[pair]
                and (pair not in world.known.resolved)
            ):
                found.lost += 1
                found.findings.append(f"{address} of {id}: delivered, and never was")


def _again(
    recorder: Recorder, world: World, known: Known, earlier: Sequence[bytes], folder: str,
    random: Random, found: Judgement, nested: int, flagged: bool,
) -> None:  # fmt: skip
    """Cut the power during the recovery, too."""
    if not recorder.steps:
        return  # it could not even be opened, which is a finding
    disk, at, facts = Disk(recorder.base), 0, iter([*world.facts, None])
    fact, now_known = next(facts), known.copy()
    now_known.floor = now_known.latest = 0
    for number, cut in enumerate(
        sorted(random.choices(range(1, len(recorder.steps) + 1), k=nested))
    ):
        while at < cut:
            disk.take(recorder.steps[at])
            at += 1
        while fact is not None and fact.at <= cut:
            now_known.learn(fact.kind, fact.what)
            fact = next(facts)
        inner = judge(
            disk.image(random), f"{folder}-{number}", now_known, world.states, random,
            now=world.now, drain=number % 2 == 0, boot=f"{world.boot}-{number}", earlier=earlier,
            flagged=flagged and random.random() < 0.5,
        )  # fmt: skip
        found.lost += inner.lost
        found.silent += inner.silent
        found.marked += inner.marked
        found.findings += [f"cut again at step {cut}: {text}" for text in inner.findings]
