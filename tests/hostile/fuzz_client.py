"""Fuzz target of the client's dialogue: a server that says anything, at any moment.

The judge keeps what was written and heard in one order of its own and asks of each transaction's
end: one for each, in order; delivered only by a 2xx that was heard behind the last octet of its
content; content only behind a 354; in doubt only where the last octet had left.
"""

from __future__ import annotations

import re

from mailstrom.policy.outcome import Action, judge
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Dialect,
    Envelope,
    Event,
    Fault,
    PeerClosing,
    Pipelining,
    TransactionEnd,
)
from mailstrom.smtp.reply import BadReply, Reply, ReplyParser
from mailstrom.types import OnDoubt
from tests.hostile.fuzz_choices import Choices
from tests.unit.smtp.driving import bdat, body, dotted

CODES = (250, 354, 550, 450, 421, 503, 251, 220, 500, 552, 452, 451, 554, 350, 252, 334, 221)
WORDS = (
    b"ok",
    b"2.1.5 ok",
    b"2.0.0 ok",
    b"5.1.1 no",
    b"bad sequence",
    b"",
    b"2.1.0 ok",
    b"4.2.0 x",
)
MESSAGES = 4


class _Client:
    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        offer = Capabilities(
            name="mx",
            size=choices.one_of((0, None, 40)),
            pipelining=choices.below(4) > 0,
            eightbitmime=True,
            chunking=choices.below(2) > 0,
        )
        dialect = Dialect(
            pipelining=choices.one_of((Pipelining.FULL, Pipelining.TRANSACTION, Pipelining.NONE)),
            chunk_octets=choices.one_of((1000, 0)),
            chunks_proved=choices.below(2) > 0,
            depth=choices.one_of((1, 3)),
        )
        self.dialogue = ClientDialogue(offer, dialect)
        self.begun: list[Envelope] = []
        self.ends: list[TransactionEnd] = []
        self.over = False
        self.writing: list[bytes] | None = None
        self.wrote = b""
        self.heard: list[Reply] = []
        self.complete: list[int | None] = []  # replies heard when a content's last octet left
        self._reader: ReplyParser | None = ReplyParser()

    # What can happen

    def begin(self) -> None:
        number = len(self.begun)
        if not self.dialogue.ready or self.over or number == MESSAGES:
            return
        count = 1 + self.choices.below(3)
        envelope = Envelope(
            sender=f"s{number}@example.net",
            recipients=tuple(f"r{number}-{one}@example.org" for one in range(count)),
            size=len(body(number)),
        )
        self.dialogue.begin(envelope, None if self.choices.below(3) == 1 else body(number))
        self.begun.append(envelope)
        self.complete.append(None)

    def write(self) -> None:
        if self.writing is None or self.over:
            return
        if self.writing:
            self.dialogue.content(self.writing.pop(0))
        else:
            self.writing = None
            self.dialogue.end_content()

    def take(self) -> None:
        before = len(self.wrote)
        self.wrote += self.dialogue.take_output()
        for number, known in enumerate(self.complete):
            if known is None and (dotted(number) in self.wrote or bdat(number) in self.wrote):
                self.complete[number] = len(self.heard)
            head = b"\r\nSubject: %d\r\n" % number
            if head in self.wrote[max(before - len(head), 0) :] and bdat(number) not in self.wrote:
                assert any(one.code == 354 for one in self.heard), "content without a 354"

    def hear(self, data: bytes) -> None:
        if self._reader is not None:
            try:
                self.heard += self._reader.feed(data)
            except BadReply as bad:
                self.heard += bad.replies
                self._reader = None
        self.told(self.dialogue.receive(data))

    def told(self, events: list[Event]) -> None:
        for event in events:
            assert not self.over or not isinstance(event, ContentWanted), "wanted behind the end"
            if isinstance(event, TransactionEnd):
                assert not self.over or not event.usable
                self.ends.append(event)
                self.over = self.over or not event.usable
                self.writing = None
            elif isinstance(event, ContentWanted):
                content = body(len(self.ends))
                at = self.choices.below(len(content))
                self.writing = [content[:at], content[at:]]
            else:
                assert isinstance(event, PeerClosing)
                self.over = True
        assert not (self.over and self.dialogue.ready), "ready on a session that is over"


def client(data: bytes) -> None:
    """Whatever a server says, each recipient has one outcome, and a delivery was confirmed."""
    choices = Choices(data)
    one = _Client(choices)
    one.begin()
    one.take()
    while not choices.over:
        match choices.below(10):
            case 0:
                one.take()
            case 1:
                one.begin()
                one.take()
            case 2:
                one.write()
                one.take()
            case 3:
                one.hear(choices.octets(63))
            case 4 | 5:
                one.hear(_said(choices))
                one.take()
            case 6:
                one.hear(b"".join([_said(choices) for _ in range(choices.below(6))]))
                one.take()
            case 7:
                one.begin()
            case 8:
                if choices.below(4) == 0:
                    one.told(one.dialogue.receive_eof())
            case _:
                if choices.below(4) == 0:
                    one.told(one.dialogue.fail(choices.one_of(tuple(Fault))))
    one.take()
    one.told(one.dialogue.fail(Fault.CUT))
    assert one.dialogue.fail(Fault.CUT) == []
    _judge(one)


def _said(choices: Choices) -> bytes:
    code, words = choices.one_of(CODES), choices.one_of(WORDS)
    more = b"%d-more\r\n" % code if choices.below(8) == 1 else b""
    return more + b"%d %s\r\n" % (code, words)


def _judge(one: _Client) -> None:
    assert len(one.ends) == len(one.begun), "an end for each, and no other"
    behind = -1  # the reply that confirmed the delivery before
    for number, (envelope, end) in enumerate(zip(one.begun, one.ends, strict=True)):
        whole = bdat(number) if end.chunked else dotted(number)
        left = whole in one.wrote
        assert len(end.rcpts) == len(envelope.recipients)
        assert end.fault is None or not end.usable
        assert not end.dot_written or left, "its last octet never left"
        if left and not end.dot_written:
            # only what proves that it was not taken unsays it
            assert any(reply.permanent for reply in one.heard) or end.dot is not None
        if left and not end.chunked:
            assert end.data is None or end.data.code == 354, "content behind no 354"
        for index in range(len(envelope.recipients)):
            verdict = judge(end, index, last_host=True, reused=number > 0, on_doubt=OnDoubt.RETRY)
            if verdict.in_doubt:
                assert end.dot_written, "doubt about what never left"
            if verdict.action is not Action.DELIVER:
                continue
            assert left, "delivered, and never sent"
            assert end.dot is not None, "delivered by no reply"
            assert end.dot.positive, "delivered by a refusal"
            rcpt = end.rcpts[index]
            assert rcpt is not None, "delivered to whom nobody answered for"
            assert rcpt.positive, "delivered to whom the server refused"
            assert rcpt in one.heard
            since = one.complete[number]
            assert since is not None
            at = _heard_behind(one.heard, end.dot, max(since, behind + 1))
            assert at is not None, "delivered by a reply that came before the last octet"
        if end.dot is not None and end.dot.positive and one.complete[number] is not None:
            at = _heard_behind(one.heard, end.dot, max(one.complete[number] or 0, behind + 1))
            behind = behind if at is None else at
    _wrote_commands(one.wrote)


def _heard_behind(heard: list[Reply], reply: Reply, start: int) -> int | None:
    return next((at for at in range(start, len(heard)) if heard[at] == reply), None)


_COMMAND = re.compile(
    rb"RSET|DATA|QUIT|MAIL FROM:<s\d@example\.net>(?: SIZE=\d+)?|RCPT TO:<r\d-\d@example\.org>"
    rb"|BDAT \d+ LAST|Subject: \d|(?:\.?\.dot)?|\."
)


def _wrote_commands(wrote: bytes) -> None:
    """Nothing that the server said is in what was written."""
    for line in wrote.split(b"\r\n")[:-1]:
        assert _COMMAND.fullmatch(line), line
