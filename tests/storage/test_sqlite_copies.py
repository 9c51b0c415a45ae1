"""Copies of a spool file: what goes wrong on the way leaves nothing, and loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailstrom.errors import SpoolError, SpoolFull, SpoolReadOnly
from mailstrom.storage.sqlite import copies
from mailstrom.storage.sqlite.client import SQLiteClientStore
from tests.storage.spool import Spool
from tests.storage.test_sqlite import SQLiteStores


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
        patch.setattr(copies.os, call, fails_with(number))
        with pytest.raises(kind, match="nothing is left of it"):
            spool.client.backup(str(folder / "copy.db"))
    assert os.listdir(folder) == []
    spool.client.backup(str(folder / "copy.db"))
    assert os.listdir(folder) == ["copy.db"]


def test_somebody_who_takes_the_name_meanwhile_keeps_it(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copies._sync

    def sync(path: str) -> None:
        (folder / "copy.db").write_bytes(b"precious")
        real(path)

    monkeypatch.setattr(copies, "_sync", sync)
    with pytest.raises(SpoolError, match="File exists"):
        spool.client.backup(str(folder / "copy.db"))
    assert os.listdir(folder) == ["copy.db"]
    assert (folder / "copy.db").read_bytes() == b"precious"


def test_without_hard_links_a_copy_gets_its_name_all_the_same(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = spool.send()
    monkeypatch.setattr(copies.os, "link", fails_with(errno.EPERM))
    spool.client.backup(str(folder / "copy.db"))
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
        "from mailstrom.storage.sqlite import copies\n"
        "copies._name = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_client_store(sys.argv[1]).backup(sys.argv[2])\n"
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
    assert all(name.startswith(".copy.db.copy-") for name in left)
    spool.client.backup(str(target))
    assert set(os.listdir(folder)) == {"copy.db", *left}
    spool.sound()


def test_a_copy_leaves_no_descriptor_and_no_lock_behind(spool: Spool, folder: Path) -> None:
    spool.client.backup(str(folder / "first.db"))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        spool.client.backup(str(folder / f"copy-{number}.db"))
    assert len(os.listdir("/proc/self/fd")) == before
    spool.send()
    done = spool.engine.checkpoint()
    assert done.moved == done.frames, "no snapshot is held that would keep the log"
