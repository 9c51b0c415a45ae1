"""Copies of a spool file: what goes wrong on the way leaves nothing, and loses nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailstrom.errors import SpoolBusy, SpoolError, SpoolFull, SpoolReadOnly
from mailstrom.storage.sqlite import backups, copies, forks
from mailstrom.storage.sqlite import client as client_module
from mailstrom.storage.sqlite.client import SQLiteClientStore
from tests.storage.files import SQLiteStores
from tests.storage.spool import DAY, HOUR, T0, Spool, submission


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield Spool(stores)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "copies"
    made.mkdir()
    return made


def fails_with(number: int) -> Callable[..., None]:
    """A system call that fails."""

    def call(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, SpoolFull), (errno.EROFS, SpoolReadOnly), (errno.EIO, SpoolError)],
)
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_copy_that_the_system_refuses_leaves_nothing(
    spool: Spool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    kind: type[SpoolError],
) -> None:
    spool.send()
    with monkeypatch.context() as patch:
        patch.setattr(backups.os, call, fails_with(number))
        with pytest.raises(kind, match="nothing is left of it"):
            spool.client.backup(str(folder / "copy.db"), T0)
    assert os.listdir(folder) == []
    spool.client.backup(str(folder / "copy.db"), T0)
    assert os.listdir(folder) == ["copy.db"]


def test_somebody_who_takes_the_name_meanwhile_keeps_it(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def sync(fd: int) -> None:
        (folder / "copy.db").write_bytes(b"precious")
        real(fd)

    monkeypatch.setattr(backups.os, "fsync", sync)
    with pytest.raises(SpoolError, match="File exists"):
        spool.client.backup(str(folder / "copy.db"), T0)
    assert os.listdir(folder) == ["copy.db"]
    assert (folder / "copy.db").read_bytes() == b"precious"


def test_without_hard_links_a_copy_gets_its_name_all_the_same(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = spool.send()
    monkeypatch.setattr(backups.os, "link", fails_with(errno.EPERM))
    spool.client.backup(str(folder / "copy.db"), T0)
    assert os.listdir(folder) == ["copy.db"]
    copy = SQLiteClientStore(str(folder / "copy.db"))
    assert list(copy.statuses([id])) == [id]
    copy.close()


def test_a_copy_whose_maker_is_killed_has_no_name(spool: Spool, folder: Path) -> None:
    """At the last moment before it gets one."""
    spool.send()
    target = folder / "copy.db"
    code = (
        "import os, signal, sys\n"
        "from mailstrom.storage import open_client_store\n"
        "from mailstrom.storage.sqlite import backups\n"
        "backups.os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_client_store(sys.argv[1]).backup(sys.argv[2], 1)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, spool.client.path, str(target)],  # type: ignore[attr-defined]
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert ran.returncode == -signal.SIGKILL
    assert not target.exists()
    left = os.listdir(folder)
    assert [name[:14] for name in left] == [".copy.db.copy-"]
    others = [".other.db.copy-0123456789abcdef", ".copy.db.copy-of-mine"]
    for name in others:
        (folder / name).write_bytes(b"precious")
    spool.client.backup(str(target), T0)
    assert set(os.listdir(folder)) == {"copy.db", *others}, "the next one sweeps, its own only"
    spool.sound()


def test_a_maker_that_lives_keeps_its_temporary_file(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another copy to the same name begins and ends while the first is being synced."""
    real = os.fsync
    other = spool.stores.client()

    def sync(fd: int) -> None:
        monkeypatch.setattr(backups.os, "fsync", real)
        before = os.listdir(folder)
        other.backup(str(folder / "copy.db"), T0)
        assert set(os.listdir(folder)) == {"copy.db", *before}
        real(fd)

    monkeypatch.setattr(backups.os, "fsync", sync)
    with pytest.raises(SpoolError, match="File exists"):
        spool.client.backup(str(folder / "copy.db"), T0)
    assert os.listdir(folder) == ["copy.db"]


def test_a_name_that_a_killed_maker_left_beside_a_finished_copy_goes(
    spool: Spool, folder: Path
) -> None:
    spool.client.backup(str(folder / "kept.db"), T0)
    os.link(folder / "kept.db", folder / ".copy.db.copy-0123456789abcdef")
    spool.client.backup(str(folder / "copy.db"), T0)
    assert sorted(os.listdir(folder)) == ["copy.db", "kept.db"]


def wants_to_fork(monkeypatch: pytest.MonkeyPatch, answers: Iterator[bool]) -> None:
    """Somebody wants to fork whenever the next answer says so; nobody once they are out."""
    monkeypatch.setattr(backups.forks, "wanted", lambda: next(answers, False))


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_copy_begins_anew_for_a_fork_also_while_it_is_checked(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    ids = [spool.send(content=b"x" * 200_000) for _ in range(4)]
    monkeypatch.setattr(backups, "CHECK_STEPS", 1)
    inside: list[bool] = []
    real = backups._Temporary.end

    def end(temporary: backups._Temporary) -> None:
        inside.append(bool(forks._inside))
        real(temporary)

    monkeypatch.setattr(backups._Temporary, "end", end)
    wants_to_fork(monkeypatch, itertools.chain([False] * looks, [True]))
    spool.client.backup(str(folder / "copy.db"), T0)
    assert inside == [False, False], "left for the fork, and begun once more"
    assert os.listdir(folder) == ["copy.db"]
    copy = SQLiteClientStore(str(folder / "copy.db"))
    assert set(copy.statuses(ids)) == set(ids)
    assert copy.check() == []
    copy.close()


def test_a_process_that_forks_again_and_again_is_told_so(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wants_to_fork(monkeypatch, itertools.repeat(True))
    with pytest.raises(SpoolBusy, match=r"copy\.db: this process forked 10 times"):
        spool.client.backup(str(folder / "copy.db"), T0)
    assert os.listdir(folder) == []


def test_a_fork_waits_for_no_copy_and_the_child_can_send(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.send()
    begun, real = threading.Event(), forks.wanted

    def wanted() -> bool:
        if not begun.is_set():
            begun.set()
            while not real():  # the copy stands still until the fork has begun
                time.sleep(0.001)
        return real()

    monkeypatch.setattr(backups.forks, "wanted", wanted)
    errors: list[BaseException] = []

    def copy() -> None:
        try:
            spool.client.backup(str(folder / "copy.db"), T0)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=copy)
    thread.start()
    assert begun.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
        child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = 0 if spool.client.enqueue([submission()], T0) else 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    thread.join(60)
    assert (os.waitstatus_to_exitcode(status), errors) == (0, [])
    assert os.listdir(folder) == ["copy.db"]
    spool.sound()


def test_a_forked_child_leaves_the_temporary_file_of_its_parent_alone(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked while the copy is being synced, when no connection is open."""
    real, codes = os.fsync, []

    def sync(fd: int) -> None:
        monkeypatch.setattr(backups.os, "fsync", real)
        before = sorted(os.listdir(folder))
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                gone = not os.path.exists(f"/proc/self/fd/{fd}")
                code = 0 if gone and not backups._making else 2
            os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert sorted(os.listdir(folder)) == before
        real(fd)

    monkeypatch.setattr(backups.os, "fsync", sync)
    spool.client.backup(str(folder / "copy.db"), T0)
    assert codes == [0]
    assert os.listdir(folder) == ["copy.db"]


def test_an_adoption_that_is_broken_off_leaves_a_copy_and_counts_no_time_twice(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [spool.send(expires_ms=T0 + HOUR) for _ in range(5)]
    spool.client.backup(str(folder / "copy.db"), T0)
    copy = SQLiteClientStore(str(folder / "copy.db"))
    monkeypatch.setattr(copies, "ADOPTED_MESSAGES", 2)

    def killed(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client_module.time, "sleep", killed)
        with pytest.raises(KeyboardInterrupt):
            copy.adopt(T0 + DAY)
    assert copy.stats(T0).copied, "no engine touches what is not shifted yet"
    assert copy.adopt(T0 + 2 * DAY)
    assert not copy.stats(T0).copied
    found = copy.statuses(ids).values()
    assert {round(one.expires_at.timestamp() * 1000) for one in found} == {T0 + 2 * DAY + HOUR}
    copy.close()


def test_a_copy_leaves_no_descriptor_and_no_lock_behind(spool: Spool, folder: Path) -> None:
    spool.client.backup(str(folder / "first.db"), T0)
    gc.collect()  # what earlier tests left to the collector
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        spool.client.backup(str(folder / f"copy-{number}.db"), T0)
    assert len(os.listdir("/proc/self/fd")) <= before
    spool.send()
    done = spool.engine.checkpoint()
    assert done.moved == done.frames, "no snapshot is held that would keep the log"
