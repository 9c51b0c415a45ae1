"""One connection of an ``SMTPServer``: its hooks asked, its content counted.

Contract. Each hook is called once for its stage with what is known of the client, and may answer at
once or later; one that raises ``Refuse`` refuses with that reply, and one that says what is no
answer is broken: 451. While a hook of a connection is awaited nothing else of that connection is
looked at; one that takes too long is cancelled, and answered without it. Octets of content are
counted against the server's bound as they come, and until the mail that they are is taken or
refused.

Must not know: where the server listens.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from math import inf
from typing import TYPE_CHECKING

from mailstrom.server.connection import Connection
from mailstrom.server.mail import Client, Mail, Refuse
from mailstrom.server.stages import LATER, Answer
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_events import (
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Hello,
    MailFrom,
    Opened,
    Question,
    RcptTo,
)

if TYPE_CHECKING:
    from mailstrom.server.server import SMTPServer

_TOO_MANY = Reply(421, "4.7.0", ("too many connections, try again later",))
_NEEDS_LOGIN = Reply(530, "5.7.0", ("authentication required",))
_WELCOME = Reply(235, "2.7.0", ("welcome",))
_NO_ROOM = Reply(452, "4.3.1", ("no room for this message now, try again later",))

Verdict = Reply | None
"""What a hook says: None is the normal reply."""


class Reception(Connection):
    """One connection."""

    __slots__ = ("_hook", "_octets_held", "server")

    def __init__(self, server: SMTPServer) -> None:
        super().__init__(
            server.sessions,
            server.new_dialogue(),
            tls=server.tls,
            implicit_tls=server.implicit_tls,
        )
        self.server = server
        self._octets_held = 0
        self._hook: asyncio.Task[None] | None = None

    @property
    def client(self) -> Client:
        """What is known of the client."""
        return Client(
            address=self.peer[0],
            port=self.peer[1],
            helo=self.helo,
            tls=self.tls_version,
            user=self.user,
            sender=None if self.sender is None else self.sender.address,
            recipients=tuple([recipient.address for recipient in self.recipients]),
        )

    # Stages

    def on_connect(self, event: Opened) -> Answer:
        """Too many at once are told so."""
        if len(self.sessions.open) > self.server.max_connections:
            return _TOO_MANY
        return self._heard(event, self.server.on_connect(self.client))

    def on_hello(self, event: Hello) -> Answer:
        """Asks the hook."""
        return self._heard(event, self.server.on_hello(self.client, event.name))

    def on_login(self, event: Credentials) -> Answer:
        """Asks the hook, whose normal answer is no."""
        return self._heard(event, self.server.on_login(self.client, event))

    def on_mail(self, event: MailFrom) -> Answer:
        """Who has to log in first is told so."""
        if self.server.login_required and self.user is None:
            return _NEEDS_LOGIN
        said = self.server.on_sender(self.client, event.address, event.params)
        return self._heard(event, said)

    def on_rcpt(self, event: RcptTo) -> Answer:
        """Asks the hook."""
        said = self.server.on_recipient(self.client, event.address, event.params)
        return self._heard(event, said)

    def on_data(self, event: DataBegin) -> Answer:
        """Asks the hook."""
        return self._heard(event, self.server.on_data(self.client))

    def on_content(self, chunk: bytes) -> None:
        """Keep it while there is room."""
        self._octets_held += len(chunk)
        if not self.server.hold(len(chunk)):
            self._let_go()  # nothing of it is kept, though it goes on coming
            raise Refuse(452, _NO_ROOM.lines[0], "4.3.1")
        super().on_content(chunk)

    def on_message(self, event: ContentEnd) -> Answer:
        """Hand it over."""
        sender = self.sender
        assert sender is not None, "content without a sender"
        mail = Mail(
            client=self.client,
            sender=sender.address,
            recipients=tuple([recipient.address for recipient in self.recipients]),
            parameters=sender.params,
            recipient_parameters=tuple([recipient.params for recipient in self.recipients]),
            content=self.content(),
        )
        return self._heard(event, self.server.on_mail(mail))

    def ask(self, event: Question) -> Answer:
        """A hook may refuse by raising, and content for which there was no room was refused."""
        if type(event) is ContentEnd and self._spoiled and event.default.positive:
            return _NO_ROOM
        try:
            return super().ask(event)
        except Refuse as refused:
            return refused.reply

    def on_error(self, event: Question | Content, error: Exception) -> Reply:
        """No room is nobody's error."""
        return error.reply if isinstance(error, Refuse) else super().on_error(event, error)

    def settle(self, event: Question, reply: Reply) -> None:
        """What is over takes no room."""
        super().settle(event, reply)
        if self.sender is None:
            self._let_go()

    def on_closed(self) -> None:
        """Nothing of it takes room; a hook that is awaited goes on, and nobody hears it."""
        self._let_go()

    def _let_go(self) -> None:
        if self._octets_held:
            self.server.hold(-self._octets_held)
            self._octets_held = 0

    # Hooks that take their time

    def _heard(self, event: Question, said: Verdict | bool | Awaitable[Verdict | bool]) -> Answer:
        if inspect.isawaitable(said):
            self._hook = hook = self.loop.create_task(self._hear(event, said))
            self.server.hooks.add(hook)
            hook.add_done_callback(self.server.hooks.discard)
            most = self.server.hook_timeout
            if type(event) is ContentEnd:
                most += self.server.patience
            if most < inf:
                overdue = self.loop.call_later(most, self._overdue, event, hook, most)
                hook.add_done_callback(lambda _: overdue.cancel())
            return LATER
        return self._verdict(event, said)

    async def _hear(self, event: Question, said: Awaitable[Verdict | bool]) -> None:
        try:
            reply = self._verdict(event, await said)
        except Refuse as refused:
            reply = refused.reply
        except Exception as error:
            reply = self.on_error(event, error)
        except asyncio.CancelledError:
            if self._hook is asyncio.current_task():
                self.abort("stopped")
            raise
        if self._hook is asyncio.current_task():  # else it was answered without it
            self._hook = None
            self.answer(reply)

    def _overdue(self, event: Question, hook: asyncio.Task[None], seconds: float) -> None:
        """Answer without the hook, which may not even end when it is cancelled."""
        if self._hook is not hook:
            return
        self._hook = None
        hook.cancel()
        self.answer(self.on_error(event, TimeoutError(f"the hook took more than {seconds:g} s")))

    def _verdict(self, event: Question, said: Verdict | bool) -> Reply:
        """The reply; what is none raises, since a refusal that is misread would be a yes."""
        if said is None:
            return event.default
        if isinstance(said, bool) and isinstance(event, Credentials):
            return _WELCOME if said else event.default
        if not isinstance(said, Reply):
            raise TypeError(f"a hook returned {said!r:.80}: return None or a Reply, raise Refuse")
        if said.code < 400 and (said.code >= 300) is not isinstance(event, DataBegin):
            raise ValueError(
                f"a hook returned {said.code}: DATA is accepted by 354, all else by 2xx"
            )
        return said
