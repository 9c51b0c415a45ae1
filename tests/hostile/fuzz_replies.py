"""Fuzz targets of the wire's grammar: replies, and the framing of content and command lines.

Each is ``target(data)`` and raises AssertionError where the product broke its contract. The judges
are naive readers written here, of whole input and by another way than the product's.
"""

from __future__ import annotations

import re

from mailstrom.policy.hint import CAP_S, retry_hint_s
from mailstrom.policy.outcome import judge_session
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.framing import (
    BareLineEnd,
    DotStuffer,
    require_crlf,
    stuffed,
)
from mailstrom.smtp.inbox import LINE_TOO_LONG, DotUnstuffer, Inbox, Line, LineReader
from mailstrom.smtp.reply import BadReply, Reply, ReplyParser, render_reply, visible
from mailstrom.types import Stage
from tests.hostile.fuzz_choices import Choices, cut

MAX_LINE, MAX_LINES, MAX_BYTES = 4096, 100, 65536
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\n]*))?")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
LINE_LIMIT = 64


def replies(data: bytes) -> None:
    """Any octets, however cut, give what a naive reader finds before the first fault."""
    choices = Choices(data)
    sizes = choices.sizes()
    stream = choices.rest()
    whole, parts = _read([stream]), _read(cut(stream, sizes))
    assert whole == parts, f"whole {whole}, in pieces {parts}"
    found, broken = whole
    expected, bad = naive_replies(stream)
    assert [(one.code, len(one.lines)) for one in found] == expected, (found, expected)
    assert (broken is not None) == bad, (broken, bad)
    for one in found:
        _one_reply(one)


def _read(pieces: list[bytes]) -> tuple[list[Reply], str | None]:
    parser, found = ReplyParser(), list[Reply]()
    for piece in pieces:
        try:
            found += parser.feed(piece)
        except BadReply as bad:
            found += bad.replies
            assert str(bad).isprintable()
            try:
                parser.feed(b"250 ok\r\n")
            except BadReply as again:
                assert again.rule == bad.rule
                return found, bad.rule
            raise AssertionError("a stream that lost its step was read on") from bad
        assert len(parser._buffer) <= MAX_LINE, "more than a line is held"
        assert sum(map(len, parser._lines)) <= 4 * MAX_BYTES, "more than a reply is held"
    return found, None


def naive_replies(stream: bytes) -> tuple[list[tuple[int, int]], bool]:
    """Code and number of lines of each reply, and whether the rest is none."""
    found: list[tuple[int, int]] = []
    code, lines, octets = b"", 0, 0
    *ended, open_ = stream.split(b"\n")
    for line in ended:
        match = _REPLY_LINE.fullmatch(line[:-1] if line.endswith(b"\r") else line)
        if len(line) >= MAX_LINE or match is None or (code and match[1] != code):
            return found, True
        code, lines, octets = match[1], lines + 1, octets + len(line) + 1
        if lines > MAX_LINES or octets > MAX_BYTES:
            return found, True
        if match[2] != b"-":
            found.append((int(code), lines))
            code, lines, octets = b"", 0, 0
    return found, len(open_) > MAX_LINE


def _one_reply(one: Reply) -> None:
    assert one.text.isprintable(), one.text
    assert str(one).isprintable()
    assert one.enhanced == naive_enhanced(one), one
    _understood(one)
    try:
        wire = render_reply(one.code, None, *one.lines)
    except ValueError:
        assert any(set("\r\n\0") & set(line) for line in one.lines), one.lines
        return
    again = ReplyParser(max_line=1 << 20, max_bytes=1 << 24).feed(wire)
    assert again == [one], (one, again)


def naive_enhanced(one: Reply) -> str | None:
    """The first word of a line that is three numbers of its class (RFC 3463 section 2)."""
    for line in one.lines:
        if line[:1].strip():
            parts = line.split(maxsplit=1)[0].split(".")
            numbers = [part for part in parts if part.isascii() and part.isdigit()]
            fitting = len(parts) == len(numbers) == 3 and max(map(len, parts)) <= 3
            if fitting and parts[0] == str(one.code)[0] and parts[0] in "245":
                return ".".join(str(int(part)) for part in parts)
    return None


def _understood(one: Reply) -> None:
    """What else is read out of a server's words: its offer, a delay, a verdict on the host."""
    delay = retry_hint_s(one.text)
    assert delay is None or 0 < delay <= CAP_S
    offer = Capabilities.parse(one.lines)
    assert offer.raw.replace("\n", "").isprintable()
    assert offer.name.isprintable()
    assert offer.size is None or 0 <= offer.size < 10**20
    assert all(0 < limit < 10**6 for limit in offer.limits.values())
    for stage in (Stage.GREETING, Stage.EHLO, Stage.AUTH):
        verdict = judge_session(stage, "reply", one)
        assert visible(str(verdict)) == str(verdict)


def framing(data: bytes) -> None:
    """Content survives stuffing in any pieces, and ends where CRLF.CRLF says and nowhere else."""
    choices = Choices(data)
    out, back = choices.sizes(), choices.sizes()
    stream = choices.rest()
    _stuffing(stream, out, back)
    _stuffing(_BARE.sub(b"\r\n", stream), out, back)
    _unstuffing(stream, back)
    _lines(stream, back)


def _stuffing(content: bytes, out: tuple[int, ...], back: tuple[int, ...]) -> None:
    legal = _BARE.search(content) is None
    for wire in (_stuffed_whole(content), _stuffed_pieces(cut(content, out))):
        assert (wire is not None) == legal, "a bare line end left, or legal content did not"
        if wire is None:
            continue
        # a naive server, which knows CRLF.CRLF alone, sees one message that ends at the end
        assert (b"\r\n" + wire).find(b"\r\n.\r\n") == len(wire) - 3
        for variant in (b"\n.\n", b"\r.\r", b"\n.\r\n"):
            at = (b"\r\n" + wire).find(variant)
            assert at < 0 or at == len(wire) - 2, variant
        ended = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
        got, unstuffer = _unstuffed(cut(wire + b"MAIL FROM:<>\r\n", back))
        assert got == ended
        assert (unstuffer.done, unstuffer.violation) == (True, None)


def _stuffed_whole(content: bytes) -> bytes | None:
    try:
        require_crlf(content)
        return stuffed(content)
    except BareLineEnd:
        return None


def _stuffed_pieces(pieces: list[bytes]) -> bytes | None:
    stuffer = DotStuffer()
    try:
        return b"".join([stuffer.feed(piece) for piece in pieces]) + stuffer.end()
    except BareLineEnd:
        return None


def _unstuffed(pieces: list[bytes]) -> tuple[bytes, DotUnstuffer]:
    unstuffer, inbox = DotUnstuffer(), Inbox()
    content = b""
    for number, piece in enumerate(pieces):
        inbox.feed(piece)
        while not unstuffer.done and (taken := unstuffer.take(inbox)):
            content += taken
        if unstuffer.done:
            rest = inbox.data[inbox.at :] + b"".join(pieces[number + 1 :])
            assert rest == naive_content(pieces)[1]
            break
        assert len(inbox) < 3
    return content, unstuffer


def naive_content(pieces: list[bytes]) -> tuple[bytes, bytes | None]:
    """Content as it is stored and what stands behind its end; None: it has no end."""
    whole = b"\r\n" + b"".join(pieces)
    raw, end, rest = whole.partition(b"\r\n.\r\n")
    unstuffed = re.sub(rb"\r\n\.", b"\r\n", raw + (b"\r\n" if end else b""))[2:]
    return unstuffed, rest if end else None


def _unstuffing(stream: bytes, sizes: tuple[int, ...]) -> None:
    expected, rest = naive_content([stream])
    seen = {_told(*_unstuffed(pieces)) for pieces in ([stream], cut(stream, sizes))}
    if rest is None:  # a tail that may be the end's beginning is held
        assert all(expected.startswith(content) for content, *_ in seen)
        return
    violation = _BARE.search((b"\r\n" + stream).partition(b"\r\n.\r\n")[0]) is not None
    assert len(seen) == 1, "another cut, another message"
    content, done, rule = seen.pop()
    assert (content, done) == (expected, True)
    assert (rule is not None) == violation


def _told(content: bytes, unstuffer: DotUnstuffer) -> tuple[bytes, bool, str | None]:
    return content, unstuffer.done, unstuffer.violation


def _lines(stream: bytes, sizes: tuple[int, ...]) -> None:
    expected = []
    for octets in stream.split(b"\r\n")[:-1]:
        long = len(octets) + 2 > LINE_LIMIT
        expected.append((b"" if long else octets, long or _BARE.search(octets) is not None))
    for pieces in ([stream], cut(stream, sizes)):
        reader, inbox, found = LineReader(LINE_LIMIT), Inbox(), list[Line]()
        for piece in pieces:
            inbox.feed(piece)
            while (line := reader.take(inbox)) is not None:
                found.append(line)
            assert len(inbox) <= LINE_LIMIT
        assert [(one.octets, one.violation is not None) for one in found] == expected
        assert all((one.violation == LINE_TOO_LONG) <= (one.octets == b"") for one in found)
