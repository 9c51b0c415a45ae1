"""A writer asks for the lock each millisecond, and no longer than it may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from mailstrom.storage.sqlite.checkpointer import Checkpointer
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.patience import Patience
from tests.storage.spool import Spool


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[apsw.Connection, apsw.Connection]]:
    """A database with a writer in the way, and another that wants to write."""
    path = str(tmp_path / "some.db")
    other, writer = apsw.Connection(path), apsw.Connection(path)
    other.execute("PRAGMA journal_mode = WAL; CREATE TABLE seen (who)").fetchall()
    other.execute("BEGIN IMMEDIATE")
    yield other, writer
    writer.close()
    other.close()


def test_it_asks_each_millisecond_and_has_the_lock_when_it_is_free(
    two: tuple[apsw.Connection, apsw.Connection],
) -> None:
    other, writer = two
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 30:
            other.execute("COMMIT")

    Patience(60_000, pause).bind(writer)
    writer.execute("BEGIN IMMEDIATE; INSERT INTO seen VALUES ('writer'); COMMIT").fetchall()
    assert pauses == [0.001] * 30


def test_a_lock_that_does_not_come_in_time_is_told(
    two: tuple[apsw.Connection, apsw.Connection],
) -> None:
    _, writer = two
    Patience(0, lambda _: pytest.fail("there was no time to wait")).bind(writer)
    with pytest.raises(apsw.BusyError):
        writer.execute("BEGIN IMMEDIATE")
    assert writer.get_autocommit()


def test_the_time_begins_anew_with_each_wait(
    two: tuple[apsw.Connection, apsw.Connection],
) -> None:
    _, writer = two
    Patience(5).bind(writer)
    for _ in range(2):
        with pytest.raises(apsw.BusyError):
            writer.execute("BEGIN IMMEDIATE")


def test_a_client_waits_so_before_and_after_a_checkpoint_of_its_own(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(spool.client, SQLiteClientStore)
    writer = spool.client._write_connection()
    other = connect(spool.client.path, busy_ms=0)
    asked: list[int] = []
    real = Patience.__call__

    def ask(self: Patience, looks: int) -> bool:
        asked.append(looks)
        if not other.get_autocommit():
            other.execute("COMMIT")
        return real(self, looks)

    monkeypatch.setattr(Patience, "__call__", ask)
    for _ in range(2):
        asked.clear()
        other.execute("BEGIN IMMEDIATE")
        spool.send("a@example.org")
        assert asked, "SQLite's own waits would have asked without it"
        hook = Checkpointer(spool.client.path, 1, Patience(5_000).bind)
        hook._begin_again(writer, "main")
    other.close()
