"""One BDAT after another, server side: how many octets follow, and what they hold (RFC 3030).

Contract: ``read_size`` reads the argument; ``ChunkReader`` takes exactly that many octets, whatever
they are, and watches text for a CR or LF alone over the borders of chunks (BINARYMIME, where they
would be data, is not offered). The octets of a refused BDAT are taken and thrown away before the
reply (section 2), so that content is never read as commands.

Must not know: which command is allowed when, what a reply says.
"""

from __future__ import annotations

import re

from mailstrom.smtp.framing import BARE_CR, BARE_LF, bare_line_end
from mailstrom.smtp.server_events import Refused

_SIZE = re.compile(r"([0-9]{1,20})( +LAST)?", re.IGNORECASE)


def read_size(argument: str) -> tuple[int, bool] | None:
    """The octets that follow and whether they are the last; None for what is no BDAT argument."""
    found = _SIZE.fullmatch(argument)
    return None if found is None else (int(found[1]), found[2] is not None)


class ChunkReader:
    """The chunks of one transaction.

    Attributes:
        left: octets of the present chunk that are still to come.
        last: the present chunk ends the content.
        refusal: why the present chunk is thrown away, or None.
        octets: content taken so far.
        violation: ``BARE_LF`` where there is one, else ``BARE_CR`` where there is one, else None.
    """

    __slots__ = ("_held", "last", "left", "octets", "refusal", "violation")

    def __init__(self) -> None:
        self.left = 0
        self.last = False
        self.refusal: Refused | None = None
        self.octets = 0
        self.violation: str | None = None
        self._held = b""

    def begin(self, octets: int, last: bool, refusal: Refused | None) -> None:
        """A BDAT came; with a refusal its octets are taken for nothing."""
        self.left, self.last, self.refusal = octets, last, refusal
        if last and not octets and refusal is None:
            self._watch(b"")

    def take(self, inbox: bytearray) -> bytes:
        """What of these bytes is content; what belongs to the chunk is removed from them."""
        chunk = bytes(inbox[: self.left])
        del inbox[: len(chunk)]
        self.left -= len(chunk)
        if self.refusal is not None:
            return b""
        self.octets += len(chunk)
        self._watch(chunk)
        return chunk

    def _watch(self, chunk: bytes) -> None:
        block = self._held + chunk
        ended = self.last and not self.left
        self._held = b"\r" if block.endswith(b"\r") and not ended else b""
        if self.violation != BARE_LF:
            found = bare_line_end(block[: len(block) - len(self._held)])
            self.violation = found or self.violation
        if ended and block.endswith(b"\r"):
            self.violation = self.violation or BARE_CR
