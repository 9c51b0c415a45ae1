"""Our client's dialogue and our server's dialogue understand each other, however bytes are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Dialect,
    Envelope,
    Pipelining,
    TransactionEnd,
)
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import Content, RcptTo

OFFER = Capabilities(
    name="mx.test",
    pipelining=True,
    eightbitmime=True,
    smtputf8=True,
    size=10000,
    enhancedstatuscodes=True,
)


def established() -> ServerDialogue:
    server = ServerDialogue(OFFER)
    server.feed(b"EHLO c\r\n")
    while server.next_event() is not None:
        pass
    server.take_output()
    return server


@given(
    refused=st.lists(st.booleans(), min_size=1, max_size=5),
    lines=st.lists(st.sampled_from([b"", b".", b"..", b".a", b"\xc3\xa9", b"text"]), max_size=8),
    cut=st.integers(1, 50),
    pipelining=st.booleans(),
    rounds=st.integers(1, 3),
)
def test_transactions_end_as_the_server_answered(
    refused: list[bool], lines: list[bytes], cut: int, pipelining: bool, rounds: int
) -> None:
    server = established()
    dialect = Dialect(pipelining=Pipelining.FULL if pipelining else Pipelining.NONE)
    client = ClientDialogue(OFFER, dialect)
    body = b"".join(line + b"\r\n" for line in lines)
    recipients = tuple(f"r{number}@x.test" for number in range(len(refused)))
    for _ in range(rounds):
        client.begin(
            Envelope(sender="é@s.test", recipients=recipients, size=len(body), smtputf8=True)
        )
        arrived = b""
        ended: list[TransactionEnd] = []
        while not ended:
            outgoing = client.take_output()
            for start in range(0, len(outgoing), cut):
                server.feed(outgoing[start : start + cut])
                while (event := server.next_event()) is not None:
                    if isinstance(event, Content):
                        arrived += event.chunk
                    elif isinstance(event, RcptTo) and refused[int(event.address[1])]:
                        server.reply(550, "5.1.1", "no such user")
            incoming = server.take_output()
            assert outgoing or incoming, "both sides wait for the other"
            for start in range(0, len(incoming), cut):
                for step in client.receive(incoming[start : start + cut]):
                    if isinstance(step, ContentWanted):
                        client.content(body)
                        client.end_content()
                    elif isinstance(step, TransactionEnd):
                        ended.append(step)
        (end,) = ended
        assert end.usable
        assert [bool(reply and reply.positive) for reply in end.rcpts] == [not no for no in refused]
        if all(refused):
            assert arrived == b""
            assert not end.dot_written
        else:
            assert arrived == body
            assert end.dot is not None
            assert end.dot.code == 250
