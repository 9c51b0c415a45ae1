"""A stream of messages: one chunk is stored while the next is made, each in one step of SQLite."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import apsw
import pytest

from mailstrom import InvalidMessage, Mailstrom, OutcomeUnknown
from mailstrom.client.commit import Request
from mailstrom.client.sending import CHUNK_MESSAGES, LOCK_NS, Ahead, Chunk, Pace
from mailstrom.errors import IdempotencyConflict
from tests.storage.spool import submission


def stored(client: Mailstrom) -> int:
    found: int = client.query("SELECT count(*) FROM messages")[0][0]  # type: ignore[assignment]
    return found


class Blocked:
    """Something else that the writing thread is busy with, until ``end()``."""

    def __init__(self, client: Mailstrom) -> None:
        self._gate, begun = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            self._gate.wait(60)

        client._committer.submit(Request(call=wait))
        assert begun.wait(60)

    def end(self) -> None:
        self._gate.set()


def statements(client: Mailstrom) -> list[str]:
    """First words of what the client's writer executes from now on."""
    seen: list[str] = []
    writer = client._store._write_connection()  # type: ignore[attr-defined]

    def trace(_: apsw.Cursor, sql: str, __: object) -> bool:
        text = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
        seen.append(text.split(None, 1)[0])
        return True

    writer.exec_trace = trace
    return seen


@pytest.mark.parametrize("number", [1, 2, 4, 5, 63, 64, 65, CHUNK_MESSAGES])
def test_a_chunk_is_one_statement_and_so_one_step(
    client: Mailstrom, message: bytes, number: int
) -> None:
    client.send(message)
    seen = statements(client)
    ids = client.send_many([message] * number)
    assert seen == ["INSERT"], "between two steps a busy application would keep the lock"
    assert len(set(ids)) == number
    assert list(client.statuses(ids)) == list(dict.fromkeys(ids))
    assert stored(client) == number + 1
    assert client.check() == []


def test_the_next_chunk_is_made_while_the_last_is_stored(client: Mailstrom, message: bytes) -> None:
    client.send(message)
    blocked = Blocked(client)
    made: list[int] = []

    def stream() -> Iterator[bytes]:
        for number in range(CHUNK_MESSAGES + 10):
            if number == CHUNK_MESSAGES:
                made.append(stored(client))
                blocked.end()
            yield message

    assert len(client.send_many(stream())) == CHUNK_MESSAGES + 10
    assert made == [1], "the first chunk was not stored yet when the next was begun"
    assert stored(client) == CHUNK_MESSAGES + 11


def test_an_error_of_the_stream_waits_for_the_chunk_before_it(
    client: Mailstrom, message: bytes
) -> None:
    client.send(message)
    blocked = Blocked(client)

    def stream() -> Iterator[bytes]:
        yield from [message] * CHUNK_MESSAGES
        blocked.end()
        yield b"no header at all"

    with pytest.raises(InvalidMessage) as caught:
        client.send_many(stream())
    assert len(caught.value.ids) == CHUNK_MESSAGES
    assert stored(client) == CHUNK_MESSAGES + 1


def test_of_two_errors_the_earlier_chunks_is_raised(client: Mailstrom, message: bytes) -> None:
    client.send(message, idempotency_key="taken")
    other = message.replace(b"hello", b"something else")

    def stream() -> Iterator[Any]:
        yield from [message] * (CHUNK_MESSAGES - 1)
        yield other, {"idempotency_key": "taken"}
        yield b"no header at all"

    with pytest.raises(IdempotencyConflict) as caught:
        client.send_many(stream())
    assert caught.value.ids == []  # type: ignore[attr-defined]
    assert isinstance(caught.value.__context__, InvalidMessage)
    assert stored(client) == 1


def test_an_interrupt_is_not_kept_waiting_and_what_was_not_begun_is_not_stored(
    client: Mailstrom, message: bytes
) -> None:
    client.send(message)
    blocked = Blocked(client)

    def stream() -> Iterator[bytes]:
        yield from [message] * CHUNK_MESSAGES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        client.send_many(stream())
    assert caught.value.ids == []  # type: ignore[attr-defined]
    blocked.end()
    client._committer.call(int)
    assert stored(client) == 1


def test_a_child_does_not_wait_for_what_its_parent_writes(
    client: Mailstrom, message: bytes
) -> None:
    client.send(message)
    blocked = Blocked(client)

    def stream() -> Iterator[bytes]:
        yield from [message] * CHUNK_MESSAGES
        client._committer.forked()  # as if this were a child now
        yield from [message] * CHUNK_MESSAGES

    with pytest.raises(OutcomeUnknown, match="forked") as caught:
        client.send_many(stream())
    assert caught.value.ids == []  # type: ignore[attr-defined]
    assert caught.value.key
    blocked.end()


def test_a_refused_message_among_many_leaves_nothing_of_its_chunk(
    client: Mailstrom, message: bytes
) -> None:
    first = client.send(message, idempotency_key="taken")
    other = message.replace(b"hello", b"something else")
    with pytest.raises(IdempotencyConflict):
        client.send_many([message, (other, {"idempotency_key": "taken"}), message])
    assert stored(client) == 1
    ids = client.send_many([message, (message, {"idempotency_key": "taken"}), message])
    assert ids[1] == first
    assert stored(client) == 3
    assert client.check() == []


def test_chunks_shrink_where_they_cost_too_much_and_grow_again() -> None:
    pace = Pace()
    assert pace.messages == CHUNK_MESSAGES
    pace.learn(CHUNK_MESSAGES, 4 * LOCK_NS)
    assert pace.messages == CHUNK_MESSAGES // 4
    pace.learn(3, 100 * LOCK_NS)
    assert pace.messages == CHUNK_MESSAGES // 4, "a few messages tell nothing"
    pace.learn(64, LOCK_NS // 1_000)
    assert pace.messages == CHUNK_MESSAGES // 2, "twice at most"
    pace.learn(128, 0)
    assert pace.messages == CHUNK_MESSAGES
    pace.learn(CHUNK_MESSAGES, 10_000 * LOCK_NS)
    assert pace.messages == 16, "never so few that the disk decides"


def test_wherever_a_stream_is_interrupted_what_was_stored_of_it_is_told(
    client: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each bytecode in turn: no lock stays taken that whoever waits for the outcome needs."""
    monkeypatch.setattr("mailstrom.client.sending.HEAD_START_S", 0.03)  # it has ended until then
    committer, submitted = client._committer, list[Request]()
    submit = committer.submit
    monkeypatch.setattr(committer, "submit", lambda one: (submitted.append(one), submit(one))[1])
    told, left = "", 1
    for number in range(1, 400):
        ids, ran = list[str](), list[int]()
        ahead, left = Ahead(committer, ids), number
        chunk = Chunk(Pace())
        chunk.add(submission(), committer.begin())

        def each(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code is not Ahead.put.__code__:
                return None
            frame.f_trace_opcodes = True
            left -= event == "opcode"
            if left == 0:
                raise KeyboardInterrupt
            return each

        def store(ran: list[int] = ran) -> list[str]:
            ran.append(1)
            return ["stored"]

        before = sys.gettrace()
        with contextlib.suppress(KeyboardInterrupt):
            try:
                sys.settrace(each)
                ahead.put(chunk, store)
            finally:
                sys.settrace(before)
        committer.call(int)  # what was begun has ended
        for one in submitted:
            if one.key:  # ours
                assert one.done.acquire(blocking=False), f"interrupted at bytecode {number}"
                one.done.release()
        submitted.clear()
        ahead.leave(KeyboardInterrupt())
        told += "stored" if ids else "-"
        assert ids == ["stored"] * len(ran), f"interrupted at bytecode {number}"
        if left > 0:
            break
    assert left > 0, "it was interrupted at each"
    assert told.startswith("-")
    assert told.endswith("stored")
