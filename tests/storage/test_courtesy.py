"""A worker that waited for the write lock lets the client in front of it go first, once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from mailstrom.storage.sqlite import locks
from mailstrom.storage.sqlite.courtesy import PASS_S, Courtesy


class Lock:
    """A database with a writer in the way, which ends when the worker has asked once."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "some.db")
        self.other = apsw.Connection(self.path)
        self.other.execute("PRAGMA journal_mode = WAL; CREATE TABLE seen (who)").fetchall()
        self.worker = apsw.Connection(self.path)
        self.turn = str(folder / "turn")
        os.mkfifo(self.turn)
        self.front = os.open(self.turn, os.O_RDWR | os.O_NONBLOCK)
        self.pauses: list[float] = []
        self.courtesy = Courtesy(self.turn, 1_000, self.pause)
        self.courtesy.bind(self.worker)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if not self.other.get_autocommit():
            self.other.execute("COMMIT")
        elif seconds == PASS_S:  # the lock is free: who is in front has it at once
            self.other.execute("INSERT INTO seen VALUES ('client')")

    def write(self) -> list[str]:
        """Who wrote, in order, once the worker has."""
        self.courtesy.begin(self.worker)
        self.worker.execute("INSERT INTO seen VALUES ('worker'); COMMIT")
        return [row[0] for row in self.worker.execute("SELECT who FROM seen ORDER BY rowid")]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Lock]:
    """Nobody in the way yet."""
    found = Lock(tmp_path)
    yield found
    os.close(found.front)
    found.worker.close()
    found.other.close()


def test_behind_a_worker_the_client_in_front_writes_first(lock: Lock) -> None:
    fcntl.flock(lock.front, fcntl.LOCK_EX)
    lock.other.execute("BEGIN IMMEDIATE")
    assert lock.write() == ["client", "worker"]
    assert lock.pauses.count(PASS_S) == 1, "once: whoever comes next waits for the worker"


def test_nobody_is_let_pass_where_nobody_has_the_turn(lock: Lock) -> None:
    lock.other.execute("BEGIN IMMEDIATE")
    assert lock.write() == ["worker"]
    assert PASS_S not in lock.pauses


def test_a_worker_that_finds_the_lock_free_asks_nobody(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl.flock(lock.front, fcntl.LOCK_EX)
    monkeypatch.setattr(locks, "LOCKS", "/nowhere")
    assert lock.write() == ["worker"]
    assert lock.pauses == []


def test_a_turn_that_the_system_does_not_tell_of_lets_nobody_pass(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl.flock(lock.front, fcntl.LOCK_EX)
    monkeypatch.setattr(locks, "LOCKS", "/nowhere")
    lock.other.execute("BEGIN IMMEDIATE")
    assert lock.write() == ["worker"]


def test_a_spool_without_a_turn_lets_nobody_pass(lock: Lock) -> None:
    os.unlink(lock.turn)
    lock.other.execute("BEGIN IMMEDIATE")
    assert lock.write() == ["worker"]
    assert PASS_S not in lock.pauses


def test_a_lock_that_does_not_come_in_time_is_told(lock: Lock) -> None:
    patient = Courtesy(lock.turn, 0, lambda _: pytest.fail("there was no time to wait"))
    patient.bind(lock.worker)
    lock.other.execute("BEGIN IMMEDIATE")
    with pytest.raises(apsw.BusyError):
        patient.begin(lock.worker)
    assert lock.worker.get_autocommit()


def test_a_lock_lost_in_passing_leaves_no_transaction(lock: Lock) -> None:
    fcntl.flock(lock.front, fcntl.LOCK_EX)
    taken: list[float] = []

    def pause(seconds: float) -> None:
        if seconds == PASS_S:  # the client stays: a stopped one, say
            lock.other.execute("BEGIN IMMEDIATE")
            taken.append(seconds)
            lock.courtesy._busy_s = 0
        elif not taken:
            lock.other.execute("COMMIT")

    lock.courtesy._pause = pause
    lock.other.execute("BEGIN IMMEDIATE")
    with pytest.raises(apsw.BusyError):
        lock.courtesy.begin(lock.worker)
    assert lock.worker.get_autocommit()
