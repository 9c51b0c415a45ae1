"""One connection of an SMTP server: bytes between a transport and a dialogue, in bounded time.

Contract. Each question of the ``ServerDialogue`` goes to a short method, ``on_mail`` and the like,
which answers at once with a ``Reply``, with None for the dialogue's own, or with ``LATER``: then
nothing more is read from the dialogue until ``answer()`` is called in the loop. All of it happens
inside the transport's callbacks: no task and no timer of its own, the handshake's task apart.

The greeting is sent at once. What a client says before it has read the greeting is answered behind
it: nothing is delayed to catch those. A client that ends its side, as ``nc`` does, hears the
replies due to it.

Bounded, by ``Limits``: the time to the next whole command, which dripping octets do not extend, the
pauses and the pace of content, a handshake, replies that are not read, what is read ahead, commands
at one go (others have their turn behind them). Errors are the dialogue's to count. An idle
connection holds no buffer. Behind the last reply what still comes is thrown away for a moment,
since closing with unread octets would send RST, which can destroy that reply on its way; of those
refused in their greeting for ``MOST_LINGERING`` at a time.

Must not know: where the server listens, who may send, where mail is kept.

Longer than a file should be: each callback of the transport changes what the others may do.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from math import inf
from typing import cast

from mailstrom.server.sessions import MOST_LINGERING, Limits, Sessions, log
from mailstrom.server.stages import LATER, Stages
from mailstrom.smtp.reply import Reply, render_reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import (
    ChunkEnd,
    Closing,
    Content,
    ContentEnd,
    Credentials,
    Hello,
    MailFrom,
    Opened,
    Question,
    RcptTo,
    Reset,
)
from mailstrom.smtp.server_order import Phase

# Why nothing is read from the dialogue now; a set of these, as bits.
_ASKED = 1  # an answer is due from us
_UNREAD = 2  # the peer does not read what it was told
_TURN = 4  # others have their turn
_SEALED = 8  # a handshake
_PREFACE = 16  # what comes before the session has not come
_OVER = 32  # whatever comes is thrown away
_RESTING = 64  # until go_on()

_AT_ONCE = 100
"""Questions of one connection before others have their turn."""

_SPARE = 1 << 20
"""Octets beyond twice the limit of a content that are read to its end, so that it is answered."""

_STOPPING = Reply(421, "4.3.2", ("the server is shutting down, try again later",))
_ENDLESS = Reply(421, "4.3.4", ("far more than the limit, closing",))
_LATE = Reply(421, "4.4.2", ("timeout, closing",))


class Connection(Stages, asyncio.BufferedProtocol):
    """One connection; subclasses decide.

    Args:
        sessions: those it is one of.
        dialogue: a new one; made with ``tls=True`` where ``implicit_tls``.
        tls: context for STARTTLS, or for the whole connection.
        implicit_tls: the handshake comes first.
        prefaced: something else comes first (before a handshake, too): ``on_preface`` reads it.

    Attributes:
        peer: address and port of the client; ``on_preface`` may put another.
        helo: what it called itself, "" before.
        sender: of the open transaction.
        recipients: accepted ones of the open transaction.
        user: who has logged in.
        cause: why it ended.
        deadline: loop time at which ``expired()`` is due.
    """

    __slots__ = (
        "_asked",
        "_begun",
        "_early",
        "_gone",
        "_handshake",
        "_held",
        "_implicit",
        "_octets",
        "_reading",
        "_sealed",
        "_stopping",
        "_tls",
        "_turned_away",
        "cause",
        "deadline",
        "dialogue",
        "helo",
        "loop",
        "recipients",
        "sender",
        "sessions",
        "transport",
        "user",
    )

    def __init__(
        self,
        sessions: Sessions,
        dialogue: ServerDialogue,
        *,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        prefaced: bool = False,
    ) -> None:
        super().__init__()
        self.sessions = sessions
        self.dialogue = dialogue
        self.transport: asyncio.Transport
        self.loop: asyncio.AbstractEventLoop
        self.helo = ""
        self.sender: MailFrom | None = None
        self.recipients: Sequence[RcptTo] = ()
        self.user: str | None = None
        self.cause = ""
        self.deadline = inf
        self._tls = tls
        self._implicit = implicit_tls
        self._held = _PREFACE if prefaced else 0
        self._asked: Question | None = None
        self._begun = 0.0  # loop time of the first octet of the content that is coming
        self._octets = 0  # of it, as they came
        self._reading = True
        self._stopping = False
        self._gone = False  # the peer said that it says nothing more
        self._turned_away = False  # its greeting was a refusal
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""  # of the handshake, come before TLS was there to read it
        self._sealed = b""  # decrypted, come along with the end of the handshake

    @property
    def limits(self) -> Limits:
        """What it may take."""
        return self.sessions.limits

    @property
    def tls_version(self) -> str | None:
        """``TLSv1.3`` or the like; None in clear."""
        sealed = self.transport.get_extra_info("ssl_object")
        return None if sealed is None else sealed.version()

    @property
    def attentive(self) -> bool:
        """Whether what comes now goes to the dialogue."""
        return not self._held & (_OVER | _SEALED | _PREFACE)

    @property
    def over(self) -> bool:
        """Whether nothing more is said or heard; what is written may be on its way."""
        return bool(self._held & _OVER)

    @property
    def answering(self) -> bool:
        """Whether an answer is due."""
        return bool(self._held & _ASKED)

    # What they may call

    def answer(self, reply: Reply) -> bool:
        """Answer the question that was to be answered later.

        Returns:
            whether the client can still be told.

        Raises:
            RuntimeError: no answer is due.
        """
        event = self._asked
        if event is None:
            raise RuntimeError("no answer is due: return LATER first, answer once")
        self._asked = None
        self._held &= ~_ASKED
        if self._held & _OVER:
            return False
        self.settle(event, reply)
        self._pump(heard=True)
        return True

    def rest(self) -> None:
        """Look at nothing more that comes until :meth:`go_on`."""
        self._held |= _RESTING

    def go_on(self) -> None:
        """Look at what has come."""
        self._go_on(_RESTING)

    def mute(self) -> None:
        """Neither answer nor look at anything any more; close when the peer does."""
        self._held |= _OVER
        self.deadline = inf

    def preface_first(self) -> None:
        """Something comes first after all; to be called before ``connection_made`` goes on."""
        self._held |= _PREFACE

    def stop(self) -> None:
        """End with 421 as soon as no content and no answer is on its way."""
        self._stopping = True
        if self._held & (_SEALED | _PREFACE):
            self.abort("stopped")
        elif not self._held:
            self._pump()

    def part(self, reply: Reply, cause: str) -> None:
        """Say this, unasked, and close; an answer that is due is not given."""
        if self._held & _OVER:
            return
        if self._held & (_SEALED | _PREFACE):
            self.abort(cause)
            return
        self._flush()
        enhanced = self.dialogue.extended and self.dialogue.capabilities.enhancedstatuscodes
        self._write(render_reply(reply.code, reply.enhanced if enhanced else None, *reply.lines))
        self.finish(cause)

    def finish(self, cause: str) -> None:
        """Close in order: FIN, then what the client still sends is thrown away for a moment."""
        if self._held & _OVER:
            return
        self._held |= _OVER
        self.sessions.changed()
        self.cause = self.cause or cause
        self.deadline = self.loop.time() + self.limits.finish_s
        self.dialogue.discard()
        self._steer()
        if self.transport.is_closing():
            return
        waits = not self._turned_away or self.sessions.turned_away <= MOST_LINGERING
        if waits and self.transport.can_write_eof() and not self._gone:
            self.transport.write_eof()
        else:
            self.transport.close()

    def abort(self, cause: str) -> None:
        """Cut it at once."""
        self.cause = self.cause or cause
        self._held |= _OVER
        if self._handshake is not None:
            self._handshake.cancel()
        self.transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self.loop = asyncio.get_running_loop()
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):  # a peer that is gone by now has none
            self.peer = (name[0], name[1])
        self.sessions.add(self)
        if self._held & _PREFACE:
            self.deadline = self.loop.time() + self.limits.handshake_s
        else:
            self._begin()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to: the buffer of all, since what is read is taken out at once."""
        return self.sessions.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Octets came."""
        self.received(bytes(self.sessions.buffer[:nbytes]))

    def received(self, data: bytes) -> None:
        """Feed the dialogue, unless everything is thrown away by now."""
        held = self._held
        if held & (_OVER | _SEALED | _PREFACE):
            self._aside(data)
            return
        dialogue = self.dialogue
        dialogue.feed(data)
        if self._in_content():
            self._octets += len(data)
            size = dialogue.capabilities.size
            if size and self._octets > 2 * size + _SPARE:
                self.part(_ENDLESS, "endless")
                return
        if held:
            self._steer()
        else:
            self._pump()

    def _aside(self, data: bytes) -> None:
        if self._held & _OVER:
            return
        if self._held & _SEALED:
            if self.transport.get_protocol() is self:
                self._early += data
                self.transport.pause_reading()
            else:
                self._sealed += data
            return
        try:
            left = self.on_preface(data)
        except Exception as error:
            log.error("preface of %s was not read: %r", self.peer[0], error, exc_info=error)
            self.abort("preface")
            return
        if left is None or self._held & _OVER:
            return
        self._held &= ~_PREFACE
        if self._implicit:
            self._early = left
        else:
            self.dialogue.feed(left)
        self._begin()

    def _begin(self) -> None:
        if self._implicit:
            self._shake()
        else:
            self._pump()

    def eof_received(self) -> bool:
        """The client says no more; it may still listen."""
        self._gone = True
        if self._held & (_ASKED | _UNREAD | _TURN | _RESTING) and not self._held & _OVER:
            # under TLS the connection closes whatever is said here
            return self.transport.get_extra_info("sslcontext") is None
        self.cause = self.cause or "eof"
        return False

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        self._held |= _UNREAD
        if not self._held & _OVER:
            self.deadline = self.loop.time() + self.limits.unread_s
            self._steer()

    def resume_writing(self) -> None:
        """The client has read."""
        self._held &= ~_UNREAD
        if not self._held & _OVER:
            self._go_on(0)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything, once."""
        if self not in self.sessions.open:
            return
        why = type(exc).__name__ if exc else "closed"
        if self._held & _SEALED:  # uvloop tells this, asyncio does not
            why = f"handshake: {why}"
        self._held |= _OVER
        self.deadline = inf
        self.cause = self.cause or why
        self.sessions.remove(self)
        self.sessions.turned_away -= self._turned_away
        self._pieces = None
        self._sealed = self._early = b""
        self.on_closed()

    def expired(self) -> None:
        """The deadline is over: cut it, with a word where the client listens."""
        if self._held & (_OVER | _UNREAD | _SEALED | _PREFACE):
            self.abort("unread" if self._held & _UNREAD else "timeout")
        elif not self._held & (_ASKED | _RESTING):  # the client waits for us
            self.part(_LATE, "timeout")

    # The dialogue's side

    def _pump(self, *, heard: bool = False) -> None:
        """Go on; ``heard``: what is awaited now is a command that was not awaited before."""
        dialogue = self.dialogue
        left = _AT_ONCE
        while not self._held:
            if self._stopping and not self._in_content():
                self.part(_STOPPING, "stopped")
                return
            event = dialogue.next_event()
            if event is None:
                break
            if type(event) is Content:
                self._content(event)
                continue
            if type(event) is Closing:
                self._flush()
                self.finish(event.cause)
                return
            heard = True
            self._question(cast(Question, event))
            left -= 1
            if not left:
                self._held |= _TURN
                self.loop.call_soon(self._go_on, _TURN)
        self._flush()
        if self._held & _OVER:
            return
        self._move_deadline(heard)
        if dialogue.phase is Phase.HANDSHAKE and not self._held:
            self._shake()
        elif self._gone and not self._held:
            self.finish("eof")
        elif self._held or not self._reading:
            self._steer()

    def _go_on(self, reason: int) -> None:
        self._held &= ~reason
        if not self._held:
            self._pump(heard=True)

    def _question(self, event: Question) -> None:
        try:
            reply = self.ask(event)
        except Exception as error:
            reply = self.on_error(event, error)
        if reply is LATER:
            self._asked = event
            self._held |= _ASKED
        elif not self._held & _OVER:
            self.settle(event, event.default if reply is None else reply)

    def _content(self, event: Content) -> None:
        if not self._spoiled:
            try:
                self.on_content(event.chunk)
            except Exception as error:
                self._spoiled = True
                self._pieces = None
                self.on_error(event, error)

    def settle(self, event: Question, reply: Reply) -> None:
        """Give the answer, and keep what it says of the session."""
        try:
            self.dialogue.reply(reply.code, reply.enhanced, *reply.lines)
        except ValueError as error:  # it cannot be said
            reply = self.on_error(event, error)
            self.dialogue.reply(reply.code, reply.enhanced, *reply.lines)
        kind = type(event)
        if kind is RcptTo:
            if reply.positive:
                if not self.recipients:
                    self.recipients = []
                cast(list[Question], self.recipients).append(event)
        elif kind is MailFrom:
            if reply.positive:
                self.sender = cast(MailFrom, event)
        elif kind is ContentEnd or kind is Reset or (kind is ChunkEnd and not reply.positive):
            self._forget()  # a refused chunk ends the transaction, too
            self._begun, self._octets = 0.0, 0
        elif kind is Hello and reply.positive:
            self._forget()
            self.helo = cast(Hello, event).name
        elif kind is Opened and not reply.positive:
            self._turned_away = True
            self.sessions.turned_away += 1
        elif kind is Credentials and reply.positive:
            self.user = cast(Credentials, event).user

    def _forget(self) -> None:
        """Forget the transaction."""
        self.sender = None
        self.recipients = ()
        self._pieces = None
        self._spoiled = False

    def _in_content(self) -> bool:
        phase = self.dialogue.phase
        return phase is Phase.CONTENT or phase is Phase.CHUNK or phase is Phase.CHUNKS

    def _move_deadline(self, heard: bool = True) -> None:
        if self._held & (_ASKED | _RESTING):
            self.deadline = inf
        elif self._held & (_UNREAD | _SEALED):
            return
        elif self._in_content():
            limits, now = self.sessions.limits, self.loop.time()
            self._begun = self._begun or now
            pause = limits.command_s if self.dialogue.phase is Phase.CHUNKS else limits.content_s
            paced = inf
            if limits.content_rate:
                paced = self._begun + limits.content_s + self._octets / limits.content_rate
            self.deadline = min(now + pause, paced)
        elif heard:
            self._begun, self._octets = 0.0, 0
            self.deadline = self.loop.time() + self.sessions.limits.command_s

    # Bytes

    def _write(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def _flush(self) -> None:
        self._write(self.dialogue.take_output())

    def _steer(self) -> None:
        """Read, or leave what comes to the system."""
        held = self._held
        if held & _OVER:
            read = True
        elif held & (_UNREAD | _SEALED):
            read = False
        else:
            read = not held or self.dialogue.buffered < self.sessions.limits.unread
        if read is not self._reading and not self.transport.is_closing() and not self._gone:
            self._reading = read
            if read:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # TLS

    def _shake(self) -> None:
        # Paused before control is given up: the next bytes belong to TLS, not to the dialogue.
        self._held |= _SEALED
        self.deadline = inf  # it has a time limit of its own
        self._steer()
        self._handshake = self.loop.create_task(self._shake_hands())
        # Behind the task's first step, and then behind what that has asked the loop for: TLS is
        # there to read then, and the loop has read nothing for it yet.
        self.loop.call_soon(self.loop.call_soon, self._give_early)

    def _give_early(self) -> None:
        early, self._early = self._early, b""
        if early and not self._held & _OVER:
            protocol = cast(asyncio.BufferedProtocol, self.transport.get_protocol())
            memoryview(protocol.get_buffer(len(early)))[: len(early)] = early
            protocol.buffer_updated(len(early))

    async def _shake_hands(self) -> None:
        assert self._tls is not None, "STARTTLS is offered without a context"
        limits = self.sessions.limits
        if self._held & _OVER:
            return
        try:
            transport = await self.loop.start_tls(
                self.transport,
                self,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=limits.handshake_s,
                ssl_shutdown_timeout=limits.finish_s,
            )
        except (OSError, TimeoutError, asyncio.CancelledError) as error:
            # ssl.SSLError is an OSError; cancelled: abort() did it
            self.cause = self.cause or f"handshake: {type(error).__name__}"
            self.transport.abort()
            self.connection_lost(None)  # asyncio tells a protocol nothing during the handshake
            return
        finally:
            self._handshake = None
        if transport is None:  # lost at its very end
            self.connection_lost(None)
            return
        self.transport = transport
        self._reading = True
        self._held &= ~_SEALED
        if self._implicit and self.dialogue.phase is Phase.CONNECTED:
            self._implicit = False
        else:
            self.dialogue.tls_started()
        self.helo, self.user = "", None
        self._forget()
        self._move_deadline()
        self.on_secured()
        sealed, self._sealed = self._sealed, b""
        if sealed:
            self.received(sealed)
        else:
            self._pump()
