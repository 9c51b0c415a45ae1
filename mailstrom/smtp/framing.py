"""Line discipline: dot stuffing, strict end of data, command lines.

Contract: CRLF is the only line end (RFC 5321 sections 2.3.8 and 4.1.1.4). Only CRLF.CRLF ends
content, so that two parties can never see two different messages (SMTP smuggling). All readers
are incremental and linear, state is carried over chunk borders, memory is bounded by the chunk.
Dot stuffing is RFC 5321 section 4.5.2.

Must not know: commands, replies, what a violation leads to.
"""

from __future__ import annotations

from dataclasses import dataclass

BARE_CR = "bare-cr"
BARE_LF = "bare-lf"
LINE_TOO_LONG = "line-too-long"
_HOLDS = "content holds a {}; it must have CRLF line ends only"


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


def require_crlf(content: bytes) -> None:
    """Content that is to leave, whole.

    Raises:
        BareLineEnd: a CR or LF that is not part of a CRLF.
    """
    broken = bare_line_end(content)
    if broken is not None:
        raise BareLineEnd(_HOLDS.format(broken))


def stuffed(content: bytes) -> bytes:
    """Whole content as it stands behind a 354, its terminator included.

    Raises:
        BareLineEnd: a CR or LF that is not part of a CRLF.
    """
    broken = bare_line_end(content)
    if broken is not None:
        raise BareLineEnd(_HOLDS.format(broken))
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
            raise BareLineEnd(_HOLDS.format(broken))
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
            raise BareLineEnd("content ends with a bare-cr; it must have CRLF line ends only")
        return b".\r\n" if self._line_start else b"\r\n.\r\n"


class DotUnstuffer:
    """Reads content up to CRLF.CRLF and takes the stuffing off (server side).

    Attributes:
        done: the end of data was seen.
        rest: bytes behind the end of data (pipelined commands), valid once ``done``.
        violation: ``BARE_LF`` where there is one, else ``BARE_CR`` where there is one, else None,
            whatever the pieces. Such content still ends only at CRLF.CRLF; what to answer is the
            server's choice, storing it is not.
    """

    __slots__ = ("_held", "_skip", "done", "rest", "violation")

    _END = b"\r\n.\r\n"

    def __init__(self) -> None:
        # The CRLF of the DATA command line counts: ".CRLF" at once is empty content. It is held
        # like any other CRLF and dropped from the first block that comes out.
        self._held = b"\r\n"
        self._skip = 2
        self.done = False
        self.rest = b""
        self.violation: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Content completed by these bytes, unstuffed; its line ends are kept.

        Raises:
            RuntimeError: called after ``done``; read ``rest`` with the command reader instead.
        """
        if self.done:
            raise RuntimeError("the end of data was already seen; what follows are commands")
        block = self._held + data
        at = block.find(self._END)
        if at >= 0:
            self.done = True
            self.rest = block[at + 5 :]
            block, self._held = block[: at + 2], b""
        else:
            held = next(n for n in (4, 3, 2, 1, 0) if block.endswith(self._END[:n]))
            cut = len(block) - held
            block, self._held = block[:cut], block[cut:]
        # A held tail starts with its CR, so that no CRLF is ever cut in two here.
        if self.violation != BARE_LF:
            self.violation = bare_line_end(block) or self.violation
        content = block.replace(b"\r\n.", b"\r\n")
        if self._skip and content:
            content, self._skip = content[self._skip :], 0
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One command line.

    Args:
        octets: without the CRLF; empty if it was too long.
        violation: ``LINE_TOO_LONG``, ``BARE_CR``, ``BARE_LF``, or None.
    """

    octets: bytes
    violation: str | None


class LineReader:
    """Cuts command lines out of a stream; pull-based, since content may follow any line.

    Args:
        limit: octets of one line, CRLF included (RFC 5321 section 4.5.3.1.4: at least 512).
    """

    __slots__ = ("_buffer", "_overlong", "_scanned", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._overlong = False

    def feed(self, data: bytes) -> None:
        """Takes bytes in; call ``take_line`` until it gives None before feeding more."""
        self._buffer += data

    def take_line(self) -> Line | None:
        """The next complete line, or None while there is none.

        A line beyond the limit is dropped as it comes and reported once its CRLF arrives.
        """
        buffer = self._buffer
        end = buffer.find(b"\r\n", max(0, self._scanned - 1))
        if end < 0:
            if len(buffer) >= self.limit:
                self._overlong = True
                del buffer[:-1]
            self._scanned = len(buffer)
            return None
        octets = bytes(buffer[:end])
        del buffer[: end + 2]
        self._scanned = 0
        overlong, self._overlong = self._overlong or end + 2 > self.limit, False
        if overlong:
            return Line(octets=b"", violation=LINE_TOO_LONG)
        return Line(octets=octets, violation=bare_line_end(octets))

    def take_rest(self) -> bytes:
        """Everything buffered, removed: content behind DATA, or evidence at STARTTLS."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        self._overlong = False
        return rest
