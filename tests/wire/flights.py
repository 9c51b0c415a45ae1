"""Several messages over one session, judged, and compared with what the server took.

Contract. ``fly`` opens one session to a scripted server and feeds it messages as a lane does, each
with the verdicts of the failure policy; ``Flown.words`` puts what became of each into a word, and
``Flown.unsound`` names every recipient of whom client and server believe different things where
they may not. What is not on the wire when the session ends stays unsent, as with a lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from mailstrom.policy.outcome import judge
from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp.client import Dialect, Envelope, Pipelining, TransactionEnd
from mailstrom.testing.records import Connection, Dot
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from mailstrom.types import Judgement, OnDoubt
from mailstrom_workers.session import Outgoing, Session
from mailstrom_workers.wire import Target
from tests.wire.peer import POLICY, opened

DIALECTS = {
    "serial": Dialect(pipelining=Pipelining.NONE),
    "serial-bdat": Dialect(pipelining=Pipelining.NONE, chunk_octets=1 << 20),
    "transaction": Dialect(pipelining=Pipelining.TRANSACTION),
    "transaction-bdat": Dialect(
        pipelining=Pipelining.TRANSACTION, chunk_octets=1 << 20, chunks_proved=True
    ),
    "full": Dialect(pipelining=Pipelining.FULL),
    "first-bdat": Dialect(pipelining=Pipelining.FULL, chunk_octets=1 << 20),
    "bdat": Dialect(pipelining=Pipelining.FULL, chunk_octets=1 << 20, chunks_proved=True),
    "bdat-4": Dialect(
        pipelining=Pipelining.FULL, chunk_octets=1 << 20, chunks_proved=True, depth=4
    ),
}
"""Every way in which a message can go out."""

LONG_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to be sent.

    Args:
        number: what it is known by, in its Message-ID too.
        recipients: its addresses.
        body: its content.
        streamed: its content is read piece by piece.
    """

    number: int
    recipients: tuple[str, ...]
    body: bytes
    streamed: bool = False

    def outgoing(self) -> Outgoing:
        """It as a session takes it."""
        envelope = Envelope(sender="a@sender.test", recipients=self.recipients, size=len(self.body))
        if self.streamed:
            return Outgoing(envelope=envelope, chunks=self._pieces, of=self)
        return Outgoing(envelope=envelope, body=self.body, of=self)

    async def _pieces(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), 50_000):
            yield self.body[start : start + 50_000]


def message(number: int, *recipients: str, octets: int = 0, streamed: bool = False) -> Message:
    """A message of its own; ``octets`` more of content, with lines that start with dots."""
    body = b"Subject: news\r\nMessage-ID: <%d@test>\r\n\r\n.first\r\n" % number
    lines = b".\r\n..%d\r\nQUIT\r\n" % number
    body += lines * (octets // len(lines))
    return Message(
        number=number,
        recipients=recipients or (f"r{number}@example.test",),
        body=body,
        streamed=streamed,
    )


@dataclass(slots=True)
class Lane:
    """The source: gives messages in order while the session is usable, collects their ends."""

    messages: deque[Message]
    ends: dict[int, TransactionEnd] = field(default_factory=dict)
    reused: dict[int, bool] = field(default_factory=dict)
    wire: deque[Message] = field(default_factory=deque)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    session_over: bool = False

    def next(self) -> Outgoing | None:
        """The next message."""
        if not self.messages or self.session_over:
            return None
        one = self.messages.popleft()
        self.wire.append(one)
        self.reused[one.number] = len(self.reused) > 0
        return one.outgoing()

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        """In the order in which they were given."""
        one = self.wire.popleft()
        assert outgoing.of is one
        assert one.number not in self.ends
        self.ends[one.number] = end
        self.session_over = self.session_over or not end.usable
        self._look()

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        """Nothing here is unsendable."""
        raise AssertionError(f"{outgoing.of} cannot be sent") from error

    def lost(self) -> None:
        """The session ended while idle."""
        self.session_over = True
        self._look()

    def _look(self) -> None:
        if not self.wire and (self.session_over or not self.messages):
            self.over.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flown:
    """What came of it.

    Args:
        ends: by message number, of those that were begun.
        dots: what the server had at the end of each content.
        connection: the server's record of the session.
        usable: whether the session could go on.
    """

    messages: Sequence[Message]
    ends: dict[int, TransactionEnd]
    reused: dict[int, bool]
    dots: list[Dot]
    connection: Connection
    usable: bool

    def word(self, one: Message, index: int = 0) -> str:
        """What became of a recipient.

        Returns:
            ``taken``, ``doubt``, ``refused``, ``not-now`` (a 4xx), ``lost`` (charged, without a
            reply), or ``again`` (nothing is charged: not begun, or nothing of it was read).
        """
        end = self.ends.get(one.number)
        if end is None or (end.behind and not end.answered and not end.dot_written):
            return "again"
        verdict = judge(
            end,
            index,
            last_host=True,
            reused=self.reused[one.number],
            on_doubt=OnDoubt.RETRY,
        )
        if verdict.judgement is None:
            return "again"
        if verdict.judgement is Judgement.DELIVERED:
            return "taken"
        if verdict.in_doubt:
            return "doubt"
        if verdict.judgement is Judgement.FAILED:
            return "refused"
        return "lost" if verdict.reply_code is None else "not-now"

    @property
    def words(self) -> list[str]:
        """The word for each message's first recipient, in order."""
        return [self.word(one) for one in self.messages]

    def unsound(self) -> list[str]:
        """Recipients told taken that the server has not, and those it has that would be sent again
        unmarked; contents that are not what was sent."""
        found: list[str] = []
        kept = {
            (dot.message_id, recipient)
            for dot in self.dots
            if dot.kept
            for recipient in dot.recipients
        }
        for one in self.messages:
            for index, recipient in enumerate(one.recipients):
                word, has = self.word(one, index), (f"<{one.number}@test>", recipient) in kept
                if word == "taken" and not has:
                    found.append(f"{recipient} of {one.number} is told taken, and is lost")
                if has and word not in ("taken", "doubt"):
                    found.append(f"{recipient} of {one.number} was taken, and is told {word}")
        digests = {f"<{one.number}@test>": _digest(one.body) for one in self.messages}
        for dot in self.dots:
            if dot.kept and digests.get(dot.message_id) != dot.digest:
                found.append(f"{dot.message_id!r} has other content than was sent")
        return found


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def fly(
    dialect: Dialect, script: Script, messages: Sequence[Message], **seconds: float
) -> Flown:
    """Sends messages over one session.

    Args:
        dialect: what may be used.
        script: how the server behaves.
        seconds: timeouts by stage, for servers that fall silent; others are long.
    """
    stages = ("mail", "rcpt", "data", "body", "dot", "rset")
    timeouts = Timeouts(**{**dict.fromkeys(stages, LONG_S), **seconds})
    async with SMTPServer(script=script) as server:
        target = Target(host="mx.test", address=server.host, port=server.port)
        session = await opened(target, replace(POLICY, dialect=dialect, timeouts=timeouts))
        lane = Lane(deque(messages))
        session.feed(lane)
        await lane.over.wait()
        usable = session.usable
        await _end(session, lane)
        await _deserted(server)
        (connection,) = server.connections
        return Flown(
            messages=list(messages),
            ends=lane.ends,
            reused=lane.reused,
            dots=list(server.dots),
            connection=connection,
            usable=usable,
        )


async def _end(session: Session, lane: Lane) -> None:
    if session.idle and not lane.session_over:
        session.feed(None)
    await session.quit()


async def _deserted(server: SMTPServer) -> None:
    """What the client sent has been read and recorded; a server that stopped reading never does."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            while server.open:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.001)
