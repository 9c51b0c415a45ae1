"""Nothing is smuggled through the dialogue, however it is cut; what is fixed ends no content."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.framing import bare_line_end
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import Closing, Content, ContentEnd, Event, MailFrom, RcptTo
from mailstrom.smtp.server_order import Phase
from tests.hostile.smuggling import ATTACKS, EVIL, Attack

Mode = Literal["refuse", "fix"]


def dialogue(attack_needs: str = "", mode: Mode = "refuse", size: int = 0) -> ServerDialogue:
    offer = Capabilities(
        name="mx.test", size=size, pipelining=True, eightbitmime=True, smtputf8=True, dsn=True,
        enhancedstatuscodes=True, chunking=attack_needs == "chunking",
        starttls=attack_needs == "starttls",
        auth=frozenset({"PLAIN", "LOGIN"}) if attack_needs == "auth" else frozenset(),
    )  # fmt: skip
    server = ServerDialogue(offer, bare_newlines=mode)
    pull(server, b"EHLO c.test\r\n")
    server.take_output()
    return server


def pull(server: ServerDialogue, data: bytes) -> list[Event]:
    server.feed(data)
    events: list[Event] = []
    while (event := server.next_event()) is not None:
        events.append(event)
    return events


def codes(output: bytes) -> tuple[int, ...]:
    return tuple(int(line[:3]) for line in output.splitlines() if line[3:4] != b"-")


def tried(attack: Attack, mode: Mode, cut: int) -> tuple[list[Event], bytes]:
    server = dialogue(attack.needs, mode)
    events: list[Event] = []
    output = b""
    for start in range(0, len(attack.sent), cut):
        events += pull(server, attack.sent[start : start + cut])
        output += server.take_output()
        assert server.buffered <= 12290, "what has no end is held"
    return events, output


@pytest.mark.parametrize("mode", ["refuse", "fix"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_answered_and_nobody_evil_comes_out(attack: Attack, mode: Mode) -> None:
    long = len(attack.sent) > 10_000
    for cut in (len(attack.sent), 999) if long else (len(attack.sent), 1, 2, 3, 7, 64):
        if attack.needs == "starttls" and cut < len(attack.sent):
            continue  # what comes once the reply is out is the handshake's
        events, output = tried(attack, mode, cut)
        named = [event.address for event in events if isinstance(event, (MailFrom, RcptTo))]
        assert EVIL not in named
        expected = attack.fixed or attack.replies if mode == "fix" else attack.replies
        assert codes(output) == expected
        ends = [event for event in events if isinstance(event, ContentEnd)]
        taken = [end for end in ends if end.default.positive]
        more = mode == "fix" and bool(attack.fixed)
        assert len(taken) == attack.messages + more
        closed = [event for event in events if isinstance(event, Closing)]
        assert bool(closed) is (attack.closed or 221 in expected)


def test_every_attack_has_a_name_of_its_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


# Content that is fixed


def fixed(raw: bytes) -> bytes:
    """What the raw content means where every CR and LF ends a line, its stuffing off."""
    whole = re.sub(rb"\r\n|\r|\n", b"\r\n", b"\r\n" + raw)
    return whole.replace(b"\r\n.", b"\r\n")[2:]


PARTS = st.lists(
    st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"a", b"..", b"\r\n.", b"\n.\r\n", b"MAIL"]),
    max_size=30,
)
CUTS = st.lists(st.integers(0, 80), max_size=8)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(min(one, len(data)) for one in at)})
    return [data[a:b] for a, b in pairwise(bounds)]


def received(server: ServerDialogue, pieces: list[bytes]) -> tuple[bytes, list[Any]]:
    events: list[Event] = []
    for piece in pieces:
        events += pull(server, piece)
    content = b"".join(event.chunk for event in events if isinstance(event, Content))
    return content, [event for event in events if isinstance(event, ContentEnd)]


@given(parts=PARTS, at=CUTS)
def test_fixed_content_ends_where_it_would_have_ended(parts: list[bytes], at: list[int]) -> None:
    raw = b"".join(parts) + b"\r\n.\r\n"
    end = (b"\r\n" + raw).find(b"\r\n.\r\n")
    meant = raw[:end] if end else b""  # with its last line end
    pieces = cut(raw[: end + 3], at)
    server = dialogue(mode="fix")
    pull(server, b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
    content, (ended,) = received(server, pieces)
    assert content == fixed(meant)
    assert bare_line_end(content) is None
    assert (ended.octets, ended.violation) == (len(content), None)
    assert ended.fixed is (bare_line_end(meant) is not None)
    assert server.phase is Phase.READY
    plain = dialogue()
    pull(plain, b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
    untouched, (other,) = received(plain, pieces)
    assert plain.phase is Phase.READY  # the end is the same
    if other.violation is None:
        assert untouched == content
    else:
        assert ended.fixed


@given(parts=PARTS, sizes=st.lists(st.integers(0, 9), max_size=6), step=st.integers(1, 40))
def test_fixed_chunks_are_the_content_fixed(
    parts: list[bytes], sizes: list[int], step: int
) -> None:
    raw = b"".join(parts)
    wire, rest = b"", raw
    for size in sizes:
        chunk, rest = rest[:size], rest[size:]
        wire += b"BDAT %d\r\n%b" % (len(chunk), chunk)
    wire += b"BDAT %d LAST\r\n%b" % (len(rest), rest)
    server = dialogue("chunking", "fix")
    pull(server, b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n")
    pieces = [wire[start : start + step] for start in range(0, len(wire), step)]
    content, (ended,) = received(server, pieces)
    assert content == re.sub(rb"\r\n|\r|\n", b"\r\n", raw)
    assert (ended.octets, ended.violation) == (len(content), None)
    assert ended.fixed is (bare_line_end(raw) is not None)


def test_fixed_content_counts_against_the_size() -> None:
    server = dialogue(mode="fix", size=10)
    pull(server, b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
    _, (ended,) = received(server, [b"\n" * 6 + b"\r\n.\r\n"])
    assert (ended.oversize, ended.octets) == (True, 14)
