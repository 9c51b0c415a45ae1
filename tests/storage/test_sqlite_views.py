"""The database is a public interface: views, their columns, their words, read by any SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailstrom.clock import wall_ms
from mailstrom.storage.sqlite.connection import connect
from mailstrom.types import RouteResult, iso_ms
from tests.storage.files import SQLiteStores
from tests.storage.spool import HOUR, T0, Spool, session_row
from tests.support.debian import sqlite3_readonly

# A star stands for two columns, _ms and _at.
PUBLIC = {
    "messages": "id status sender subject size stream priority message_id idempotency_key tags"
    " metadata created_* send_* expires_* finished_*",
    "recipients": "message_id address domain site provider status reason attempts in_doubt"
    " next_attempt_* last_attempt_* finished_* mx reply_code enhanced_code reply_text tls",
    "attempts": "id message_id recipient number session_id worker started_* ended_* stage host"
    " address reply_code enhanced_code reply_text verdict reason in_doubt",
    "sessions": "id worker site host address source started_* ended_* messages ehlo tls_wanted"
    " tls_reached tls_version tls_cipher tls_peer tls_verified end_cause",
    "events": "id at_* type message_id recipient detail",
    "destinations": "site provider hosts domains queued deferred oldest_due_* lanes lanes_limit"
    " suspended_until_* suspended_by reason last_reply pipelining pipelining_until_* chunking",
    "queue_counts": "status recipients messages",
    "domains": "name site result hosts resolved_* expires_* error",
    "workers": "id kind pid host state started_* heartbeat_* sessions restarts",
    "hourly_stats": "hour_* stream domain status reason recipients bytes ms_sum",
    "suppressions": "address",
    "tags": "tag message_id",
    "schema_info": "version view column type description",
}


def columns(view: str) -> list[str]:
    """The promised columns of a view, in their order."""
    return [
        one
        for name in PUBLIC[view].split()
        for one in ([name[:-1] + "ms", name[:-1] + "at"] if name.endswith("*") else [name])
    ]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield Spool(stores)


def busy(spool: Spool) -> str:
    """Something in every view that this version fills; returns the file's path."""
    _, lane, rows = spool.sending("a@example.org", "b@example.org", tags=("t",))
    spool.exchange(sessions=[session_row("s", lane)])
    spool.settle(lane, rows[0], "delivered")
    spool.settle(lane, rows[1], "deferred")
    return str(spool.client.path)  # type: ignore[attr-defined]


@pytest.mark.parametrize("view", PUBLIC)
def test_every_promised_column_is_there_in_the_promised_order(spool: Spool, view: str) -> None:
    connection = connect(busy(spool))
    found = [row[0] for row in connection.execute(f"SELECT name FROM pragma_table_info('{view}')")]
    connection.close()
    assert [name for name in found if name in columns(view)] == columns(view)


def test_schema_info_describes_every_column_of_every_view_and_nothing_else(spool: Spool) -> None:
    connection = connect(busy(spool))
    real = {
        (view, row[0])
        for view in PUBLIC
        for row in connection.execute(f"SELECT name FROM pragma_table_info('{view}')")
    }
    described = connection.execute("SELECT view, column, type, description FROM schema_info")
    told = {(view, column): (kind, text) for view, column, kind, text in described}
    versions = {row[0] for row in connection.execute("SELECT version FROM schema_info")}
    connection.close()
    assert set(told) == real
    assert all(text and not text.endswith(".") for _, text in told.values())
    for (_, column), (kind, text) in told.items():
        assert (kind == "INTEGER") >= column.endswith("_ms")
        assert ("milliseconds" in text) == (column.endswith("_ms") or column == "ms_sum")
        assert ("ISO 8601" in text) == column.endswith("_at")
    assert versions == {2, 3, 6, 7}


def test_types_in_schema_info_are_those_of_the_values(spool: Spool) -> None:
    connection = connect(busy(spool))
    for view, column, kind in connection.execute(
        "SELECT view, column, type FROM schema_info"
    ).fetchall():
        found = {
            row[0] for row in connection.execute(f'SELECT DISTINCT typeof("{column}") FROM {view}')
        } - {"null"}
        assert found <= {"integer" if kind == "INTEGER" else "text"}, f"{view}.{column}"
        if kind == "JSON":
            valid = f'SELECT count(*) FROM {view} WHERE NOT json_valid("{column}")'
            assert connection.execute(valid).fetchall() == [(0,)]
    connection.close()


@pytest.mark.debian
def test_debians_sqlite3_reads_every_view_while_we_write(spool: Spool) -> None:
    path = busy(spool)
    writer = connect(path)
    writer.execute("BEGIN IMMEDIATE; UPDATE message SET subject = 'not yet'").fetchall()
    for view in PUBLIC:
        names = ", ".join(columns(view))
        rows = sqlite3_readonly(Path(path), f"SELECT {names} FROM {view}")
        assert len(rows) > 0 or view in {"suppressions"}, view
        assert "not yet" not in str(rows)
    writer.execute("COMMIT").fetchall()
    writer.close()
    assert sqlite3_readonly(Path(path), "SELECT subject FROM messages") == [{"subject": "not yet"}]


@pytest.mark.debian
def test_debians_sqlite3_reads_a_stopped_spool_and_leaves_it_alone(spool: Spool) -> None:
    path = busy(spool)
    spool.client.close()
    spool.engine.close()
    before = Path(f"{path}-wal").read_bytes()
    assert before
    rows = sqlite3_readonly(Path(path), "SELECT status, count(*) AS n FROM recipients GROUP BY 1")
    assert rows == [{"status": "deferred", "n": 1}, {"status": "delivered", "n": 1}]
    assert Path(f"{path}-wal").read_bytes() == before


# --- what the views say -------------------------------------------------------------------------


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 253_402_300_799_999))
def test_the_iso_text_is_the_integers_exactly(spool: Spool, ms: int) -> None:
    spool.engine.beat(spool.worker, state="ready", sessions=0, now_ms=ms)
    assert spool.rows("SELECT heartbeat_ms, heartbeat_at FROM workers") == [(ms, iso_ms(ms))]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("delivered", "delivered"),
        ("failed failed", "failed"),
        ("delivered failed", "partial"),
        ("delivered deferred", "deferred"),
        ("deferred sending held", "sending"),
        ("deferred queued held", "deferred"),
        ("queued held failed", "queued"),
        ("held delivered", "held"),
        ("held held", "held"),
    ],
)
def test_a_messages_word_follows_from_its_recipients(spool: Spool, words: str, status: str) -> None:
    names = [f"{word}{n}@example.org" for n, word in enumerate(words.split())]
    id, lane, rows = spool.sending(*names)
    for row in rows:
        word = row.address.partition("@")[0][:-1]
        if word != "sending":
            spool.settle(lane, row, word)
    assert spool.rows("SELECT status FROM messages") == [(status,)]
    assert spool.client.statuses([id])[id].status == status


def test_what_a_site_or_domain_says_is_shown_on_each_waiting_recipient(spool: Spool) -> None:
    now = wall_ms()
    spool.send("a@suspended.example", "b@unresolved.example")
    for due in spool.engine.due_domains(spool.worker, 9, T0):
        temporary = due.name.startswith("unresolved")
        result = RouteResult.TEMPORARY if temporary else RouteResult.MX
        answer = spool.answer(due.name, result=result, now=now, ttl=HOUR)
        spool.engine.put_routes(spool.worker, [answer], now)
    lane = spool.lane(now=now)
    spool.suspend(lane, now + HOUR, now=now)
    spool.engine.release([lane.token], now)
    rows = spool.rows("SELECT status, reason, next_attempt_ms, attempts, reply_text"
                      " FROM recipients ORDER BY address")  # fmt: skip
    assert rows == [
        ("deferred", "connect", now + HOUR, 0, "connection refused"),
        ("deferred", "dns", now + HOUR, 0, "no"),
    ]
    assert spool.rows("SELECT suspended_until_ms, suspended_by, reason FROM destinations") == [
        (now + HOUR, "worker 1", "connect")
    ]


@pytest.mark.parametrize(
    ("age", "shown"), [(30_000, ("queued", None, None)), (90_000, ("deferred", "dns", "no"))]
)
def test_routed_mail_is_shown_waiting_for_the_dns_once_its_route_is_too_old(
    spool: Spool, age: int, shown: tuple[str | None, ...]
) -> None:
    now = wall_ms()
    then = now - HOUR
    spool.send("a@example.org", created_ms=then, send_ms=then)
    spool.route(now=then, ttl=HOUR - age)
    assert spool.claim(spool.lane(now=now), now=now + HOUR) == [], "that asks for another look"
    spool.route(now=now + HOUR, result=RouteResult.TEMPORARY)
    assert spool.rows("SELECT status, reason, reply_text FROM recipients") == [shown]
    (due,) = spool.rows("SELECT next_attempt_ms FROM recipients")
    assert due == ((then,) if shown[1] is None else (now + 2 * HOUR,))
