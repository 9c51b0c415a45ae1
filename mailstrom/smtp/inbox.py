"""What came from a client and was not looked at yet; command lines and content taken out of it.

Contract. Whatever reads, lines, content or counted octets, takes from the front of one inbox, so
nothing is handed over where one ends and another begins; taking costs what is taken, whatever
stands behind it: any input costs as much as it is long. An unfinished line keeps no more than its
limit. CRLF is the only line end, and only CRLF.CRLF ends content (RFC 5321 sections 2.3.8 and
4.1.1.4); any split of the octets gives the same lines and content.

Must not know: commands, replies, what a violation leads to.
"""

from __future__ import annotations

import re

from msgspec import Struct

from mailstrom.smtp.framing import BARE_CR, BARE_LF, bare_line_end

LINE_TOO_LONG = "line-too-long"
_END = b"\r\n.\r\n"
_DOT = re.compile(rb"\r\n\.")
_LINE_START = re.compile(rb"(?:\r\n|\r|\n)\.?")  # with the dot that stuffing put there


class Inbox:
    """Octets in the order in which they came.

    Attributes:
        data: the piece that is read now; readers take from it by moving ``at``.
        at: where what was not taken begins in it.
    """

    __slots__ = ("_behind", "at", "data")

    def __init__(self) -> None:
        self.data = b""
        self.at = 0
        self._behind = bytearray()

    def __len__(self) -> int:
        return len(self.data) - self.at + len(self._behind)

    def feed(self, data: bytes) -> None:
        """Take what came in; it is not copied where all before it was taken."""
        if self._behind or self.at < len(self.data):
            self._behind += data
        else:
            self.data, self.at = bytes(data), 0

    def more(self) -> bool:
        """Join what came behind ``data`` to what is left of it.

        For a reader that cannot go on without; only then, or a small piece that comes while much
        is waiting would have all of it copied.

        Returns:
            whether anything had come.
        """
        if self.at:
            self.data, self.at = self.data[self.at :], 0
        if not self._behind:
            return False
        self.data += self._behind
        self._behind.clear()
        return True

    def take(self, most: int) -> bytes:
        """Up to so many octets; none: all was taken."""
        if self.at == len(self.data) and not self.more():
            return b""
        taken = self.data[self.at : self.at + most]
        self.at += len(taken)
        return taken

    def clear(self) -> int:
        """Throw everything away.

        Returns:
            how many octets that were.
        """
        dropped = len(self)
        self.data, self.at = b"", 0
        self._behind.clear()
        return dropped


class Line(Struct, frozen=True, gc=False, kw_only=True):
    """One command line.

    Args:
        octets: without the CRLF; empty if it was too long.
        violation: ``LINE_TOO_LONG``, ``BARE_CR``, ``BARE_LF``, or None.
    """

    octets: bytes
    violation: str | None


class LineReader:
    """Takes command lines out of an inbox; content may follow any of them.

    Args:
        limit: octets of one line, CRLF included (RFC 5321 section 4.5.3.1.4: at least 512).
    """

    __slots__ = ("_overlong", "_searched", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._searched = 0  # octets of the line that has come in part
        self._overlong = False

    def take(self, inbox: Inbox) -> Line | None:
        """The next complete line, or None while there is none.

        A line beyond the limit is dropped as it comes and reported once its CRLF arrives.
        """
        at = inbox.at
        end = inbox.data.find(b"\r\n", at + self._searched)
        while end < 0:
            left = len(inbox.data) - at
            if left >= self.limit:
                self._overlong = True
                inbox.at += left - 1  # the last may be the CR
                left = 1
            self._searched = max(left - 1, 0)
            if not inbox.more():
                return None
            at = 0
            end = inbox.data.find(b"\r\n", self._searched)
        octets = inbox.data[at:end]
        inbox.at = end + 2
        self._searched = 0
        if self._overlong or len(octets) + 2 > self.limit:
            self._overlong = False
            return Line(octets=b"", violation=LINE_TOO_LONG)
        if b"\n" in octets:
            return Line(octets=octets, violation=BARE_LF)
        return Line(octets=octets, violation=BARE_CR if b"\r" in octets else None)

    def forget(self) -> None:
        """The inbox was cleared: what came of an unfinished line is gone."""
        self._searched = 0
        self._overlong = False


class DotUnstuffer:
    """Takes content up to CRLF.CRLF out of what came, its stuffing off (server side).

    Args:
        fix: each CR and LF that stands alone is made a CRLF, and a dot behind it is stuffing as
            behind any line end. The end is looked for in what came, so that nothing that is mended
            can become one.

    Attributes:
        done: the end of data was seen; what is left in the inbox are commands.
        violation: ``BARE_LF`` where there is one, else ``BARE_CR`` where there is one, else None,
            whatever the pieces. Such content still ends only at CRLF.CRLF; what to answer is the
            server's choice, storing it is not, unless it is fixed.
    """

    __slots__ = ("_fix", "_line_start", "_mended_start", "done", "violation")

    def __init__(self, *, fix: bool = False) -> None:
        # The CRLF of the DATA command line counts: ".CRLF" at once is empty content.
        self._line_start = True
        self._fix = fix
        self._mended_start = False  # behind an LF that stood alone
        self.done = False
        self.violation: str | None = None

    def take(self, inbox: Inbox) -> bytes:
        """Content that has come, unstuffed, its line ends kept; none: all that came is looked at.

        Two octets at most stay behind, which may begin the end: a CR, or the dot of a line.

        Raises:
            RuntimeError: called after ``done``.
        """
        if self.done:
            raise RuntimeError("the end of data was already seen; what follows are commands")
        content = self._take(inbox)
        while not (content or self.done) and inbox.more():
            content = self._take(inbox)
        return content

    def _take(self, inbox: Inbox) -> bytes:
        data, at = inbox.data, inbox.at
        first_dot = self._line_start and data.startswith(b".", at)
        if first_dot and data.startswith(b".\r\n", at):
            inbox.at = at + 3
            self.done = True
            return b""
        # A dot behind a line end is searched for once: mostly there is none.
        dot = _DOT.search(data, at)
        end = data.find(_END, dot.start()) if dot is not None else -1
        if end >= 0:
            self.done = True
            stop, inbox.at = end + 2, end + 5
        else:
            stop = inbox.at = len(data) - self._held(data, at)
        block = data[at:stop]
        if self._fix or self.violation != BARE_LF:
            # a CR at its end was left, so no CRLF is ever cut in two
            broken = bare_line_end(block)
            if broken is not None:
                self.violation = broken if self.violation != BARE_LF else BARE_LF
            if self._fix and (broken is not None or self._mended_start):
                return self._mended(block, first_dot)
        if block:
            self._line_start = block.endswith(b"\r\n")
        if dot is not None:
            block = block.replace(b"\r\n.", b"\r\n")
        return block[1:] if first_dot else block

    def _mended(self, block: bytes, first_dot: bool) -> bytes:
        """A block with its line ends made whole, and the stuffing behind each of them off."""
        if not block:
            return block
        if self._mended_start and block.startswith(b"."):
            first_dot = True
        self._line_start = block.endswith(b"\r\n")
        self._mended_start = block.endswith(b"\n") and not self._line_start
        block = _LINE_START.sub(b"\r\n", block)
        return block[1:] if first_dot else block

    def _held(self, data: bytes, at: int) -> int:
        """Octets at the end that cannot be told from the end of data yet."""
        cr = 1 if data.endswith(b"\r", at) else 0
        dot = len(data) - cr - 1
        if dot < at or data[dot] != 0x2E:
            return cr
        behind = self._line_start if dot == at else data.endswith(b"\r\n", at, dot)
        return cr + 1 if behind else cr
