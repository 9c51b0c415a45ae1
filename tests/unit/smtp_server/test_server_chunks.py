"""BDAT on the server's side (RFC 3030): exactly so many octets are content, refused ones are not
commands, whatever the split of the bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import ChunkEnd, Closing, Content, ContentEnd, Event, Refused
from mailstrom.smtp.server_order import Phase

OFFER = Capabilities(
    name="mx.test", size=1000, pipelining=True, chunking=True, enhancedstatuscodes=True
)
ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n"


def greeted(offer: Capabilities = OFFER) -> ServerDialogue:
    server = ServerDialogue(offer)
    pull(server, b"EHLO c.test\r\n")
    server.take_output()
    return server


def pull(server: ServerDialogue, data: bytes) -> list[Event]:
    server.feed(data)
    events: list[Event] = []
    while (event := server.next_event()) is not None:
        events.append(event)
    return events


def codes(server: ServerDialogue) -> list[str]:
    return [line[:3].decode() for line in server.take_output().splitlines()]


def content_of(events: list[Event]) -> bytes:
    return b"".join(event.chunk for event in events if isinstance(event, Content))


def test_it_is_offered_in_ehlo_and_unknown_where_not() -> None:
    assert "CHUNKING" in OFFER.render()
    server = greeted(replace(OFFER, chunking=False))
    events = pull(server, ENVELOPE + b"BDAT 6 LAST\r\nNOOP\r\n")
    assert codes(server) == ["250", "250", "502", "250"]  # the octets were read as a command
    assert not any(isinstance(event, (Content, ContentEnd)) for event in events)


@given(
    chunks=st.lists(
        st.lists(
            st.sampled_from([b".\r\n", b"QUIT\r\n", b"\r\n.\r\n", b"\xc3\xa9\r\n"]), max_size=4
        ),
        min_size=1,
        max_size=4,
    ),
    empty_last=st.booleans(),
    cut=st.integers(1, 40),
    rounds=st.integers(1, 2),
)
def test_octets_are_content_whatever_they_look_like(
    chunks: list[list[bytes]], empty_last: bool, cut: int, rounds: int
) -> None:
    server = greeted()
    parts = [b"".join(lines) for lines in chunks] + [b""] * empty_last
    flight = b""
    for number, part in enumerate(parts, 1):
        last = b" LAST" if number == len(parts) else b""
        flight += b"BDAT %d%b\r\n%b" % (len(part), last, part)
    stream = (ENVELOPE + flight) * rounds + b"NOOP\r\n"
    events: list[Event] = []
    for start in range(0, len(stream), cut):
        events += pull(server, stream[start : start + cut])
    assert content_of(events) == b"".join(parts) * rounds
    ends = [event for event in events if isinstance(event, ContentEnd)]
    assert [(end.octets, end.violation, end.chunked) for end in ends] == [
        (sum(map(len, parts)), None, True)
    ] * rounds
    assert codes(server) == ["250"] * ((2 + len(parts)) * rounds + 1)


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_the_octets_of_a_refused_bdat_are_thrown_away(cut: int) -> None:
    server = greeted()
    stream = b"BDAT 6 LAST\r\nQUIT\r\nMAIL FROM:<a@x.test>\r\nBDAT 6\r\nQUIT\r\nRSET\r\n"
    events: list[Event] = []
    for start in range(0, len(stream), cut):
        events += pull(server, stream[start : start + cut])
    assert codes(server) == ["503", "250", "503", "250"]
    assert content_of(events) == b""
    assert [e.rule for e in events if isinstance(e, Refused)] == ["bad-sequence"] * 2


def test_no_recipient_is_told_as_behind_data() -> None:
    server = greeted()
    server.feed(ENVELOPE + b"BDAT 6 LAST\r\nQUIT\r\nRSET\r\n")
    events: list[Event] = []
    while (event := server.next_event()) is not None:
        events.append(event)
        if type(event).__name__ == "RcptTo":
            server.reply(550, "5.1.1", "no such user")
    assert codes(server) == ["250", "550", "554", "250"]
    assert content_of(events) == b""


def test_data_does_not_follow_a_chunk() -> None:
    server = greeted()
    pull(server, ENVELOPE + b"BDAT 2\r\n\r\nDATA\r\nMAIL FROM:<a@x.test>\r\nNOOP\r\n")
    assert codes(server) == ["250", "250", "250", "503", "503", "250"]
    assert server.phase is Phase.CHUNKS
    events = pull(server, b"RSET\r\n" + ENVELOPE + b"BDAT 1 LAST\r\nx")
    assert codes(server) == ["250"] * 4
    assert content_of(events) == b"x"  # nothing of the chunk before the RSET


def test_a_refused_chunk_ends_the_transaction_and_what_follows_is_discarded() -> None:
    server = greeted()
    server.feed(ENVELOPE + b"BDAT 2\r\n\r\nBDAT 6 LAST\r\nQUIT\r\n" + ENVELOPE)
    while (event := server.next_event()) is not None:
        if isinstance(event, ChunkEnd):
            assert event.octets == 2
            server.reply(452, "4.3.1", "disk full")
    assert codes(server) == ["250", "250", "452", "503", "250", "250"]
    assert server.phase is Phase.RCPT


@pytest.mark.parametrize("argument", ["", "LAST", "x LAST", "-1 LAST", "5 FIRST", "5 LAST LAST"])
def test_a_size_that_cannot_be_read_ends_the_session(argument: str) -> None:
    server = greeted()
    events = pull(server, ENVELOPE + f"BDAT {argument}\r\nQUIT\r\n".encode())
    assert codes(server) == ["250", "250", "501"]
    assert isinstance(events[-1], Closing)
    assert events[-1].cause == "chunk-size"


@pytest.mark.parametrize(
    ("chunks", "violation"),
    [
        ([b"a\r", b"\nb\r\n"], None),
        ([b"a\r", b"b"], "bare-cr"),
        ([b"a\r"], "bare-cr"),
        ([b"a\r", b""], "bare-cr"),
        ([b"a", b"\nb"], "bare-lf"),
        ([b"no line end"], None),
    ],
)
def test_a_line_end_by_halves_is_refused(chunks: list[bytes], violation: str | None) -> None:
    server = greeted()
    flight = ENVELOPE
    for number, chunk in enumerate(chunks, 1):
        flight += b"BDAT %d%b\r\n%b" % (len(chunk), b" LAST" * (number == len(chunks)), chunk)
    (end,) = (event for event in pull(server, flight) if isinstance(event, ContentEnd))
    assert end.violation == violation
    told = server.take_output().splitlines()[-1].decode()
    if violation is None:
        assert told[:4] == "250 "
        return
    what = {
        "bare-cr": "a carriage return without a line feed",
        "bare-lf": "a line feed without a carriage return",
    }[violation]
    assert told.startswith("554 ")
    assert told.endswith(f"content has {what}; lines end in CRLF")


def test_more_than_size_is_read_and_refused() -> None:
    server = greeted()
    events = pull(server, ENVELOPE + b"BDAT 1001 LAST\r\n" + b"x" * 1001 + b"NOOP\r\n")
    (end,) = (event for event in events if isinstance(event, ContentEnd))
    assert (end.oversize, end.octets, content_of(events)) == (True, 1001, b"")
    assert codes(server) == ["250", "250", "552", "250"]


def test_an_endless_size_takes_no_memory() -> None:
    server = greeted()
    pull(server, ENVELOPE + b"BDAT 99999999999999999999 LAST\r\n")
    for _ in range(50):
        pull(server, b"x" * 65536)
        assert server.buffered == 0


def test_what_was_not_looked_at_can_be_thrown_away() -> None:
    server = greeted()
    server.feed(ENVELOPE + b"BDAT 1 LAST\r\nx" + ENVELOPE)
    while not isinstance(server.next_event(), ContentEnd):
        pass
    assert server.discard() == len(ENVELOPE)
    assert server.next_event() is None
    assert codes(server) == ["250"] * 3
