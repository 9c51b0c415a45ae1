"""The bound of the -wal file: who pins it is named, accepting stops at the limit and resumes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from mailstrom.errors import SpoolFull
from mailstrom.storage.sqlite import wal
from tests.storage.files import SQLiteStores
from tests.storage.spool import Spool

LIMIT = wal.LEAST_LIMIT_BYTES
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
        with pytest.raises(SpoolFull, match=rf"wal_limit.*process {reader} \("):
            spool.send("b@example.org")
        assert spool.engine.room_bytes() == 0, "the engine goes on claiming"
        assert spool.client.stats(0).waiting["queued"] == sent
    spool.send("b@example.org")  # no engine runs: the client empties the log itself
    assert spool.engine.log_bytes() < LIMIT // 4
    assert spool.client.stats(0).waiting["queued"] == sent + 1
    assert spool.client.check() == []


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
            (finding,) = spool.client.check()
            assert f"process {reader} (" in finding
    found = spool.engine.checkpoint()
    assert (found.mode, found.pinned) == ("truncate", None)
    assert spool.engine.log_bytes() == 0
    assert spool.client.check() == []


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
    monkeypatch.setattr(wal, "_LOCKS", "/proc/self/nothing")
    monkeypatch.setattr(wal, "_OWN", "/proc/self/nothing")
    with foreign_reader(stores.path) as reader:
        found = wal.pinned(stores.path)
        assert not found.sure
        assert [one.pid for one in found.holders] == [reader]
        assert f"process {reader} (" in wal.sentence(found)
    monkeypatch.setattr(wal, "_PROCESSES", "/proc/self/nothing")
    assert "does not name" in wal.sentence(wal.pinned(stores.path))


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
