"""What a repair may move, what a poisoned spool keeps from everybody, and what is said meanwhile.

The disk of these cases loses what it did not confirm even from the page cache: bytes of the -wal
file are overwritten with what was there before. What SQLite says of a commit is put in its place.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import OutcomeUnknown, SpoolError, SpoolFull
from mailstrom.storage.sqlite import connection as connections
from mailstrom.storage.sqlite import frames, inserting, poison, unchanged
from mailstrom.storage.sqlite.checkpointer import Checkpointer
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.durable import WalSync
from mailstrom.storage.sqlite.patience import Patience
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, submission
from tests.torture.inject.torture_vfs import Op, watched

EIO = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def client(path: str) -> Iterator[SQLiteClientStore]:
    store = SQLiteClientStore(path)
    yield store
    store.close()


@pytest.fixture
def engine(path: str, client: SQLiteClientStore) -> Iterator[SQLiteWorkerStore]:
    store = SQLiteWorkerStore(path)
    yield store
    store.close()


def frames_of(path: str) -> int:
    return (os.stat(f"{path}-wal").st_size - frames.HEAD_BYTES) // frames.FRAME_BYTES


def forget(path: str, first: int, count: int) -> None:
    """Frames (from 1) read as the disk had them before: zeros."""
    with open(f"{path}-wal", "r+b", buffering=0) as stream:
        stream.seek(frames.HEAD_BYTES + (first - 1) * frames.FRAME_BYTES)
        stream.write(bytes(count * frames.FRAME_BYTES))


# --- a repair proves what it moves ----------------------------------------------------------------


def test_frames_that_the_page_cache_lost_too_are_not_moved_and_a_new_start_leaves_them_out(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore
) -> None:
    confirmed = [submission() for _ in range(20)]
    client.enqueue(confirmed, T0)
    end = frames_of(path)
    client._sync._sync = lambda fd: (_ for _ in ()).throw(EIO)  # type: ignore[attr-defined]
    lost = submission(content=b"x" * 60_000)
    with pytest.raises(OutcomeUnknown):
        client.enqueue([lost], T0)
    forget(path, end + 3, 4)
    database = Path(path).read_bytes()
    assert engine.repair() is False
    assert re.search(f"frame {end + 3} is not what was .*then start them", engine.unrepaired())
    assert Path(path).read_bytes() == database
    assert engine.poisoned
    engine.close()
    client.close()
    again, repairing = SQLiteClientStore(path), SQLiteWorkerStore(path)
    with pytest.raises(SpoolError, match="being repaired"):
        again.enqueue([submission()], T0)
    assert repairing.repair() is True
    assert set(again.statuses([one.id for one in [*confirmed, lost]])) == {m.id for m in confirmed}
    assert again.check() == []
    assert isinstance(again.enqueue([submission()], T0)[0], str)
    repairing.close()
    again.close()


def test_frames_of_an_earlier_round_of_the_log_are_not_taken_for_those_of_this_one(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore
) -> None:
    client.enqueue([submission(content=b"x" * 60_000)], T0)
    assert engine.checkpoint().mode == "restart"
    before = Path(f"{path}-wal").read_bytes()
    client.enqueue([submission()], T0)
    Path(f"{path}-wal").write_bytes(before)  # whole, and all its sums are right
    poison.poison(path, EIO)
    assert engine.repair() is False
    assert "frame 0 is not what was written" in engine.unrepaired()


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_whole_log_is_proved_wherever_its_beginning_was_moved_already(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, rounds: int
) -> None:
    for _ in range(rounds):
        client.enqueue([submission(content=b"x" * 60_000)], T0)
        engine.checkpoint()
    client.enqueue([submission()], T0)
    reader = connections.connect(path)
    reader.execute("BEGIN").fetchall()
    reader.execute("SELECT count(*) FROM message").fetchall()
    last = submission()
    client.enqueue([last], T0)
    assert engine.checkpoint().mode == "passive"  # moved as far as the reader sees
    reader.close()
    poison.poison(path, EIO)
    assert engine.repair() is True
    assert set(client.statuses([last.id])) == {last.id}
    assert client.check() == []


def test_what_a_checkpoint_moved_without_a_sync_is_moved_again_by_the_repair(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore
) -> None:
    """The failed sync of a later checkpoint drops that as well, and it is none of its frames."""
    client.enqueue([submission()], T0)
    assert engine.checkpoint().mode == "restart"
    synced = Path(path).read_bytes()
    first = submission(content=b"x" * 60_000)
    client.enqueue([first], T0)
    reader = connections.connect(path)
    reader.execute("BEGIN").fetchall()
    reader.execute("SELECT count(*) FROM message").fetchall()
    last = submission()
    client.enqueue([last], T0)
    assert engine.checkpoint().mode == "passive"
    assert frames.index_head(os.stat(f"{path}-shm"))[96:100] != bytes(4)  # type: ignore[index]
    reader.close()
    with open(path, "r+b", buffering=0) as stream:
        stream.write(synced)
        stream.truncate()
    poison.poison(path, EIO)
    assert engine.repair() is True
    client.close()
    engine.close()
    again = SQLiteClientStore(path)
    assert again.check() == []
    assert set(again.statuses([first.id, last.id])) == {first.id, last.id}
    assert again.content(first.id) == first.content
    again.close()


def test_a_repair_waits_for_a_checkpoint_that_is_under_way(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore
) -> None:
    """It would say at its end how far it came, over what the repair said."""
    client.enqueue([submission()], T0)
    told: list[str] = []

    def meanwhile(op: Op) -> None:
        if not told and (op.name, op.kind) == ("write", "db"):
            with pytest.raises(SpoolError) as caught:
                frames.move_again(path)
            told.append(str(caught.value))
            assert engine.repair() is False

    with watched(before=meanwhile):
        other = connections.connect(path)
        poison.poison(path, EIO)
        other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        other.close()
    assert told == [f"{path}: a checkpoint is under way"]
    assert engine.poisoned
    assert engine.repair() is True


def test_a_repair_passes_over_a_descriptor_that_only_reads(tmp_path: Path) -> None:
    """Another copy of SQLite in this process, say, which reads; it came first."""
    path = str(tmp_path / "spool.db")
    first = os.open(os.devnull, os.O_RDONLY)
    client = SQLiteClientStore(path)
    engine = SQLiteWorkerStore(path)
    reading = os.open(f"{path}-shm", os.O_RDONLY)
    os.dup2(reading, first)  # lower than SQLite's own
    try:
        client.enqueue([submission()], T0)
        poison.poison(path, EIO)
        assert engine.repair() is True
        assert not engine.poisoned
    finally:
        engine.close()
        client.close()
        os.close(reading)
        os.close(first)


# --- nothing else moves pages, or forgets ---------------------------------------------------------


def test_a_clients_checkpoint_moves_nothing_in_a_poisoned_spool(
    path: str, client: SQLiteClientStore
) -> None:
    asked: list[str] = []

    class Recording:
        def wal_checkpoint(self, *_args: object) -> tuple[int, int]:
            asked.append("moved")
            return 10, 10

    hook = Checkpointer(path, 10, Patience(1).bind)
    client.enqueue([submission()], T0)
    assert hook(Recording(), "main", 10) == apsw.SQLITE_OK  # type: ignore[arg-type]
    assert asked == ["moved"]
    poison.poison(path, EIO)
    assert hook(Recording(), "main", 20) == apsw.SQLITE_OK  # type: ignore[arg-type]
    assert asked == ["moved"]
    with pytest.raises(SpoolError, match="being repaired"):
        client.recent(10)


def test_a_checkpoint_begins_no_second_one_where_a_sync_failed_during_the_first(
    path: str, client: SQLiteClientStore
) -> None:
    client.enqueue([submission()], T0)
    done: list[str] = []

    def during(op: Op) -> None:
        if (op.name, op.kind) == ("sync", "db"):
            poison.poison(path, EIO)

    def after(op: Op) -> None:
        if op.name == "sync":
            done.append(op.kind)

    with watched(before=during, after=after):
        engine = SQLiteWorkerStore(path)
        done.clear()
        with pytest.raises(SpoolError, match="being repaired"):
            engine.checkpoint()
        engine.close()
    assert done == ["wal", "db"]


def test_a_failure_during_a_repair_is_kept_where_the_flag_has_no_room_for_its_line(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        poison.poison(path, EIO)
        assert os.stat(poison.poison_path(path)).st_size == 0
        begun = poison.mark(path)
        poison.poison(path, EIO)
        assert poison.clear(path, begun) is False
        with pytest.raises(SpoolError, match="being repaired"):
            client.enqueue([submission()], T0)
    deadline = time.monotonic() + 30
    while path in poison._unwritten or not poison.clear(path, poison.mark(path)):
        poison._unwritten and poison.poison(path, EIO)
        assert time.monotonic() < deadline
    assert isinstance(client.enqueue([submission()], T0)[0], str)


# --- what is said of a commit that found no room --------------------------------------------------


class Failing:
    """A connection of which some statements fail, before they take place."""

    def __init__(self, real: Any, errors: dict[str, Exception]) -> None:
        self._real, self._errors = real, errors

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, sql: str, *args: Any) -> object:
        if sql in self._errors:
            raise self._errors[sql]
        return self._real.execute(sql, *args)


def step_of(size: int) -> str:
    """The statement that stores so many messages, a commit of its own."""
    return inserting._sized(STATEMENTS["enqueue"], size)


_PLACE = STATEMENTS["meta_set"]
_IO, _FULL = apsw.IOError("disk I/O error"), apsw.FullError("database or disk is full")


@pytest.mark.parametrize(
    ("amount", "commit"),
    [(1, step_of(1)), (2, step_of(4)), (256, step_of(256)), (257, "COMMIT")],
    ids=["one", "one step", "the longest step", "several steps"],
)
@pytest.mark.parametrize(
    ("error", "place", "said"),
    [
        (_IO, None, SpoolFull),
        (_IO, _FULL, OutcomeUnknown),
        (_IO, _IO, OutcomeUnknown),
        (_FULL, _FULL, SpoolFull),
        (_FULL, None, SpoolFull),
    ],
)
def test_a_commit_without_room_is_denied_only_once_its_place_is_taken(
    client: SQLiteClientStore,
    monkeypatch: pytest.MonkeyPatch,
    amount: int,
    commit: str,
    error: Exception,
    place: Exception | None,
    said: type[Exception],
) -> None:
    """An I/O error may come after the commit's last frame, as where the log's index cannot grow."""
    monkeypatch.setattr(connections, "has_room", lambda path: False)
    real, errors = client._write_connection, {commit: error} | ({_PLACE: place} if place else {})
    with monkeypatch.context() as patch:
        patch.setattr(client, "_write_connection", lambda: Failing(real(), errors))
        with pytest.raises(said) as caught:
            client.enqueue([submission() for _ in range(amount)], T0)
    assert type(caught.value) is said
    written = client.query("SELECT count(*) FROM meta WHERE key = 'commit_failed'", (), 1)
    assert written == [(0 if place else 1,)]
    assert client.query("SELECT count(*) FROM message", (), 1) == [(0,)]


# --- one look -------------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """All directories were left alone for long."""
    real = time.time_ns
    monkeypatch.setattr(unchanged.time, "time_ns", lambda: real() + 2 * unchanged.MARGIN_NS)


def next_tick(folder: Path) -> None:
    """Until a change of a directory would have another time than those before."""
    probe = folder / "ticks"
    probe.mkdir()
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        probe.chmod(0o700)
    probe.rmdir()


def looked_at(monkeypatch: pytest.MonkeyPatch, step: Callable[[], object]) -> list[str]:
    names: list[str] = []
    real = os.stat

    def stat(name: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        names.append(os.path.basename(str(name)))
        return real(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        step()
    return names


def test_a_directory_that_just_changed_proves_nothing(tmp_path: Path) -> None:
    assert unchanged.steady(unchanged.look(str(tmp_path))) is None


@pytest.mark.usefixtures("later")
def test_one_look_at_a_quiet_directory_is_enough_and_a_flag_is_seen_all_the_same(
    path: str, tmp_path: Path, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.enqueue([submission()], T0)
    check = client._sync.check
    check()
    assert looked_at(monkeypatch, check) == ["spool.db-run"]
    next_tick(tmp_path)
    poison.poison(path, EIO)
    with pytest.raises(SpoolError, match="being repaired"):
        check()
    os.unlink(poison.poison_path(path))
    check()
    shutil.rmtree(poison.run_directory(path))
    with pytest.raises(SpoolError, match="cannot be looked into"):
        check()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_one_look_at_a_quiet_directory_is_enough_and_a_replaced_file_is_seen_all_the_same(
    path: str,
    tmp_path: Path,
    client: SQLiteClientStore,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    client.enqueue([submission()], T0)
    sync = client._sync
    assert isinstance(sync, WalSync)
    sync.verify()
    assert looked_at(monkeypatch, sync.verify) == [tmp_path.name]
    next_tick(tmp_path)
    os.replace(shutil.copy(f"{path}{ending}", tmp_path / "copy"), f"{path}{ending}")
    with pytest.raises(SpoolError, match="replaced"):
        sync.verify()
