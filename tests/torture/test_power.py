"""Power cuts, in the short form; and that the oracle objects to what is broken on purpose."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random
from unittest.mock import patch

import apsw
import pytest

from mailstrom.errors import SpoolBusy
from mailstrom.storage.sqlite import frames
from mailstrom.storage.sqlite.durable import WalSync
from mailstrom.storage.sqlite.poison import Mark
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom_workers.dbrequest import Request
from tests.support.trial import Plan
from tests.torture import power
from tests.torture.disk_image import SECTOR, Disk, Image, Step
from tests.torture.disk_record import recording
from tests.torture.power import (
    COPIES,
    CREATION,
    MIGRATION,
    NESTED,
    REPAIR,
    Count,
    ground,
    images,
    repairs,
    run,
)
from tests.torture.power_engine import PowerDB
from tests.torture.power_known import Known
from tests.torture.power_oracle import SPOOL, judge
from tests.torture.power_repair import RepairWorld
from tests.torture.power_spool import UPKEEP
from tests.torture.power_world import CHANGES, CHECKPOINTS, SENDING, WIRE, World

LEAST = {
    SENDING: 150, WIRE: 80, CHECKPOINTS: 50, CHANGES: 40, UPKEEP: 40,
    CREATION: 80, MIGRATION: 80, NESTED: 80, COPIES: 100, REPAIR: 90,
}  # fmt: skip


@pytest.mark.timeout(600)
def test_after_a_thousand_power_cuts_nothing_is_lost_and_every_double_is_marked(
    tmp_path: Path,
) -> None:
    rows = list(run(Plan(folder=tmp_path, seed=int(os.environ.get("TORTURE_SEED", "1")))))
    for row in rows:
        assert row.clean, f"{row.fault}: {row.findings}"
    tried = {row.fault.removeprefix("power cut during "): row.tried for row in rows}
    assert sum(tried.values()) >= 1_000
    assert not {kind: least for kind, least in LEAST.items() if tried.get(kind, 0) < least}, tried
    assert sum(row.marked for row in rows) > 100
    assert sum(row.messages for row in rows) > 1_000


# --- broken on purpose --------------------------------------------------------------------------


class Unsynced(World):
    """Says that the disk has it, without asking the disk."""

    def disk_sync(self, fd: int) -> None:
        """Not at all."""


class Forgetful(PowerDB):
    """Answers before the disk has it."""

    def _ask(self, request: Request) -> None:
        request.durable = False
        super()._ask(request)


class Hasty(World):
    """Sends what was claimed before the claim is on the disk."""

    db_type = Forgetful

    def verb(self) -> None:
        """Much of what was claimed goes out at once."""
        super().verb()
        with contextlib.suppress(SpoolBusy):
            self.rush()


class Careless(World):
    """Checkpoints without a sync."""

    def checkpoint(self) -> None:
        """As PRAGMA synchronous = OFF does it."""
        with self._keeper() as store:
            if store is not None:
                store._connection.opened().execute("PRAGMA synchronous = OFF").fetchall()
                store.checkpoint()

    def repair(self) -> None:
        """Would be one with a sync."""


def broken(tmp_path: Path, world_type: type[World], runs: int = 3) -> Count:
    """What is found of some short runs."""
    counts: dict[str, Count] = {}
    # All of them: which words come first is a matter of chance.
    with ground(tmp_path) as folder, patch.object(power, "_MOST_FINDINGS", 1_000_000):
        for number in range(runs):
            images(folder, 7, number, 25, counts, verbs=120, world_type=world_type)
    found = Count()
    for one in counts.values():
        found.tried += one.tried
        found.lost += one.lost
        found.silent += one.silent
        found.findings += one.findings
    return found


def test_a_skipped_sync_is_noticed(tmp_path: Path) -> None:
    found = broken(tmp_path, Unsynced)
    assert found.lost > 0
    assert any("acknowledged, and without" in text for text in found.findings)
    assert any("was promised" in text for text in found.findings)


def test_claims_that_were_not_synced_are_noticed(tmp_path: Path) -> None:
    found = broken(tmp_path, Hasty, runs=6)
    assert found.lost == 0
    assert found.silent > 0
    assert any("before it can be claimed" in text for text in found.findings)
    assert any("was promised" in text for text in found.findings)


def test_a_checkpoint_without_a_sync_is_noticed(tmp_path: Path) -> None:
    found = broken(tmp_path, Careless)
    assert found.lost > 0
    assert any("cannot be opened" in text or "check: " in text for text in found.findings)


# --- a repair that is broken on purpose ---------------------------------------------------------


class Unwritten(RepairWorld):
    """Repairs without writing the log anew: what was dropped stays so."""

    def _store(self) -> SQLiteWorkerStore:
        store = super()._store()
        store._sync.rewrite = lambda: None  # type: ignore[method-assign]
        return store


class Hurried(RepairWorld):
    """Moves the log and takes the flag away without a sync."""

    def repair(self) -> None:
        """As PRAGMA synchronous = OFF does it."""
        with self._keeper() as store:
            if store is None or not store.poisoned or self._depth:
                return
            self.armed = None
            begun, at = store._sync.begin_repair(), self.at
            connection = store._connection.opened()
            connection.execute("PRAGMA synchronous = OFF").fetchall()
            busy = False
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.BusyError:
                busy = True
            connection.execute("PRAGMA synchronous = NORMAL").fetchall()
            assert busy or store._sync.heal(begun)
            self.spans.append(range(at + 1, self.at + 1))


class Early(RepairWorld):
    """Takes the flag away first, and then repairs."""

    def _store(self) -> SQLiteWorkerStore:
        store = super()._store()
        begin = store._sync.begin_repair

        def begun() -> Mark:
            mark = begin()
            store._sync.heal(mark)
            return mark

        store._sync.begin_repair = begun  # type: ignore[method-assign]
        return store


def broken_repairs(
    tmp_path: Path, world_type: type[RepairWorld] = RepairWorld, runs: int = 3
) -> Count:
    """What is found of some short runs."""
    counts: dict[str, Count] = {}
    with ground(tmp_path) as folder:
        for number in range(runs):
            repairs(folder, 7, number, 20, counts, world_type)
    return counts[REPAIR]


@pytest.mark.parametrize("world_type", [Unwritten, Hurried, Early])
def test_a_repair_that_is_broken_is_noticed(tmp_path: Path, world_type: type[RepairWorld]) -> None:
    found = broken_repairs(tmp_path, world_type)
    assert found.tried >= 50
    words = ("was promised", "never had", "acknowledged, and without", "check: ")
    assert any(word in text for text in found.findings for word in words)


def test_a_repair_that_moves_only_what_was_not_moved_before_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "move_again", lambda path: None)
    found = broken_repairs(tmp_path)
    assert any("check: " in text for text in found.findings)


def test_a_confirmation_that_did_not_look_at_the_flag_after_the_sync_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(self: WalSync) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(self, "check", lambda: None)
            confirm(self)

    confirm = WalSync.__call__
    monkeypatch.setattr(WalSync, "__call__", unchecked)
    found = broken_repairs(tmp_path, runs=9)
    assert found.lost > 0
    assert any("was promised" in text for text in found.findings)


# --- the oracle's own footing -----------------------------------------------------------------


def test_no_message_is_from_after_the_moment_at_which_it_is_known(tmp_path: Path) -> None:
    """Else the next boot would start with a clock that went back by days, and nothing did that."""
    for seed in range(3):
        place = tmp_path / str(seed)
        place.mkdir()
        with recording(str(place)) as recorder:
            path = str(place / "spool.db")
            world = World(path, Random(seed), boot="b", name="m", recorder=recorder)
            try:
                world.open_clients(2)
                world.open_engine(1)
                for name in ("send", "expire", "keep_clock", "expire", "send", "send") * 12:
                    world._do(name)
            finally:
                world.close()
        begun = [fact for fact in world.facts if fact.kind == "begun"]
        assert len(begun) > 20
        for fact in begun:
            assert fact.what.created_ms <= world.moment(fact.at)[1]


def test_a_life_opens_messages_with_their_claim(tmp_path: Path) -> None:
    """Else no cut of the power would fall where a lane claims for a session that waits."""
    with recording(str(tmp_path)) as recorder:
        world = World(str(tmp_path / SPOOL), Random(1), boot="b", name="m", recorder=recorder)
        try:
            world.open_clients(1)
            world.open_engine(1)
            for name in ("send", "route", "lease", "claim") * 8:
                world._do(name)
            assert any(hand.opened for hand in world.hands)
        finally:
            world.close()


def test_what_a_cut_took_may_come_back_only_until_a_later_commit_is_promised(
    tmp_path: Path,
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    with recording(str(live)) as recorder:
        world = World(str(live / SPOOL), Random(1), boot="b", name="m", recorder=recorder)
        try:
            world.open_clients(1)
            world.send()
        finally:
            world.close()
    image = Image({one.name: one.read_bytes() for one in live.iterdir()
                   if one.is_file() and not one.name.endswith("-shm")}, 1, "all")  # fmt: skip
    *_, empty, back = world.states

    def found(floor: int, earlier: list[bytes]) -> list[str]:
        known = Known(begun=dict(world.known.begun), floor=floor, latest=1)
        return judge(
            image, str(tmp_path / "image"), known, [empty, b"another"], Random(1),
            now=world.now, drain=False, earlier=earlier,
        ).findings  # fmt: skip

    assert found(0, [back]) == []
    assert found(0, []) == ["holds a state that the spool never had"]
    assert found(1, [back]) == ["holds a state that the spool never had"]


# --- the model of the disk ----------------------------------------------------------------------


def disk_with(*steps: Step, **files: bytes) -> Disk:
    disk = Disk(files)
    for step in steps:
        disk.take(step)
    return disk


def shown(disk: Disk, name: str, count: int = 300) -> set[bytes | None]:
    """What a file may hold; None where it has no name."""
    return {disk.image(Random(seed)).files.get(name) for seed in range(count)}


OLD, NEW, NEWER = b"o" * SECTOR, b"n" * SECTOR, b"w" * SECTOR


def test_each_sector_shows_any_of_its_versions_until_the_sync_began_later() -> None:
    first = Step("write", inode=1, offset=0, data=NEW + NEW)
    second = Step("write", inode=1, offset=0, data=NEWER)
    disk = disk_with(first, second, f=OLD + OLD)
    assert shown(disk, "f") == {a + b for a in (OLD, NEW, NEWER) for b in (OLD, NEW)}
    disk.take(Step("sync", inode=1, since=1))  # began before the second write
    assert shown(disk, "f") == {NEW + NEW, NEWER + NEW}
    disk.take(Step("sync", inode=1, since=3))
    assert shown(disk, "f") == {NEWER + NEW}
    assert disk.unsynced == 0


def test_a_file_that_grew_is_short_long_or_full_of_zeros() -> None:
    disk = disk_with(Step("write", inode=1, offset=SECTOR, data=NEW + NEW), f=OLD)
    zeros = bytes(SECTOR)
    assert shown(disk, "f") >= {
        OLD, OLD + NEW, OLD + NEW + NEW, OLD + zeros + zeros, OLD + zeros + NEW,
    }  # fmt: skip
    assert all(found is not None and found.startswith(OLD) for found in shown(disk, "f"))


def test_a_truncation_is_there_or_not_and_what_follows_it_only_with_it() -> None:
    disk = disk_with(
        Step("truncate", inode=1, offset=0),
        Step("write", inode=1, offset=0, data=NEW),
        f=OLD + OLD,
    )
    assert shown(disk, "f") == {OLD + OLD, b"", NEW, bytes(SECTOR)}


def test_what_a_failed_sync_dropped_stays_uncertain_until_its_sector_is_written_again() -> None:
    disk = disk_with(
        Step("write", inode=1, offset=0, data=NEW + NEW),
        Step("drop", inode=1, since=1),
        f=OLD + OLD,
    )
    either = {a + b for a in (OLD, NEW) for b in (OLD, NEW)}
    assert shown(disk, "f") == either
    disk.take(Step("sync", inode=1, since=2))
    assert shown(disk, "f") == either
    disk.take(Step("write", inode=1, offset=10, data=b"x"))  # the whole sector goes with it
    part = NEW[:10] + b"x" + NEW[11:]
    assert shown(disk, "f") == {a + b for a in (OLD, NEW, part) for b in (OLD, NEW)}
    disk.take(Step("sync", inode=1, since=4))
    assert shown(disk, "f") == {part + b for b in (OLD, NEW)}
    disk.take(Step("truncate", inode=1, offset=SECTOR))
    disk.take(Step("sync", inode=1, since=6))
    assert shown(disk, "f") == {part}
    assert disk.unsynced == 0


def test_a_name_may_be_missing_until_the_directory_is_synced() -> None:
    disk = disk_with(
        Step("create", "g", inode=2),
        Step("write", inode=2, offset=0, data=NEW),
        Step("sync", inode=2, since=2),
        Step("rename", "f", inode=1, to="h"),
        f=OLD,
    )
    assert shown(disk, "g") == {None, NEW}
    assert shown(disk, "h") == {None, OLD}
    disk.take(Step("sync_names", since=4))
    assert (shown(disk, "f"), shown(disk, "g"), shown(disk, "h")) == ({None}, {NEW}, {OLD})


def test_a_journal_replayed_whole_is_what_lies_on_the_disk(tmp_path: Path) -> None:
    """Recorded from real stores: with everything kept the image is the folder."""
    place = tmp_path / "live"
    place.mkdir()
    with recording(str(place)) as recorder:
        world = World(str(place / "spool.db"), Random(3), boot="b", name="m", recorder=recorder)
        try:
            world.open_clients(2)
            world.open_engine(2)
            for _ in range(60):
                world.verb()
            world.clients[0].backup(str(place / "copy.db"), world.now)
        finally:
            world.close()
    disk = Disk(recorder.base)
    for step in recorder.steps:
        disk.take(step)
    whole = next(image for image in map(disk.image, map(Random, range(1_000))) if image.lost == 0)
    there = {
        one.name: one.read_bytes()
        for one in place.iterdir()
        if one.is_file() and not one.name.endswith("-shm")
    }
    assert whole.files == there
