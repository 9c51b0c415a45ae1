"""One client of the listener: who may send, what is taken, and what it is told.

Contract. A recipient is accepted from a client in ``allow_networks`` and from one who logged in,
from nobody else, whatever the role (``_may_send``). That alone goes by the terms in force: who was
shut out by a reload sends nothing more over a connection that is open. 250 to the end of the
content is said once the message is durable (``Intake``), with the id under which it is; every other
outcome is a refusal that the client may repeat (4xx), or must not (5xx), and then nothing is
stored. Of a content no more is held in memory than the process's budget has room for.

Must not know: sockets, the configuration's form, SQL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from mailstrom import events
from mailstrom.errors import (
    IdempotencyConflict,
    InvalidAddress,
    InvalidMessage,
    OutcomeUnknown,
    SpoolFull,
)
from mailstrom.message.submission import enhanced_code
from mailstrom.printable import printable
from mailstrom.server.connection import Connection
from mailstrom.server.sessions import Sessions
from mailstrom.server.stages import LATER, Answer
from mailstrom.smtp.proxy import BadProxy, ProxyReader
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import (
    ChunkEnd,
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Hello,
    MailFrom,
    Opened,
    Question,
    RcptTo,
    Reset,
)
from mailstrom.storage.client import Submission
from mailstrom_workers.acceptance import Client, address_key, submission_of
from mailstrom_workers.allowance import Connections, Pace, client_of
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.intake import Intake, Outcome
from mailstrom_workers.logins import Login, Logins
from mailstrom_workers.refusals import Refusals
from mailstrom_workers.terms import Terms, within

LARGE = 128 * 1024
"""Content beyond this is looked through beside the loop: encoding 25 MiB takes seconds."""
LONGEST_TEXT = 400
"""Characters of a reply's text: a line has 512 octets."""

_BUSY = Reply(451, "4.3.0", ("the spool is busy, try again later",))
_BROKEN = Reply(451, "4.3.0", ("the message could not be stored, try again later",))
_FULL = Reply(452, "4.3.1", ("the disk is full, try again later",))
_UNKNOWN = Reply(451, "4.3.0", ("the message may not be stored, send it again",))
_NO_ROOM = Reply(452, "4.3.1", ("too much mail at once, try again later",))
_CROWDED = Reply(421, "4.7.0", ("too many connections, try again later",))
_CROWD = Reply(421, "4.7.0", ("too many connections from your address, try again later",))
_HURRIED = Reply(450, "4.7.1", ("too many messages a minute, try again later",))
_DENIED = Reply(550, "5.7.1", ("relaying denied: your address may not send here",))
_TLS_FIRST = Reply(530, "5.7.0", ("must issue STARTTLS first, then log in",))
_LOGIN_FIRST = Reply(530, "5.7.0", ("authentication required",))
_SHUT_OUT = Reply(421, "4.7.0", ("your login holds no more, log in again",))
_WELCOME = Reply(235, "2.7.0", ("welcome",))
_WRONG = Reply(535, "5.7.8", ("user or password refused",))
_LOGINS_BUSY = Reply(454, "4.7.0", ("too many logins at once, try again later",))
_BARRED = Reply(421, "4.7.0", ("too many failed logins, try again later",))
_FAILED = Reply(451, "4.3.0", ("local error, try again later",))


@dataclass(slots=True, kw_only=True)
class Front:
    """What the connections of one process share.

    Args:
        terms: for connections that begin now.
        descriptors: connections for which this process has room.
        composing: makes large messages.
        held: octets of content in memory.
    """

    terms: Terms
    sessions: Sessions
    intake: Intake
    logins: Logins
    composing: Executor
    now_ms: Callable[[], int]
    trouble: Complaint
    refusals: Refusals
    descriptors: int
    connections: Connections = field(default_factory=Connections)
    pace: Pace = field(default_factory=Pace)
    held: int = 0


class Submitter(Connection):
    """A client's connection.

    Args:
        front: what it shares with the others.
        implicit_tls: TLS comes first.
    """

    __slots__ = (
        "_client",
        "_front",
        "_handing",
        "_held_octets",
        "_implicit_tls",
        "_present",
        "_proved",
        "_proxy",
        "_refusal",
        "_spilled",
        "_terms",
    )

    def __init__(self, front: Front, *, implicit_tls: bool) -> None:
        terms = front.terms
        self._front = front
        self._terms = terms
        self._implicit_tls = implicit_tls
        self._client = ""  # whom its limits are counted for; "" before that is known
        self._proxy: ProxyReader | None = None
        self._refusal: Reply | None = None  # in place of the greeting
        self._present = False
        self._proved: str | None = None  # the hash that the user's password belongs to
        self._handing = False  # its content is being stored
        self._held_octets = 0  # of the budget
        self._spilled = False  # there was no room for the content
        super().__init__(
            front.sessions,
            ServerDialogue(
                terms.plain,
                secured=terms.secured,
                tls=implicit_tls,
                recipient_limit=terms.listener.max_recipients,
                announce=True,
                error_limit=terms.listener.max_errors,
                bare_newlines=terms.listener.bare_newlines,
                bare_local_parts=terms.listener.role == "submission",
                clock=time.time,
            ),
            tls=terms.tls,
            implicit_tls=implicit_tls,
        )

    @property
    def storing(self) -> bool:
        """Whether it waits for its message to be stored."""
        return self._handing

    # Who is there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it; one too many is not even shaken hands with."""
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        if within(address, self._terms.proxies):
            self._proxy = ProxyReader()
            self.preface_first()
        elif not self._counted_in(address) and self._implicit_tls:
            cast(asyncio.Transport, transport).abort()
            return
        super().connection_made(transport)

    def _counted_in(self, address: str) -> bool:
        """Count a client's connection, unless it is one too many."""
        front, listener = self._front, self._terms.listener
        client = client_of(address)
        if front.connections.all >= min(listener.max_connections, front.descriptors):
            self._refusal, reason = _CROWDED, "too many connections"
        elif front.connections.of(client) >= listener.max_connections_per_client:
            self._refusal, reason = _CROWD, "too many connections of this client"
        else:
            self._client = client
            self._present = True
            front.connections.add(client)
            return True
        front.refusals.tell(client, reason)
        return False

    def on_preface(self, data: bytes) -> bytes | None:
        """The PROXY header, whose address is the client's from here on.

        Where the proxy names none (a health check) the client is nobody, and may not send: the
        proxy's own address, which may be this machine's, says nothing of who is behind it.
        """
        self._proxy = self._proxy or ProxyReader()
        try:
            found = self._proxy.feed(data)
        except BadProxy as error:
            self._told_off(f"proxy header refused: {error.rule}", client=self.peer[0])
            self.abort("proxy")
            return None
        if found is None:
            return None
        self._proxy = None
        self.peer = ("", 0)
        if found.source is not None and not found.local:
            self.peer = (found.source, found.source_port)
        if not self._counted_in(self.peer[0]) and self._implicit_tls:
            self.abort("crowded")
        return found.rest

    def on_connect(self, event: Opened) -> Answer:
        """Who is one too many hears so in place of the greeting."""
        return self._refusal

    def on_closed(self) -> None:
        """Give back what it took."""
        if self._proxy is not None and self.cause == "timeout":
            # Both waited: the proxy for our greeting, since nobody told it to send the header.
            self._told_off("no proxy header came", client=self.peer[0])
        if self._present:
            self._present = False
            self._front.connections.remove(self._client)
        if not self._handing:
            self._release()

    def _may_send(self) -> bool:
        terms = self._front.terms
        if self.user is not None:
            return terms.users is not None and terms.users.get(self.user) == self._proved
        return within(self.peer[0], terms.allowed)

    # What it says

    def on_login(self, event: Credentials) -> Answer:
        """Checked beside the loop; a failure is told late."""
        users = self._front.terms.users
        if users is None or event.identity not in ("", event.user):
            return _WRONG
        user = event.user

        def told(login: Login) -> None:
            match login:
                case Login.RIGHT:
                    self._proved = users[user]
                    self.answer(_WELCOME)
                    return
                case Login.WRONG:
                    reply = _WRONG
                case Login.BUSY:
                    reply = _LOGINS_BUSY
                case Login.BARRED:
                    reply = _BARRED
            self._told_off(f"login {login.value}", user=printable(user, 100))
            self.answer(reply)

        self._front.logins.check(users, user, event.password, self._client, told)
        return LATER

    def on_mail(self, event: MailFrom) -> Answer:
        """Its pace, and whether the sender is an address."""
        pacer = self._client if self.user is None else f"user {self.user}"
        most = self._terms.listener.max_messages_per_minute
        if not self._front.pace.take(pacer, most, self.loop.time()):
            self._told_off("too many messages a minute", user=self.user)
            return _HURRIED
        try:
            self._key(event.address)
        except InvalidAddress as error:
            return Reply(553, "5.1.7", (_text(error),))
        return None

    def on_rcpt(self, event: RcptTo) -> Answer:
        """Who may send, and whether the recipient is an address."""
        if not self._may_send():
            if self.user is not None:
                reply = _SHUT_OUT
            elif self._terms.users is None:
                reply = _DENIED
            else:
                reply = _LOGIN_FIRST if self.dialogue.tls else _TLS_FIRST
            self._told_off("relaying denied", recipient=printable(event.address, 320))
            return reply
        try:
            self._key(event.address)
        except InvalidAddress as error:
            return Reply(553, "5.1.3", (_text(error),))
        return None

    def on_data(self, event: DataBegin) -> Answer:
        """Whether there is room for what it announced."""
        self._release()
        announced = self.sender.size if self.sender is not None else None
        if self._front.held + (announced or 0) > self._terms.budget:
            return _NO_ROOM
        return None

    def on_content(self, chunk: bytes) -> None:
        """Kept, as long as all contents together keep within the budget."""
        if self._spilled:
            return
        front = self._front
        if front.held + len(chunk) > self._terms.budget:
            self._release()
            self._spilled = True
            self.content()  # let go
            return
        front.held += len(chunk)
        self._held_octets += len(chunk)
        Connection.on_content(self, chunk)

    def on_chunk(self, event: ChunkEnd) -> Answer:
        """One that is refused ends the transaction."""
        if not event.default.positive or self._spilled:
            self._release()
            return None if not event.default.positive else _NO_ROOM
        return None

    def on_message(self, event: ContentEnd) -> Answer:
        """Hand it in; the answer comes when it is durable."""
        mail = self.sender
        assert mail is not None
        if self._spilled:
            self._spilled = False
            return self._refused(_NO_ROOM)
        content = self.content()
        make = partial(
            submission_of,
            content,
            self._described(),
            mail,
            tuple(self.recipients),
            role=self._terms.listener.role,
            hostname=self._terms.hostname,
            now_ms=self._front.now_ms(),
        )
        if len(content) > LARGE:
            self._handing = True
            made = self.loop.run_in_executor(self._front.composing, make)
            made.add_done_callback(partial(self._made, event))
            return LATER
        try:
            return self._hand_in(make())
        except InvalidMessage as error:
            return self._refused(_reply_to(error))

    def _made(self, event: ContentEnd, made: asyncio.Future[Submission]) -> None:
        """A large message is ready; where its client is gone it is nobody's."""
        self._handing = False
        if made.cancelled() or self not in self.sessions.open:
            self._release()
            return
        try:
            answer = self._hand_in(made.result())
        except InvalidMessage as error:
            answer = self._refused(_reply_to(error))
        except Exception as error:
            answer = self.on_error(event, error)
        if isinstance(answer, Reply):
            self.answer(answer)

    def _hand_in(self, submission: Submission) -> Answer:
        front = self._front
        front.held += len(submission.content) - self._held_octets
        self._held_octets = len(submission.content)
        size, count, sender = (
            len(submission.content), len(submission.recipients), submission.sender,
        )  # fmt: skip

        def told(outcome: Outcome) -> None:
            self._handing = False
            self._release()
            if isinstance(outcome, str):
                reply = Reply(250, "2.0.0", (f"Ok: queued as {outcome}",))
                events.submission_accepted(
                    message_id=outcome,
                    sender=sender,
                    recipients=count,
                    size=size,
                    client=self.peer[0],
                    user=self.user,
                )
            else:
                reply = self._refused(_reply_to(outcome), outcome)
            self.answer(reply)

        self._handing = True
        try:
            front.intake.put(submission, told)
        except BaseException:
            self._handing = False
            self._release()
            raise
        return LATER

    def on_unusable(self, event: ContentEnd) -> Answer:
        """Bare line ends, or too long."""
        return self._refused(event.default)

    def on_reset(self, event: Reset) -> Answer:
        """What came of a content by BDAT goes."""
        self._release()
        return None

    def on_hello(self, event: Hello) -> Answer:
        """As RSET."""
        self._release()
        return None

    def on_secured(self) -> None:
        """Everything before is forgotten."""
        self._release()

    def on_error(self, event: Question | Content, error: Exception) -> Reply:
        """Told to the log, and the client may try again."""
        self._front.trouble.say(error)
        self._release()
        return _FAILED

    # Small things

    def _key(self, address: str) -> str:
        return address_key(address, self._terms.hostname)

    def _described(self) -> Client:
        sealed = self.transport.get_extra_info("ssl_object") if self.dialogue.tls else None
        tls = ""
        if sealed is not None:
            cipher = sealed.cipher()
            tls = f"{sealed.version()} {cipher[0]}" if cipher else str(sealed.version())
        return Client(self.peer[0], self.helo, self.dialogue.extended, self.user, tls)

    def _release(self) -> None:
        """What it held of the budget is free."""
        self._front.held -= self._held_octets
        self._held_octets = 0
        self._spilled = False

    def _told_off(self, reason: str, *, client: str = "", **fields: str | None) -> None:
        self._front.refusals.tell(client or self._client, reason, **fields)

    def _refused(self, reply: Reply, error: Exception | None = None) -> Reply:
        self._release()
        events.submission_refused(
            client=self.peer[0],
            user=self.user,
            sender=self.sender.address if self.sender is not None else None,
            code=reply.code,
            reply=" ".join(reply.lines),
            error=None if error is None else str(error),
        )
        return reply


def _text(error: InvalidMessage) -> str:
    """The sentence of a rule, as it may stand in a reply."""
    text = printable(str(error), LONGEST_TEXT)
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode()


def _reply_to(error: Exception) -> Reply:
    """What a client is told of a message that was not stored."""
    if isinstance(error, InvalidMessage):
        return Reply(554, enhanced_code(error), (_text(error),))
    if isinstance(error, IdempotencyConflict):
        return Reply(554, "5.6.0", ("the idempotency key was used for another message",))
    if isinstance(error, OutcomeUnknown):
        return _UNKNOWN
    if isinstance(error, SpoolFull):
        return _FULL
    return _BUSY if isinstance(error, TimeoutError) else _BROKEN
