"""Reports in a SQLite spool: deaths at every statement, damage, copies, salvage, older spools."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom import Mailstrom
from mailstrom.errors import SpoolFull
from mailstrom.storage.base import Lane, Refusal, Work
from mailstrom.storage.client import CHUNK_BYTES, Notice, Submission
from mailstrom.storage.reporting import ReportFacts
from mailstrom.storage.sqlite import contents, inserting, reports, schema
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.examining import examine
from mailstrom.storage.sqlite.salvage import salvage
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.types import Reason, RouteResult
from tests.storage.contract_reports import DELAYS, FAR, SMTP, Reports, kept, reported, settled, told
from tests.storage.files import SQLiteStores
from tests.storage.spool import BODY, DAY, HOUR, T0, Spool, settlement, submission


@pytest.fixture
def spool(stores: SQLiteStores) -> Spool:
    return Spool(stores)


def path_of(spool: Spool) -> str:
    return str(spool.client.path)  # type: ignore[attr-defined]


def child(spool: Spool, last: int, what: str, pairs: list[tuple[int, int]], now: int) -> int:
    """How many statements a process runs for this, or 0: it was killed at one of them."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            seen = _work(path_of(spool), last, what, pairs, now)
            os.write(writing, str(seen).encode())
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert killed != bool(told)
    return int(told or b"0")


def _work(path: str, last: int, what: str, pairs: list[tuple[int, int]], now: int) -> int:
    store = SQLiteWorkerStore(path, sync=lambda fd: None)
    store.use_reporter(Reports())
    seen = 0

    def step(*_: Any) -> bool:
        nonlocal seen
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    store._connection.opened().exec_trace = step
    if what == "settle":
        failed = [settlement(lane, recipient, "failed") for lane, recipient in pairs]
        store.exchange(Work(settlements=failed), now)
    else:
        store.report(DELAYS, 100, now)
    return seen


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many statements each verb is, so that no later one is left out."""
    found = {}
    for what in ("settle", "report"):
        stores = SQLiteStores(tmp_path_factory.mktemp(what) / "spool.db")
        with stores.opened:
            spool = Spool(stores)
            _, lane, rows = spool.sending("a@example.org", "b@example.org", **SMTP)
            now = T0 + 200 if what == "settle" else T0 + 4 * HOUR
            pairs = [(lane.token, row.recipient) for row in rows]
            found[what] = child(spool, 0, what, pairs, now)
    return found


@pytest.mark.parametrize("step", range(1, 36))
def test_killed_at_any_statement_a_failure_is_told_once(
    spool: Spool, statements: dict[str, int], step: int
) -> None:
    assert 15 < statements["settle"] <= 34
    id, lane, rows = spool.sending("a@example.org", "b@example.org", **SMTP)
    pairs = [(lane.token, row.recipient) for row in rows]
    lived = child(spool, step, "settle", pairs, T0 + 200)
    assert lived < step
    spool.sound()
    states = set(spool.status(id).values())
    assert states in ({"sending"}, {"failed"})
    if states == {"failed"}:
        assert len(kept(spool)) == 1
    else:
        assert (kept(spool), told(spool), spool.rows("SELECT 1 FROM owed")) == ([], [], [])
    again = Reports(spool)
    spool.exchange(settlements=[settled(lane, row, "failed") for row in rows], now=T0 + 300)
    assert len(again.facts) == (states == {"sending"})
    assert spool.engine.report(DELAYS, 100, T0 + 300) == 0
    assert len(kept(spool)) == len(told(spool)) == 1
    spool.sound()


@pytest.mark.parametrize("step", range(1, 36))
def test_killed_at_any_statement_a_delay_is_told_once(
    spool: Spool, statements: dict[str, int], step: int
) -> None:
    assert 10 < statements["report"] <= 34
    id = spool.send("a@example.org", "b@example.org", **SMTP)
    lived = child(spool, step, "report", [], T0 + 4 * HOUR)
    assert lived < step
    spool.sound()
    Reports(spool)
    spool.engine.report(DELAYS, 100, T0 + 4 * HOUR + reports.BEGUN_MS)
    assert len(kept(spool)) == len(told(spool)) == 1
    assert set(reported(spool, id).values()) == {"delayed"}
    spool.sound()


# --- a reporter that does not come back -------------------------------------------------------


class Killing(Reports):
    """Kills its process over mail for ``victim@``; the plainest report of it is made, or not."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always

    def __call__(self, facts: ReportFacts, now_ms: int) -> Submission | None:
        met = any(one.address.startswith("victim@") for one in facts.recipients)
        if met and (self.always or facts.content):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(facts, now_ms)


def lives(spool: Spool, *, always: bool, work: Callable[[SQLiteWorkerStore], object]) -> bool:
    """Whether a process whose reporter kills it at the victim's report comes through this."""
    pid = os.fork()
    if pid == 0:
        try:
            store = SQLiteWorkerStore(path_of(spool), sync=lambda fd: None)
            store.use_reporter(Killing(always=always))
            work(store)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


def sent(spool: Spool, now: int) -> tuple[Lane, Callable[[SQLiteWorkerStore], object]]:
    """Claim and open what is due; returns the lane, and who settles all of it as failed."""
    if spool.rows("SELECT 1 FROM recipients WHERE site IS NULL"):
        spool.route(now=now)
    lane = spool.lane(now=now)
    rows = spool.claim(lane, now=now)
    spool.open(lane, rows)
    failed = [settlement(lane.token, row.recipient, "failed") for row in rows]
    return lane, lambda store: store.exchange(Work(settlements=failed), now)


@pytest.mark.parametrize("always", [False, True], ids=["a plain one can be made", "none can"])
@pytest.mark.parametrize("way", ["settled", "routed", "expired", "left", "delayed"])
def test_a_reporter_that_kills_its_process_is_not_asked_for_ever(
    spool: Spool, way: str, always: bool
) -> None:
    expires = T0 + 10 if way == "expired" else T0 + 30 * DAY
    victim = spool.send("victim@example.org", expires_ms=expires, **SMTP)
    other = spool.send("other@example.org", expires_ms=expires, **SMTP)
    now, deaths, delays = T0 + 100, 0, ()
    if way == "settled":
        lane, settle = sent(spool, now)
        assert not lives(spool, always=always, work=settle)
        assert set(spool.status(victim).values()) == {"sending"}
        spool.engine.release([lane.token], now)
        now += HOUR // 2
        _, settle = sent(spool, now)
        assert lives(spool, always=always, work=settle), "the sweep begins it, and says so first"
    elif way == "routed":
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "accepts no mail")
        answer = spool.answer("example.org", result=RouteResult.NULL_MX, refusal=refusal)
        assert len(spool.engine.due_domains(spool.worker, 9, now)) == 1
        work = partial(
            SQLiteWorkerStore.put_routes, worker=spool.worker, answers=[answer], now_ms=now
        )
        assert not lives(spool, always=always, work=work)
    elif way == "expired":
        assert not lives(spool, always=always, work=lambda store: store.expire(100, now))
    elif way == "left":
        _, settle = sent(spool, now)
        settle(spool.engine)  # which has no reporter
    else:
        delays = (DAY,)
        now += DAY
    if way != "delayed":
        assert set(spool.status(victim).values()) == {"failed"}, "what was true before stands"
    for _ in range(20):
        now += 7 * HOUR
        work = partial(SQLiteWorkerStore.report, delays_ms=delays, limit=9, now_ms=now)
        deaths += not lives(spool, always=always, work=work)
    assert deaths == 5 - (way in ("settled", "routed", "expired")) if always else deaths <= 2
    kind = "delayed" if way == "delayed" else "failed"
    assert reported(spool, other) == {"other@example.org": kind}
    assert reported(spool, victim) == {"victim@example.org": "none" if always else kind}
    assert [one["given_up"] for one in told(spool, "message.unreported")] == [True] * always
    spool.sound()


# --- what cannot be read or written -----------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE content SET data = CAST(replace(data, 'body', 'evil') AS BLOB)",
        "UPDATE content SET digest = zeroblob(16)",
        "DELETE FROM content",
        "UPDATE message SET message_id = '<other@example.com>'",
        "UPDATE message SET size = size + 1",
        "UPDATE message SET envid = 'other'",
    ],
)
@pytest.mark.parametrize("ret", ["full", "hdrs"])
def test_of_a_damaged_original_nothing_returns(
    spool: Spool, stores: SQLiteStores, damage: str, ret: str
) -> None:
    found = Reports(spool)
    id, lane, rows = spool.sending("a@example.org", ret=ret, envid="E", **SMTP)
    assert stores.tamper(damage) == 1
    assert spool.settle(lane, rows[0], "failed")
    assert [facts.content for facts in found.facts] == [b""]
    assert reported(spool, id) == {"a@example.org": "failed"}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE message SET sender = 'stranger@example.com'",
        "UPDATE recipient SET orcpt = 'rfc822;stranger@example.com'",
        "UPDATE recipient SET address = 'stranger@example.org'",
    ],
)
def test_of_a_damaged_envelope_nobody_is_told(
    spool: Spool, stores: SQLiteStores, damage: str
) -> None:
    found = Reports(spool)
    id, lane, rows = spool.sending("a@example.org", **SMTP)
    assert stores.tamper(damage) == 1
    assert spool.settle(lane, rows[0], "failed")
    assert (found.facts, kept(spool)) == ([], [])
    assert set(reported(spool, id).values()) == {"none"}
    (detail,) = told(spool, "message.unreported")
    assert (detail["error"], detail["given_up"]) == ("the row of a recipient is damaged", True)
    assert spool.engine.report((), 100, FAR) == 0


def test_content_that_names_another_message_returns_to_nobody(
    spool: Spool, stores: SQLiteStores
) -> None:
    secret = spool.send("x@elsewhere.example", content=b"Secret: 1\r\n\r\n" + b"s" * CHUNK_BYTES)
    found = Reports(spool)
    long = b"Subject: mine\r\n\r\n" + b"m" * CHUNK_BYTES
    _, lane, rows = spool.sending("a@example.org", content=long, ret="full", **SMTP)
    assert stores.tamper(
        "UPDATE message SET content = (SELECT content FROM message WHERE id = ?)"
        " WHERE id <> ? AND content IS NOT NULL",
        secret,
        secret,
    )
    spool.settle(lane, rows[0], "failed")
    assert [facts.content for facts in found.facts] == [b""]


def raising(error: Exception) -> Any:
    def step(*_: Any) -> None:
        raise error

    return step


@pytest.mark.parametrize(
    "error", [apsw.FullError("full"), apsw.IOError("io"), apsw.CorruptError("corrupt")], ids=repr
)
@pytest.mark.parametrize(
    ("module", "name"),
    [(inserting, "step"), (contents, "original"), (reports, "_facts"), (reports, "_paid")],
    ids=["insert", "original", "facts", "paid"],
)
def test_what_the_spool_cannot_do_for_a_report_settles_all_the_same_and_is_no_try(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: Exception
) -> None:
    Reports(spool)
    id, lane, rows = spool.sending("a@example.org", **SMTP)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, raising(error))
        assert spool.settle(lane, rows[0], "failed")
    assert spool.status(id) == {"a@example.org": "failed"}
    (detail,) = told(spool, "message.unreported")
    assert (detail["tries"], detail["given_up"]) == (0, False)
    spool.sound()
    assert spool.engine.report((), 100, T0 + 200) == 0, "not at once"
    assert spool.engine.report((), 100, T0 + HOUR) == 1
    assert len(kept(spool)) == 1
    spool.sound()


def test_a_full_disk_that_takes_the_whole_step_back_is_told_and_settles_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite may take back the transaction, not the statement alone."""
    Reports(spool)
    id, lane, rows = spool.sending("a@example.org", **SMTP)

    def full(connection: apsw.Connection, *_: Any) -> None:
        connection.execute("ROLLBACK")
        raise apsw.FullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(inserting, "step", full)
        with pytest.raises(SpoolFull):
            spool.settle(lane, rows[0], "failed")
    assert spool.status(id) == {"a@example.org": "sending"}
    assert spool.settle(lane, rows[0], "failed")
    assert len(kept(spool)) == len(told(spool)) == 1
    spool.sound()


# --- copies, salvage, older spools ------------------------------------------------------------


def test_a_copy_tells_nobody_before_it_is_adopted(spool: Spool, tmp_path: Path) -> None:
    id, lane, rows = spool.sending("a@example.org", **SMTP)
    spool.settle(lane, rows[0], "failed")
    late = spool.send("b@b.example", **SMTP)
    copy = tmp_path / "copy.db"
    spool.client.backup(str(copy), T0 + 300)
    stores = SQLiteStores(copy)
    with stores.opened:
        client, engine, found = stores.client(), stores.worker(), Reports()
        engine.use_reporter(found)
        assert engine.report(DELAYS, 100, T0 + 2 * HOUR) == 0
        assert engine.report(DELAYS, 100, T0 + 2 * DAY) == 0
        assert found.facts == []
        assert client.adopt(T0 + 2 * DAY)
        assert engine.report(DELAYS, 100, T0 + 2 * DAY) == 1
        assert [facts.id for facts in found.facts] == [id], "time in the copy is no delay"
        assert engine.report(DELAYS, 100, T0 + 2 * DAY + 4 * HOUR) > 0
        assert [facts.id for facts in found.facts] == [id, late]
        assert client.check() == []


def test_salvage_keeps_what_is_owed_and_what_was_asked(spool: Spool, tmp_path: Path) -> None:
    notices = (Notice("failure,delay", "rfc822;o@x.example"),)
    waits = spool.send(
        "w@w.example", notices=notices, ret="full", envid="E", client={"a": 1}, **SMTP
    )
    first, lane, rows = spool.sending("a@example.org", **SMTP)
    reporting = Reports(spool)
    spool.settle(lane, rows[0], "failed")
    assert len(reporting.facts) == 1
    spool.engine.use_reporter(None)
    spool.engine.release([lane.token], T0 + 300)
    second, lane, rows = spool.sending("b@example.org", **SMTP)
    spool.settle(lane, rows[0], "failed")
    path = path_of(spool)
    spool.stores.opened.close()  # type: ignore[attr-defined]
    target = tmp_path / "new.db"
    done = salvage(path, str(target), T0 + 1_000)
    assert done.damaged == []
    stores = SQLiteStores(target)
    with stores.opened:
        client, engine, found = stores.client(), stores.worker(), Reports()
        assert client.check() == []
        assert client.adopt(T0 + 1_000)
        engine.use_reporter(found)
        assert engine.report((), 100, T0 + 1_000) == 1
        assert [facts.id for facts in found.facts] == [second]
        of_message = "SELECT origin, client, ret, envid FROM messages WHERE id = ?"
        assert client.query(of_message, (waits,), 5) == [("smtp", '{"a": 1}', "full", "E")]
        rows_of = "SELECT notify, orcpt, reported FROM recipients WHERE message_id = ?"
        assert client.query(rows_of, (waits,), 5) == [("failure,delay", "rfc822;o@x.example", None)]
        assert client.query(rows_of, (first,), 5) == [(None, None, "failed")]
        engine.report(DELAYS, 100, T0 + 4 * HOUR + 1_000)
        assert [facts.id for facts in found.facts] == [second, waits]
        assert client.check() == []


@pytest.fixture
def of_6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """A spool of schema 6 with two messages, one of several recipients, and their ids."""
    path = str(tmp_path / "older.db")
    one, two = submission("a@example.org", "b@example.org"), submission(content=b"x" * 600_000)
    with monkeypatch.context() as patch:
        kept = {number: sql for number, sql in schema.migrations().items() if number <= 6}
        patch.setattr(schema, "migrations", lambda: kept)
        patch.setattr(schema, "VERSION", 6)
        named, _, values = STATEMENTS["enqueue"].partition(", origin")
        then = f"{named}{values[values.index(')') :]}"
        columns = ", ".join(f"column{number}" for number in range(1, 25))
        patch.setitem(
            STATEMENTS, "enqueue", then.replace("SELECT * FROM", f"SELECT {columns} FROM")
        )
        store = SQLiteClientStore(path, sync=lambda fd: None)
        assert store.enqueue([one, two], T0) == [one.id, two.id]
        store.close()
    return path, one.id, two.id


def test_a_spool_of_schema_6_is_migrated_and_owes_nothing(of_6: tuple[str, str, str]) -> None:
    path, one, two = of_6
    stores = SQLiteStores(Path(path))
    with stores.opened:
        spool = Spool(stores)
        assert spool.status(one) == {"a@example.org": "queued", "b@example.org": "queued"}
        assert spool.client.content(two) == b"x" * 600_000
        spool.sound()
        found = Reports(spool)
        spool.route()
        lane = spool.lane()
        rows = spool.claim(lane)
        assert [row.damaged for row in rows] == [False] * 3
        spool.open(lane, rows)
        for row in rows:
            assert spool.settle(lane, row, "failed")
        assert spool.engine.report(DELAYS, 100, FAR) == 0
        assert found.facts == []
        assert set(spool.rows("SELECT origin, ret FROM messages")) == {("library", None)}
        assert reported(spool, one) == {"a@example.org": None, "b@example.org": None}
        spool.sound()


def test_rows_of_schema_6_are_salvaged(of_6: tuple[str, str, str], tmp_path: Path) -> None:
    path, one, two = of_6
    SQLiteClientStore(path, sync=lambda fd: None).close()  # migrated; its rows are as they were
    target = tmp_path / "new.db"
    done = salvage(path, str(target), T0 + 1_000)
    assert (done.messages, done.recipients, done.damaged) == (2, 3, [])
    with Mailstrom(target) as ms:
        assert ms.check() == []
        assert ms.raw(two) == b"x" * 600_000
        assert len(ms.status(one).recipients) == 2


def test_a_row_of_a_recipient_whose_label_is_damaged_is_not_sent(
    spool: Spool, stores: SQLiteStores
) -> None:
    spool.send("a@example.org", notices=(Notice("failure", "rfc822;o@x"),), **SMTP)
    spool.send("b@example.org", ret="full", **SMTP)
    assert stores.tamper("UPDATE recipient SET orcpt = 'rfc822;evil@x' WHERE orcpt IS NOT NULL")
    assert stores.tamper("UPDATE message SET ret = 'hdrs' WHERE ret IS NOT NULL")
    assert len(spool.client.check()) == 2
    spool.route()
    assert [row.damaged for row in spool.claim(spool.lane())] == [True, True]


def test_check_finds_a_failure_that_nobody_will_be_told_of(
    spool: Spool, stores: SQLiteStores
) -> None:
    id, lane, rows = spool.sending("a@example.org", **SMTP)
    spool.settle(lane, rows[0], "failed")
    spool.sound()
    stores.tamper("UPDATE owed SET kind = 'relayed'")
    stores.tamper("INSERT INTO owed (message, recipient, kind) VALUES (99, 99, 'delayed')")
    found = spool.client.check()
    assert len(found) == 3, found
    assert all("is to be told" in text and "no mail is at stake" in text for text in found)
    assert any(id in text for text in found)


def test_the_library_pays_for_no_reports(stores: SQLiteStores, spool: Spool) -> None:
    spool.send(content=BODY)
    spool.send(content=BODY, **SMTP)
    assert spool.rows("SELECT wants FROM recipient ORDER BY seq") == [(None,), (3,)]
    plan = stores.plan(STATEMENTS["owed_due"], {"now_ms": T0, "most": 9})
    assert not any("SCAN owed" in step for step in plan)
    values = {"place": 0, "before_ms": T0, "most": 9}
    assert any(
        "message_delay" in step for step in stores.plan(STATEMENTS["delayed_messages"], values)
    )
    asked = {"thresholds": "[1,2]", "now_ms": T0}
    assert any("message_delay" in step for step in stores.plan(STATEMENTS["owed_any"], asked))


def test_a_report_that_could_not_be_made_is_seen_from_outside(spool: Spool) -> None:
    found = Reports(spool)
    _, lane, rows = spool.sending("a@example.org", **SMTP)
    contents = examine(path_of(spool), check_s=0).contents
    assert contents is not None
    assert (contents.unreported, contents.unreported_error) == (0, None)
    found.raising = ValueError("never")
    spool.settle(lane, rows[0], "failed")
    contents = examine(path_of(spool), check_s=0).contents
    assert contents is not None
    assert (contents.unreported, contents.unreported_error) == (1, "ValueError: never")


def test_two_engines_tell_once(spool: Spool) -> None:
    _, lane, rows = spool.sending("a@example.org", **SMTP)
    spool.settle(lane, rows[0], "failed")
    engines = [SQLiteWorkerStore(path_of(spool), sync=lambda fd: None) for _ in range(3)]
    found = Reports()
    for engine in engines:
        engine.use_reporter(found)
    made = [engine.report(DELAYS, 100, T0 + 300) for engine in engines]
    for engine in engines:
        engine.close()
    assert (made, len(found.facts), len(kept(spool))) == ([1, 0, 0], 1, 1)


def test_what_is_owed_is_found_by_an_index_and_in_its_order(spool: Spool) -> None:
    """A message may have a hundred thousand recipients, and each transaction asks."""
    connection = apsw.Connection(path_of(spool))
    text = Path(reports.__file__).parents[1].joinpath("sql/sqlite/reports.sql").read_text()
    names = re.findall(r"^-- name: (\w+)$", text, re.MULTILINE)
    assert "report_recipients" in names
    for name in names:
        values: Any = dict.fromkeys(re.findall(r":(\w+)", STATEMENTS[name]))
        plan = [
            row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {STATEMENTS[name]}", values)
        ]
        slow = [
            step
            for step in plan
            if re.match(r"SCAN (o|r|m|e|owed|message|recipient|event)\b", step)
        ]
        assert slow == [], (name, plan)
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan, (name, plan)
