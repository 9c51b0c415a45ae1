"""Content that is written ahead of its message: staged for what will be stored, else gone again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import IdempotencyConflict, InvalidMessage, SpoolBusy, SpoolFull
from mailstrom.storage.base import StreamPolicy
from mailstrom.storage.client import CHUNK_BYTES, Submission
from mailstrom.storage.sqlite import client as client_module
from mailstrom.storage.sqlite import submissions
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, submission

LARGE = b"x" * (2 * CHUNK_BYTES + 1)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def client(path: str) -> Iterator[SQLiteClientStore]:
    store = SQLiteClientStore(path, busy_ms=50)
    yield store
    store.close()


@pytest.fixture
def limited(path: str, client: SQLiteClientStore) -> SQLiteClientStore:
    """The client of a spool whose stream ``small`` takes no large message."""
    engine = SQLiteWorkerStore(path)
    engine.use_streams([StreamPolicy(name="small", max_size=CHUNK_BYTES, max_recipients=1)])
    engine.close()
    return client


def left(path: str) -> tuple[int, int, int]:
    """Staged messages, the highest number ever staged, and pieces of content in the spool."""
    looking = connect(path, read_only=True)
    try:
        (row,) = looking.execute(
            "SELECT (SELECT count(*) FROM staged),"
            " coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'staged'), 0),"
            " (SELECT count(*) FROM content)"
        ).fetchall()
        return row[0], row[1], row[2]
    finally:
        looking.close()


def large(**changes: Any) -> Submission:
    """A message of three pieces."""
    return submission(content=LARGE, **changes)


def test_a_large_message_over_a_limit_is_refused_before_it_is_written(
    path: str, limited: SQLiteClientStore
) -> None:
    (refused,) = limited.enqueue([large(stream="small")], T0)
    assert isinstance(refused, InvalidMessage)
    assert refused.rule == "stream-max-size"
    assert left(path) == (0, 0, 0)


def test_a_repeated_large_message_is_answered_before_it_is_written(
    path: str, client: SQLiteClientStore
) -> None:
    first, again, other = (large(idempotency=("k", hash)) for hash in (b"h", b"h", b"i"))
    assert client.enqueue([first], T0) == [first.id]
    for atomic in (False, True):
        assert client.enqueue([again], T0, atomic=atomic) == [first.id]
    (conflict,) = client.enqueue([other], T0)
    assert isinstance(conflict, IdempotencyConflict)
    assert first.id in str(conflict)
    with pytest.raises(IdempotencyConflict):
        client.enqueue([submission(), other], T0, atomic=True)
    assert left(path) == (0, 1, 3)
    late = large(idempotency=("k", b"h"), created_ms=T0 + 2 * 86_400_000)
    assert client.enqueue([late], T0) == [late.id], "the key ran out"


def test_the_second_of_one_batch_is_refused_by_the_spool_and_leaves_nothing(
    path: str, client: SQLiteClientStore
) -> None:
    first, again, fine = large(idempotency=("k", b"h")), large(idempotency=("k", b"h")), large()
    assert client.enqueue([first, again, fine], T0) == [first.id, first.id, fine.id]
    assert left(path) == (0, 3, 6)
    assert client.content(first.id) == client.content(fine.id) == LARGE


def test_a_limit_that_comes_meanwhile_leaves_nothing(
    path: str, limited: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submissions.streams, "exceeded", lambda *now: None)
    monkeypatch.setattr(submissions, "UNSTAGED_CHUNKS", 2)
    fine = large()
    refused, stored = limited.enqueue([large(stream="small"), fine], T0)
    assert isinstance(refused, InvalidMessage)
    assert stored == fine.id
    assert left(path) == (0, 2, 3)
    with pytest.raises(InvalidMessage):
        limited.enqueue([fine, large(stream="small")], T0, atomic=True)
    assert left(path) == (0, 4, 3)


def test_a_message_that_no_column_holds_leaves_nothing(
    path: str, client: SQLiteClientStore
) -> None:
    (refused,) = client.enqueue([large(subject="\ud800")], T0)
    assert isinstance(refused, InvalidMessage)
    assert left(path) == (0, 1, 0)


def test_staging_that_fails_half_way_leaves_nothing(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = submissions.run

    def run(connection: apsw.Connection, name: str, values: Any = None) -> list[Any]:
        if name == "stage_chunk" and values["key"] % 4096 == 1:
            raise apsw.FullError("disk full")
        return real(connection, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(submissions, "run", run)
        with pytest.raises(SpoolFull):
            client.enqueue([submission(), large()], T0)
    assert left(path) == (0, 1, 0)


def test_what_a_busy_spool_leaves_goes_with_the_next_message(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = connect(path)
    real = client_module.SQLiteClientStore._insert

    def insert(self: SQLiteClientStore, *rows: Any) -> Any:
        other.execute("BEGIN IMMEDIATE").fetchall()
        try:
            return real(self, *rows)
        finally:
            other.execute("ROLLBACK").fetchall()

    with monkeypatch.context() as patch:
        patch.setattr(client_module.SQLiteClientStore, "_insert", insert)
        with pytest.raises(SpoolBusy):
            client.enqueue([large()], T0)
    other.close()
    assert left(path) == (1, 1, 3)
    assert client.enqueue([one := submission()], T0) == [one.id]
    assert left(path) == (0, 1, 1)


def test_nothing_is_deleted_that_somebody_else_staged(path: str, client: SQLiteClientStore) -> None:
    """A number is known again by its time, should the spool have been replaced meanwhile."""
    connection = connect(path)
    connection.execute("INSERT INTO staged VALUES (7, ?)", (T0,)).fetchall()
    piece = (-7 * 4096, b"theirs", b"0" * 16)
    connection.execute("INSERT INTO content VALUES (?, ?, ?)", piece).fetchall()
    ours = [submissions.Staged(7, T0 - 1)]
    submissions.unstage(path, connection, ours)
    assert (ours, left(path)) == ([], (1, 7, 1))
    submissions.unstage(path, connection, [submissions.Staged(7, T0)])
    assert left(path) == (0, 7, 0)
    connection.close()
