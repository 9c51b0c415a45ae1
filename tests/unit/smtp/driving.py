"""A client's dialogue driven by hand: what it wrote, what it told, of several transactions."""

from __future__ import annotations

import itertools

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Dialect,
    Envelope,
    Event,
    PeerClosing,
    Pipelining,
    TransactionEnd,
)
from mailstrom.smtp.reply import Reply

OFFER = Capabilities(name="mx", size=0, pipelining=True, eightbitmime=True, chunking=True)
BEHIND = Dialect(pipelining=Pipelining.FULL)
BDAT = Dialect(pipelining=Pipelining.FULL, chunk_octets=1000, chunks_proved=True)
FIRST_BDAT = Dialect(pipelining=Pipelining.FULL, chunk_octets=1000)
DEEP = Dialect(pipelining=Pipelining.FULL, chunk_octets=1000, chunks_proved=True, depth=3)

RSET, DATA, QUIT = b"RSET\r\n", b"DATA\r\n", b"QUIT\r\n"


def mail(number: int) -> bytes:
    return b"MAIL FROM:<s%d@example.net> SIZE=%d\r\n" % (number, len(body(number)))


def rcpts(number: int, count: int = 1) -> bytes:
    return b"".join(b"RCPT TO:<r%d-%d@example.org>\r\n" % (number, one) for one in range(count))


def body(number: int) -> bytes:
    return b"Subject: %d\r\n\r\n.dot\r\n" % number


def dotted(number: int) -> bytes:
    return b"Subject: %d\r\n\r\n..dot\r\n.\r\n" % number


def bdat(number: int) -> bytes:
    return b"BDAT %d LAST\r\n%s" % (len(body(number)), body(number))


_number = itertools.count()


def lines(*codes: int) -> bytes:
    """Replies, each in words of its own."""
    return b"".join(b"%d text %d\r\n" % (code, next(_number)) for code in codes)


class Drive:
    """A dialogue; transaction ``n`` has ``n`` in its sender, its recipients and its content."""

    def __init__(self, dialect: Dialect = BEHIND, *, offer: Capabilities = OFFER) -> None:
        self.dialogue = ClientDialogue(offer, dialect)
        self.wrote = b""
        self.events: list[Event] = []
        self.begun = 0

    def begin(self, count: int = 1, *, streamed: bool = False, take: bool = True) -> Drive:
        number = self.begun
        envelope = Envelope(
            sender=f"s{number}@example.net",
            recipients=tuple(f"r{number}-{one}@example.org" for one in range(count)),
            size=len(body(number)),
        )
        self.dialogue.begin(envelope, None if streamed else body(number))
        self.begun += 1
        if take:
            self.take()
        return self

    def take(self) -> None:
        self.wrote += self.dialogue.take_output()

    def say(self, data: bytes, *, split: int = 0) -> Drive:
        step = split or max(len(data), 1)
        for at in range(0, len(data), step):
            self.events += self.dialogue.receive(data[at : at + step])
            self.take()
        return self

    def took(self, events: list[Event]) -> Drive:
        self.events += events
        return self

    def cleared(self) -> Drive:
        """Forget what was written and told so far."""
        self.wrote, self.events = b"", []
        return self

    @property
    def ends(self) -> list[TransactionEnd]:
        assert not any(isinstance(event, ContentWanted) for event in self.events)
        return [event for event in self.events if isinstance(event, TransactionEnd)]

    @property
    def closings(self) -> list[PeerClosing]:
        return [event for event in self.events if isinstance(event, PeerClosing)]


def code(reply: Reply | None) -> int | None:
    return None if reply is None else reply.code


def codes(end: TransactionEnd) -> tuple[object, ...]:
    return code(end.mail), tuple(map(code, end.rcpts)), code(end.data), code(end.dot)


def warm(dialect: Dialect = BEHIND) -> Drive:
    """A session whose transaction 0 has its dot out, unanswered."""
    drive = Drive(dialect).begin().say(lines(250, 250, 354))
    assert drive.wrote == mail(0) + rcpts(0) + DATA + dotted(0)
    return drive.cleared()
