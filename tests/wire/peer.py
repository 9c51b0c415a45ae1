"""A scripted SMTP server on loopback, and short ways to open sessions to it.

Contract: each test says what the server answers to each verb; ``hang``, ``close`` and ``reset``
are what they say. A failure inside the script fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp.client import Envelope, TransactionEnd
from mailstrom_workers.session import Outgoing, Session
from mailstrom_workers.wire import SessionFailure, SessionPolicy, Target

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CONTENT = b"Subject: hello\r\n\r\n.dots\r\n"
ON_WIRE = b"Subject: hello\r\n\r\n..dots\r\n"
ENVELOPE = Envelope(
    sender="s@example.net", recipients=("a@example.org", "b@example.org"), size=len(CONTENT)
)
POLICY = SessionPolicy(ehlo_name="client.example.net", tls="none")


class Lost(Exception):
    """The session is over, and took nothing."""


class One:
    """A source of one transaction, and what came of it: exactly one thing, of what was asked."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self.asked = False
        self.over: asyncio.Future[TransactionEnd] = asyncio.get_running_loop().create_future()

    def next(self) -> Outgoing | None:
        if self.asked:
            return None
        self.asked = True
        return self._outgoing

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        assert outgoing is self._outgoing
        self.over.set_result(end)

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        assert outgoing is self._outgoing
        self.over.set_exception(error)

    def lost(self) -> None:
        assert not self.asked, "lost while something was on it"
        self.over.set_exception(Lost())


async def transact(
    session: Session, envelope: Envelope, content: AsyncIterator[bytes] | bytes
) -> TransactionEnd:
    """One transaction; its end.

    Raises:
        Lost: the session is over; nothing was asked for.
        Exception: what the source was told of content that cannot be sent.
    """
    whole = isinstance(content, bytes)
    one = One(
        Outgoing(
            envelope=envelope,
            body=content if isinstance(content, bytes) else None,
            chunks=None if whole else lambda: content,  # type: ignore[return-value,arg-type]
        )
    )
    session.feed(one)
    try:
        return await one.over
    finally:
        if session.idle:
            session.feed(None)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Target]:
    """A server on loopback that runs the script for each connection and then closes it."""
    failures: list[BaseException] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        except BaseException as failure:
            failures.append(failure)
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Target(host="mx.example.org", address="127.0.0.1", port=port)
    finally:
        server.close()
        await server.wait_closed()
    for failure in failures:
        raise failure


class Peer:
    """A server's end: canned replies by verb, a log of what came."""

    def __init__(self, **replies: str) -> None:
        self.replies = {
            "greeting": "220 mx.example.org",
            "EHLO": "250-mx.example.org\r\n250-PIPELINING\r\n250 SIZE",
            "HELO": "250 mx.example.org",
            "MAIL": "250 2.1.0 ok",
            "RCPT": "250 2.1.5 ok",
            "DATA": "354 go",
            "dot": "250 2.0.0 stored as 1",
            "RSET": "250 ok",
            "QUIT": "221 bye",
        } | replies
        self.commands: list[str] = []
        self.contents: list[bytes] = []
        self.hang = asyncio.Event()
        self.hanging = asyncio.Event()
        self.on_content: Callable[[asyncio.StreamReader], Awaitable[bool]] = self.read_content
        self.closed = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self.answer("greeting", writer):
                while await self.turn(reader, writer):
                    pass
        finally:
            self.closed.set()

    async def turn(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        text = (await reader.readline()).decode().strip()
        if not text:
            return False
        self.commands.append(text)
        verb = text.split()[0].upper()
        if not await self.answer(verb, writer) or verb == "QUIT":
            return False
        if verb == "DATA" and self.replies["DATA"].startswith("354"):
            return await self.on_content(reader) and await self.answer("dot", writer)
        return True

    async def read_content(self, reader: asyncio.StreamReader) -> bool:
        content = b""
        while not content.endswith(b"\r\n.\r\n"):
            block = await reader.read(65536)
            if not block:
                return False
            content += block
        self.contents.append(content[:-3])
        return True

    async def answer(self, verb: str, writer: asyncio.StreamWriter) -> bool:
        """Sends the reply; ``hang`` and ``close`` are what they say, False ends the session."""
        reply = self.replies.get(verb, "500 what")
        if reply == "hang":
            self.hanging.set()
            await self.hang.wait()
            return False
        if reply == "close":
            return False
        if reply == "reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            writer.transport.abort()
            return False
        then_close = reply.endswith("|close")
        writer.write(reply.removesuffix("|close").encode() + b"\r\n")
        await writer.drain()
        return not then_close


async def opened(target: Target, policy: SessionPolicy = POLICY) -> Session:
    session = await Session.open(target, policy)
    assert isinstance(session, Session), session
    return session


async def refused(target: Target, policy: SessionPolicy = POLICY) -> SessionFailure:
    failure = await Session.open(target, policy)
    assert isinstance(failure, SessionFailure)
    return failure


def quick(**seconds: float) -> SessionPolicy:
    return replace(POLICY, timeouts=Timeouts(**seconds))


def code(end: TransactionEnd, stage: str) -> int | None:
    reply = getattr(end, stage)
    return None if reply is None else int(reply.code)
