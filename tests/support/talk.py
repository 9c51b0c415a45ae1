"""A mail client of few words: sends octets, reads replies, for what no library can be made to say.

Every wait has a deadline. Knows SMTP's replies and nothing of the server.
"""

from __future__ import annotations

import base64
import socket
import ssl
from types import TracebackType
from typing import NamedTuple, Self

PATIENCE_S = 45.0
CONTENT = b"Subject: hi\r\n\r\nGood morning.\r\n"


class Reply(NamedTuple):
    """One reply: its code and its lines without the code."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """Its lines, one behind the other."""
        return " ".join(self.lines)


class Talk:
    """A connection to a server.

    Args:
        port: of the server.
        host: its address.
        source: our own address; None: the system's choice.
        greeting: whether the greeting is read at once.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        source: str | None = None,
        greeting: bool = True,
        timeout: float = PATIENCE_S,
    ) -> None:
        self.sock: socket.socket = socket.create_connection(
            (host, port), timeout, source_address=(source, 0) if source else None
        )
        self.sock.settimeout(timeout)
        self._buffer = b""
        if greeting:
            try:
                self.greeting = self.reply()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Octets, as they are."""
        self.sock.sendall(data)

    def reply(self) -> Reply:
        """The next reply.

        Raises:
            EOFError: the server closed the connection.
        """
        lines: list[str] = []
        while True:
            while b"\r\n" not in self._buffer:
                more = self.sock.recv(65536)
                if not more:
                    raise EOFError(f"closed behind {lines} {self._buffer!r}")
                self._buffer += more
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            text = line.decode()
            lines.append(text[4:])
            if text[3:4] != "-":
                return Reply(int(text[:3]), tuple(lines))

    def say(self, line: str) -> Reply:
        """A command, and its reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def ehlo(self) -> tuple[str, ...]:
        """What is offered."""
        return self.say("EHLO client.test").lines[1:]

    def starttls(self, context: ssl.SSLContext | None = None) -> None:
        """Encrypt; the certificate is not looked at unless a context is given."""
        assert self.say("STARTTLS").code == 220
        self.seal(context)

    def seal(self, context: ssl.SSLContext | None = None) -> None:
        """Shake hands."""
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        assert not self._buffer
        self.sock = context.wrap_socket(self.sock, server_hostname="mx.test")

    def login(self, user: str, password: str) -> Reply:
        """AUTH PLAIN."""
        told = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        return self.say(f"AUTH PLAIN {told}")

    def envelope(self, *recipients: str, sender: str = "a@sender.test") -> list[Reply]:
        """MAIL and RCPT."""
        return [
            self.say(f"MAIL FROM:<{sender}>"),
            *(self.say(f"RCPT TO:<{recipient}>") for recipient in recipients),
        ]

    def mail(
        self, *recipients: str, content: bytes = b"Subject: hi\r\n\r\nGood morning.\r\n"
    ) -> Reply:
        """A whole transaction; the reply to its last command."""
        for reply in self.envelope(*recipients):
            if reply.code != 250:
                return reply
        begun = self.say("DATA")
        if begun.code != 354:
            return begun
        self.send(content + b".\r\n")
        return self.reply()

    def closed(self) -> bool:
        """Read to the end; whether it came in order."""
        try:
            while self.sock.recv(65536):
                pass
        except (ConnectionError, ssl.SSLError):
            return False
        return True

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def queued(reply: Reply) -> str:
    """The id of a message that was taken."""
    assert reply.code == 250, reply
    return reply.text.rpartition(" ")[2]
