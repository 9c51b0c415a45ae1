"""Peers that are slow in odd ways, on real sockets: octet by octet, and deaf while they talk."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from dataclasses import replace

import pytest

from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp.client import Dialect
from mailstrom.testing.script import Rule, Script
from mailstrom.testing.smtp import SMTPServer
from mailstrom_workers.wire import Target
from tests.wire.flights import DIALECTS, Flown, Lane, message
from tests.wire.peer import POLICY, opened, run, serving


async def _octets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each octet in a segment of its own."""
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while block := await reader.read(65536):
        for octet in block:
            writer.write(bytes((octet,)))
            await asyncio.sleep(0)
    writer.write_eof()


async def _whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(65536):
        writer.write(block)
        await writer.drain()
    writer.write_eof()


@pytest.mark.parametrize("way", DIALECTS)
def test_replies_that_come_octet_by_octet_are_the_same_replies(way: str) -> None:
    rules = (
        Rule(stage="rcpt", recipient="no@*", code=550, text="no\nsuch user"),
        Rule(stage="dot", recipient="later@*", code=451, text="not now"),
    )
    script = Script(rules=rules, magic=False, chunking=True)
    messages = [
        message(1),
        message(2, "yes@x.test", "no@x.test"),
        message(3, "later@x.test"),
        message(4),
    ]

    async def story() -> None:
        async with SMTPServer(script=script) as server:

            async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                behind = await asyncio.open_connection(server.host, server.port)
                with contextlib.closing(behind[1]):
                    await asyncio.gather(_whole(reader, behind[1]), _octets(behind[0], writer))

            async with serving(between) as target:
                session = await opened(target, replace(POLICY, dialect=DIALECTS[way]))
                lane = Lane(deque(messages))
                session.feed(lane)
                await lane.over.wait()
                usable = session.usable
                session.feed(None)
                await session.quit()
            flown = Flown(
                messages=messages,
                ends=lane.ends,
                reused=lane.reused,
                dots=list(server.dots),
                connection=server.connections[0],
                usable=usable,
            )
            assert flown.words == ["taken", "taken", "not-now", "taken"]
            assert flown.word(messages[1], 1) == "refused"
            assert flown.unsound() == []
            assert usable

    run(story)


RECIPIENTS, LINES = 30, 90


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("octets", [200_000, 1_000_000])
def test_a_server_that_does_not_read_while_it_talks_is_listened_to(octets: int, depth: int) -> None:
    """Both directions are fuller than any buffer: who only wrote would wait for ever."""
    names = [f"r{number}@x.test" for number in range(RECIPIENTS)]
    messages = [message(number, *names, octets=octets) for number in range(1, 4)]
    dialect = Dialect(chunk_octets=1 << 20, chunks_proved=True, depth=depth)
    said = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        writer.write(b"220 mx.test\r\n")
        writer.transport.set_write_buffer_limits(0)
        while line := await reader.readline():
            verb = line.split()[0]
            if verb == b"QUIT":
                return
            if verb == b"EHLO":
                writer.write(b"250-mx.test\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
            elif verb == b"RCPT":
                reply = b"250-" + b"2.1.5 long words " * 40 + b"\r\n"
                writer.write(reply * LINES + b"250 2.1.5 ok\r\n")
                said += len(reply) * LINES
            elif verb == b"BDAT":
                await reader.readexactly(int(line.split()[1]))
                writer.write(b"250 2.0.0 taken\r\n")
            else:
                writer.write(b"250 ok\r\n")
            await writer.drain()

    async def story() -> None:
        async with serving(talk) as target:
            assert isinstance(target, Target)
            patient = Timeouts(**dict.fromkeys(("mail", "rcpt", "dot", "body", "rset"), 40.0))
            session = await opened(target, replace(POLICY, dialect=dialect, timeouts=patient))
            lane = Lane(deque(messages))
            session.feed(lane)
            await lane.over.wait()
            ends = list(lane.ends.values())
            assert [end.dot is not None and end.dot.code for end in ends] == [250] * 3
            session.feed(None)
            await session.quit()
        assert said > 4_000_000

    run(story)
