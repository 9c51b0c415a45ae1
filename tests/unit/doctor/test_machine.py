"""What the machine says: its clock, the locks of an engine, what its processes may open."""

from __future__ import annotations

import os
import resource
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mailstrom import descriptors
from mailstrom.control import JANITOR_LOCK, SUPERVISOR_LOCK
from mailstrom.doctor import machine
from mailstrom.lockfile import LockFile
from tests.unit.doctor.facts import ROWS, config, row


def test_the_kernel_is_asked_about_its_clock_and_nothing_is_set() -> None:
    assert machine.synchronised() in ((True, False) if sys.platform == "linux" else (None,))


def test_locks_tell_who_lives(tmp_path: Path) -> None:
    ours = row(1, pid=os.getpid(), host=socket.gethostname(), lock="delivery-1.lock")
    rows = replace(ROWS, workers=(ours, row(2, lock="delivery-2.lock")))
    locks = {name: LockFile(tmp_path / name) for name in
             (SUPERVISOR_LOCK, JANITOR_LOCK, "delivery-1.lock")}  # fmt: skip
    (tmp_path / "delivery-2.lock").touch()
    assert machine.engine(str(tmp_path), rows, None).supervisor is None
    for lock in locks.values():
        assert lock.acquire({"pid": 7, "host": "here"})
    found = machine.engine(str(tmp_path), rows, config(delivery={"workers": 3}))
    assert (found.visible, found.supervisor, found.janitor) == (True, "pid 7 on here", True)
    assert (found.wanted, found.connections) == (3, 200)
    assert [one.held for one in found.processes] == [True, False]
    first = found.processes[0]
    assert first.most_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert (first.files or 0) > 3
    assert first.stopped is False
    assert found.processes[1].files is None
    for lock in locks.values():
        lock.release()
    assert machine.engine(str(tmp_path), rows, None).janitor is False


def test_a_lock_that_may_not_be_asked_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SUPERVISOR_LOCK).touch()
    real = os.access

    def access(path: str, mode: int, **options: bool) -> bool:
        return not str(path).endswith(SUPERVISOR_LOCK) and real(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    found = machine.engine(str(tmp_path), ROWS, None)
    assert (found.visible, found.supervisor, found.janitor) == (False, None, False)


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        ((1_024, 524_288), 65_536),  # a worker raises its own
        ((1_024, 4_096), 4_096),
        ((100_000, 100_000), 100_000),
        ((1_024, resource.RLIM_INFINITY), 65_536),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_before_a_start_it_is_told_what_a_worker_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], files: int | None
) -> None:
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: limits)
    assert machine.engine(str(tmp_path), replace(ROWS, workers=()), None).files == files
