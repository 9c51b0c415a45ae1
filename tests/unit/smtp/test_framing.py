"""Framing: stuffing and its inverse, strict ends, command lines; all at any split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.framing import (
    BARE_CR,
    BARE_LF,
    LINE_TOO_LONG,
    BareLineEnd,
    DotStuffer,
    DotUnstuffer,
    Line,
    LineReader,
)

pieces = st.lists(st.sampled_from([b".", b"\r\n", b"a", b"..", b"\r\n.\r\n", b"\xff"]), max_size=30)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(cut, len(data)) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def stuff(chunks: list[bytes]) -> bytes:
    stuffer = DotStuffer()
    return b"".join(stuffer.feed(chunk) for chunk in chunks) + stuffer.end()


def unstuff(chunks: list[bytes]) -> tuple[bytes, DotUnstuffer, int]:
    reader, content = DotUnstuffer(), b""
    for number, chunk in enumerate(chunks, 1):
        content += reader.feed(chunk)
        if reader.done:
            return content, reader, number
    return content, reader, len(chunks)


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
        got, reader, used = unstuff(chunks)
        assert (got, reader.done, reader.violation) == (ended, True, None)
        assert reader.rest == b""
        assert not b"".join(chunks[used:])


def test_empty_content_is_a_lone_dot() -> None:
    assert stuff([]) == b".\r\n"
    assert stuff([b""]) == b".\r\n"
    assert unstuff([b".\r\nQUIT\r\n"])[1].rest == b"QUIT\r\n"


@pytest.mark.parametrize(
    "content",
    [b"a\nb", b"a\rb", b"\n", b"\r", b"a\r\r\n", b"a\n\r\n", b"a\r\n.\n", b"a\n.\r\n", b"end\r"],
)
def test_content_with_a_bare_line_end_never_leaves(content: bytes) -> None:
    for chunks in ([content], [content[i : i + 1] for i in range(len(content))]):
        with pytest.raises(BareLineEnd):
            stuff(chunks)


@given(data=st.lists(st.sampled_from([b".", b"\r", b"\n", b"a", b"\r\n"]), max_size=40))
def test_only_crlf_dot_crlf_ends_content(data: list[bytes]) -> None:
    wire = b"".join(data)
    whole, reader, _ = unstuff([wire])
    at = (b"\r\n" + wire).find(b"\r\n.\r\n")
    assert reader.done == (at >= 0)
    if reader.done:
        assert reader.rest == (b"\r\n" + wire)[at + 5 :]
    piecewise, other, _ = unstuff([wire[i : i + 1] for i in range(len(wire))])
    assert (piecewise, other.done) == (whole, reader.done)
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
        _, reader, used = unstuff(chunks)
        assert reader.done
        assert used == len(chunks)
        assert reader.violation == rule


def test_content_cannot_be_fed_behind_its_end() -> None:
    reader = DotUnstuffer()
    reader.feed(b".\r\n")
    with pytest.raises(RuntimeError):
        reader.feed(b"x")


def read_lines(chunks: list[bytes], limit: int = 64) -> list[Line]:
    reader, lines = LineReader(limit), []
    for chunk in chunks:
        reader.feed(chunk)
        while (line := reader.take_line()) is not None:
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
    reader = LineReader(64)
    for _ in range(1000):
        reader.feed(b"x" * 1000)
        assert reader.take_line() is None
    assert len(reader.take_rest()) < 2000
    reader.feed(b"NOOP\r\n")
    assert reader.take_line() == Line(octets=b"NOOP", violation=None)


def test_the_rest_behind_a_line_can_be_taken() -> None:
    reader = LineReader(64)
    reader.feed(b"DATA\r\n.\r\nQUIT\r\n")
    assert reader.take_line() == Line(octets=b"DATA", violation=None)
    assert reader.take_rest() == b".\r\nQUIT\r\n"
    assert reader.take_line() is None
