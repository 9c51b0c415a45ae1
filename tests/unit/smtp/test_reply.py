"""Replies: parsed at any split, bounded, never guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.reply import BadReply, Reply, ReplyKind, ReplyParser, render_reply, visible


def parse(data: bytes) -> list[Reply]:
    return ReplyParser().feed(data)


def test_enhanced_code_is_split_off_every_line() -> None:
    (reply,) = parse(b"550-5.1.1 no such user\r\n550 5.1.1  here\r\n")
    assert (reply.code, reply.enhanced) == (550, "5.1.1")
    assert reply.text == "no such user here"
    assert reply.lines == ("5.1.1 no such user", "5.1.1  here")


@pytest.mark.parametrize(
    "text", ["4.1.1 odd", "5.1 odd", "5.1.1odd", "5.1.1111 odd", "x 5.1.1", "5.١.١ odd"]
)
def test_what_is_no_enhanced_code_of_this_class_stays_text(text: str) -> None:
    (reply,) = parse(f"550 {text}\r\n".encode())
    assert reply.enhanced is None
    assert reply.text == text


def test_a_lone_code_is_a_reply() -> None:
    assert parse(b"250\r\n250 \r\n250 2.0.0\r\n") == [
        Reply(250, None, ("",)),
        Reply(250, None, ("",)),
        Reply(250, "2.0.0", ("2.0.0",)),
    ]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (250, ReplyKind.POSITIVE),
        (354, ReplyKind.INTERMEDIATE),
        (450, ReplyKind.TRANSIENT),
        (599, ReplyKind.PERMANENT),
    ],
)
def test_kind_is_the_first_digit(code: int, kind: ReplyKind) -> None:
    reply = Reply(code, None, ())
    assert reply.kind is kind
    flags = (reply.positive, reply.intermediate, reply.transient, reply.permanent)
    assert flags == tuple(kind is each for each in ReplyKind)


def test_bare_lf_ends_a_reply_line() -> None:
    assert [r.code for r in parse(b"250-a\n250 b\n354 go\r\n")] == [250, 354]


def test_text_is_safe_for_terminals_and_says_what_was_there() -> None:
    (reply,) = parse(b"550 \x1b[31mred\x00 \xff\xe2\x80\xae caf\xc3\xa9\r\n")
    assert reply.text == r"\x1b[31mred\x00 \xff\u202e café"
    assert str(reply) == rf"550 {reply.text}"
    assert visible("plain") == "plain"


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"hello\r\n", "no-code"),
        (b"\r\n", "no-code"),
        (b"25\r\n", "no-code"),
        (b"+25 x\r\n", "no-code"),
        ("٢٥٠ x\r\n".encode(), "no-code"),
        (b"199 x\r\n", "code-out-of-range"),
        (b"600 x\r\n", "code-out-of-range"),
        (b"000 x\r\n", "code-out-of-range"),
        (b"250x\r\n", "separator"),
        (b"2500 x\r\n", "separator"),
        (b"250-a\r\n251 b\r\n", "mixed-codes"),
        (b"250 " + b"x" * 5000, "line-too-long"),
        (b"250 " + b"x" * 5000 + b"\r\n", "line-too-long"),
        (b"250-x\r\n" * 101, "too-many-lines"),
        ((b"250-" + b"x" * 4000 + b"\r\n") * 20, "reply-too-long"),
    ],
)
def test_garbage_is_refused_by_name_and_for_good(data: bytes, rule: str) -> None:
    parser = ReplyParser()
    with pytest.raises(BadReply) as caught:
        parser.feed(data)
    assert caught.value.rule == rule
    with pytest.raises(BadReply):
        parser.feed(b"250 ok\r\n")


def test_replies_before_garbage_are_kept() -> None:
    with pytest.raises(BadReply) as caught:
        parse(b"250 ok\r\n354 go\r\nnonsense\r\n")
    assert [reply.code for reply in caught.value.replies] == [250, 354]


def test_limits_hold_per_reply_not_per_session() -> None:
    parser = ReplyParser(max_lines=2, max_bytes=100)
    for _ in range(50):
        assert len(parser.feed(b"250-a\r\n250 b\r\n")) == 1
    assert not parser.partial
    parser.feed(b"250-a\r\n")
    assert parser.partial


@given(data=st.binary(max_size=300) | st.from_regex(rb"(250[- ][a-z.0-9]*\r\n){0,20}"))
def test_any_split_gives_the_same_replies(data: bytes) -> None:
    def run(chunks: list[bytes]) -> tuple[list[Reply], str | None]:
        parser, replies = ReplyParser(), []
        for chunk in chunks:
            try:
                replies += parser.feed(chunk)
            except BadReply as bad:
                return replies + bad.replies, bad.rule
        return replies, None

    assert run([data[i : i + 1] for i in range(len(data))]) == run([data])


line_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\x00"), max_size=60
)


@given(
    code=st.integers(200, 599),
    detail=st.none() | st.tuples(st.integers(0, 999), st.integers(0, 999)),
    lines=st.lists(line_text, min_size=1, max_size=5),
)
def test_rendered_replies_parse_to_the_same(
    code: int, detail: tuple[int, int] | None, lines: list[str]
) -> None:
    enhanced = None
    if detail is not None and code // 100 != 3:
        enhanced = f"{code // 100}.{detail[0]}.{detail[1]}"
    (reply,) = parse(render_reply(code, enhanced, *lines))
    assert reply.code == code
    if enhanced is not None:
        assert reply.enhanced == enhanced
    else:
        assert reply.lines == tuple(lines)


@pytest.mark.parametrize(
    ("code", "enhanced", "text"),
    [
        (250, None, "a\r\nRCPT"),
        (250, None, "a\nb"),
        (250, None, "a\x00"),
        (250, "5.0.0", "a"),
        (354, "3.0.0", "a"),
        (250, "2.0", "a"),
        (99, None, "a"),
        (600, None, "a"),
    ],
)
def test_rendering_refuses_what_would_break_the_reply(
    code: int, enhanced: str | None, text: str
) -> None:
    with pytest.raises(ValueError, match=r"reply|enhanced"):
        render_reply(code, enhanced, text)


def test_rendering_reads_as_it_should() -> None:
    assert render_reply(250, None, "mx", "SIZE 5") == b"250-mx\r\n250 SIZE 5\r\n"
    assert render_reply(550, "5.1.1", "no", "one") == b"550-5.1.1 no\r\n550 5.1.1 one\r\n"
    assert render_reply(250, None) == b"250\r\n"
    assert render_reply(250, "2.0.0") == b"250 2.0.0\r\n"
