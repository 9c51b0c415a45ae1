"""An SMTP server for programs that take mail: ``async with SMTPServer(...) as server``.

Contract. Mail that was answered 250 is in the server's queue, in this process's memory, until the
iteration takes it; where that is not enough, ``on_mail`` decides the reply. A full queue is 452
after a while. What a client may say and how long it may take is bounded from the start. Nothing is
passed on to anybody: this server is no relay.

Must not know: the spool, the engine.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Self

from mailstrom.errors import MailstromError
from mailstrom.server.mail import Client, Mail, Parameters
from mailstrom.server.reception import Reception, Verdict
from mailstrom.server.sessions import Limits, Sessions, log
from mailstrom.server.sockets import CannotListen, listen_on
from mailstrom.server.waiting import Waiting
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import Credentials

CertificateFiles = tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""Certificate chain and private key, both PEM."""

_FULL = Reply(452, "4.3.1", ("too many messages are waiting, try again later",))
_DRAINED = Reply(421, "4.3.2", ("the server has stopped, try again later",))
_ERROR_LIMIT = 100  # hooks refuse recipients of a list, too
_FAREWELL_S = 1.0  # for who is told that it is cut
_CANCELLED_S = 5.0  # for hooks that were cancelled to clean up behind them
_MECHANISMS = frozenset(("PLAIN", "LOGIN"))


class WrongCertificate(MailstromError, ValueError):
    """The certificate or its key cannot be used; says which files, and why."""


class AlreadyStarted(MailstromError, RuntimeError):
    """The server listens already."""


class SMTPServer:
    """A server on one address; subclasses replace hooks.

    Each hook gets the :class:`Client` and what the client asks for. It returns None for the normal
    reply, a ``Reply`` for another, or raises :class:`Refuse`; it may be a coroutine function. One
    that raises or returns anything else is logged and answered 451; so is one that takes longer
    than ``hook_timeout``, and it is cancelled. Only its own connection waits for it.

    Args:
        host: address, or a name of this machine.
        port: 0 for a free one; read ``port`` once started.
        hostname: what it calls itself; None: this machine's name.
        timeout: seconds a client may be silent, and may leave replies unread.
        max_size: octets of a message; 0: no limit.
        max_recipients: of a message.
        max_connections: at once; a further one is told 421.
        max_waiting: mails accepted and not taken by the iteration; a client whose mail would be one
            more waits for ``patience`` seconds and is told 452.
        patience: see ``max_waiting``.
        hook_timeout: seconds that a hook may take, ``on_mail`` ``patience`` more; ``inf``: no
            limit. Clients wait for two minutes at least (RFC 5321 section 4.5.3.2).
        max_memory: octets of content that is coming, of all clients together; what goes beyond it
            is told 452. As many again may wait for the iteration. At least ``max_size``.
        tls: for STARTTLS, or for the whole connection: a context, or files.
        implicit_tls: TLS from the first octet.
        auth: user -> password. AUTH is offered, and needed before MAIL. An empty one leaves all to
            ``on_login``.
        auth_in_clear: offer AUTH without TLS, too.

    Attributes:
        sessions: the connections that are open.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        hostname: str | None = None,
        timeout: float = 300.0,
        max_size: int = 25 * 1024 * 1024,
        max_recipients: int = 1000,
        max_connections: int = 1000,
        max_waiting: int = 1000,
        patience: float = 10.0,
        hook_timeout: float = 60.0,
        max_memory: int = 256 * 1024 * 1024,
        tls: ssl.SSLContext | CertificateFiles | None = None,
        implicit_tls: bool = False,
        auth: Mapping[str, str] | None = None,
        auth_in_clear: bool = False,
    ) -> None:
        if implicit_tls and tls is None:
            raise ValueError("implicit TLS needs a certificate: pass tls=")
        if auth is not None and tls is None and not auth_in_clear:
            raise ValueError(
                "AUTH without TLS shows every password: pass tls=, or auth_in_clear=True"
            )
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is none: pass 0 for a free one, or 1 to 65535")
        if hostname and not re.fullmatch(r"[!-~]{1,255}", hostname):
            raise ValueError(f"{hostname!r:.300} is no host name: it is the first word of a reply")
        if max_size < 0:
            raise ValueError(f"max_size {max_size} is negative: pass 0 for no limit")
        self.host = host
        self.port = port
        self.hostname = hostname or socket.gethostname()
        self.max_size = max_size
        self.max_recipients = max_recipients
        self.max_connections = max_connections
        self.implicit_tls = implicit_tls
        self.login_required = auth is not None
        self.sessions = Sessions(
            Limits(
                command_s=timeout,
                content_s=timeout,
                unread_s=timeout,
                handshake_s=min(timeout, Limits().handshake_s),
            )
        )
        self.hook_timeout = hook_timeout
        self.patience = patience
        self.hooks: set[asyncio.Task[None]] = set()
        self.tls = _context(tls)
        self._wanted_port = port
        self._users = dict(auth or {})
        self._memory = 0
        self._max_memory = max(max_memory, max_size) if max_size else max_memory
        self._waiting = Waiting(max_waiting, self._max_memory)
        self._listener: asyncio.Server | None = None
        self._clear = Capabilities(
            name=self.hostname,
            size=max_size,
            pipelining=True,
            eightbitmime=True,
            smtputf8=True,
            chunking=True,
            dsn=True,
            enhancedstatuscodes=True,
            starttls=tls is not None and not implicit_tls,
            auth=_MECHANISMS if auth is not None and auth_in_clear else frozenset(),
        )
        self._secured = replace(self._clear, auth=_MECHANISMS if auth is not None else frozenset())

    # Hooks

    def on_connect(self, client: Client) -> Verdict | Awaitable[Verdict]:
        """A client is there; 421 and 554 refuse it."""

    def on_hello(self, client: Client, name: str) -> Verdict | Awaitable[Verdict]:
        """It says what it calls itself."""

    def on_login(
        self, client: Client, credentials: Credentials
    ) -> Verdict | bool | Awaitable[Verdict | bool]:
        """It wants to log in.

        Returns:
            True lets it in; False and None refuse it (535).
        """
        secret = self._users.get(credentials.user)
        # the same work for a user there is not
        right = credentials.proves("" if secret is None else secret)
        return right and secret is not None

    def on_sender(
        self, client: Client, sender: str, parameters: Parameters
    ) -> Verdict | Awaitable[Verdict]:
        """MAIL; ``sender`` is "" for the null sender."""

    def on_recipient(
        self, client: Client, recipient: str, parameters: Parameters
    ) -> Verdict | Awaitable[Verdict]:
        """RCPT, one at a time."""

    def on_data(self, client: Client) -> Verdict | Awaitable[Verdict]:
        """It wants to send content, by DATA; with BDAT nothing is asked here."""

    def on_mail(self, mail: Mail) -> Verdict | Awaitable[Verdict]:
        """A whole mail has come; who returns None or a 2xx has it (RFC 5321 section 6.1).

        By default it is put into the queue that the iteration reads. Whoever stores it elsewhere
        does so here, durably, before returning.
        """
        return None if self._waiting.put_at_once(mail) else self._put(mail)

    async def _put(self, mail: Mail) -> Verdict:
        if await self._waiting.put(mail, self.patience):
            return None
        return _FULL if self.listening else _DRAINED

    # Its life

    @property
    def listening(self) -> bool:
        """Whether it has started and not stopped."""
        return self._listener is not None

    async def start(self) -> Self:
        """Listen; connections are taken as soon as this returns. Works again after ``stop()``.

        Raises:
            AlreadyStarted: it listens.
            CannotListen: the address and port cannot be had; says why.
        """
        if self._listener is not None:
            raise AlreadyStarted(f"it listens on {self.host}:{self.port} already; stop() it first")
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                self.host, self._wanted_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise CannotListen(error, self.host, self._wanted_port) from error
        listener = listen_on(str(found[0][4][0]), self._wanted_port)
        self.port = int(listener.getsockname()[1])
        self._waiting.open()
        self._listener = await loop.create_server(lambda: Reception(self), sock=listener)
        return self

    async def stop(self, timeout: float = 5.0) -> None:
        """Take no more; what was accepted stays readable by the iteration, which ends behind it.

        Idle clients are told 421 at once; who is sending content or waits for a hook may go on for
        ``timeout`` seconds, and is told the same then; hooks that still run are cancelled, and left
        behind where they do not end for some seconds. Nobody waits for room in the queue any more.
        Does nothing where the server does not listen.

        Args:
            timeout: seconds.
        """
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.close()
        self._waiting.hurry()
        for session in list(self.sessions.open):
            session.stop()
        await self.sessions.finished(timeout)
        self._waiting.close()
        for hook in list(self.hooks):
            hook.cancel()
        for session in list(self.sessions.open):
            session.part(_DRAINED, "stopped")
        await self.sessions.finished(_FAREWELL_S)
        for session in list(self.sessions.open):
            session.abort("stopped")
        await self.sessions.deserted()
        await self._hooks_ended()
        await listener.wait_closed()

    async def _hooks_ended(self) -> None:
        """Return once the cancelled hooks have: but one may go on all the same, and is left."""
        if not self.hooks:
            return
        _, left = await asyncio.wait(self.hooks, timeout=_CANCELLED_S)
        if left:
            log.error(
                "%d of the hooks did not end %g s after they were cancelled, and are left behind",
                len(left),
                _CANCELLED_S,
            )

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    def __aiter__(self) -> Self:
        """The mails, in the order in which they were accepted, until the server has stopped."""
        return self

    async def __anext__(self) -> Mail:
        """The next mail.

        Raises:
            StopAsyncIteration: the server has stopped, or never started, and all were taken.
        """
        mail = await self._waiting.get()
        if mail is None:
            raise StopAsyncIteration
        return mail

    # What its connections ask

    def new_dialogue(self) -> ServerDialogue:
        """That of a connection."""
        return ServerDialogue(
            self._clear,
            secured=self._secured,
            tls=self.implicit_tls,
            recipient_limit=self.max_recipients,
            announce=True,
            error_limit=_ERROR_LIMIT,
        )

    def hold(self, octets: int) -> bool:
        """Count octets of content; whether there is room for as many."""
        self._memory += octets
        return self._memory <= self._max_memory


def _context(tls: ssl.SSLContext | CertificateFiles | None) -> ssl.SSLContext | None:
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    certificate, key = tls
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        text = f"the certificate {certificate} with the key {key} cannot be used: {error}"
        raise WrongCertificate(text) from error
    return context
