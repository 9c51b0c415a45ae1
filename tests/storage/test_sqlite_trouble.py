"""A SQLite spool in trouble: busy, full, read-only, damaged; nothing half done, the right error."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from mailstrom import events
from mailstrom.config import Config
from mailstrom.errors import (
    InvalidMessage,
    MailstromError,
    SpoolBusy,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
)
from mailstrom.storage.sqlite import poison
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import (
    connect,
)
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom_workers.janitor import Janitor
from mailstrom_workers.machine import Machine
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
    other, there = connect(path), submission()
    client.enqueue([there], T0)
    other.execute("BEGIN IMMEDIATE").fetchall()
    batch = [submission(), submission(content=b"x" * 600_000), submission()]
    for few in (batch[:1], batch[1:2], batch):
        with pytest.raises(SpoolBusy, match="nothing was written"):
            client.enqueue(few, T0)
    with pytest.raises(SpoolBusy):
        change(client, "cancel", [there.id], None, T0)
    other.execute("ROLLBACK").fetchall()
    for table, amount in (("message", 1), ("recipient", 1), ("content", 1), ("staged", 0)):
        assert value(other, f"SELECT count(*) FROM {table}") == amount
    assert value(other, "SELECT state FROM recipient") == "queued"
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
        f"message {one.id} lacks content: restore a copy ('mailstrom store restore COPY {path}'),"
        f" or get out what is whole ('mailstrom store salvage {path} NEW')"
        for one in (small, large)
    ]  # fmt: skip


# --- a disk error that cannot be repaired --------------------------------------------------------


def _directory(flag: Path) -> None:
    flag.mkdir()


def _of_another(flag: Path) -> None:
    flag.touch(0o600)
    os.chown(flag, 12345, 12345)


@pytest.mark.parametrize(
    ("plant", "advice"),
    [
        (_directory, "is a directory"),
        pytest.param(
            _of_another, "a running engine repairs it",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others"),
        ),
    ],
)  # fmt: skip
def test_a_poisoned_spool_is_a_finding_with_the_flags_age(
    path: str, client: SQLiteClientStore, plant: Callable[[Path], None], advice: str
) -> None:
    assert client.check() == []
    flag = Path(poison.poison_path(path))
    plant(flag)
    os.utime(flag, (time.time() - 900, time.time() - 900))
    (found,) = client.check()
    assert found.startswith("nothing can be acknowledged")
    assert re.search(rf"\b90\d s ago \(flag {re.escape(str(flag))}\)", found)
    assert advice in found


def test_a_flag_that_cannot_be_removed_is_told_once_and_again_each_minute(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(
        events, "engine_failed", lambda *, where, error: said.append((where, str(error)))
    )
    now = [1_000_000]
    machine = Machine(monotonic_ms=lambda: now[0])
    client.enqueue([submission()], T0)
    flag = Path(poison.poison_path(path))
    flag.mkdir()
    with closing(SQLiteWorkerStore(path)) as engine:
        config = Config(store=path, hostname="sender.test")
        janitor = Janitor(path, 0, config, machine=machine)

        def round() -> list[tuple[str, str]]:
            said.clear()
            with contextlib.suppress(SpoolError):  # nothing is checkpointed meanwhile
                janitor.round(engine)
            return list(said)

        ((where, text),) = round()
        assert where == "repair"
        assert str(flag) in text
        assert f"is a directory of user id {os.geteuid()}" in text
        now[0] += 59_000
        assert round() == []
        now[0] += 1_000
        assert round() == [(where, text)]
        flag.rmdir()
        assert round() == []
        assert not engine.poisoned
    client.enqueue([submission()], T0)
    assert client.check() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_a_flag_of_another_user_is_told_with_its_owner(
    path: str, client: SQLiteClientStore
) -> None:
    flag = Path(poison.poison_path(path))
    flag.touch(0o600)
    os.chmod(flag.parent, 0o777)
    asked = (
        "import os, sys; from mailstrom.storage.sqlite import poison; os.setgroups([]);"
        " os.setegid(65534); os.seteuid(65534); print(poison.unrepaired(sys.argv[1]))"
    )
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        there = os.path.join(open_to_all, "spool.db")
        shutil.copytree(flag.parent, poison.run_directory(there))
        os.chmod(poison.run_directory(there), 0o777)
        os.chmod(poison.poison_path(there), 0o600)
        ran = subprocess.run(
            [sys.executable, "-P", "-c", asked, there], capture_output=True, text=True, check=True
        )
    assert "belongs to user id 0: give it (chown) to the engine's user" in ran.stdout


_FEW_FILES = """
import os, resource, sys
from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
_, soft = resource.getrlimit(resource.RLIMIT_NOFILE)
first = os.open(os.devnull, os.O_RDONLY)
os.close(first)
for free in range(int(sys.argv[2])):
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + free, soft))
    try:
        SQLiteWorkerStore(sys.argv[1]).close()
    except SpoolError as error:
        print(error)
    else:
        break
"""


def test_a_lack_of_descriptors_is_no_question_about_the_directory(
    path: str, client: SQLiteClientStore
) -> None:
    client.enqueue([submission()], T0)
    client.close()
    done = subprocess.run(
        [sys.executable, "-P", "-c", _FEW_FILES, path, "30"],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    told = done.stdout.splitlines()
    assert 3 < len(told) < 30, "it failed while it had too few, and not with enough"
    for text in told:
        assert "Too many open files" in text
        assert "raise the limit of open files" in text
        assert "directory" not in text
