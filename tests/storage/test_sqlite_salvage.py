"""A new spool of what is whole in a damaged one; and that damaged envelopes are seen at a claim.

How much is recovered after random damage is the torture's to count; here are the single cases.
Long, since the cases share the spool and the ways to damage it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom import Mailstrom
from mailstrom.errors import NotASpool, SpoolBusy, SpoolCorrupt, SpoolError
from mailstrom.storage.client import CHUNK_BYTES
from mailstrom.storage.sqlite.salvage import salvage
from mailstrom.storage.sqlite.salvage_pages import Pages, record, shape
from mailstrom.storage.sqlite.salvage_report import Salvaged, lines
from mailstrom.types import OnDoubt
from tests.storage.files import SQLiteStores
from tests.storage.spool import BODY, T0, Spool

LONG = b"Subject: long\r\n\r\n" + b"x" * 78 + b"\r\n" * (CHUNK_BYTES // 2)
NOW = T0 + 1_000


@pytest.fixture
def spool(tmp_path: Path) -> Any:
    stores = SQLiteStores(tmp_path / "spool.db")
    made = Spool(stores)
    yield made
    stores.opened.close()


def stop(spool: Spool) -> Path:
    """Nobody has it open any more."""
    spool.stores.opened.close()  # type: ignore[attr-defined]
    return Path(spool.stores.path)  # type: ignore[attr-defined]


def tamper(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute(sql)
    connection.close()


def salvaged(path: Path) -> tuple[Path, Salvaged]:
    target = path.with_name("new.db")
    return target, salvage(str(path), str(target), NOW)


def test_a_sound_spool_comes_out_as_it_was(spool: Spool) -> None:
    first = spool.send("a@example.org", "b@example.org", tags=("news",), metadata={"n": 1},
                       idempotency=("key", b"hash"))  # fmt: skip
    second = spool.send("c@example.org", content=LONG)
    third, lane, rows = spool.sending("d@example.net")
    assert spool.settle(lane, rows[0], "delivered")
    path = stop(spool)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    target, done = salvaged(path)
    assert (done.messages, done.recipients, done.in_doubt, done.damaged) == (3, 4, 0, [])
    for name, content in before.items():
        if not name.endswith("-shm"):
            assert (path.parent / name).read_bytes() == content
    assert set(os.listdir(path.parent)) == {*before, "new.db", "spool.db-run"}
    with Mailstrom(target) as ms:
        assert ms.check() == []
        assert ms.stats().copied
        assert ms.raw(second) == LONG
        assert ms.raw(first) == BODY
        found = ms.status(first)
        assert (found.tags, found.metadata) == (("news",), {"n": 1})
        assert ms.status(third).recipients["d@example.net"].reply_code == 250
        attempts = ms.query("SELECT number, verdict FROM attempts")
        assert [tuple(row) for row in attempts] == [(1, "delivered")]
        assert ms.adopt()


def test_what_was_on_the_wire_is_in_doubt_and_held_where_the_message_says_so(spool: Spool) -> None:
    retried, _, _ = spool.sending("a@example.org")
    held, _, _ = spool.sending("b@example.net", on_doubt=OnDoubt.HOLD)
    target, done = salvaged(stop(spool))
    assert done.in_doubt == 2
    with Mailstrom(target) as ms:
        assert ms.check() == []
        (one,) = ms.status(retried).recipients.values()
        (other,) = ms.status(held).recipients.values()
    assert (one.status, one.reason, one.in_doubt, one.attempts) == (
        "deferred", "in_doubt", True, 1,
    )  # fmt: skip
    assert (other.status, other.reason, other.in_doubt) == ("held", "in_doubt", True)


def test_damaged_content_is_kept_as_failed_and_named(spool: Spool) -> None:
    good, bad = spool.send("a@example.org"), spool.send("b@example.org", subject="the bad one")
    path = stop(spool)
    tamper(path, f"UPDATE content SET data = x'00' WHERE key = (SELECT seq * 4096 FROM message"
                 f" WHERE id = '{bad}')")  # fmt: skip
    target, done = salvaged(path)
    (one,) = done.damaged
    assert (one.id, one.subject, one.recipients, one.kept) == (
        bad, "the bad one", ("b@example.org",), True,
    )  # fmt: skip
    assert any("the bad one" in line for line in lines(done))
    with Mailstrom(target) as ms:
        assert ms.check() == []
        assert ms.raw(good) == BODY
        (failed,) = ms.status(bad).recipients.values()
    assert (failed.status, failed.reason) == ("failed", "damaged")


def test_a_message_kept_without_content_does_not_name_that_of_another(spool: Spool) -> None:
    good = spool.send("a@example.org", content=LONG)
    bad = spool.send("b@example.org", content=LONG[:-2])
    path = stop(spool)
    tamper(path, f"UPDATE message SET content = (SELECT content FROM message WHERE id = '{good}'),"
                 f" digest = NULL WHERE id = '{bad}'")  # fmt: skip
    target, done = salvaged(path)
    assert [(one.id, one.kept) for one in done.damaged] == [(bad, True)]
    with Mailstrom(target) as ms:
        assert ms.check() == []
        assert ms.raw(good) == LONG


def test_a_message_whose_recipients_fit_no_checksum_is_left_out_and_named(spool: Spool) -> None:
    bad = spool.send("a@example.org")
    spool.send("b@example.org")
    path = stop(spool)
    tamper(path, f"UPDATE message SET sender = 'other@example.org' WHERE id = '{bad}'")
    target, done = salvaged(path)
    assert [(one.id, one.kept) for one in done.damaged] == [(bad, False)]
    with Mailstrom(target) as ms:
        assert ms.check() == []
        assert len(ms.query("SELECT id FROM messages")) == 1


def test_a_row_that_breaks_a_rule_of_its_table_costs_no_other(spool: Spool) -> None:
    ids = [spool.send(f"a{number}@example.org") for number in range(3)]
    path = stop(spool)
    tamper(
        path,
        "PRAGMA ignore_check_constraints = 1;"
        f" UPDATE message SET priority = 7 WHERE id = '{ids[1]}'",
    )
    target, done = salvaged(path)
    assert [(one.id, one.kept) for one in done.damaged] == [(ids[1], False)]
    with Mailstrom(target) as ms:
        assert ms.check() == []
        assert {row[0] for row in ms.query("SELECT id FROM messages")} == {ids[0], ids[2]}


def test_a_message_row_that_is_lost_is_told_by_its_recipients(spool: Spool) -> None:
    bad = spool.send("a@example.org")
    spool.send("b@example.org")
    path = stop(spool)
    tamper(path, f"DELETE FROM message WHERE id = '{bad}'")
    _, done = salvaged(path)
    assert [(one.id, one.recipients) for one in done.damaged] == [(None, ("a@example.org",))]


@pytest.mark.parametrize(
    "change",
    ["address = 'bub@example.org'", "state = 'qweued'", "message = 99", "seq = seq + (1 << 41)"],
)
def test_a_recipient_that_is_lost_among_others_is_named(change: str, spool: Spool) -> None:
    id = spool.send("alice@example.org", "bob@example.org", "carol@example.org")
    path = stop(spool)
    spoil_rows(path, f"UPDATE recipient SET {change} WHERE address = 'bob@example.org'")
    target, done = salvaged(path)
    named = [one for one in done.damaged if one.id == id]
    assert [one.kept for one in named] == [False]
    assert "bob@example.org" in named[0].recipients
    assert (done.whole, done.recipients) == (0, 2)
    with Mailstrom(target) as ms:
        assert ms.check() == []
        assert set(ms.status(id).recipients) == {"alice@example.org", "carol@example.org"}


def spoil_rows(path: Path, sql: str) -> None:
    """Change a row as damage does: its entries in the indexes stay as they were."""
    roots = (
        "SELECT name, rootpage, sql FROM sqlite_schema WHERE type = 'table' AND name = 'recipient'"
    )
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    assert connection.execute(roots).fetchall()
    kept = connection.execute(
        "SELECT rowid, type, name, tbl_name, rootpage, sql FROM sqlite_schema"
        " WHERE tbl_name = 'recipient'"
    ).fetchall()
    plain = (
        "CREATE TABLE recipient (seq INTEGER PRIMARY KEY, message, address, domain, checksum,"
        " priority, state, reason, site, generation, due_ms, lane, session, opened_ms, attempts,"
        " deferrals, in_doubt, doubts, reopened_ms, last_ms, finished_ms, mx, reply_code,"
        " enhanced_code, reply_text, tls, notify, orcpt, wants, reported)"
    )
    connection.execute("PRAGMA writable_schema = ON").fetchall()
    connection.execute("DELETE FROM sqlite_schema WHERE tbl_name = 'recipient' AND type = 'index'")
    connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'recipient'", (plain,))
    connection.execute("PRAGMA writable_schema = RESET").fetchall()
    connection.execute(sql).fetchall()
    connection.execute("PRAGMA writable_schema = ON").fetchall()
    connection.execute("DELETE FROM sqlite_schema WHERE tbl_name = 'recipient'").fetchall()
    connection.executemany(
        "INSERT INTO sqlite_schema (rowid, type, name, tbl_name, rootpage, sql)"
        " VALUES (?, ?, ?, ?, ?, ?)", kept,
    )  # fmt: skip
    connection.close()


def pages_with(path: Path, kind: int, text: bytes) -> list[int]:
    data = path.read_bytes()
    starts = range(0, len(data), 4096)
    return [at for at in starts if data[at] == kind and data[at : at + 4096].count(text) > 10]


def checkpointed(spool: Spool) -> Path:
    path = stop(spool)
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return path


def test_a_lost_page_of_recipients_is_named_and_counted(spool: Spool) -> None:
    addresses = {f"user{number:04}@example.org" for number in range(200)}
    id = spool.send(*sorted(addresses))
    path = checkpointed(spool)
    data = bytearray(path.read_bytes())
    lost = pages_with(path, 0x0D, b"@example.org")[1]
    data[lost : lost + 4096] = bytes(4096)
    path.write_bytes(data)
    target, done = salvaged(path)
    assert (done.unreadable, done.whole, done.sound) == (1, 0, False)
    with Mailstrom(target) as ms:
        there = set(ms.status(id).recipients)
    (one,) = done.damaged
    assert len(there) < 200
    assert there | set(one.recipients) == addresses
    told = "\n".join(lines(done))
    assert all(address in told for address in one.recipients)
    assert max(map(len, told.splitlines())) < 1_000


def test_recipients_whose_index_is_lost_too_are_counted(spool: Spool) -> None:
    spool.send(*(f"user{number:04}@example.org" for number in range(200)))
    path = checkpointed(spool)
    data = bytearray(path.read_bytes())
    for kind, text in ((0x0D, b"@example.org"), (0x0A, b"@example.org"), (0x02, b"@example.org")):
        lost = pages_with(path, kind, text)
        for at in lost[1:2] if kind == 0x0D else lost:
            data[at : at + 4096] = bytes(4096)
    path.write_bytes(data)
    _, done = salvaged(path)
    (one,) = done.damaged
    assert done.recipients + len(one.recipients) + one.unnamed == 200
    assert one.unnamed > 10


def test_the_last_recipients_of_a_message_are_missed(spool: Spool) -> None:
    first = spool.send("a@example.org", "b@example.org")
    spool.send("c@example.org")
    path = stop(spool)
    tamper(path, "DELETE FROM recipient WHERE address = 'b@example.org'")
    _, done = salvaged(path)
    assert [(one.id, one.recipients, one.unnamed) for one in done.damaged] == [(first, (), 1)]


DAY = 86_400_000
TIMES = {
    "due in years": ("recipient SET due_ms = due_ms + 1000 * 86400000", 0),
    "sent in years": ("message SET send_ms = send_ms + 10000 * 86400000", 0),
    "sent before it was made": ("message SET send_ms = 1", 0),
    "expired before it was made": ("message SET expires_ms = 1", 0),
    "never expires": ("message SET expires_ms = 1 << 60", 0),
    "made in years": ("message SET created_ms = created_ms + 10000 * 86400000", 0),
}


@pytest.mark.parametrize("name", TIMES)
def test_a_time_that_nobody_can_have_meant_is_made_anew(name: str, spool: Spool) -> None:
    spool.send("a@example.org")
    path = stop(spool)
    tamper(path, f"UPDATE {TIMES[name][0]}")
    target, _ = salvaged(path)
    with Mailstrom(target) as ms:
        assert ms.check() == []
        rows = ms.query(
            "SELECT r.next_attempt_ms, m.expires_ms FROM recipients r"
            " JOIN messages m ON m.id = r.message_id"
        )
    ((due, expires),) = [tuple(row) for row in rows]
    assert due == NOW
    assert NOW < expires <= NOW + 366 * DAY


def test_what_is_to_be_sent_later_is_not_sent_at_once(spool: Spool) -> None:
    spool.send("a@example.org")
    path = stop(spool)
    later = NOW + DAY
    tamper(path, f"UPDATE message SET send_ms = {later}, expires_ms = {later + DAY}")
    for due in (later, 1, later + 1000 * DAY):  # as it was; and damaged
        tamper(path, f"UPDATE recipient SET due_ms = {due}")
        target, _ = salvaged(path)
        with Mailstrom(target) as ms:
            rows = ms.query("SELECT next_attempt_ms FROM recipients")
        assert [row[0] for row in rows] == [later]
        for file in path.parent.glob("new.db*"):
            if file.is_file():
                file.unlink()


def test_a_free_page_is_told_by_the_list_even_where_the_pointer_map_is_damaged(
    spool: Spool,
) -> None:
    spool.send("a@example.org", "b@example.org")
    path = checkpointed(spool)
    data = bytearray(path.read_bytes())
    row = b"a@example.orgexample.org"
    starts = range(0, len(data), 4096)
    (leaf,) = [at for at in starts if data[at] == 0x0D and row in data[at : at + 4096]]
    entry = 4096 + (leaf // 4096 + 1 - 3) * 5
    data[entry : entry + 5] = b"\x02\0\0\0\0"  # it says: free
    path.write_bytes(data)
    assert salvaged(path)[1].recipients == 2


def test_a_damaged_end_of_a_transaction_is_told(spool: Spool) -> None:
    spool.send("a@example.org")
    spool.send("b@example.org")
    path = stop(spool)
    log = path.with_name("spool.db-wal")
    content = bytearray(log.read_bytes())
    content[-2_000] ^= 0xFF
    log.write_bytes(content)
    _, done = salvaged(path)
    assert done.unfit_frames == 1
    assert not done.sound
    assert any("-wal" in line for line in lines(done))


def test_frames_behind_a_damaged_one_are_taken(spool: Spool) -> None:
    ids = [spool.send(f"a{number}@example.org") for number in range(30)]
    path = stop(spool)
    log = path.with_name("spool.db-wal")
    content = bytearray(log.read_bytes())
    middle = 32 + (len(content) - 32) // 4120 // 2 * 4120 + 2_000
    content[middle] ^= 0xFF
    log.write_bytes(content)
    with Mailstrom(path) as ms:
        assert len(ms.query("SELECT id FROM messages")) < len(ids)  # SQLite stops there
    log.write_bytes(content)
    target, done = salvaged(path)
    assert done.messages >= len(ids) - 1
    with Mailstrom(target) as ms:
        assert ms.check() == []


def test_a_spool_in_use_is_refused_and_nothing_is_left(spool: Spool) -> None:
    spool.send("a@example.org")
    path = Path(spool.stores.path)  # type: ignore[attr-defined]
    with subprocess.Popen(
        [sys.executable, "-P", "-c",
         "import apsw, sys; c = apsw.Connection(sys.argv[1]);"
         " c.execute('SELECT * FROM message').fetchall(); print(flush=True); sys.stdin.read()",
         str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        stop(spool)
        with pytest.raises(SpoolBusy, match="has it open"):
            salvaged(path)
        other.kill()
    assert not [name for name in os.listdir(path.parent) if "new.db" in name]


def test_a_dry_run_leaves_nothing(spool: Spool) -> None:
    spool.send("a@example.org")
    path = stop(spool)
    before = set(os.listdir(path.parent))
    assert salvage(str(path), str(path.with_name("new.db")), NOW, dry_run=True).messages == 1
    assert set(os.listdir(path.parent)) == before


def test_what_is_no_spool_or_has_no_room_is_refused(tmp_path: Path) -> None:
    noise = tmp_path / "noise.db"
    noise.write_bytes(os.urandom(40_960))
    with pytest.raises(NotASpool, match="nothing of a Mailstrom spool"):
        salvage(str(noise), str(tmp_path / "new.db"), NOW)
    with pytest.raises(SpoolError, match="no such file"):
        salvage(str(tmp_path / "none.db"), str(tmp_path / "new.db"), NOW)
    with pytest.raises(SpoolError, match="exists already"):
        salvage(str(noise), str(noise), NOW)
    assert os.listdir(tmp_path) == ["noise.db"]


def test_a_free_page_holds_nothing_and_garbage_is_no_record(spool: Spool) -> None:
    spool.send("a@example.org")
    path = stop(spool)
    pages = Pages(str(path))
    try:
        roots = {pages.root(page) for page in range(3, pages.count + 1)}
        assert len(roots - {None}) > 10
        assert not any(pages.is_free(page) for page in range(1, pages.count + 1))
    finally:
        pages.close()
    assert record(b"") is None
    assert record(b"\x03\x01\x0f\x05") is None  # a byte of text is missing
    assert record(b"\x03\x01\x0f\x05a") == (5, "a")
    assert shape(b"\x02\x0a") is None  # a type that nobody writes


def beside(spool: Spool, name: str, *sent: str) -> Path:
    """Another spool in its own directory, these messages in its -wal."""
    folder = Path(spool.stores.path).parent / name  # type: ignore[attr-defined]
    folder.mkdir()
    stores = SQLiteStores(folder / "spool.db")
    other = Spool(stores)
    for address in sent:
        other.send(address)
    return stop(other)


def under_the_log_of(path: Path, other: Path) -> None:
    log = path.with_name("spool.db-wal")
    log.write_bytes(other.with_name("spool.db-wal").read_bytes())


def accounted(ids: list[str], target: Path, done: Salvaged) -> int:
    """How many messages are in the new spool, are named or are counted."""
    with Mailstrom(target) as ms:
        there = {str(row[0]) for row in ms.query("SELECT id FROM messages")}
    return len(set(ids) & (there | {one.id for one in done.damaged if one.id})) + done.replaced


@pytest.mark.parametrize("others", [0, 1, 60])
def test_messages_that_another_spools_log_hides_are_counted(others: int, spool: Spool) -> None:
    """The -wal holds all of the other spool, or only its last pages."""
    ids = [spool.send(f"a{number}@example.org") for number in range(40)]
    other = beside(spool, "other", *(f"b{number}@example.net" for number in range(others)))
    path = checkpointed(spool)
    under_the_log_of(path, other)
    target, done = salvaged(path)
    assert accounted(ids, target, done) == 40
    assert done.replaced > 0
    assert not done.sound
    assert any("-wal may be another spool's" in line for line in lines(done))


def test_messages_that_the_last_pages_of_another_spool_hide_are_accounted_for(
    spool: Spool,
) -> None:
    ids = [spool.send(f"a{number}@example.org") for number in range(40)]
    path = checkpointed(spool)
    folder = path.with_name("other")
    folder.mkdir()
    stores = SQLiteStores(folder / "spool.db")
    other = Spool(stores)
    for number in range(10):
        other.send(f"b{number}@example.net")
    connection = apsw.Connection(stores.path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    other.send("late@example.net")
    under_the_log_of(path, stop(other))
    target, done = salvaged(path)
    assert accounted(ids, target, done) == 40
    assert not done.sound


def test_what_was_deleted_since_the_last_checkpoint_is_not_missed(spool: Spool) -> None:
    """The database file holds it still; the -wal, rightly, does not."""
    ids = [spool.send(f"a{number}@example.org") for number in range(40)]
    path = checkpointed(spool)
    tamper(
        path,
        "DELETE FROM recipient WHERE message > 10; DELETE FROM event WHERE message > 10;"
        " DELETE FROM content WHERE key >= 11 * 4096; DELETE FROM message WHERE seq > 10",
    )
    assert path.with_name("spool.db-wal").stat().st_size > 0
    target, done = salvaged(path)
    assert done.sound
    assert done.replaced == 0
    with Mailstrom(target) as ms:
        assert {row[0] for row in ms.query("SELECT id FROM messages")} == set(ids[:10])


def test_a_log_whose_database_is_gone_is_salvaged(spool: Spool) -> None:
    ids = {spool.send(f"a{number}@example.org") for number in range(5)}
    path = stop(spool)
    path.unlink()
    target, done = salvaged(path)
    assert done.sound
    assert not path.exists()
    with Mailstrom(target) as ms:
        assert {row[0] for row in ms.query("SELECT id FROM messages")} == ids


_LIMITED = """
import resource, signal, sys
from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite.salvage import salvage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kind, most = getattr(resource, sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (most, most))
try:
    salvage(sys.argv[3], sys.argv[4], 1)
except SpoolError as error:
    print(type(error).__name__, error)
"""


def limited(path: Path, kind: str, most: int) -> str:
    argv = [sys.executable, "-P", "-c", _LIMITED, kind, str(most)]
    done = subprocess.run(
        [*argv, str(path), str(path.with_name("new.db"))],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert {name for name in os.listdir(path.parent) if "new.db" in name} <= {"new.db"}
    return done.stdout


@pytest.mark.parametrize("most", [20 << 10, 100 << 10, 200 << 10])
def test_a_limit_of_the_size_of_files_is_told_as_a_full_disk(most: int, spool: Spool) -> None:
    for number in range(20):
        spool.send(f"a{number}@example.org", content=BODY + b"x" * 70_000)
    path = stop(spool)
    assert limited(path, "RLIMIT_FSIZE", most).startswith("SpoolFull ")


def test_a_lack_of_descriptors_is_told_with_its_remedy(spool: Spool) -> None:
    spool.send("a@example.org")
    path = stop(spool)
    told = []
    for most in range(4, 20):
        told.append(limited(path, "RLIMIT_NOFILE", most))
        if not told[-1]:
            break
    assert told[-1] == ""
    assert all("Too many open files" in text for text in told[:-1])
    assert any("spool.db-wal: cannot be read" in text for text in told)


# --- damage that a claim must see ----------------------------------------------------------------


DAMAGE = {
    "content of another message": "UPDATE content SET key = 4096 * 9 WHERE key = 4096;"
    " UPDATE content SET key = 4096 WHERE key = 8192;"
    " UPDATE content SET key = 8192 WHERE key = 4096 * 9",
    "TLS demand": "UPDATE message SET require_tls = 0 WHERE seq = 1",
    "REQUIRETLS": "UPDATE message SET requiretls = 0 WHERE seq = 1",
    "8BITMIME": "UPDATE message SET eightbit = 1 WHERE seq = 1",
    "SMTPUTF8": "UPDATE message SET smtputf8 = 1 WHERE seq = 1",
    "what to do in doubt": "UPDATE message SET on_doubt = NULL WHERE seq = 1",
    "domain": "UPDATE recipient SET domain = 'example.net' WHERE seq = 1",
    "sender": "UPDATE message SET sender = 'x@example.com' WHERE seq = 1",
    "address": "UPDATE recipient SET address = 'x@example.org' WHERE seq = 1",
    "no text": "UPDATE message SET sender = CAST(x'ff' AS TEXT) WHERE seq = 1",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_claim_sees_damage_to(name: str, spool: Spool) -> None:
    spool.send("a@example.org", require_tls=True, requiretls=True, on_doubt=OnDoubt.HOLD)
    spool.send("b@example.org", content=BODY.replace(b"test", b"best"))
    spool.send("c@example.org")
    spool.route()
    lane = spool.lane()
    tamper(Path(spool.stores.path), DAMAGE[name])  # type: ignore[attr-defined]
    if name == "domain":  # it goes to the router, and there to its own site
        assert {row.address for row in spool.claim(lane)} == {"b@example.org", "c@example.org"}
        spool.route("example.net")
        (row,) = spool.claim(spool.lane())
        assert row.damaged
        return
    rows = spool.claim(lane)
    damaged = {row.recipient for row in rows if row.damaged}
    assert damaged == ({1, 2} if name == "content of another message" else {1})


def test_a_long_message_that_lost_a_chunk_is_damaged(spool: Spool) -> None:
    id = spool.send("a@example.org", content=LONG)
    spool.route()
    tamper(Path(spool.stores.path), "UPDATE message SET chunks = 1")  # type: ignore[attr-defined]
    (row,) = spool.claim(spool.lane())
    assert row.damaged
    with pytest.raises(SpoolCorrupt, match="damaged on disk"):
        spool.client.content(id)


def test_a_message_of_an_older_client_has_no_digest_and_is_sent(spool: Spool) -> None:
    spool.send("a@example.org")
    spool.route()
    tamper(Path(spool.stores.path), "UPDATE message SET digest = NULL")  # type: ignore[attr-defined]
    (row,) = spool.claim(spool.lane())
    assert (row.damaged, row.body) == (False, BODY)


def test_a_stream_that_demands_more_does_not_damage(spool: Spool) -> None:
    spool.send("a@example.org")
    spool.route()
    tamper(Path(spool.stores.path), "UPDATE message SET require_tls = 1, on_doubt = 'hold'")  # type: ignore[attr-defined]
    (row,) = spool.claim(spool.lane())
    assert not row.damaged


_KILLED = """
import os, signal, sys
from mailstrom.storage.sqlite import backups, salvage
backups._Temporary.sync = lambda self: os.kill(os.getpid(), signal.SIGKILL)
salvage.salvage(sys.argv[1], sys.argv[2], 1)
"""


def test_a_killed_salvage_leaves_no_spool_of_that_name(spool: Spool) -> None:
    spool.send("a@example.org")
    path = stop(spool)
    target = path.with_name("new.db")
    argv = [sys.executable, "-P", "-c", _KILLED, str(path), str(target)]
    assert subprocess.run(argv, check=False, timeout=60).returncode == -9
    assert not target.exists()
    assert any(name.startswith(".new.db.copy-") for name in os.listdir(path.parent))
    assert salvaged(path)[1].messages == 1
    assert not any(name.startswith(".new.db.copy-") for name in os.listdir(path.parent))
