"""What a client sends, cut into commands and ends of content, for small model servers."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto


class End(Enum):
    """Content is whole."""

    DOT = auto()
    CHUNK = auto()


class Pieces:
    """Cuts a stream; the server says what comes behind the command that it was given last.

    Attributes:
        content: content follows, up to its dot.
        octets: so many octets of content follow; below 0: none do.
    """

    def __init__(self) -> None:
        self.content = False
        self.octets = -1
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes | End]:
        """Command lines without their CRLF, and ends of content, as far as they are whole."""
        self._buffer += data
        while True:
            if self.octets >= 0:
                if len(self._buffer) < self.octets:
                    return
                self._buffer, self.octets = self._buffer[self.octets :], -1
                yield End.CHUNK
                continue
            if self.content and self._buffer.startswith(b".\r\n"):
                self._buffer = b"\r\n" + self._buffer
            line, found, rest = self._buffer.partition(b"\r\n.\r\n" if self.content else b"\r\n")
            if not found:
                return
            self._buffer = rest
            yield End.DOT if self.content else line
