"""How a session is fed: writes, timers, streams and losses, over real loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp.client import Dialect, Extension, Fault, TransactionEnd
from mailstrom.smtp.framing import BareLineEnd
from mailstrom.types import Stage
from mailstrom_workers.session import Outgoing
from tests.wire.peer import (
    CONTENT,
    ENVELOPE,
    ON_WIRE,
    POLICY,
    Peer,
    code,
    opened,
    quick,
    run,
    serving,
)

ONE = changed(ENVELOPE, recipients=("a@example.org",))
FLIGHT = b"MAIL FROM:<s@example.net> SIZE=%d\r\nRCPT TO:<a@example.org>\r\n" % len(CONTENT)
BDAT = b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT
DATA = b"DATA\r\n"
ACCEPTED = b"250 ok\r\n250 ok\r\n354 go\r\n"
CHUNKS = Dialect(chunk_octets=1000, chunks_proved=True)


class Queue:
    """A source of several transactions, and all that it was told, in order."""

    def __init__(self, *outgoing: Outgoing) -> None:
        self.waiting = deque(outgoing)
        self.ends: list[TransactionEnd] = []
        self.errors: list[Exception] = []
        self.told: list[object] = []
        self.left = len(outgoing)
        self.losses = 0
        self.over = asyncio.Event()

    def next(self) -> Outgoing | None:
        return self.waiting.popleft() if self.waiting else None

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        self.ends.append(end)
        self._told(outgoing, done=not end.usable)

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        self.errors.append(error)
        self._told(outgoing, done=False)

    def lost(self) -> None:
        self.losses += 1
        self.over.set()

    def _told(self, outgoing: Outgoing, *, done: bool) -> None:
        assert outgoing.of not in self.told, "told twice"
        self.told.append(outgoing.of)
        self.left -= 1
        if not self.left or done:
            self.over.set()


def messages(count: int, body: bytes = CONTENT) -> list[Outgoing]:
    return [Outgoing(envelope=ONE, body=body, of=number) for number in range(count)]


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def greeted(talk: Talk, *offers: str) -> Talk:
    """A server that greets, offers PIPELINING, and then does what the test says."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(EHLO="\r\n".join(("250-mx", *(f"250-{one}" for one in offers), "250 SIZE")))
        assert await peer.answer("greeting", writer)
        await peer.turn(reader, writer)
        await talk(reader, writer)

    return script


async def gone(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()


def test_content_dot_and_the_next_envelope_leave_in_one_piece() -> None:
    async def body() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(len(FLIGHT + DATA)) == FLIGHT + DATA
            writer.write(ACCEPTED)
            flight = ON_WIRE + b".\r\n" + FLIGHT + DATA
            for _ in range(3):
                assert await reader.read(65536) == flight  # one segment on loopback: one write
                writer.write(b"250 taken\r\n" + ACCEPTED)
            assert await reader.read(65536) == ON_WIRE + b".\r\n"
            writer.write(b"250 taken\r\n")
            await gone(reader)

        async with serving(greeted(talk, "PIPELINING")) as target:
            session = await opened(target)
            source = Queue(*messages(4))
            session.feed(source)
            await source.over.wait()
            assert [code(end, "dot") for end in source.ends] == [250] * 4
            assert source.told == [0, 1, 2, 3]
            assert [end.behind for end in source.ends] == [False, True, True, True]
            assert (session.messages, session.idle, session.usable) == (4, True, True)
            session.abort()

    run(body)


def test_several_by_bdat_leave_in_one_piece() -> None:
    async def body() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read(65536) == b"RSET\r\n".join([FLIGHT + BDAT] * 3)
            taken = b"250 ok\r\n250 ok\r\n250 queued\r\n"
            writer.write(taken + (b"250 ok\r\n" + taken) * 2)
            assert await reader.read(65536) == FLIGHT + BDAT
            writer.write(taken)
            await gone(reader)

        async with serving(greeted(talk, "PIPELINING", "CHUNKING")) as target:
            session = await opened(target, replace(POLICY, dialect=replace(CHUNKS, depth=3)))
            source = Queue(*messages(4))
            session.feed(source)
            await source.over.wait()
            assert [code(end, "dot") for end in source.ends] == [250] * 4
            session.abort()

    run(body)


def test_a_poke_brings_what_came_later_behind_the_dot() -> None:
    async def body() -> None:
        written = asyncio.Event()
        asked = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(FLIGHT + DATA))
            writer.write(ACCEPTED)
            await reader.readexactly(len(ON_WIRE) + 3)
            written.set()
            assert await reader.readexactly(len(FLIGHT + DATA)) == FLIGHT + DATA
            asked.set()
            await gone(reader)

        async with serving(greeted(talk, "PIPELINING")) as target:
            session = await opened(target)
            source = Queue(*messages(1))
            session.feed(source)
            await written.wait()
            source.waiting.append(Outgoing(envelope=ONE, body=CONTENT, of="later"))
            source.left += 1
            session.poke()
            await asked.wait()
            session.abort()
            await source.over.wait()
            first, second = source.ends
            assert (first.dot_written, first.fault, first.stumbled) == (True, Fault.CLOSED, None)
            assert (second.behind, second.dot_written, second.stumbled) == (True, False, None)

    run(body)


def silent(replies: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(FLIGHT + DATA))
        writer.write(ACCEPTED)
        await reader.readexactly(len(ON_WIRE + FLIGHT + DATA) + 3)
        writer.write(replies)
        await gone(reader)

    return talk


def test_commands_behind_are_timed_from_the_contents_reply_and_shortly() -> None:
    async def body() -> None:
        timeouts = Timeouts(behind=0.2, mail=60.0, dot=60.0)
        async with serving(greeted(silent(b"250 taken\r\n"), "PIPELINING")) as target:
            session = await opened(target, replace(POLICY, timeouts=timeouts))
            source = Queue(*messages(2))
            session.feed(source)
            await source.over.wait()
            first, second = source.ends
            assert (code(first, "dot"), first.usable, first.stumbled) == (250, True, None)
            assert (second.fault, second.stage) == (Fault.TIMEOUT, Stage.MAIL)
            assert (second.answered, second.stumbled) == (False, Extension.PIPELINING)

    run(body)


def test_a_slow_content_is_not_cut_by_what_stands_behind_it() -> None:
    async def body() -> None:
        reply = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(FLIGHT + DATA))
            writer.write(ACCEPTED)
            await reader.readexactly(len(ON_WIRE + FLIGHT + DATA) + 3)
            await reply.wait()
            writer.write(b"250 taken\r\n" + ACCEPTED)
            await reader.readexactly(len(ON_WIRE) + 3)
            writer.write(b"250 taken\r\n")
            await gone(reader)

        timeouts = Timeouts(behind=1.0, mail=1.0, rcpt=1.0, data=1.0)
        async with serving(greeted(talk, "PIPELINING")) as target:
            session = await opened(target, replace(POLICY, timeouts=timeouts))
            source = Queue(*messages(2))
            session.feed(source)
            asyncio.get_running_loop().call_later(2.5, reply.set)  # each of those times, and more
            await source.over.wait()
            assert [code(end, "dot") for end in source.ends] == [250, 250]
            session.abort()

    run(body)


def test_a_dot_that_is_never_answered_with_commands_behind_it_is_a_stumble() -> None:
    async def body() -> None:
        async with serving(greeted(silent(b""), "PIPELINING")) as target:
            session = await opened(target, quick(dot=0.2))
            source = Queue(*messages(2))
            session.feed(source)
            await source.over.wait()
            first, second = source.ends
            assert (first.fault, first.dot_written) == (Fault.TIMEOUT, True)
            assert first.stumbled is Extension.PIPELINING
            assert (second.answered, second.dot_written, second.behind) == (False, False, True)

    run(body)


@pytest.mark.parametrize("blocks", [0, 1])
def test_content_trouble_behind_an_early_verdict_is_not_told_twice(blocks: int) -> None:
    async def body() -> None:
        refused = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(FLIGHT + DATA))
            writer.write(ACCEPTED + (b"" if blocks else b"552 no\r\n"))
            if blocks:
                await reader.readexactly(1000)
                writer.write(b"552 no\r\n")
            await gone(reader)

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(blocks):
                yield b"x" * 998 + b"\r\n"
                yield b"y" * 998 + b"\r\n"  # it is the one before that is written then
            await refused.wait()
            raise OSError("the disk")

        async with serving(greeted(talk, "PIPELINING")) as target:
            session = await opened(target)
            source = Queue(Outgoing(envelope=ONE, chunks=chunks, of=0))
            session.feed(source)
            await source.over.wait()
            refused.set()
            for _ in range(5):
                await asyncio.sleep(0)
            (end,) = source.ends
            assert (code(end, "dot"), end.stage, end.usable) == (552, Stage.BODY, False)
            assert (source.errors, source.losses) == ([], 0)
            assert session.end_cause == "reply"

    run(body)


def test_content_that_fails_half_way_is_told_when_the_session_is_over() -> None:
    async def body() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(FLIGHT + DATA))
            writer.write(ACCEPTED)
            await gone(reader)

        closed: list[bool] = []

        async def chunks() -> AsyncIterator[bytes]:
            try:
                yield b"half\r\n"
                raise OSError("the disk")
            finally:
                closed.append(True)

        class Watching(Queue):
            def failed(self, outgoing: Outgoing, error: Exception) -> None:
                assert (session.idle, session.usable, closed) == (True, False, [True])
                session.feed(None)
                super().failed(outgoing, error)

        async with serving(greeted(talk, "PIPELINING")) as target:
            session = await opened(target)
            source = Watching(Outgoing(envelope=ONE, chunks=chunks, of=0))
            session.feed(source)
            await source.over.wait()
            assert ([type(error) for error in source.errors], source.ends) == ([OSError], [])
            assert session.end_cause == "aborted"

    run(body)


@pytest.mark.parametrize("large", [True, False])
def test_content_that_cannot_be_sent_costs_the_session_nothing(large: bool) -> None:
    async def body() -> None:
        peer = Peer(EHLO="250-mx\r\n250 SIZE")
        async with serving(peer) as target:
            session = await opened(target)
            bad = b"x\r\n" * (200_000 if large else 1) + b"bare\n"
            source = Queue(Outgoing(envelope=ONE, body=bad, of="bad"), *messages(2))
            session.feed(source)
            await source.over.wait()
            assert [type(error) for error in source.errors] == [BareLineEnd]
            assert source.told == ["bad", 0, 1]
            assert [code(end, "dot") for end in source.ends] == [250, 250]
            await session.quit()
        assert peer.contents == [ON_WIRE] * 2

    run(body)


def test_a_loss_between_transactions_is_told_once_and_a_dead_session_asks_nothing() -> None:
    async def body() -> None:
        fed = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await fed.wait()
            writer.write(b"421 4.3.2 going down\r\n")

        async with serving(greeted(talk)) as target:
            session = await opened(target)
            source = Queue()
            session.feed(source)
            fed.set()
            await source.over.wait()
            for _ in range(5):
                await asyncio.sleep(0)
            assert source.losses == 1
            assert session.closing is not None
            late = Queue(*messages(1))
            session.feed(late)
            assert (late.losses, len(late.waiting), late.told) == (1, 1, [])

    run(body)


def test_a_source_that_asks_for_more_from_within_is_not_entered_again() -> None:
    async def body() -> None:
        depth = 0

        class Eager(Queue):
            def next(self) -> Outgoing | None:
                nonlocal depth
                depth += 1
                assert depth == 1
                session.poke()
                depth -= 1
                return super().next()

            def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
                nonlocal depth
                depth += 1
                session.poke()
                depth -= 1
                super().ended(outgoing, end)

        peer = Peer(EHLO="250-mx\r\n250 SIZE")
        async with serving(peer) as target:
            session = await opened(target)
            source = Eager(*messages(5))
            session.feed(source)
            await source.over.wait()
            assert source.told == [0, 1, 2, 3, 4]
            await session.quit()

    run(body)


@pytest.mark.parametrize("where", ["at MAIL", "at the dot"])
def test_content_that_is_put_down_is_read_again_where_it_is_wanted(where: str) -> None:
    async def body() -> None:
        hanging, go_on = asyncio.Event(), asyncio.Event()
        contents: list[bytes] = []

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(FLIGHT + DATA))
            if where == "at MAIL":
                hanging.set()
                await go_on.wait()
            writer.write(ACCEPTED)
            contents.append(await reader.readuntil(b"\r\n.\r\n"))
            hanging.set()
            await go_on.wait()
            writer.write(b"250 stored\r\n")
            await gone(reader)

        read: list[int] = []

        async def chunks() -> AsyncIterator[bytes]:
            read.append(1)
            yield CONTENT

        async with serving(greeted(talk, "PIPELINING")) as target:
            session = await opened(target)
            outgoing = Outgoing(envelope=ONE, body=CONTENT, chunks=chunks, of=0)
            source = Queue(outgoing)
            session.feed(source)
            await hanging.wait()
            while not session.put_down():  # noqa: ASYNC110 - nobody tells what a system took
                await asyncio.sleep(0.001)
            assert outgoing.body is None
            go_on.set()
            await source.over.wait()
            (end,) = source.ends
            assert (code(end, "dot"), end.fault, contents) == (250, None, [ON_WIRE + b".\r\n"])
            assert len(read) == (where == "at MAIL")

    run(body)


@pytest.mark.parametrize("again", [True, False])
def test_content_is_held_for_who_does_not_read_and_where_it_cannot_be_read_again(
    again: bool,
) -> None:
    async def body() -> None:
        large = (b"x" * 998 + b"\r\n") * 250
        hanging, go_on = asyncio.Event(), asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(DATA)
            if again:
                writer.transport.pause_reading()
                writer.write(ACCEPTED)
            hanging.set()
            await go_on.wait()

        async def chunks() -> AsyncIterator[bytes]:
            yield large

        async with serving(greeted(talk, "PIPELINING")) as target:
            session = await opened(target)
            outgoing = Outgoing(envelope=ONE, body=large, chunks=chunks if again else None, of=0)
            source = Queue(outgoing)
            session.feed(source)
            await hanging.wait()
            transport = session._pump.transport
            while again and not transport.get_write_buffer_size():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
            assert not session.put_down()
            assert outgoing.body is large
            go_on.set()
            await source.over.wait()

    run(body)
