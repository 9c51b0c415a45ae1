"""``Mailstrom`` as an application sees it: send, ask, change, close."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from mailstrom import (
    IdempotencyConflict,
    InvalidAddress,
    InvalidMessage,
    Mailstrom,
    MessageNotFound,
    OutcomeUnknown,
    SpoolBusy,
    SpoolError,
    SpoolReadOnly,
    Status,
)
from mailstrom.client.api import SendOptions
from mailstrom.client.sending import CHUNK_MESSAGES as MOST
from mailstrom.client.sending import Pace
from mailstrom.storage.sqlite.connection import connect


def email(to: str = "b@example.org", subject: str = "hello") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Sender <a@example.com>"
    message["To"] = to
    message["Subject"] = subject
    message.set_content("body\n")
    return message


def test_what_is_sent_can_be_asked_for(client: Mailstrom) -> None:
    id = client.send(email("B@EXAMPLE.org, c@example.net"), tags=["x"], metadata={"n": 1})
    found = client.status(id)
    assert (found.id, found.status, found.sender, found.subject) == (
        id, Status.QUEUED, "a@example.com", "hello"
    )  # fmt: skip
    assert list(found.recipients) == ["B@example.org", "c@example.net"]
    assert (found.tags, found.metadata) == (("x",), {"n": 1})
    assert found.expires_at - found.send_at == timedelta(days=5)
    assert found.size == len(client.raw(id))
    assert b"Message-ID: <" in client.raw(id)
    assert client.check() == []


def test_ids_sort_by_time_and_never_repeat(client: Mailstrom, message: bytes) -> None:
    ids = [client.send(message) for _ in range(5)]
    assert len(set(ids)) == 5
    assert [id[14] for id in ids] == ["7"] * 5
    assert sorted(ids, key=lambda id: id[:13]) == ids


def test_unknown_ids_are_not_found_by_any_verb(client: Mailstrom) -> None:
    for verb in (client.status, client.raw, client.cancel, client.retry, client.wait):
        with pytest.raises(MessageNotFound, match="nothing-here"):
            verb("nothing-here")
    with pytest.raises(KeyError):
        client.status("nothing-here")


def test_cancel_takes_an_address_as_people_write_it(client: Mailstrom) -> None:
    id = client.send(email("b@example.org, c@example.org"))
    assert client.cancel(id, recipient="b@EXAMPLE.ORG") == 1
    assert client.cancel(id, recipient="b@example.org") == 0
    assert client.cancel(id, recipient="stranger@example.org") == 0
    with pytest.raises(InvalidAddress):
        client.cancel(id, recipient="not an address")
    assert client.status(id).status is Status.QUEUED
    assert client.cancel(id) == 1
    assert client.status(id).status is Status.CANCELLED
    assert client.cancel(id) == 0
    assert client.retry(id) == 0, "cancelled is over"


def test_wait_returns_when_all_is_final_and_gives_up_in_time(client: Mailstrom) -> None:
    id = client.send(email())
    with pytest.raises(TimeoutError, match=f"message {id} was not completed within 0.02 s"):
        client.wait(id, timeout=0.02)
    client.cancel(id)
    assert client.wait(id, timeout=0).completed


def test_a_second_send_with_the_same_key_is_the_first(client: Mailstrom) -> None:
    first = client.send(email(), idempotency_key="order-1")
    assert client.send(email(), idempotency_key="order-1") == first
    with pytest.raises(IdempotencyConflict, match="order-1"):
        client.send(email(subject="other"), idempotency_key="order-1")
    assert client.query("SELECT count(*) FROM messages") == [(1,)]


def test_a_bad_message_is_refused_and_nothing_is_written(client: Mailstrom) -> None:
    bad = EmailMessage()
    bad["From"] = "a@example.com"
    bad.set_content("nobody gets this")
    with pytest.raises(InvalidMessage):
        client.send(bad)
    with pytest.raises(InvalidAddress):
        client.send(email(), recipients=["x@"])
    assert client.query("SELECT count(*) FROM messages") == [(0,)]


def test_query_reads_only_and_not_for_ever(client: Mailstrom) -> None:
    client.send(email())
    for sql in (
        "DELETE FROM message",
        "PRAGMA query_only = 0",
        "BEGIN",
        "ATTACH 'other.db' AS other",
        "CREATE TEMP TABLE x (y)",
        "SELECT 1; DELETE FROM message",
        "PRAGMA journal_mode = DELETE",
        "VACUUM",
    ):
        with pytest.raises(SpoolReadOnly, match="only reads"):
            client.query(sql)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT max(x) FROM n"
    with pytest.raises(SpoolBusy, match=r"longer than 0\.05 s"):
        client.query(endless, seconds=0.05)
    assert client.query("SELECT count(*) AS n FROM messages")[0].n == 1


# --- send_many ----------------------------------------------------------------------------------


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk has as many messages as the first, whatever it costs on this machine."""
    monkeypatch.setattr(Pace, "learn", lambda *_: None)


def all_written(client: Mailstrom) -> None:
    """Wait until what was begun is stored; whatever is written takes its turn."""
    client._committer.call(int)


def test_send_many_keeps_order_defaults_and_own_options(client: Mailstrom) -> None:
    ids = client.send_many(
        [email(), (email(), {"tags": ["own"]}), email()], tags=["all"], priority="low"
    )
    found = [client.status(id) for id in ids]
    assert [one.tags for one in found] == [("all",), ("own",), ("all",)]
    assert client.query("SELECT DISTINCT priority FROM messages") == [("low",)]
    assert client.send_many([]) == []


def test_an_iterator_given_to_all_messages_serves_each_of_them(client: Mailstrom) -> None:
    ids = client.send_many([email(), email()], recipients=iter(["c@x.test"]), tags=iter(["t"]))
    for status in client.statuses(ids).values():
        assert (list(status.recipients), status.tags) == (["c@x.test"], ("t",))


@pytest.mark.usefixtures("steady")
def test_send_many_stops_at_a_bad_message_with_whole_chunks_before_it(
    client: Mailstrom, message: bytes
) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(2 * MOST + 100):
            yield message
        yield b"no header at all"
        yield message

    with pytest.raises(InvalidMessage) as caught:
        client.send_many(stream())
    assert len(caught.value.ids) == 2 * MOST, "two chunks; the third was never written"
    assert client.query("SELECT count(*) FROM messages") == [(2 * MOST,)]
    assert all(client.status(id) for id in caught.value.ids[::250])
    assert client.check() == []


def test_send_many_refused_by_the_spool_tells_what_was_accepted(client: Mailstrom) -> None:
    subjects = [*map(str, range(MOST + 2)), "other"]
    messages: list[tuple[EmailMessage, SendOptions]] = [
        (email(subject=subject), {"idempotency_key": f"k{n % (MOST + 2)}"})
        for n, subject in enumerate(subjects)
    ]
    with pytest.raises(IdempotencyConflict) as caught:
        client.send_many(messages)
    assert len(caught.value.ids) == MOST  # type: ignore[attr-defined]
    assert client.query("SELECT count(*) FROM messages") == [(MOST,)]


class Frozen(Exception):
    """An exception that takes no attributes."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("theirs"), KeyError("k"), OSError(5, "disk"), KeyboardInterrupt()],
    ids=repr,
)
def test_what_the_callers_own_stream_raises_tells_what_was_accepted(
    client: Mailstrom, message: bytes, error: BaseException
) -> None:
    def stream() -> Iterator[bytes]:
        yield from [message] * (MOST + 1)
        all_written(client)
        raise error

    with pytest.raises(type(error)) as caught:
        client.send_many(stream())
    assert caught.value is error
    assert [row[0] for row in client.query("SELECT id FROM messages ORDER BY id")] == sorted(
        error.ids  # type: ignore[attr-defined]
    )
    assert len(error.ids) == MOST  # type: ignore[attr-defined]


def test_an_exception_that_takes_no_attributes_is_raised_as_it_is(client: Mailstrom) -> None:
    def stream() -> Iterator[bytes]:
        yield from []
        raise Frozen

    with pytest.raises(Frozen):
        client.send_many(stream())


def test_a_bad_item_tells_what_was_accepted(client: Mailstrom, message: bytes) -> None:
    items: list[Any] = [*[message] * MOST, (message, "no options")]
    with pytest.raises(TypeError, match=rf"messages\[{MOST}\]: a tuple must be a pair") as caught:
        client.send_many(items)
    assert len(caught.value.ids) == MOST  # type: ignore[attr-defined]
    client._pace.messages = MOST
    with pytest.raises(TypeError, match="prio") as caught:
        client.send_many([*[message] * MOST, (message, {"prio": 1})])  # type: ignore[typeddict-unknown-key]
    assert len(caught.value.ids) == MOST  # type: ignore[attr-defined]


def test_a_busy_second_chunk_tells_what_was_accepted(path: str, message: bytes) -> None:
    with Mailstrom(path, timeout=0.2) as client:
        client._timeout = client._committer._timeout = 30  # the spool's own patience stays short
        other = connect(path)

        def stream() -> Iterator[bytes]:
            yield from [message] * MOST
            all_written(client)
            other.execute("BEGIN IMMEDIATE").fetchall()
            yield from [message] * MOST

        with pytest.raises(SpoolBusy) as caught:
            client.send_many(stream())
        other.execute("ROLLBACK").fetchall()
        other.close()
        stored = {row[0] for row in client.query("SELECT id FROM messages")}
        assert set(caught.value.ids) == stored  # type: ignore[attr-defined]
        assert len(stored) == MOST


def test_an_unknown_outcome_of_the_second_chunk_tells_what_was_accepted_and_whom_to_ask(
    client: Mailstrom, message: bytes
) -> None:
    sync = client._store._sync
    real = sync._sync

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    def stream() -> Iterator[bytes]:
        yield from [message] * MOST
        all_written(client)
        sync._sync = failing
        yield from [message] * 2

    with pytest.raises(OutcomeUnknown) as caught:
        client.send_many(stream())
    sync._sync = real
    sync.heal(sync.begin_repair())
    assert len(set(caught.value.ids)) == MOST  # type: ignore[attr-defined]
    assert client.status(caught.value.key).id not in caught.value.ids  # type: ignore[attr-defined]
    assert client.query("SELECT count(*) FROM messages") == [(MOST + 2,)], "all of the chunk"


def test_a_second_chunk_without_a_thread_to_write_with(
    client: Mailstrom, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    def stream() -> Iterator[bytes]:
        yield from [message] * MOST
        all_written(client)
        client._committer.forked()  # as if this were a child now
        monkeypatch.setattr("_thread.start_new_thread", refused)
        yield message

    with pytest.raises(SpoolError, match="no thread could be started") as caught:
        client.send_many(stream())
    monkeypatch.undo()
    assert len(caught.value.ids) == MOST  # type: ignore[attr-defined]
    assert client.query("SELECT count(*) FROM messages") == [(MOST,)]


def test_send_many_reads_ahead_no_further_than_the_next_chunk(client: Mailstrom) -> None:
    """Bounded memory: a chunk of 1 MiB that is being stored, the one being made, one message."""
    size = 300_000
    ahead = []
    taken = 0
    body = b"From: a@example.com\r\nTo: b@example.org\r\n\r\n" + b"x" * 70 + b"\r\n"

    def stream() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(12):
            stored = client.query("SELECT count(*) FROM messages")[0][0]
            ahead.append(taken - stored)
            taken += 1
            yield body + (b"y" * 70 + b"\r\n") * (size // 72)

    assert len(client.send_many(stream())) == 12
    assert max(ahead) <= 8


# --- trouble ------------------------------------------------------------------------------------


def test_a_closed_client_says_so_and_closing_again_is_fine(path: str, message: bytes) -> None:
    client = Mailstrom(path)
    id = client.send(message)
    client.close()
    client.close()
    for step in (
        lambda: client.send(message),
        lambda: client.send_many([message]),
        lambda: client.status(id),
        lambda: client.cancel(id),
        lambda: client.query("SELECT 1"),
        client.__enter__,
    ):
        with pytest.raises(SpoolError, match="closed"):
            step()
    with Mailstrom(path) as again:
        assert again.status(id).id == id
        assert again.query("SELECT count(*) FROM messages") == [(1,)]


def test_a_spool_is_found_again_by_another_client_at_once(path: str, message: bytes) -> None:
    with Mailstrom(path) as one, Mailstrom(f"sqlite://{path}") as two:
        id = one.send(message)
        assert two.status(id).status is Status.QUEUED
        assert two.path == one.path == path


def test_a_missing_directory_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="make it first"):
        Mailstrom(tmp_path / "no" / "spool.db")


def test_times_are_kept_to_the_millisecond(client: Mailstrom, message: bytes) -> None:
    at = datetime(2031, 1, 2, 3, 4, 5, 677_000, UTC)
    id = client.send(message, send_at=at, expires_at=at + timedelta(days=1))
    found = client.status(id)
    assert (found.send_at, found.expires_at) == (at, at + timedelta(days=1))
    past = client.send(message, send_at=datetime(2001, 1, 1, tzinfo=UTC))
    assert client.status(past).send_at == client.status(past).created_at
