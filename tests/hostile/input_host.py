"""A mail host that keeps, octet by octet, what it was told, and reads lines by CRLF alone.

Contract. The reading is as naive as can be and knows nothing of our grammar: a line ends at CRLF;
behind ``DATA`` come lines up to the one that is a dot. What is no command of RFC 5321 as a client
without extensions of its own writes it, a bare CR or LF anywhere, a NUL, or a line of more than
998 octets, is a violation. Nothing is ever refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass

COMMAND = re.compile(
    rb"EHLO [!-~]+"
    rb"|MAIL FROM:<[^\x00-\x1f\x7f]*>(?: SIZE=[0-9]+| BODY=8BITMIME| SMTPUTF8)*"
    rb"|RCPT TO:<[^\x00-\x1f\x7f]+>"
    rb"|DATA|RSET|NOOP|QUIT"
).fullmatch
LONGEST = 998
OFFER = b"250-host.test\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One transaction: the lines of MAIL and RCPT as they came, and the content, dots taken out."""

    mail: bytes
    rcpts: tuple[bytes, ...]
    content: bytes

    @property
    def sender(self) -> str:
        """What stood between the angle brackets of MAIL."""
        return path(self.mail)

    @property
    def recipients(self) -> list[str]:
        """What stood between those of each RCPT, in order of the alphabet."""
        return sorted(path(line) for line in self.rcpts)


def path(line: bytes) -> str:
    """What stands between the first < and the last > of a command."""
    return line[line.index(b"<") + 1 : line.rindex(b">")].decode("utf-8", "surrogateescape")


class RecordingHost:
    """One listening address.

    Attributes:
        taken: transactions in the order of their ends.
        violations: what no client may send, a sentence each.
    """

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port
        self.taken: list[Taken] = []
        self.violations: list[str] = []
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(
            self._connected, self.address, self.port, limit=1 << 22
        )

    async def stop(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._talk(reader, writer)
        finally:
            self._running.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mail, rcpts = b"", list[bytes]()
        writer.write(b"220 host.test ESMTP\r\n")
        while True:
            line = (await reader.readuntil(b"\r\n"))[:-2]
            if COMMAND(line) is None:
                self.violations.append(f"no command: {line[:120]!r}")
            verb = line[:4].upper()
            if verb == b"MAIL":
                mail, rcpts = line, []
            elif verb == b"RCPT":
                rcpts.append(line)
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                content = await self._content(reader)
                self.taken.append(Taken(mail=mail, rcpts=tuple(rcpts), content=content))
            writer.write(OFFER if verb == b"EHLO" else b"250 2.0.0 ok\r\n")
            await writer.drain()
            if verb == b"QUIT":
                return

    async def _content(self, reader: asyncio.StreamReader) -> bytes:
        lines: list[bytes] = []
        while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
            line = line.removeprefix(b".")
            if len(line) - 2 > LONGEST or any(octet in line[:-2] for octet in b"\r\n\0"):
                self.violations.append(f"no line of content: {line[:120]!r}")
            lines.append(line)
        return b"".join(lines)
