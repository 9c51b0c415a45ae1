"""The bound of the -wal file: who pins it is named, accepting stops at the limit and resumes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, cast

import apsw
import pytest

from mailstrom.errors import SpoolBusy, SpoolFull
from mailstrom.storage import open_client_store, open_worker_store
from mailstrom.storage.sqlite import frames, locks, wal
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool, submission

LIMIT = wal.LEAST_LIMIT_BYTES
CHECKPOINTER = """
import fcntl, sys
shm = open(f"{sys.argv[1]}-shm", "r+b")
fcntl.lockf(shm, fcntl.LOCK_EX, 1, 121)
print("reads", flush=True)
sys.stdin.read()
"""
READER = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM message").fetchall()
print("reads", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SQLiteStores]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield stores


@pytest.fixture
def spool(stores: SQLiteStores) -> Spool:
    spool = Spool(stores)
    spool.engine.tell("wal_limit", LIMIT)
    return spool


@contextmanager
def foreign_reader(path: str) -> Iterator[int]:
    """Another process with another SQLite, inside a read transaction; its id."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"reads\n"
            yield process.pid
        finally:
            process.stdin.close()
            assert process.wait(30) == 0


def fill(spool: Spool, until: Callable[[], bool]) -> int:
    """Messages of 1 MiB until something is so; bounded."""
    for number in range(64):
        if until():
            return number
        spool.send("a@example.org", content=os.urandom(1 << 20))
    raise AssertionError("64 MiB were not enough")


def test_at_the_limit_accepting_stops_with_the_readers_name_and_resumes_by_itself(
    spool: Spool, stores: SQLiteStores
) -> None:
    with foreign_reader(stores.path) as reader:
        sent = fill(spool, lambda: spool.engine.log_bytes() >= LIMIT)
        with pytest.raises(
            SpoolFull, match=rf"16.* MiB and its limit is 16 MiB .*wal_limit.*process {reader} \("
        ):
            spool.send("b@example.org")
        assert spool.engine.log_full, "the engine goes on claiming"
        assert spool.client.stats(0).log_full
        assert spool.client.stats(0).waiting["queued"] == sent
    spool.send("b@example.org")  # no engine runs: the client empties the log itself
    assert spool.engine.log_bytes() < LIMIT // 4
    assert spool.client.stats(0).waiting["queued"] == sent + 1
    assert spool.client.check() == []


def test_a_reader_whose_lock_one_look_missed_is_named_all_the_same(
    spool: Spool, stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = locks.locked, 0

    def missed(shm: os.stat_result) -> list[tuple[int, str, int]]:
        nonlocal looks
        looks += 1
        return [] if looks == 1 else real(shm)

    with foreign_reader(stores.path) as reader:
        fill(spool, lambda: spool.engine.log_bytes() >= LIMIT)
        monkeypatch.setattr(locks, "locked", missed)
        with pytest.raises(SpoolFull, match=rf"process {reader} \("):
            spool.send("b@example.org")
        monkeypatch.undo()
    assert looks == 3


def test_who_reads_the_log_to_its_end_is_named_and_who_reads_none_of_it_is_not(
    spool: Spool, stores: SQLiteStores
) -> None:
    fill(spool, lambda: spool.engine.log_bytes() >= LIMIT)
    with foreign_reader(stores.path) as reader:
        found = spool.engine.checkpoint()
        assert found.moved == found.frames
        with foreign_reader(stores.path) as other:  # all is moved: it needs the database alone
            assert [one.pid for one in wal.pinned(stores.path).holders] == [reader]
            with pytest.raises(SpoolFull, match=rf"process {reader} \(") as refused:
                spool.send("b@example.org")
            assert str(other) not in str(refused.value)
        assert [one.pid for one in wal.pinned(stores.path).holders] == [reader]
    with foreign_reader(stores.path):
        spool.send("b@example.org")  # who reads the database alone keeps no empty log from anything


def test_a_large_message_that_is_refused_leaves_nothing_behind(
    spool: Spool, stores: SQLiteStores
) -> None:
    with foreign_reader(stores.path):
        fill(spool, lambda: spool.engine.log_bytes() >= LIMIT)
        before = spool.engine.log_bytes()
        with pytest.raises(SpoolFull):
            spool.send("b@example.org", content=os.urandom(1 << 20))
        assert spool.engine.log_bytes() == before


def test_a_checkpoint_names_who_pins_the_log_and_cuts_the_file_back_afterwards(
    spool: Spool, stores: SQLiteStores
) -> None:
    with foreign_reader(stores.path) as reader:
        fill(spool, lambda: spool.engine.log_bytes() >= wal.alarm_bytes(LIMIT))
        # Readers that came later see more: they are not what the checkpoint stopped at.
        with foreign_reader(stores.path):
            found = spool.engine.checkpoint()
            assert found.pinned is not None
            assert found.pinned.sure
            assert [one.pid for one in found.pinned.holders] == [reader]
            assert found.pinned.limit_bytes == LIMIT
            (note,) = spool.client.pinned()
            assert f"process {reader} (" in note
            assert "at 16 MiB accepting and claiming stop" in note
            assert spool.client.check() == [], "it is no damage"
            assert not spool.engine.log_full, "claiming goes on until the limit"
    found = spool.engine.checkpoint()
    assert (found.mode, found.pinned) == ("truncate", None)
    assert spool.engine.log_bytes() == 0
    assert spool.client.pinned() == []


def test_a_checkpointer_at_work_pins_nothing_and_one_that_was_stopped_does(
    spool: Spool, stores: SQLiteStores
) -> None:
    """As the engine's own janitor, which copies the log all the time."""
    fill(spool, lambda: spool.engine.log_bytes() >= wal.alarm_bytes(LIMIT))
    with foreign(("-c", CHECKPOINTER), stores.path, stopped=False) as pid:
        assert (pid, "WRITE", 121) in locks.locked(os.stat(f"{stores.path}-shm"))
        found = wal.pinned(stores.path)
        assert (found.sure, found.holders) == (True, ())
        assert spool.client.pinned() == []
        assert "nobody any more" in wal.sentence(found)
    with foreign(("-c", CHECKPOINTER), stores.path, stopped=True) as pid:
        assert [one.pid for one in wal.pinned(stores.path).holders] == [pid]


def test_a_reader_of_the_engines_own_is_nobody_unless_it_was_stopped(
    spool: Spool, stores: SQLiteStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(spool, lambda: spool.engine.log_bytes() >= wal.alarm_bytes(LIMIT) // 2)
    (tmp_path / "some_engine").mkdir()
    (tmp_path / "some_engine" / "reader.py").write_text(
        "import apsw, sys; c = apsw.Connection(sys.argv[1]); c.execute('BEGIN').fetchall();"
        "c.execute('SELECT count(*) FROM meta').fetchall(); print('reads', flush=True);"
        "sys.stdin.read()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = ("-m", "some_engine.reader")
    by_chance = ("-c", READER)  # whose arguments only look like it
    for program, halted, named in (
        (own, False, False),
        (own, True, True),
        (by_chance, False, True),
    ):
        with foreign(program, stores.path, *own, stopped=halted) as pid:
            spool.send("a@example.org")
            spool.engine.checkpoint()
            assert [one.pid for one in wal.pinned(stores.path).holders] == [pid]
            with monkeypatch.context() as patch:
                patch.setattr(locks, "_OWN", b"some_engine.")  # as if it were a worker's
                found = wal.pinned(stores.path)
            assert found.sure
            assert [one.pid for one in found.holders] == ([pid] if named else [])


def test_a_reader_of_the_database_file_alone_is_named_too(
    spool: Spool, stores: SQLiteStores
) -> None:
    spool.engine.checkpoint()
    connection = apsw.Connection(stores.path)
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    connection.close()
    with foreign_reader(stores.path) as reader:
        fill(spool, lambda: spool.engine.log_bytes() >= wal.alarm_bytes(LIMIT))
        found = spool.engine.checkpoint()
        assert found.moved == 0
        assert found.pinned is not None
        assert [one.pid for one in found.pinned.holders] == [reader]


def test_a_short_log_is_begun_again_and_not_cut_back(spool: Spool) -> None:
    fill(spool, lambda: spool.engine.log_bytes() >= 1 << 20)
    before = spool.engine.log_bytes()
    assert spool.engine.checkpoint().mode == "restart"
    assert spool.engine.log_bytes() == before


def test_where_the_system_does_not_tell_the_openers_are_named(
    spool: Spool, stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCKS", "/proc/self/nothing")
    monkeypatch.setattr(frames, "_descriptors", tuple)
    with foreign_reader(stores.path) as reader:
        found = wal.pinned(stores.path)
        assert not found.sure
        assert [one.pid for one in found.holders] == [reader]
        assert f"process {reader} (" in wal.sentence(found)
    monkeypatch.setattr(locks, "PROCESSES", "/proc/self/nothing")
    assert "does not name" in wal.sentence(wal.pinned(stores.path))


def test_a_reader_in_another_container_is_seen_and_nobody_is_named_in_its_place(
    spool: Spool, stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux lists its locks nowhere here, and tells of them without a process when it is asked."""
    real, question = fcntl.fcntl, frames.FLOCK

    def asked(fd: int, number: int, *rest: Any) -> Any:
        answer = real(fd, number, *rest)
        if number != fcntl.F_GETLK:
            return answer
        return question.pack(*question.unpack(answer)[:-1], 0)

    with foreign_reader(stores.path) as reader:
        fill(spool, lambda: spool.engine.log_bytes() >= LIMIT)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(locks, "LOCKS", "/proc/self/nothing")
            elsewhere.setattr(fcntl, "fcntl", asked)
            assert [pid for pid, mode, _ in locks.locked(os.stat(f"{stores.path}-shm"))] == [0]
            found = wal.pinned(stores.path)
            assert (found.sure, found.holders) == (False, ())
            with pytest.raises(SpoolFull, match="a process that this system does not name"):
                spool.send("b@example.org")
            assert spool.engine.checkpoint().pinned is not None, "no alarm"
            (note,) = spool.client.pinned()
            assert str(reader) not in note
            assert locks.writer(stores.path) is None
        assert [one.pid for one in wal.pinned(stores.path).holders] == [reader]
    spool.send("b@example.org")


def test_a_limit_is_what_the_engine_told_else_a_gibibyte(stores: SQLiteStores) -> None:
    stores.client()
    connection = apsw.Connection(stores.path)
    assert wal.limit_bytes(connection) == 1 << 30
    assert wal.alarm_bytes(1 << 30) == 64 << 20
    stores.worker().tell("wal_limit", 32 << 20)
    assert wal.limit_bytes(connection) == 32 << 20
    assert wal.alarm_bytes(32 << 20) == 8 << 20
    connection.close()


@pytest.mark.parametrize(
    ("size", "wait_ms"), [(0, 5), ((64 << 20) - 1, 5), (64 << 20, 200), (1 << 29, 2_000)]
)
def test_writers_wait_longer_for_readers_the_longer_the_log(size: int, wait_ms: int) -> None:
    assert wal.patience_ms(size, 1 << 30) == wait_ms


class Log:
    """A connection whose checkpoints find what a test says, and stop at a reader."""

    def __init__(self) -> None:
        self.frames, self.moved = 30_000, 1_000
        self.busy_ms: list[int] = []

    def wal_checkpoint(self, mode: int) -> tuple[int, int]:
        if mode != apsw.SQLITE_CHECKPOINT_PASSIVE:
            raise apsw.BusyError
        return self.frames, self.moved

    def set_busy_timeout(self, busy_ms: int) -> None:
        self.busy_ms.append(busy_ms)


def waited(emptying: wal.Emptying, log: Log, size: int = wal.ALARM_BYTES) -> int:
    """How long a checkpoint may have kept writers waiting; 0: not at all."""
    log.busy_ms.clear()
    found = emptying(
        cast(apsw.Connection, log), size=size, limit=1 << 30, busy_ms=7, ask=lambda: None
    )
    assert found == (log.frames, log.moved, "passive")
    if not log.busy_ms:
        return 0
    longest, restored = log.busy_ms
    assert restored == 7
    return longest


def test_a_report_that_was_left_open_is_never_waited_for() -> None:
    emptying, log = wal.Emptying(), Log()
    assert waited(emptying, log, 1 << 20) == 0
    log.moved += 500  # until the report came; the file grows over its alarm behind it
    assert [waited(emptying, log) for _ in range(4)] == [0, 0, 0, 0]
    log.frames = log.moved + 10  # a report that sees nearly all
    assert {waited(emptying, log) for _ in range(4)} == {wal.PATIENCE_MS}
    assert {waited(emptying, log, 1 << 29) for _ in range(4)} == {wal.PATIENCE_MS}


def test_readers_that_let_go_now_and_then_are_waited_for() -> None:
    emptying, log = wal.Emptying(), Log()
    assert waited(emptying, log) == 0
    log.moved += 1
    assert waited(emptying, log) == wal.LONG_MS
    log.moved += 1
    assert waited(emptying, log, 1 << 29) == wal.LAST_MS


def foreign_writer(path: str, *, stopped: bool = False) -> AbstractContextManager[int]:
    """Another process with another SQLite that keeps the write lock; its id."""
    writer = READER.replace('"BEGIN"', '"BEGIN IMMEDIATE"').replace("mode=ro", "mode=rw")
    return foreign(("-c", writer), path, stopped=stopped)


@contextmanager
def foreign(program: tuple[str, str], path: str, *more: str, stopped: bool) -> Iterator[int]:
    """Another process that runs a program, stopped or not; its id."""
    with subprocess.Popen(
        [sys.executable, "-P", *program, path, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"reads\n"
            if stopped:
                process.send_signal(signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)
            yield process.pid
        finally:
            process.send_signal(signal.SIGCONT)
            process.stdin.close()
            assert process.wait(30) == 0


def test_whoever_holds_the_write_lock_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "spool.db")
    with closing(open_client_store(path, busy_ms=50)) as client:
        client.enqueue([submission()], T0)
        with closing(open_worker_store(path, busy_ms=50)) as engine, foreign_writer(path) as pid:
            assert os.path.exists(f"/proc/{pid}/comm")
            with pytest.raises(SpoolBusy, match=rf"storing a message \(process {pid} \(\w+"):
                client.enqueue([submission()], T0)
            with pytest.raises(SpoolBusy, match=rf"expiring \(process {pid} \("):
                engine.expire(10, T0)
            (note,) = client.pinned()
            assert note.startswith(f"process {pid} (")
            assert client.check() == [], "it is no damage"
        client.enqueue([submission()], T0)
        assert client.pinned() == []


def test_a_writer_that_was_stopped_is_named_as_such(tmp_path: Path) -> None:
    path = str(tmp_path / "spool.db")
    with (
        closing(open_client_store(path, busy_ms=50)) as client,
        foreign_writer(path, stopped=True) as pid,
        pytest.raises(SpoolBusy, match=rf"process {pid} \(.*, stopped: kill -CONT lets it go on\)"),
    ):
        client.enqueue([submission()], T0)


def test_a_writer_that_commits_all_along_is_no_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lock whenever somebody looks, and lets others in all the same."""
    path = str(tmp_path / "spool.db")
    with (
        closing(open_client_store(path)) as client,
        closing(apsw.Connection(path)) as foreign,
    ):

        def commits(_seconds: float) -> None:
            if not foreign.get_autocommit():
                foreign.execute("COMMIT")
            foreign.execute("BEGIN IMMEDIATE")
            foreign.execute("INSERT INTO extra VALUES (1)")

        foreign.execute("CREATE TABLE extra (number)")
        commits(0.0)
        assert locks.writer(path) is not None
        monkeypatch.setattr("time.sleep", commits)
        assert client.pinned() == []
        foreign.execute("ROLLBACK")
