"""A server that may say anything at any place, and keeps every line it read as a command.

Contract. ``Odd`` plays for all its connections; ``connect`` is what a listener makes for each. What
it says is given by verb: ``greeting``, then the words of commands, and ``dot`` behind a content.
A content begins only behind a reply 354 to DATA, so whatever else of a message comes is read, and
kept, as a command: ``strays`` are those lines that no client means as one.

For what a script of ``mailstrom.testing`` cannot say, because its server keeps to a grammar.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

VERBS = frozenset(
    {"EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT"}
)
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """What is written, and what is done behind it.

    Args:
        text: lines, each with its CRLF; as it stands.
        then: ``go on``, ``close`` (FIN), ``reset`` (RST) or ``mute`` (nothing more is said).
    """

    text: str = ""
    then: str = "go on"


@dataclass(slots=True, kw_only=True)
class Heard:
    """What one connection said.

    Args:
        commands: lines outside content.
        recipients: addresses of RCPT since the last MAIL.
        contents: each with the recipients named before it.
        counts: how often each verb came.
    """

    commands: list[str] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    contents: list[tuple[tuple[str, ...], bytes]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


Answer = str | Say | Callable[[Heard, str], str | Say]
NORMAL: Mapping[str, Answer] = {
    "greeting": "220 odd.test ready\r\n",
    "EHLO": "250-odd.test\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n",
    "MAIL": "250 2.1.0 ok\r\n",
    "RCPT": "250 2.1.5 ok\r\n",
    "DATA": "354 go on\r\n",
    "dot": "250 2.0.0 taken\r\n",
    "RSET": "250 2.0.0 ok\r\n",
    "QUIT": Say(text="221 2.0.0 bye\r\n", then="close"),
    "other": "500 5.5.2 what\r\n",
}
SERIAL: Mapping[str, Answer] = {**NORMAL, "EHLO": "250 odd.test\r\n"}


class Odd:
    """One server.

    Args:
        answers: over those of ``normal``.
        normal: what it says otherwise.

    Attributes:
        heard: one of each connection, in order.
        live: connections that are open.
    """

    def __init__(
        self, answers: Mapping[str, Answer], normal: Mapping[str, Answer] = NORMAL
    ) -> None:
        self.answers: dict[str, Answer] = {**normal, **answers}
        self.heard: list[Heard] = []
        self.live: list[_Talk] = []

    def connect(self) -> asyncio.Protocol:
        """The protocol of one more connection."""
        return _Talk(self)

    @property
    def contents(self) -> list[tuple[tuple[str, ...], bytes]]:
        """All contents, with their recipients."""
        return [content for heard in self.heard for content in heard.contents]

    @property
    def strays(self) -> list[str]:
        """Lines read as commands that begin with no command's word."""
        lines = [line for heard in self.heard for line in heard.commands]
        return [line for line in lines if line.upper().partition(" ")[0] not in VERBS]


class _Talk(asyncio.Protocol):
    """One connection."""

    def __init__(self, odd: Odd) -> None:
        self.odd = odd
        self.heard = Heard()
        self.transport: asyncio.Transport
        self._buffer = bytearray()
        self._content = self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self.transport = cast(asyncio.Transport, transport)
        self.odd.heard.append(self.heard)
        self.odd.live.append(self)
        self.say("greeting", "")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self.odd.live.remove(self)

    def data_received(self, data: bytes) -> None:
        """Line by line, or up to the end of a content; behind its last word nothing is kept."""
        if not self._over:
            self._buffer += data
        while not self._over:
            end = b"\r\n.\r\n" if self._content else b"\r\n"
            if self._content and self._buffer.startswith(b".\r\n"):
                found, self._buffer = b"", self._buffer[3:]
            elif end in self._buffer:
                part, _, self._buffer = self._buffer.partition(end)
                found = bytes(part)
            else:
                return
            if self._content:
                self._content = False
                self.heard.contents.append((tuple(self.heard.recipients), found))
                self.say("dot", "")
            else:
                self._command(found.decode("latin-1"))

    def _command(self, line: str) -> None:
        verb = line.upper().partition(" ")[0]
        heard = self.heard
        heard.commands.append(line)
        heard.counts[verb] = heard.counts.get(verb, 0) + 1
        if verb == "MAIL":
            heard.recipients = []
        elif verb == "RCPT":
            heard.recipients.append(line.partition("<")[2].partition(">")[0])
        said = self.say(verb if verb in self.odd.answers else "other", line)
        self._content = verb == "DATA" and said.startswith("354")

    def say(self, verb: str, line: str) -> str:
        """Answer; what was written."""
        answer = self.odd.answers[verb]
        if callable(answer):
            answer = answer(self.heard, line)
        if isinstance(answer, str):
            answer = Say(text=answer)
        self.transport.write(answer.text.encode())
        self._over = answer.then != "go on"
        if answer.then == "close":
            self.transport.write_eof()  # what still comes is read, or a RST would destroy the reply
        elif answer.then == "reset":
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
            )
            self.transport.abort()
        return answer.text
