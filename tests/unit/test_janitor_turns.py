"""When the janitor has a round to do, and when a spool at rest lets it pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from mailstrom.config import Config
from mailstrom.errors import SpoolBusy, SpoolError
from mailstrom.storage.base import Checkpoint, Retention, WorkerStore
from mailstrom.storage.sqlite import poison
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom_workers import janitor as module
from mailstrom_workers.janitor import CALM_S, PURGE_AGAIN_S, REST_S, ROUND_S, Janitor
from mailstrom_workers.machine import Machine

MESSAGE = b"From: a@sender.test\r\nTo: b@there.test\r\n\r\nword\r\n"


class Counted(Janitor):
    """Counts its rounds; ``fault`` is raised by the next one."""

    rounds = 0
    fault: SpoolError | None = None

    def round(self, store: WorkerStore) -> None:
        self.rounds += 1
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        super().round(store)


class Turns:
    """A janitor's turns over a spool, by a clock that stands until it is moved."""

    def __init__(self, path: Path) -> None:
        self.client = Mailstrom(path)
        self.store = SQLiteWorkerStore(str(path))
        self.now_ms = 1_000_000
        machine = Machine(monotonic_ms=lambda: self.now_ms, boot_id=lambda: "a boot")
        config = Config(store=str(path), hostname="sender.test")
        self.janitor = Counted(str(path), 0, config, machine=machine)

    def __call__(self, after_s: float = 0.0) -> tuple[int, float]:
        """Rounds that a turn had, and when it wants the next."""
        self.now_ms += round(1000 * after_s)
        before = self.janitor.rounds
        again_s = self.janitor.turn(self.store)
        return self.janitor.rounds - before, again_s

    def rested(self) -> None:
        """Turns until one has no round."""
        for _ in range(10):
            if self() == (0, CALM_S):
                return
        raise AssertionError("it never rests")


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    made = Turns(tmp_path / "spool.db")
    with closing(made.client), closing(made.store):
        yield made


def test_a_spool_at_rest_has_a_round_only_now_and_then(turns: Turns) -> None:
    assert turns() == (1, ROUND_S)
    turns.rested()
    assert turns(CALM_S) == (0, CALM_S)
    assert turns(REST_S) == (1, ROUND_S)


def test_a_commit_of_anybody_brings_the_next_round(turns: Turns) -> None:
    turns.rested()
    turns.client.send(MESSAGE)
    assert turns() == (1, ROUND_S)
    assert turns() == (0, CALM_S)


def test_what_a_round_left_over_is_done_by_the_next(turns: Turns) -> None:
    turns.rested()
    turns.janitor._left = True
    assert turns() == (1, ROUND_S)


def test_a_round_that_met_trouble_is_done_again(turns: Turns) -> None:
    turns.rested()
    turns.janitor.fault = SpoolBusy("somebody writes")
    with pytest.raises(SpoolBusy):
        turns(2 * REST_S)
    assert turns() == (1, ROUND_S)


def test_a_poisoned_spool_is_never_at_rest(turns: Turns) -> None:
    turns.rested()
    poison.poison(turns.store.path, OSError("the disk did not take it"))
    assert turns.store.poisoned
    assert turns() == (1, ROUND_S)
    assert not turns.store.poisoned  # and it is repaired in that round


def test_a_spool_that_cannot_be_looked_at_has_its_round(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns.rested()

    def broken() -> int:
        raise SpoolError("cannot be read")

    monkeypatch.setattr(turns.store, "version", broken)
    assert turns()[0] == 1


def test_expired_mail_brings_a_second_look(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    turns.rested()
    limits: list[int] = []

    def expire(limit: int, now_ms: int) -> int:
        limits.append(limit)
        return 1 if len(limits) == 1 else 0

    monkeypatch.setattr(turns.store, "expire", expire)
    assert turns(2 * REST_S) == (1, ROUND_S)
    assert turns() == (1, ROUND_S)  # there may be more than a round takes
    assert turns() == (0, CALM_S)


def test_a_purge_is_gone_on_with_soon_and_leaves_the_lock_as_long_as_it_had_it(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns.rested()
    left = [9]
    slept: list[float] = []

    def purge(_retention: Retention, limit: int, _now_ms: int) -> int:
        if not left[0]:
            return 0
        left[0] -= 1
        turns.now_ms += 7
        return limit

    monkeypatch.setattr(turns.store, "purge", purge)
    monkeypatch.setattr(module.time, "sleep", slept.append)
    assert turns(2 * module.PURGE_S) == (1, PURGE_AGAIN_S)
    assert slept == [0.007, 0.007]  # the third piece was the last that the round has time for
    assert turns() == (1, PURGE_AGAIN_S)
    assert turns() == (1, PURGE_AGAIN_S)
    assert left == [0]
    assert turns() == (1, ROUND_S)
    assert turns() == (0, CALM_S)


def test_a_round_that_came_early_for_a_purge_does_not_checkpoint_again(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints: list[int] = []
    checkpoint = turns.store.checkpoint
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(turns.store, "purge", lambda *_: 1)
    monkeypatch.setattr(module, "PURGE_MS", 0)

    def counted() -> Checkpoint:
        checkpoints.append(turns.now_ms)
        return checkpoint()

    monkeypatch.setattr(turns.store, "checkpoint", counted)
    assert turns() == (1, PURGE_AGAIN_S)
    assert turns(PURGE_AGAIN_S) == (1, PURGE_AGAIN_S)
    assert len(checkpoints) == 1
    assert turns(ROUND_S) == (1, PURGE_AGAIN_S)
    assert len(checkpoints) == 2
