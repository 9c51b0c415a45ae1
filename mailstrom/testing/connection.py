"""One connection of a scripted SMTP server: bytes between a transport and a dialogue, by script.

Contract. Every event of the ``ServerDialogue`` passes here: it is recorded, the script is asked,
and what the script leaves open is answered normally. A content is recorded at its final dot before
its answer, delayed or not. Misbehaviour begins only after the replies due before it are out.

Must not know: where the server listens, who reads the record.

Longer than a file should be: each callback changes what may still be answered, and in which order.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mailstrom.smtp.reply import Reply, render_reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import (
    ChunkEnd,
    Closing,
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Hello,
    Inquiry,
    MailFrom,
    Opened,
    Question,
    Quit,
    RcptTo,
    Refused,
    Reset,
    StartTls,
)
from mailstrom.smtp.server_order import Phase
from mailstrom.testing.records import HEAD_LIMIT, Connection, Dot, Transaction, message_id
from mailstrom.testing.script import Act, Moment, Rule

if TYPE_CHECKING:
    from mailstrom.testing.smtp import SMTPServer

_STAGES: dict[type, str] = {
    Opened: "greeting",
    StartTls: "starttls",
    Credentials: "auth",
    MailFrom: "mail",
    RcptTo: "rcpt",
    DataBegin: "data",
    ChunkEnd: "bdat",
    ContentEnd: "dot",
    Reset: "rset",
    Quit: "quit",
}
_NO_LINGER = struct.pack("ii", 1, 0)
HANDSHAKE_TIMEOUT = 30.0
FINISH_TIMEOUT = 5.0


_TOO_MANY = Rule(
    stage="greeting", code=421, enhanced="4.7.0", text="too many connections", close=True
)


class Shell(asyncio.Protocol):
    """One connection: moves bytes between a transport and a dialogue, and asks the script."""

    def __init__(self, server: SMTPServer) -> None:
        self.server = server
        self.director = server.director
        script = self.director.script
        possible = server.tls is not None
        self.dialogue = ServerDialogue(
            script.offer(server.hostname, tls_possible=possible, tls=False),
            secured=script.offer(server.hostname, tls_possible=possible, tls=True),
            tls=server.implicit_tls,
            recipient_limit=script.recipient_limit,
            challenge=lambda: f"<{os.urandom(12).hex()}@{server.hostname}>",
        )
        self.transport: asyncio.Transport
        self.seen: Connection
        self.transaction: Transaction | None = None
        self.transaction_number = 0
        self.lost = False
        self.waiting = False  # for a delay or a handshake: nothing is read from the dialogue
        self.muted = False  # whatever comes is thrown away
        self.early = False  # the content was answered before its dot
        self.ahead = -1  # reads there had been when the last content was answered
        self.timer: asyncio.TimerHandle | None = None
        self.handshake: asyncio.Task[None] | None = None
        self._begin_content()

    def _begin_content(self) -> None:
        self.sealed = bytearray()
        self.head = bytearray()
        self.kept: list[bytes] = []
        self.octets = 0
        self.digest = hashlib.sha256()
        self.early = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the greeting."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        name = transport.get_extra_info("sockname")
        self.seen = Connection(
            number=next(self.server.numbers),
            address=str(name[0]),
            port=int(name[1]),
            peer=str(transport.get_extra_info("peername")[0]),
            opened=time.time(),
        )
        self._note_tls()
        self.server.opened(self)
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Feed the dialogue, unless everything is thrown away by now."""
        if self.muted:
            return
        if self.handshake is not None:  # encrypted, and come along with the handshake's end
            self.sealed += data
            return
        self.seen.flights.append([])
        self.dialogue.feed(data)
        self._pump()

    def eof_received(self) -> bool:
        """Close when the client does."""
        self.seen.cause = self.seen.cause or "eof"
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Record the end, once."""
        if self.lost:
            return
        self.lost = True
        if self.timer is not None:
            self.timer.cancel()
        self.muted = self.waiting = True
        self.seen.cause = self.seen.cause or (type(exc).__name__ if exc else "closed")
        self.server.closed(self)

    def abort(self, cause: str) -> None:
        """Cut the connection at once."""
        self.seen.cause = self.seen.cause or cause
        if self.handshake is not None:
            self.handshake.cancel()
        self.transport.abort()

    # The dialogue's side

    def _pump(self) -> None:
        dialogue = self.dialogue
        while not (self.waiting or self.muted):
            event = dialogue.next_event()
            if event is None:
                break
            if isinstance(event, Content):
                self._content(event.chunk)
            elif isinstance(event, Closing):
                self._flush()
                self._finish(event.cause)
            else:
                self._question(event)
        self._flush()
        if dialogue.phase is Phase.HANDSHAKE and not (self.waiting or self.muted):
            self._start_handshake()

    def _flush(self) -> None:
        output = self.dialogue.take_output()
        if output and not self.transport.is_closing():
            self.transport.write(output)

    def _question(self, event: Question) -> None:
        stage = self._stage(event)
        chunked = isinstance(event, ContentEnd) and event.chunked
        if stage and self.seen.flights:
            self.seen.flights[-1].append("bdat" if chunked else stage)
        if isinstance(event, Hello):
            self.seen.hello = event.name
        elif isinstance(event, Credentials):
            self.seen.auth.append((event.mechanism, event.user))
        elif isinstance(event, MailFrom):
            self._begin(event)
        rule = None
        limit = self.director.script.connection_limit
        if stage == "greeting" and 0 < limit < self.server.open:
            rule = _TOO_MANY
        else:
            named = [event.address] if isinstance(event, RcptTo) else None
            for asked in ("bdat", stage) if chunked else (stage,):
                if rule is None and asked and self.director.scripted(asked):
                    rule = self._decide(asked, named)
        if isinstance(event, ContentEnd):
            self._dot(event, rule)
        if rule is not None and rule.delay:
            self._wait(rule.delay, lambda: self._act(event, rule))
        else:
            self._act(event, rule)

    def _stage(self, event: Question) -> str:
        if isinstance(event, Hello):
            return "ehlo" if event.extended else "helo"
        if isinstance(event, (Refused, Inquiry)):
            return ""
        return _STAGES[type(event)]

    def _begin(self, event: MailFrom) -> None:
        self.transaction = Transaction(
            connection=self.seen.number, sender=event.address, params=event.params
        )
        self.server.transactions.append(self.transaction)
        self.transaction_number = len(self.server.transactions)
        self._begin_content()

    def _decide(self, stage: str, named: list[str] | None) -> Rule | None:
        transaction = self.transaction
        accepted = transaction.accepted if transaction else ()
        return self.director.decide(
            Moment(
                stage=stage,
                address=self.seen.address,
                connection=self.seen.number,
                transaction=self.transaction_number,
                sender=transaction.sender if transaction else "",
                recipients=accepted if named is None else named,
                octets=self.octets,
                now=time.monotonic(),
                behind=len(self.seen.flights) == self.ahead,
            )
        )

    # Content

    def _content(self, chunk: bytes) -> None:
        self.octets += len(chunk)
        self.digest.update(chunk)
        if len(self.head) < HEAD_LIMIT:
            self.head += chunk[:HEAD_LIMIT]
        if self.server.keep_content:
            self.kept.append(chunk)
        if self.director.scripted("body") and not self.early:
            rule = self._decide("body", None)
            if rule is not None:
                if rule.delay:
                    self._wait(rule.delay, lambda: self._act_in_body(rule))
                else:
                    self._act_in_body(rule)

    def _act_in_body(self, rule: Rule) -> None:
        if rule.act is Act.REPLY:
            if rule.code is None:
                return
            self.early = True
            self._flush()  # in a flight with BDAT replies before it may still be due
            lines = rule.text.split("\n")
            self.transport.write(render_reply(rule.code, rule.enhanced, *lines))
            if rule.close:
                self._finish("script")
        else:
            self._misbehave(rule)

    def _dot(self, event: ContentEnd, rule: Rule | None) -> None:
        transaction = self.transaction
        if transaction is None:
            return
        if self.early:
            kept = False
        elif rule is None or (rule.act is Act.REPLY and rule.code is None):
            kept = event.default.positive
        else:
            kept = (rule.code or 0) // 100 == 2 if rule.act is Act.REPLY else rule.kept
        transaction.dot = Dot(
            at=time.time(),
            connection=self.seen.number,
            sender=transaction.sender,
            recipients=transaction.accepted,
            message_id=message_id(bytes(self.head)),
            digest=self.digest.hexdigest(),
            octets=event.octets,
            kept=kept,
            content=b"".join(self.kept) if self.server.keep_content else None,
        )
        self.seen.transactions += 1
        self.server.take_dot(transaction.dot)

    # Acts

    def _act(self, event: Question, rule: Rule | None) -> None:
        if rule is not None and rule.act is not Act.REPLY:
            self._note(event, 0)
            self._misbehave(rule)
            return
        if isinstance(event, ContentEnd) and self.early:
            self.dialogue.withhold()
            return
        if isinstance(event, ContentEnd):
            self.ahead = len(self.seen.flights)
        reply = self._answer(event, rule)
        self._note(event, reply.code)
        if rule is not None and rule.deaf:
            self.dialogue.discard()
        self._reply(reply, 1 if rule is None else rule.times)
        if rule is not None and rule.held and not reply.positive:
            self.dialogue.phase = Phase.RCPT
        if rule is not None and rule.close:
            self._flush()
            self._finish("script")

    def _reply(self, reply: Reply, times: int) -> None:
        if times != 1:
            self._flush()
        self.dialogue.reply(reply.code, reply.enhanced, *reply.lines)
        if times != 1:
            self.transport.write(self.dialogue.take_output() * times)

    def _answer(self, event: Question, rule: Rule | None) -> Reply:
        users = self.director.script.auth
        if rule is not None and rule.code is not None:
            lines = tuple(rule.text.split("\n")) if rule.text else ()
            return Reply(rule.code, rule.enhanced, lines)
        if isinstance(event, Credentials):
            secret = users.get(event.user)
            right = secret is not None and event.proves(secret)
            return Reply(235, "2.7.0", ("welcome",)) if right else event.default
        if isinstance(event, Hello) and event.extended:
            script = self.director.script
            if script.chunking and not script.bdat_known:
                return Reply(250, None, (*event.default.lines, "CHUNKING"))
        if isinstance(event, MailFrom) and users and not self.dialogue.authenticated:
            return Reply(530, "5.7.0", ("authentication required",))
        return event.default

    def _note(self, event: Question, code: int) -> None:
        """Record the code that a recipient or a dot is answered with; 0 for none."""
        transaction = self.transaction
        if transaction is not None and isinstance(event, RcptTo):
            transaction.recipients.append((event.address, code))
            transaction.asked.append(event.params)
        elif transaction is not None and isinstance(event, ContentEnd):
            transaction.code = code

    def _misbehave(self, rule: Rule) -> None:
        self._flush()
        if rule.act is Act.CLOSE:
            self._finish("script")
            return
        self.muted = True
        if rule.act is Act.GARBAGE:
            self.transport.write(rule.data.encode("latin-1"))
            if rule.close:
                self._finish("script")
        elif rule.act is Act.STALL:
            self.transport.pause_reading()
        elif rule.act is Act.RESET:
            self.seen.cause = "script"
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
            )
            self.transport.abort()

    def _finish(self, cause: str) -> None:
        """Close in order: FIN, then whatever the client still sends is read and thrown away.

        Closing with unread bytes would send RST, which can destroy the last reply on its way.
        """
        self.muted = True
        self.seen.cause = self.seen.cause or cause
        if self.transport.can_write_eof():
            self.transport.write_eof()
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(FINISH_TIMEOUT, self.transport.abort)
        else:
            self.transport.close()

    def _wait(self, delay: float, then: Callable[[], None]) -> None:
        self._flush()
        self.waiting = True
        self.timer = asyncio.get_running_loop().call_later(delay, self._go_on, then)

    def _go_on(self, then: Callable[[], None]) -> None:
        self.waiting = False
        then()
        self._pump()

    # TLS

    def _start_handshake(self) -> None:
        # Paused before control is given up: the next bytes belong to TLS, not to the dialogue.
        self.waiting = True
        self.transport.pause_reading()
        self.handshake = asyncio.get_running_loop().create_task(self._shake_hands())

    async def _shake_hands(self) -> None:
        context = self.server.tls
        assert context is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self.transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.seen.cause = f"handshake: {type(error).__name__}"
            self.transport.abort()
            self.connection_lost(error)
            return
        finally:
            self.handshake = None
        if transport is None:
            return  # lost during the handshake; connection_lost was called
        self.transport = transport
        self._note_tls()
        self.dialogue.tls_started()
        if self.sealed:
            self.seen.flights.append([])
            self.dialogue.feed(bytes(self.sealed))
            self.sealed.clear()
        self.waiting = False
        self._pump()

    def _note_tls(self) -> None:
        tls = self.transport.get_extra_info("ssl_object")
        self.seen.tls = tls.version() if tls is not None else None
