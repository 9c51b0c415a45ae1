"""Sessions over real loopback sockets against small scripted servers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from mailstrom.smtp.client import Dialect, Fault, Pipelining
from mailstrom.types import Stage
from mailstrom_workers.session import Session
from mailstrom_workers.wire import SessionFailure, SessionPolicy, Target
from tests.wire.peer import (
    CONTENT,
    ENVELOPE,
    ON_WIRE,
    POLICY,
    Lost,
    Peer,
    code,
    opened,
    quick,
    refused,
    run,
    serving,
    transact,
)

FLIGHT = Dialect(pipelining=Pipelining.FULL)
SERIAL = Dialect(pipelining=Pipelining.NONE)


@pytest.mark.parametrize("pipelining", [True, False])
def test_messages_go_out_one_after_another_and_the_session_quits(pipelining: bool) -> None:
    async def body() -> None:
        peer = Peer()
        async with serving(peer) as target:
            session = await opened(
                target, replace(POLICY, dialect=FLIGHT if pipelining else SERIAL)
            )
            assert session.facts.source == "127.0.0.1"
            assert session.facts.ehlo == "mx.example.org\nPIPELINING\nSIZE"
            assert (session.facts.tls_wanted, session.facts.tls_reached) == ("none", "none")
            for number in range(1, 4):
                end = await transact(session, ENVELOPE, CONTENT)
                assert (code(end, "dot"), end.fault, end.usable) == (250, None, True)
                assert end.dot is not None
                assert (end.dot.enhanced, end.dot.text) == ("2.0.0", "stored as 1")
                assert (session.messages, end.dot_written) == (number, True)
            await session.quit()
            assert (session.usable, session.end_cause) == (False, "quit")
            await peer.closed.wait()
        assert peer.contents == [ON_WIRE] * 3
        assert peer.commands[0] == "EHLO client.example.net"
        assert peer.commands[-1] == "QUIT"
        assert "RSET" not in peer.commands

    run(body)


def test_content_may_come_in_chunks_and_is_asked_for_once() -> None:
    async def body() -> None:
        peer = Peer()
        asked = []

        async def chunks() -> AsyncIterator[bytes]:
            asked.append(1)
            for at in range(len(CONTENT)):
                yield CONTENT[at : at + 1]

        async with serving(peer) as target:
            session = await opened(target)
            end = await transact(session, ENVELOPE, chunks())
            assert code(end, "dot") == 250
            await session.quit()
        assert peer.contents == [ON_WIRE]
        assert asked == [1]

    run(body)


def test_content_is_not_touched_where_no_354_came() -> None:
    async def body() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            raise AssertionError("content was read")
            yield b""

        peer = Peer(RCPT="550 5.1.1 no", DATA="503 5.5.1 no valid recipients")
        async with serving(peer) as target:
            session = await opened(target, replace(POLICY, dialect=SERIAL))
            end = await transact(session, ENVELOPE, chunks())
            assert [r.code for r in end.rcpts if r] == [550, 550]
            peer.replies |= {"RCPT": "250 ok", "DATA": "354 go"}
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            assert [command.split()[0] for command in peer.commands[-9:]] == [
                *("MAIL", "RCPT", "RCPT", "DATA", "RSET"),
                *("MAIL", "RCPT", "RCPT", "DATA"),
            ]
            await session.quit()

    run(body)


class OneLate(Peer):
    """Answers its first content twice; each further reply comes one command late, up to DATA."""

    def __init__(self, **replies: str) -> None:
        super().__init__(**replies)
        self.late: list[str] = []

    async def answer(self, verb: str, writer: asyncio.StreamWriter) -> bool:
        if not self.late:
            if verb == "dot":
                self.late.append(self.replies["dot"])
            return await super().answer(verb, writer)
        refused = self.commands[-1].startswith("RCPT TO:<b@")
        self.late.append("550 5.1.1 no such user" if refused else self.replies[verb])
        for _ in range(len(self.late) if verb == "DATA" else 1):
            writer.write(self.late.pop(0).encode() + b"\r\n")
            await writer.drain()
        return True


def test_a_second_reply_to_content_that_comes_late_bounces_nobody_of_the_next_message() -> None:
    async def body() -> None:
        peer = OneLate()
        async with serving(peer) as target:
            session = await opened(target, replace(POLICY, dialect=SERIAL))
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            end = await transact(session, ENVELOPE, CONTENT)
            assert (end.mail, end.rcpts, end.data) == (None, (None, None), None)
            assert (end.fault, end.usable, end.dot_written) == (Fault.GARBAGE, False, False)
            assert (end.answered, end.stale) == (False, True)  # nobody is charged
            await session.quit()
        assert peer.contents == [ON_WIRE]
        assert peer.commands[-1] == "DATA"

    run(body)


STAGES: list[tuple[str, Stage, str]] = [
    ("MAIL", Stage.MAIL, "mail"),
    ("RCPT", Stage.RCPT, "rcpt"),
    ("DATA", Stage.DATA, "data"),
    ("dot", Stage.DOT, "dot"),
]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("how", ["hang", "close", "reset", "garbage", "421 4.3.2 down|close"])
@pytest.mark.parametrize(("verb", "stage", "timeout"), STAGES)
def test_every_stage_and_way_to_fail(
    verb: str, stage: Stage, timeout: str, how: str, pipelining: bool
) -> None:
    async def body() -> None:
        peer = Peer(**{verb: how})
        policy = quick(**{timeout: 0.2}) if how == "hang" else POLICY
        async with serving(peer) as target:
            session = await opened(
                target, replace(policy, dialect=FLIGHT if pipelining else SERIAL)
            )
            end = await transact(session, ENVELOPE, CONTENT)
            peer.hang.set()
            assert end.stage is stage
            assert not end.usable
            assert not session.usable
            assert end.answered == (stage is not Stage.MAIL or how.startswith("421"))
            assert end.dot_written == (stage is Stage.DOT)
            expected = {
                "hang": Fault.TIMEOUT,
                "close": Fault.CLOSED,
                "reset": Fault.CLOSED,
                "garbage": Fault.GARBAGE,
            }.get(how)
            assert end.fault == expected
            if expected is None:
                replies = [end.mail, *end.rcpts, end.data, end.dot]
                last = [reply for reply in replies if reply is not None][-1]
                assert (last.code, last.text) == (421, "down")
            assert session.end_cause == ("reply" if expected is None else str(expected))
            await session.quit()

    run(body)


SETUP: list[tuple[str, str, Stage]] = [
    ("greeting", "greeting", Stage.GREETING),
    ("EHLO", "ehlo", Stage.EHLO),
]


@pytest.mark.parametrize(
    ("how", "cause", "reply_code"),
    [
        ("hang", "timeout", None),
        ("close", "closed", None),
        ("reset", "closed", None),
        ("garbage", "garbage", None),
        ("999 odd", "garbage", None),
        ("354 odd", "garbage", 354),
        ("421 4.3.2 full|close", "reply", 421),
        ("454-4.3.2 not\r\n454 4.3.2 now", "reply", 454),
    ],
)
@pytest.mark.parametrize(("verb", "timeout", "stage"), SETUP)
def test_a_session_that_does_not_open_is_a_value(
    verb: str, timeout: str, stage: Stage, how: str, cause: str, reply_code: int | None
) -> None:
    async def body() -> None:
        peer = Peer(**{verb: how})
        async with serving(peer) as target:
            policy = quick(**{timeout: 0.2}) if how == "hang" else POLICY
            failure = await refused(target, policy)
            peer.hang.set()
        assert (failure.stage, failure.cause) == (stage, cause)
        assert (failure.reply.code if failure.reply else None) == reply_code
        if reply_code == 454:
            assert failure.reply is not None
            assert (failure.reply.enhanced, failure.reply.text) == ("4.3.2", "not now")
        assert failure.facts.address == "127.0.0.1"
        assert failure.facts.source == "127.0.0.1"
        assert str(stage) in failure.text

    run(body)


def test_a_refused_greeting_keeps_its_words() -> None:
    async def body() -> None:
        async with serving(Peer(greeting="554 5.7.1 go \x1baway|close")) as target:
            failure = await refused(target)
        assert failure.cause == "reply"
        assert failure.reply is not None
        assert (failure.reply.code, failure.reply.enhanced) == (554, "5.7.1")
        assert failure.reply.text == r"go \x1baway"

    run(body)


def test_helo_is_tried_where_ehlo_is_unknown() -> None:
    async def body() -> None:
        peer = Peer(EHLO="502 what")
        async with serving(peer) as target:
            session = await opened(target)
            assert not session.capabilities.pipelining
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            await session.quit()
        assert peer.commands[:3] == [
            "EHLO client.example.net",
            "HELO client.example.net",
            "MAIL FROM:<s@example.net>",
        ]

    run(body)


def test_a_refused_ehlo_followed_by_a_close_stays_the_refusal() -> None:
    async def body() -> None:
        async with serving(Peer(EHLO="550 5.7.1 listed|close")) as target:
            failure = await refused(target)
        assert (failure.stage, failure.cause) == (Stage.EHLO, "reply")
        assert failure.reply is not None
        assert failure.reply.code == 550

    run(body)


def test_nobody_listens() -> None:
    async def body() -> None:
        with socket.socket() as idle:
            idle.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else's port
            target = Target(host="mx", address="127.0.0.1", port=idle.getsockname()[1])
            failure = await refused(target)
        assert (failure.stage, failure.cause, failure.reply) == (Stage.CONNECT, "refused", None)

    run(body)


def test_a_source_address_is_used_and_a_foreign_one_is_a_local_failure() -> None:
    async def body() -> None:
        async with serving(Peer()) as target:
            session = await opened(target, replace(POLICY, source="127.0.0.9"))
            assert session.facts.source == "127.0.0.9"
            session.abort()
            failure = await refused(target, replace(POLICY, source="192.0.2.1"))
            assert (failure.stage, failure.cause) == (Stage.CONNECT, "local")
            assert "192.0.2.1" in failure.text

    run(body)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EINVAL])
def test_an_address_that_this_machine_forbids_is_out_of_reach_and_no_local_failure(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``ip route add prohibit`` or a filter of the host does; other addresses may be reached."""

    async def body() -> None:
        async def forbidden(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", forbidden, raising=False)
        failure = await refused(Target(host="mx", address="127.0.0.1", port=25))
        assert (failure.stage, failure.cause) == (Stage.CONNECT, "unreachable")
        assert os.strerror(number) in failure.text

    run(body)


def test_a_full_backlog_is_a_connect_timeout() -> None:
    async def body() -> None:
        with socket.socket() as listener, contextlib.ExitStack() as stack:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            for _ in range(4):  # nobody accepts: further SYNs get no answer
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filler.connect(address)
            target = Target(host="mx", address="127.0.0.1", port=address[1])
            failure = await refused(target, quick(connect=0.2))
        assert (failure.stage, failure.cause) == (Stage.CONNECT, "timeout")

    run(body)


@pytest.mark.parametrize("hung", ["greeting", "EHLO"])
def test_a_host_that_hangs_is_waited_for_no_longer_than_whoever_waits_wants(hung: str) -> None:
    async def body() -> None:
        peer = Peer(**{hung: "hang"})
        patience = asyncio.timeout(None)
        async with serving(peer) as target:
            opening = asyncio.create_task(Session.open(target, POLICY, patience))
            await peer.hanging.wait()
            for _ in range(100):  # connected as it is, it comes to wait for the greeting
                await asyncio.sleep(0)
            assert not opening.done()
            patience.reschedule(asyncio.get_running_loop().time())
            failure = await opening
            assert isinstance(failure, SessionFailure)
            assert (str(failure.stage), failure.cause) == (hung.lower(), "timeout")
            peer.hang.set()
            await peer.closed.wait()

    run(body)


def test_a_close_before_the_first_reply_charges_no_message() -> None:
    async def body() -> None:
        peer = Peer(EHLO="250 mx|close")
        async with serving(peer) as target:
            session = await Session.open(target, POLICY)
            if isinstance(session, SessionFailure):  # the close was seen before the takeover
                assert (session.stage, session.cause) == (Stage.EHLO, "closed")
                return
            end = await transact(session, ENVELOPE, CONTENT)
            assert (end.answered, end.fault, end.usable) == (False, Fault.CLOSED, False)
            assert (end.mail, end.dot, end.dot_written) == (None, None, False)
            with pytest.raises(Lost):
                await transact(session, ENVELOPE, CONTENT)

    run(body)


def test_421_between_transactions_is_seen_and_charges_no_message() -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(dot="250 ok")
            await peer.answer("greeting", writer)
            while not peer.contents:
                await peer.turn(reader, writer)
            writer.write(b"421 4.4.2 idle too long\r\n")
            await writer.drain()
            assert await reader.read() == b""

        async with serving(script) as target:
            session = await opened(target)
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            await session._pump.closed.wait()
            assert not session.usable
            assert session.closing is not None
            assert session.closing.reply is not None
            assert session.closing.reply.code == 421
            with pytest.raises(Lost):
                await transact(session, ENVELOPE, CONTENT)
            assert session.end_cause == "reply"

    run(body)


def big(size: int) -> AsyncIterator[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        block = (b"." + b"x" * 62 + b"\r\n") * 1000
        sent = 0
        while sent < size:
            yield block
            sent += len(block)

    return chunks()


@pytest.mark.parametrize("whole", [True, False])
def test_a_large_body_to_a_slow_reader_arrives_in_bounded_memory(whole: bool) -> None:
    size = 8_125_000

    async def body() -> None:
        got: list[bytes] = []
        held: list[int] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
            peer = Peer()
            await peer.answer("greeting", writer)
            for _ in range(3):
                await peer.turn(reader, writer)
            await reader.readline()  # RCPT b
            await peer.answer("RCPT", writer)
            await reader.readline()
            await peer.answer("DATA", writer)
            tail = b""
            while not tail.endswith(b"\r\n.\r\n"):
                block = await reader.read(20_000)
                got.append(block)
                tail = (tail + block)[-5:]
                held.append(session._pump.transport.get_write_buffer_size())
                await asyncio.sleep(0)
            await peer.answer("dot", writer)
            await peer.turn(reader, writer)

        async def content() -> AsyncIterator[bytes]:
            async for chunk in big(size):
                yield chunk

        async with serving(script) as target:
            session = await opened(target)
            joined = b"".join([chunk async for chunk in content()])
            end = await transact(session, ENVELOPE, joined if whole else content())
            assert code(end, "dot") == 250
            await session.quit()
        wire = b"".join(got)
        assert wire[:-3] == joined.replace(b"\r\n.", b"\r\n..").replace(b".x", b"..x", 1)
        assert max(held) < 1_000_000

    run(body)


@pytest.mark.parametrize("close", [True, False])
def test_an_early_refusal_stops_the_body(close: bool) -> None:
    async def body() -> None:
        produced: list[int] = []

        async def content() -> AsyncIterator[bytes]:
            async for chunk in big(64_000_000):
                produced.append(len(chunk))
                yield chunk

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer()
            await peer.answer("greeting", writer)
            peer.on_content = lambda _reader: asyncio.sleep(0, False)
            while "DATA" not in peer.commands:
                await peer.turn(reader, writer)
            await reader.readexactly(100_000)
            writer.write(b"552 5.3.4 too big\r\n")
            await writer.drain()
            if not close:
                await reader.read(-1)

        async with serving(script) as target:
            session = await opened(target)
            end = await transact(session, ENVELOPE, content())
            assert code(end, "dot") == 552
            assert (end.stage, end.fault, end.dot_written) == (Stage.BODY, None, False)
            assert (end.usable, session.usable) == (False, False)
            assert session.messages == 0
        assert sum(produced) < 32_000_000

    run(body)


def test_a_refusal_is_read_even_where_the_next_write_fails_first() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    gone = threading.Event()

    def serve() -> None:
        with listener, listener.accept()[0] as peer:
            peer.sendall(b"220 hi\r\n")
            peer.recv(1000)
            peer.sendall(b"250 mx\r\n")
            for reply in (b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
                peer.recv(1000)
                peer.sendall(reply)
            peer.recv(10)
            peer.sendall(b"554 5.7.1 not from you\r\n")
        gone.set()  # closed with content unread: a reset follows the reply

    async def content() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 998 + b"\r\n"
        gone.wait(10)  # the loop stands still: nothing is read between here and the next writes
        for _ in range(3):
            yield b"x" * 998 + b"\r\n"

    async def body() -> None:
        port = listener.getsockname()[1]
        session = await opened(Target(host="mx", address="127.0.0.1", port=port))
        end = await transact(session, ENVELOPE, content())
        assert code(end, "dot") == 554
        assert (end.stage, end.fault, end.dot_written) == (Stage.BODY, None, False)

    server = threading.Thread(target=serve)
    server.start()
    try:
        run(body)
    finally:
        server.join(10)


def test_a_peer_that_stops_reading_is_cut_by_the_body_timeout() -> None:
    async def body() -> None:
        stop = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer()
            peer.on_content = lambda _reader: stop.wait()
            await peer(reader, writer)

        async with serving(script) as target:
            session = await opened(target, quick(body=0.3))
            end = await transact(session, ENVELOPE, big(64_000_000))
            stop.set()
            assert (end.stage, end.fault) == (Stage.BODY, Fault.TIMEOUT)
            assert not end.dot_written

    run(body)


@pytest.mark.parametrize("octets", [250_000, 1_000_000])
@pytest.mark.parametrize("more", [True, False])
def test_content_that_a_peer_did_not_read_is_not_in_doubt(octets: int, more: bool) -> None:
    """However much of it the system might hold: its end never left. Nor did what stands behind."""

    async def body() -> None:
        stop = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer()
            peer.on_content = lambda _reader: stop.wait()
            await peer(reader, writer)

        async with serving(script) as target:
            policy = replace(quick(body=0.5, dot=0.5), dialect=FLIGHT if more else SERIAL)
            session = await opened(target, policy)
            # The peer's own buffer: what it holds has been sent.
            content = b"x" * 78 + b"\r\n"
            end = await transact(session, ENVELOPE, content * (octets // 80))
            stop.set()
            assert end.fault is Fault.TIMEOUT
            assert not end.dot_written

    async def small() -> None:
        with pytest.MonkeyPatch.context() as patch:
            serve = asyncio.start_server

            async def narrow(connected, host, port, **more):  # type: ignore[no-untyped-def]
                listening = socket.create_server((host, port))
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
                return await serve(connected, sock=listening, limit=4096)

            patch.setattr(asyncio, "start_server", narrow)
            await body()

    run(small)


def test_a_half_close_during_the_body_ends_the_transaction() -> None:
    async def body() -> None:
        stop = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer()

            async def half(_reader: asyncio.StreamReader) -> bool:
                writer.write_eof()
                await stop.wait()
                return False

            peer.on_content = half
            await peer(reader, writer)

        async with serving(script) as target:
            session = await opened(target)
            end = await transact(session, ENVELOPE, big(64_000_000))
            stop.set()
            assert (end.stage, end.fault, end.dot_written) == (Stage.BODY, Fault.CLOSED, False)

    run(body)


def test_dripping_bytes_do_not_renew_a_deadline() -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer()
            await peer.answer("greeting", writer)
            await peer.turn(reader, writer)
            while not writer.is_closing():
                writer.write(b"250-x\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

        async with serving(script) as target:
            session = await opened(target, quick(mail=0.3))
            end = await transact(session, ENVELOPE, CONTENT)
            assert (end.stage, end.fault, end.answered) == (Stage.MAIL, Fault.TIMEOUT, False)

    run(body)


class Damaged(Exception):
    """The content source's own error."""


@pytest.mark.parametrize("bare", [True, False])
def test_damaged_content_never_gets_its_dot(bare: bool) -> None:
    async def body() -> None:
        seen = asyncio.get_running_loop().create_future()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer()

            async def everything(_reader: asyncio.StreamReader) -> bool:
                try:
                    seen.set_result(await reader.read(-1))
                except ConnectionError:
                    seen.set_result(b"")
                return False

            peer.on_content = everything
            await peer(reader, writer)

        async def content() -> AsyncIterator[bytes]:
            yield CONTENT
            if bare:
                yield b"bare\n.\r\n"
            raise Damaged

        async with serving(script) as target:
            session = await opened(target)
            with pytest.raises(ValueError if bare else Damaged):
                await transact(session, ENVELOPE, content())  # told once: ``One`` has no second
            assert (session.idle, session.usable, session.messages) == (True, False, 0)
            assert session.end_cause == "aborted"
            assert not (await seen).endswith(b".\r\n")

    run(body)


def test_another_source_is_refused_while_a_transaction_is_under_way() -> None:
    async def body() -> None:
        peer = Peer(MAIL="hang")
        async with serving(peer) as target:
            session = await opened(target)
            running = asyncio.create_task(transact(session, ENVELOPE, CONTENT))
            await peer.hanging.wait()
            with pytest.raises(RuntimeError, match="under way"):
                session.feed(None)
            session.abort()
            end = await running
            assert (end.stage, end.fault, end.dot_written) == (Stage.MAIL, Fault.CLOSED, False)
            assert (session.usable, session.idle) == (False, True)
            peer.hang.set()

    run(body)


def test_aborting_from_outside_ends_a_transaction_as_closed() -> None:
    async def body() -> None:
        peer = Peer(dot="hang")
        async with serving(peer) as target:
            session = await opened(target)
            running = asyncio.create_task(transact(session, ENVELOPE, CONTENT))
            await peer.hanging.wait()
            session.abort()
            end = await running
            assert (end.stage, end.fault, end.dot_written) == (Stage.DOT, Fault.CLOSED, True)
            peer.hang.set()

    run(body)


def test_an_unanswered_quit_is_left_behind() -> None:
    async def body() -> None:
        peer = Peer(QUIT="hang")
        async with serving(peer) as target:
            session = await opened(target, quick(quit=0.1))
            await session.quit()
            assert not session.usable
            await peer.hanging.wait()  # patience may end before the server has read it
            assert peer.commands[-1] == "QUIT"
            peer.hang.set()

    run(body)


def test_an_envelope_that_is_no_path_leaves_the_session_as_it_was() -> None:
    async def body() -> None:
        peer = Peer()
        async with serving(peer) as target:
            session = await opened(target)
            with pytest.raises(ValueError, match="address"):
                await transact(session, changed(ENVELOPE, recipients=("a\r\n@b",)), CONTENT)
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            await session.quit()

    run(body)


def test_an_ehlo_name_cannot_carry_a_command() -> None:
    with pytest.raises(ValueError, match="EHLO"):
        SessionPolicy(ehlo_name="a\r\nMAIL FROM:<>")


def test_a_policy_does_not_show_its_password() -> None:
    assert "secret" not in repr(SessionPolicy(ehlo_name="a", username="u", password="secret"))
