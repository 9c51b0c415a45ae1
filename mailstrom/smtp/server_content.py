"""A transaction's content as it comes in, by DATA or by BDAT: pieces first, then its end.

Contract: ``DataReader`` reads up to CRLF.CRLF; ``ChunkReader`` takes exactly the octets that each
BDAT announced, whatever they are (RFC 3030), and watches for a CR or LF alone over the borders of
chunks (BINARYMIME, where they would be data, is not offered). Where it is wanted such a CR or LF is
made a CRLF instead. Octets of a refused BDAT are taken
and thrown away before the reply (section 2), so that content is never read as commands. What must
not be stored, since a CR or LF stands alone or the limit is passed, is counted and not told.

Must not know: which command is allowed when, who may send what.
"""

from __future__ import annotations

import re

from mailstrom.smtp.framing import ALONE, BARE_LF, bare_line_end, crlf
from mailstrom.smtp.inbox import DotUnstuffer, Inbox
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_events import ChunkEnd, Content, ContentEnd, Refused

_ACCEPTED = Reply(250, "2.0.0", ("accepted",))
_SIZE = re.compile(r"([0-9]{1,20})( +LAST)?", re.IGNORECASE)


_SMALL = 4096
"""Octets of a piece of content below which it is joined to the one before: a client that sends two
octets at a time makes us hold those, not an object for each."""
_JOINED = 1 << 16


def keep(pieces: list[bytes | bytearray], chunk: bytes) -> None:
    """Put a piece of content behind those that are kept, or on the last of them."""
    if not pieces or len(chunk) >= _SMALL or len(pieces[-1]) >= _JOINED:
        pieces.append(chunk)
        return
    last = pieces[-1]
    if type(last) is not bytearray:
        last = pieces[-1] = bytearray(last)
    last += chunk


def read_size(argument: str) -> tuple[int, bool] | None:
    """The octets that follow and whether they are the last; None for what is no BDAT argument."""
    found = _SIZE.fullmatch(argument)
    return None if found is None else (int(found[1]), found[2] is not None)


def _end(octets: int, violation: str | None, limit: int, *, chunked: bool, fix: bool) -> ContentEnd:
    oversize = 0 < limit < octets
    default = _ACCEPTED
    if violation is not None and not fix:
        default = Reply(554, "5.6.0", (f"content has {ALONE[violation]}; lines end in CRLF",))
    elif oversize:
        text = f"message exceeds the limit of {limit} octets"
        default = Reply(552, "5.3.4", (text,))
    return ContentEnd(
        octets=octets,
        violation=None if fix else violation,
        oversize=oversize,
        default=default,
        chunked=chunked,
        fixed=fix and violation is not None,
    )


class DataReader:
    """The content behind one DATA.

    Args:
        fix: a CR or LF alone is made a CRLF.
    """

    __slots__ = ("_fix", "_octets", "_unstuffer")

    def __init__(self, *, fix: bool = False) -> None:
        self._fix = fix
        self._unstuffer = DotUnstuffer(fix=fix)
        self._octets = 0

    def take(self, inbox: Inbox, limit: int) -> Content | ContentEnd | None:
        """The next piece or the end, which comes last; None: it has not come yet.

        Args:
            inbox: what came; commands may stand behind the end.
            limit: octets of content; 0: none.
        """
        unstuffer = self._unstuffer
        while not unstuffer.done:
            content = unstuffer.take(inbox)
            self._octets += len(content)
            if not content:
                break
            sound = self._fix or unstuffer.violation is None
            if sound and (not limit or self._octets <= limit):
                return Content(chunk=content)
        if not unstuffer.done:
            return None
        return _end(self._octets, unstuffer.violation, limit, chunked=False, fix=self._fix)


class ChunkReader:
    """The chunks of one transaction.

    Args:
        fix: a CR or LF alone is made a CRLF; a CR at the end of a chunk waits for what follows.
    """

    __slots__ = ("_fix", "_held", "_last", "_left", "_octets", "_refusal", "_violation")

    def __init__(self, *, fix: bool = False) -> None:
        self._left = self._octets = 0
        self._last = False
        self._refusal: Refused | None = None
        self._violation: str | None = None
        self._held = b""
        self._fix = fix

    def begin(self, octets: int, last: bool, refusal: Refused | None) -> None:
        """A BDAT came; with a refusal its octets are taken for nothing."""
        self._left, self._last, self._refusal = octets, last, refusal

    def take(self, inbox: Inbox, limit: int) -> Content | ChunkEnd | ContentEnd | Refused | None:
        """The next piece, or what the chunk ends in; None: it is not whole yet.

        Args:
            inbox: what came; commands may stand behind the chunk.
            limit: octets of content; 0: none.
        """
        while self._left:
            chunk = inbox.take(self._left)
            if not chunk:
                return None
            self._left -= len(chunk)
            if self._refusal is None and (content := self._taken(chunk, limit)):
                return Content(chunk=content)
        if self._refusal is not None:
            return self._refusal
        if self._last:
            if self._held and (content := self._taken(b"", limit)):  # a CR at the end of all
                return Content(chunk=content)
            return _end(self._octets, self._violation, limit, chunked=True, fix=self._fix)
        text = f"{self._octets} octets so far"
        return ChunkEnd(octets=self._octets, default=Reply(250, "2.0.0", (text,)))

    def _taken(self, chunk: bytes, limit: int) -> bytes:
        """What of these octets is handed out."""
        block = self._held + chunk
        ended = self._last and not self._left
        self._held = b"\r" if block.endswith(b"\r") and not ended else b""
        whole = block[:-1] if self._held else block
        if self._fix or self._violation != BARE_LF:
            broken = bare_line_end(whole)
            if broken is not None:
                self._violation = broken if self._violation != BARE_LF else BARE_LF
            if self._fix:
                chunk = whole if broken is None else crlf(whole)
        self._octets += len(chunk)
        sound = self._fix or self._violation is None
        return chunk if sound and (not limit or self._octets <= limit) else b""
