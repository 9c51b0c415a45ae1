"""What the store makes of submissions ahead of its writing thread is what it would make there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mailstrom.errors import InvalidMessage
from mailstrom.storage.client import CHUNK_BYTES, AheadStore, Notice, Submission
from mailstrom.storage.sqlite import submissions
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.submissions import Encoded, Row
from mailstrom.types import OnDoubt
from tests.storage.spool import T0, submission


@pytest.fixture
def client(tmp_path: Path) -> Iterator[SQLiteClientStore]:
    store = SQLiteClientStore(str(tmp_path / "spool.db"))
    yield store
    store.close()


def several() -> list[Submission]:
    """Every kind: plain, with all options, long, empty, and four that no spool holds."""
    return [
        submission(),
        submission(
            "a@example.org", "b@example.net", priority=None, tags=("x", "y"), metadata={"k": 1},
            idempotency=("key", b"hash"), on_doubt=OnDoubt.HOLD, require_tls=True, eightbit=True,
            smtputf8=True, expires_ms=T0 + 5,
        ),
        submission(
            "a@example.org", "b@example.net", origin="smtp", client={"helo": "h", "tls": None},
            ret="full", envid="ü", reports=True, priority_wire=9,
            notices=(Notice("success,delay", "rfc822;x@y"), Notice()),
        ),
        submission(content=b"y" * (CHUNK_BYTES + 1)),
        submission(content=b"z" * CHUNK_BYTES),
        submission(content=b""),
        submission()._replace(recipients=()),
        submission(notices=(Notice("perhaps"),)),
        submission(metadata={"k": object()}),
        submission(created_ms=1 << 70),
    ]  # fmt: skip


def test_a_row_made_ahead_is_the_row_made_at_its_turn(client: SQLiteClientStore) -> None:
    made = (True, True, True, False, True, True, False, False, False, True)
    for one, here in zip(several(), made, strict=True):
        (row,) = Encoded([one]).rows
        assert (row is not None) == here
        if row is not None:
            assert row == submissions.encode("spool", client._write_connection(), one, T0, [])
            assert type(row) is Row


def test_what_is_refused_is_told_in_its_place_and_the_others_are_stored(
    client: SQLiteClientStore,
) -> None:
    assert isinstance(client, AheadStore)
    given = several()
    found = client.enqueue(client.ahead(given), T0)
    for one, result in zip(given[:6], found, strict=False):
        assert result == one.id
        assert client.content(one.id) == one.content
    assert all(isinstance(result, InvalidMessage) for result in found[6:])
    assert client.check() == []


def test_all_or_none_of_what_was_made_ahead(client: SQLiteClientStore) -> None:
    given = several()
    with pytest.raises(InvalidMessage, match="no recipient"):
        client.enqueue(client.ahead(given), T0, atomic=True)
    assert client.statuses([one.id for one in given]) == {}
    assert client.enqueue(client.ahead(given[:6]), T0, atomic=True) == [o.id for o in given[:6]]


def test_what_a_handler_raises_is_no_fault_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError of its own says nothing of the message that is being made ready."""

    def raising(number: int, frame: FrameType | None) -> None:
        raise ValueError("of the application")

    def interrupted(*_: Any) -> bytes:
        os.kill(os.getpid(), signal.SIGUSR1)
        return b""

    monkeypatch.setattr(submissions, "digest", interrupted)
    before = signal.signal(signal.SIGUSR1, raising)
    try:
        with pytest.raises(ValueError, match="of the application"):
            Encoded([submission()])
    finally:
        signal.signal(signal.SIGUSR1, before)
