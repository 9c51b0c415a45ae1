"""Messages of very many recipients: what changing them all costs, and how long the lock is held.

Counted in instructions and transactions, not in time.
"""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

from mailstrom.errors import OutcomeUnknown, SpoolReplaced
from mailstrom.storage.sqlite import changes
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.sql import run
from tests.storage.spool import DAY, T0, Spool, change, submission

EACH = 50


@pytest.fixture
def other(spool: Spool) -> apsw.Connection:
    """A connection beside the stores."""
    assert isinstance(spool.client, SQLiteClientStore)
    return spool.client._write_connection()


def instructions(connection: apsw.Connection, name: str, recipients: str) -> int:
    """How many times ``EACH`` instructions a statement over these recipients takes."""
    count = 0

    def counted() -> bool:
        nonlocal count
        count += 1
        return False

    connection.set_progress_handler(counted, EACH)
    try:
        run(connection, name, {"recipients": recipients, "now_ms": T0})
    finally:
        connection.set_progress_handler(None)
    return count


@pytest.mark.parametrize("way", [("hold",), ("hold", "release"), ("hold", "retry")])
def test_a_change_of_all_recipients_costs_so_much_for_each(
    spool: Spool, other: apsw.Connection, way: tuple[str, ...]
) -> None:
    costs = []
    for amount in (100, 400):
        id = spool.send(*(f"{n}@example.org" for n in range(amount)))
        of = "SELECT r.seq FROM recipient r JOIN message m ON m.seq = r.message WHERE m.id = ?"
        text = str([row[0] for row in spool.rows(of, id)])
        for name in way[:-1]:
            run(other, name, {"recipients": text, "now_ms": T0})
        costs.append(instructions(other, way[-1], text) / amount)
    few, many = costs
    assert many < 1.5 * few, "a recipient more must not look at all the others"


def test_very_many_recipients_are_changed_in_several_transactions(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST", 3)
    id = spool.send(*(f"{n}@example.org" for n in range(8)))
    sizes: list[int] = []
    real = changes.change

    def counted(connection: apsw.Connection, **asked: object) -> int:
        assert not connection.get_autocommit()
        sizes.append(real(connection, **asked))  # type: ignore[arg-type]
        return sizes[-1]

    monkeypatch.setattr(changes, "change", counted)
    for word, many in (("hold", 8), ("release", 8), ("retry", 8), ("cancel", 8), ("cancel", 0)):
        sizes.clear()
        assert change(spool.client, word, [id], None, T0) == many
        assert sizes == ([3, 3, 2] if many else [0, 0, 0]), word
        spool.sound()
    spool.engine.purge(spool.engine.retention(), 2, T0 + 400 * DAY)
    spool.sound()


@pytest.mark.parametrize("trouble", [apsw.FullError, apsw.BusyError])
def test_a_change_that_fails_half_way_says_so_and_is_whole_when_it_is_said_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, trouble: type[apsw.Error]
) -> None:
    monkeypatch.setattr(changes, "MOST", 3)
    id = spool.send(*(f"{n}@example.org" for n in range(8)))
    real = changes.change
    done = 0

    def broken(connection: apsw.Connection, **asked: object) -> int:
        nonlocal done
        done += 1
        if done == 2:
            raise trouble
        return real(connection, **asked)  # type: ignore[arg-type]

    monkeypatch.setattr(changes, "change", broken)
    synced: list[int] = []
    durable = SQLiteClientStore._durable

    def counted(store: SQLiteClientStore, what: str, key: str) -> None:
        synced.append(done)
        durable(store, what, key)

    monkeypatch.setattr(SQLiteClientStore, "_durable", counted)
    with pytest.raises(OutcomeUnknown, match="hold: 3 recipients were changed, and then") as told:
        change(spool.client, "hold", [id], None, T0)
    assert told.value.key == id
    assert synced == [2], "what was changed before it failed is on disk before it is told"
    spool.sound()
    assert change(spool.client, "hold", [id], None, T0) == 5, "three were held before"
    assert set(spool.status(id).values()) == {"held"}


def test_a_worker_asks_for_the_lock_as_before_after_a_checkpoint(
    spool: Spool, other: apsw.Connection
) -> None:
    spool.send("a@example.org")
    spool.engine.checkpoint()
    worker = spool.engine
    asked: list[float] = []

    def pause(seconds: float) -> None:
        asked.append(seconds)
        if not other.get_autocommit():
            other.execute("COMMIT")

    worker._connection.patience._pause = pause  # type: ignore[attr-defined]
    other.execute("BEGIN IMMEDIATE")
    worker.tell("some", 1)
    assert asked, "SQLite's own waits would have asked without it"


@pytest.mark.parametrize("forked", [True, False])
def test_a_change_does_not_go_on_by_its_numbers_in_another_file(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: bool
) -> None:
    """A copy is put in the spool's place between two pieces, also while a fork closed the writer.

    There other recipients have those numbers.
    """
    monkeypatch.setattr(changes, "MOST", 3)
    id = spool.send(*(f"{n}@example.org" for n in range(8)))
    client = spool.client
    assert isinstance(client, SQLiteClientStore)
    other = SQLiteClientStore(str(tmp_path / "other.db"))
    innocent = submission(*(f"innocent{n}@example.org" for n in range(8)))
    other.enqueue([innocent], T0)
    other.close()

    def between(seconds: float) -> None:
        if forked:
            client.let_go()
        for ending in ("", "-wal", "-shm"):
            os.replace(f"{tmp_path}/other.db{ending}", f"{client.path}{ending}")

    with monkeypatch.context() as patch:
        patch.setattr("mailstrom.storage.sqlite.client.time.sleep", between)
        with pytest.raises(SpoolReplaced):
            change(client, "hold", [id], None, T0)
    assert set(spool.status(innocent.id).values()) == {"queued"}
    assert change(client, "hold", [innocent.id], None, T0) == 8


def test_a_fork_between_the_pieces_of_a_change_is_no_replacement(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST", 3)
    id = spool.send(*(f"{n}@example.org" for n in range(8)))
    client = spool.client
    assert isinstance(client, SQLiteClientStore)
    monkeypatch.setattr(
        "mailstrom.storage.sqlite.client.time.sleep", lambda seconds: client.let_go()
    )
    assert change(client, "retry", [id], None, T0) == 8
