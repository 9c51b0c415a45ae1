"""One connection of a scripted SMTP server: a connection like any other, that asks a script.

Contract. Every event of the ``ServerDialogue`` passes here: it is recorded, the script is asked,
and what the script leaves open is answered normally. A content is recorded at its final dot before
its answer, delayed or not. Misbehaviour begins only after the replies due before it are out. How
long a client may take is not limited: a test waits as it likes.

Must not know: where the server listens, who reads the record.

Longer than a file should be: what is recorded, and what a rule does, at each stage.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mailstrom.server.connection import Connection
from mailstrom.server.mail import Client, Mail
from mailstrom.server.stages import LATER, Answer
from mailstrom.smtp.reply import Reply, render_reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import (
    ChunkEnd,
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
from mailstrom.testing.records import HEAD_LIMIT, Dot, Transaction, message_id
from mailstrom.testing.records import Connection as Record
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
_TAIL = 64
"""Octets that a rule may wait for, at most."""
_NO_LINGER = struct.pack("ii", 1, 0)


_TOO_MANY = Rule(
    stage="greeting", code=421, enhanced="4.7.0", text="too many connections", close=True
)


class Shell(Connection):
    """One connection; asks the script where another would ask a policy."""

    __slots__ = (
        "_digest",
        "_head",
        "_kept",
        "ahead",
        "director",
        "early",
        "octets",
        "reads",
        "rule",
        "seen",
        "server",
        "tail",
        "timer",
        "transaction",
        "transaction_number",
        "waiting",
    )

    def __init__(self, server: SMTPServer) -> None:
        self.server = server
        self.director = server.director
        script = self.director.script
        possible = server.tls is not None
        dialogue = ServerDialogue(
            script.offer(server.hostname, tls_possible=possible, tls=False),
            secured=script.offer(server.hostname, tls_possible=possible, tls=True),
            tls=server.implicit_tls,
            recipient_limit=script.recipient_limit,
            error_limit=0,
            login_limit=0,
            challenge=lambda: f"<{os.urandom(12).hex()}@{server.hostname}>",
        )
        super().__init__(
            server.sessions, dialogue, tls=server.tls, implicit_tls=server.implicit_tls
        )
        self.seen: Record
        self.rule: Rule | None = None  # for the question that is open
        self.transaction: Transaction | None = None
        self.transaction_number = 0
        self.reads = 0
        self.ahead = -1  # reads there had been when the last content was answered
        self.timer: asyncio.TimerHandle | None = None
        self.tail = b""  # of what came
        self.waiting: tuple[Question, Rule] | None = None  # for what is to come behind
        self._begin_content()

    def _begin_content(self) -> None:
        self.early = False  # the content was answered before its dot
        self.octets = 0
        self._head = bytearray()
        self._kept: list[bytes] = []
        self._digest = hashlib.sha256()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Record it, and begin."""
        name = transport.get_extra_info("sockname")
        peer = transport.get_extra_info("peername") or ("",)
        self.seen = Record(
            number=next(self.server.numbers),
            address=str(name[0]),
            port=int(name[1]),
            peer=str(peer[0]),
            opened=time.time(),
        )
        self.server.opened(self)
        super().connection_made(transport)

    def received(self, data: bytes) -> None:
        """Record a flight."""
        if self.attentive:
            self.reads += 1
            if self.server.keep_flights:
                self.seen.flights.append([])
        self.tail = (self.tail + data)[-_TAIL:]
        super().received(data)
        self._look_behind()

    def eof_received(self) -> bool:
        """Close when the client does: a delay may be long, and tests count who is open."""
        self.cause = self.cause or "eof"
        return False

    def on_secured(self) -> None:
        """Record the version."""
        self.seen.tls = self.tls_version

    def on_closed(self) -> None:
        """Record the end."""
        if self.timer is not None:
            self.timer.cancel()
        self.seen.cause = self.cause
        self.server.closed(self)

    # The dialogue's side

    def ask(self, event: Question) -> Answer:
        """What the script says."""
        stage = self._stage(event)
        chunked = isinstance(event, ContentEnd) and event.chunked
        if stage and self.seen.flights:
            self.seen.flights[-1].append("bdat" if chunked else stage)
        if isinstance(event, Hello):
            self.seen.hello = event.name
        elif isinstance(event, Credentials):
            self.seen.auth.append((event.mechanism, event.user))
        elif isinstance(event, MailFrom):
            self._new_transaction(event)
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
        self.rule = rule
        if rule is not None and rule.until:
            self.waiting = (event, rule)
            self.loop.call_soon(self._look_behind)  # it may be here already
            return LATER
        if rule is not None and rule.delay:
            self._later(rule.delay, lambda: self._act_late(event, rule))
            return LATER
        return self._act(event, rule)

    def _look_behind(self) -> None:
        """Act if what a rule waits for stands behind the command."""
        if self.waiting is None or self.over:
            return
        event, rule = self.waiting
        wanted = rule.until.encode("latin-1")
        if self.dialogue.buffered >= len(wanted) and self.tail.endswith(wanted):
            self.waiting = None
            self._later(rule.delay, lambda: self._act_late(event, rule))

    def _stage(self, event: Question) -> str:
        if isinstance(event, Hello):
            return "ehlo" if event.extended else "helo"
        if isinstance(event, (Refused, Inquiry)):
            return ""
        return _STAGES[type(event)]

    def _new_transaction(self, event: MailFrom) -> None:
        self.transaction = Transaction(
            connection=self.seen.number, sender=event.address, params=event.params
        )
        self.server.transactions.append(self.transaction)
        self.transaction_number = next(self.server.transaction_numbers)
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
                behind=self.reads == self.ahead,
            )
        )

    # Content

    def on_content(self, chunk: bytes) -> None:
        """Record it, and see what the script says of it."""
        self.octets += len(chunk)
        self._digest.update(chunk)
        if len(self._head) < HEAD_LIMIT:
            self._head += chunk[:HEAD_LIMIT]
        if self.server.keep_content:
            self._kept.append(chunk)
        if self.director.scripted("body") and not self.early:
            rule = self._decide("body", None)
            if rule is not None:
                if rule.delay:
                    self.rest()
                    self._later(rule.delay, lambda: self._act_in_body_late(rule))
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
                self.finish("script")
        else:
            self._misbehave(rule)

    def _act_in_body_late(self, rule: Rule) -> None:
        self._act_in_body(rule)
        self.go_on()

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
        content = b"".join(self._kept) if self.server.keep_content else None
        transaction.dot = Dot(
            at=time.time(),
            connection=self.seen.number,
            sender=transaction.sender,
            recipients=transaction.accepted,
            message_id=message_id(bytes(self._head)),
            digest=self._digest.hexdigest(),
            octets=event.octets,
            kept=kept,
            content=content,
        )
        self.seen.transactions += 1
        self.server.take_dot(transaction.dot)
        if kept and content is not None:
            self._take_mail(content)

    def _take_mail(self, content: bytes) -> None:
        sender = self.sender
        assert sender is not None, "content without a sender"
        self.server.take_mail(
            Mail(
                client=Client(
                    address=self.peer[0],
                    port=self.peer[1],
                    helo=self.helo,
                    tls=self.tls_version,
                    user=self.user,
                ),
                sender=sender.address,
                recipients=tuple(recipient.address for recipient in self.recipients),
                parameters=sender.params,
                recipient_parameters=tuple(recipient.params for recipient in self.recipients),
                content=content,
            )
        )

    # Acts

    def _act(self, event: Question, rule: Rule | None) -> Reply | None:
        """The reply, or None where there is none."""
        if rule is not None and rule.act is not Act.REPLY:
            self._note(event, 0)
            self._misbehave(rule)
            return None
        return self._answer(event, rule)

    def _act_late(self, event: Question, rule: Rule) -> None:
        reply = self._act(event, rule)
        if reply is not None:
            self.answer(reply)

    def settle(self, event: Question, reply: Reply) -> None:
        """Answer, as often and with what else the rule says."""
        rule = self.rule
        if isinstance(event, ContentEnd):
            if self.early:
                self.dialogue.withhold()
                return
            self.ahead = self.reads
        self._note(event, reply.code)
        if rule is not None and rule.deaf:
            self.dialogue.discard()
        times = 1 if rule is None else rule.times
        if times != 1:
            self._flush()
        super().settle(event, reply)
        if times != 1:
            self._write(self.dialogue.take_output() * times)
        if rule is not None and rule.held and not reply.positive:
            self.dialogue.phase = Phase.RCPT
        if rule is not None and rule.close:
            self._flush()
            self.finish("script")

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
            self.finish("script")
            return
        if rule.act is Act.GARBAGE:
            self._write(rule.data.encode("latin-1"))
            if rule.close:
                self.finish("script")
                return
        self.mute()
        if rule.act is Act.STALL:
            self.transport.pause_reading()
        elif rule.act is Act.RESET:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
            )
            self.abort("script")

    def _later(self, delay: float, then: Callable[[], None]) -> None:
        self.timer = asyncio.get_running_loop().call_later(delay, then)
