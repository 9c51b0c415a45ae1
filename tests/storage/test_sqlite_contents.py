"""Whose content is purged: never another message's, whatever a damaged row says; and what stays."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import SpoolCorrupt
from mailstrom.storage.base import Retention
from mailstrom.storage.client import CHUNK_BYTES
from mailstrom.storage.sqlite import contents
from mailstrom.storage.sqlite.rows import fits, message_digest
from mailstrom.storage.sqlite.salvage import salvage
from mailstrom.storage.sqlite.sql import STATEMENTS
from tests.storage.files import SQLiteStores
from tests.storage.spool import BODY, DAY, T0, Spool

LONG = BODY + b"x" * (2 * CHUNK_BYTES)
KEEP = Retention(bodies_ms=DAY, attempts_ms=30 * DAY, events_ms=30 * DAY)


def ended(spool: Spool, content: bytes) -> str:
    """A message that is over, and whose body a purge deletes."""
    id, lane, (row,) = spool.sending("a@example.org", content=content)
    assert spool.settle(lane, row, "failed", now=T0)
    spool.engine.release([lane.token], T0)
    return id


def damage(stores: SQLiteStores, id: str, number: str) -> None:
    """Another number where the message's content is said to lie."""
    assert stores.tamper(f"UPDATE message SET content = {number} WHERE id = ?", id) == 1


def purge(spool: Spool) -> None:
    while spool.engine.purge(KEEP, 10, T0 + 2 * DAY):
        pass


def pieces(stores: SQLiteStores) -> int:
    found = stores.client().query("SELECT count(*) FROM content", (), 10)[0][0]
    assert isinstance(found, int)
    return found


NUMBERS = {
    "another's, staged": "(SELECT content FROM message WHERE id = 'long')",
    "another's own": "(SELECT seq FROM message WHERE id = 'short')",
    "being staged": "-77",
    "nobody's": "-99",
    "lost": "NULL",
    "beyond all numbers": "-(1 << 60)",
    "beyond all numbers the other way": "(1 << 60)",
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("content", [BODY, LONG], ids=["short", "long"])
def test_a_damaged_number_costs_nobody_elses_content_and_leaves_nothing(
    spool: Spool, stores: SQLiteStores, content: bytes, number: str
) -> None:
    bad = ended(spool, content)
    spool.send("b@example.net", id="long", content=LONG)
    spool.send("c@example.net", id="short", content=BODY)
    stores.tamper("INSERT INTO staged (seq, created_ms) VALUES (77, ?)", T0 + 2 * DAY)
    stores.tamper("INSERT INTO content SELECT -77 * 4096, data, digest FROM content LIMIT 1")
    damage(stores, bad, number)
    purge(spool)
    assert spool.client.content(bad) is None
    assert (spool.client.content("long"), spool.client.content("short")) == (LONG, BODY)
    assert pieces(stores) == 3 + 1 + 1, "long, short, and what a client stages now"
    stores.tamper("DELETE FROM sqlite_sequence WHERE name = 'staged'")
    stores.tamper("INSERT INTO sqlite_sequence VALUES ('staged', 77)")
    spool.sound()


def test_content_that_no_longer_fits_goes_with_its_message(
    spool: Spool, stores: SQLiteStores
) -> None:
    for sql in (
        "DELETE FROM content WHERE key & 4095 = 1",
        "UPDATE content SET digest = zeroblob(16)",
        "UPDATE message SET message_id = 'other'",
        "UPDATE message SET digest = NULL",
    ):
        ended(spool, LONG)
        assert stores.tamper(sql) > 0
        purge(spool)
        assert pieces(stores) == 0, sql
        spool.sound()


def test_what_cannot_be_proved_stays_is_told_and_a_salvage_leaves_it_out(
    spool: Spool, stores: SQLiteStores, tmp_path: Path
) -> None:
    bad = ended(spool, LONG)
    spool.send("b@example.net", id="long", content=LONG)
    stores.tamper("UPDATE message SET digest = NULL")  # as an older client stored them
    damage(stores, bad, NUMBERS["another's, staged"])
    purge(spool)
    assert spool.client.content("long") == LONG
    (told,) = spool.client.check()
    assert "belongs to no message and is not staged: it takes room and nothing else" in told
    assert f"store salvage {stores.path} NEW" in told
    stores.opened.close()
    target = str(tmp_path / "new.db")
    assert salvage(stores.path, target, T0 + 2 * DAY).damaged == []
    with SQLiteStores(Path(target)).opened:
        again = SQLiteStores(Path(target))
        assert again.client().check() == []
        assert again.client().content("long") == LONG
        again.opened.close()


def test_a_purge_of_sound_mail_asks_about_nobody_else(
    spool: Spool, stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = ("contents_shared", "orphaned_content", "seals", "set_content")
    for content, asked in ((BODY, 0), (LONG, 1)):
        ended(spool, content)
        with monkeypatch.context() as patch:
            for name in seldom[asked:]:
                patch.setitem(STATEMENTS, name, "no SQL at all")
            purge(spool)
        assert pieces(stores) == 0


def test_of_two_that_name_the_same_content_neither_takes_it_from_the_other(
    spool: Spool, stores: SQLiteStores
) -> None:
    """Their bytes are the same, so that no digest tells them apart."""
    first, second = ended(spool, LONG), ended(spool, LONG)
    damage(stores, first, f"(SELECT content FROM message WHERE id = '{second}')")
    later = "UPDATE message SET finished_ms = ? WHERE id = ?"
    assert stores.tamper(later, T0 + DAY + 1, second) == 1
    purge(spool)
    assert spool.client.content(second) == LONG
    assert pieces(stores) == 3
    spool.sound()
    while spool.engine.purge(KEEP, 10, T0 + 3 * DAY):
        pass
    assert pieces(stores) == 0, "also where the look is old: its own bytes prove themselves"
    spool.sound()


def test_content_of_mail_that_came_since_the_look_stays(spool: Spool, stores: SQLiteStores) -> None:
    """A damaged number says one that is not given out yet."""
    ended(spool, LONG)
    damage(stores, bad := ended(spool, LONG), "-3")
    later = "UPDATE message SET finished_ms = ? WHERE id = ?"
    assert stores.tamper(later, T0 + DAY + 1, bad) == 1
    purge(spool)
    spool.send("b@example.net", id="live", content=LONG)
    assert stores.client().query("SELECT content FROM message WHERE id = 'live'", (), 1) == [(-3,)]
    while spool.engine.purge(KEEP, 10, T0 + 3 * DAY):
        pass
    assert spool.client.content(bad) is None
    assert spool.client.content("live") == LONG


def test_of_two_that_name_the_same_content_and_go_together_nothing_is_left(
    spool: Spool, stores: SQLiteStores
) -> None:
    for wrong, right in ((0, 1), (1, 0)):
        ids = [ended(spool, LONG), ended(spool, LONG[:-1])]
        damage(stores, ids[wrong], f"(SELECT content FROM message WHERE id = '{ids[right]}')")
        Spool(stores).engine.purge(KEEP, 10, T0 + 2 * DAY)
        assert pieces(stores) == 0
    spool.sound()


UNREADABLE = {
    "text that is none": "content = -99, sender = CAST(x'61ff62' AS TEXT)",
    "no text": "content = -99, sender = NULL",
    "a text for a number": "content = 'xy'",
    "no text for a number": "content = CAST(x'ff80' AS TEXT)",
    "no chunks": "content = -99, chunks = NULL",
    "a text for chunks": "content = -99, chunks = 'x'",
    "a text for its size": "size = 'x'",
}


@pytest.mark.parametrize("damaged", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_row_of_the_wrong_kind_keeps_no_other_body_from_being_purged(
    spool: Spool, stores: SQLiteStores, damaged: str
) -> None:
    bad, good = ended(spool, LONG), ended(spool, BODY)
    ((strict,),) = stores.client().query(
        "SELECT sql FROM sqlite_schema WHERE name = 'message'", (), 1
    )
    assert isinstance(strict, str)
    loose = strict.replace(") STRICT", ")").replace("NOT NULL", "")
    for sql in (loose, strict):
        with closing(apsw.Connection(stores.path)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON").fetchall()
            if sql == strict:
                change = f"UPDATE message SET {damaged} WHERE id = ?"
                connection.execute(change, (bad,)).fetchall()
            connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
            change = "UPDATE sqlite_schema SET sql = ? WHERE name = 'message'"
            connection.execute(change, (sql,)).fetchall()
            ((version,),) = connection.execute("PRAGMA schema_version").fetchall()
            connection.execute(f"PRAGMA schema_version = {version + 1}").fetchall()
    purge(spool)
    assert spool.client.content(good) is None


def test_content_that_is_lost_is_looked_for_once_and_without_the_lock(
    spool: Spool, stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[bool, int]] = []

    def look(connection: apsw.Connection, messages: list[int]) -> dict[int, int]:
        looked.append((connection.in_transaction, len(messages)))
        return orphans(connection, messages)

    orphans = contents._orphans
    monkeypatch.setattr(contents, "_orphans", look)
    for content in (BODY, BODY, LONG, LONG):
        ended(spool, content)
    stores.tamper("DELETE FROM content WHERE key > 0")  # one chunk: that was never staged
    stores.tamper("UPDATE message SET content = NULL")
    purge(spool)
    assert looked == [(False, 2)]
    assert pieces(stores) == 0


def test_lost_content_is_found_among_however_much(spool: Spool, stores: SQLiteStores) -> None:
    damage(stores, ended(spool, LONG), "NULL")
    stores.tamper(
        "INSERT INTO content SELECT (-2 - j.value) * 4096 + (c.key & 4095), x'00',"
        " zeroblob(16) FROM content c, json_each(?) j",
        json.dumps(list(range(120))),
    )
    purge(spool)
    assert pieces(stores) == 120 * 3


def test_an_old_mark_of_staging_costs_no_message_its_content(
    spool: Spool, stores: SQLiteStores
) -> None:
    spool.send("b@example.net", id="long", content=LONG)
    assert stores.tamper("INSERT INTO staged SELECT -content, 1 FROM message") == 1
    assert any("still marked as staged: an engine takes" in text for text in spool.client.check())
    purge(spool)
    assert spool.client.content("long") == LONG
    spool.sound()


@pytest.mark.parametrize("number", ["-(1 << 60)", "-99"])
def test_a_number_of_nothing_is_damage_to_every_reader(
    spool: Spool, stores: SQLiteStores, number: str
) -> None:
    id = spool.send("b@example.org")
    damage(stores, id, number)
    with pytest.raises(SpoolCorrupt, match=id):
        spool.client.content(id)
    spool.route()
    (row,) = spool.claim(spool.lane())
    assert row.damaged


def test_a_positive_number_means_the_messages_own(spool: Spool, stores: SQLiteStores) -> None:
    other = spool.send("a@example.org", content=BODY + b"other\r\n")
    id = spool.send("b@example.org")
    damage(stores, id, f"(SELECT seq FROM message WHERE id = '{other}')")
    assert spool.client.content(id) == BODY
    spool.route()
    rows = {row.message_id: row.body for row in spool.claim(spool.lane())}
    assert rows[id] == BODY
    spool.sound()


@pytest.mark.parametrize("number", ["NULL", "-2", "-7", "(1 << 60)"])
def test_a_salvage_finds_staged_content_whose_number_was_lost_by_its_messages_digest(
    spool: Spool, stores: SQLiteStores, tmp_path: Path, number: str
) -> None:
    spool.send("a@example.org", id="first", content=LONG)
    spool.send("b@example.org", id="second", content=LONG[:-1])
    damage(stores, "first", number)
    stores.opened.close()
    target = SQLiteStores(tmp_path / "new.db")
    done = salvage(stores.path, target.path, T0)
    assert (done.whole, done.damaged) == (2, [])
    with target.opened:
        client = target.client()
        assert (client.content("first"), client.content("second")) == (LONG, LONG[:-1])
        assert client.check() == []


@pytest.mark.parametrize("number", ["NULL", "-2"])
def test_a_salvage_gives_each_of_two_with_the_same_bytes_its_own(
    spool: Spool, stores: SQLiteStores, tmp_path: Path, number: str
) -> None:
    ids = [spool.send("a@example.org", content=LONG) for _ in range(2)]
    stores.tamper(f"UPDATE message SET content = {number}")
    stores.opened.close()
    target = SQLiteStores(tmp_path / "new.db")
    assert salvage(stores.path, target.path, T0).damaged == []
    with target.opened:
        client = target.client()
        assert [client.content(id) for id in ids] == [LONG, LONG]
        assert client.check() == []


def test_a_salvage_finds_content_among_much_that_no_row_names(
    spool: Spool, stores: SQLiteStores, tmp_path: Path
) -> None:
    for number in range(25):
        spool.send("a@example.org", content=LONG + bytes([65 + number]))
    stores.tamper("UPDATE message SET content = NULL")
    stores.opened.close()
    target = SQLiteStores(tmp_path / "new.db")
    done = salvage(stores.path, target.path, T0)
    assert (done.whole, done.damaged) == (25, [])


def test_a_salvage_seeks_what_was_never_staged_nowhere(
    spool: Spool, stores: SQLiteStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.send("a@example.org", content=BODY)
    stores.tamper("DELETE FROM content")
    with monkeypatch.context() as patch:
        patch.setitem(STATEMENTS, "found_unnamed", "no SQL at all")
        done = salvage(stores.path, str(tmp_path / "new.db"), T0)
    assert len(done.damaged) == 1


@pytest.mark.parametrize("number", ["-7", "7", "-(1 << 60)", "(1 << 60)"])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_salvage_finds_content_under_its_messages_own_number(
    spool: Spool, stores: SQLiteStores, tmp_path: Path, number: str, sealed: bool
) -> None:
    id = spool.send("b@example.org", content=os.urandom(9_000))
    before = spool.client.content(id)
    if not sealed:
        stores.tamper("UPDATE message SET digest = NULL")
    damage(stores, id, number)
    stores.opened.close()
    target = SQLiteStores(tmp_path / "new.db")
    done = salvage(stores.path, target.path, T0)
    assert (done.whole, done.damaged) == (1, [])
    with target.opened:
        client = target.client()
        assert client.content(id) == before
        assert client.check() == []


@pytest.mark.parametrize("name", ["id", "sender", "message_id"])
@pytest.mark.parametrize("damaged", [None, 7, b"x"])
def test_a_row_whose_text_is_none_fits_no_digest(name: str, damaged: object) -> None:
    facts: dict[str, Any] = {
        "id": "one", "sender": "a@example.org", "message_id": "<1@example.org>", "size": 1,
        "chunks": 1, "eightbit": 0, "smtputf8": 0, "digests": (b"d",),
    }  # fmt: skip
    kept = message_digest(require_tls=0, on_doubt=None, **facts)
    assert fits(kept, require_tls=0, on_doubt=None, **facts)
    assert not fits(kept, require_tls=0, on_doubt=None, **{**facts, name: damaged})
