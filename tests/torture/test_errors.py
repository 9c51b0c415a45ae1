"""The short form of the disk errors, and proof that its oracle objects when a promise is broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailstrom.errors import OutcomeUnknown, SpoolError
from mailstrom.storage.sqlite import poison
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.durable import WalSync
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, submission
from tests.support.trial import Plan
from tests.torture import errors, errors_processes, errors_world
from tests.torture.errors_inject import Fault

IN_PROCESS = 1_500
PROCESSES = 25


@pytest.mark.timeout(400)
def test_no_disk_error_in_one_process_breaks_a_promise(tmp_path: Path) -> None:
    rows = list(errors.sweep(Plan(folder=tmp_path)))
    dirty = [text for row in rows for text in row.findings]
    assert not dirty, "\n".join(dirty[:20])
    assert all(row.clean and row.tried for row in rows)
    assert sum(row.tried for row in rows) >= IN_PROCESS


@pytest.mark.timeout(300)
def test_after_a_failed_sync_in_any_process_none_acknowledges_until_the_repair(
    tmp_path: Path,
) -> None:
    rows = list(errors_processes.run(Plan(folder=tmp_path)))
    dirty = [text for row in rows for text in row.findings]
    assert not dirty, "\n".join(dirty[:20])
    assert sum(row.tried for row in rows) >= PROCESSES


def trials(tmp_path: Path, verb: errors_world.Verb, fault: Fault, count: int = 4) -> list[str]:
    """What the oracle finds over some trials."""
    folder = tmp_path / "world"
    folder.mkdir()
    with errors_world.World(folder, 1) as world:
        for _ in range(count):
            world.trial(verb, fault, deep=True)
    return world.findings


def test_without_a_fault_nothing_fires_and_nothing_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    folder.mkdir()
    with errors_world.World(folder, 1) as world:
        fault = Fault(op="sync", file="wal", n=1_000)
        assert [world.trial(verb, fault, deep=True) for verb in errors_world.VERBS[:4]] == [0] * 4
        assert world.findings == []


def test_a_flag_that_is_not_raised_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poison, "poison", lambda path, error: None)
    found = trials(tmp_path, errors_world.enqueue_one, Fault(op="sync", file="wal"), 1)
    assert any("between a failed sync and the repair" in text for text in found), found


def test_a_repair_that_only_syncs_again_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(store: SQLiteWorkerStore) -> bool:
        begun = store._sync.begin_repair()
        store._sync.fresh()
        return store._sync.heal(begun)

    monkeypatch.setattr(SQLiteWorkerStore, "repair", hasty)
    found = trials(tmp_path, errors_world.enqueue_one, Fault(op="sync", file="wal"))
    assert any("not in what a power cut leaves" in text for text in found), found


def test_a_flag_raised_during_our_sync_refuses_what_was_synced(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    during: list[int] = []

    def sync(fd: int) -> None:
        os.fdatasync(fd)
        if during:  # another process's sync fails in the middle of ours
            run = Path(f"{path}-run")
            (run / "poisoned").write_text("1 another process: Input/output error\n")

    store = SQLiteClientStore(str(path), sync=sync)
    try:
        store.enqueue([submission()], T0)
        during.append(1)
        with pytest.raises((SpoolError, OutcomeUnknown)):
            store.enqueue([submission()], T0)
    finally:
        store.close()


def test_an_acknowledgement_without_a_sync_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WalSync, "__call__", lambda self: None)
    found = trials(tmp_path, errors_world.enqueue_batch, Fault(op="write", file="wal", n=2), 8)
    assert any("not in what a power cut leaves" in text for text in found), found


def test_an_error_of_another_family_that_gets_out_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SQLiteWorkerStore, "checkpoint", lambda self: 1 // 0)
    found = trials(tmp_path, errors_world.checkpoint, Fault(op="write", file="wal"), 1)
    assert any("crosses the seam" in text for text in found), found
