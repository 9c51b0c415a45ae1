"""What a session on standard input keeps in memory, however small the pieces are that come."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import repeat

import pytest

from mailstrom.shims import session
from mailstrom.shims.place import Caller, place
from tests.unit.shims.calling import Spool

PIECES = 40_000


def test_content_in_many_chunks_takes_hardly_more_than_its_octets(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes] = []
    held: list[int] = []

    def typed() -> Iterator[bytes]:
        yield b"EHLO c\r\nMAIL FROM:<a@a.example>\r\nRCPT TO:<bob@b.example>\r\n"
        yield b"BDAT 14\r\nSubject: x\r\n\r\n"
        said.clear()
        tracemalloc.start()
        for hundred in repeat(b"BDAT 2\r\n\r\n" * 100, PIECES // 100):
            yield hundred
            said.clear()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        yield b"BDAT 0 LAST\r\n"

    source = typed()
    monkeypatch.setattr(session, "read_input", lambda: next(source, b""))
    monkeypatch.setattr(session, "write_output", said.append)
    there = place(None, {"MAILSTROM_STORE": str(spool.path)})

    assert session.serve(there, Caller("joe", "")) == 0

    assert said[-1].startswith(b"250 2.0.0 Ok: queued")
    (id,) = (row[0] for row in spool.ms.query("SELECT id FROM messages"))
    content = spool.ms.raw(id)
    assert content is not None
    assert content.count(b"\r\n") > PIECES
    assert held[0] < 1.2 * 2 * PIECES + 70_000
