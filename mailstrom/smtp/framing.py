"""Line discipline of content, and how it leaves: dot stuffing (RFC 5321 section 4.5.2).

Contract: CRLF is the only line end (RFC 5321 sections 2.3.8 and 4.1.1.4), so that two parties can
never see two different messages (SMTP smuggling). All is linear, state is carried over the borders
of chunks, memory is bounded by the chunk. How content comes in is ``inbox``.

Must not know: commands, replies, what a violation leads to.
"""

from __future__ import annotations

import re

BARE_CR = "bare-cr"
BARE_LF = "bare-lf"
_LINE_END = re.compile(rb"\r\n|\r|\n")
ALONE = {
    BARE_CR: "a carriage return without a line feed",
    BARE_LF: "a line feed without a carriage return",
}
"""What is broken, for people."""
_HOLDS = "content has {}; lines end in CRLF"


class BareLineEnd(ValueError):
    """Content that is to leave holds a CR or LF alone; sending it could smuggle a message."""


def bare_line_end(block: bytes) -> str | None:
    """Rule broken by a block that neither starts behind a CR nor ends with an open one."""
    pairs = block.count(b"\r\n")
    if block.count(b"\n") != pairs:
        return BARE_LF
    if block.count(b"\r") != pairs:
        return BARE_CR
    return None


def crlf(block: bytes) -> bytes:
    """A block that ends with no open CR, each CR and LF that stands alone made a CRLF."""
    return _LINE_END.sub(b"\r\n", block)


def require_crlf(content: bytes) -> None:
    """Content that is to leave, whole.

    Raises:
        BareLineEnd: a CR or LF that is not part of a CRLF.
    """
    broken = bare_line_end(content)
    if broken is not None:
        raise BareLineEnd(_HOLDS.format(ALONE[broken]))


def stuffed(content: bytes) -> bytes:
    """Whole content as it stands behind a 354, its terminator included.

    Raises:
        BareLineEnd: a CR or LF that is not part of a CRLF.
    """
    broken = bare_line_end(content)
    if broken is not None:
        raise BareLineEnd(_HOLDS.format(ALONE[broken]))
    if content.startswith(b"."):
        content = b"." + content
    end = b".\r\n" if not content or content.endswith(b"\r\n") else b"\r\n.\r\n"
    return content.replace(b"\r\n.", b"\r\n..") + end


class DotStuffer:
    """Turns content into what stands behind a 354 (client side)."""

    __slots__ = ("_cr", "_line_start")

    def __init__(self) -> None:
        self._line_start = True
        self._cr = False

    def feed(self, chunk: bytes) -> bytes:
        """The chunk with each line's leading dot doubled.

        Raises:
            BareLineEnd: a CR or LF that is not part of a CRLF.
        """
        if not chunk:
            return chunk
        whole = b"\r" + chunk if self._cr else chunk
        broken = bare_line_end(whole[:-1] if whole.endswith(b"\r") else whole)
        if broken is not None:
            raise BareLineEnd(_HOLDS.format(ALONE[broken]))
        if self._line_start and chunk.startswith(b"."):
            chunk = b"." + chunk
        elif self._cr and chunk.startswith(b"\n."):
            chunk = b"\n." + chunk[1:]
        self._cr = chunk.endswith(b"\r")
        self._line_start = whole.endswith(b"\r\n")
        return chunk.replace(b"\r\n.", b"\r\n..")

    def end(self) -> bytes:
        """The terminator; a missing last CRLF is added.

        Raises:
            BareLineEnd: the content's last octet is a CR.
        """
        if self._cr:
            raise BareLineEnd(_HOLDS.format(ALONE[BARE_CR]))
        return b".\r\n" if self._line_start else b"\r\n.\r\n"
