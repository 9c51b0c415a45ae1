"""Accepted is durable: commit, then sync with the lock free, then the answer; and its failures.

Past 400 lines: one order of steps, seen from each side, on one disk that records and fails.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import OutcomeUnknown, SpoolError, SpoolReplaced
from mailstrom.storage import open_client_store
from mailstrom.storage.sqlite import inserting, poison
from mailstrom.storage.sqlite.checkpointer import Checkpointer
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import connect, spool_errors
from mailstrom.storage.sqlite.durable import WalSync, poison_path
from mailstrom.storage.sqlite.patience import Patience
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, change, submission

_SUBMISSION = """
import os
from mailstrom.storage.client import Submission
T0 = 1_700_000_000_000
def submission():
    return Submission(id=f"message-elsewhere-{os.getpid()}", content=b"x", sender="a@b.test",
        recipients=("c@d.test",), subject="", message_id="<elsewhere@b.test>", stream="default",
        priority=1, tags=(), metadata={}, created_ms=T0, send_ms=T0, expires_ms=None, on_doubt=None,
        require_tls=False, eightbit=False, smtputf8=False)
"""


class Disk:
    """A disk whose syncs are counted and may fail; ``then`` runs within each."""

    def __init__(self) -> None:
        self.synced: list[os.stat_result] = []
        self.broken = False
        self.then: Callable[[], object] = lambda: None

    def __call__(self, fd: int) -> None:
        self.then()
        self.synced.append(os.fstat(fd))
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def client(path: str, disk: Disk) -> Iterator[SQLiteClientStore]:
    store = SQLiteClientStore(path, sync=disk)
    yield store
    store.close()


@pytest.fixture
def engine(path: str, client: SQLiteClientStore, disk: Disk) -> Iterator[SQLiteWorkerStore]:
    store = SQLiteWorkerStore(path, sync=disk)
    yield store
    store.close()


def elsewhere(path: str, code: str) -> str:
    """What a second process prints after ``store`` was opened there."""
    script = (
        "import sys\nfrom mailstrom.storage import open_client_store\n"
        "from mailstrom.errors import *\n"
        f"store = open_client_store(sys.argv[1])\n{code}"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script, path],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


# --- the order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_a_commit_is_seen_and_the_lock_is_free_before_the_sync_and_the_answer_comes_after(
    path: str, client: SQLiteClientStore, disk: Disk, count: int
) -> None:
    order: list[str] = []
    batch = [submission() for _ in range(count)]

    def look() -> None:
        other = connect(path, busy_ms=0)
        stored = other.execute("SELECT count(*) FROM message").fetchall()[0][0]
        other.execute("BEGIN IMMEDIATE; ROLLBACK").fetchall()
        other.close()
        order.append(f"synced after commit of {stored} with the lock free")

    disk.then = look
    client.enqueue(batch, T0)
    order.append("answered")
    assert order == [f"synced after commit of {count} with the lock free", "answered"]


def test_every_changing_verb_syncs_once_and_reading_never(
    client: SQLiteClientStore, disk: Disk
) -> None:
    def syncs(step: Callable[[], object]) -> int:
        before = len(disk.synced)
        step()
        return len(disk.synced) - before

    one = submission("a@example.org", idempotency=("k", b"h"))
    twin = submission("a@example.org", idempotency=("k", b"h"))
    assert syncs(lambda: client.enqueue([one], T0)) == 1
    assert syncs(lambda: client.enqueue([submission() for _ in range(9)], T0)) == 1
    assert syncs(lambda: client.enqueue([submission(content=b"x" * 600_000)], T0)) == 1
    assert syncs(lambda: client.enqueue([twin], T0)) == 1, "the first may be unsynced elsewhere"
    assert syncs(lambda: change(client, "retry", [one.id], None, T0)) == 1
    assert syncs(lambda: change(client, "cancel", [one.id], None, T0)) == 1
    assert syncs(lambda: change(client, "cancel", [one.id], None, T0)) == 0, "nothing changed"
    assert syncs(lambda: client.enqueue([submission(recipients=())], T0)) == 0
    assert syncs(lambda: client.statuses([one.id])) == 0
    assert syncs(lambda: client.query("SELECT 1", (), 1)) == 0
    assert syncs(lambda: client.content(one.id)) == 0


def test_the_engine_syncs_when_told(engine: SQLiteWorkerStore, disk: Disk) -> None:
    before = len(disk.synced)
    engine.tell("lanes_limit", 3)
    assert len(disk.synced) == before
    engine.sync()
    assert len(disk.synced) == before + 1


# --- the kept descriptor ------------------------------------------------------------------------


def test_the_synced_file_is_the_wal_that_the_path_names(
    path: str, client: SQLiteClientStore, disk: Disk
) -> None:
    for _ in range(3):
        client.enqueue([submission()], T0)
        assert disk.synced[-1].st_ino == os.stat(f"{path}-wal").st_ino


def test_a_replaced_wal_is_noticed_by_its_inode(
    path: str, disk: Disk, client: SQLiteClientStore, tmp_path: Path
) -> None:
    sync = WalSync(path, disk)
    client.enqueue([submission()], T0)
    sync()
    first = disk.synced[-1].st_ino
    client.close()
    copy = tmp_path / "copy"
    shutil.copyfile(f"{path}-wal", copy)
    os.replace(copy, f"{path}-wal")
    with pytest.raises(SpoolReplaced):  # what our connection wrote is not in this file
        sync()
    assert disk.synced[-1].st_ino == first
    sync.bind()  # as a fresh connection does
    sync()
    assert disk.synced[-1].st_ino == os.stat(f"{path}-wal").st_ino != first
    sync.close()


def test_a_deleted_wal_is_never_taken_as_synced(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, disk: Disk
) -> None:
    client.enqueue([submission()], T0)
    count = len(disk.synced)
    os.unlink(f"{path}-wal")
    with pytest.raises(SpoolReplaced):
        client.enqueue([submission()], T0)
    assert len(disk.synced) == count
    assert not engine.poisoned  # no disk failed
    with pytest.raises(SpoolReplaced):
        engine.verify()


def test_a_deleted_shm_stops_whoever_had_it_before_it_writes(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore
) -> None:
    client.enqueue([submission()], T0)
    os.unlink(f"{path}-shm")
    newcomer = submission()
    elsewhere(path, "print(len(store.statuses([])))")  # makes a new one
    with pytest.raises(SpoolReplaced, match="-shm file was deleted"):
        client.enqueue([submission()], T0)
    with pytest.raises(SpoolReplaced, match="-shm file was deleted"):
        engine.expire(10, T0)
    assert client.enqueue([newcomer], T0) == [newcomer.id], "it opened what is there now"
    assert client.check() == []


def test_a_shm_deleted_between_commit_and_sync_makes_the_outcome_unknown(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.enqueue([submission()], T0)
    monkeypatch.setattr(client._log_room, "require", lambda _: os.unlink(f"{path}-shm"))
    one = submission()
    with pytest.raises(OutcomeUnknown, match="-shm file was deleted") as caught:
        client.enqueue([one], T0)
    assert caught.value.key == one.id
    monkeypatch.undo()
    client.enqueue([submission()], T0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_a_flag_of_root_can_be_removed_by_the_directorys_owner(tmp_path: Path) -> None:
    os.makedirs(poison.run_directory(str(tmp_path / "s.db")))
    os.chown(poison.run_directory(str(tmp_path / "s.db")), 12345, 12345)
    poison.poison(str(tmp_path / "s.db"), OSError(errno.EIO, "injected"))
    found = os.stat(poison.poison_path(str(tmp_path / "s.db")))
    assert (found.st_uid, found.st_mode & 0o777) == (12345, 0o660)


def test_after_a_replacement_the_client_writes_into_what_has_the_name(
    path: str, client: SQLiteClientStore, tmp_path: Path
) -> None:
    """A spool restored over a living client: nothing is acknowledged into files without a name."""
    client.enqueue([submission()], T0)
    other = tmp_path / "other.db"
    SQLiteClientStore(str(other)).close()
    for ending in ("", "-wal", "-shm"):
        os.replace(f"{other}{ending}", f"{path}{ending}")
    with pytest.raises(SpoolReplaced):
        client.enqueue([submission()], T0)
    one = submission()
    assert client.enqueue([one], T0) == [one.id]
    assert list(SQLiteClientStore(path).statuses([one.id])) == [one.id]


def test_only_a_failed_sync_poisons(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptors left is this process's own trouble."""
    client.close()

    def exhausted(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    fresh = WalSync(path)
    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(SpoolError):
        fresh()
    monkeypatch.undo()
    assert not engine.poisoned


def test_a_run_directory_that_cannot_be_looked_into_stops_acknowledging(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.enqueue([submission()], T0)
    real = os.stat

    def closed(name: object, *args: object, **kwargs: object) -> os.stat_result:
        if str(name).endswith(("poisoned", "-run")):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(SpoolError):
        client.enqueue([submission()], T0)


def test_a_checkpoint_and_a_restarted_wal_keep_the_inode(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, disk: Disk
) -> None:
    inodes = set()
    for _ in range(3):
        client.enqueue([submission()], T0)
        inodes.add(disk.synced[-1].st_ino)
        found = engine.checkpoint()
        assert (found.mode, found.moved) == ("restart", found.frames)
    assert inodes == {os.stat(f"{path}-wal").st_ino}


def test_a_busy_reader_never_makes_a_checkpoint_wait_or_fail(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore
) -> None:
    client.enqueue([submission()], T0)
    reader = connect(path)
    reader.execute("BEGIN").fetchall()
    reader.execute("SELECT count(*) FROM message").fetchall()
    client.enqueue([submission()], T0)
    found = engine.checkpoint()
    assert found.mode == "passive"
    assert found.moved < found.frames
    reader.execute("ROLLBACK").fetchall()
    assert engine.checkpoint().mode == "restart"
    reader.close()


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("renewed", [True, False])
def test_who_only_asks_may_meet_a_descriptor_that_is_closed_or_renewed_just_then(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    """Readers ask from any thread, whatever the one that writes does to the -wal's descriptor."""
    sync = WalSync(path)
    sync.bind()
    real, asked = poison.check_others, []

    def meanwhile(name: str, fd: int) -> None:
        if not asked:
            sync.close()
            if renewed:
                taken = os.open(os.devnull, os.O_RDONLY)  # what had its number is another file
                sync.bind()
                os.close(taken)
        asked.append(fd)
        real(name, fd)

    monkeypatch.setattr(poison, "calm", lambda *_: False)
    monkeypatch.setattr(poison, "check_others", meanwhile)
    sync.check()
    assert len(asked) == 1 + renewed
    sync.close()


def test_a_failed_sync_is_an_unknown_outcome_that_names_the_key(
    path: str, client: SQLiteClientStore, disk: Disk
) -> None:
    one = submission()
    disk.broken = True
    with pytest.raises(OutcomeUnknown, match="did not confirm") as caught:
        client.enqueue([one], T0)
    assert caught.value.key == one.id
    assert set(client.statuses([one.id])) == {one.id}, "written, and that is all we know"
    assert Path(poison_path(path)).read_text() == "EIO\n"


def test_a_poisoned_spool_acknowledges_nothing_in_any_process_until_it_is_repaired(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, disk: Disk
) -> None:
    one = submission()
    disk.broken = True
    with pytest.raises(OutcomeUnknown):
        client.enqueue([one], T0)
    refused = submission()
    attempts = len(disk.synced)
    for step in (
        lambda: client.enqueue([refused], T0),
        lambda: change(client, "cancel", [one.id], None, T0),
        engine.sync,
    ):
        with pytest.raises(SpoolError, match="nothing can be acknowledged now"):
            step()
    assert len(disk.synced) == attempts, "a later sync could succeed and mean nothing"
    assert client.statuses([refused.id]) == {}, "and nothing is written meanwhile"
    code = (
        "from mailstrom.storage.client import Target\n"
        "from mailstrom.types import Change\n"
        "try: print(store.change(Change.CANCEL, [Target(sys.argv[1])], 0))\n"
        "except SpoolError as error: print('acknowledged now' in str(error))\n"
    )
    assert elsewhere(path, code) == "True"
    assert engine.poisoned
    assert engine.repair() is False, "the disk is still broken"
    assert engine.poisoned
    disk.broken = False
    assert engine.repair() is True
    assert not engine.poisoned
    assert client.enqueue([refused], T0) == [refused.id]
    assert elsewhere(path, "print(store.check())") == "[]"


def test_repair_leaves_no_old_frame_to_be_replayed(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, disk: Disk
) -> None:
    one = submission()
    client.enqueue([one], T0)
    disk.broken = True
    with pytest.raises(OutcomeUnknown):
        client.enqueue([submission()], T0)
    reader = connect(path)
    reader.execute("BEGIN").fetchall()
    reader.execute("SELECT count(*) FROM message").fetchall()
    disk.broken = False
    engine._connection.busy_ms = 5
    engine._connection.opened().set_busy_timeout(5)
    assert engine.repair() is False, "a reader still needs the frames"
    reader.execute("ROLLBACK").fetchall()
    reader.close()
    assert engine.repair() is True
    assert os.stat(f"{path}-wal").st_size == 0
    assert set(client.statuses([one.id])) == {one.id}


def test_a_failure_elsewhere_during_our_own_sync_counts_for_us_too(
    path: str, client: SQLiteClientStore, disk: Disk
) -> None:
    disk.then = Path(poison_path(path)).touch
    with pytest.raises(OutcomeUnknown, match="being repaired"):
        client.enqueue([submission()], T0)


def test_a_flag_that_cannot_be_written_is_remembered_and_written_later(
    path: str, client: SQLiteClientStore, disk: Disk
) -> None:
    run = Path(poison_path(path)).parent
    moved = run.with_name("moved")
    disk.broken, disk.then = True, lambda: run.rename(moved)
    with pytest.raises(OutcomeUnknown):
        client.enqueue([submission()], T0)
    disk.broken, disk.then = False, lambda: None
    with pytest.raises(SpoolError, match="acknowledged"):
        client.enqueue([submission()], T0)
    moved.rename(run)
    with pytest.raises(SpoolError, match="acknowledged"):
        client.enqueue([submission()], T0)
    assert Path(poison_path(path)).exists(), "now every process knows"


def test_an_error_whose_flag_cannot_be_written_stops_every_process_all_the_same(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, disk: Disk
) -> None:
    run = Path(poison_path(path)).parent
    moved = run.with_name("moved")
    ask = (
        f"{_SUBMISSION}\n"
        "try: print(store.enqueue([submission()], T0))\n"
        "except (SpoolError, OutcomeUnknown) as error: print(error)\n"
    )

    def swap() -> None:
        run.rename(moved)
        run.symlink_to("/proc/self/fdinfo", target_is_directory=True)  # nothing can be made there

    disk.broken, disk.then = True, swap
    with pytest.raises(OutcomeUnknown):
        client.enqueue([submission()], T0)
    disk.broken, disk.then = False, lambda: None
    assert "another process saw a disk error" in elsewhere(path, ask)
    run.unlink()
    moved.rename(run)
    with pytest.raises(SpoolError, match="acknowledged"):
        client.enqueue([submission()], T0)
    assert any(engine.repair() for _ in range(100)), "twice where the retry came in between"
    assert not engine.poisoned
    assert "message-elsewhere" in elsewhere(path, ask)


def test_a_failure_that_comes_while_another_is_repaired_keeps_the_flag(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, disk: Disk
) -> None:
    disk.broken = True
    with pytest.raises(OutcomeUnknown):
        client.enqueue([submission()], T0)
    disk.broken = False
    late = WalSync(path)
    disk.then = lambda: late.poison(OSError(errno.EIO, "another process' sync"))
    assert engine.repair() is False
    disk.then = lambda: None
    assert engine.poisoned
    assert engine.repair() is True
    assert not engine.poisoned


def test_a_process_without_descriptors_raises_the_flag_all_the_same(
    path: str, client: SQLiteClientStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.broken = True
    real = os.open

    def none_left(name: str, flags: int, *args: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(name, flags, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        with pytest.raises(OutcomeUnknown):
            client.enqueue([submission()], T0)
    assert os.stat(poison_path(path)), "seen by older clients, too, which follow a link"
    disk.broken = False
    store = SQLiteWorkerStore(path)
    assert store.repair() is True
    store.close()
    assert not os.path.lexists(poison_path(path))


def test_a_sync_that_sqlite_makes_within_a_commit_poisons_too(
    path: str, client: SQLiteClientStore
) -> None:
    failed = apsw.IOError("disk I/O error")
    failed.extendedresult = apsw.SQLITE_IOERR_FSYNC
    with pytest.raises(SpoolError), spool_errors(path, "storing a message"):
        raise failed
    with pytest.raises(SpoolError, match="being repaired"):
        client.enqueue([submission()], T0)


def test_a_sync_that_fails_in_a_clients_own_checkpoint_poisons_too(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = apsw.IOError("disk I/O error")
    failed.extendedresult = apsw.SQLITE_IOERR_FSYNC

    class Failing:
        def wal_checkpoint(self, *_args: object) -> None:
            raise failed

    checkpointer = Checkpointer(path, 10, Patience(1).bind)
    assert checkpointer(Failing(), "main", 9) == apsw.SQLITE_OK  # type: ignore[arg-type]
    assert isinstance(client.enqueue([submission()], T0)[0], str)
    assert checkpointer(Failing(), "main", 10) == apsw.SQLITE_OK  # type: ignore[arg-type]
    with pytest.raises(SpoolError, match="being repaired"):
        client.enqueue([submission()], T0)


def test_a_spool_that_cannot_be_looked_at_is_not_taken_for_a_replaced_one(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is stored: whoever says it is not makes a double of it."""
    one = submission()
    client.enqueue([submission()], T0)
    real = os.stat

    def failing(name: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if (str(name).endswith("-wal") or str(name) == os.path.dirname(path)) and failing_now:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, *args, **kwargs)

    failing_now = False
    write = client._insert

    def stored(*args: Any) -> Any:
        nonlocal failing_now
        result = write(*args)
        failing_now = True
        return result

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        patch.setattr(client, "_insert", stored)
        with pytest.raises(OutcomeUnknown) as caught:
            client.enqueue([one], T0)
    assert caught.value.key == one.id
    assert set(client.statuses([one.id])) == {one.id}


def test_a_poisoned_spool_is_moved_nowhere_but_by_the_repair(
    client: SQLiteClientStore, engine: SQLiteWorkerStore, disk: Disk
) -> None:
    disk.broken = True
    with pytest.raises(OutcomeUnknown):
        client.enqueue([submission()], T0)
    with pytest.raises(SpoolError, match="being repaired"):
        engine.checkpoint()
    disk.broken = False
    assert engine.repair() is True
    engine.checkpoint()


def test_a_sync_that_fails_inside_a_checkpoint_poisons_too(
    client: SQLiteClientStore, engine: SQLiteWorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.enqueue([submission()], T0)

    class Failing:
        def wal_checkpoint(self, *, mode: int) -> tuple[int, int]:
            raise apsw.IOError("disk I/O error")

        def set_busy_handler(self, wait: object) -> None:
            return

    with monkeypatch.context() as patch:
        patch.setattr(engine._connection, "opened", Failing)
        with pytest.raises(SpoolError, match="disk I/O error"):
            engine.checkpoint()
    assert engine.poisoned
    assert engine.repair() is True
    assert isinstance(client.enqueue([submission()], T0)[0], str)


@pytest.mark.parametrize(
    ("amount", "commit"),
    [(2, inserting._sized(STATEMENTS["enqueue"], 4)), (257, "COMMIT")],
    ids=["one step", "several steps"],
)
def test_a_commit_that_failed_is_looked_up_before_anything_is_said(
    client: SQLiteClientStore, amount: int, commit: str
) -> None:
    """The rows went in, then an error came: stored is stored."""
    batch = [submission() for _ in range(amount)]
    real = client._write_connection()
    stumbled: list[str] = []

    class Stumbling:
        """The connection, with an I/O error after a commit that took place."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def __enter__(self) -> object:
            return real.__enter__()

        def __exit__(self, *args: Any) -> object:
            return real.__exit__(*args)

        def execute(self, sql: str, *args: Any) -> object:
            found = real.execute(sql, *args)
            if sql == commit:
                stumbled.append(sql)
                raise apsw.IOError("disk I/O error")
            return found

    client._writer = Stumbling()  # type: ignore[assignment]
    assert client.enqueue(batch, T0) == [one.id for one in batch]
    assert stumbled
    assert client.check() == []


def test_a_spool_opened_by_name_is_synced_by_the_system(path: str) -> None:
    store = open_client_store(path)
    assert isinstance(store.enqueue([submission()], T0)[0], str)
    store.close()


def test_a_repair_never_trusts_files_that_are_not_ours(
    path: str, client: SQLiteClientStore, engine: SQLiteWorkerStore, tmp_path: Path
) -> None:
    client.enqueue([submission()], T0)
    other = tmp_path / "other.db"
    SQLiteClientStore(str(other)).close()
    for ending in ("", "-wal", "-shm"):
        os.replace(f"{other}{ending}", f"{path}{ending}")
    with pytest.raises(SpoolReplaced):
        engine.repair()
    with pytest.raises(SpoolReplaced):
        engine.verify()
