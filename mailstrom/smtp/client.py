"""The client's dialogue: MAIL, RCPT, DATA or BDAT and content on an established session.

Contract: bytes in, events out; ends come in the order of ``begin``. With PIPELINING a transaction's
``[RSET] MAIL RCPT* DATA`` is one flight, and the next one's flight follows its content's dot (RFC
2920 section 3.1); where a BDAT is known to work ``MAIL RCPT* BDAT n LAST`` and the content are one
flight (RFC 3030 section 2), with ``depth`` several of them. Else one command and one reply.

Every reply is matched to its command by order; what is out of step ends the session's use. Content
follows a 354 only, and only if a recipient was accepted; a 354 without any gets a lone dot. A
flight with a BDAT whose recipients were all refused ends the session: what the server made of the
octets is unknown.

A reply too many or too few would give one recipient another's verdict, so places are counted where
they can be. A 354 stands for DATA alone, and marks its place; an envelope refused without one is
told once RSET behind it got its 250, which no reply to the command before is (the next flight
leaves with it). So it is without PIPELINING, too, where DATA is sent behind several recipients that
were refused, to mark their places. A 421, a close or silence in RSET's place leaves the refusal
standing: servers end sessions so. Where RSET is refused, and nothing left with it, 221 to QUIT
proves the refusal, and nothing else does. DATA that is refused behind several recipients though one
was taken, or in words that one of them got, may be refused by a neighbour's reply, two too late,
and without PIPELINING a 5xx to MAIL may be for the content before: that is told once QUIT got its
221, which nothing else gets. Where nothing answers QUIT a flight is out of step; without PIPELINING
the refusal stands.

A recipient taken behind a refused MAIL, a reply to what has not left, and silence where a flight's
DATA is to be refused, or behind recipients of a BDAT, undo the envelope. Where all of those were
refused before their BDAT left, DATA goes instead, as a mark. Nothing marks the place of a BDAT's
reply. None is believed where garbage came with it, where it came before the BDAT left, where its
enhanced code speaks of an address (a refusal by it: only of a lone recipient's), behind a 503 to a
recipient, or in words that MAIL or RCPT got in this session; a server that has no other words is
spared BDAT. With it no reply to its envelope is believed.

What cannot be seen: a missing reply to content in whose place stands that to the MAIL behind it; a
reply too many before a refusal where 421 or a close came in place of RSET's reply, or without
PIPELINING of QUIT's; several too many, of which the last refuses, before a lone recipient's DATA
(three), or his RCPT without PIPELINING (two; one, where it was said to his MAIL); and with BDAT
whom of several a refusal meant that speaks of no address, or, by a server without enhanced codes,
one too many before the first content of a session.

A loss before the last octet of the content was taken is "not sent", a loss after it is "maybe sent"
(``dot_written``), and the two are never confused: each transaction in flight has its own. RSET is
sent before a transaction that follows an unfinished one, a refused content, or a BDAT whose reply
is still out.

Must not know: clocks (the shell calls ``fail``), sockets, what a reply means for the message.

What stands elsewhere: the order of what is sent and answered (``pipeline``), commands (``flight``),
one transaction's replies (``progress``), what is sent ahead and who stumbles over it
(``liberties``), words of consent (``wording``). Here is what each reply leads to, in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.ending import Endings
from mailstrom.smtp.flight import CONSENT, flight
from mailstrom.smtp.framing import DotStuffer, require_crlf, stuffed
from mailstrom.smtp.liberties import BAD_SEQUENCE, Liberties, spoiled
from mailstrom.smtp.pipeline import Pipeline
from mailstrom.smtp.progress import Progress
from mailstrom.smtp.reply import KINDS, BadReply, Reply, ReplyParser
from mailstrom.smtp.states import CLOSING, STAGES, TABLE, Awaited, Slot, Step
from mailstrom.smtp.transaction import (
    ContentWanted,
    Dialect,
    Envelope,
    Event,
    Extension,
    Fault,
    PeerClosing,
    TransactionEnd,
    Unmet,
    UnmetNeed,
    unmet,
)
from mailstrom.smtp.wording import Wording, refuses_address
from mailstrom.types import Pipelining, Stage

__all__ = [
    "Awaited",
    "ClientDialogue",
    "ContentWanted",
    "Dialect",
    "Envelope",
    "Event",
    "Extension",
    "Fault",
    "PeerClosing",
    "Pipelining",
    "TransactionEnd",
    "Unmet",
    "UnmetNeed",
    "unmet",
]


_GO_AHEAD = 354
_GOODBYE = 221
_UNKNOWN_COMMAND = frozenset({500, 501, 502, 503, 504})


class ClientDialogue:
    """Runs transactions one after another on one established session.

    Args:
        capabilities: from the last EHLO reply.
        dialect: what of them may be used with this server.

    Attributes:
        replies: how many came, so that a shell can tell progress from dripping bytes.
        ready: ``begin`` may be called now.
        parted: the server said goodbye to a QUIT of ours.
    """

    def __init__(self, capabilities: Capabilities, dialect: Dialect) -> None:
        self.capabilities = capabilities
        self.replies = 0
        self.ready = True
        self.parted = False
        self._parser = ReplyParser()
        self._pipeline = Pipeline()
        self._liberties = Liberties(capabilities, dialect)
        self._wording = Wording()
        self._endings = Endings(self._pipeline, self._liberties)

    # What the shell asks

    @property
    def idle(self) -> bool:
        """No transaction is under way."""
        return not self._pipeline.running

    @property
    def awaited(self) -> Awaited:
        """What the session waits for."""
        return self._pipeline.awaited()

    @property
    def stage(self) -> Stage:
        """What reply is awaited; ``BODY`` while content is being written, ``MAIL`` when idle."""
        return STAGES[self._pipeline.awaited()]

    def take_output(self) -> bytes:
        """Bytes to write now, each once; empty if there are none.

        Once the bytes that end a content are taken its message may arrive, whatever happens next.
        """
        return self._pipeline.take()

    # What the shell tells

    def call_back(self) -> None:
        """The last octet that was taken did not leave, and never will: ``fail`` follows.

        A content that ends with it cannot have been taken by the server.
        """
        self._pipeline.call_back()

    def put_down(self) -> None:
        """Bodies whose 354 has not come are forgotten: ``ContentWanted`` asks for them then.

        A BDAT that has not left holds its content: it goes by DATA.
        """
        for transaction in self._pipeline.running:
            transaction.body = None
            if transaction.chunked and transaction.groups:
                transaction.chunked = False
                transaction.groups[-1] = CONSENT

    def begin(self, envelope: Envelope, body: bytes | None = None) -> None:
        """Starts a transaction.

        Args:
            envelope: who to whom.
            body: the whole content, CRLF line ends, not stuffed: it is written when its time has
                come. None: ``ContentWanted`` asks for it.

        Raises:
            RuntimeError: not ``ready``.
            ValueError: no recipient, or an address that is no path. Nothing was written then.
            UnmetNeed: a need the server does not meet (ask ``unmet`` first). Nothing was written.
            BareLineEnd: the body has a CR or LF alone. Nothing was written then.
        """
        if not self.ready:
            raise RuntimeError("the dialogue is not ready; wait, or open another session")
        if not envelope.recipients:
            raise ValueError("an envelope needs at least one recipient")
        lacking = unmet(envelope, self.capabilities)
        if lacking is not None:
            raise UnmetNeed(lacking)
        running, liberties = self._pipeline.running, self._liberties
        clearing = bool(running) and running[-1].clearing
        behind = bool(running) and not clearing
        chunk = None
        if body is not None:
            out = sum(not one.clearing for one in running)  # the others' content will not follow
            if 0 < len(body) <= liberties.chunk_octets and out < liberties.depth:
                require_crlf(body)
                chunk, body = body, None
            else:
                body = stuffed(body)
        unclear = self._endings.reset_due or clearing
        transaction = Progress(
            rcpts=[None] * len(envelope.recipients),
            groups=flight(
                envelope,
                self.capabilities,
                reset=self._endings.reset_due or (behind and running[-1].chunked),
                chunk=chunk,
                # some close behind a refusal, or refuse RSET: what follows must not be in doubt
                proved=liberties.proved and not unclear,
                pipelined=liberties.pipelined,
            ),
            behind=behind,
            chunked=chunk is not None,
            body=body,
        )
        self._endings.reset_due = False
        running.append(transaction)
        self._pipeline.send(transaction)
        self.ready = transaction.given and self._may_begin()

    def content(self, chunk: bytes) -> None:
        """Content bytes, CRLF line ends, any split; only after ``ContentWanted``.

        Raises:
            BareLineEnd: a CR or LF alone; abort the connection, the dot must not follow.
            RuntimeError: no content is wanted (the transaction may have ended meanwhile).
        """
        self._pipeline.content(self._stuffer().feed(chunk))

    def end_content(self) -> None:
        """All content was given: the final dot follows.

        Raises:
            BareLineEnd: the content ends with a CR.
            RuntimeError: no content is wanted.
        """
        last = self._stuffer().end()
        transaction = self._pipeline.running[-1]
        transaction.writing = None
        self._pipeline.end_content(transaction, last)
        self.ready = self._may_begin()

    def receive(self, data: bytes) -> list[Event]:
        """Bytes from the peer; gives what they led to, in order."""
        endings = self._endings
        if endings.broken:
            return []
        garbage = False
        try:
            replies = self._parser.feed(data)
        except BadReply as bad:
            replies, garbage = bad.replies, True
        self.replies += len(replies)
        events: list[Event] = []
        due = self._pipeline.due
        for reply in replies:
            if not due:
                events += endings.not_due(reply)
            else:
                transaction, (slot, index) = due.popleft()
                code = reply.code
                if code >= 500 and endings.too_soon(transaction, slot, reply):
                    transaction.dot_written = False  # what is answered so was not taken
                    events += endings.out_of_step(transaction, slot)
                else:
                    if slot is not Slot.RSET:  # its reply says nothing about this transaction
                        transaction.answered = True
                    if code == CLOSING:
                        events += endings.closing(transaction, slot, index, reply)
                    else:
                        step = _STEPS[slot, code // 100]
                        events += step(self, transaction, slot, index, reply)
            if endings.broken:
                break
        if garbage:
            events += endings.fail(Fault.GARBAGE)
        self.ready = self._may_begin()
        return spoiled(events, self._wording) if endings.broken else events

    def receive_eof(self) -> list[Event]:
        """The peer closed; half a reply counts as none."""
        self.ready = False
        return self._endings.peer_closed()

    def fail(self, fault: Fault) -> list[Event]:
        """The session is over without a reply, by the shell's doing: its timeout, its close."""
        self.ready = False
        return self._endings.fail(fault)

    def _may_begin(self) -> bool:
        """What ``ready`` says, after anything that it depends on."""
        if self._endings.broken:
            return False
        running = self._pipeline.running
        if not running:
            return not self._parser.partial
        last = running[-1]
        if last.clearing:
            return self._liberties.pipelined and not last.parting
        return (
            last.given
            and self._liberties.behind
            and len(running) < self._liberties.depth + (not last.chunked)
        )

    def _stuffer(self) -> DotStuffer:
        running = self._pipeline.running
        if not running or running[-1].writing is None:
            raise RuntimeError("no content is wanted; wait for ContentWanted, stop at the end")
        return running[-1].writing

    # Replies

    def _proceed(
        self, transaction: Progress, slot: Slot, _index: int, reply: Reply
    ) -> Sequence[Event]:
        if slot is Slot.MAIL:
            transaction.mail = reply
            transaction.opened = True
            self._wording.to_mail(reply)
        elif transaction.clearing:
            transaction.opened = False
            return self._endings.end(transaction, transaction.refused or Stage.DATA)
        if transaction.groups:
            self._pipeline.send(transaction)
        return ()

    def _refuse_all(
        self, transaction: Progress, slot: Slot, _index: int, reply: Reply
    ) -> Sequence[Event]:
        transaction.mail = reply
        self._endings.settled(transaction, slot, reply)
        return ()

    def _accept_one(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> Sequence[Event]:
        if not transaction.opened:
            # nobody takes recipients behind a refused MAIL: the refusal was another command's
            return self._endings.out_of_step(transaction, slot)
        transaction.accepted += 1
        transaction.rcpts[index] = reply
        if reply.enhanced is None:
            self._wording.to_envelope(reply)
        if transaction.groups:
            self._pipeline.send(transaction)
        return ()

    def _refuse_one(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> Sequence[Event]:
        transaction.keep(slot, index, reply)
        if transaction.refused is None:
            self._pipeline.send(transaction)
        else:
            self._endings.settled(transaction, slot, reply)
        return ()

    def _refuse_data(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> Sequence[Event]:
        transaction.keep(slot, index, reply)
        self._endings.settled(transaction, slot, reply)
        return ()

    def _go_ahead(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> Sequence[Event]:
        if reply.code != _GO_AHEAD:
            return self._endings.out_of_step(transaction, slot)
        transaction.data = reply
        if not transaction.accepted:
            self._pipeline.add(transaction, b".\r\n", Slot.LONE_DOT)
        elif transaction.body is None:
            transaction.writing = DotStuffer()
            return (ContentWanted(),)
        else:
            self._pipeline.end_content(transaction, transaction.body)
            transaction.body = None
        return ()

    def _finish(
        self, transaction: Progress, slot: Slot, _index: int, reply: Reply
    ) -> Sequence[Event]:
        positive = reply.code < 300
        if positive and (transaction.chunked or len(self._pipeline.running) > 1):
            # A reply that came twice before a BDAT, or none before commands behind content, would
            # put that to a MAIL or RCPT here.
            proved = transaction.chunked and self._liberties.proved
            if self._wording.of_an_envelope(reply, proved, marked=not transaction.chunked):
                return self._endings.out_of_step(transaction, slot)
        transaction.dot = reply
        transaction.opened = not positive  # some keep the envelope of a refused content
        refused = None if transaction.accepted else transaction.refused
        if positive and reply.enhanced is None:
            self._wording.to_content(reply)
        if slot is Slot.BDAT:
            self._liberties.chunk_answered = True
            if refused is not None:
                self._endings.broken = True  # it takes what it refused: nothing holds here
            if reply.enhanced is None and not self._wording.apart:
                # it says the same to everything: no reply in a flight could be told from another
                self._liberties.chunk_octets = 0
                return self._endings.end(
                    transaction, refused or Stage.DOT, None, Extension.CHUNKING
                )
            self._liberties.proved = self._liberties.proved or refused is None
        return self._endings.end(transaction, refused or Stage.DOT)

    def _refuse_chunk(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> Sequence[Event]:
        if transaction.rcpts[1:] and self._of_an_envelope(transaction, reply):
            return self._endings.out_of_step(transaction, slot)
        refused = transaction.refused
        if refused is not None:
            # Whether the octets were skipped, or read as commands, cannot be told.
            self._endings.broken = True
            return self._endings.end(transaction, refused)
        if reply.code in _UNKNOWN_COMMAND:
            self._endings.broken = True  # the octets may have been read as commands
            transaction.dot_written = False  # nothing takes a message by an unknown command
            return self._endings.end(transaction, Stage.DATA, Fault.GARBAGE, Extension.CHUNKING)
        transaction.keep(slot, index, reply)
        self._liberties.chunk_answered = True
        return self._endings.end(transaction, Stage.DOT)

    def _part(
        self, transaction: Progress, slot: Slot, _index: int, reply: Reply
    ) -> Sequence[Event]:
        if reply.code != _GOODBYE:
            return self._endings.out_of_step(transaction, slot)
        self._endings.broken = self.parted = True
        return self._endings.end(transaction, transaction.refused or Stage.DATA)

    def _of_an_envelope(self, transaction: Progress, refusal: Reply) -> bool:
        """Whether the refusal of a BDAT for several may show that a reply too many came before it.

        One more puts the last recipient's there, or that to a refused MAIL at a recipient, before
        503s to all others. Whose is it? By DATA, as the site is served then, a 354 marks the place.
        What a lone recipient got is his own.
        """
        return refuses_address(refusal) or any(
            reply is not None and reply.code == BAD_SEQUENCE for reply in transaction.rcpts
        )

    def _out_of_step(
        self, transaction: Progress, slot: Slot, _index: int, reply: Reply
    ) -> Sequence[Event]:
        if slot is Slot.RSET and self._endings.asks_by_quit(transaction, reply):
            return ()
        return self._endings.out_of_step(transaction, slot)


_Step = Callable[[ClientDialogue, Progress, Slot, int, Reply], Sequence[Event]]

_BY_STEP: dict[Step, _Step] = {
    Step.PROCEED: ClientDialogue._proceed,
    Step.REFUSE_ALL: ClientDialogue._refuse_all,
    Step.REFUSE_ONE: ClientDialogue._refuse_one,
    Step.ACCEPT_ONE: ClientDialogue._accept_one,
    Step.REFUSE_DATA: ClientDialogue._refuse_data,
    Step.GO_AHEAD: ClientDialogue._go_ahead,
    Step.FINISH: ClientDialogue._finish,
    Step.REFUSE_CHUNK: ClientDialogue._refuse_chunk,
    Step.PART: ClientDialogue._part,
    Step.GARBAGE: ClientDialogue._out_of_step,
}
_STEPS = {
    (slot, digit): _BY_STEP[TABLE[slot, kind]] for slot in Slot for digit, kind in KINDS.items()
}
"""What a reply leads to; made once, since a site's one message is a dialogue of its own."""
