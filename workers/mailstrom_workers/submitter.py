"""What a client of the listener says, what is taken from it, and what it is told.

Contract. A recipient is accepted from a client in ``allow_networks`` and from one who logged in,
from nobody else, whatever the role (``may_send``). That alone goes by the terms in force: who was
shut out by a reload sends nothing more over a connection that is open. 250 to the end of the
content is said once the message is durable (``Intake``), with the id under which it is; every other
outcome is a refusal that the client may repeat (4xx), or must not (5xx), and then nothing is
stored. Of a content no more is held in memory than the process's budget has room for.

Must not know: who is at the other end (``Arrival``), sockets, the configuration's form, SQL.
"""

from __future__ import annotations

import asyncio
from functools import partial

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
from mailstrom.server.stages import LATER, Answer
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_events import (
    ChunkEnd,
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Hello,
    MailFrom,
    Question,
    RcptTo,
    Reset,
)
from mailstrom.storage.client import Submission
from mailstrom_workers.acceptance import Client, address_key, submission_of
from mailstrom_workers.arrival import Arrival
from mailstrom_workers.front import Front
from mailstrom_workers.intake import Outcome
from mailstrom_workers.logins import Login

LARGE = 128 * 1024
"""Content beyond this is looked through beside the loop: encoding 25 MiB takes seconds."""
LONGEST_TEXT = 400
"""Characters of a reply's text: a line has 512 octets."""

_BUSY = Reply(451, "4.3.0", ("the spool is busy, try again later",))
_BROKEN = Reply(451, "4.3.0", ("the message could not be stored, try again later",))
_FULL = Reply(452, "4.3.1", ("the disk is full, try again later",))
_UNKNOWN = Reply(451, "4.3.0", ("the message may not be stored, send it again",))
_NO_ROOM = Reply(452, "4.3.1", ("too much mail at once, try again later",))
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


class Submitter(Arrival):
    """A client's connection.

    Args:
        front: what it shares with the others.
        implicit_tls: TLS comes first.
    """

    __slots__ = ("_handing", "_held_octets", "_spilled")

    def __init__(self, front: Front, *, implicit_tls: bool) -> None:
        self._handing = False  # its content is being stored
        self._held_octets = 0  # of the budget
        self._spilled = False  # there was no room for the content
        super().__init__(front, implicit_tls=implicit_tls)

    @property
    def storing(self) -> bool:
        """Whether it waits for its message to be stored."""
        return self._handing

    def on_closed(self) -> None:
        """Give back what it took."""
        super().on_closed()
        if not self._handing:
            self._release()

    def on_login(self, event: Credentials) -> Answer:
        """Checked beside the loop; a failure is told late."""
        users = self.front.terms.users
        if users is None or event.identity not in ("", event.user):
            return _WRONG
        user = event.user

        def told(login: Login) -> None:
            match login:
                case Login.RIGHT:
                    self.proved = users[user]
                    self.answer(_WELCOME)
                    return
                case Login.WRONG:
                    reply = _WRONG
                case Login.BUSY:
                    reply = _LOGINS_BUSY
                case Login.BARRED:
                    reply = _BARRED
            self.told_off(f"login {login.value}", user=printable(user, 100))
            self.answer(reply)

        self.front.logins.check(users, user, event.password, self.client, told)
        return LATER

    def on_mail(self, event: MailFrom) -> Answer:
        """Its pace, and whether the sender is an address."""
        pacer = self.client if self.user is None else f"user {self.user}"
        most = self.terms.listener.max_messages_per_minute
        if not self.front.pace.take(pacer, most, self.loop.time()):
            self.told_off("too many messages a minute", user=self.user)
            return _HURRIED
        try:
            self._key(event.address)
        except InvalidAddress as error:
            return Reply(553, "5.1.7", (_text(error),))
        return None

    def on_rcpt(self, event: RcptTo) -> Answer:
        """Who may send, and whether the recipient is an address."""
        if not self.may_send():
            if self.user is not None:
                reply = _SHUT_OUT
            elif self.terms.users is None:
                reply = _DENIED
            else:
                reply = _LOGIN_FIRST if self.dialogue.tls else _TLS_FIRST
            self.told_off("relaying denied", recipient=printable(event.address, 320))
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
        if self.front.held + (announced or 0) > self.terms.budget:
            return _NO_ROOM
        return None

    def on_content(self, chunk: bytes) -> None:
        """Kept, as long as all contents together keep within the budget."""
        if self._spilled:
            return
        front = self.front
        if front.held + len(chunk) > self.terms.budget:
            self._release()
            self._spilled = True
            self.content()  # let go
            return
        front.held += len(chunk)
        self._held_octets += len(chunk)
        Connection.on_content(self, chunk)

    def on_chunk(self, event: ChunkEnd) -> Answer:
        """One that is refused ends the transaction."""
        if not self._spilled:
            return None
        self._release()
        return _NO_ROOM

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
            role=self.terms.listener.role,
            hostname=self.terms.hostname,
            now_ms=self.front.now_ms(),
        )
        if len(content) > LARGE:
            self._handing = True
            made = self.loop.run_in_executor(self.front.composing, make)
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
        front = self.front
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
        self.front.trouble.say(error)
        self._release()
        return _FAILED

    # Small things

    def _key(self, address: str) -> str:
        return address_key(address, self.terms.hostname)

    def _described(self) -> Client:
        sealed = self.transport.get_extra_info("ssl_object") if self.dialogue.tls else None
        tls = ""
        if sealed is not None:
            cipher = sealed.cipher()
            tls = f"{sealed.version()} {cipher[0]}" if cipher else str(sealed.version())
        return Client(self.peer[0], self.helo, self.dialogue.extended, self.user, tls)

    def _release(self) -> None:
        """What it held of the budget is free."""
        self.front.held -= self._held_octets
        self._held_octets = 0
        self._spilled = False

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
