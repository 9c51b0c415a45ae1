"""SMTP replies: the value, the incremental parser, and the renderer.

Contract: turns a peer's bytes into ``Reply`` values and back, in time linear in the bytes whatever
their split, in bounded memory, and never guesses: what RFC 5321 section 4.2 does not allow is
``BadReply``. A bare LF is tolerated as a line end, because replies carry no content that could be
smuggled. Enhanced status codes follow RFC 2034 and RFC 3463. Text is kept whole in ``lines``;
``text`` is the form for logs, terminals and databases.

Must not know: what a reply means for a message (that is the failure policy's), sockets, clocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

# Digits of ASCII alone: those of other scripts are text.
_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?:\s+|$)")
_ENHANCED_CODE = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_MOST_KNOWN = 16
_LINE_BREAKERS = re.compile(r"[\r\n\x00]")


class ReplyKind(StrEnum):
    """What the first digit says (RFC 5321 section 4.2.1)."""

    POSITIVE = "positive"
    INTERMEDIATE = "intermediate"
    TRANSIENT = "transient"
    PERMANENT = "permanent"


KINDS = {
    2: ReplyKind.POSITIVE,
    3: ReplyKind.INTERMEDIATE,
    4: ReplyKind.TRANSIENT,
    5: ReplyKind.PERMANENT,
}


def visible(text: str) -> str:
    """The text with every unprintable character written as its escape.

    Controls, escape sequences, bidirectional overrides and line separators cannot reach a terminal
    or a log raw; printable Unicode stays.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Reply(Struct, frozen=True, gc=False):
    """One complete SMTP reply, positional in the order it stands on the wire.

    Args:
        code: 200 to 599.
        enhanced: enhanced status code (RFC 3463) as text, or None; its class is ``code``'s digit.
        lines: text of each line behind the code, as sent (with the enhanced code where the peer
            put one); bytes that are not UTF-8 appear as ``\\xNN``.
    """

    code: int
    enhanced: str | None
    lines: tuple[str, ...]

    @classmethod
    def of(cls, code: int, lines: Iterable[str]) -> Reply:
        """A reply whose enhanced code is read from the lines (RFC 2034 section 4).

        A code whose class is not the reply's first digit is text, not a status.
        """
        kept = tuple(lines)
        digit = str(code)[0]
        for line in kept:
            found = _ENHANCED.match(line)
            if found is not None and found[1] == digit:
                return cls(code, f"{found[1]}.{int(found[2])}.{int(found[3])}", kept)
        return cls(code, None, kept)

    @property
    def text(self) -> str:
        """All lines joined by one space, enhanced codes stripped, unprintables escaped."""
        digit = str(self.code)[0]
        parts: list[str] = []
        for line in self.lines:
            found = _ENHANCED.match(line)
            cut = found.end() if found is not None and found[1] == digit else 0
            part = line[cut:].strip()
            if part:
                parts.append(visible(part))
        return " ".join(parts)

    @property
    def kind(self) -> ReplyKind:
        """The meaning of the first digit."""
        return KINDS[self.code // 100]

    @property
    def positive(self) -> bool:
        """2xx: done."""
        return self.code // 100 == 2

    @property
    def intermediate(self) -> bool:
        """3xx: go on."""
        return self.code // 100 == 3

    @property
    def transient(self) -> bool:
        """4xx: not now."""
        return self.code // 100 == 4

    @property
    def permanent(self) -> bool:
        """5xx: not this way."""
        return self.code // 100 == 5

    def __str__(self) -> str:
        head = str(self.code) if self.enhanced is None else f"{self.code} {self.enhanced}"
        text = self.text
        return f"{head} {text}" if text else head


class BadReply(Exception):
    """The peer's bytes are no SMTP reply; the stream behind them cannot be trusted.

    Args:
        rule: short stable name of the broken rule.
        line: the offending bytes, shortened.
        replies: complete replies that stood before the garbage in the same bytes.
    """

    def __init__(self, rule: str, line: bytes, replies: list[Reply]) -> None:
        self.rule = rule
        self.line = line[:200]
        self.replies = replies
        shown = visible(self.line.decode("utf-8", "backslashreplace"))
        super().__init__(f"not an SMTP reply ({rule}): {shown!r}; close the connection")


class ReplyParser:
    """Incremental parser of one peer's replies.

    Args:
        max_line: octets of one line, line end included.
        max_lines: lines of one reply.
        max_bytes: octets of one reply.
    """

    __slots__ = ("_bad", "_buffer", "_code", "_known", "_lines", "_octets", "_scanned", "limits")

    def __init__(self, max_line: int = 4096, max_lines: int = 100, max_bytes: int = 65536) -> None:
        self.limits = (max_line, max_lines, max_bytes)
        self._buffer = bytearray()
        self._scanned = 0
        self._code: int | None = None
        self._lines: list[str] = []
        self._octets = 0
        self._bad: tuple[str, bytes] | None = None
        self._known: dict[bytes, Reply] = {}  # by the line that is the whole of it, without LF

    @property
    def partial(self) -> bool:
        """Whether bytes of an unfinished reply are held."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """Replies completed by these bytes, in order.

        Raises:
            BadReply: garbage; its ``replies`` holds what was complete before it. Every later call
                raises again, since the stream has lost its step.
        """
        replies: list[Reply] = []
        if self._bad is not None:
            raise BadReply(*self._bad, replies)
        buffer = self._buffer
        if not buffer and self._code is None and data[-1:] == b"\n":
            # as most flights come: whole lines, many of them seen before
            known = self._known
            for line in data[:-1].split(b"\n"):
                reply = known.get(line)
                if reply is not None and self._code is None:
                    replies.append(reply)
                else:
                    self._take(line, replies)
            return replies
        buffer += data
        max_line = self.limits[0]
        start = 0
        while True:
            end = buffer.find(b"\n", max(start, self._scanned))
            if end < 0:
                break
            line = bytes(buffer[start:end])
            start = self._scanned = end + 1
            self._take(line, replies)
        del buffer[:start]
        self._scanned = len(buffer)
        if len(buffer) > max_line:
            self._refuse("line-too-long", bytes(buffer[:200]), replies)
        return replies

    def _take(self, line: bytes, replies: list[Reply]) -> None:
        max_line, max_lines, max_bytes = self.limits
        if len(line) >= max_line:
            self._refuse("line-too-long", line, replies)
        bare = line[:-1] if line.endswith(b"\r") else line
        digits, separator = bare[:3], bare[3:4]
        if len(digits) < 3 or not digits.isdigit():
            self._refuse("no-code", line, replies)
        code = int(digits)
        if not 200 <= code <= 599:
            self._refuse("code-out-of-range", line, replies)
        if separator not in (b"", b" ", b"-"):
            self._refuse("separator", line, replies)
        if self._code is not None and code != self._code:
            self._refuse("mixed-codes", line, replies)
        self._code = code
        self._octets += len(line) + 1
        self._lines.append(bare[4:].decode("utf-8", "backslashreplace"))
        if len(self._lines) > max_lines:
            self._refuse("too-many-lines", line, replies)
        if self._octets > max_bytes:
            self._refuse("reply-too-long", line, replies)
        if separator != b"-":
            reply = Reply.of(code, self._lines)
            if len(self._lines) == 1 and len(self._known) < _MOST_KNOWN:
                self._known[line] = reply
            replies.append(reply)
            self._code, self._lines, self._octets = None, [], 0

    def _refuse(self, rule: str, line: bytes, replies: list[Reply]) -> None:
        self._bad = (rule, line[:200])
        self._buffer.clear()
        raise BadReply(rule, line, replies)


def render_reply(code: int, enhanced: str | None, *lines: str) -> bytes:
    """A reply's bytes; the enhanced code stands on every line (RFC 2034 section 4).

    Args:
        code: 200 to 599.
        enhanced: ``None`` where none belongs (greeting, EHLO, 3xx).
        lines: text, no CR, LF or NUL; none at all is a reply without text.

    Raises:
        ValueError: a code out of range, an enhanced code of another class, a line that would break
            the framing.
    """
    if len(lines) == 1 and lines[0] and not _LINE_BREAKERS.search(lines[0]):
        # one line, which may be said only once: it names a message
        return f"{_head(code, enhanced)}{lines[0]}\r\n".encode("utf-8", "backslashreplace")
    return _rendered(code, enhanced, lines)


@lru_cache(256)
def _head(code: int, enhanced: str | None) -> str:
    """What stands before the text of the last line."""
    if not 200 <= code <= 599:
        raise ValueError(f"reply code {code} is outside 200..599 (RFC 5321 section 4.2.1)")
    if enhanced is None:
        return f"{code} "
    if not _ENHANCED_CODE.fullmatch(enhanced) or enhanced[0] != str(code)[0]:
        raise ValueError(f"enhanced code {enhanced!r} does not belong to {code}; see RFC 2034")
    return f"{code} {enhanced} "


@lru_cache(256)  # a server says few things, and says them often
def _rendered(code: int, enhanced: str | None, lines: tuple[str, ...]) -> bytes:
    _head(code, enhanced)
    out = bytearray()
    texts = lines or ("",)
    for number, text in enumerate(texts, 1):
        if _LINE_BREAKERS.search(text):
            raise ValueError(f"reply text {text!r} holds CR, LF or NUL; pass one line each")
        body = " ".join(part for part in (enhanced, text) if part)
        last = number == len(texts)
        separator = ("" if not body else " ") if last else "-"
        out += f"{code}{separator}{body}\r\n".encode("utf-8", "backslashreplace")
    return bytes(out)
