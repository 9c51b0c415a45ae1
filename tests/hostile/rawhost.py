"""A mail host that writes whatever octets it is told to, and is strict about what it reads.

Contract. ``RawHost`` listens on one address, on a loop of others. What it says at each stage is an
``Act``: octets, written as they are in place of the reply, or a coroutine that has the connection.
It speaks in the order of the commands, reads on while nobody stops it, and knows no grammar of
replies, so that it can break all of it. Content is read to its end and counted, never kept.

What a client must not do stands in ``violations``: commands ahead of their time where PIPELINING is
not offered, octets above 127 in a command without SMTPUTF8, parameters that were not offered, lines
that are no command (content outside DATA, say), 8-bit content for a host without 8BITMIME.

Must not know: the engine, what a reply means.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

STAGES = ("greeting", "ehlo", "mail", "rcpt", "data", "dot")
"""Where a host may misbehave; with BDAT ``bdat`` stands for the last two."""
OFFER = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE")
_END = b"\r\n.\r\n"
_VERBS = frozenset(
    b"EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET QUIT NOOP".split()
)  # fmt: skip
_MOST_SEEN = 1000


class Connection:
    """One connection to a host, for acts.

    Args:
        host: whose.
        number: counted from 1.
    """

    def __init__(
        self,
        host: RawHost,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.host = host
        self.number = number
        self.reader = reader
        self.writer = writer
        self.octets = 0
        """Written."""
        self.said = bytearray()
        """What was written in place of the present reply; its beginning."""

    async def write(self, octets: bytes) -> None:
        """Write, and wait until the kernel has room again."""
        self.writer.write(octets)
        self.octets += len(octets)
        if len(self.said) < _MOST_SEEN:
            self.said += octets[:_MOST_SEEN]
        self.host.most_octets = max(self.host.most_octets, self.octets)
        await self.writer.drain()

    async def until_left(self) -> None:
        """Say nothing more; read, and throw it away, until the client has gone."""
        while await self.reader.read(65536):
            pass

    def cut(self) -> None:
        """Go without a goodbye."""
        self.writer.transport.abort()

    @property
    def ahead(self) -> bool:
        """Whether more has come than the command that is being answered."""
        return bool(self.reader._buffer)  # type: ignore[attr-defined]

    async def perform(self, act: Act) -> None:
        """Do it now."""
        if isinstance(act, bytes):
            await self.write(act)
        else:
            await act(self)


Act = bytes | Callable[[Connection], Awaitable[None]]
UNKNOWN: Act = b"500 5.5.1 no such command"
"""Of a BDAT: no command here, its octets are read as commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a host behaves.

    Args:
        says: by stage: greeting ehlo helo starttls auth mail rcpt data bdat dot rset quit; and
            ``rcpt:LOCAL`` for one recipient; what is missing is said well.
        offer: keywords of its EHLO reply.
        before: connections, from the first, on which it behaves so; on others well. None: all.
        after: connections, from the first, on which it behaves well.
        deaf: commands that came with an unanswered one are thrown away.
        joined: replies are held back until there is nothing more to read.
        split: each octet of a reply goes in a segment of its own.
        rate: octets of content that it reads in a second; 0: as they come.
    """

    says: Mapping[str, Act] = field(default_factory=dict)
    offer: tuple[str, ...] = OFFER
    before: int | None = None
    after: int = 0
    deaf: bool = False
    joined: bool = False
    split: bool = False
    rate: int = 0


@dataclass(slots=True)
class Content:
    """What came whole.

    Args:
        octets: how many, the final dot among them.
        recipients: local parts that were named and not refused by a reply.
        said: the beginning of what was said to it.
    """

    octets: int
    recipients: tuple[str, ...]
    said: bytes = b""

    @property
    def refused(self) -> bool:
        """By a reply that is one."""
        return _REFUSED.match(self.said) is not None


_REFUSED = re.compile(rb"[45][0-9]{2}[ \r\n]")


class RawHost:
    """One listening address.

    Args:
        address: on loopback.
        port: of it.
        manners: how it behaves.
        window: octets of its receive buffer, about; 0: the system's.

    Attributes:
        contents: content that came whole.
        violations: what no client may do, a sentence each.
        connections: made so far.
        commands: lines that came, the first thousand.
        most_octets: written to one connection, at most.
    """

    def __init__(self, address: str, port: int, manners: Manners, *, window: int = 0) -> None:
        self.address = address
        self.port = port
        self.manners = manners
        self.contents: list[Content] = []
        self.violations: list[str] = []
        self.commands: list[bytes] = []
        self.connections = 0
        self.most_octets = 0
        self.over = asyncio.Event()
        self._window = window
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._window:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
            # As on a real network: a segment of loopback's 64 KiB would never fit the window.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        listening.bind((self.address, self.port))
        limit = self._window or 1 << 20
        self._server = await asyncio.start_server(self._connected, sock=listening, limit=limit)

    async def stop(self) -> None:
        """Stop listening and cut what is open."""
        self.over.set()
        if self._server is not None:
            self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await _Talk(Connection(self, self.connections, reader, writer)).run()
        finally:
            self._running.discard(task)
            writer.transport.abort() if self.over.is_set() else writer.close()

    def note(self, violation: str) -> None:
        """Keep what a client must not do; the first of them."""
        if len(self.violations) < _MOST_SEEN:
            self.violations.append(violation)


class _Talk:
    """One connection's commands and what is said to them."""

    def __init__(self, connection: Connection) -> None:
        host = connection.host
        manners = host.manners
        number = connection.number
        bad = number > manners.after and (manners.before is None or number <= manners.before)
        self.connection = connection
        self.host = host
        self.says: Mapping[str, Act] = manners.says if bad else {}
        self.offer = manners.offer
        self.deaf = manners.deaf and bad
        self.joined = manners.joined
        self.utf8 = False
        self.eightbit = False
        self.held = b""
        self.lenient = False
        self.recipients: list[str] = []

    async def run(self) -> None:
        """From the greeting to the end."""
        await self._say("greeting", b"220 mx.test ESMTP\r\n")
        while line := await self._line():
            words = line.split()
            verb = words[0].upper() if words else b""
            if len(self.host.commands) < _MOST_SEEN:
                self.host.commands.append(line[:200])
            if not self._judge(verb, line):
                await self._answer(b"500 5.5.2 no command\r\n")
            elif not await self._obey(verb, line):
                return

    async def _line(self) -> bytes:
        try:
            return await self.connection.reader.readline()
        except ValueError:  # longer than any command
            self.host.note("a line without end")
            return b""

    def _judge(self, verb: bytes, line: bytes) -> bool:
        """Note what the client must not do; whether it is a command at all."""
        note, offer = self.host.note, self.offer
        if verb not in _VERBS:
            if self.lenient:
                return False
            note(f"no command: {line[:60]!r}")
            return False
        if not line.endswith(b"\r\n"):
            note(f"a command without CRLF: {line[:60]!r}")
        if verb == b"MAIL":
            self.utf8 = b"SMTPUTF8" in line.split()
            self.eightbit = b"BODY=8BITMIME" in line.split()
            for parameter, keyword in ((b"SIZE=", "SIZE"), (b"BODY=", "8BITMIME")):
                if parameter in line and keyword not in {one.split()[0] for one in offer}:
                    note(f"{keyword} was not offered: {line[:60]!r}")
            if self.utf8 and "SMTPUTF8" not in offer:
                note(f"SMTPUTF8 was not offered: {line[:60]!r}")
        if verb == b"BDAT" and "CHUNKING" not in offer:
            note("CHUNKING was not offered")
        if not line.isascii() and not self.utf8:
            note(f"octets above 127 in a command: {line[:60]!r}")
        return True

    async def _obey(self, verb: bytes, line: bytes) -> bool:
        """Answer a command; whether another may come."""
        if verb == b"EHLO":
            lines = ["mx.test", *self.offer]
            text = "".join(f"250-{one}\r\n" for one in lines[:-1]) + f"250 {lines[-1]}\r\n"
            await self._say("ehlo", text.encode())
        elif verb == b"MAIL":
            self.recipients = []
            await self._say("mail", b"250 2.1.0 sender ok\r\n")
        elif verb == b"RCPT":
            local = line.partition(b"<")[2].partition(b"@")[0].decode("utf-8", "replace")
            stage = f"rcpt:{local}" if f"rcpt:{local}" in self.says else "rcpt"
            await self._say(stage, b"250 2.1.5 recipient ok\r\n")
            if not _REFUSED.match(self.connection.said):
                self.recipients.append(local)
        elif verb == b"DATA":
            await self._data()
        elif verb == b"BDAT":
            await self._bdat(line)
        elif verb == b"QUIT":
            await self._say("quit", b"221 2.0.0 bye\r\n")
            return False
        elif verb == b"STARTTLS":
            self.lenient = True  # a handshake is no command
            await self._say("starttls", b"502 5.5.1 no\r\n")
        elif verb == b"AUTH":
            await self._say("auth", b"235 2.7.0 welcome\r\n")
        else:
            await self._say(verb.decode().lower(), b"250 2.0.0 ok\r\n")
        return True

    async def _data(self) -> None:
        rate = self.host.manners.rate
        await self._say("data", b"354 go on\r\n")
        if not _GO_AHEAD.search(self.connection.said):
            return
        octets, tail, high = 0, b"\r\n", False
        reader = self.connection.reader
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not tail.endswith(_END):
            line = await reader.readuntil(b"\n")
            octets += len(line)
            if rate and octets > rate * (loop.time() - started):
                await asyncio.sleep(octets / rate - (loop.time() - started))
            tail = (tail + line)[-5:]
            high = high or not line.isascii()
        if high and not self.eightbit:
            self.host.note("8-bit content that was not announced")
        await self._take(octets, "dot", b"250 2.0.0 stored as 1\r\n")

    async def _take(self, octets: int, stage: str, well: bytes) -> None:
        """Answer a content that came whole, and note what was said."""
        content = Content(octets, tuple(self.recipients))
        self.host.contents.append(content)
        try:
            await self._say(stage, well)
        finally:
            content.said = bytes(self.connection.said)

    async def _bdat(self, line: bytes) -> None:
        words = line.split()
        if self.says.get("bdat") is UNKNOWN:  # its octets are read as commands
            self.lenient = True
            return await self._answer(b"500 5.5.1 no such command\r\n")
        left = count = int(words[1])
        while left:
            block = await self.connection.reader.read(min(left, 65536))
            if not block:
                return None
            left -= len(block)
        return await self._take(count, "bdat", b"250 2.6.0 stored as 1\r\n")

    async def _say(self, stage: str, well: bytes) -> None:
        act = self.says.get(stage, well)
        self.connection.said.clear()
        if isinstance(act, bytes):
            await self._answer(act)
        else:
            await act(self.connection)
        buffered = self.connection.reader._buffer  # type: ignore[attr-defined]
        if self.deaf and buffered:
            buffered.clear()

    async def _answer(self, octets: bytes) -> None:
        connection = self.connection
        # What comes before its time is seen now, or not at all: no client is waited for.
        ahead = bytes(connection.reader._buffer)  # type: ignore[attr-defined]
        if ahead and "PIPELINING" not in self.offer and _command(ahead):
            self.host.note(f"sent ahead without PIPELINING: {ahead[:60]!r}")
        if self.joined:
            self.held += octets
            connection.said += octets[:_MOST_SEEN]
            if not ahead:
                octets, self.held = self.held, b""
                await connection.write(octets)
        elif self.host.manners.split:
            await _split(connection, octets)
        else:
            await connection.write(octets)


async def _split(connection: Connection, octets: bytes) -> None:
    for octet in octets:
        await connection.write(bytes((octet,)))
        await asyncio.sleep(0)


_GO_AHEAD = re.compile(rb"(^|\n)354")
_COMMAND = re.compile(rb"(MAIL|RCPT|DATA|RSET|QUIT|BDAT)\b")


def _command(octets: bytes) -> bool:
    return _COMMAND.match(octets) is not None


# What hosts may do instead of a reply


async def silence(connection: Connection) -> None:
    """No reply; what comes is read."""
    await connection.until_left()


async def shut(connection: Connection) -> None:
    """No reply, and nothing is read any more: the window shuts."""
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await connection.host.over.wait()


async def close(connection: Connection) -> None:
    """FIN in place of the reply, and nothing more."""
    connection.writer.write_eof()
    await connection.until_left()


def flood(block: bytes, octets: int, head: bytes = b"") -> Act:
    """So many octets, in blocks; less if the client leaves before."""

    async def act(connection: Connection) -> None:
        await connection.write(head)
        for _ in range(max(octets // len(block), 1)):
            await connection.write(block)
        await connection.until_left()

    return act


def drip(octets: bytes, seconds: float, *, times: int = 1) -> Act:
    """Each octet in a segment of its own, with a pause behind each."""

    async def act(connection: Connection) -> None:
        for _ in range(times):
            for octet in octets:
                await connection.write(bytes((octet,)))
                await asyncio.sleep(seconds)

    return act


def then(octets: bytes, *acts: Act) -> Act:
    """Octets first, then something else."""

    async def all_of_it(connection: Connection) -> None:
        await connection.write(octets)
        for act in acts:
            await connection.perform(act)

    return all_of_it


def late(octets: bytes, seconds: float) -> Act:
    """A reply that takes its time."""

    async def act(connection: Connection) -> None:
        await asyncio.sleep(seconds)
        await connection.write(octets)

    return act
