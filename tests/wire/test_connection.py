"""The server's shell on real sockets: who is answered, who is cut, what it costs to wait.

Past 400 lines: a test for each thing a client may do to a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from mailstrom.server.connection import Connection
from mailstrom.server.sessions import Limits, Sessions
from mailstrom.server.sockets import CannotListen, listen
from mailstrom.server.stages import LATER, Answer
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import (
    ChunkEnd,
    ContentEnd,
    Credentials,
    MailFrom,
    Opened,
    RcptTo,
    Refused,
)
from tests.support.sockets import eventually_async

OFFER = Capabilities(
    name="mx.test",
    size=100_000,
    pipelining=True,
    eightbitmime=True,
    smtputf8=True,
    chunking=True,
    enhancedstatuscodes=True,
)
CONTENT = b"Subject: x\r\n\r\n.dot\r\nlast\r\n"
WIRE = b"Subject: x\r\n\r\n..dot\r\nlast\r\n.\r\n"
ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"
RESET = struct.pack("ii", 1, 0)


class Taking(Connection):
    """Takes mail and remembers it; what is in ``later`` is answered by the test."""

    def __init__(self, server: Server, **options: Any) -> None:
        offer = server.offer
        dialogue = ServerDialogue(
            offer, tls=bool(options.get("implicit_tls")), idle_limit=10**9, **server.bounds
        )
        super().__init__(server.sessions, dialogue, **options)
        self.server = server
        server.all.append(self)

    def on_connect(self, event: Opened) -> Answer:
        return self.server.decide("connect", self)

    def on_login(self, event: Credentials) -> Answer:
        right = event.password == "right"
        return Reply(235, "2.7.0", ("welcome",)) if right else None

    def on_mail(self, event: MailFrom) -> Answer:
        return self.server.decide("mail", self)

    def on_rcpt(self, event: RcptTo) -> Answer:
        return self.server.decide("rcpt", self)

    def on_message(self, event: ContentEnd) -> Answer:
        sender = self.sender.address if self.sender else None
        recipients = [recipient.address for recipient in self.recipients]
        self.server.mails.append((sender, recipients, self.content()))
        return self.server.decide("message", self)

    def on_chunk(self, event: ChunkEnd) -> Answer:
        return self.server.decide("chunk", self)

    def on_unusable(self, event: ContentEnd) -> Answer:
        self.server.unusable.append(event.violation or "oversize")
        return None

    def on_refused(self, event: Refused) -> Answer:
        self.server.refused.append(event.rule)
        return super().on_refused(event)

    def on_closed(self) -> None:
        self.server.closed.append(self.cause)


class Server:
    """One listening address, and what became of its connections."""

    def __init__(self, limits: Limits | None, offer: Capabilities, **options: Any) -> None:
        self.sessions = options.pop("sessions", None) or Sessions(limits)
        self.offer = offer
        self.bounds: dict[str, int] = options.pop("bounds", {})
        self.options = options
        self.kind: type[Taking] = options.pop("kind", Taking)
        self.answers: dict[str, Callable[[Connection], Answer]] = {}
        self.all: list[Connection] = []
        self.mails: list[tuple[str | None, list[str], bytes]] = []
        self.unusable: list[str] = []
        self.refused: list[str] = []
        self.closed: list[str] = []
        self.port = 0

    def decide(self, stage: str, connection: Connection) -> Answer:
        decided = self.answers.get(stage)
        return None if decided is None else decided(connection)

    async def ended(self, count: int = 1) -> list[str]:
        await eventually_async(lambda: len(self.closed) >= count, what="the end")
        return self.closed


class Client:
    """Streams, and what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> bytes:
        """One whole reply; nothing at the end of the stream."""
        read = await self.reader.readline()
        while read and read.splitlines()[-1][3:4] == b"-":
            read += await self.reader.readline()
        return read

    async def say(self, line: bytes) -> bytes:
        self.write(line + b"\r\n")
        return await self.reply()

    async def codes(self, count: int) -> list[int]:
        return [int((await self.reply())[:3]) for _ in range(count)]

    async def rest(self) -> bytes:
        return await self.reader.read()

    async def greet(self) -> None:
        assert (await self.reply())[:4] == b"220 "
        assert (await self.say(b"EHLO c"))[:4] == b"250-"

    def raw(self) -> socket.socket:
        return self.writer.get_extra_info("socket")  # type: ignore[no-any-return]


@asynccontextmanager
async def serving(
    limits: Limits | None = None, offer: Capabilities = OFFER, **options: Any
) -> AsyncIterator[Server]:
    server = Server(limits, offer, **options)
    listener = listen("127.0.0.1:0")
    server.port = listener.getsockname()[1]
    loop = asyncio.get_running_loop()
    accepting = await loop.create_server(
        lambda: server.kind(server, **server.options), sock=listener
    )
    try:
        yield server
    finally:
        accepting.close()
        for connection in list(server.all):
            if connection in server.sessions.open:
                connection.abort("the test is over")
        await server.sessions.deserted()
        await accepting.wait_closed()


@asynccontextmanager
async def calling(server: Server, **options: Any) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, **options)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


Body = Callable[[], Coroutine[Any, Any, None]]


def run(body: Body) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(bounded())


def test_a_message_is_taken_as_it_was_sent() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\n")
            assert await client.codes(3) == [250, 250, 354]
            client.write(WIRE)
            assert await client.codes(1) == [250]
            assert server.mails == [("a@x.test", ["b@x.test"], CONTENT)]
            (connection,) = server.all
            assert (connection.helo, connection.peer[0]) == ("c", "127.0.0.1")
            assert await client.say(b"QUIT") == b"221 2.0.0 goodbye\r\n"
            assert await client.rest() == b""
            client.writer.close()
            assert await server.ended() == ["quit"]
            assert (connection.sender, connection.recipients) == (None, ())

    run(body)


def test_a_whole_session_in_one_write_and_octet_by_octet() -> None:
    session = b"EHLO c\r\n" + (ENVELOPE + b"DATA\r\n" + WIRE) * 3 + b"QUIT\r\n"

    async def body() -> None:
        async with serving() as server:
            for pieces in ([session], [session[n : n + 1] for n in range(len(session))]):
                async with calling(server) as client:
                    for piece in pieces:
                        client.write(piece)
                        await client.writer.drain()
                    ends = [line[:3] for line in (await client.rest()).splitlines()]
                    assert ends[-1] == b"221"
                    assert ends.count(b"354") == 3
        assert [content for _, _, content in server.mails] == [CONTENT] * 6

    run(body)


def test_an_answer_may_come_later_and_what_is_pipelined_waits() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            server.answers["message"] = lambda connection: LATER
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\n" + WIRE + b"NOOP\r\n")
            assert await client.codes(3) == [250, 250, 354]
            await eventually_async(lambda: server.mails, what="the content")
            (connection,) = server.all
            assert connection.answer(Reply(250, "2.0.0", ("Ok: queued as 7",)))
            assert await client.reply() == b"250 2.0.0 Ok: queued as 7\r\n"
            assert await client.codes(1) == [250]
            with pytest.raises(RuntimeError, match="no answer is due"):
                connection.answer(Reply(250, None, ("again",)))

    run(body)


def test_an_answer_to_a_client_that_is_gone_says_so() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            server.answers["message"] = lambda connection: LATER
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\n" + WIRE)
            await eventually_async(lambda: server.mails, what="the content")
            client.raw().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.writer.transport.abort()
            await server.ended()
            assert not server.all[0].answer(Reply(250, None, ("ok",)))

    run(body)


def test_who_ends_its_side_hears_the_replies_due_to_it() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            server.answers["message"] = lambda connection: LATER
            client.write(b"EHLO c\r\n" + ENVELOPE + b"DATA\r\n" + WIRE + b"QUIT\r\n")
            client.writer.write_eof()
            await eventually_async(lambda: server.mails, what="the content")
            server.all[0].answer(Reply(250, None, ("Ok: queued as 7",)))
            assert (await client.rest()).endswith(b"250 Ok: queued as 7\r\n221 2.0.0 goodbye\r\n")
            assert await server.ended() == ["quit"]

    run(body)


def test_an_end_in_the_middle_of_a_content_takes_nothing() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            client.write(b"EHLO c\r\n" + ENVELOPE + b"DATA\r\n" + WIRE[:-2])
            client.writer.write_eof()
            assert (await client.rest()).splitlines()[-1][:3] == b"354"
            assert await server.ended() == ["eof"]
            assert server.mails == []

    run(body)


def test_a_reset_ends_the_connection() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            await client.greet()
            client.raw().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.writer.transport.abort()
            assert await server.ended() == ["ConnectionResetError"]

    run(body)


def test_a_method_that_raises_is_451_and_the_session_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(connection: Connection) -> Answer:
        raise LookupError("no such thing")

    async def body() -> None:
        async with serving() as server, calling(server) as client:
            server.answers["rcpt"] = broken
            await client.greet()
            assert (await client.say(b"MAIL FROM:<>"))[:3] == b"250"
            reply = await client.say(b"RCPT TO:<b@x.test>")
            assert reply == b"451 4.3.0 local error, try again later\r\n"
            del server.answers["rcpt"]
            assert (await client.say(b"RCPT TO:<b@x.test>"))[:3] == b"250"
            server.answers["connect"] = broken
            async with calling(server) as other:
                assert (await other.rest())[:4] == b"421 "

    run(body)
    assert "no such thing" in caplog.text


@pytest.mark.parametrize(
    "reply",
    [Reply(250, "5.0.0", ("what",)), Reply(250, None, ("a\r\n550 b",)), Reply(99, None, ())],
)
def test_an_answer_that_cannot_be_said_is_451(reply: Reply) -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            server.answers["message"] = lambda connection: reply
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\n" + WIRE + b"NOOP\r\n")
            assert await client.codes(5) == [250, 250, 354, 451, 250]

    run(body)


def test_content_that_cannot_be_kept_is_451(caplog: pytest.LogCaptureFixture) -> None:
    class Full(Taking):
        def on_content(self, chunk: bytes) -> None:
            raise MemoryError("full")

    async def body() -> None:
        async with serving(kind=Full) as server, calling(server) as client:
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\n" + WIRE + b"NOOP\r\n")
            assert await client.codes(5) == [250, 250, 354, 451, 250]
            assert server.mails == []

    run(body)


def test_content_that_must_not_be_taken_never_reaches_the_message_method() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            await client.greet()
            for content in (b"a\nb\r\n.\r\n", b"x" * 100_001 + b"\r\n.\r\n"):
                client.write(ENVELOPE + b"DATA\r\n" + content)
                assert (await client.codes(4))[:3] == [250, 250, 354]
            assert server.unusable == ["bare-lf", "oversize"]
            assert server.mails == []

    run(body)


# --- bounds -------------------------------------------------------------------------------------

SHORT = Limits(command_s=0.2, content_s=0.2, handshake_s=0.2, unread_s=0.2, finish_s=0.2)


def test_a_refused_chunk_ends_the_transaction_and_nothing_of_it_is_in_the_next() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            server.answers["chunk"] = lambda connection: Reply(452, "4.3.1", ("no room",))
            await client.greet()
            client.write(ENVELOPE + b"BDAT 5\r\nfirst")
            assert await client.codes(3) == [250, 250, 452]
            (connection,) = server.all
            assert (connection.sender, connection.recipients) == (None, ())
            client.write(b"MAIL FROM:<c@x.test>\r\nRCPT TO:<d@x.test>\r\nBDAT 8 LAST\r\nsecond\r\n")
            assert await client.codes(3) == [250, 250, 250]
            assert server.mails == [("c@x.test", ["d@x.test"], b"second\r\n")]

    run(body)


def test_an_idle_client_gets_421() -> None:
    async def body() -> None:
        async with serving(SHORT) as server, calling(server) as client:
            await client.greet()
            assert await client.rest() == b"421 4.4.2 timeout, closing\r\n"
            assert await server.ended() == ["timeout"]

    run(body)


def test_dripping_octets_of_a_command_gain_no_time() -> None:
    async def body() -> None:
        async with serving(SHORT) as server, calling(server) as client:
            await client.greet()
            while not server.closed:  # as long as it takes
                client.write(b"N")
                await asyncio.sleep(0.02)
            assert b"421" in await client.rest()
            assert server.closed == ["timeout"]

    run(body)


def test_dripping_content_is_cut_once_it_is_too_slow_altogether() -> None:
    limits = Limits(content_s=0.4, content_rate=1000)

    async def body() -> None:
        async with serving(limits) as server, calling(server) as client:
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\n")
            assert await client.codes(3) == [250, 250, 354]
            while not server.closed:
                client.write(b"x")
                await asyncio.sleep(0.02)
            assert b"421 4.4.2" in await client.rest()
            assert server.mails == []

    run(body)


def test_a_chunked_content_in_drops_is_cut_too() -> None:
    limits = Limits(content_s=0.4, content_rate=1000)

    async def body() -> None:
        async with serving(limits) as server, calling(server) as client:
            await client.greet()
            client.write(ENVELOPE)
            while not server.closed:
                client.write(b"BDAT 1\r\nx")
                await asyncio.sleep(0.02)
            assert b"421 4.4.2" in await client.rest()

    run(body)


def test_a_content_without_end_is_cut_behind_twice_the_limit() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            await client.greet()
            client.write(ENVELOPE + b"BDAT 99999999999\r\n")
            assert await client.codes(2) == [250, 250]
            for _ in range(40):
                client.write(b"x" * 65536)
            assert (await client.reply())[:4] == b"421 "
            client.writer.transport.abort()
            assert await server.ended() == ["endless"]

    run(body)


def test_replies_that_nobody_reads_stop_the_reading_and_then_the_session() -> None:
    limits = Limits(unread_s=0.3)

    async def body() -> None:
        async with serving(limits) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            block = b"HELP\r\n" * 10_000
            writer.write(block)
            while not server.closed:
                if writer.transport.get_write_buffer_size() < len(block):  # type: ignore[attr-defined]
                    writer.write(block)
                await asyncio.sleep(0.01)
            assert server.closed == ["unread"]
            assert server.all[0].dialogue.buffered < 3 * 65536
            writer.transport.abort()

    run(body)


def test_a_long_pipeline_gives_others_their_turn() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as flood, calling(server) as other:
            await flood.greet()
            await other.greet()
            flood.write(b"NOOP\r\n" * 10_000)
            await flood.reply()
            assert (await other.say(b"NOOP"))[:3] == b"250"
            for _ in range(9_999):
                assert (await flood.reply())[:3] == b"250"

    run(body)


@pytest.mark.parametrize(
    ("line", "bounds"),
    [
        (b"MAIL FROM:<refused@x.test>", {"error_limit": 5}),
        (b"AUTH PLAIN AGEAYg==", {"login_limit": 5}),
    ],
)
def test_too_many_of_a_kind_end_the_session(line: bytes, bounds: dict[str, int]) -> None:
    offer = Capabilities(name="mx.test", auth=frozenset({"PLAIN"}))

    async def body() -> None:
        async with serving(None, offer, bounds=bounds) as server, calling(server) as client:
            server.answers["mail"] = lambda connection: Reply(550, None, ("no",))
            assert (await client.reply())[:3] == b"220"
            assert (await client.say(b"EHLO c"))[:3] == b"250"
            codes = [(await client.say(line))[:3] for _ in range(4)]
            assert b"421" not in codes
            client.write((line + b"\r\n") * 10)
            assert (await client.rest()).splitlines()[-1][:3] == b"421"
            assert len(codes) == 4

    run(body)


def test_http_is_cut_at_its_first_line() -> None:
    post = b"POST / HTTP/1.1\r\nHost: x\r\n\r\nHELO c\r\n" + ENVELOPE + b"DATA\r\n" + WIRE

    async def body() -> None:
        async with serving() as server, calling(server) as client:
            client.write(post)
            lines = (await client.rest()).splitlines()
            assert [line[:3] for line in lines] == [b"220", b"421"]
            assert server.mails == []
            assert server.refused == ["foreign-protocol"]

    run(body)


def test_what_comes_behind_the_end_is_thrown_away_and_not_kept() -> None:
    async def body() -> None:
        async with serving(Limits(finish_s=0.2)) as server, calling(server) as client:
            client.write(b"QUIT\r\n")
            while not server.closed:
                client.write(b"x" * 1000)
                await asyncio.sleep(0.001)
            assert server.all[0].dialogue.buffered == 0

    run(body)


def test_one_timer_for_all_and_none_without_connections() -> None:
    sessions = Sessions(SHORT)

    async def body() -> None:
        assert sessions._timer is None
        async with serving(sessions=sessions) as server:
            async with calling(server), calling(server):
                await server.ended(2)
            assert sessions._timer is None

    run(body)
    run(body)  # in another loop


def test_a_deadline_that_breaks_leaves_the_others_theirs(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Taking):
        def part(self, reply: Reply, cause: str) -> None:
            raise LookupError("no such thing")

    async def body() -> None:
        async with serving(SHORT, kind=Broken) as server, calling(server), calling(server):
            assert await server.ended(2) == ["timeout", "timeout"]

    run(body)
    assert "no such thing" in caplog.text


# --- the end of the server ----------------------------------------------------------------------


def test_stopping_says_421_to_the_idle_at_once() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            await client.greet()
            server.all[0].stop()
            assert await client.rest() == (
                b"421 4.3.2 the server is shutting down, try again later\r\n"
            )

    run(body)


@pytest.mark.parametrize("chunked", [False, True])
def test_stopping_lets_a_content_end_and_takes_no_other(chunked: bool) -> None:
    begun = b"BDAT 4\r\nab\r\n" if chunked else b"DATA\r\nab\r\n"
    ended = b"BDAT 2 LAST\r\n\r\n" if chunked else b".\r\n"

    async def body() -> None:
        async with serving() as server, calling(server) as client:
            server.answers["message"] = lambda connection: LATER
            await client.greet()
            client.write(ENVELOPE + begun)
            await client.codes(3)
            server.all[0].stop()
            client.write(ended + ENVELOPE)
            await eventually_async(lambda: server.mails, what="the content")
            server.all[0].answer(Reply(250, None, ("taken",)))
            assert [line[:3] for line in (await client.rest()).splitlines()] == [b"250", b"421"]

    run(body)


def test_a_content_may_be_ended_by_421_as_well() -> None:
    async def body() -> None:
        async with serving() as server, calling(server) as client:
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\nab")
            await client.codes(3)
            server.all[0].part(Reply(421, "4.3.2", ("no longer",)), "drained")
            client.write(b"\r\n.\r\n")
            assert await client.rest() == b"421 4.3.2 no longer\r\n"
            client.writer.close()
            assert await server.ended() == ["drained"]
            assert server.mails == []

    run(body)


# --- TLS ----------------------------------------------------------------------------------------

TLS_OFFER = Capabilities(
    name="mx.test", pipelining=True, starttls=True, auth=frozenset({"PLAIN"}), size=100_000
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_starttls_forgets_and_goes_on(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def body() -> None:
        async with serving(None, TLS_OFFER, tls=server_context) as server:
            async with calling(server) as client:
                await client.greet()
                assert (await client.say(b"AUTH PLAIN AGEAcmlnaHQ="))[:3] == b"235"
                (connection,) = server.all
                assert (connection.user, connection.tls_version) == ("a", None)
                assert (await client.say(b"STARTTLS"))[:3] == b"220"
                await client.writer.start_tls(client_context, server_hostname="127.0.0.1")
                assert (await client.say(b"MAIL FROM:<>"))[:3] == b"503"
                assert (connection.user, connection.helo) == (None, "")
                assert connection.tls_version == "TLSv1.3"
                assert (await client.say(b"EHLO c"))[:3] == b"250"
                client.write(ENVELOPE + b"DATA\r\n" + WIRE)
                assert await client.codes(4) == [250, 250, 354, 250]
                assert (await client.say(b"QUIT"))[:3] == b"221"
                assert await client.rest() == b""
            assert await server.ended() == ["quit"]

    run(body)


def test_implicit_tls(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async def body() -> None:
        options = {"tls": server_context, "implicit_tls": True}
        async with (
            serving(None, TLS_OFFER, **options) as server,
            calling(server, ssl=client_context) as client,
        ):
            await client.greet()
            assert server.all[0].tls_version == "TLSv1.3"
            assert (await client.say(b"STARTTLS"))[:3] == b"503"
            assert (await client.say(b"NOOP"))[:3] == b"250"

    run(body)


def test_a_large_content_under_tls(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    offer = Capabilities(name="mx.test", pipelining=True)
    content = b"0123456789abcdef\r\n" * 100_000

    async def body() -> None:
        options = {"tls": server_context, "implicit_tls": True}
        async with (
            serving(None, offer, **options) as server,
            calling(server, ssl=client_context) as client,
        ):
            await client.greet()
            client.write(ENVELOPE + b"DATA\r\n" + content + b".\r\n")
            assert await client.codes(4) == [250, 250, 354, 250]
            assert server.mails[0][2] == content

    run(body)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("said", [b"this is no handshake\r\n", b"\x16", b""])
def test_who_shakes_no_hands_is_cut(
    server_context: ssl.SSLContext, implicit: bool, said: bytes
) -> None:
    async def body() -> None:
        options = {"tls": server_context, "implicit_tls": implicit}
        async with serving(SHORT, TLS_OFFER, **options) as server, calling(server) as client:
            if not implicit:
                await client.greet()
                assert (await client.say(b"STARTTLS"))[:3] == b"220"
            client.write(said)
            (cause,) = await server.ended()
            assert cause.startswith("handshake")

    run(body)


@pytest.mark.parametrize("how", ["stop", "abort", "peer"])
def test_a_connection_that_ends_in_its_handshake_is_forgotten(
    server_context: ssl.SSLContext, how: str
) -> None:
    async def body() -> None:
        options = {"tls": server_context, "implicit_tls": True}
        async with serving(None, TLS_OFFER, **options) as server, calling(server) as client:
            await eventually_async(lambda: server.all, what="the connection")
            (connection,) = server.all
            await asyncio.sleep(0)
            if how == "stop":
                connection.stop()
            elif how == "abort":
                connection.abort("cut")
            else:
                client.writer.transport.abort()
            (cause,) = await server.ended()
            assert {"stop": "stopped", "abort": "cut"}.get(how, cause) == cause

    run(body)


def test_an_end_under_tls_ends_an_answer_that_is_due(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def body() -> None:
        options = {"tls": server_context, "implicit_tls": True}
        async with serving(None, TLS_OFFER, **options) as server:
            server.answers["message"] = lambda connection: LATER
            async with calling(server, ssl=client_context) as client:
                await client.greet()
                client.write(ENVELOPE + b"DATA\r\n" + WIRE)
                await eventually_async(lambda: server.mails, what="the content")
            await server.ended()
            assert not server.all[0].answer(Reply(250, None, ("ok",)))

    run(body)


def test_an_end_under_tls_is_an_end(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def body() -> None:
        options = {"tls": server_context, "implicit_tls": True}
        async with serving(None, TLS_OFFER, **options) as server:
            async with calling(server, ssl=client_context) as client:
                await client.greet()
            assert await server.ended() == ["eof"]

    run(body)


# --- what comes before a session ----------------------------------------------------------------


class Prefaced(Taking):
    """Wants a line with an address first."""

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, prefaced=True, **options)
        self.line = b""

    def on_preface(self, data: bytes) -> bytes | None:
        self.line += data
        line, end, left = self.line.partition(b"\r\n")
        if len(line) > 50:
            self.abort("preface")
        if not end:
            return None
        self.peer = (line.decode(), 1)
        return left


def test_what_comes_before_a_session_is_read_first() -> None:
    async def body() -> None:
        async with serving(kind=Prefaced) as server:
            async with calling(server) as client:
                client.write(b"192.0.2.1\r\nEHLO c\r\n")
                assert await client.codes(2) == [220, 250]
                assert server.all[0].peer == ("192.0.2.1", 1)
            async with calling(server) as client:
                client.write(b"x" * 60)
                with contextlib.suppress(ConnectionError):
                    assert await client.rest() == b""
            assert sorted(await server.ended(2)) == ["eof", "preface"]

    run(body)


def test_what_comes_before_a_handshake_leaves_the_handshake_whole(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def body() -> None:
        options = {"tls": server_context, "implicit_tls": True, "kind": Prefaced}
        async with serving(None, TLS_OFFER, **options) as server, calling(server) as client:
            client.write(b"192.0.2.1\r\n")
            await client.writer.start_tls(client_context, server_hostname="127.0.0.1")
            await client.greet()
            assert server.all[0].peer == ("192.0.2.1", 1)

    run(body)


def test_nothing_before_a_session_is_cut() -> None:
    async def body() -> None:
        async with serving(SHORT, kind=Prefaced) as server, calling(server):
            assert await server.ended() == ["timeout"]

    run(body)


# --- sockets ------------------------------------------------------------------------------------


def test_a_port_is_listened_on_by_one_alone() -> None:
    with listen("127.0.0.1:0") as first:
        port = first.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}: address already in use"):
            listen(f"127.0.0.1:{port}")


def test_ipv6_is_ipv6_alone() -> None:
    with listen("[::]:0") as six:
        with listen(f"0.0.0.0:{six.getsockname()[1]}") as four:
            assert four.family == socket.AF_INET
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(CannotListen, match=r"\[2001:db8::1\]:2525: .*no such address"):
        listen("[2001:db8::1]:2525")


@pytest.mark.parametrize(
    "bind", ["", "2525", "localhost:25", "127.0.0.1", "::1:25", "1.2.3.4:x", "1.2.3.4:99999"]
)
def test_what_is_no_address_with_a_port_is_said(bind: str) -> None:
    with pytest.raises(ValueError, match="write 127"):
        listen(bind)
