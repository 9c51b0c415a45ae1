"""``why``: whom it is about, in which order, and that it stays short on a deep queue."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom import AsyncMailstrom, Cause, Mailstrom, Waiting
from mailstrom.client import reasons
from mailstrom.errors import InvalidAddress, MessageNotFound
from mailstrom.storage.client import Selection, Target
from mailstrom.storage.facts import ROOM_BYTES
from mailstrom.storage.sqlite import finding
from mailstrom.storage.sqlite.place import FilePlace
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.types import Change
from tests.storage.files import SQLiteStores
from tests.storage.spool import Spool
from tests.unit.cli.house import House

HEAD = b"From: s@example.org\r\n\r\nhi\r\n"
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["memory", "file"])
def ms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mailstrom]:
    store = "memory:" if request.param == "memory" else tmp_path / "spool.db"
    with Mailstrom(store) as ms:
        yield ms


def addresses(found: list[Waiting]) -> list[str]:
    return [one.address for one in found]


def test_of_a_message_what_is_not_final_comes_first(ms: Mailstrom) -> None:
    id = ms.send(HEAD, recipients=[f"{name}@x.test" for name in "abcd"])
    assert ms.cancel(id, recipient="b@x.test") == 1
    assert ms.hold(id, recipient="c@x.test") == 1
    found = ms.why(id)
    assert addresses(found) == ["a@x.test", "c@x.test", "d@x.test", "b@x.test"]
    assert [str(one.cause) for one in found] == [
        "no_worker", "held_by_user", "no_worker", "final_cancelled",
    ]  # fmt: skip
    assert addresses(ms.why(id, limit=1)) == ["a@x.test"]
    assert addresses(ms.why(id, limit=4)) == addresses(found)
    ms.cancel(id)
    assert {one.cause for one in ms.why(id)} == {Cause.FINAL_CANCELLED}


def test_of_an_address_what_waits_in_every_message(ms: Mailstrom) -> None:
    ids = [ms.send(HEAD, recipients=["b@bücher.test", f"x{n}@x.test"]) for n in range(3)]
    ms.cancel(ids[0])
    for written in ("b@bücher.test", "b@BÜCHER.test", "b@xn--bcher-kva.test"):
        assert [one.message_id for one in ms.why(written)] == ids[1:]
    assert [one.message_id for one in ms.why("b@bücher.test", limit=1)] == [ids[1]]
    assert ms.why("B@bücher.test") == [], "a local part is as it was given"
    assert ms.why("nobody@x.test") == []


def test_who_does_not_exist_is_named(ms: Mailstrom) -> None:
    for unknown in ("unknown", "", "ünknown", "\ud800"):
        with pytest.raises(MessageNotFound, match="no message"):
            ms.why(unknown)
    for none in ("@", "a b@x.test", "x.test@", "a@b@c.test"):
        with pytest.raises(InvalidAddress):
            ms.why(none)


def test_many_recipients_are_looked_at_in_pages(ms: Mailstrom) -> None:
    many = reasons.PAGE * 2 + 3
    id = ms.send(HEAD, recipients=[f"u{n}@x.test" for n in range(many)])
    found = ms.why(id, limit=many)
    assert addresses(found) == [f"u{n}@x.test" for n in range(many)]
    assert len({one.at for one in found}) <= 3
    assert len(ms.why(id)) == 100


def test_the_awaitable_client_says_the_same(ms: Mailstrom) -> None:
    id = ms.send(HEAD, recipients=["a@x.test"])

    async def ask() -> list[Waiting]:
        client = AsyncMailstrom(ms)
        return [*await client.why(id), *await client.why("a@x.test", limit=1)]

    found = asyncio.run(ask())
    assert [(one.message_id, one.cause) for one in found] == [(id, Cause.NO_WORKER)] * 2


def test_why_writes_nothing(tmp_path: Path) -> None:
    with Mailstrom(tmp_path / "spool.db") as ms:
        id = ms.send(HEAD, recipients=["a@x.test"])
        files = [tmp_path / "spool.db", tmp_path / "spool.db-wal"]
        before = [file.read_bytes() for file in files]
        assert ms.why(id)
        assert ms.why("a@x.test")
        assert [file.read_bytes() for file in files] == before


def test_a_full_disk_and_a_worker_that_is_gone_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker lives by its lock; what it would meet is asked of the place where results go."""
    with contextlib.closing(House(str(tmp_path / "spool.db"))) as house:
        id = house.send("due", "a@x.test")
        house.spool.route("x.test", now=house.now)
        with Mailstrom(house.stores.path) as ms:
            assert [one.cause for one in ms.why(id)] == [Cause.NO_WORKER]
            house.lives()
            assert [one.cause for one in ms.why(id)] == [Cause.NO_LANE]
            monkeypatch.setattr(FilePlace, "room_bytes", lambda *_: ROOM_BYTES - 1)
            assert [one.cause for one in ms.why(id)] == [Cause.DISK_LOW]
            house.beats(house.now - 60_000)
            assert [one.cause for one in ms.why(id)] == [Cause.WORKER_SILENT]
            house.lock.release()
            assert [one.cause for one in ms.why(id)] == [Cause.NO_WORKER]


SCANNED = re.compile(r"SCAN (j VIRTUAL|wanted$|chosen$|n$|CONSTANT ROW|\(subquery)")


@pytest.mark.parametrize("name", sorted(n for n in STATEMENTS if n.startswith("facts_")))
def test_facts_are_sought(tmp_path: Path, name: str) -> None:
    """Only lists of parameters, and what was found by them, are walked over."""
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        Spool(stores).send()
        values = dict.fromkeys(re.findall(r":([a-z_]+)", STATEMENTS[name]), 1)
        values |= dict.fromkeys({"targets", "sites", "recipients"} & values.keys(), "[]")
        plan = stores.plan(STATEMENTS[name], values)
        walks = [line for line in plan if line.startswith("SCAN") and not SCANNED.match(line)]
        assert walks == [], plan


@pytest.mark.parametrize("few", [finding.FEW, 0])
def test_waiting_ones_of_an_address_are_the_same_by_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Sought one by one where few messages are unfinished, else walked to."""
    monkeypatch.setattr(finding, "FEW", few)
    monkeypatch.setattr(finding, "DEARER", 1)
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        spool = Spool(stores)
        ids = [spool.send("x@a.test", "b@a.test", "y@a.test", "x@b.test") for _ in range(6)]
        client = spool.client
        client.change(Change.CANCEL, [Target(ids[0]), Target(ids[1], "x@a.test")], 1)
        meant = Selection(recipients=("x@a.test", "x@b.test"), statuses=reasons.UNFINISHED)
        found = client.targets(meant, 1, change=None, limit=100)
        assert [(one.id, one.address) for one in found] == [
            (ids[1], "x@b.test"),
            *((id, f"x@{name}.test") for id in ids[2:] for name in "ab"),
        ]
        assert client.targets(meant, 1, change=None, limit=2) == found[:2]
        assert client.targets(meant, 1, change=None, limit=9, after=found[3].place) == found[4:]


def test_the_page_tells_every_cause_in_its_order() -> None:
    page = (ROOT / "docs" / "howto" / "why.md").read_text()
    told = re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    assert told == [str(cause) for cause in Cause]
