"""How the SQLite store looks things up: by which index, and never twice over the same rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
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
    """Stands in for a connection: runs nothing, keeps how SQLite would."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.plan: list[str] = []

    def execute(self, sql: str, values: dict[str, object]) -> list[object]:
        """Explain instead of doing."""
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
