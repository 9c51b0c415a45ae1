"""A process that has just ended or been replaced is looked at twice before it is called gone."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from mailstrom.clock import boot_id, wall_ms
from mailstrom.control import JANITOR_LOCK, SUPERVISOR_LOCK
from mailstrom.doctor import examination
from mailstrom.doctor.finding import Finding
from mailstrom.lockfile import LockFile
from mailstrom.storage import open_worker_store, run_directory


class Installation:
    """A spool with one delivery worker that lives (this process holds its lock), and one to end."""

    def __init__(self, store: Path) -> None:
        self.store = str(store)
        Mailstrom(store).close()
        self.folder = Path(run_directory(self.store))
        self._engine = open_worker_store(self.store)
        for name in (SUPERVISOR_LOCK, JANITOR_LOCK):
            self.hold(name)
        self.register("one.lock")
        self.second = self.register("two.lock")

    def hold(self, name: str) -> LockFile:
        self.folder.mkdir(exist_ok=True)
        lock = LockFile(self.folder / name)
        assert lock.acquire({"pid": os.getpid(), "host": socket.gethostname()})
        return lock

    def register(self, lock: str) -> int:
        """A row; its lock is held but for the second's, which is free: it has ended."""
        if lock != "two.lock":
            self.hold(lock)
        pid, host = os.getpid(), socket.gethostname()
        return self._engine.register(
            kind="delivery", pid=pid, host=host, boot=boot_id(), lock=lock, restarts=0,
            now_ms=wall_ms(),
        ).seq  # fmt: skip

    def stopped(self) -> None:
        """The second's row comes to say what its lock says."""
        self._engine.retire(self.second, state="stopped", now_ms=wall_ms())

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with contextlib.closing(Installation(tmp_path / "spool.db")) as made:
        yield made


Between = Callable[[Callable[[], object]], list[float]]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    """What happens while doctor waits for its second look; tells the waits."""

    def happen(what: Callable[[], object]) -> list[float]:
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            what()

        monkeypatch.setattr(examination.time, "sleep", sleep)
        return waits

    return happen


def found(installation: Installation, check: str) -> list[Finding]:
    told = examination._of_the_spool(installation.store, None)
    return [one for one in told if one.check == check]


def test_a_worker_that_stays_gone_is_told(installation: Installation, between: Between) -> None:
    waits = between(lambda: None)
    [gone] = found(installation, "engine.gone")
    assert gone.evidence["worker"] == installation.second
    assert waits == [examination.AGAIN_S]


def test_a_worker_that_was_just_ending_is_not(installation: Installation, between: Between) -> None:
    waits = between(installation.stopped)
    assert found(installation, "engine.gone") == []
    assert len(waits) == 1


def test_another_that_ends_meanwhile_is_not_told_by_one_look(
    installation: Installation, between: Between
) -> None:
    between(lambda: (installation.stopped(), installation.register("two.lock")))
    assert found(installation, "engine.gone") == []


def test_whoever_is_well_is_not_made_to_wait(installation: Installation, between: Between) -> None:
    installation.stopped()
    waits = between(lambda: None)
    assert [one.level for one in found(installation, "engine.running")] == ["ok"]
    assert waits == []


def test_a_look_that_took_long_is_the_only_one(
    installation: Installation, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = between(lambda: None)
    monkeypatch.setattr(examination, "NO_LATER_S", 0.0)
    assert len(found(installation, "engine.gone")) == 1
    assert waits == []
