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
they can be. A 354 stands for DATA alone, and marks its place; a flight whose DATA was refused is
told once RSET behind it got its 250, which no reply to DATA is (the next flight leaves with it). A
recipient taken behind a refused MAIL, and silence where DATA is to be refused, undo the flight.
Nothing marks the place of a BDAT's reply. None is believed where garbage came with it, where its
enhanced code speaks of an address, or in words that MAIL or RCPT got in this session; a server
that has no other words is spared BDAT. What cannot be seen: a missing reply to content in
whose place stands that to the MAIL behind it; a reply too many that comes late; and with BDAT, by a
server without enhanced codes, one before the first content of a session, or whom a refusal meant.

A loss before the last octet of the
content was taken is "not sent", a loss after it is "maybe sent" (``dot_written``), and the two are
never confused: each transaction in flight has its own. RSET is sent before a transaction that
follows an unfinished one, a refused content, or a BDAT whose reply is still out.

Must not know: clocks (the shell calls ``fail``), sockets, what a reply means for the message.

Longer than a file should be: order is what keeps replies with their transactions, and it is kept
here alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from mailstrom.smtp import commands
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.framing import DotStuffer, require_crlf, stuffed
from mailstrom.smtp.reply import KINDS, BadReply, Reply, ReplyParser
from mailstrom.smtp.states import STAGES, TABLE, Group, Progress, Slot, Step, slots
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
    unmet,
)
from mailstrom.types import Pipelining, Stage

__all__ = [
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
    "unmet",
]


_CLOSING = 421
_GO_AHEAD = 354
_UNKNOWN_COMMAND = frozenset({500, 501, 502, 503, 504})
_BAD_SEQUENCE = 503
_OUT_OF_SYNC = re.compile(r"pipelin|synchroni[sz]", re.IGNORECASE)
_CONTENT = (Slot.DOT, Slot.LONE_DOT, Slot.BDAT)
_MOST_WORDS = 64  # a server may name the recipient in each of its replies


class ClientDialogue:
    """Runs transactions one after another on one established session.

    Args:
        capabilities: from the last EHLO reply.
        dialect: what of them may be used with this server.
    """

    def __init__(self, capabilities: Capabilities, dialect: Dialect) -> None:
        self.capabilities = capabilities
        self.replies = 0  # so that a shell can tell progress from dripping bytes
        self._pipelining = dialect.pipelining if capabilities.pipelining else Pipelining.NONE
        self._chunk_octets = dialect.chunk_octets if capabilities.chunking else 0
        self._chunks_proved = dialect.chunks_proved
        self._depth = dialect.depth
        self._parser = ReplyParser()
        self._output: list[bytes] = []
        self._awaited: deque[tuple[Progress, Slot, int]] = deque()
        self._left = 0  # of the awaited replies, those whose command was taken for the wire
        self._running: deque[Progress] = deque()
        self._finished: list[Progress] = []  # content that is whole in the output
        self._reset_due = False
        self._used = False  # a transaction ended here
        self._refused = False  # its content was the last to be answered, and refused
        # words of consent, where no enhanced code tells more
        self._elsewhere: set[tuple[str, ...]] = set()  # to MAIL and RCPT
        self._to_content: set[tuple[str, ...]] = set()
        self._told_apart = False  # the last one to content had words of its own
        self._broken = False

    # What the shell asks

    @property
    def idle(self) -> bool:
        """No transaction is under way."""
        return not self._running

    @property
    def ready(self) -> bool:
        """Whether ``begin`` may be called now."""
        if self._broken:
            return False
        if not self._running:
            return not self._parser.partial
        last = self._running[-1]
        if last.clearing:
            return True
        if not last.given or self._pipelining is not Pipelining.FULL:
            return False
        return len(self._running) < self._depth + (not last.chunked)

    @property
    def stage(self) -> Stage:
        """What reply is awaited; ``BODY`` while content is being written, ``MAIL`` when idle."""
        if self._left or (self._awaited and self._awaited[0][1] not in _CONTENT):
            return STAGES[self._awaited[0][1]]
        return Stage.BODY if self._running else Stage.MAIL

    @property
    def resetting(self) -> bool:
        """The awaited reply is that to RSET (its own, short timeout)."""
        return bool(self._awaited) and self._awaited[0][1] is Slot.RSET

    @property
    def overdue_behind(self) -> bool:
        """The awaited reply is the first to commands that left behind content, now answered."""
        if not self._awaited:
            return False
        transaction = self._awaited[0][0]
        return transaction.behind and not transaction.answered

    def take_output(self) -> bytes:
        """Bytes to write now, each once; empty if there are none.

        Once the bytes that end a content are taken its message may arrive, whatever happens next.
        """
        if not self._output:
            return b""
        taken = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output.clear()
        self._left = len(self._awaited)
        for transaction in self._finished:
            transaction.dot_written = True
        self._finished.clear()
        return taken

    # What the shell tells

    def begin(self, envelope: Envelope, body: bytes | None = None) -> None:
        """Starts a transaction.

        Args:
            envelope: who to whom.
            body: the whole content, CRLF line ends, not stuffed: it is written when its time has
                come. None: ``ContentWanted`` asks for it.

        Raises:
            RuntimeError: not ``ready``.
            ValueError: no recipient, an address that is no path, or a need the server does not
                meet (ask ``unmet`` first). Nothing was written then.
            BareLineEnd: the body has a CR or LF alone. Nothing was written then.
        """
        if not self.ready:
            raise RuntimeError("the dialogue is not ready; wait, or open another session")
        if not envelope.recipients:
            raise ValueError("an envelope needs at least one recipient")
        lacking = unmet(envelope, self.capabilities)
        if lacking is not None:
            raise ValueError(f"the server does not offer what the envelope needs: {lacking}")
        transaction = Progress(envelope.recipients)
        transaction.behind = bool(self._running) and not self._running[-1].clearing
        if body is not None:
            fits = 0 < len(body) <= self._chunk_octets and len(self._running) < self._depth
            if fits:
                require_crlf(body)
                transaction.chunked = True
            else:
                transaction.body = stuffed(body)
        transaction.groups = self._groups(envelope, transaction, body)
        self._reset_due = False
        self._running.append(transaction)
        self._send(transaction)

    def content(self, chunk: bytes) -> None:
        """Content bytes, CRLF line ends, any split; only after ``ContentWanted``.

        Raises:
            BareLineEnd: a CR or LF alone; abort the connection, the dot must not follow.
            RuntimeError: no content is wanted (the transaction may have ended meanwhile).
        """
        self._output.append(self._stuffer().feed(chunk))

    def end_content(self) -> None:
        """All content was given: the final dot follows.

        Raises:
            BareLineEnd: the content ends with a CR.
            RuntimeError: no content is wanted.
        """
        last = self._stuffer().end()
        transaction = self._running[-1]
        transaction.writing = None
        self._output.append(last)
        self._whole(transaction)
        self._awaited.append((transaction, Slot.DOT, 0))

    def receive(self, data: bytes) -> list[Event]:
        """Bytes from the peer; gives what they led to, in order."""
        if self._broken:
            return []
        garbage = False
        try:
            replies = self._parser.feed(data)
        except BadReply as bad:
            replies, garbage = bad.replies, True
        events: list[Event] = []
        for reply in replies:
            events += self._match(reply)
            if self._broken:
                break
        if garbage:
            events += self.fail(Fault.GARBAGE)
        return self._spoiled(events) if self._broken else events

    def receive_eof(self) -> list[Event]:
        """The peer closed; half a reply counts as none."""
        stumbled = self._waiting() if self.stage is Stage.DOT else None
        if self._used and self._running and not self._running[0].answered:
            # It closes behind each message, maybe: by BDAT each second one would be in doubt.
            stumbled = Extension.CHUNKING if self._running[0].chunked else stumbled
        return self._fail(Fault.CLOSED, stumbled)

    def fail(self, fault: Fault) -> list[Event]:
        """The session is over without a reply, by the shell's doing: its timeout, its close."""
        return self._fail(fault, None)

    def _fail(self, fault: Fault, stumbled: Extension | None) -> list[Event]:
        if self._broken:
            return []
        stage = self.stage
        self._broken = True
        if not self._running:
            return [PeerClosing(reply=None, fault=fault)]
        transaction = self._running[0]
        if transaction.clearing and fault is Fault.GARBAGE:
            return self._unclear(transaction)
        transaction.stale = self.resetting
        refused = transaction.refused
        if refused is not None:
            if fault is not Fault.TIMEOUT or self._awaited[0][1] is not Slot.DATA:
                # "550 go away" and a close: the reply decided, the close only ends the session
                return self._end(transaction, refused, None)
            transaction.disbelieve()  # a reply to the flight is missing: which, cannot be told
        return self._end(transaction, stage, fault, stumbled)

    # Sending

    def _groups(
        self, envelope: Envelope, transaction: Progress, body: bytes | None
    ) -> deque[Group]:
        """What leaves together: all of it, or command by command; an unproved BDAT by itself."""
        offered = self.capabilities
        mail = commands.mail(
            envelope.sender,
            size=envelope.size if offered.size is not None else None,
            body="8BITMIME" if envelope.eightbit else None,
            smtputf8=envelope.smtputf8,
        )
        utf8 = envelope.smtputf8
        lines = [mail, *[commands.rcpt(one, smtputf8=utf8) for one in envelope.recipients]]
        reset = self._reset_due or (transaction.behind and self._running[-1].chunked)
        if reset:
            lines.insert(0, commands.RSET)
        chunked, count = transaction.chunked, len(envelope.recipients)
        alone = chunked and not self._chunks_proved
        slot = Slot.BDAT if chunked else Slot.DATA
        lines.append(commands.bdat(len(body)) + body if chunked and body else commands.DATA)
        if self._pipelining is Pipelining.NONE:
            return deque(
                Group(line, (awaited,))
                for line, awaited in zip(lines, slots(reset, count, slot), strict=True)
            )
        if alone:
            last = lines.pop()
            flight = Group(b"".join(lines), slots(reset, count, None))
            return deque((flight, Group(last, ((slot, 0),))))
        return deque((Group(b"".join(lines), slots(reset, count, slot)),))

    def _send(self, transaction: Progress) -> None:
        """Puts the next group on the wire, once every reply to the one before has come."""
        if not transaction.groups or self._awaits(transaction):
            return
        group = transaction.groups.popleft()
        self._output.append(group.octets)
        self._awaited.extend([(transaction, slot, index) for slot, index in group.slots])
        if transaction.chunked and not transaction.groups:
            self._whole(transaction)

    def _awaits(self, transaction: Progress) -> bool:
        return bool(self._awaited) and self._awaited[0][0] is transaction

    def _whole(self, transaction: Progress) -> None:
        """The end of its content is among what is to be written."""
        transaction.given = True
        self._finished.append(transaction)

    def _stuffer(self) -> DotStuffer:
        if not self._running or self._running[-1].writing is None:
            raise RuntimeError("no content is wanted; wait for ContentWanted, stop at the end")
        return self._running[-1].writing

    # Receiving

    def _match(self, reply: Reply) -> list[Event]:
        self.replies += 1
        awaited = self._awaited
        if self._left:
            self._left -= 1
        elif not awaited or awaited[0][1] in _CONTENT:
            return self._unasked(reply)
        elif reply.code != _CLOSING:
            # it came before its command left: a reply too many
            return self.fail(Fault.GARBAGE)
        transaction, slot, index = awaited.popleft()
        code = reply.code
        if code >= 500 and self._stumbles(transaction, slot, reply):
            transaction.dot_written = False  # what is answered so was not taken
            return self._out_of_step(transaction, slot, index, reply)
        if slot is not Slot.RSET:  # its reply says nothing about this transaction
            transaction.answered = True
        if code == _CLOSING:
            return self._closing(transaction, slot, index, reply)
        return _STEPS[slot, code // 100](self, transaction, slot, index, reply)

    def _stumbles(self, transaction: Progress, slot: Slot, reply: Reply) -> bool:
        """Whether a refusal only says that commands came too soon, or in the wrong place.

        It stands in the place of the first of those commands, or already in that of the content.
        """
        if slot is Slot.MAIL:
            if not transaction.behind:
                # an envelope is still open there: this says nothing about the present one
                return self._used and reply.code == _BAD_SEQUENCE
        elif slot is not Slot.DOT or self._waiting() is None:
            return False
        return reply.code == _BAD_SEQUENCE or any(map(_OUT_OF_SYNC.search, reply.lines))

    def _unasked(self, reply: Reply) -> list[Event]:
        self._broken = True
        if not self._running:
            closing = reply.code == _CLOSING
            return [PeerClosing(reply=reply, fault=None if closing else Fault.GARBAGE)]
        transaction = self._running[0]
        # The verdict on the content, before its dot left: a refusal holds, a consent cannot.
        if reply.transient or reply.permanent:
            transaction.dot = reply
            return self._end(transaction, Stage.BODY, None)
        return self._end(transaction, Stage.BODY, Fault.GARBAGE)

    def _keep(self, transaction: Progress, slot: Slot, index: int, reply: Reply) -> None:
        if slot is Slot.RCPT:
            # after a refused MAIL these answer nothing: 503s that must not look like verdicts
            if transaction.opened:
                transaction.rcpts[index] = reply
        elif slot is Slot.DATA:
            if transaction.opened:
                transaction.data = reply
        elif slot in _CONTENT:
            transaction.dot = reply
        elif not transaction.clearing:
            transaction.mail = reply

    def _closing(self, transaction: Progress, slot: Slot, index: int, reply: Reply) -> list[Event]:
        """421 anywhere: kept for its stage, and nothing follows it (RFC 5321 section 3.8)."""
        self._broken = True
        self._keep(transaction, slot, index, reply)
        return self._end(transaction, transaction.refused or STAGES[slot], None)

    def _proceed(self, transaction: Progress, slot: Slot, _index: int, reply: Reply) -> list[Event]:
        if slot is Slot.MAIL:
            transaction.mail = reply
            transaction.opened = True
            if reply.enhanced is None:
                _remember(self._elsewhere, reply)
        elif transaction.clearing:
            transaction.opened = False
            return self._end(transaction, transaction.refused or Stage.DATA, None)
        if transaction.groups:
            self._send(transaction)
        return []

    def _refuse_all(
        self, transaction: Progress, _slot: Slot, _index: int, reply: Reply
    ) -> list[Event]:
        transaction.mail = reply
        return self._settled(transaction)

    def _accept_one(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> list[Event]:
        if not transaction.opened:
            # nobody takes recipients behind a refused MAIL: the refusal was another command's
            return self._out_of_step(transaction, slot, index, reply)
        transaction.accepted += 1
        transaction.rcpts[index] = reply
        if reply.enhanced is None:
            _remember(self._elsewhere, reply)
        if transaction.groups:
            self._send(transaction)
        return []

    def _refuse_one(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> list[Event]:
        self._keep(transaction, slot, index, reply)
        if transaction.refused is not None:
            return self._settled(transaction)
        self._send(transaction)
        return []

    def _refuse_data(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> list[Event]:
        self._keep(transaction, slot, index, reply)
        if self._pipelining is Pipelining.NONE:
            return self._settled(transaction)
        # No 354 says that this was the last reply to the flight: what answers RSET must not be
        # what DATA was answered with.
        transaction.clearing = True
        self._output.append(commands.RSET)
        self._awaited.append((transaction, Slot.RSET, 0))
        return []

    def _go_ahead(self, transaction: Progress, slot: Slot, index: int, reply: Reply) -> list[Event]:
        if reply.code != _GO_AHEAD:
            return self._out_of_step(transaction, slot, index, reply)
        transaction.data = reply
        if transaction.refused is not None:
            self._output.append(b".\r\n")
            self._awaited.append((transaction, Slot.LONE_DOT, 0))
            return []
        if transaction.body is None:
            transaction.writing = DotStuffer()
            return [ContentWanted()]
        self._output.append(transaction.body)
        transaction.body = None
        self._whole(transaction)
        self._awaited.append((transaction, Slot.DOT, 0))
        return []

    def _finish(self, transaction: Progress, slot: Slot, index: int, reply: Reply) -> list[Event]:
        positive = reply.code < 300
        if positive and self._answers_another(transaction, reply):
            return self._out_of_step(transaction, slot, index, reply)
        transaction.dot = reply
        transaction.opened = not positive  # some keep the envelope of a refused content
        refused = transaction.refused
        if positive and reply.enhanced is None:
            self._told_apart = reply.lines not in self._elsewhere
            _remember(self._to_content, reply)
        if slot is Slot.BDAT:
            self._broken = refused is not None  # it takes what it refused: nothing holds here
            if reply.enhanced is None and not self._told_apart:
                # it says the same to everything: no reply in a flight could be told from another
                self._chunk_octets = 0
                return self._end(transaction, refused or Stage.DOT, None, Extension.CHUNKING)
            self._chunks_proved = self._chunks_proved or refused is None
        return self._end(transaction, refused or Stage.DOT, None)

    def _refuse_chunk(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> list[Event]:
        refused = transaction.refused
        if refused is not None:
            # Whether the octets were skipped, or read as commands, cannot be told.
            self._broken = True
            return self._end(transaction, refused, None)
        if reply.code in _UNKNOWN_COMMAND:
            self._broken = True  # the octets may have been read as commands
            transaction.dot_written = False  # nothing takes a message by an unknown command
            return self._end(transaction, Stage.DATA, Fault.GARBAGE, Extension.CHUNKING)
        self._keep(transaction, slot, index, reply)
        return self._end(transaction, Stage.DOT, None)

    def _out_of_step(
        self, transaction: Progress, slot: Slot, _index: int, _reply: Reply
    ) -> list[Event]:
        self._broken = True
        if transaction.clearing:
            return self._unclear(transaction)
        transaction.stale = slot in (Slot.RSET, Slot.MAIL) and not transaction.answered
        if slot in (Slot.RCPT, Slot.DATA):
            # This is the answer to something else: no earlier reply can be trusted to stand with
            # its own recipient.
            transaction.disbelieve()
            transaction.answered = transaction.answered and not transaction.behind
        return self._end(transaction, STAGES[slot], Fault.GARBAGE)

    def _unclear(self, transaction: Progress) -> list[Event]:
        """What came behind a refusal was no answer to RSET: a reply too many came before it."""
        self._broken = True
        transaction.disbelieve()
        transaction.answered = False  # not by replies that are surely its own
        return self._end(transaction, Stage.DATA, Fault.GARBAGE)

    def _settled(self, transaction: Progress) -> list[Event]:
        """Every recipient is refused: over, unless replies of the flight are still to be read."""
        transaction.groups.clear()
        if self._awaits(transaction):
            return []
        return self._end(transaction, transaction.refused or Stage.DATA, None)

    def _end(
        self,
        transaction: Progress,
        stage: Stage,
        fault: Fault | None,
        stumbled: Extension | None = None,
    ) -> list[Event]:
        """The first of those running is over; with a broken session all of them are."""
        if stumbled is None and fault in (Fault.GARBAGE, Fault.TIMEOUT):
            stumbled = self._stumbled(transaction, stage, fault)
        running = self._running
        running.popleft()
        events: list[Event] = [self._told(transaction, stage, fault, stumbled)]
        if not self._broken:
            self._reset_due = transaction.opened and not running
            self._used = True
            self._refused = transaction.dot is not None and transaction.dot.code >= 300
            return events
        for other in running:  # no reply to them can have come: replies come in order
            lost = Stage.DOT if other.dot_written else Stage.MAIL
            other.stale = transaction.clearing
            events.append(self._told(other, lost, fault or Fault.CLOSED, None))
        running.clear()
        self._awaited.clear()
        self._left = 0
        self._output.clear()
        self._finished.clear()
        return events

    def _stumbled(self, transaction: Progress, stage: Stage, fault: Fault) -> Extension | None:
        """Whether a liberty may be why the server fell silent, or out of step."""
        if transaction.chunked and (fault is Fault.TIMEOUT or stage is Stage.DOT):
            return Extension.CHUNKING
        if self._pipelining is Pipelining.NONE:
            return None
        if stage is Stage.DOT:
            return self._waiting()
        if stage is Stage.MAIL and fault is Fault.GARBAGE and self._refused:
            return None  # the envelope before may be open: too soon for any command but RSET
        behind = transaction.behind and not transaction.answered
        # silence behind the first answer to a flight: the rest of it may have been thrown away
        late = (Stage.RCPT, Stage.DATA)
        flight = stage in (late if fault is Fault.TIMEOUT else (Stage.MAIL, *late))
        return Extension.PIPELINING if behind or flight else None

    def _answers_another(self, transaction: Progress, reply: Reply) -> bool:
        """Whether what should answer content answers a MAIL or RCPT.

        So it is where a reply came twice before a BDAT, or none came before commands behind
        content. The enhanced code tells of an address (RFC 3463 section 3.2); where there is
        none the words do, said to such a command of this session before and to no content.
        """
        if not transaction.chunked and self._waiting() is None:
            return False
        if reply.enhanced is not None:
            return reply.enhanced.startswith("2.1.")
        if reply.lines not in self._elsewhere or reply.lines in self._to_content:
            return False
        return self._told_apart or (transaction.chunked and self._chunks_proved)

    def _waiting(self) -> Extension | None:
        """PIPELINING where something stands behind the first content that is unanswered."""
        return Extension.PIPELINING if len(self._running) > 1 else None

    def _spoiled(self, events: list[Event]) -> list[Event]:
        """What ended in the same bytes as the session: no other transaction may follow.

        With garbage among them a reply to a BDAT may be another command's, and so may one to
        content that others stood behind, in words that others get: they are not believed.
        """
        garbage = any(
            not isinstance(event, ContentWanted) and event.fault is Fault.GARBAGE
            for event in events
        )
        spoiled: list[Event] = []
        ahead = False  # of commands that left behind its content
        for event in reversed(events):
            if isinstance(event, TransactionEnd):
                told, behind = event.dot, event.behind
                event = replace(event, usable=False)
                if garbage and told is not None:
                    if event.chunked:
                        event = replace(
                            event,
                            mail=None,
                            rcpts=(None,) * len(event.rcpts),
                            dot=None,
                            fault=Fault.GARBAGE,
                            stumbled=Extension.CHUNKING,
                        )
                    elif ahead and told.enhanced is None and told.lines in self._elsewhere:
                        event = replace(
                            event, dot=None, fault=Fault.GARBAGE, stumbled=Extension.PIPELINING
                        )
                ahead = behind
            spoiled.append(event)
        spoiled.reverse()
        return spoiled

    def _told(
        self,
        transaction: Progress,
        stage: Stage,
        fault: Fault | None,
        stumbled: Extension | None,
    ) -> TransactionEnd:
        return TransactionEnd(
            mail=transaction.mail,
            rcpts=tuple(transaction.rcpts),
            data=transaction.data,
            dot=transaction.dot,
            stage=stage,
            fault=fault,
            dot_written=transaction.dot_written,
            answered=transaction.answered,
            usable=not self._broken,
            behind=transaction.behind,
            chunked=transaction.chunked,
            stale=transaction.stale,
            stumbled=stumbled,
        )


def _remember(words: set[tuple[str, ...]], reply: Reply) -> None:
    if len(words) < _MOST_WORDS:
        words.add(reply.lines)


_BY_STEP: dict[Step, Callable[[ClientDialogue, Progress, Slot, int, Reply], list[Event]]] = {
    Step.PROCEED: ClientDialogue._proceed,
    Step.REFUSE_ALL: ClientDialogue._refuse_all,
    Step.REFUSE_ONE: ClientDialogue._refuse_one,
    Step.ACCEPT_ONE: ClientDialogue._accept_one,
    Step.REFUSE_DATA: ClientDialogue._refuse_data,
    Step.GO_AHEAD: ClientDialogue._go_ahead,
    Step.FINISH: ClientDialogue._finish,
    Step.REFUSE_CHUNK: ClientDialogue._refuse_chunk,
    Step.GARBAGE: ClientDialogue._out_of_step,
}
_STEPS = {
    (slot, digit): _BY_STEP[TABLE[slot, kind]] for slot in Slot for digit, kind in KINDS.items()
}
"""What a reply leads to; made once, since a site's one message is a dialogue of its own."""
