"""A spool that has a second name, by a hard link, is opened by none; what works on it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite import backups, names, restore, schema
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool, submission
from tests.support.engine import environment

Open = Callable[[str], object]
WAYS: dict[str, Open] = {
    "client": SQLiteClientStore,
    "worker": SQLiteWorkerStore,
    "engine": lambda path: schema.prepare(path, engine=True),
}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A spool with one message in its log, closed by all, and this process knows nothing of it."""
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        Spool(stores).send("a@example.org")
    names._alone.clear()
    yield stores.path
    names._alone.clear()


def files(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["spool.db", "other.db"])
def test_of_two_names_none_is_opened(path: str, way: str, name: str) -> None:
    other = os.path.join(os.path.dirname(path), "other.db")
    os.link(path, other)
    before = files(path)
    wanted, beside = (path, other) if name == "spool.db" else (other, path)
    with pytest.raises(SpoolError, match=f"second name, a hard link: {beside}"):
        WAYS[way](wanted)
    assert files(path) == before, "no log of that name was made"
    os.unlink(other)
    WAYS[way](path)


def test_a_name_in_another_directory_is_asked_for(path: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.link(path, tmp_path / "elsewhere" / "kept.db")
    with pytest.raises(SpoolError, match=rf"find / -samefile {path}"):
        SQLiteClientStore(path)


def test_a_name_that_comes_later_stops_nobody_and_is_opened_by_nobody(stores: SQLiteStores) -> None:
    """As by a backup that links the files for a moment, while the spool is in use."""
    spool = Spool(stores)
    first = spool.send("a@example.org")
    other = f"{stores.path}.linked"
    os.link(stores.path, other)
    program = "import sys; from mailstrom import Mailstrom; Mailstrom(sys.argv[1])"
    for name in (other, stores.path):
        told = subprocess.run(
            [sys.executable, "-P", "-c", program, name],
            env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "second name" in told.stderr, "a process that comes new"
    spool.client.let_go()  # as for a fork
    spool.engine._connection.let_go()  # type: ignore[attr-defined]
    second = spool.send("b@example.org")
    spool.route()
    assert len(spool.claim(spool.lane())) == 2
    assert set(spool.client.statuses([first, second])) == {first, second}
    os.unlink(other)
    spool.sound()


def test_what_a_copy_left_that_was_killed_at_its_end_is_in_nobodys_way(path: str) -> None:
    left = os.path.join(os.path.dirname(path), f".spool.db.copy-{'0' * 16}")
    os.link(path, left)
    SQLiteClientStore(path).close()
    assert not os.path.exists(left)


def test_what_a_restore_left_that_was_killed_before_its_note_is_in_nobodys_way(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = str(tmp_path / "copy.db")
    client = SQLiteClientStore(path)
    client.backup(copy, T0)
    client.close()
    names._alone.clear()

    def killed(path: str, kept: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restore, "_put_note", killed)
        with pytest.raises(KeyboardInterrupt):
            restore.restore(copy, path, T0)
    assert [name for name in files(path) if ".replaced-" in name]
    opened = SQLiteClientStore(path)
    assert opened.enqueue([submission()], T0)
    assert not [name for name in files(path) if ".replaced-" in name]
    assert os.stat(f"{path}-wal").st_nlink == 1
    opened.close()


def test_a_copy_with_many_names_can_be_put_in_a_spools_place(path: str, tmp_path: Path) -> None:
    """A tree of backups may have each file once, and many names for it."""
    copy = str(tmp_path / "daily.0")
    client = SQLiteClientStore(path)
    client.backup(copy, T0)
    client.close()
    os.link(copy, tmp_path / "daily.1")
    assert restore.restore(copy, path, T0) is not None
    assert backups.checked(path, path)
    SQLiteClientStore(path).close()
