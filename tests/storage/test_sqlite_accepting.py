"""What the schema allows, and what one INSERT into ``enqueue`` does besides its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import apsw
import pytest

from mailstrom.storage.sqlite import schema
from mailstrom.types import Judgement, Stage
from tests.storage.files import SQLiteStores
from tests.storage.spool import HOUR, T0, Spool, submission

WAITS, TAKEN, FINAL = (
    {"queued", "deferred"},
    {"claimed", "sending"},
    {"delivered", "failed", "cancelled"},
)
STATES = (*sorted(WAITS | TAKEN | FINAL), "held", "bounced", "", None)
LATER = T0 + HOUR


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield Spool(stores)


@pytest.fixture(scope="module")
def bare() -> Iterator[apsw.Connection]:
    """A spool's tables in memory."""
    connection = apsw.Connection(":memory:")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    schema.migrate(connection)
    yield connection
    connection.close()


def taken(connection: apsw.Connection, sql: str, values: tuple[object, ...]) -> bool:
    """Whether the schema takes this row; it is not kept."""
    connection.execute("SAVEPOINT row")
    try:
        connection.execute(sql, values)
    except apsw.ConstraintError:
        return False
    finally:
        connection.execute("ROLLBACK TO row; RELEASE row")
    return True


@pytest.mark.parametrize("state", STATES)
def test_a_recipient_waits_or_is_in_a_lane_or_is_held_or_is_final(
    bare: apsw.Connection, state: str | None
) -> None:
    known = WAITS | TAKEN | FINAL | {"held"}
    for due, lane, finished, reason in product((None, 1), (None, 1), (None, 1), (None, "dns")):
        possible = (
            state in known
            and (state in WAITS) == (due is not None)
            and (state in TAKEN) == (lane is not None)
            and (state in FINAL) == (finished is not None)
            and (state not in ("failed", "held") or reason is not None)
        )
        found = taken(
            bare,
            "INSERT INTO recipient (message, address, domain, checksum, priority, state, due_ms,"
            " lane, finished_ms, reason) VALUES (1, 'a@b', 'b', 0, 1, ?, ?, ?, ?, ?)",
            (state, due, lane, finished, reason),
        )
        assert found == possible, (due, lane, finished, reason)


@pytest.mark.parametrize("stage", [*map(str, Stage), "dots", "", None])
@pytest.mark.parametrize("verdict", [*map(str, Judgement), "bounced", "", None])
def test_an_attempt_has_a_stage_and_a_verdict(
    bare: apsw.Connection, stage: str | None, verdict: str | None
) -> None:
    found = taken(
        bare,
        "INSERT INTO attempt (message, recipient, number, started_ms, ended_ms, stage, verdict,"
        " in_doubt) VALUES (1, 1, 1, 1, 1, ?, ?, 0)",
        (stage, verdict),
    )
    assert found == (stage in set(map(str, Stage)) and verdict in set(map(str, Judgement)))


def test_no_check_of_a_row_written_for_each_message_builds_a_list(bare: apsw.Connection) -> None:
    tables = ("message", "content", "recipient", "attempt", "event")
    for name in tables:
        ((sql,),) = bare.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,))
        lists = re.findall(r"\bIN \(([^)]*)\)", sql)
        assert all(text.count(",") <= 1 for text in lists), (name, lists)
    assert bare.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_what_was_inserted_under_the_old_checks_is_sound_under_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = apsw.Connection(str(tmp_path / "old.db"))
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    with monkeypatch.context() as older:
        older.setattr(schema, "VERSION", 5)
        schema.migrate(connection)
    for number, state in enumerate(sorted(WAITS | TAKEN | FINAL | {"held"})):
        connection.execute(
            "INSERT INTO recipient (message, address, domain, checksum, priority, state, due_ms,"
            " lane, finished_ms, reason) VALUES (1, ?, 'b', 0, 1, ?, ?, ?, ?, 'dns')",
            (
                f"{number}@b",
                state,
                1 if state in WAITS else None,
                1 if state in TAKEN else None,
                1 if state in FINAL else None,
            ),
        )
    schema.migrate(connection)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA writable_schema").fetchall() == [(0,)]
    with pytest.raises(apsw.ConstraintError):
        connection.execute("UPDATE recipient SET due_ms = 1 WHERE state = 'held'")
    connection.close()


def test_a_domain_without_a_route_is_due_with_the_earliest_that_waits_for_it(spool: Spool) -> None:
    due = "SELECT name, due_ms FROM domain ORDER BY name"
    spool.client.enqueue([submission("a@one.example", send_ms=LATER)], T0)
    assert spool.rows(due) == [("one.example", LATER)]
    spool.client.enqueue([submission("b@one.example", send_ms=LATER + 1)], T0)
    assert spool.rows(due) == [("one.example", LATER)], "a later one changes nothing"
    spool.client.enqueue([submission("c@one.example")], T0)
    assert spool.rows(due) == [("one.example", T0)]
    spool.client.enqueue([submission("d@two.example", "e@one.example", "f@two.example")], T0)
    assert spool.rows(due) == [("one.example", T0), ("two.example", T0)]


@pytest.mark.parametrize("turned", [False, True])
def test_a_site_is_due_with_the_earliest_of_each_recipient(spool: Spool, turned: bool) -> None:
    domains = ("one.example", "two.example")
    for domain in domains:
        spool.send(f"w@{domain}")
        spool.route(domain, site=f"mx.{domain}")
    due = "SELECT DISTINCT next_due_ms FROM site"
    spool.stores.tamper("UPDATE site SET next_due_ms = ?", LATER + 1)  # type: ignore[attr-defined]
    both = [f"a@{domain}" for domain in (reversed(domains) if turned else domains)]
    spool.send(*both, send_ms=LATER)
    assert spool.rows("SELECT count(*) FROM recipient WHERE site IS NOT NULL") == [(4,)]
    assert spool.rows(due) == [(LATER,)]
    spool.send(f"b@{domains[turned]}", send_ms=LATER + 1)
    assert spool.rows(due) == [(LATER,)], "a later one changes nothing"
    spool.send(f"c@{domains[turned]}")
    assert sorted(spool.rows(due)) == [(T0,), (LATER,)], "and that of the other stays"
