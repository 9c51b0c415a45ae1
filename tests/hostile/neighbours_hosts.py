"""Hosts that hang, drip, flood and cut, as a process of their own: what they cost is not ours.

Contract. ``Hosts(kind, port, addresses)`` starts them; ``held`` counts connections that came. Run
as a program it reads one JSON line (kind, port, addresses), listens, prints ``ready`` and then a
dot for each connection. What a host says before it turns nasty is plain SMTP, one reply a command.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

GIB = 1 << 30
BLOCK = b"x" * 65536
READY_S = 30.0


def cut(transport: asyncio.Transport) -> None:
    """RST."""
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Host(asyncio.Protocol):
    """Speaks SMTP up to the final dot, and never answers that."""

    transport: asyncio.Transport
    ehlo = b"250-h.test\r\n250 8BITMIME\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.rest, self.content = b"", False
        sys.stdout.write(".\n")
        sys.stdout.flush()
        self.begin()

    def begin(self) -> None:
        """The greeting."""
        self.say(b"220 h.test\r\n")

    def say(self, reply: bytes) -> None:
        """Send a reply."""
        self.transport.write(reply)

    def data_received(self, data: bytes) -> None:
        """Answer commands; of content only its end is looked for."""
        if self.content:
            return
        *lines, self.rest = (self.rest + data).split(b"\r\n")
        for line in lines:
            self.obey(line.upper()[:4])
            if self.content:
                return

    def obey(self, verb: bytes) -> None:
        """One command."""
        if verb == b"DATA":
            self.content = True
            self.say(b"354 go\r\n")
        else:
            self.say(self.ehlo if verb == b"EHLO" else b"250 ok\r\n")


class Silent(Host):
    """Never greets."""

    def begin(self) -> None:
        """Nothing."""


class Mute(Host):
    """Never answers one verb."""

    to = b"MAIL"

    def obey(self, verb: bytes) -> None:
        """Nothing to that one."""
        if verb != self.to:
            super().obey(verb)


class MuteToMail(Mute):
    """The same, and it offers BDAT."""

    ehlo = b"250-h.test\r\n250-PIPELINING\r\n250 CHUNKING\r\n"


class MuteToRcpt(Mute):
    """Never answers RCPT."""

    to = b"RCPT"


class MuteToData(Mute):
    """Never answers DATA, whose content does not come then."""

    to = b"DATA"


class MuteToFlights(MuteToRcpt):
    """The same, and it offers PIPELINING: MAIL is answered, and all else came with it."""

    ehlo = b"250-h.test\r\n250 PIPELINING\r\n"


class Dripping(Host):
    """One octet a second."""

    def say(self, reply: bytes) -> None:
        """Octet by octet."""
        loop = asyncio.get_running_loop()
        for place, octet in enumerate(reply):
            loop.call_later(place, self.transport.write, bytes((octet,)))


class Shut(Host):
    """Takes nothing of the content."""

    def obey(self, verb: bytes) -> None:
        """Read no more behind DATA."""
        super().obey(verb)
        if self.content:
            self.transport.pause_reading()


class Closing(Host):
    """421, always."""

    def begin(self) -> None:
        """Refuse and close."""
        self.say(b"421 4.3.2 not now\r\n")
        self.transport.close()


class Cutting(Host):
    """RST, always."""

    def begin(self) -> None:
        """Cut."""
        cut(self.transport)


class Later(Host):
    """450 to every MAIL."""

    ehlo = b"250-h.test\r\n250 PIPELINING\r\n"

    def obey(self, verb: bytes) -> None:
        """Not now; what came behind it was for nothing."""
        if verb == b"MAIL":
            self.say(b"450 4.2.0 not now\r\n")
        elif verb in (b"RCPT", b"DATA"):
            self.say(b"503 5.5.1 no MAIL\r\n")
        else:
            super().obey(verb)


class Tearing(Host):
    """RST in place of each 354."""

    def obey(self, verb: bytes) -> None:
        """Cut at DATA."""
        if verb == b"DATA":
            cut(self.transport)
        else:
            super().obey(verb)


class Stalling(Host):
    """Offers STARTTLS, and says nothing in the handshake."""

    ehlo = b"250-h.test\r\n250 STARTTLS\r\n"

    def obey(self, verb: bytes) -> None:
        """Agree to TLS, then nothing."""
        if verb == b"STAR":
            self.content = True
            self.say(b"220 go\r\n")
        else:
            super().obey(verb)


class Flooding(Host):
    """A greeting of 1 GiB without an end of line."""

    block, left = BLOCK, GIB
    paused = False

    def begin(self) -> None:
        """As fast as it is taken."""
        while self.left > 0 and not self.paused and not self.transport.is_closing():
            self.left -= len(self.block)
            self.say(self.block)

    def pause_writing(self) -> None:
        """Wait."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        self.begin()


class Endless(Flooding):
    """A greeting of line behind line, without an end."""

    block, left = b"220-and so on\r\n" * 4096, 1 << 62


class Wordy(Host):
    """Replies of 10,000 lines."""

    def say(self, reply: bytes) -> None:
        """Line behind line."""
        code = reply[:3]
        self.transport.write((code + b"-and so on\r\n") * 9_999 + code + b" ok\r\n")


KINDS: Mapping[str, type[Host]] = {
    "never greets": Silent,
    "never answers MAIL": Mute,
    "never answers MAIL, with CHUNKING offered": MuteToMail,
    "never answers RCPT": MuteToRcpt,
    "never answers RCPT, and offers PIPELINING": MuteToFlights,
    "never answers DATA": MuteToData,
    "never answers the final dot": Host,
    "replies by one octet a second": Dripping,
    "shuts its window on the content": Shut,
    "says 421, always": Closing,
    "resets each connection": Cutting,
    "says 450 to every MAIL": Later,
    "resets at each DATA": Tearing,
    "stalls in the TLS handshake": Stalling,
    "greets with 1 GiB in one line": Flooding,
    "greets with lines without end": Endless,
    "replies with 10,000 lines": Wordy,
}


class Hosts:
    """A process with hosts of one kind; a context manager.

    Args:
        kind: one of ``KINDS``.
        port: theirs.
        addresses: where they listen.

    Attributes:
        held: connections that came so far.
    """

    def __init__(self, kind: str, port: int, addresses: Sequence[str]) -> None:
        self.held = 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([kind, port, list(addresses)]).encode() + b"\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != b"ready\n":
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"hosts of the kind {kind!r} do not listen")
        self._counter = threading.Thread(target=self._count, daemon=True)
        self._counter.start()

    def _count(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            self.held += 1

    def __enter__(self) -> Self:
        """They listen already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them."""
        self._process.kill()
        self._counter.join()
        with self._process:
            pass


async def _serve(kind: str, port: int, addresses: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    for address in addresses:
        await loop.create_server(KINDS[kind], address, port, backlog=4096)
    print("ready", flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):  # its end is ours
        pass


if __name__ == "__main__":
    asyncio.run(_serve(*json.loads(sys.stdin.readline())))
