"""Framing: stuffing and its inverse, strict ends, command lines; all at any split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.framing import (
    BARE_CR,
    BARE_LF,
    BareLineEnd,
    DotStuffer,
)
from mailstrom.smtp.inbox import LINE_TOO_LONG, DotUnstuffer, Inbox, Line, LineReader

pieces = st.lists(st.sampled_from([b".", b"\r\n", b"a", b"..", b"\r\n.\r\n", b"\xff"]), max_size=30)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(cut, len(data)) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def stuff(chunks: list[bytes]) -> bytes:
    stuffer = DotStuffer()
    return b"".join(stuffer.feed(chunk) for chunk in chunks) + stuffer.end()


def unstuff(chunks: list[bytes]) -> tuple[bytes, DotUnstuffer, bytes]:
    """The content, its reader, and what stands behind the end in the chunk of the end or before."""
    reader, content, inbox = DotUnstuffer(), b"", Inbox()
    for chunk in chunks:
        inbox.feed(chunk)
        while not reader.done and (piece := reader.take(inbox)):
            content += piece
        if not reader.done:
            assert len(inbox) <= 2
    return content, reader, inbox.take(1 << 20) + inbox.take(1 << 20)


@given(parts=pieces, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_what_is_stuffed_comes_back_with_its_last_line_ended(
    parts: list[bytes], cuts: list[int]
) -> None:
    content = b"".join(parts)
    wire = stuff(split(content, cuts))
    assert wire == stuff([content])
    assert wire.find(b"\r\n.\r\n") in (-1, len(wire) - 5)
    ended = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
    for chunks in (split(wire, cuts), [wire], [wire[i : i + 1] for i in range(len(wire))]):
        got, reader, rest = unstuff(chunks)
        assert (got, reader.done, reader.violation) == (ended, True, None)
        assert rest == b""


def test_empty_content_is_a_lone_dot() -> None:
    assert stuff([]) == b".\r\n"
    assert stuff([b""]) == b".\r\n"
    assert unstuff([b".\r\nQUIT\r\n"])[2] == b"QUIT\r\n"


@pytest.mark.parametrize(
    "content",
    [b"a\nb", b"a\rb", b"\n", b"\r", b"a\r\r\n", b"a\n\r\n", b"a\r\n.\n", b"a\n.\r\n", b"end\r"],
)
def test_content_with_a_bare_line_end_never_leaves(content: bytes) -> None:
    for chunks in ([content], [content[i : i + 1] for i in range(len(content))]):
        with pytest.raises(
            BareLineEnd, match=r"^content has a .* without a .*; lines end in CRLF$"
        ):
            stuff(chunks)


@given(data=st.lists(st.sampled_from([b".", b"\r", b"\n", b"a", b"\r\n"]), max_size=40))
def test_only_crlf_dot_crlf_ends_content(data: list[bytes]) -> None:
    wire = b"".join(data)
    whole, reader, rest = unstuff([wire])
    at = (b"\r\n" + wire).find(b"\r\n.\r\n")
    assert reader.done == (at >= 0)
    if reader.done:
        assert rest == (b"\r\n" + wire)[at + 5 :]
    piecewise, other, behind = unstuff([wire[i : i + 1] for i in range(len(wire))])
    assert (piecewise, other.done, behind) == (whole, reader.done, rest)
    assert other.violation == reader.violation


@pytest.mark.parametrize(
    ("wire", "rule"),
    [
        (b"a\n.\r\nb\r\n.\r\n", BARE_LF),
        (b"a\r\n.\nb\r\n.\r\n", BARE_LF),
        (b"a\r.\r\nb\r\n.\r\n", BARE_CR),
        (b"a\r\n.\rb\r\n.\r\n", BARE_CR),
        (b"a\r\r\n.\r\n", BARE_CR),
        (b"a\n\r\n.\r\n", BARE_LF),
        (b".\n\r\n.\r\n", BARE_LF),
    ],
)
def test_smuggling_variants_do_not_end_content_and_are_named(wire: bytes, rule: str) -> None:
    for chunks in ([wire], [wire[i : i + 1] for i in range(len(wire))]):
        _, reader, rest = unstuff(chunks)
        assert (reader.done, rest) == (True, b"")
        assert reader.violation == rule


def test_content_cannot_be_taken_behind_its_end() -> None:
    reader, inbox = DotUnstuffer(), Inbox()
    inbox.feed(b".\r\nx")
    assert reader.take(inbox) == b""
    with pytest.raises(RuntimeError):
        reader.take(inbox)


def read_lines(chunks: list[bytes], limit: int = 64) -> list[Line]:
    reader, lines, inbox = LineReader(limit), [], Inbox()
    for chunk in chunks:
        inbox.feed(chunk)
        while (line := reader.take(inbox)) is not None:
            lines.append(line)
    return lines


@given(data=st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"ab", b"x" * 9]), max_size=40))
def test_lines_are_the_same_at_any_split(data: list[bytes]) -> None:
    wire = b"".join(data)
    lines = read_lines([wire], 16)
    assert lines == read_lines([wire[i : i + 1] for i in range(len(wire))], 16)
    assert len(lines) == wire.count(b"\r\n")
    for line, octets in zip(lines, wire.split(b"\r\n"), strict=False):
        assert line.octets == (b"" if line.violation == LINE_TOO_LONG else octets)
        assert (line.violation == LINE_TOO_LONG) == (len(octets) + 2 > 16)


def test_only_crlf_ends_a_command_line() -> None:
    (line,) = read_lines([b"NOOP\nMAIL FROM:<>\r\n"])
    assert line.violation == BARE_LF
    (line,) = read_lines([b"NOOP\rX\r\n"])
    assert line.violation == BARE_CR


def test_an_endless_line_is_held_in_bounded_memory() -> None:
    reader, inbox = LineReader(64), Inbox()
    for _ in range(1000):
        inbox.feed(b"x" * 1000)
        assert reader.take(inbox) is None
        assert len(inbox.data) < 64
    inbox.feed(b"\r\nNOOP\r\n")
    assert reader.take(inbox) == Line(octets=b"", violation=LINE_TOO_LONG)
    assert reader.take(inbox) == Line(octets=b"NOOP", violation=None)


def test_an_inbox_that_was_cleared_begins_with_a_new_line() -> None:
    reader, inbox = LineReader(64), Inbox()
    inbox.feed(b"x" * 1000)
    assert reader.take(inbox) is None
    inbox.feed(b"yz")
    assert inbox.clear() == 3  # of the endless line its last octet is kept
    reader.forget()
    inbox.feed(b"NOOP\r\n")
    assert reader.take(inbox) == Line(octets=b"NOOP", violation=None)


@given(
    parts=st.lists(
        st.sampled_from([b"DATA\r\n", b"a\r\n", b".", b".\r\n", b"\r", b"\n", b"b"]), max_size=30
    ),
    feeds=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=60),
)
def test_lines_content_and_counted_octets_come_whole_however_late_they_are_taken(
    parts: list[bytes], feeds: list[tuple[int, int]]
) -> None:
    """Lines in turn with contents and with three octets, taken only now and then."""
    wire = b"".join(parts)
    expected, rest = list[bytes](), wire
    for turn in range(1000):
        if turn % 3 == 0:
            head, found, rest = rest.partition(b"\r\n")
        elif turn % 3 == 1:
            raw, found, rest = (b"\r\n" + rest).partition(b"\r\n.\r\n")
            head = (raw + b"\r\n").replace(b"\r\n.", b"\r\n")[2:]
        else:
            head, found, rest = rest[:3], rest[2:3], rest[3:]
        if not found:
            break
        expected.append(head)
    seen, inbox, lines = list[bytes](), Inbox(), LineReader(4096)
    unstuffer, content = DotUnstuffer(), b""

    def step() -> bool:
        nonlocal unstuffer, content
        if len(seen) % 3 == 0:
            line = lines.take(inbox)
            seen.extend([] if line is None else [line.octets])
            return line is not None
        if len(seen) % 3 == 1:
            piece = unstuffer.take(inbox)
            content += piece
            if unstuffer.done:
                seen.append(content)
                unstuffer, content = DotUnstuffer(), b""
                return True
            return bool(piece)
        piece = inbox.take(3 - len(content))
        content += piece
        if len(content) == 3:
            seen.append(content)
            content = b""
        return bool(piece)

    at = 0
    for size, pulls in feeds:
        inbox.feed(wire[at : at + size])
        at += size
        for _ in range(pulls):
            step()
    inbox.feed(wire[at:])
    while step():
        pass
    assert seen == expected
