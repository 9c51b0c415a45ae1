"""Our client's dialogue and our server's dialogue understand each other, however bytes are cut."""

from __future__ import annotations

from dataclasses import replace

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
from mailstrom.smtp.dsn import Asked
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import Content, MailFrom, RcptTo

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


@given(
    ret=st.none() | st.sampled_from(["full", "hdrs"]),
    envid=st.none()
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=33),
    priority=st.none() | st.integers(-9, 9),
    asked=st.lists(
        st.tuples(
            st.none() | st.sampled_from(["never", "failure", "success,failure,delay"]),
            st.none() | st.sampled_from(["rfc822;a+b=c@x.test", "utf-8;é@x.test", "x400;/G=a;b"]),
        ),
        min_size=1,
        max_size=4,
    ),
    smtputf8=st.booleans(),
    offered=st.booleans(),
)
def test_what_is_asked_for_arrives_as_it_was_asked(
    ret: str | None,
    envid: str | None,
    priority: int | None,
    asked: list[Asked],
    smtputf8: bool,
    offered: bool,
) -> None:
    offer = replace(OFFER, dsn=offered, mt_priority="" if offered else None)
    server = ServerDialogue(offer)
    client = ClientDialogue(offer, Dialect())
    recipients = tuple(f"r{number}@x.test" for number in range(len(asked)))
    client.begin(
        Envelope(
            sender="s@s.test", recipients=recipients, size=3, smtputf8=smtputf8, ret=ret,
            envid=envid, asked=tuple(asked), mt_priority=priority,
        ),
        b"x\r\n",
    )  # fmt: skip
    server.feed(b"EHLO c\r\n" + client.take_output())
    events = []
    while (event := server.next_event()) is not None:
        events.append(event)
    (sender,) = (event for event in events if isinstance(event, MailFrom))
    named = [event for event in events if isinstance(event, RcptTo)]
    assert [event.address for event in named] == list(recipients)
    if not offered:
        assert (sender.ret, sender.envid, sender.mt_priority) == (None, None, None)
        assert {(event.notify, event.orcpt) for event in named} == {(None, None)}
        return
    assert (sender.ret, sender.envid, sender.mt_priority) == (ret, envid, priority)
    for event, (notify, orcpt) in zip(named, asked, strict=True):
        wants = notify is not None and notify != "never"
        first = orcpt or (f"rfc822;{event.address}" if wants else None)
        assert (event.notify, event.orcpt) == (notify, first)
