"""The instance lock: one holder, named to the next, freed by death whatever the file says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mailstrom.lockfile import LockFile
from mailstrom.supervisor import instance
from mailstrom.supervisor.instance import Holder, Instance, Standing, lock_path, take_lock

HOLD = """
import sys
from mailstrom.supervisor import instance
from mailstrom.supervisor.instance import take_lock
lock = take_lock(sys.argv[1])
print(int(lock.held), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> str:
    store = str(tmp_path / "spool.db")
    lock_path(store).parent.mkdir()
    return store


def test_the_second_is_told_who_the_first_is(store: str) -> None:
    lock = take_lock(store)
    assert isinstance(lock, LockFile)

    assert take_lock(store) == Holder(pid=os.getpid(), host=socket.gethostname())

    lock.release()
    again = take_lock(store)
    assert isinstance(again, LockFile)
    again.release()


def test_a_released_lock_names_nobody(store: str) -> None:
    lock = take_lock(store)
    assert isinstance(lock, LockFile)
    lock.release()

    assert lock_path(store).read_bytes() == b""


def test_a_killed_holders_words_do_not_hold(store: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline().strip().isdigit()
        assert take_lock(store) == Holder(pid=first.pid, host=socket.gethostname())
        first.kill()
        first.wait(30)

    assert json.loads(lock_path(store).read_bytes())["pid"] == first.pid
    lock = take_lock(store)
    assert isinstance(lock, LockFile)
    assert json.loads(lock_path(store).read_bytes())["pid"] == os.getpid()
    lock.release()


@pytest.mark.parametrize(
    "words", [b"", b"{", b"[1]", b'{"pid": "x", "host": "h"}', b'{"pid": 1}', b"\xff\xfe"]
)
def test_a_file_that_names_nobody_still_refuses(
    store: str, words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "_PATIENCE_MS", 50)
    lock = take_lock(store)
    assert isinstance(lock, LockFile)
    lock_path(store).write_bytes(words)

    assert take_lock(store) == Holder(pid=0, host="unknown")

    lock.release()


def test_the_lock_is_not_inherited(store: str) -> None:
    lock = take_lock(store)
    assert isinstance(lock, LockFile)
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        close_fds=False,
    ) as orphan:
        lock.release()
        again = take_lock(store)
        assert orphan.poll() is None
    assert isinstance(again, LockFile)
    again.release()


def test_a_directory_that_comes_back_between_two_looks_is_no_rival(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = take_lock(store)
    assert isinstance(lock, LockFile)
    guard = Instance(store, lock)
    folder = lock_path(store).parent
    away = folder.with_suffix(".away")

    def take_when_back(name: str) -> LockFile | Holder:
        away.rename(folder)
        return take_lock(name)

    monkeypatch.setattr(instance, "take_lock", take_when_back)
    folder.rename(away)

    assert guard.look() == Standing()

    assert guard.look() == Standing()
    monkeypatch.undo()
    lock_path(store).unlink()
    assert guard.look() == Standing(retaken=True)
    guard.release()


def test_another_that_took_the_name_is_a_rival(store: str) -> None:
    lock = take_lock(store)
    assert isinstance(lock, LockFile)
    guard = Instance(store, lock)
    lock_path(store).unlink()
    other = take_lock(store)

    assert guard.look() == Standing(rival=Holder(pid=os.getpid(), host=socket.gethostname()))

    assert isinstance(other, LockFile)
    other.release()
    guard.release()
