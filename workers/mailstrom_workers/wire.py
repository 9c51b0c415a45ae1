"""From an address to an established SMTP session: connect, greeting, EHLO, STARTTLS, AUTH.

Contract: the only module that imports aiosmtplib. The socket is ours (family, source address,
connect timeout); aiosmtplib speaks on it up to the last EHLO or AUTH reply, then its transport is
handed up. It hears replies only as our own parser reads them, whole and one at a time. Each stage
has its own timeout. Every way to fail is a ``SessionFailure`` value: one
table turns aiosmtplib's, ssl's and the system's exceptions into causes, and no foreign exception
passes. TLS is never relaxed below the policy (RFC 3207, RFC 7672 section 1.3's "no silent
downgrade"); bytes that came in clear behind the 220 of STARTTLS do not survive the handshake
(RFC 3207 section 4.2; aiosmtplib >= 5.1.2 clears its buffer, tested here).

Must not know: transactions, messages, the database, what a failure means for a recipient.

Longer than a file should be: whatever touches aiosmtplib stands here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import cast

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import BadReply, Reply, ReplyParser, visible
from mailstrom.types import Stage
from mailstrom_workers.credentials import discreet, prompt
from mailstrom_workers.endpoint import Cause, SessionFacts, SessionFailure, SessionPolicy, Target
from mailstrom_workers.tls import client_context, peer_names, spoiled

__all__ = [
    "Cause",
    "Established",
    "SessionFacts",
    "SessionFailure",
    "SessionPolicy",
    "Target",
    "establish",
]

_CLOSING = 421
_AUTHENTICATED = 235
_CONTINUE = 334
_READY = 220
_MOST_OCTETS = 32000  # of a reply; aiosmtplib takes 32 KiB
_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_LEAST_UNSENT = 65536
"""Octets that the system holds for a server that does not read. Megabytes otherwise: content would
count as sent that is far from it, and its final dot be timed while the server still reads."""
_IP_BIND_ADDRESS_NO_PORT = 24  # Linux: the port is chosen at connect, so sources do not run out


@dataclass(frozen=True, slots=True, kw_only=True)
class Established:
    """A session ready for MAIL; the transport's protocol must be replaced at once."""

    transport: asyncio.Transport
    capabilities: Capabilities
    facts: SessionFacts


class _Refused(Exception):
    """A failure of our own finding, on its way to its value."""

    def __init__(self, cause: Cause, text: str, *, untrusted: bool = False) -> None:
        super().__init__(text)
        self.cause: Cause = cause
        self.untrusted = untrusted


_ERRNO_CAUSES: dict[int, Cause] = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNRESET: "closed",
    errno.ECONNABORTED: "closed",
    errno.EPIPE: "closed",
    errno.EADDRNOTAVAIL: "local",
    errno.EADDRINUSE: "local",
    errno.EMFILE: "local",
    errno.ENFILE: "local",
    errno.ENOBUFS: "local",
    errno.ENOMEM: "local",
    errno.ENOENT: "local",
}
"""EACCES and EPERM are not among them: a route or a filter of this machine forbids that address. A
domain chooses where it points, and must not make the worker pause for all others."""

# First match wins. SMTPResponseException and bare OSError carry more and are read apart.
_CLASS_CAUSES: tuple[tuple[type[BaseException], Cause], ...] = (
    (ssl.SSLError, "tls"),
    (aiosmtplib.SMTPTimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (ConnectionAbortedError, "timeout"),  # asyncio's word for a handshake that took too long
    (aiosmtplib.SMTPServerDisconnected, "closed"),
    (ConnectionResetError, "closed"),
    (BrokenPipeError, "closed"),
    (aiosmtplib.SMTPException, "garbage"),
)

# a host name that TLS cannot carry; a digest that this machine's OpenSSL forbids
_VALUE_CAUSES: dict[Stage, Cause] = {Stage.STARTTLS: "tls", Stage.AUTH: "local"}

_SENTENCES: dict[Cause, str] = {
    "closed": "the server closed the connection",
    "timeout": "the server did not answer in time",
    "refused": "connection refused",
}


def _reply(code: int, message: str) -> Reply | None:
    """aiosmtplib's reply as ours, or None if it is none (its -1, or a code out of range)."""
    if not 200 <= code <= 599:
        return None
    return Reply.of(code, _lines(message))


def _refuses(answer: aiosmtplib.SMTPResponseException) -> bool:
    """Whether it refuses what was asked, and no more: it neither closes nor answers out of step.

    A 250 where a 220 belongs may be the reply to something else, and the 220 be on its way.
    """
    reply = _reply(answer.code, answer.message)
    return reply is not None and reply.code >= 400 and reply.code != _CLOSING


def _lines(message: str) -> tuple[str, ...]:
    text = message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return tuple(text.split("\n"))


class _Hearing(SMTPProtocol):
    """aiosmtplib's protocol, told whole replies that our own parser read.

    Its own reader begins anew with each segment: 32 KiB of short lines, a segment each, keep it
    busy for ten seconds. It takes for a reply what is none, too: codes that change from line to
    line, any octet behind them. What comes before a command left is no reply to it, and is dropped.

    Attributes:
        bad: what was no reply to the last command.
    """

    def __init__(self, lost: Callable[[SMTPProtocol], None]) -> None:
        super().__init__(asyncio.get_running_loop(), lost)
        self.bad: BadReply | None = None
        self._parser = self._fresh()

    @staticmethod
    def _fresh() -> ReplyParser:
        return ReplyParser(max_bytes=_MOST_OCTETS)

    def write(self, data: bytes) -> None:
        """A command: the reply to it begins behind it."""
        self.bad, self._parser = None, self._fresh()
        super().write(data)

    def data_received(self, data: bytes) -> None:
        """Any octets; the first whole reply is handed on, more than one is dropped."""
        if self.transport is not None:
            spoiled(self.transport)  # the next read, or write, fails: nothing is said behind it
        try:
            replies = [] if self.bad else self._parser.feed(data)
        except BadReply as bad:
            self.bad, replies = bad, bad.replies
        whole = _rendered(replies[0]) if replies else b""
        if whole and len(whole) <= _MOST_OCTETS:
            super().data_received(whole)
        elif whole or self.bad:
            super().data_received(_NO_REPLY)


_NO_REPLY = b"no reply\r\n"


def _rendered(reply: Reply) -> bytes:
    *before, last = (line.encode() for line in reply.lines)
    code = str(reply.code).encode()
    return b"".join(
        (*(b"%b-%b\r\n" % (code, line) for line in before), b"%b %b\r\n" % (code, last))
    )


def _inmost(problem: Exception) -> Exception:
    """What happened, out of its wrappers."""
    inner = problem
    while isinstance(inner, aiosmtplib.SMTPConnectError) and isinstance(inner.__cause__, Exception):
        inner = inner.__cause__
    if isinstance(inner.__cause__, ssl.SSLError):
        # TLS 1.3: a server may refuse us once our side of the handshake is done
        inner = inner.__cause__
    return inner


class _Opening:
    """One attempt to open a session: holds the stage and the facts while it runs."""

    def __init__(self, target: Target, policy: SessionPolicy) -> None:
        self.target = target
        self.policy = policy
        self.stage = Stage.CONNECT
        self.socket: socket.socket | None = None
        self.smtp: aiosmtplib.SMTP | None = None
        self.hearing: _Hearing | None = None
        self.capabilities = Capabilities()
        self.facts = SessionFacts(
            host=target.host,
            address=target.address,
            port=target.port,
            tls_wanted=policy.tls_wanted,
        )

    async def run(self) -> Established:
        """All stages in order; raises foreign exceptions and ``_Refused``."""
        policy = self.policy
        connected = await self._connect()
        smtp = await self._greet(connected)
        await self._ehlo(smtp)
        if policy.tls in ("opportunistic", "required"):
            if self.capabilities.starttls:
                await self._starttls(smtp)
            elif policy.tls == "required":
                self.stage = Stage.STARTTLS
                raise _Refused(
                    "tls",
                    "the server does not offer STARTTLS, which is required",
                    untrusted=True,
                )
        if policy.username is not None:
            await self._auth(smtp, policy.username)
        transport = smtp.transport
        if transport is None or transport.is_closing() or spoiled(transport):
            raise aiosmtplib.SMTPServerDisconnected("closed behind the last reply")
        return Established(
            transport=cast(asyncio.Transport, transport),  # uvloop's are none by class
            capabilities=self.capabilities,
            facts=self.facts,
        )

    async def _connect(self) -> socket.socket:
        target, policy = self.target, self.policy
        six = ":" in target.address
        self.socket = connected = socket.socket(
            socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM
        )
        connected.setblocking(False)
        if _NOTSENT_LOWAT is not None:
            with contextlib.suppress(OSError):  # a system may know the name and not the option
                connected.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _LEAST_UNSENT)
        if policy.source is not None:
            try:
                if not six:
                    connected.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                connected.bind((policy.source, 0))
            except OSError as problem:
                raise _Refused(
                    "local", f"cannot use source address {policy.source}: {problem.strerror}"
                ) from problem
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(policy.timeouts.connect):
                await loop.sock_connect(connected, (target.address, target.port))
        except OSError as problem:
            if six and problem.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                # no IPv6 on this machine: the address is out of reach, others may not be
                raise _Refused("unreachable", f"no route: {problem.strerror}") from problem
            raise
        self.facts = replace(self.facts, source=str(connected.getsockname()[0]))
        return connected

    async def _greet(self, connected: socket.socket) -> aiosmtplib.SMTP:
        policy = self.policy
        implicit = policy.tls == "implicit"
        self.stage = Stage.STARTTLS if implicit else Stage.GREETING
        context = await self._tls_context() if implicit else None
        seconds = policy.timeouts.greeting
        smtp = aiosmtplib.SMTP(
            hostname=self.target.host,
            local_hostname=policy.ehlo_name,
            start_tls=False,
            timeout=seconds,
        )
        self.hearing = hearing = _Hearing(lambda _: smtp.close())
        self.smtp = smtp  # from here on the socket is the transport's
        async with asyncio.timeout(seconds):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: hearing,
                sock=connected,
                ssl=context,
                server_hostname=self.target.host if implicit else None,
                ssl_handshake_timeout=seconds if implicit else None,
            )
        smtp.protocol, smtp.transport = hearing, transport
        if implicit:
            self._learn_tls(smtp)
        self.stage = Stage.GREETING
        response = await hearing.read_response(timeout=seconds)
        if response.code != _READY:
            raise aiosmtplib.SMTPResponseException(response.code, response.message)
        return smtp

    async def _ehlo(self, smtp: aiosmtplib.SMTP) -> None:
        self.stage = Stage.EHLO
        seconds = self.policy.timeouts.ehlo
        try:
            lines = _lines((await smtp.ehlo(timeout=seconds)).message)
        except aiosmtplib.SMTPHeloError as refusal:
            # RFC 5321 section 3.2: a server that does not know EHLO may know HELO
            if refusal.code // 100 != 5 or not smtp.is_connected:
                raise
            try:
                lines = _lines((await smtp.helo(timeout=seconds)).message)[:1]
            except aiosmtplib.SMTPServerDisconnected:
                raise refusal from None
        self.capabilities = Capabilities.parse(lines)
        self.facts = replace(self.facts, ehlo=self.capabilities.raw)

    async def _starttls(self, smtp: aiosmtplib.SMTP) -> None:
        self.stage = Stage.STARTTLS
        try:
            await smtp.starttls(
                server_hostname=self.target.host,
                tls_context=await self._tls_context(),
                timeout=self.policy.timeouts.starttls,
            )
        except aiosmtplib.SMTPServerDisconnected as problem:
            if "upgrading" in str(problem):
                raise _Refused("tls", "the server closed during the TLS handshake") from problem
            raise
        except aiosmtplib.SMTPResponseException as refusal:
            if self.policy.tls == "required" or not _refuses(refusal):
                raise
            return  # opportunistic: in clear on the same connection; the facts say so
        except AttributeError:
            # aiosmtplib drops its protocol when the connection is lost behind the handshake
            if smtp.protocol is None:
                raise aiosmtplib.SMTPServerDisconnected("closed behind the handshake") from None
            raise
        self._learn_tls(smtp)
        await self._ehlo(smtp)

    async def _tls_context(self) -> ssl.SSLContext:
        policy = self.policy
        try:
            if not policy.verify:
                return client_context(False, None, policy.min_version)
            # reading the authorities takes tens of milliseconds: not on the loop
            return await asyncio.to_thread(client_context, True, policy.ca_file, policy.min_version)
        except (OSError, ValueError) as problem:
            raise _Refused(
                "local", f"cannot load the authorities of [tls] ca_file: {problem}"
            ) from problem

    def _learn_tls(self, smtp: aiosmtplib.SMTP) -> None:
        tls = smtp.get_transport_info("ssl_object")
        if not isinstance(tls, ssl.SSLObject | ssl.SSLSocket):
            raise _Refused("tls", "the transport is not encrypted after its handshake")
        cipher, verified = tls.cipher(), self.policy.verify
        self.facts = replace(
            self.facts,
            tls_reached="verified" if verified else "encrypted",
            tls_verified=verified,
            tls_version=tls.version(),
            tls_cipher=cipher[0] if cipher else None,
            tls_peer=peer_names(tls.getpeercert(binary_form=True)),
        )

    async def _auth(self, smtp: aiosmtplib.SMTP, username: str) -> None:
        self.stage = Stage.AUTH
        policy = self.policy
        encrypted = self.facts.tls_reached != "none"
        if not encrypted and not policy.plaintext_auth:
            raise _Refused("auth", "credentials are not sent without TLS; require TLS for relays")
        exchanges: dict[str, Callable[[str, str], Awaitable[aiosmtplib.SMTPResponse]]] = {
            "PLAIN": smtp.auth_plain,
            "LOGIN": self._login,
            "CRAM-MD5": smtp.auth_crammd5,
            "XOAUTH2": smtp.auth_xoauth2,
        }
        offered = self.capabilities.auth
        if policy.mechanism is not None:
            order = [policy.mechanism.upper()]
        else:  # the password itself is safe under TLS only
            order = ["PLAIN", "LOGIN", "CRAM-MD5"] if encrypted else ["CRAM-MD5", "PLAIN", "LOGIN"]
        chosen = next((name for name in order if name in offered and name in exchanges), None)
        if chosen is None:
            known = ", ".join(sorted(visible(name) for name in offered)) or "none"
            raise _Refused(
                "auth", f"the server offers none of {', '.join(order)} (it offers {known})"
            )
        async with asyncio.timeout(policy.timeouts.auth):
            await exchanges[chosen](username, policy.password or "")

    async def _login(self, username: str, password: str) -> aiosmtplib.SMTPResponse:
        """LOGIN as the server asks for it: one that ignores an initial response is not misled.

        What a prompt without known words asks for is told by its place: the name comes first.
        """
        assert self.smtp is not None
        answers = {"username": username, "password": password}
        response = await self.smtp.execute_command(b"AUTH", b"LOGIN")
        while response.code == _CONTINUE:
            asked: str | None = prompt(response.message) or next(iter(answers), None)
            if asked not in answers:
                with contextlib.suppress(aiosmtplib.SMTPException):
                    await self.smtp.execute_command(b"*")
                words = visible(self._told(response.code, response.message))[:200]
                raise _Refused("garbage", f"what LOGIN asks for is not understood: {words}")
            answer = base64.b64encode(answers.pop(asked).encode())
            response = await self.smtp.execute_command(answer)
        if response.code != _AUTHENTICATED:
            raise aiosmtplib.SMTPAuthenticationError(response.code, response.message)
        return response

    def failure(self, problem: Exception) -> SessionFailure:
        """The exception as a value. Raises it again if it is none of the known kinds (a bug)."""
        reply: Reply | None = None
        cause: Cause
        detail: str
        if isinstance(problem, _Refused):
            cause, detail = problem.cause, str(problem)
        elif isinstance(problem, aiosmtplib.SMTPResponseException):
            message = self._told(problem.code, problem.message)
            reply = _reply(problem.code, message)
            if reply is None or not (reply.transient or reply.permanent):
                bad = self.hearing.bad if self.hearing is not None else None
                if bad is None or reply is not None:
                    words = visible("; ".join(_lines(message)))[:200]
                    cause, detail = "garbage", f"not an answer to what was asked: {words}"
                else:
                    words = visible(self._told(0, bad.line.decode("utf-8", "backslashreplace")))
                    cause, detail = "garbage", f"not an SMTP reply ({bad.rule}): {words}"
            else:
                cause = "auth" if self.stage is Stage.AUTH and reply.code != _CLOSING else "reply"
                detail = str(reply)
        else:
            cause, detail = self._classify(problem)
        target = self.target
        return SessionFailure(
            stage=self.stage,
            cause=cause,
            reply=reply,
            text=f"{self.stage} at {target.host} [{target.address}]:{target.port}: {detail}",
            facts=self.facts,
            untrusted=self._untrusted(problem, reply),
        )

    def _untrusted(self, problem: Exception, reply: Reply | None) -> bool:
        """Whether the next try would find as little to trust."""
        if self.stage is not Stage.STARTTLS:
            return False
        if isinstance(problem, _Refused):
            return problem.untrusted
        if reply is not None:
            return reply.permanent
        return isinstance(_inmost(problem), ssl.SSLCertVerificationError)

    def _told(self, code: int, words: str) -> str:
        """What may be told of a server's words: all, but for those behind credentials."""
        if self.stage is not Stage.AUTH:
            return words
        return discreet(code, words, self.policy.username or "", self.policy.password or "")

    def _classify(self, problem: Exception) -> tuple[Cause, str]:
        inner = _inmost(problem)
        cause = next((c for kind, c in _CLASS_CAUSES if isinstance(inner, kind)), None)
        if cause is None and isinstance(inner, OSError):
            cause = _ERRNO_CAUSES.get(inner.errno or 0, "unreachable")
        if cause is None and isinstance(inner, ValueError):
            cause = _VALUE_CAUSES.get(self.stage)
        if cause is None:
            raise problem
        if self.stage is Stage.STARTTLS and self.policy.tls == "implicit" and cause == "closed":
            cause = "tls"
        return cause, _SENTENCES.get(cause) or visible(self._told(0, str(inner)))[:300]

    def close(self) -> None:
        """Drops the connection, whatever its state."""
        if self.smtp is not None:
            if isinstance(self.smtp.transport, asyncio.WriteTransport):
                self.smtp.transport.abort()
            self.smtp.close()
        if self.socket is not None and self.smtp is None:
            self.socket.close()


async def establish(
    target: Target, policy: SessionPolicy, patience: asyncio.Timeout | None = None
) -> Established | SessionFailure:
    """Opens a session up to the point where MAIL may be sent.

    Args:
        patience: over all stages; whoever holds it may end it while this waits, as a stage's own
            timeout does. None: the stages' own.

    Returns:
        The session, or the value that says why there is none. Nothing stays open then.

    Raises:
        asyncio.CancelledError: nothing stays open either.
    """
    opening = _Opening(target, policy)
    try:
        async with patience or asyncio.timeout(None):
            return await opening.run()
    except (_Refused, aiosmtplib.SMTPException, OSError, ValueError) as problem:
        opening.close()
        return opening.failure(problem)
    except BaseException:
        opening.close()
        raise
