"""How the SQLite store looks things up: by which index, and never twice over the same rows."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import apsw
import pytest

from mailstrom.storage.client import Selection
from mailstrom.storage.sqlite import asking, finding
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.types import Change
from tests.storage.contract_finding import FindingContract
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool, change


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield Spool(stores)


class Planner:
    """Stands in for a connection: runs nothing, keeps how SQLite would; a walk has a beginning."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.plan: list[str] = []

    def execute(self, sql: str, values: dict[str, object]) -> Iterable[object]:
        """Explain instead of doing."""
        if sql == STATEMENTS["next_recipient"]:
            return self.connection.execute("SELECT NULL" if self.plan else "SELECT 1")
        rows = self.connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
        self.plan = [str(row[3]) for row in rows]
        return []


@pytest.fixture
def planner(spool: Spool) -> Iterator[Planner]:
    connection = connect(spool.client.path)  # type: ignore[attr-defined]
    yield Planner(connection)
    connection.close()


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        (Selection(ids=("a", "b")), "SEARCH m USING COVERING INDEX .*id=[?]"),
        (Selection(tags=("a", "b")), "SEARCH tag USING PRIMARY KEY .*tag=[?]"),
        (Selection(statuses=("held",)), "recipient_held"),
        (Selection(recipients=("a@example.org",)), "message=[?] AND address=[?]"),
    ],
)
def test_find_seeks_where_a_field_is_selective(
    planner: Planner, selection: Selection, found: str
) -> None:
    finding.find(planner, selection, limit=9, after=None)  # type: ignore[arg-type]
    assert any(re.search(found, line) for line in planner.plan), planner.plan
    assert not [line for line in planner.plan if line.startswith(("SCAN m", "SCAN r "))]


def test_what_waits_is_found_by_its_index_however_much_of_it_there_is_and_has_ended_since(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "NEAR", 4)
    monkeypatch.setattr(finding, "FEW", 8)
    ids = [spool.send(f"r{number}@example.org") for number in range(60)]
    change(spool.client, "cancel", ids[30:], None, T0)
    waiting = Selection(statuses=("queued", "sending", "deferred", "held"))
    asked: list[tuple[str, object]] = []
    connection = connect(spool.client.path)  # type: ignore[attr-defined]

    def seen(_: object, sql: str, values: object) -> bool:
        asked.append((sql, values))
        return True

    connection.exec_trace = seen
    found: list[str] = []
    while page := finding.find(connection, waiting, limit=7, after=found[-1] if found else None):
        found += page
    assert found == ids[29::-1]
    connection.exec_trace = None
    newest, sought = 61, 0
    for sql, values in asked:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)  # type: ignore[arg-type]
        plan = [str(row[3]) for row in rows]
        if "FROM message INDEXED BY" in sql:
            assert plan[0] == "SCAN message USING INDEX message_expiry", plan
            sought += 1
        elif isinstance(values, dict) and "few" in values:
            assert "SEARCH m USING INTEGER PRIMARY KEY (rowid=?)" in plan, plan
        elif isinstance(values, dict) and "floor" in values:
            assert min(values["after"], newest) - values["floor"] <= finding.NEAR
    connection.close()
    assert sought > 3


@pytest.mark.parametrize(
    ("selection", "word", "found"),
    [
        (Selection(ids=("a",)), None, "SEARCH m USING COVERING INDEX .*id=[?]"),
        (Selection(tags=("a",)), Change.CANCEL, "SEARCH tag USING PRIMARY KEY .*tag=[?]"),
        (Selection(statuses=("held",)), None, "SEARCH r USING INDEX recipient_held .seq>[?]"),
        (Selection(), Change.RELEASE, "SEARCH r USING INDEX recipient_held .seq>[?]"),
        (Selection(), Change.RESOLVE_RETRY, "SEARCH r USING INDEX recipient_held .seq>[?]"),
        (Selection(), Change.CANCEL, "SEARCH r USING INTEGER PRIMARY KEY .rowid>[?]"),
    ],
)
def test_targets_seek_and_a_walk_goes_on_where_the_page_before_ended(
    planner: Planner, selection: Selection, word: Change | None, found: str
) -> None:
    finding.targets(
        planner,  # type: ignore[arg-type]
        selection,
        change=word,
        limit=9,
        after=5,
        now_ms=T0,
        boot=None,
    )
    assert any(re.search(found, line) for line in planner.plan), planner.plan
    walked = [line for line in planner.plan if "TEMP B-TREE FOR ORDER BY" in line]
    assert not walked or selection.ids, "only what was sought by id is sorted"


@pytest.mark.parametrize("name", ["waiting", *asking._OLDEST, "recent_completed"])
def test_counting_reads_no_final_recipients(planner: Planner, name: str) -> None:
    planner.execute(STATEMENTS[name], {"now_ms": T0, "after": 0, "most": 9})
    for line in planner.plan:
        assert not re.match(r"SCAN (recipient|r|message|m|event|e)( |$)(?!.*recipient_)", line)


def test_a_reader_of_rare_events_does_not_look_at_the_same_ones_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = asking.events

    def events(c: apsw.Connection, after: int, types: tuple[str, ...], limit: int) -> object:
        looked.append(after)
        return real(c, after, types, limit)

    monkeypatch.setattr(asking, "events", events)
    id = spool.send()
    last = spool.engine.last_event()
    for _ in range(3):
        assert spool.client.events(0, ("message.held",), 5) == []
    assert looked == [0, last, last]
    change(spool.client, "hold", [id], None, T0)
    (held,) = spool.client.events(0, ("message.held",), 5)
    assert spool.client.events(held.id, ("message.held",), 5) == []
    for number in range(200):
        spool.client.events(number, (f"type {number}",), 5)
    kept = spool.client._passed  # type: ignore[attr-defined]
    assert len(kept) <= 64, "what is remembered is bounded"


def test_the_revision_moves_when_its_connection_was_renewed_by_a_fork(spool: Spool) -> None:
    client = spool.client
    assert isinstance(client, SQLiteClientStore)
    seen = {client.revision()}
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        spool.send()
        seen.add(client.revision())
    assert len(seen) == 4


class TestBehindTheNewest(FindingContract):
    """What is asked is found as well where an index tells who may be meant, not a walk."""

    @pytest.fixture(autouse=True, params=[finding.FEW, 0])
    def deep(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is new; and with 0 whoever is meant is one of many."""
        monkeypatch.setattr(finding, "NEAR", 0)
        monkeypatch.setattr(asking, "NEAR", 0)
        monkeypatch.setattr(finding, "FEW", request.param)
        monkeypatch.setattr(finding, "DEARER", 1)


def test_a_walk_for_an_address_ends_its_snapshot_from_window_to_window(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [spool.send(f"{name}@example.org") for name in "axbxcxdxex"]
    wanted = [id for id, name in zip(ids, "axbxcxdxex", strict=True) if name == "x"]
    monkeypatch.setattr(finding, "FEW", 0)
    monkeypatch.setattr(finding, "WINDOW", 3)
    waiting = Selection(recipients=("x@example.org",), statuses=("queued",))
    open_before: list[bool] = []

    def told(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        open_before.append(cursor.connection.in_transaction)
        return True

    with spool.client._reader() as connection:  # type: ignore[attr-defined]
        connection.exec_trace = told
    found = spool.client.targets(waiting, T0, change=None, limit=9)
    assert [one.id for one in found] == wanted
    assert len(open_before) >= 8, "ten recipients are four windows, each with a look for its start"
    assert not any(open_before)
    pages = [found[0]]
    while page := spool.client.targets(waiting, T0, change=None, limit=1, after=pages[-1].place):
        pages += page
    assert pages == found
    two = spool.client.targets(waiting, T0, change=None, limit=2)
    assert [one.id for one in two] == wanted[:2]
    assert spool.client.targets(waiting, T0, change=None, limit=0) == []


def test_a_walk_is_interrupted_between_two_windows(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        spool.send(f"{number}@example.org")
    monkeypatch.setattr(finding, "FEW", 0)
    monkeypatch.setattr(finding, "WINDOW", 2)
    last = Selection(recipients=("9@example.org",), statuses=("queued",))
    windows: list[str] = []

    def told(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        if "json_each" in sql:
            windows.append(sql)
            if len(windows) == 2:
                signal.raise_signal(signal.SIGINT)
        return True

    with spool.client._reader() as connection:  # type: ignore[attr-defined]
        connection.exec_trace = told
    with pytest.raises(KeyboardInterrupt):
        spool.client.targets(last, T0, change=None, limit=9)
    assert len(windows) == 2
    assert len(spool.client.targets(last, T0, change=None, limit=9)) == 1


def test_waiting_ones_are_sought_by_address_where_finished_ones_are_many(spool: Spool) -> None:
    plans: list[str] = []

    def told(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        plans.append(sql)
        return True

    with spool.client._reader() as connection:  # type: ignore[attr-defined]
        connection.exec_trace = told
    waiting = Selection(recipients=("x@example.org",), statuses=("queued",))
    ids = [spool.send("x@example.org") for _ in range(8)]
    for finished, head in ((0, "targets_walk"), (6, "targets_unfinished")):
        for id in ids[:finished]:
            change(spool.client, "cancel", [id], None, T0)
        plans.clear()
        found = spool.client.targets(waiting, T0, change=None, limit=9)
        assert [one.id for one in found] == ids[finished:]
        assert any(sql.startswith(STATEMENTS[head]) for sql in plans), head
