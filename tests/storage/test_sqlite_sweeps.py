"""Passes over all sites and domains: piece by piece, and whole wherever they were cut off."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import SpoolBusy
from mailstrom.storage.sqlite import sweeps
from mailstrom.storage.sqlite.clocks import SLACK_MS
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


def cut_off(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, wall: int, true: int, *, after: int = 1
) -> None:
    """A look whose process ends behind so many pieces."""
    pieces = 0

    def ends(seconds: float) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == after:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("mailstrom.storage.sqlite.worker.time.sleep", ends)
        with pytest.raises(Cut):
            look(spool, wall, true)


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
    cut_off(spool, monkeypatch, T0 + 100 + amount, 100, after=after)
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
    cut_off(spool, monkeypatch, T0 + YEAR, 100)
    look(spool, T0 + YEAR - DAY, 200)
    # What was left of an hour is left still, give or take the time between the looks.
    left = {row[1] - (T0 + YEAR - DAY + HOUR) for row in other.execute(ROUTES)}
    assert all(abs(ms) <= 200 for ms in left)


def test_a_second_jump_holds_the_lock_for_no_more_than_a_piece_either(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(spool, monkeypatch, T0 + YEAR, 100)
    pieces: list[int] = []

    def counted(connection: apsw.Connection, name: str, values: Any) -> Any:
        if name in ("jump_sites", "jump_domains"):
            pieces[-1] += 1
        return run(connection, name, values)

    def begins(doing: str, step: Any) -> Any:
        pieces.append(0)
        return write(doing, step)

    run, write = sweeps.run, spool.engine._write  # type: ignore[attr-defined]
    monkeypatch.setattr(sweeps, "run", counted)
    monkeypatch.setattr(spool.engine, "_write", begins)
    look(spool, T0 + YEAR - DAY, 200)
    each = MANY // 5 + 1
    assert pieces == [2] * (each - 1 + each), "some sites and some domains in each transaction"


class Clock:
    """A wall clock that jumps, and what its jumps ask."""

    def __init__(self) -> None:
        self.now_ms = T0

    def jump(self, amount_ms: int) -> sweeps.Shift:
        self.now_ms += 61_000
        old_ms = self.now_ms
        self.now_ms += amount_ms
        return sweeps.Shift(self.now_ms, old_ms + SLACK_MS, amount_ms)

    def echo(self) -> sweeps.Shift:
        self.now_ms += 15_000
        return sweeps.Shift(self.now_ms, self.now_ms, 0)


def waiting(connection: apsw.Connection) -> list[list[Any]]:
    """What is to be worked off."""
    found = connection.execute("SELECT value FROM meta WHERE key = 'sweep_clock'").get
    return [] if found is None else list(json.loads(found))


def state(connection: apsw.Connection) -> list[Any]:
    """All that a jump may move."""
    return [connection.execute(each).fetchall() for each in (ROUTES + " ORDER BY name", SITES)]


def some_jumps(rng: random.Random, most: int) -> list[sweeps.Shift]:
    clock = Clock()
    amounts = (-YEAR, -DAY, -HOUR, -HOUR, HOUR, DAY, YEAR, 0)
    asked = [rng.choice(amounts) for _ in range(rng.randint(1, most))]
    return [clock.jump(amount) if amount else clock.echo() for amount in asked]


def mixed(connection: apsw.Connection) -> None:
    """Answers of all ages, some called off, some being waited for."""
    number = "CAST(substr(name, 2, 2) AS INTEGER)"
    connection.execute(
        f"""UPDATE domain SET resolved_ms = iif({number} % 5, {T0} - {number} % 7 * {DAY}, NULL),
               expires_ms = iif({number} % 6, {T0} + {number} % 4 * {HOUR}, 0),
               due_ms = iif({number} % 3, {T0} + {number} % 8 * {DAY}, NULL),
               retry_ms = {number} % 2 * ({T0} + {DAY})"""
    ).fetchall()
    connection.execute(
        f"UPDATE site SET used_ms = {T0} + seq % 9 * {DAY}, paused_ms = seq % 2 * {FAR}"
    ).fetchall()


@pytest.mark.parametrize("seed", range(20))
def test_jumps_that_wait_for_each_other_do_what_they_do_one_by_one(
    spool: Spool, other: apsw.Connection, seed: int
) -> None:
    rng = random.Random(seed)
    mixed(other)
    asked = some_jumps(rng, sweeps.MOST_ASKED)
    other.execute("BEGIN IMMEDIATE").fetchall()
    for one in asked:
        sweeps.begin_shift(other, one)
        while sweeps.shift(other):
            pass
    wanted = state(other)
    other.execute("ROLLBACK").fetchall()
    for one in asked:
        sweeps.begin_shift(other, one)
        for _ in range(rng.choice((0, 0, 1, 3, 7))):
            sweeps.shift(other)
    while sweeps.shift(other):
        pass
    assert state(other) == wanted
    assert waiting(other) == []


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_out_while_jumps_wait_is_not_good_for_longer(
    spool: Spool, other: apsw.Connection, seed: int
) -> None:
    """Its answer, by the clock of the last of them: what the others did has nothing to do with it.

    It may have to be looked up before its time.
    """
    rng = random.Random(seed)
    asked = some_jumps(rng, 4)
    for one in asked:
        sweeps.begin_shift(other, one)
        for _ in range(rng.choice((0, 1, 3))):
            sweeps.shift(other)
    now = asked[-1].at_ms + 100
    fresh = [f"d{n:02}.example" for n in rng.sample(range(MANY), 10)]
    for name in fresh:
        other.execute(
            "UPDATE domain SET resolved_ms = ?, expires_ms = ?, usable_ms = ? WHERE name = ?",
            (now, now + HOUR, now + HOUR, name),
        ).fetchall()
    while sweeps.shift(other):
        pass
    found = {row[0]: row[1] for row in other.execute(ROUTES)}
    assert max(found[name] for name in fresh) <= now + HOUR + SLACK_MS


def test_jumps_back_and_what_is_looked_at_again_after_them_wait_as_one(
    spool: Spool, other: apsw.Connection
) -> None:
    clock = Clock()
    for one in (clock.jump(-DAY), clock.echo(), clock.jump(-HOUR), clock.echo()):
        sweeps.begin_shift(other, one)
    assert [one[2] for one in waiting(other)] == [-DAY - HOUR]
    sweeps.shift(other)
    sweeps.begin_shift(other, clock.echo())
    assert [one[2] for one in waiting(other)] == [-DAY - HOUR, 0], "the first is begun"
    sweeps.begin_shift(other, clock.jump(DAY))
    sweeps.begin_shift(other, clock.echo())
    sweeps.begin_shift(other, clock.jump(-DAY))
    assert [one[2] for one in waiting(other)] == [-DAY - HOUR, 0, DAY, -DAY]


def test_where_too_many_jumps_would_wait_all_answers_are_called_off(
    spool: Spool, other: apsw.Connection
) -> None:
    clock = Clock()
    asked = [clock.jump(HOUR) for _ in range(sweeps.MOST_ASKED + 1)]
    sweeps.begin_shift(other, asked[0])
    sweeps.shift(other)
    for one in asked[1:-1]:
        sweeps.begin_shift(other, one)
    assert len(waiting(other)) == sweeps.MOST_ASKED
    other.execute("UPDATE site SET used_ms = ?", (FAR,)).fetchall()
    sweeps.begin_shift(other, asked[-1])
    assert len(waiting(other)) == 1
    pieces = 1
    while sweeps.shift(other):
        pieces += 1
    assert pieces == MANY // 5 + 1
    assert all(row[1] < T0 and row[2] < T0 for row in other.execute(ROUTES))
    assert other.execute("SELECT max(used_ms) FROM site").get <= clock.now_ms


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
        "", "x", "[", "{}", "[1]", "null", 7, 2.5, b"\x00\xff", "[[1, 2, 3, 4, 5]]", "[[1]]",
        '[[1, 2, 3, 4, "zz"]]', '[[1, 2, 3, "4", ""]]', "[[1e999, 2, 3, 4, \"\"]]", '["abcde"]',
        '[[1, 2, 3, 4, ""], 7]', '[1, 2, 3, 4, ""]',
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
    assert waiting(other) == [[*asked]]
    left = 0
    while sweeps.shift(other):
        left += 1
    assert left == (MANY - 6) // 5 + 1
