"""Random interleavings of a client's dialogue with a model of a server that answers in order.

The model takes the bytes as they come, answers each command by its own rules or by lot, and knows
what it took. Bytes of both directions arrive in random pieces at random times; either side may end
at any moment. Whatever happens: each transaction has one end, in order; what is told delivered was
taken, what was taken is told delivered or in doubt; ``dot_written`` is said of exactly those whose
last octet was taken for the wire.
"""

from __future__ import annotations

from collections import deque
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mailstrom.policy.outcome import Action, judge
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Dialect,
    Envelope,
    Event,
    Fault,
    Pipelining,
    TransactionEnd,
)
from mailstrom.types import OnDoubt
from tests.unit.smtp.driving import OFFER, bdat, body, dotted
from tests.unit.smtp.pieces import End, Pieces

DIALECTS = [
    Dialect(pipelining=pipelining, chunk_octets=octets, chunks_proved=proved, depth=depth)
    for pipelining in Pipelining
    for octets, proved, depth in (
        (0, False, 1),
        (1000, False, 1),
        (1000, True, 1),
        (1000, True, 3),
        (1000, False, 3),
    )
]
LOTS = {
    "MAIL": [250] * 12 + [450, 550, 421],
    "RCPT": [250] * 8 + [450, 550, 421],
    "DATA": [354] * 12 + [451, 554, 421],
    "end": [250] * 8 + [451, 554, 421],
    "RSET": [250] * 20 + [421],
}


class Model:
    """A server: bytes in, replies out, and what it took."""

    def __init__(self, lot: Random) -> None:
        self.lot = lot
        self.pieces = Pieces()
        self.said: deque[bytes] = deque()
        self.taken: set[tuple[bytes, bytes]] = set()
        self.closed = False
        self.open = False
        self.recipients: list[bytes] = []

    def feed(self, data: bytes) -> None:
        for piece in () if self.closed else self.pieces.feed(data):
            if isinstance(piece, bytes):
                self._command(piece)
            elif piece is End.CHUNK and not (self.open and self.recipients):
                self._answer(503)
            else:
                self._end()
            if self.closed:
                break

    def _say(self, what: str) -> int:
        code = self.lot.choice(LOTS[what])
        self._answer(code)
        return code

    def _answer(self, code: int) -> None:
        if self.lot.random() < 0.1:
            self.said.append(b"%d-more\r\n" % code)
        self.said.append(b"%d words\r\n" % code)
        self.closed = self.closed or code == 421

    def _end(self) -> None:
        self.pieces.content = False
        if self._say("end") == 250:
            self.taken |= {(self.sender, one) for one in self.recipients}
        self._forget()

    def _forget(self) -> None:
        self.open, self.recipients = False, []

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        if verb == b"MAIL":
            self.sender = rest.split(b">")[0].removeprefix(b"FROM:<")
            self.open = not self.open and self._say("MAIL") == 250
        elif verb == b"RCPT":
            if not self.open:
                self._answer(503)
            elif self._say("RCPT") == 250:
                self.recipients.append(rest.removeprefix(b"TO:<").removesuffix(b">"))
        elif verb == b"DATA":
            if self.recipients:
                self.pieces.content = self._say("DATA") == 354
            else:  # both are seen in the wild (RFC 2920 section 3.1)
                self.pieces.content = self.open and self.lot.random() < 0.5
                self._answer(354 if self.pieces.content else 503)
        elif verb == b"BDAT":
            self.pieces.octets = int(rest.split()[0])
        elif verb == b"RSET":
            self._forget()
            self._say("RSET")
        else:
            assert verb == b"QUIT", line
            self._answer(self.lot.choice([221, 221, 221, 250, 421]))
            self.closed = True


class Client:
    """A dialogue that sends messages as long as it may, and what it was told."""

    def __init__(self, dialect: Dialect, lot: Random, messages: int) -> None:
        self.dialogue = ClientDialogue(OFFER, dialect)
        self.lot = lot
        self.messages = messages
        self.begun: list[Envelope] = []
        self.ends: list[TransactionEnd] = []
        self.wrote = b""
        self.writing: list[bytes] | None = None
        self.over = False

    def act(self) -> None:
        """One thing that the shell may do now."""
        if self.writing is not None:
            if self.writing:
                self.dialogue.content(self.writing.pop(0))
            else:
                self.writing = None
                self.dialogue.end_content()
        elif self.dialogue.ready and len(self.begun) < self.messages:
            number = len(self.begun)
            recipients = tuple(
                f"r{number}-{one}@example.org" for one in range(self.lot.randint(1, 3))
            )
            content = None if self.lot.random() < 0.3 else body(number)
            envelope = Envelope(
                sender=f"s{number}@example.net", recipients=recipients, size=len(body(number))
            )
            self.dialogue.begin(envelope, content)
            self.begun.append(envelope)

    def took(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, TransactionEnd):
                assert not self.over or not event.usable
                self.ends.append(event)
                self.over = self.over or not event.usable
                self.writing = None
            elif isinstance(event, ContentWanted):
                content = body(len(self.ends))
                cut = self.lot.randint(0, len(content))
                self.writing = [content[:cut], content[cut:]]
            else:
                self.over = True
        if self.over:
            self.writing = None


def some(lot: Random, data: bytes) -> int:
    return lot.randint(1, len(data)) if data and lot.random() < 0.7 else len(data)


@settings(max_examples=400, deadline=None)
@given(dialect=st.sampled_from(DIALECTS), seed=st.integers(0, 2**64), messages=st.integers(1, 6))
def test_no_interleaving_loses_or_invents_a_message(
    dialect: Dialect, seed: int, messages: int
) -> None:
    lot = Random(seed)
    client, server = Client(dialect, lot, messages), Model(lot)
    up = down = b""
    cut = lot.random() < 0.3  # the connection does not live to its end
    for _ in range(2000):
        if client.over or (cut and lot.random() < 0.02):
            break
        if client.dialogue.idle and len(client.begun) == messages:
            break
        match lot.randrange(4):
            case 0:
                client.act()
            case 1:
                taken = client.dialogue.take_output()
                client.wrote += taken
                up += taken
            case 2:
                size = some(lot, up)
                server.feed(up[:size])
                up = up[size:]
                while server.said:
                    down += server.said.popleft()
            case _:
                size = some(lot, down)
                client.took(client.dialogue.receive(down[:size]))
                down = down[size:]
                if server.closed and not down and not client.over:
                    client.took(client.dialogue.receive_eof())
    else:
        raise AssertionError("neither side came to an end")
    if not client.over:
        client.took(client.dialogue.fail(lot.choice(list(Fault))))
    server.feed(up)  # what was on its way arrives all the same
    _hold(client, server)


def _hold(client: Client, server: Model) -> None:
    assert len(client.ends) == len(client.begun)
    for number, (envelope, end) in enumerate(zip(client.begun, client.ends, strict=True)):
        whole = bdat(number) if end.chunked else dotted(number)
        assert end.dot_written == (whole in client.wrote), number
        assert end.fault is None or not end.usable
        for index, recipient in enumerate(envelope.recipients):
            verdict = judge(end, index, last_host=True, reused=number > 0, on_doubt=OnDoubt.RETRY)
            taken = (envelope.sender.encode(), recipient.encode()) in server.taken
            if verdict.action is Action.DELIVER:
                assert taken, (number, recipient)
            elif taken:
                assert verdict.in_doubt, (number, recipient)
            if verdict.in_doubt:
                assert end.dot_written
