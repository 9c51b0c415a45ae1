"""The SMTP server for programs: what a program sees of mail, and what its hooks may say."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailstrom.server import (
    AlreadyStarted,
    CannotListen,
    Client,
    Credentials,
    Mail,
    Refuse,
    Reply,
    SMTPServer,
    WrongCertificate,
)
from tests.support.sockets import eventually_async

CONTENT = b"From: a@x.test\r\nSubject: gr\xc3\xbc\xc3\x9fe\r\n\r\n.dot\r\nUPPER lower\r\n"


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(bounded())


def send(
    server: SMTPServer, *recipients: str, content: bytes = CONTENT, options: tuple[str, ...] = ()
) -> Coroutine[Any, Any, object]:
    """What smtplib makes of it: {}, refused recipients, or what it raised."""

    def sent() -> object:
        with smtplib.SMTP(server.host, server.port, "c.test", timeout=20) as client:
            try:
                return client.sendmail("a@x.test", recipients or ["b@y.test"], content, options)
            except smtplib.SMTPRecipientsRefused as error:
                return error.recipients
            except smtplib.SMTPResponseException as error:
                return error.smtp_code

    return asyncio.to_thread(sent)


@contextlib.asynccontextmanager
async def raw(server: SMTPServer) -> AsyncIterator[tuple[asyncio.StreamReader, Any]]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        assert (await reader.readline())[:4] == b"220 "
        yield reader, writer
    finally:
        writer.close()


def test_mail_comes_as_it_was_sent_in_order_until_the_server_stops() -> None:
    async def body() -> None:
        async with SMTPServer(hostname="mx.test") as server:
            await send(server, "b@y.test", "C@Y.test", options=("BODY=8BITMIME",))
            await send(server, content=b"Subject: 2\r\n\r\n")
            mail = await anext(server)
            assert mail.content == CONTENT
            assert (mail.sender, mail.recipients) == ("a@x.test", ("b@y.test", "C@Y.test"))
            assert mail.parameters["BODY"] == "8BITMIME"
            assert mail.recipient_parameters == ({}, {})
            assert (mail.helo, mail.peer[0], mail.tls, mail.user) == (
                "c.test",
                "127.0.0.1",
                None,
                None,
            )
            assert mail.message().get_content() == ".dot\nUPPER lower\n"
        assert [mail.message()["Subject"] async for mail in server] == ["2"]

    run(body)


def test_several_mails_of_one_connection_and_parameters_of_recipients() -> None:
    async def body() -> None:
        async with SMTPServer() as server, raw(server) as (reader, writer):
            for number in range(3):
                writer.write(
                    b"EHLO c\r\nMAIL FROM:<> RET=HDRS\r\n"
                    b"RCPT TO:<%d@y.test> NOTIFY=NEVER\r\nDATA\r\nx\r\n.\r\n" % number
                )
            mails = [await anext(server) for _ in range(3)]
            assert [mail.recipients for mail in mails] == [
                (f"{number}@y.test",) for number in range(3)
            ]
            assert mails[0].sender == ""
            assert mails[0].parameters == {"RET": "HDRS"}
            assert mails[0].recipient_parameters == ({"NOTIFY": "NEVER"},)
            assert reader

    run(body)


def test_what_is_offered() -> None:
    async def body() -> None:
        async with SMTPServer(hostname="mx.test", max_size=1000, max_recipients=7) as server:

            def features() -> dict[str, str]:
                with smtplib.SMTP(server.host, server.port, timeout=20) as client:
                    client.ehlo()
                    return client.esmtp_features

            assert await asyncio.to_thread(features) == {
                "pipelining": "",
                "8bitmime": "",
                "smtputf8": "",
                "chunking": "",
                "enhancedstatuscodes": "",
                "dsn": "",
                "size": "1000",
                "limits": "RCPTMAX=7",
            }
            assert await send(server, content=b"x" * 2000) == 552

    run(body)


# --- hooks --------------------------------------------------------------------------------------


class Picky(SMTPServer):
    """Answers what a test says, by stage, and remembers what it was asked."""

    def __init__(self, say: dict[str, Any], *, slowly: bool) -> None:
        super().__init__()
        self.say = say
        self.slowly = slowly
        self.asked: list[tuple[Any, ...]] = []

    def _say(self, stage: str, *facts: Any) -> Any:
        self.asked.append((stage, *facts))
        said = self.say.get(stage)

        def saying() -> Any:
            if isinstance(said, Exception):
                raise said
            return said

        async def later() -> Any:
            await asyncio.sleep(0)
            return saying()

        return later() if self.slowly else saying()

    def on_connect(self, client: Client) -> Any:
        return self._say("connect", client)

    def on_hello(self, client: Client, name: str) -> Any:
        return self._say("hello", client, name)

    def on_sender(self, client: Client, sender: str, parameters: Any) -> Any:
        return self._say("sender", client, sender, parameters)

    def on_recipient(self, client: Client, recipient: str, parameters: Any) -> Any:
        return self._say("recipient", client, recipient, parameters)

    def on_data(self, client: Client) -> Any:
        return self._say("data", client)

    def on_mail(self, mail: Mail) -> Any:
        return self._say("mail", mail)


STAGES = ["connect", "hello", "sender", "recipient", "data", "mail"]
LINES = [
    None,
    b"EHLO c\r\n",
    b"MAIL FROM:<a@x.test>\r\n",
    b"RCPT TO:<b@y.test>\r\n",
    b"DATA\r\n",
    b"x\r\n.\r\n",
]


async def walk(server: SMTPServer) -> list[bytes]:
    """The last line of each reply, stage by stage, until one is none that leads on."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    replies: list[bytes] = []
    try:
        for line in LINES:
            if line is not None:
                writer.write(line)
            reply = await reader.readline()
            while reply[3:4] == b"-":
                reply = await reader.readline()
            replies.append(reply)
            if reply[:1] not in b"23":
                break
    finally:
        writer.close()
    return replies


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (Refuse(554, "not you", "5.7.1"), b"554 5.7.1 not you\r\n"),
        (Reply(554, "5.7.1", ("not you",)), b"554 5.7.1 not you\r\n"),
        (LookupError("broken"), b"451 4.3.0 local error, try again later\r\n"),
    ],
    ids=["raises", "returns", "breaks"],
)
def test_a_hook_at_every_stage_may_refuse(
    stage: str, slowly: bool, said: Any, heard: bytes
) -> None:
    async def body() -> None:
        async with Picky({stage: said}, slowly=slowly) as server:
            replies = await walk(server)
            assert len(replies) == STAGES.index(stage) + 1
            if stage in ("connect", "hello"):
                code = b"421" if heard[:3] == b"451" and stage == "connect" else heard[:3]
                assert replies[-1][:3] == code
            else:
                assert replies[-1] == heard
            del server.say[stage]
            assert (await walk(server))[-1] == b"250 2.0.0 accepted\r\n"

    run(body)


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "said", [False, True, 250, "550 no", (550, "no"), (_ for _ in ()), "a 2xx or 3xx too few"]
)
def test_what_is_no_answer_is_never_taken_for_a_yes(stage: str, slowly: bool, said: Any) -> None:
    if said == "a 2xx or 3xx too few":
        said = Reply(250 if stage == "data" else 354, None, ("go on",))

    async def body() -> None:
        async with Picky({stage: said}, slowly=slowly) as server:
            replies = await walk(server)
            assert len(replies) == STAGES.index(stage) + 1
            assert replies[-1][:4] == (b"421 " if stage == "connect" else b"451 ")
        assert [mail async for mail in server] == []

    run(body)


@pytest.mark.parametrize("slowly", [False, True])
def test_hooks_are_asked_once_each_with_what_is_known(slowly: bool) -> None:
    async def body() -> None:
        words = {"mail": Reply(250, "2.0.0", ("kept as 7",))}
        async with Picky(words, slowly=slowly) as server:
            assert (await walk(server))[-1] == b"250 2.0.0 kept as 7\r\n"
        assert [stage for stage, *_ in server.asked] == STAGES
        asked = {stage: facts for stage, *facts in server.asked}
        assert asked["connect"][0].helo == ""
        assert asked["sender"][0].helo == "c"
        assert asked["sender"][1:] == ["a@x.test", {}]
        assert asked["recipient"][0].sender == "a@x.test"
        assert asked["data"][0].recipients == ("b@y.test",)
        assert asked["mail"][0].content == b"x\r\n"

    run(body)


def test_a_hook_that_keeps_the_mail_may_leave_it_to_the_iteration_too() -> None:
    class Both(SMTPServer):
        kept: list[str]

        async def on_mail(self, mail: Mail) -> Reply | None:
            self.kept = [mail.sender]
            said = super().on_mail(mail)
            assert said is None, "there is room"
            return Reply(250, "2.0.0", ("twice",))

    async def body() -> None:
        async with Both() as server:
            assert await send(server) == {}
            assert (await anext(server)).sender == "a@x.test"
            assert server.kept == ["a@x.test"]

    run(body)


def test_refuse_refuses_and_nothing_else() -> None:
    for code, text, enhanced in [(250, "ok", None), (550, "a\r\nb", None), (550, "no", "4.1.1")]:
        with pytest.raises(ValueError, match=r".+"):
            Refuse(code, text, enhanced)
    assert str(Refuse(550, "no")) == "550 no"


# --- bounds -------------------------------------------------------------------------------------


def test_a_full_queue_is_452_after_a_while_and_accepts_again() -> None:
    async def body() -> None:
        async with SMTPServer(max_waiting=2, patience=0.05) as server:
            assert [await send(server) for _ in range(3)] == [{}, {}, 452]
            await anext(server)
            assert await send(server) == {}

    run(body)


def test_who_waits_for_room_has_it_as_soon_as_a_mail_is_taken() -> None:
    async def body() -> None:
        async with SMTPServer(max_waiting=1, patience=60) as server:
            await send(server, "1@y.test")
            waiting = asyncio.ensure_future(send(server, "2@y.test"))
            await eventually_async(lambda: server.hooks, what="who waits")
            assert (await anext(server)).recipients == ("1@y.test",)
            assert await waiting == {}
            assert (await anext(server)).recipients == ("2@y.test",)

    run(body)


def test_content_beyond_the_memory_is_452_and_its_room_comes_back() -> None:
    async def body() -> None:
        async with SMTPServer(max_size=10_000, max_memory=10_000) as server:
            async with raw(server) as (_, writer):
                writer.write(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
                writer.write(b"x" * 5_000 + b"\r\n")
                await eventually_async(lambda: server._memory > 4_000, what="the content")
                assert await send(server, content=b"y" * 6_000) == 452
                assert await send(server, content=b"y" * 2_000) == {}
            await eventually_async(lambda: server._memory == 0, what="the room")
            assert await send(server, content=b"y" * 6_000) == {}

    run(body)


def test_content_that_was_refused_takes_no_room_while_it_still_comes() -> None:
    async def body() -> None:
        async with (
            SMTPServer(max_size=10_000, max_memory=10_000) as server,
            raw(server) as (_, first),
            raw(server) as (reader, second),
        ):
            begin = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n"
            first.write(begin + b"x" * 9_000 + b"\r\n")
            await eventually_async(lambda: server._memory >= 9_000, what="the content")
            second.write(begin + b"x" * 2_000 + b"\r\n")
            await eventually_async(
                lambda: any(one._spoiled for one in server.sessions.open),  # type: ignore[attr-defined]
                what="content that does not fit",
            )
            first.transport.abort()
            await eventually_async(lambda: server._memory == 0, what="the room")
            second.write(b".\r\n")
            assert b"\r\n452 4.3.1" in await reader.readuntil(b"452 4.3.1")

    run(body)


def test_more_connections_than_allowed_are_told_so() -> None:
    async def body() -> None:
        async with SMTPServer(max_connections=1) as server, raw(server):
            reader, writer = await asyncio.open_connection(server.host, server.port)
            assert (await reader.read())[:4] == b"421 "
            writer.close()

    run(body)


def test_a_silent_client_is_cut() -> None:
    async def body() -> None:
        async with SMTPServer(timeout=0.2) as server, raw(server) as (reader, _):
            assert (await reader.read())[:4] == b"421 "

    run(body)


# --- its life -----------------------------------------------------------------------------------


def test_start_and_stop_and_start() -> None:
    async def body() -> None:
        server = SMTPServer()
        with pytest.raises(StopAsyncIteration):
            await anext(server)
        await server.stop()
        await server.start()
        with pytest.raises(AlreadyStarted, match="stop"):
            await server.start()
        await send(server, "1@y.test")
        await server.stop()
        await server.stop()
        with pytest.raises(ConnectionRefusedError):
            await send(server)
        await server.start()
        await send(server, "2@y.test")
        await server.stop()
        assert [mail.recipients[0] async for mail in server] == ["1@y.test", "2@y.test"]

    run(body)


def test_an_iteration_that_waits_ends_with_the_server() -> None:
    async def body() -> None:
        async with SMTPServer() as server:

            async def count() -> int:
                return len([mail async for mail in server])

            counts = [asyncio.create_task(count()) for _ in range(3)]
            for _ in range(5):
                await send(server)
        assert sum(await asyncio.gather(*counts)) == 5

    run(body)


def test_stopping_tells_the_idle_at_once_and_lets_a_content_end() -> None:
    async def body() -> None:
        async with SMTPServer() as server, raw(server) as idle, raw(server) as busy:
            busy[1].write(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
            while (await busy[0].readline())[:4] != b"354 ":
                pass
            stopping = asyncio.create_task(server.stop(timeout=60))
            assert (await idle[0].read())[:4] == b"421 "
            busy[1].write(b"x\r\n.\r\n")
            assert [line[:4] for line in (await busy[0].read()).splitlines()] == [b"250 ", b"421 "]
            await stopping
            assert (await anext(server)).content == b"x\r\n"

    run(body)


def test_stopping_cuts_who_takes_too_long_and_takes_nothing_of_it() -> None:
    class Slow(SMTPServer):
        async def on_recipient(self, client: Client, recipient: str, parameters: Any) -> None:
            await asyncio.Event().wait()

    async def body() -> None:
        async with Slow() as server, raw(server) as busy, raw(server) as hooked:
            hooked[1].write(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\n")
            await eventually_async(lambda: server.hooks, what="the hook")
            busy[1].write(b"EHLO c\r\n")
            await server.stop(timeout=0.05)
            assert (await busy[0].read()).splitlines()[-1][:4] == b"421 "
            assert (await hooked[0].read()).splitlines()[-1][:4] == b"421 "
            assert not server.hooks
            assert not server.sessions.open
        assert [mail async for mail in server] == []

    run(body)


def test_stopping_does_not_wait_for_a_hook_that_goes_on_when_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mailstrom.server.server._CANCELLED_S", 0.05)
    enough = asyncio.Event()

    class Stubborn(SMTPServer):
        async def on_recipient(self, client: Client, recipient: str, parameters: Any) -> None:
            while not enough.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await enough.wait()

    async def body() -> None:
        async with Stubborn() as server, raw(server) as (reader, writer):
            writer.write(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\n")
            await eventually_async(lambda: server.hooks, what="the hook")
            await server.stop(timeout=0.05)
            assert (await reader.read()).splitlines()[-1][:4] == b"421 "
            assert len(server.hooks) == 1
            assert "1 of the hooks did not end 0.05 s after" in caplog.text
            enough.set()
            await eventually_async(lambda: not server.hooks, what="the end of the hook")

    run(body)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_hook_that_never_ends_is_cancelled_and_its_client_told(
    stubborn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = []

    class Endless(SMTPServer):
        async def on_recipient(self, client: Client, recipient: str, parameters: Any) -> None:
            if recipient.startswith("b@"):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(recipient)
                    if not stubborn:
                        raise

        async def on_mail(self, mail: Mail) -> Any:
            await asyncio.Event().wait()

    async def body() -> None:
        async with (
            Endless(hook_timeout=0.05, patience=0.05) as server,
            raw(server) as (reader, writer),
        ):
            writer.write(
                b"HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<c@y.test>\r\n"
                b"DATA\r\nx\r\n.\r\nNOOP\r\n"
            )
            said = [(await reader.readline())[:3] for _ in range(7)]
            assert said == [b"250", b"250", b"451", b"250", b"354", b"451", b"250"]
            assert cancelled == ["b@y.test"]
            await eventually_async(lambda: not server.hooks, what="the end of the hooks")

    run(body)
    assert "the hook took more than 0.05 s" in caplog.text


def test_a_hook_that_never_ends_at_the_greeting_is_421() -> None:
    class Endless(SMTPServer):
        async def on_connect(self, client: Client) -> None:
            await asyncio.Event().wait()

    async def body() -> None:
        async with Endless(hook_timeout=0.05) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            assert (await reader.read())[:4] == b"421 "
            writer.close()

    run(body)


def test_the_wait_for_room_is_no_hook_that_takes_too_long() -> None:
    async def body() -> None:
        async with SMTPServer(max_waiting=1, patience=1.0, hook_timeout=0.9) as server:
            await send(server)
            async with raw(server) as (reader, writer):
                writer.write(b"HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nx\r\n.\r\n")
                said = [(await reader.readline())[:3] for _ in range(5)]
                assert said == [b"250", b"250", b"250", b"354", b"452"]

    run(body)


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    async def body() -> None:
        async with SMTPServer() as server:
            with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{server.port}: address already"):
                await SMTPServer(port=server.port).start()
        with pytest.raises(CannotListen, match=r"no\.such\.host\.invalid:2525"):
            await SMTPServer("no.such.host.invalid", 2525).start()

    run(body)


# --- TLS and AUTH -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert("127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return chain, key


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("implicit", [False, True])
def test_tls_and_logins(files: tuple[Path, Path], trusting: ssl.SSLContext, implicit: bool) -> None:
    async def body() -> None:
        async with SMTPServer(tls=files, implicit_tls=implicit, auth={"u": "secret"}) as server:

            def sent() -> tuple[int, int, int]:
                kind: Any = smtplib.SMTP_SSL if implicit else smtplib.SMTP
                more = {"context": trusting} if implicit else {}
                with kind(server.host, server.port, timeout=20, **more) as client:
                    if not implicit:
                        client.ehlo()
                        assert "auth" not in client.esmtp_features
                        client.starttls(context=trusting)
                    client.ehlo()
                    before = client.mail("a@x.test")[0]
                    try:
                        client.login("u", "wrong")
                        wrong = 0
                    except smtplib.SMTPAuthenticationError as error:
                        wrong = error.smtp_code
                    right = client.login("u", "secret")[0]
                    client.sendmail("a@x.test", ["b@y.test"], CONTENT)
                return before, wrong, right

            assert await asyncio.to_thread(sent) == (530, 535, 235)
            mail = await anext(server)
            assert (mail.tls, mail.user) == ("TLSv1.3", "u")

    run(body)


def test_logins_by_a_hook() -> None:
    class Asking(SMTPServer):
        async def on_login(self, client: Client, credentials: Credentials) -> bool:
            return credentials.user == credentials.password

    async def body() -> None:
        async with Asking(auth={}, auth_in_clear=True) as server:

            def login(user: str, password: str) -> int:
                with smtplib.SMTP(server.host, server.port, timeout=20) as client:
                    try:
                        return client.login(user, password)[0]
                    except smtplib.SMTPAuthenticationError as error:
                        return error.smtp_code

            assert await asyncio.to_thread(login, "same", "same") == 235
            assert await asyncio.to_thread(login, "same", "other") == 535

    run(body)


def test_what_cannot_work_is_said_before_it_starts(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    chain, key = files
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().issue_cert("x.test").private_key_pem.bytes())
    for pair in [(chain, other), (chain, tmp_path / "none.pem"), (key, key)]:
        with pytest.raises(WrongCertificate, match="cannot be used"):
            SMTPServer(tls=pair)
    with pytest.raises(ValueError, match="needs a certificate"):
        SMTPServer(implicit_tls=True)
    with pytest.raises(ValueError, match="shows every password"):
        SMTPServer(auth={"u": "secret"})
    for wrong in ({"port": 65536}, {"port": -1}, {"max_size": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SMTPServer(**wrong)
    for name in ("two words", "mx.test\r\n250 x", "m\u00fc.test"):
        with pytest.raises(ValueError, match="no host name"):
            SMTPServer(hostname=name)
