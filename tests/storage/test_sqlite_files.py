"""What a SQLite spool is made of: pragmas, modes, and files that are not ours to touch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from mailstrom.errors import (
    NotASpool,
    SchemaMismatch,
    SpoolError,
)
from mailstrom.storage import open_client_store, prepare, run_directory
from mailstrom.storage.sqlite import connection as connection_module
from mailstrom.storage.sqlite import schema
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import (
    APPLICATION_ID,
    CLIENT_CHECKPOINT_FRAMES,
    connect,
    refuse_network_file_system,
)
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, submission


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def client(path: str) -> Iterator[SQLiteClientStore]:
    store = SQLiteClientStore(path, busy_ms=50)
    yield store
    store.close()


def value(connection: apsw.Connection, sql: str) -> object:
    return connection.execute(sql).fetchall()[0][0]


def fingerprint(path: str | Path) -> dict[str, str]:
    """Name and digest of a file and of everything that SQLite keeps beside it."""
    folder, name = os.path.split(os.fspath(path))
    return {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
        for entry in Path(folder).iterdir()
        if entry.name.startswith(name) and entry.is_file() and entry.stat().st_size
    }


# --- connections --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "frames", "query_only"),
    [("writer", CLIENT_CHECKPOINT_FRAMES, 0), ("reader", CLIENT_CHECKPOINT_FRAMES, 1),
     ("engine", 0, 0)],
)  # fmt: skip
def test_every_connection_has_the_pragmas_of_the_house(
    path: str, client: SQLiteClientStore, kind: str, frames: int, query_only: int
) -> None:
    connection = connect(path, read_only=kind == "reader", checkpoint_frames=frames)
    wanted = {
        "journal_mode": "wal",
        "synchronous": 1,
        "wal_autocheckpoint": 0,  # a hook of ours stands in its place: see Checkpointer
        "temp_store": 2,
        "query_only": query_only,
        "page_size": 4096,
        "auto_vacuum": 2,
        "application_id": APPLICATION_ID,
        "user_version": schema.VERSION,
    }
    assert {name: value(connection, f"PRAGMA {name}") for name in wanted} == wanted
    keep = array("i", [-1])
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, keep.buffer_info()[0])
    assert keep[0] == 1
    assert connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, -1) == 1
    connection.close()


def test_a_pragma_that_does_not_take_is_an_error(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpoolError, match=r"PRAGMA wal_autocheckpoint is 0, wanted -7"):
        connect(path, checkpoint_frames=-7)


def test_an_old_sqlite_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(SpoolError, match=r"SQLite 3\.51\.2 .* install apsw"):
        SQLiteClientStore(path)


def test_the_tables_are_strict_and_impossible_rows_are_refused(
    path: str, client: SQLiteClientStore
) -> None:
    client.enqueue([submission("a@example.org")], T0)
    connection = connect(path)
    loose = connection.execute(
        "SELECT name FROM pragma_table_list WHERE type = 'table' AND strict = 0"
        " AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    assert loose == []
    for change in (
        "due_ms = NULL",
        "state = 'sending'",
        "state = 'delivered'",
        "state = 'failed', due_ms = NULL, finished_ms = 1, reason = NULL",
        "state = 'unheard of'",
        "in_doubt = 2",
    ):
        with pytest.raises(apsw.ConstraintError):
            connection.execute(f"UPDATE recipient SET {change}").fetchall()
    connection.close()


# --- modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "run_mode"),
    [(0o755, 0o600, 0o700), (0o2770, 0o660, 0o2770)],
    ids=["own", "setgid"],
)
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_file_modes_follow_the_directory_and_not_the_umask(
    tmp_path: Path, folder_mode: int, file_mode: int, run_mode: int, umask: int
) -> None:
    folder = tmp_path / "mail"
    folder.mkdir()
    folder.chmod(folder_mode)
    path = str(folder / "spool.db")
    before = os.umask(umask)
    try:
        store = SQLiteClientStore(path)
        store.enqueue([submission()], T0)
    finally:
        os.umask(before)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in folder.iterdir()}
    assert modes == {
        "spool.db": file_mode,
        "spool.db-wal": file_mode,
        "spool.db-shm": file_mode,
        "spool.db-run": run_mode,
    }
    store.close()


def test_the_wal_outlives_the_last_connection(path: str, client: SQLiteClientStore) -> None:
    one = submission()
    client.enqueue([one], T0)
    before = os.stat(f"{path}-wal")
    client.close()
    after = os.stat(f"{path}-wal")
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert after.st_size > 0
    again = SQLiteClientStore(path)
    assert set(again.statuses([one.id])) == {one.id}
    again.close()


# --- what is not ours ---------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("Dear diary, this is not a database.\n" * 100)


def _short(path: Path) -> None:
    path.write_bytes(b"x")


def _noise(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)


def _database(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").fetchall()
    connection.close()


def _wal_database(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL; CREATE TABLE theirs (x)").fetchall()
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # as after a crash of theirs
    connection.close()


def _other_pages(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA page_size = 1024; PRAGMA user_version = 0; VACUUM").fetchall()
    connection.close()


@pytest.mark.parametrize("place", [0, 16, 52, 68], ids=["magic", "page size", "vacuum", "owner"])
def test_a_spool_whose_first_page_is_damaged_is_led_to_salvage(tmp_path: Path, place: int) -> None:
    path = tmp_path / "spool.db"
    SQLiteClientStore(str(path)).close()
    with contextlib.closing(SQLiteWorkerStore(str(path))) as engine:
        engine.checkpoint()
    os.truncate(f"{path}-wal", 0)  # its first page would be read there
    with open(path, "r+b") as stream:
        stream.seek(place)
        stream.write(bytes(8) if place != 68 else b"NONE")
    with pytest.raises(SpoolError, match=f"mailstrom store salvage {path} NEW"):
        SQLiteClientStore(str(path))


@pytest.mark.parametrize("make", [_text, _short, _noise, _database, _wal_database, _other_pages])
def test_a_foreign_file_is_refused_and_not_a_byte_of_it_changes(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / "spool.db"
    make(path)
    before = fingerprint(path)
    with pytest.raises(NotASpool):
        SQLiteClientStore(str(path))
    with pytest.raises(NotASpool):
        SQLiteWorkerStore(str(path))
    after = fingerprint(path)
    assert {name: after[name] for name in before if not name.endswith("-shm")} == {
        name: digest for name, digest in before.items() if not name.endswith("-shm")
    }
    assert not os.path.exists(run_directory(str(path)))


def test_a_directory_or_a_missing_directory_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="does not exist; make it first"):
        SQLiteClientStore(str(tmp_path / "no" / "spool.db"))
    (tmp_path / "dir").mkdir()
    with pytest.raises(SpoolError):
        SQLiteClientStore(str(tmp_path / "dir"))


def test_an_engine_does_not_create_a_spool(path: str) -> None:
    with pytest.raises(SpoolError):
        SQLiteWorkerStore(path)
    assert not os.path.exists(path)


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / {point} rw,relatime shared:2 - {kind} server:/export rw
"""


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("9p", True), ("ext4", False),
     ("btrfs", False), ("tmpfs", False)],
)  # fmt: skip
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    folder = tmp_path / "with blank"
    folder.mkdir()
    point = os.path.realpath(folder).replace(" ", "\\040")
    text = MOUNTS.format(point=point, kind=kind)
    table = tmp_path / "mountinfo"
    table.write_text(text)
    monkeypatch.setattr(connection_module, "MOUNT_TABLE", str(table))
    refuse_network_file_system(str(tmp_path / "local.db"))
    if not refused:
        refuse_network_file_system(str(folder / "spool.db"))
        return
    with pytest.raises(SpoolError, match=f"network file system .*{kind}"):
        SQLiteClientStore(str(folder / "spool.db"))
    assert list(folder.iterdir()) == []


# --- versions -----------------------------------------------------------------------------------


def _pretend(path: str, *, version: int, min_client: int | None = None) -> None:
    connection = connect(path)
    connection.execute(f"PRAGMA user_version = {version}").fetchall()
    if min_client is not None:
        connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'min_client_version'", (min_client,)
        ).fetchall()
    connection.close()


def test_a_newer_spool_takes_clients_that_it_says_it_takes(
    path: str, client: SQLiteClientStore
) -> None:
    client.close()
    _pretend(path, version=99)
    older = SQLiteClientStore(path)
    assert isinstance(older.enqueue([submission()], T0)[0], str)
    older.close()
    with pytest.raises(SchemaMismatch, match="schema 99 is newer"):
        SQLiteWorkerStore(path)
    _pretend(path, version=99, min_client=schema.VERSION + 1)
    before = fingerprint(path)
    with pytest.raises(SchemaMismatch, match="upgrade Mailstrom"):
        SQLiteClientStore(path)
    after = fingerprint(path)
    assert after["spool.db"] == before["spool.db"]
    assert after["spool.db-wal"] == before["spool.db-wal"]


_COLUMNS_OF_2 = ", ".join(f"column{number}" for number in range(1, 24))


def _older(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    kept = {number: sql for number, sql in schema.migrations().items() if number <= last}
    monkeypatch.setattr(schema, "migrations", lambda: kept)
    monkeypatch.setattr(schema, "VERSION", last)


def test_an_older_spool_is_migrated_and_keeps_its_mail(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = submission()
    with monkeypatch.context() as patch:
        _older(patch, 2)
        now = STATEMENTS["enqueue"]  # from the 24th on values had no column then
        named, _, values = now.partition(", message_digest")
        then = f"{named}{values[values.index(')') :]}"
        then = then.replace("SELECT * FROM", f"SELECT {_COLUMNS_OF_2} FROM")
        patch.setitem(STATEMENTS, "enqueue", then)
        store = SQLiteClientStore(path)
        store.enqueue([one], T0)
        store.close()
    with pytest.raises(SchemaMismatch, match=r"schema 2 is older .*store init"):
        SQLiteWorkerStore(path)
    prepare(path)
    store = SQLiteClientStore(path)
    assert set(store.statuses([one.id])) == {one.id}
    assert store.query("SELECT count(*) > 0 FROM schema_info", (), 5) == [(1,)]
    store.close()


def test_a_migration_that_fails_leaves_nothing_of_itself(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _older(patch, 2)
        SQLiteClientStore(path).close()
    broken = {**schema.migrations(), 3: "CREATE TABLE half (x);\nCREATE TABLE half (x);\n"}
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: broken)
        with pytest.raises(SpoolError, match="creating the schema"):
            prepare(path)
    connection = connect(path)
    assert value(connection, "PRAGMA user_version") == 2
    assert value(connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'half'") == 0
    connection.close()
    prepare(path)


@pytest.mark.parametrize("round", range(20))
def test_many_processes_may_create_a_spool_at_once(path: str, round: int) -> None:
    """Twenty times: the moment in which they are in each other's way is short."""
    children = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                store = SQLiteClientStore(path)
                stored = store.enqueue([submission(id=f"from-{os.getpid()}")], T0)
                code = 0 if isinstance(stored[0], str) else 2
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 6
    store = SQLiteClientStore(path)
    assert store.query("SELECT count(*) FROM messages", (), 5) == [(6,)]
    assert store.check() == []
    store.close()


def test_a_link_to_a_spool_is_the_same_spool(tmp_path: Path) -> None:
    """Two names must not make two -wal files, two run directories, two supervisors."""
    spool, link = tmp_path / "spool.db", tmp_path / "link.db"
    first = open_client_store(str(spool))
    link.symlink_to(spool)
    second = open_client_store(str(link))
    one, two = submission(), submission()
    assert first.enqueue([one], T0) == [one.id]
    assert second.enqueue([two], T0) == [two.id]
    assert set(first.statuses([one.id, two.id])) == {one.id, two.id}
    assert sorted(entry.name for entry in tmp_path.iterdir() if "link" in entry.name) == ["link.db"]
    first.close()
    second.close()
