"""Many threads, one spool: commits are shared, errors are not; and when the spool is slow."""

from __future__ import annotations

import _thread
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from mailstrom import (
    IdempotencyConflict,
    InvalidMessage,
    Mailstrom,
    MailstromError,
    OutcomeUnknown,
    SpoolBusy,
    SpoolError,
)
from mailstrom.client.commit import Committer, Request
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.prompt import SQLitePrompt
from tests.storage.spool import submission

THREADS = 32
EACH = 50


def together(steps: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run steps in threads that start together; their results or exceptions, in order."""
    results: list[Any] = [None] * len(steps)
    gate = threading.Barrier(len(steps))

    def run(number: int) -> None:
        gate.wait()
        try:
            results[number] = steps[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def test_every_thread_gets_its_own_ids_and_commits_are_shared(
    path: str, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    real, alone = SQLiteClientStore.enqueue, SQLitePrompt.store

    def counted(self: SQLiteClientStore, subs: Sequence[Submission], *a: Any, **k: Any) -> Any:
        batches.append(len(subs))
        return real(self, subs, *a, **k)

    def counted_alone(self: SQLitePrompt, *a: Any) -> Any:
        stored = alone(self, *a)
        if stored is not None:
            batches.append(1)
        return stored

    monkeypatch.setattr(SQLiteClientStore, "enqueue", counted)
    monkeypatch.setattr(SQLitePrompt, "store", counted_alone)
    with Mailstrom(path, timeout=30) as client:
        results = together([lambda: [client.send(message) for _ in range(EACH)]] * THREADS)
        ids = [id for result in results for id in result]
        assert len(set(ids)) == THREADS * EACH == sum(batches)
        assert len(batches) < THREADS * EACH, "waiting sends went into one commit"
        assert client.query("SELECT count(*) FROM messages") == [(THREADS * EACH,)]
        assert client.check() == []


def test_a_bad_neighbour_in_a_shared_commit_fails_alone(path: str, message: bytes) -> None:
    with Mailstrom(path, timeout=30) as client:
        client.send(message, idempotency_key="taken")
        other = message.replace(b"hello", b"something else")
        steps: list[Callable[[], Any]] = []
        for number in range(24):
            if number % 3 == 0:
                steps.append(lambda: client.send(other, idempotency_key="taken"))
            elif number % 3 == 1:
                steps.append(lambda: client.send(message, idempotency_key="taken"))
            else:
                steps.append(lambda: client.send(message))
        results = together(steps)
        assert {type(one) for one in results[0::3]} == {IdempotencyConflict}
        assert len(set(results[1::3])) == 1
        assert len(set(results[2::3])) == 8
        assert all(isinstance(one, str) for one in results[1::3] + results[2::3])
        assert client.check() == []


def test_readers_go_on_while_others_send_and_while_another_process_writes(
    path: str, message: bytes
) -> None:
    with Mailstrom(path, timeout=30) as client:
        id = client.send(message)
        other = connect(path)
        other.execute("BEGIN IMMEDIATE").fetchall()
        assert client.status(id).id == id
        assert client.query("SELECT count(*) FROM messages") == [(1,)]
        other.execute("ROLLBACK").fetchall()
        other.close()
        look = lambda: [client.status(id).id for _ in range(20)]  # noqa: E731
        write = lambda: [client.send(message) for _ in range(20)]  # noqa: E731
        results = together([look, write] * 6)
        assert all(set(one) == {id} for one in results[0::2])
        assert all(len(set(one)) == 20 for one in results[1::2])


def test_closing_while_others_send_loses_no_answer(path: str, message: bytes) -> None:
    client = Mailstrom(path, timeout=30)
    started = threading.Barrier(9)

    def send() -> list[str]:
        ids = []
        started.wait()
        while True:
            try:
                ids.append(client.send(message))
            except SpoolError as error:
                refusals.append(str(error))
                return ids

    refusals: list[str] = []
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append(send())) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    client.send(message)
    client.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    with Mailstrom(path) as again:
        stored = {row[0] for row in again.query("SELECT id FROM messages")}
    assert len(refusals) == 8
    assert all("closed" in text for text in refusals)
    assert {id for ids in results for id in ids} <= stored
    assert len(stored) == sum(map(len, results)) + 1


# --- a slow or failing store --------------------------------------------------------------------


class Slow:
    """A store whose enqueue waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.stored: list[str] = []
        self.error: BaseException | None = None

    def enqueue(
        self, submissions: Sequence[Submission], now_ms: int, *, atomic: bool = False
    ) -> list[str | Exception]:
        """Wait, then store or fail."""
        self.entered.set()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        self.stored += [one.id for one in submissions]
        return [one.id for one in submissions]

    def writer(self) -> str | None:
        """Who is in the way."""
        return "process 12 (cp)"


@pytest.fixture
def slow() -> Iterator[Slow]:
    store = Slow()
    yield store
    store.go.set()


def committer(store: Slow, timeout: float) -> Committer:
    return Committer(store, timeout, lambda: 0)  # type: ignore[arg-type]


def test_who_waited_in_vain_for_a_turn_is_told_so_and_never_stored(slow: Slow) -> None:
    patient = committer(slow, 30)
    impatient = committer(slow, 0.05)
    impatient._line = patient._line  # the same thread, less patience
    first, second = submission(), submission()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(patient.enqueue(first)))
    thread.start()
    assert slow.entered.wait(30)
    patient._line.started = True  # as it will be in a moment
    who = r"\(process 12 \(cp\) has the write lock now\)"
    with pytest.raises(SpoolBusy, match=rf"no turn to write within 0\.05 s {who}; nothing was"):
        impatient.enqueue(second)
    slow.go.set()
    thread.join(30)
    assert results == [first.id]
    assert patient.call(lambda: list(slow.stored)) == [first.id]
    patient.stop()


def test_who_is_being_stored_waits_for_the_disk_and_then_the_outcome_is_unknown(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailstrom.client.commit.SYNC_GRACE_S", 0.05)
    writing = committer(slow, 0.01)
    submit = writing.submit

    def begun(request: Request) -> None:
        submit(request)
        assert slow.entered.wait(30), "patience is counted from here: it is being stored"

    one = submission()
    with monkeypatch.context() as patch:
        patch.setattr(writing, "submit", begun)
        with pytest.raises(OutcomeUnknown, match="may or may not be stored") as caught:
            writing.enqueue(one)
    assert caught.value.key == one.id
    writing._timeout = 30
    slow.go.set()
    assert writing.call(lambda: list(slow.stored)) == [one.id]
    writing.stop()


def test_an_unknown_outcome_names_each_callers_own_key(slow: Slow) -> None:
    writing = committer(slow, 30)
    slow.error = OutcomeUnknown("the disk", key="somebody's")
    batch = [submission() for _ in range(6)]
    steps: list[Callable[[], Any]] = [lambda one=one: writing.enqueue(one) for one in batch]  # type: ignore[misc]
    threading.Timer(0.02, slow.go.set).start()
    results = together(steps)
    assert [error.key for error in results] == [one.id for one in batch]
    writing.stop()


@pytest.mark.parametrize(
    "error",
    [SpoolBusy("busy"), OSError(errno.EIO, "disk"), RuntimeError("bug"), InvalidMessage("bad")],
)
def test_an_error_of_the_whole_batch_reaches_every_caller_and_the_next_call_works(
    slow: Slow, error: Exception
) -> None:
    writing = committer(slow, 30)
    slow.error = error
    batch = [submission() for _ in range(5)]
    steps: list[Callable[[], Any]] = [lambda one=one: writing.enqueue(one) for one in batch]  # type: ignore[misc]
    threading.Timer(0.02, slow.go.set).start()
    results = together(steps)
    assert {type(one) for one in results} == {type(error)}
    assert {str(one) for one in results} == {str(error)}
    slow.error = None
    assert isinstance(writing.enqueue(submission()), str)
    writing.stop()
    with pytest.raises(MailstromError, match="closed"):
        writing.enqueue(submission())


# --- a process that can start no more threads ---------------------------------------------------


def refused(*_: Any) -> int:
    raise RuntimeError("can't start new thread")


def test_without_a_thread_nothing_is_stored_and_the_next_call_works(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = committer(slow, 30)
    slow.go.set()
    with monkeypatch.context() as limited:
        limited.setattr(_thread, "start_new_thread", refused)
        for _ in range(3):
            with pytest.raises(
                SpoolError, match=r"can't start new thread.*nothing was written"
            ) as e:
                writing.enqueue(submission())
            assert not isinstance(e.value, SpoolBusy)
    one = submission()
    assert writing.enqueue(one) == one.id
    assert slow.stored == [one.id], "what was refused is not stored later"
    writing.stop()


def test_a_request_without_a_thread_does_not_keep_its_content(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = committer(slow, 30)
    monkeypatch.setattr(_thread, "start_new_thread", refused)
    with pytest.raises(SpoolError):
        writing.enqueue(submission())
    left = writing._line.queue.get_nowait()
    assert left is not None
    assert (left.submission, left.call) == (None, None)


def test_a_signal_handler_whose_thread_was_started_serves_the_interrupted_call_too(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = committer(slow, 30)
    slow.go.set()
    outer, inner = submission(), submission()
    real = _thread.start_new_thread
    answers: list[str] = []

    def interrupted(*_: Any) -> int:
        monkeypatch.setattr(_thread, "start_new_thread", real)
        answers.append(writing.enqueue(inner))
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", interrupted)
    assert writing.enqueue(outer) == outer.id
    assert answers == [inner.id]
    assert sorted(slow.stored) == sorted([outer.id, inner.id])
    writing.stop()


def test_a_signal_handler_that_raises_before_the_thread_runs_blocks_nobody(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> int:
        raise KeyboardInterrupt

    writing = committer(slow, 30)
    slow.go.set()
    with monkeypatch.context() as interrupted:
        interrupted.setattr(_thread, "start_new_thread", stopped)
        with pytest.raises(KeyboardInterrupt):
            writing.enqueue(submission())
    one = submission()
    assert writing.enqueue(one) == one.id
    writing.stop()


def test_a_child_that_comes_back_into_the_start_leaves_the_parents_queue_alone(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler forked in the middle of a send; the child would store what the parent stores."""
    writing = committer(slow, 0.05)
    slow.go.set()
    real = _thread.start_new_thread

    def forking(*arguments: Any) -> int:
        monkeypatch.setattr(_thread, "start_new_thread", real)
        writing.forked()
        return real(*arguments)

    monkeypatch.setattr(_thread, "start_new_thread", forking)
    with pytest.raises(SpoolBusy):
        writing.enqueue(submission())
    writing._timeout = 30
    one = submission()
    assert writing.enqueue(one) == one.id
    assert slow.stored == [one.id]
    writing.stop()


def test_a_thread_that_starts_after_the_stop_serves_what_was_queued_and_ends(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = committer(slow, 30)
    slow.go.set()
    real = _thread.start_new_thread

    def late(*arguments: Any) -> int:
        writing.stop()
        real(*arguments)
        return real(*arguments)  # and a second one, which must end, too

    monkeypatch.setattr(_thread, "start_new_thread", late)
    before = _thread._count()
    one = submission()
    assert writing.enqueue(one) == one.id
    assert writing._line.serving.acquire(timeout=30), "it ended"
    writing._line.serving.release()
    for _ in range(3_000):
        if _thread._count() <= before:
            break
        threading.Event().wait(0.01)
    assert _thread._count() <= before


def test_a_client_without_threads_says_so_and_recovers(
    path: str, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom.client import rooms

    rooms.message_room(5)
    with Mailstrom(path, timeout=5) as client:
        with monkeypatch.context() as limited:  # neither to write with nor to load with
            limited.setattr(rooms, "_room", None)
            limited.setattr(_thread, "start_new_thread", refused)
            with pytest.raises(SpoolError, match="no thread could be started"):
                client.send(message)
        with monkeypatch.context() as limited:
            limited.setattr(_thread, "start_new_thread", refused)
            with pytest.raises(SpoolError, match="no thread could be started"):
                client.send_many([message])
            assert client.query("SELECT count(*) FROM messages") == [(0,)]
            id = client.send(message)  # a lone caller needs none
        assert client.query("SELECT id FROM messages") == [(id,)]
        (other,) = client.send_many([message])
        assert client.query("SELECT id FROM messages ORDER BY id") == [(id,), (other,)]
