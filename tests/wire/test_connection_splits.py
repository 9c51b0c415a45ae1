"""Without sockets: any split of the octets, any answer late; what an idle connection holds."""

from __future__ import annotations

import asyncio
import tracemalloc
from itertools import pairwise
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from mailstrom.server.connection import Connection
from mailstrom.server.sessions import UNLIMITED, Sessions
from mailstrom.server.stages import LATER, Answer
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import Content, ContentEnd, MailFrom, Question

OFFER = Capabilities(
    name="mx.test", size=200, pipelining=True, chunking=True, enhancedstatuscodes=True
)
LINES = st.sampled_from(
    [
        b"EHLO c\r\n",
        b"HELO c\r\n",
        b"MAIL FROM:<a@x.test>\r\n",
        b"RCPT TO:<b@x.test>\r\n",
        b"DATA\r\n",
        b"BDAT 5\r\nab\r\nc",
        b"BDAT 3 LAST\r\nd\r\n",
        b"BDAT 300 LAST\r\n" + b"x" * 300,
        b"text\r\n",
        b"..dots\r\n",
        b".\r\n",
        b"bare\nlf\r\n",
        b"x" * 150 + b"\r\n",
        b"RSET\r\n",
        b"NOOP\r\n" * 120,
        b"WHAT\r\n",
        b"QUIT\r\n",
    ]
)
BEGUN = b"EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closing = True

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else None

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Slow(Connection):
    """Answers some questions later."""

    def __init__(self, sessions: Sessions, late: list[bool]) -> None:
        super().__init__(sessions, ServerDialogue(OFFER))
        self.late = late
        self.due: Question | None = None
        self.contents: list[bytes] = []

    def ask(self, event: Question) -> Answer:
        if isinstance(event, ContentEnd) and event.default.positive:
            self.contents.append(self.content())
        if self.late and self.late.pop():
            self.due = event
            return LATER
        return None


def bare(octets: bytes) -> tuple[bytes, list[bytes]]:
    """What the dialogue says of it, and the contents."""
    dialogue = ServerDialogue(OFFER)
    dialogue.feed(octets)
    said, content, contents = b"", b"", []
    while (event := dialogue.next_event()) is not None:
        if isinstance(event, Content):
            content += event.chunk
        elif isinstance(event, (ContentEnd, MailFrom)):
            if isinstance(event, ContentEnd) and event.default.positive:
                contents.append(content)
            content = b""
        said += dialogue.take_output()
    return said + dialogue.take_output(), contents


@settings(max_examples=300)
@given(
    begun=st.booleans(),
    lines=st.lists(LINES, max_size=12),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    late=st.lists(st.booleans(), max_size=40),
)
def test_a_connection_says_what_its_dialogue_says(
    begun: bool, lines: list[bytes], cuts: list[int], late: list[bool]
) -> None:
    octets = (BEGUN if begun else b"") + b"".join(lines)
    edges = sorted({0, len(octets), *(cut for cut in cuts if cut < len(octets))})

    async def body() -> Slow:
        sessions = Sessions(UNLIMITED)
        connection, wire = Slow(sessions, late), Wire()
        connection.connection_made(cast(asyncio.Transport, wire))
        for start, end in pairwise(edges):
            connection.received(octets[start:end])
            for _ in range(2):
                if connection.due is not None:
                    answered, connection.due = connection.due, None
                    connection.answer(answered.default)
        while connection.due is not None or not connection.over:
            if connection.due is not None:
                answered, connection.due = connection.due, None
                connection.answer(answered.default)
            elif connection.dialogue.buffered and connection._held:
                await asyncio.sleep(0)  # others have their turn
            else:
                break
        connection.written = wire.written  # type: ignore[attr-defined]
        connection.connection_lost(None)
        return connection

    connection = asyncio.run(body())
    said, contents = bare(octets)
    assert connection.written == said  # type: ignore[attr-defined]
    assert connection.contents == contents


def test_an_idle_connection_holds_little() -> None:
    """Five thousand are to fit in a process of 300 MiB; the system's part is not counted here."""
    count = 200

    async def body() -> int:
        sessions = Sessions(UNLIMITED)

        def one() -> Connection:
            connection = Slow(sessions, [])
            connection.connection_made(cast(asyncio.Transport, Wire()))
            connection.received(BEGUN + b"DATA\r\n" + b"x" * 100 + b"\r\n.\r\n")
            return connection

        first = one()  # what all share is made for it
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            idle = [one() for _ in range(count)]
            held = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        for connection in (first, *idle):
            connection.connection_lost(None)
        return held

    assert asyncio.run(body()) < count * 8192
