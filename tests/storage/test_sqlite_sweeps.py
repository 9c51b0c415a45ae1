"""Passes over all sites and domains: piece by piece, and whole wherever they were cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import SpoolBusy
from mailstrom.storage.sqlite import sweeps
from mailstrom.storage.sqlite.connection import connect
from tests.storage.files import SQLiteStores
from tests.storage.spool import DAY, HOUR, T0, Spool

MANY = 23
YEAR = 365 * DAY
FAR = T0 + 9 * YEAR
ROUTES = "SELECT name, expires_ms, usable_ms, due_ms, retry_ms, resolved_ms FROM domain"
SITES = "SELECT next_due_ms, suspended_until_ms, paused_ms, used_ms FROM site ORDER BY seq"


class Cut(BaseException):
    """The process ends here."""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SQLiteStores]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield stores


@pytest.fixture
def spool(stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """Routes to many sites; five rows make a piece."""
    monkeypatch.setattr(sweeps, "MOST", 5)
    spool = Spool(stores)
    look(spool, T0, 0)
    for n in range(MANY):
        spool.send(f"a@d{n:02}.example")
    due = spool.engine.due_domains(spool.worker, MANY, T0)
    spool.engine.put_routes(spool.worker, [spool.answer(one.name) for one in due], T0)
    return spool


@pytest.fixture
def other(spool: Spool) -> Iterator[apsw.Connection]:
    """A connection that waits for nobody."""
    connection = connect(spool.client.path, busy_ms=0)  # type: ignore[attr-defined]
    yield connection
    connection.close()


def look(spool: Spool, wall: int, true: int) -> int:
    """What the janitor does at each of its rounds."""
    return spool.engine.keep_clock(wall_ms=wall, monotonic_ms=true, boot="b", limit=1_000)


@pytest.mark.parametrize("amount", [YEAR, -YEAR])
def test_after_a_jump_others_write_between_its_pieces(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch, amount: int
) -> None:
    other.execute("UPDATE site SET used_ms = ?", (FAR,)).fetchall()
    pauses: list[int] = []

    def between(seconds: float) -> None:
        other.execute("BEGIN IMMEDIATE").fetchall()
        pauses.append(other.execute(f"SELECT count(*) FROM site WHERE used_ms = {FAR}").get)
        other.execute("ROLLBACK").fetchall()

    monkeypatch.setattr("mailstrom.storage.sqlite.worker.time.sleep", between)
    look(spool, T0 + 100 + amount, 100)
    assert pauses == [18, 13, 8, 3], "after each piece so many are left"
    assert other.execute("SELECT max(used_ms) FROM site").get == T0 + 100 + amount
    (left,) = {row[1] for row in other.execute(ROUTES)}
    assert left == T0 + HOUR + amount, "each is as long good as it was, moved once"
    assert other.execute("SELECT count(*) FROM meta WHERE key GLOB 'sweep_*'").get == 0
    assert look(spool, T0 + 100 + amount, 100) == 0


def test_another_routing_policy_expires_routes_piece_by_piece(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = "SELECT count(*) FROM domain WHERE expires_ms > 0"
    pauses: list[int] = []

    def between(seconds: float) -> None:
        other.execute("BEGIN IMMEDIATE").fetchall()
        pauses.append(other.execute(good).get)
        other.execute("ROLLBACK").fetchall()

    monkeypatch.setattr("mailstrom.storage.sqlite.worker.time.sleep", between)
    assert spool.engine.use_routes("another", T0)
    assert pauses == [18, 13, 8, 3]
    assert other.execute(good).get == 0
    assert spool.engine.use_routes("another", T0) is False
    assert pauses[4:] == [], "nothing is left of it"


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("amount", [YEAR, -YEAR])
def test_a_jump_that_was_cut_off_between_two_pieces_moves_each_row_once(
    spool: Spool,
    stores: SQLiteStores,
    other: apsw.Connection,
    monkeypatch: pytest.MonkeyPatch,
    amount: int,
    after: int,
) -> None:
    def ends(seconds: float) -> None:
        nonlocal after
        after -= 1
        if after == 0:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("mailstrom.storage.sqlite.worker.time.sleep", ends)
        with pytest.raises(Cut):
            look(spool, T0 + 100 + amount, 100)
    assert len({row[1] for row in other.execute(ROUTES)}) == 2, "some are moved, some are not"
    spool.engine.close()
    spool.engine = stores.worker()
    look(spool, T0 + 350 + amount, 350)
    assert {row[1] for row in other.execute(ROUTES)} == {T0 + HOUR + amount}
    spool.sound()


def test_a_policy_that_was_cut_off_between_two_pieces_is_ended_by_whoever_names_it_again(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(seconds: float) -> None:
        raise SpoolBusy("for too long")

    with monkeypatch.context() as patch:
        patch.setattr("mailstrom.storage.sqlite.worker.time.sleep", busy)
        with pytest.raises(SpoolBusy):
            spool.engine.use_routes("another", T0)
    second = spool.stores.worker()
    assert second.use_routes("another", T0) is False, "it is this one already"
    assert {row[1:3] for row in other.execute(ROUTES)} == {(0, 0)}


def test_a_second_jump_ends_what_the_first_has_left(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(seconds: float) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("mailstrom.storage.sqlite.worker.time.sleep", ends)
        with pytest.raises(Cut):
            look(spool, T0 + YEAR, 100)
    look(spool, T0 + YEAR - DAY, 200)
    # What was left of an hour is left still, give or take the time between the looks.
    left = {row[1] - (T0 + YEAR - DAY + HOUR) for row in other.execute(ROUTES)}
    assert all(abs(ms) <= 200 for ms in left)


def test_an_answer_by_the_new_clock_is_not_moved_ahead_with_the_old_ones(
    spool: Spool, other: apsw.Connection
) -> None:
    now = T0 + YEAR
    assert spool.engine.use_routes("another", T0)
    spool.send("b@new.example", created_ms=now, send_ms=now)
    due = [one.name for one in spool.engine.due_domains(spool.worker, MANY, now)]
    assert "new.example" in due
    spool.engine.put_routes(spool.worker, [spool.answer("new.example", now=now)], now)
    look(spool, now + 5, 5)
    ((expires, usable),) = other.execute(
        "SELECT expires_ms, usable_ms FROM domain WHERE name = 'new.example'"
    )
    assert (expires, usable) == (now + HOUR, now + HOUR)


def test_what_was_stamped_after_a_jump_by_the_old_clock_is_looked_at_in_pieces_too(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(spool, T0 - DAY, 100)
    other.execute("UPDATE domain SET due_ms = ?, retry_ms = ?", (T0, T0)).fetchall()
    other.execute("UPDATE site SET paused_ms = ?", (T0,)).fetchall()
    pauses: list[float] = []
    monkeypatch.setattr("mailstrom.storage.sqlite.worker.time.sleep", pauses.append)
    late = T0 - DAY + 20_000
    look(spool, late, 20_100)
    assert len(pauses) == MANY // 5
    assert {row[3:5] for row in other.execute(ROUTES)} == {(late, late)}
    assert {row[2] for row in other.execute(SITES)} == {late}


@pytest.mark.parametrize(
    "mark",
    [
        "", "x", "[", "{}", "[1]", "null", 7, 2.5, b"\x00\xff", "[1, 2, 3, 4, 5]",
        '[1, 2, 3, 4, "zz"]', '[1, 2, 3, "4", ""]', "[1e999, 2, 3, 4, \"\"]",
    ],
)  # fmt: skip
def test_a_mark_that_damage_made_unreadable_keeps_nobody_from_anything(
    spool: Spool, other: apsw.Connection, mark: Any
) -> None:
    for key in ("sweep_clock", "sweep_routes"):
        other.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (key, mark)).fetchall()
    before = other.execute(ROUTES).fetchall()
    look(spool, T0 + 100, 100)
    assert other.execute(ROUTES).fetchall() == before
    spool.engine.use_routes("another", T0)
    assert {row[1:3] for row in other.execute(ROUTES)} == {(0, 0)}
    assert other.execute("SELECT count(*) FROM meta WHERE key GLOB 'sweep_*'").get == 0


def test_a_domain_whose_name_is_no_text_stops_no_sweep(
    spool: Spool, other: apsw.Connection
) -> None:
    other.execute("PRAGMA ignore_check_constraints = 1").fetchall()
    other.execute(
        "INSERT INTO domain (name, expires_ms, usable_ms) VALUES (CAST(x'6430ff' AS TEXT), 5, 5)"
    ).fetchall()
    assert spool.engine.use_routes("another", T0)
    assert other.execute("SELECT count(*) FROM domain WHERE expires_ms > 0").get == 0
    look(spool, T0 - DAY, 100)
    assert other.execute("SELECT count(*) FROM meta WHERE key GLOB 'sweep_*'").get == 0


def test_a_mark_is_what_the_next_piece_needs(spool: Spool, other: apsw.Connection) -> None:
    asked = sweeps.Shift(T0, T0, 0, 3, b"d05.example".hex().upper())
    sweeps.begin_shift(other, asked)
    assert json.loads(other.execute("SELECT value FROM meta WHERE key = 'sweep_clock'").get) == [
        *asked
    ]
    left = 0
    while sweeps.shift(other):
        left += 1
    assert left == (MANY - 6) // 5 + 1
