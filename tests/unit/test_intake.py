"""Handed in on the loop, committed together, told once: the listener's way into the spool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mailstrom.client.identity import new_id
from mailstrom.clock import wall_ms
from mailstrom.errors import OutcomeUnknown, SpoolBusy, SpoolError, SpoolFull
from mailstrom.storage import open_client_store
from mailstrom.storage.client import Submission
from mailstrom_workers import intake
from mailstrom_workers.intake import Intake, Outcome
from tests.support.looped import looped
from tests.support.sockets import eventually_async


def submission() -> Submission:
    now_ms = wall_ms()
    return Submission(
        id=new_id(now_ms),
        content=b"Subject: x\r\n\r\nx\r\n",
        sender="a@b.test",
        recipients=("x@y.test",),
        subject="x",
        message_id="",
        stream="default",
        priority=None,
        tags=(),
        metadata={},
        created_ms=now_ms,
        send_ms=now_ms,
        expires_ms=None,
        on_doubt=None,
        require_tls=False,
        eightbit=False,
        smtputf8=False,
    )


class Store:
    """A store that is told how each of its commits ends."""

    def __init__(self, *ends: Callable[[Sequence[Submission]], list[Any]]) -> None:
        self.ends = list(ends)
        self.batches: list[int] = []
        self.go = threading.Semaphore(0)
        self.known: set[str] = set()

    def enqueue(self, submissions: Sequence[Submission], now_ms: int) -> list[Any]:
        if not submissions:
            return []
        self.go.acquire()
        self.batches.append(len(submissions))
        if self.ends:
            return self.ends.pop(0)(submissions)
        return [one.id for one in submissions]

    def statuses(self, ids: Sequence[str]) -> dict[str, object]:
        return dict.fromkeys(self.known & set(ids))

    def close(self) -> None:
        self.go.release()


def _raise(error: Exception) -> Callable[[Sequence[Submission]], list[Any]]:
    def end(submissions: Sequence[Submission]) -> list[Any]:
        raise error

    return end


def _taken(line: Intake) -> bool:
    return line._committer._line.busy and line._committer._line.queue.empty()


async def _handed(line: Intake, *given: Submission) -> list[Outcome]:
    """What each is told."""
    told: list[asyncio.Future[Outcome]] = []
    for one in given:
        future = asyncio.get_running_loop().create_future()
        told.append(future)
        line.put(one, future.set_result)
    return await asyncio.gather(*told)


@looped
async def test_each_is_told_its_id_once_it_is_in_the_spool(tmp_path: Path) -> None:
    store = open_client_store(str(tmp_path / "spool.db"))
    line = Intake(store, asyncio.get_running_loop(), wall_ms)
    given = [submission() for _ in range(50)]

    assert await _handed(line, *given) == [one.id for one in given]
    assert set(store.statuses([one.id for one in given])) == {one.id for one in given}
    await line.empty()
    await line.close()
    with pytest.raises(SpoolError, match="closed"):
        line.put(submission(), lambda outcome: None)
    assert line.waiting == 0


@looped
async def test_what_comes_during_a_commit_is_the_next_one_and_wakes_the_loop_once() -> None:
    store = Store()
    loop = asyncio.get_running_loop()
    line = Intake(store, loop, wall_ms)  # type: ignore[arg-type]
    woken = 0
    tell = line._tell

    def counted() -> None:
        nonlocal woken
        woken += 1
        tell()

    line._tell = counted  # type: ignore[method-assign]
    first = asyncio.create_task(_handed(line, submission()))
    await asyncio.sleep(0)
    await eventually_async(lambda: _taken(line), what="the thread to have it")
    more = [submission() for _ in range(20)]
    others = asyncio.create_task(_handed(line, *more))
    await asyncio.sleep(0)
    store.go.release(2)

    await first
    outcomes = await others
    assert len(outcomes) == 20
    assert store.batches == [1, 20]
    assert woken <= 2  # once for each commit, or for both
    await line.close()


@looped
async def test_an_error_of_a_batch_is_told_to_each_of_it() -> None:
    store = Store(_raise(SpoolFull("the disk is full")))
    line = Intake(store, asyncio.get_running_loop(), wall_ms)  # type: ignore[arg-type]
    store.go.release(2)
    (error,) = await _handed(line, submission())
    assert isinstance(error, SpoolFull)
    one = submission()
    assert await _handed(line, one) == [one.id]
    await line.close()


@pytest.mark.parametrize("there", [True, False])
@looped
async def test_an_unknown_outcome_is_asked_for(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "AGAIN_S", 0.01)
    one = submission()
    store = Store(_raise(OutcomeUnknown("the disk did not confirm it", key=one.id)))
    if there:
        store.known.add(one.id)
    line = Intake(store, asyncio.get_running_loop(), wall_ms)  # type: ignore[arg-type]
    store.go.release()
    (outcome,) = await _handed(line, one)
    assert outcome == one.id if there else isinstance(outcome, SpoolError)
    await line.empty()
    await line.close()


@looped
async def test_who_gets_no_turn_is_told_so_and_is_never_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "TURN_S", 0.05)
    monkeypatch.setattr(intake, "LOOK_S", 0.01)
    store = Store()
    line = Intake(store, asyncio.get_running_loop(), wall_ms)  # type: ignore[arg-type]
    first = asyncio.create_task(_handed(line, submission()))
    await eventually_async(lambda: _taken(line), what="the thread to have it")
    (late,) = await _handed(line, submission())
    assert isinstance(late, SpoolBusy)
    store.go.release()
    assert isinstance((await first)[0], str)
    await line.close()
    assert store.batches == [1]


@looped
async def test_a_disk_that_does_not_answer_is_an_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "TURN_S", 0.02)
    monkeypatch.setattr(intake, "SYNC_S", 0.05)
    monkeypatch.setattr(intake, "LOOK_S", 0.01)
    store = Store()
    line = Intake(store, asyncio.get_running_loop(), wall_ms)  # type: ignore[arg-type]
    (outcome,) = await _handed(line, submission())
    assert isinstance(outcome, OutcomeUnknown)
    store.go.release()  # it comes after all: told once, and no more
    await line.close()


@looped
async def test_who_cannot_be_told_does_not_keep_the_others_from_hearing() -> None:
    store = Store()
    loop = asyncio.get_running_loop()
    met: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: met.append(context))
    line = Intake(store, loop, wall_ms)  # type: ignore[arg-type]
    line.put(submission(), lambda outcome: [][1])
    store.go.release(2)
    one = submission()
    assert await _handed(line, one) == [one.id]
    assert isinstance(met[0]["exception"], IndexError)
    await line.close()
