"""STARTTLS, implicit TLS and AUTH over real sockets, with certificates made at run time.

Past 400 lines: one peer that speaks TLS, and the tables of what it may do to us.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from mailstrom.smtp.client import Fault
from mailstrom.types import Stage
from mailstrom_workers.credentials import KEPT_BACK
from mailstrom_workers.wire import SessionPolicy, Target
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

OFFER = "250-mx.example.org\r\n250-STARTTLS\r\n250 SIZE 77"
INSIDE = "250-mx.example.org\r\n250-PIPELINING\r\n250 AUTH LOGIN PLAIN CRAM-MD5 XOAUTH2"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mx.example.org").configure_cert(context)
    return context


class TlsPeer(Peer):
    """Speaks STARTTLS; ``inside`` replaces the EHLO reply once encrypted."""

    def __init__(self, context: ssl.SSLContext, **replies: str) -> None:
        super().__init__(**({"EHLO": OFFER, "STARTTLS": "220 go"} | replies))
        self.context = context
        self.inside = INSIDE
        self.injected = b""
        self.encrypted = False
        self.credentials: list[bytes] = []
        self.auth_reply = "235 2.7.0 welcome"
        self.challenges = {"LOGIN": [b"Username:", b"Password:"], "CRAM-MD5": [b"<1@x>"]}

    async def turn(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        asked = self.commands[-1:] == ["STARTTLS"] and not self.encrypted
        if asked and self.replies["STARTTLS"].startswith("220"):
            with contextlib.suppress(ssl.SSLError):
                await writer.start_tls(self.context)
                self.encrypted = True
            if not self.encrypted:
                return False
            self.replies["EHLO"] = self.inside
        return await super().turn(reader, writer)

    async def answer(self, verb: str, writer: asyncio.StreamWriter) -> bool:
        if verb == "STARTTLS" and self.injected:
            writer.write(self.replies[verb].encode() + b"\r\n" + self.injected)
            await writer.drain()
            return True
        if verb == "AUTH":
            words = self.commands[-1].split()
            return await self.authenticate(words[1], words[2:], writer)
        return await super().answer(verb, writer)

    async def authenticate(
        self, mechanism: str, initial: list[str], writer: asyncio.StreamWriter
    ) -> bool:
        reader: asyncio.StreamReader = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
        self.credentials += [base64.b64decode(word) for word in initial]
        for challenge in self.challenges.get(mechanism, []):
            writer.write(b"334 " + base64.b64encode(challenge) + b"\r\n")
            await writer.drain()
            self.credentials.append(base64.b64decode(await reader.readline()))
        writer.write(self.auth_reply.encode() + b"\r\n")
        await writer.drain()
        return True


def wanting(tls: str, **more: object) -> SessionPolicy:
    return replace(POLICY, tls=tls, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", ["opportunistic", "required"])
@pytest.mark.parametrize("verify", [True, False])
def test_starttls_carries_transactions(
    tls: str, verify: bool, server_tls: ssl.SSLContext, ca_file: str
) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls)
        async with serving(peer) as target:
            policy = wanting(tls, verify=verify, ca_file=ca_file)
            session = await opened(target, policy)
            facts = session.facts
            assert facts.tls_wanted == (f"{tls}+verify" if verify else tls)
            assert facts.tls_reached == ("verified" if verify else "encrypted")
            assert facts.tls_verified == verify
            assert facts.tls_version == "TLSv1.3"
            assert facts.tls_cipher
            assert "mx.example.org" in (facts.tls_peer or "")
            # only what was said inside counts
            assert (session.capabilities.pipelining, session.capabilities.size) == (True, None)
            for _ in range(2):
                assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            await session.quit()
        assert peer.contents == [ON_WIRE] * 2
        assert peer.commands[:3] == [
            "EHLO client.example.net",
            "STARTTLS",
            "EHLO client.example.net",
        ]

    run(body)


def test_implicit_tls(server_tls: ssl.SSLContext, ca_file: str) -> None:
    async def body() -> None:
        peer = Peer()
        async with serving(peer, tls=server_tls) as target:
            session = await opened(target, wanting("implicit", verify=True, ca_file=ca_file))
            assert session.facts.tls_reached == "verified"
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            await session.quit()
        assert peer.contents == [ON_WIRE]

    run(body)


def test_a_large_body_over_tls(server_tls: ssl.SSLContext) -> None:
    block = (b"x" * 62 + b"\r\n") * 1000

    async def content() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield block

    async def body() -> None:
        peer = TlsPeer(server_tls)
        async with serving(peer) as target:
            session = await opened(target, wanting("required"))
            assert code(await transact(session, ENVELOPE, content()), "dot") == 250
            await session.quit()
        assert peer.contents == [block * 128]

    run(body)


@pytest.mark.parametrize("offered", [True, False])
def test_opportunistic_goes_on_in_clear_and_says_so(
    offered: bool, server_tls: ssl.SSLContext
) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls, STARTTLS="454 4.7.0 no certificate")
        if not offered:
            peer.replies["EHLO"] = "250 mx.example.org"
        async with serving(peer) as target:
            session = await opened(target, wanting("opportunistic"))
            assert (session.facts.tls_wanted, session.facts.tls_reached) == (
                "opportunistic",
                "none",
            )
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            await session.quit()
        assert ("STARTTLS" in peer.commands) == offered

    run(body)


@pytest.mark.parametrize(
    ("reply", "tls", "cause", "reply_code"),
    [
        ("454 4.7.0 no", "required", "reply", 454),
        ("502 what", "required", "reply", 502),
        ("421 4.3.2 down|close", "opportunistic", "reply", 421),
        ("close", "opportunistic", "closed", None),
        ("close", "required", "closed", None),
        ("junk", "opportunistic", "garbage", None),
        ("250 ok", "required", "garbage", 250),
        ("250 ok", "opportunistic", "garbage", 250),
        ("354 go on", "opportunistic", "garbage", 354),
        ("hang", "opportunistic", "timeout", None),
    ],
)
def test_required_starttls_is_never_relaxed(
    reply: str, tls: str, cause: str, reply_code: int | None, server_tls: ssl.SSLContext
) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls, STARTTLS=reply)
        async with serving(peer) as target:
            policy = wanting(tls, timeouts=quick(starttls=0.2).timeouts)
            failure = await refused(target, policy if reply == "hang" else wanting(tls))
            if reply == "hang":
                await peer.hanging.wait()  # patience may end before the server has read it
            peer.hang.set()
        assert (failure.stage, failure.cause) == (Stage.STARTTLS, cause)
        assert (failure.reply.code if failure.reply else None) == reply_code
        assert failure.facts.tls_reached == "none"
        assert peer.commands[-1] == "STARTTLS"

    run(body)


def test_a_second_ehlo_reply_that_comes_late_does_not_refuse_tls() -> None:
    """It stands where the answer to STARTTLS belongs, whose 220 is on its way."""

    async def body() -> None:
        peer = Peer(EHLO=OFFER, STARTTLS=f"{OFFER}\r\n220 go")
        async with serving(peer) as target:
            failure = await refused(target, wanting("opportunistic"))
        assert (failure.stage, failure.cause) == (Stage.STARTTLS, "garbage")
        assert not any(command.startswith("MAIL") for command in peer.commands)

    run(body)


def test_required_starttls_that_is_not_offered() -> None:
    async def body() -> None:
        peer = Peer()
        async with serving(peer) as target:
            failure = await refused(target, wanting("required"))
        assert (failure.stage, failure.cause, failure.reply) == (Stage.STARTTLS, "tls", None)
        assert peer.commands == ["EHLO client.example.net"]

    run(body)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("wrong", ["name", "authority"])
def test_a_certificate_that_does_not_check(
    wrong: str, implicit: bool, server_tls: ssl.SSLContext, ca_file: str, tmp_path: Path
) -> None:
    async def body() -> None:
        trusted = ca_file
        if wrong == "authority":
            trusted = str(tmp_path / "other.pem")
            trustme.CA().cert_pem.write_to_path(trusted)
        serve = serving(Peer(), tls=server_tls) if implicit else serving(TlsPeer(server_tls))
        async with serve as target:
            if wrong == "name":
                target = replace(target, host="mx.example.com")
            tls = "implicit" if implicit else "opportunistic"
            failure = await refused(target, wanting(tls, verify=True, ca_file=trusted))
        assert (failure.stage, failure.cause, failure.reply) == (Stage.STARTTLS, "tls", None)
        assert "certificate verify failed" in failure.text
        assert failure.facts.tls_reached == "none"

    run(body)


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_the_authorities_is_not_waited_for(
    server_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    async def body() -> None:
        os.mkfifo(tmp_path / "ca.pem")
        async with serving(TlsPeer(server_tls)) as target:
            trusted = str(tmp_path / "ca.pem")
            failure = await refused(target, wanting("required", verify=True, ca_file=trusted))
        assert failure.cause == "local"
        assert "not a regular file" in failure.text

    run(body)


@pytest.mark.parametrize("how", ["close", "junk", "hang"])
@pytest.mark.parametrize("implicit", [True, False])
def test_a_handshake_that_fails_by_the_peer(how: str, implicit: bool) -> None:
    async def body() -> None:
        hang = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not implicit:
                for reply in ("220 hi", OFFER, "220 go"):
                    writer.write(reply.encode() + b"\r\n")
                    await writer.drain()
                    if reply != "220 go":
                        await reader.readline()
            await reader.read(100)
            if how == "junk":
                writer.write(b"this is no handshake\r\n" * 20)
                await writer.drain()
                await reader.read(-1)
            if how == "hang":
                await hang.wait()

        async with serving(script) as target:
            policy = replace(
                quick(**{"greeting" if implicit else "starttls": 0.3}) if how == "hang" else POLICY,
                tls="implicit" if implicit else "required",
            )
            failure = await refused(target, policy)
            hang.set()
        assert failure.stage is Stage.STARTTLS
        assert failure.cause == ("timeout" if how == "hang" else "tls")
        assert failure.reply is None

    run(body)


@pytest.mark.parametrize("injected", [b"250-evil\r\n250 AUTH PLAIN\r\n", b"250 ok", b"\r\n"])
def test_bytes_in_clear_behind_the_220_never_count(
    injected: bytes, server_tls: ssl.SSLContext
) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls)
        peer.injected = injected
        async with serving(peer) as target:
            session = await opened(target, wanting("required"))
            assert session.capabilities.raw.startswith("mx.example.org\nPIPELINING")
            end = await transact(session, ENVELOPE, CONTENT)
            assert code(end, "dot") == 250
            await session.quit()
        assert peer.contents == [ON_WIRE]

    run(body)


def test_an_unreadable_ca_file_is_this_machines_failure(
    server_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    async def body() -> None:
        async with serving(TlsPeer(server_tls)) as target:
            policy = wanting("required", verify=True, ca_file=str(tmp_path / "none.pem"))
            failure = await refused(target, policy)
        assert (failure.stage, failure.cause) == (Stage.STARTTLS, "local")
        assert "ca_file" in failure.text

    run(body)


@pytest.mark.parametrize("verify", [True, False])
def test_tls_that_was_reached_is_told_where_the_greeting_fails(
    verify: bool, server_tls: ssl.SSLContext, ca_file: str
) -> None:
    async def body() -> None:
        async with serving(Peer(greeting="close"), tls=server_tls) as target:
            failure = await refused(target, wanting("implicit", verify=verify, ca_file=ca_file))
        assert (failure.stage, failure.cause) == (Stage.GREETING, "closed")
        assert failure.facts.tls_reached == ("verified" if verify else "encrypted")
        assert failure.facts.tls_verified is verify

    run(body)


def test_an_old_protocol_is_refused(authority: trustme.CA) -> None:
    async def body() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("mx.example.org").configure_cert(context)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with serving(TlsPeer(context)) as target:
            failure = await refused(target, wanting("required", min_version="1.3"))
            assert (failure.stage, failure.cause) == (Stage.STARTTLS, "tls")
        async with serving(TlsPeer(context)) as target:
            session = await opened(target, wanting("required"))
            assert session.facts.tls_version == "TLSv1.2"
            session.abort()

    run(body)


def test_a_loss_inside_tls_after_the_dot_is_in_doubt(server_tls: ssl.SSLContext) -> None:
    async def body() -> None:
        async with serving(TlsPeer(server_tls, dot="close")) as target:
            session = await opened(target, wanting("required"))
            end = await transact(session, ENVELOPE, CONTENT)
            assert (end.stage, end.fault, end.dot_written) == (Stage.DOT, Fault.CLOSED, True)

    run(body)


# AUTH


class ByHand:
    """The server's side of TLS, record by record."""

    def __init__(
        self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
        self.came, self.made = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.came, self.made, server_side=True)
        self.heard = b""

    async def say(self, text: bytes = b"", raw: bytes = b"") -> None:
        """A record, and octets of no record, in one piece."""
        if text:
            self.tls.write(text)
        self.writer.write(self.made.read() + raw)
        await self.writer.drain()

    async def more(self) -> None:
        came = await self.reader.read(65536)
        if not came:
            raise ConnectionResetError
        self.came.write(came)

    async def shaken(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.say()
                await self.more()
            else:
                return await self.say()

    async def until(self, end: bytes) -> None:
        while not self.heard.endswith(end):
            try:
                self.heard += self.tls.read()
            except ssl.SSLWantReadError:
                await self.more()
        self.heard = b""


@pytest.mark.parametrize("behind", [b"451 not now\r\n", b"\x15\x03\x03\0\2\2\x50"])
def test_a_reply_that_came_whole_is_heard_before_a_bad_record(
    behind: bytes, server_tls: ssl.SSLContext
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = ByHand(server_tls, reader, writer)
        await line.shaken()
        await line.say(b"220 mx.example.org\r\n")
        await line.until(b"\r\n")
        await line.say(b"250-mx.example.org\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
        await line.until(b"DATA\r\n")
        await line.say(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
        await line.until(b"\r\n.\r\n")
        await line.say(b"250 2.0.0 taken\r\n", behind)
        await reader.read()

    async def body() -> None:
        async with serving(script) as target:
            session = await opened(target, wanting("implicit"))
            end = await transact(session, ENVELOPE, CONTENT)
            assert (code(end, "dot"), end.fault) == (250, None)
            assert (session.usable, session.end_cause, session.messages) == (False, "closed", 1)
            with pytest.raises(Lost):  # nothing is begun where nothing can be said
                await transact(session, ENVELOPE, CONTENT)

    run(body)


def test_a_bad_record_behind_the_last_reply_before_mail_opens_no_session(
    server_tls: ssl.SSLContext,
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = ByHand(server_tls, reader, writer)
        await line.shaken()
        await line.say(b"220 mx.example.org\r\n")
        await line.until(b"\r\n")
        await line.say(b"250 mx.example.org\r\n", b"451 not now\r\n")
        await reader.read()

    async def body() -> None:
        async with serving(script) as target:
            failure = await refused(target, wanting("implicit"))
            assert (failure.stage, failure.cause) == (Stage.EHLO, "closed")

    run(body)


def login(**more: object) -> SessionPolicy:
    return wanting("required", username="user", password="pässword", **more)


@pytest.mark.parametrize("mechanism", [None, "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
def test_each_mechanism_carries_the_credentials(
    mechanism: str | None, server_tls: ssl.SSLContext
) -> None:
    password = "pässword".encode()
    proof = hmac.new(password, b"<1@x>", "md5").hexdigest().encode()
    expected = {
        None: [b"\0user\0" + password],
        "PLAIN": [b"\0user\0" + password],
        "LOGIN": [b"user", password],
        "CRAM-MD5": [b"user " + proof],
        "XOAUTH2": [b"user=user\x01auth=Bearer " + password + b"\x01\x01"],
    }

    async def body() -> None:
        peer = TlsPeer(server_tls)
        async with serving(peer) as target:
            session = await opened(target, login(mechanism=mechanism))
            assert peer.credentials == expected[mechanism]
            assert code(await transact(session, ENVELOPE, CONTENT), "dot") == 250
            await session.quit()

    run(body)


@pytest.mark.parametrize(
    ("reply", "cause", "reply_code"),
    [
        ("535 5.7.8 wrong", "auth", 535),
        ("535-5.7.8 wrong\r\n535 5.7.8 see our pages", "auth", 535),
        ("534 5.7.9 too weak", "auth", 534),
        ("530 5.7.0 encrypt first", "auth", 530),
        ("538 5.7.11 encrypt first", "auth", 538),
        ("500 5.5.6 too long", "auth", 500),
        ("504 5.5.4 no such mechanism", "auth", 504),
        ("503 5.5.1 not now", "auth", 503),
        ("550 5.7.1 closed", "auth", 550),
        ("554 5.7.0 no", "auth", 554),
        ("454 4.7.0 later", "auth", 454),
        ("432 4.7.12 change the password first", "auth", 432),
        ("451 4.3.0 later", "auth", 451),
        ("250 ok", "garbage", 250),
        ("354 go on", "garbage", 354),
        ("421 4.3.2 down", "reply", 421),
        ("junk", "garbage", None),
    ],
)
def test_refused_credentials(
    reply: str, cause: str, reply_code: int | None, server_tls: ssl.SSLContext
) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls)
        peer.auth_reply = reply
        async with serving(peer) as target:
            failure = await refused(target, login())
        assert (failure.stage, failure.cause) == (Stage.AUTH, cause)
        assert (failure.reply.code if failure.reply else None) == reply_code
        assert "pässword" not in repr(failure)
        assert base64.b64encode("\0user\0pässword".encode()).decode() not in repr(failure)

    run(body)


@pytest.mark.parametrize("code", [535, 454, 334])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
def test_a_server_that_repeats_the_password_does_not_make_us_tell_it(
    mechanism: str, code: int, server_tls: ssl.SSLContext
) -> None:
    sent = (
        "pässword",
        "\0user\0pässword",
        "user=user\x01auth=Bearer pässword\x01\x01",
    )
    forms = ["pässword", *(base64.b64encode(one.encode()).decode() for one in sent)]

    async def body() -> None:
        peer = TlsPeer(server_tls)
        peer.auth_reply = f"{code} 5.7.8 you said {' and '.join(forms)}, which is wrong"
        async with serving(peer) as target:
            failure = await refused(target, login(mechanism=mechanism))
        told = f"{failure!r} {failure.text} {failure.reply and failure.reply.text}"
        assert failure.stage is Stage.AUTH
        for form in forms:
            assert form not in told

    run(body)


ECHOES = {
    "cut short": "you said AUTH PLAIN {plain:.16}...",
    "its end alone": "nobody uses ...{plain_end}",
    "over two lines": "5.7.8 you said {plain:.9}\r\n{{code}} 5.7.8 {plain_rest}",
    "a letter a line": "{spread}",
    "in other letters": "YOU SAID {plain_upper}",
    "in clear and cut": "no user with {password:.5}",
}


@pytest.mark.parametrize("password", ["s3cr3t-pässword", "k9!", "7"])
@pytest.mark.parametrize("echo", ECHOES)
def test_no_piece_of_a_password_that_a_server_repeats_is_told(
    echo: str, password: str, server_tls: ssl.SSLContext
) -> None:
    plain = base64.b64encode(f"\0user\0{password}".encode()).decode()
    reply = (
        ECHOES[echo]
        .format(
            plain=plain,
            plain_end=plain[-9:],
            plain_rest=plain[9:],
            plain_upper=plain.upper(),
            spread="\r\n{code}-".join(plain).removesuffix("{code}-"),
            password=password,
        )
        .replace("{code}", "535")
    )

    async def body() -> None:
        peer = TlsPeer(server_tls)
        lines = reply.split("\r\n")
        lines = [line.removeprefix("535-").removeprefix("535 ") for line in lines]
        head = [f"535-{line}" for line in lines[:-1]]
        peer.auth_reply = "\r\n".join([*head, f"535 5.7.8 {lines[-1]}"])
        async with serving(peer) as target:
            failure = await refused(target, replace(login(), password=password))
        assert failure.reply is not None
        assert (failure.reply.code, failure.reply.enhanced) == (535, "5.7.8")
        assert failure.reply.text == KEPT_BACK
        assert failure.text.endswith(KEPT_BACK)

    run(body)


def test_words_that_hold_no_piece_of_the_password_are_told(server_tls: ssl.SSLContext) -> None:
    words = "Username and key not accepted, user. See https://mail.example.org/?p=BadCredentials"

    async def body() -> None:
        for password in ("s3cr3t-pässword", "ya29." + "A0ArdaM" * 200):  # a token holds much
            peer = TlsPeer(server_tls)
            peer.auth_reply = f"535-5.7.8 {words}\r\n535 5.7.8 x1 - gsmtp"
            async with serving(peer) as target:
                failure = await refused(target, replace(login(), password=password))
            assert failure.reply is not None
            assert failure.reply.text == f"{words} x1 - gsmtp"

    run(body)


PROMPTS = {
    "as usual": ([b"Username:", b"Password:"], [b"user", b"secret"]),
    "other words": ([b"User Name\0", b"Password\0"], [b"user", b"secret"]),
    "telling": ([b"Login:", b"Password of user:"], [b"user", b"secret"]),
    "password first": ([b"password", b"username"], [b"secret", b"user"]),
    "another language": ([b"Benutzer:", b"Kennwort:"], [b"user", b"secret"]),
    "hardly a word": ([b":", b"Password:"], [b"user", b"secret"]),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_login_answers_what_is_asked(case: str, server_tls: ssl.SSLContext) -> None:
    prompts, answers = PROMPTS[case]

    async def body() -> None:
        peer = TlsPeer(server_tls)
        peer.challenges["LOGIN"] = prompts
        async with serving(peer) as target:
            session = await opened(target, replace(login(mechanism="LOGIN"), password="secret"))
            assert peer.commands[-1] == "AUTH LOGIN"  # nothing that a server could pass over
            assert peer.credentials == answers
            await session.quit()

    run(body)


@pytest.mark.parametrize(
    "line", ["334 Username:", "334 username", "334 VXNlcm5hbWU6\x20", "334-\r\n334 Username:"]
)
def test_login_takes_prompts_in_clear(line: str, server_tls: ssl.SSLContext) -> None:
    async def body() -> None:
        peer = AskingPeer(server_tls, [line, "334 Password:", "235 welcome"])
        async with serving(peer) as target:
            (await opened(target, replace(login(mechanism="LOGIN"), password="secret"))).abort()
        assert peer.said == ["dXNlcg==", "c2VjcmV0"]

    run(body)


STRANGE = {
    "twice the same": (["334 VXNlcm5hbWU6", "334 VXNlcm5hbWU6"], ["dXNlcg=="]),
    "a third": (
        ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "334 UGFzc3dvcmQ6"], ["dXNlcg==", "c2VjcmV0"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("then", ["501 cancelled", "close"])
@pytest.mark.parametrize("case", STRANGE)
def test_login_is_cancelled_where_a_prompt_is_not_understood(
    case: str, then: str, server_tls: ssl.SSLContext
) -> None:
    asked, answered = STRANGE[case]

    async def body() -> None:
        peer = AskingPeer(server_tls, [*asked, then])
        async with serving(peer) as target:
            policy = replace(login(mechanism="LOGIN"), password="secret")
            failure = await refused(target, policy)
        assert peer.said == [*answered, "*"]
        assert (failure.stage, failure.cause) == (Stage.AUTH, "garbage")
        assert "LOGIN asks" in failure.text
        assert "c2VjcmV0" not in failure.text

    run(body)


class AskingPeer(TlsPeer):
    """Answers AUTH and each line behind it with the next of ``lines``."""

    def __init__(self, context: ssl.SSLContext, lines: list[str]) -> None:
        super().__init__(context)
        self.lines = lines
        self.said: list[str] = []

    async def authenticate(
        self, mechanism: str, initial: list[str], writer: asyncio.StreamWriter
    ) -> bool:
        reader: asyncio.StreamReader = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
        for line in self.lines:
            if line == "close":
                return False
            writer.write(f"{line}\r\n".encode())
            await writer.drain()
            if line.startswith("334"):
                self.said.append((await reader.readline()).decode().strip())
        return True


def test_a_token_refused_by_a_challenge_is_told_by_the_reply_behind_it(
    server_tls: ssl.SSLContext,
) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls)
        peer.challenges["XOAUTH2"] = [b'{"status":"401","schemes":"Bearer"}']
        peer.auth_reply = "535 5.7.8 expired"
        async with serving(peer) as target:
            failure = await refused(target, login(mechanism="XOAUTH2"))
        assert peer.credentials[1:] == [b""]  # the empty line, and not the token again
        assert (failure.stage, failure.cause) == (Stage.AUTH, "auth")
        assert failure.reply is not None
        assert (failure.reply.code, failure.reply.text) == (535, "expired")

    run(body)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("XOAUTH2 CRAM-MD5 LOGIN PLAIN", "PLAIN"),
        ("XOAUTH2 CRAM-MD5 LOGIN", "LOGIN"),
        ("XOAUTH2 CRAM-MD5 GSSAPI", "CRAM-MD5"),
        ("XOAUTH2", None),  # what it wants is no password
    ],
)
def test_the_best_mechanism_is_chosen_under_tls(
    offered: str, chosen: str | None, server_tls: ssl.SSLContext
) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls)
        peer.inside = f"250-mx.example.org\r\n250 AUTH {offered}"
        async with serving(peer) as target:
            if chosen is None:
                failure = await refused(target, login())
                assert (failure.cause, "XOAUTH2" in failure.text) == ("auth", True)
            else:
                (await opened(target, login())).abort()
        tried = [command.split()[1] for command in peer.commands if command.startswith("AUTH")]
        assert tried == ([chosen] if chosen else [])

    run(body)


def test_a_mechanism_that_is_not_offered(server_tls: ssl.SSLContext) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls)
        peer.inside = "250-mx.example.org\r\n250 AUTH GSSAPI"
        async with serving(peer) as target:
            failure = await refused(target, login())
        assert (failure.stage, failure.cause, failure.reply) == (Stage.AUTH, "auth", None)
        assert "GSSAPI" in failure.text
        assert not any(command.startswith("AUTH") for command in peer.commands)

    run(body)


@pytest.mark.parametrize("allowed", [True, False])
def test_credentials_in_clear_only_where_allowed(allowed: bool, server_tls: ssl.SSLContext) -> None:
    async def body() -> None:
        peer = TlsPeer(server_tls, EHLO=INSIDE)
        policy = replace(login(), tls="none", plaintext_auth=allowed)

        async def check(target: Target) -> None:
            if allowed:
                session = await opened(target, policy)
                session.abort()
                assert peer.commands[-1] == "AUTH CRAM-MD5"  # the password itself stays home
            else:
                failure = await refused(target, policy)
                assert (failure.stage, failure.cause) == (Stage.AUTH, "auth")
                assert not any(command.startswith("AUTH") for command in peer.commands)

        async with serving(peer) as target:
            await check(target)

    run(body)
