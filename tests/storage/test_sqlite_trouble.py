"""A SQLite spool in trouble: busy, full, read-only, damaged; nothing half done, the right error."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from mailstrom.errors import (
    InvalidMessage,
    MailstromError,
    SpoolBusy,
    SpoolCorrupt,
    SpoolFull,
)
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import (
    connect,
)
from tests.storage.spool import T0, change, submission


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


# --- trouble with the file ----------------------------------------------------------------------


def test_a_busy_writer_means_spool_busy_and_nothing_written(
    path: str, client: SQLiteClientStore
) -> None:
    other = connect(path)
    other.execute("BEGIN IMMEDIATE").fetchall()
    batch = [submission(), submission(content=b"x" * 600_000), submission()]
    for few in (batch[:1], batch[1:2], batch):
        with pytest.raises(SpoolBusy, match="nothing was written"):
            client.enqueue(few, T0)
    with pytest.raises(SpoolBusy):
        change(client, "cancel", ["x"], None, T0)
    other.execute("ROLLBACK").fetchall()
    for table in ("message", "recipient", "content", "staged"):
        assert value(other, f"SELECT count(*) FROM {table}") == 0
    assert all(isinstance(result, str) for result in client.enqueue(batch, T0))
    other.close()


def test_a_full_disk_means_spool_full_and_nothing_stored(
    path: str, client: SQLiteClientStore
) -> None:
    first = submission()
    client.enqueue([first], T0)
    for atomic in (False, True):
        connection = client._write_connection()
        pages = value(connection, "PRAGMA page_count")
        connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        big = [submission(content=os.urandom(200_000)) for _ in range(2)]
        with pytest.raises(SpoolFull, match="the disk is full"):
            client.enqueue(big, T0, atomic=atomic)
        assert client.statuses([one.id for one in big]) == {}
        connection = client._write_connection()
        connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        mixed = client.enqueue([big[0], submission(metadata={"x": object()})], T0)
        assert [type(one) for one in mixed] == [SpoolFull, InvalidMessage], "to each his own"
    assert set(client.statuses([first.id])) == {first.id}
    assert isinstance(client.enqueue([submission()], T0)[0], str)
    assert client.check() == []


def _as_nobody(step: Callable[[], object]) -> str:
    """Run a step in a child without root's rights; the name of what it raised, or its result."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            try:
                answer = repr(step())
            except MailstromError as error:
                answer = type(error).__name__
            os.write(write, answer.encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return answer


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that every user may enter (pytest's own are private)."""
    folder = Path(tempfile.mkdtemp(prefix="mailstrom-ro-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_spool_that_may_only_be_read_is_read_and_never_written(open_folder: Path) -> None:
    path = str(open_folder / "spool.db")
    owner = SQLiteClientStore(path)
    one = submission()
    owner.enqueue([one], T0)
    for entry in open_folder.iterdir():
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    if os.getuid() != 0:
        open_folder.chmod(0o555)

    def read() -> object:
        return SQLiteClientStore(path).query("SELECT count(*) FROM messages", (), 5)[0][0]

    assert _as_nobody(read) == "1"
    assert _as_nobody(lambda: SQLiteClientStore(path).enqueue([submission()], T0)) == (
        "SpoolReadOnly"
    )
    open_folder.chmod(0o755)
    assert owner.query("SELECT count(*) FROM messages", (), 5) == [(1,)]
    owner.close()


def test_damaged_content_is_seen_and_never_handed_out(path: str, client: SQLiteClientStore) -> None:
    small, large = submission(), submission(content=b"z" * 300_000)
    client.enqueue([small, large], T0)
    connection = connect(path)
    connection.execute("UPDATE content SET data = zeroblob(length(data))").fetchall()
    for one in (small, large):
        with pytest.raises(SpoolCorrupt, match="damaged on disk"):
            client.content(one.id)
    connection.execute("DELETE FROM content").fetchall()
    connection.close()
    with pytest.raises(SpoolCorrupt):
        client.content(small.id)
    assert [finding for finding in client.check() if "lacks content" in finding] == [
        f"message {one.id} lacks content: restore a copy, or recover the rest with"
        " 'mailstrom store salvage'" for one in (small, large)
    ]  # fmt: skip
