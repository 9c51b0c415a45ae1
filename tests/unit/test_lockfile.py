"""Lock files: held by one, freed by death, never kept alive by a child of their holder."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mailstrom import lockfile
from mailstrom.lockfile import LockFile, holder, is_free, make_directory


def in_child(step: Callable[[], bool]) -> int:
    """Run a step in a forked child that lives until it is killed; its id, once the step is done."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"y" if step() else b"n")
        while True:
            signal.pause()
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"y"
    finally:
        os.close(reader)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    return LockFile(tmp_path / "a.lock")


def test_one_holds_it_and_is_named(lock: LockFile) -> None:
    assert lock.acquire({"pid": 7})
    assert not LockFile(lock.path).acquire()
    assert (lock.held, lock.named, is_free(lock.path)) == (True, True, False)
    assert holder(lock.path) == {"pid": 7}
    lock.release(delete=True)
    assert (lock.held, lock.path.exists(), is_free(lock.path)) == (False, False, True)


def test_who_asks_while_another_asks_takes_nobody_for_the_holder(
    lock: LockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.path.touch()
    let_go, answers = lockfile._let_go, []

    def meanwhile(fd: int) -> None:
        monkeypatch.setattr(lockfile, "_let_go", let_go)
        answers.append((is_free(lock.path), lock.acquire()))
        let_go(fd)

    monkeypatch.setattr(lockfile, "_let_go", meanwhile)
    assert is_free(lock.path)
    assert answers == [(True, False)]  # who takes it tries again
    assert lock.acquire()


def test_a_forked_child_holds_nothing(lock: LockFile) -> None:
    assert lock.acquire({"pid": os.getpid()})
    child = in_child(lambda: not lock.held and not is_free(lock.path))
    try:
        assert lock.named
        assert not is_free(lock.path)  # the child's end of it took nothing from us
        lock.release()
        assert is_free(lock.path)  # though the child lives
    finally:
        end(child)


def test_a_child_that_releases_what_it_inherited_leaves_the_file(lock: LockFile) -> None:
    assert lock.acquire({"pid": 7})

    def release() -> bool:
        lock.release(delete=True)
        return lock.path.exists()

    end(in_child(release))
    assert holder(lock.path) == {"pid": 7}
    assert lock.named


def test_a_child_may_take_what_its_parent_lets_go(lock: LockFile) -> None:
    assert lock.acquire()
    lock.release()
    child = in_child(lock.acquire)
    try:
        assert not is_free(lock.path)
    finally:
        end(child)
    assert is_free(lock.path)


def test_forks_beside_threads_that_take_and_probe_leave_no_lock_behind(tmp_path: Path) -> None:
    over = threading.Event()

    def take(number: int) -> None:
        lock = LockFile(tmp_path / f"{number}.lock")
        while not over.is_set():
            assert lock.acquire()
            lock.release()

    def probe() -> None:
        while not over.is_set():
            is_free(tmp_path / "probed.lock")

    (tmp_path / "probed.lock").touch()
    threads = [threading.Thread(target=take, args=(number,)) for number in range(2)]
    threads.append(threading.Thread(target=probe))
    for thread in threads:
        thread.start()
    children = []
    try:
        for _ in range(60):
            child = os.fork()
            if child == 0:
                while True:
                    signal.pause()
            children.append(child)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        free = [is_free(path) for path in sorted(tmp_path.glob("*.lock"))]
        for child in children:
            end(child)
    assert free == [True] * 3


@pytest.mark.parametrize(("outer", "inner"), [(0o700, 0o700), (0o2770, 0o2770), (0o755, 0o700)])
def test_a_directory_that_was_deleted_is_made_with_the_modes_it_had(
    tmp_path: Path, outer: int, inner: int
) -> None:
    folder = tmp_path / "spool.db-run"
    tmp_path.chmod(outer)
    make_directory(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == inner
    folder.chmod(0o750)
    make_directory(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750, "one that is there stays as it is"
