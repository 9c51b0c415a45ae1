"""The client's dialogue: MAIL, RCPT, DATA and content on an established session.

Contract: bytes in, events out. With PIPELINING a transaction's ``[RSET] MAIL RCPT* DATA`` is one
flight (RFC 2920 section 3.1), else one command and one reply. Every reply is matched to its
command by order; what is out of step ends the session's use. Content follows a 354 only, and only
if a recipient was accepted; a 354 without any gets a lone dot (RFC 2920 section 3.1). A loss
before the final dot's bytes were taken is "not sent", a loss after it is "maybe sent"
(``dot_written``), and the two are never confused. RSET is sent only before a transaction that
follows an unfinished one.

Replies are awaited in a queue of (transaction, slot, index), so that a later change can put the
next envelope behind the dot without touching the table.

Must not know: clocks (the shell calls ``fail``), sockets, what a reply means for the message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from mailstrom.smtp import commands
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.framing import DotStuffer
from mailstrom.smtp.reply import BadReply, Reply, ReplyParser
from mailstrom.smtp.states import STAGES, TABLE, Progress, Slot, Step
from mailstrom.smtp.transaction import (
    ContentWanted,
    Envelope,
    Event,
    Fault,
    PeerClosing,
    TransactionEnd,
    Unmet,
    unmet,
)
from mailstrom.types import Stage

__all__ = [
    "ClientDialogue",
    "ContentWanted",
    "Envelope",
    "Event",
    "Fault",
    "PeerClosing",
    "TransactionEnd",
    "Unmet",
    "unmet",
]


_CLOSING = 421
_GO_AHEAD = 354


class ClientDialogue:
    """Runs transactions one after another on one established session.

    Args:
        capabilities: from the last EHLO reply.
        pipelining: use PIPELINING where it is offered.
    """

    def __init__(self, capabilities: Capabilities, *, pipelining: bool) -> None:
        self.capabilities = capabilities
        self.replies = 0  # so that a shell can tell progress from dripping bytes
        self._pipelined = pipelining and capabilities.pipelining
        self._parser = ReplyParser()
        self._output: list[bytes] = []
        self._awaited: deque[tuple[Progress, Slot, int]] = deque()
        self._unsent: deque[tuple[Slot, int, bytes]] = deque()
        self._current: Progress | None = None
        self._dot_pending = False
        self._dot_written = False
        self._reset_due = False
        self._broken = False
        self._steps: dict[Step, Callable[[Progress, Slot, int, Reply], list[Event]]] = {
            Step.PROCEED: self._proceed,
            Step.REFUSE_ALL: self._refuse_all,
            Step.REFUSE_ONE: self._refuse_one,
            Step.ACCEPT_ONE: self._accept_one,
            Step.REFUSE_DATA: self._refuse_data,
            Step.GO_AHEAD: self._go_ahead,
            Step.FINISH: self._finish,
            Step.GARBAGE: self._out_of_step,
        }

    # What the shell asks

    @property
    def idle(self) -> bool:
        """No transaction is under way."""
        return self._current is None

    @property
    def usable(self) -> bool:
        """Whether ``begin`` may be called now."""
        return self._current is None and not self._broken and not self._parser.partial

    @property
    def stage(self) -> Stage:
        """What reply is awaited; ``BODY`` while content is being written, ``MAIL`` when idle."""
        if self._awaited:
            return STAGES[self._awaited[0][1]]
        return Stage.MAIL if self._current is None else Stage.BODY

    @property
    def resetting(self) -> bool:
        """The awaited reply is that to RSET (its own, short timeout)."""
        return bool(self._awaited) and self._awaited[0][1] is Slot.RSET

    @property
    def dot_written(self) -> bool:
        """Whether the final dot of the current or last transaction was taken for the wire."""
        return self._dot_written

    def take_output(self) -> bytes:
        """Bytes to write now, each once; empty if there are none.

        Once the bytes with the final dot are taken the message may arrive, whatever happens next.
        """
        if not self._output:
            return b""
        taken = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output.clear()
        if self._dot_pending and self._current is not None:
            self._dot_pending = False
            self._dot_written = True
            self._current.dot_written = True
            self._awaited.append((self._current, Slot.DOT, 0))
        return taken

    # What the shell tells

    def begin(self, envelope: Envelope) -> None:
        """Starts a transaction.

        Raises:
            RuntimeError: not ``usable``.
            ValueError: no recipient, an address that is no path, or a need the server does not
                meet (ask ``unmet`` first). Nothing was written then.
        """
        if not self.usable:
            raise RuntimeError("the dialogue is not usable; open another session")
        if not envelope.recipients:
            raise ValueError("an envelope needs at least one recipient")
        lacking = unmet(envelope, self.capabilities)
        if lacking is not None:
            raise ValueError(f"the server does not offer what the envelope needs: {lacking}")
        flight = self._flight(envelope)
        self._current = Progress(envelope.recipients)
        self._dot_written = self._dot_pending = False
        self._unsent = deque(flight)
        self._reset_due = False
        self._send()

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
        transaction = self._current
        self._output.append(self._stuffer().end())
        if transaction is not None:
            transaction.writing = None
            self._dot_pending = True

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
        if self._broken:
            # what came behind the last reply of a transaction, in the same bytes, spoils its end
            events = [
                replace(event, usable=False) if isinstance(event, TransactionEnd) else event
                for event in events
            ]
        return events

    def receive_eof(self) -> list[Event]:
        """The peer closed; half a reply counts as none."""
        return self.fail(Fault.CLOSED)

    def fail(self, fault: Fault) -> list[Event]:
        """The session is over without a reply (the shell's timeout, a lost connection)."""
        if self._broken:
            return []
        self._broken = True
        transaction = self._current
        if transaction is None:
            return [PeerClosing(reply=None, fault=fault)]
        refused = transaction.refused
        if refused is not None:
            # "550 go away" and a close: the reply decided, the close only ends the session
            return self._end(transaction, refused, None)
        return self._end(transaction, self.stage, fault)

    # Sending

    def _flight(self, envelope: Envelope) -> list[tuple[Slot, int, bytes]]:
        offered = self.capabilities
        flight: list[tuple[Slot, int, bytes]] = []
        if self._reset_due:
            flight.append((Slot.RSET, 0, commands.RSET))
        first = commands.mail(
            envelope.sender,
            size=envelope.size if offered.size is not None else None,
            body="8BITMIME" if envelope.eightbit else None,
            smtputf8=envelope.smtputf8,
        )
        flight.append((Slot.MAIL, 0, first))
        for index, address in enumerate(envelope.recipients):
            line = commands.rcpt(address, smtputf8=envelope.smtputf8)
            flight.append((Slot.RCPT, index, line))
        flight.append((Slot.DATA, 0, commands.DATA))
        return flight

    def _send(self) -> None:
        """Puts the next command, or with PIPELINING all of them, on the wire."""
        transaction = self._current
        while transaction is not None and self._unsent:
            slot, index, line = self._unsent.popleft()
            self._output.append(line)
            self._awaited.append((transaction, slot, index))
            if not self._pipelined:
                return

    def _stuffer(self) -> DotStuffer:
        if self._current is None or self._current.writing is None:
            raise RuntimeError("no content is wanted; wait for ContentWanted, stop at the end")
        return self._current.writing

    # Receiving

    def _match(self, reply: Reply) -> list[Event]:
        self.replies += 1
        if not self._awaited:
            return self._unasked(reply)
        if self._output and reply.code != _CLOSING:
            # it came before its command left: a reply too many
            return self.fail(Fault.GARBAGE)
        transaction, slot, index = self._awaited.popleft()
        if slot is not Slot.RSET:  # its reply says nothing about this transaction
            transaction.answered = True
        if reply.code == _CLOSING:
            return self._closing(transaction, slot, index, reply)
        step = TABLE[slot, reply.kind]
        return self._steps[step](transaction, slot, index, reply)

    def _unasked(self, reply: Reply) -> list[Event]:
        self._broken = True
        transaction = self._current
        if transaction is None:
            closing = reply.code == _CLOSING
            return [PeerClosing(reply=reply, fault=None if closing else Fault.GARBAGE)]
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
        elif slot in (Slot.DOT, Slot.LONE_DOT):
            transaction.dot = reply
        else:
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
        self._send()
        return []

    def _refuse_all(
        self, transaction: Progress, _slot: Slot, _index: int, reply: Reply
    ) -> list[Event]:
        transaction.mail = reply
        self._unsent.clear()
        return self._settled(transaction)

    def _accept_one(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> list[Event]:
        if transaction.opened:
            transaction.accepted += 1
        return self._refuse_one(transaction, slot, index, reply)

    def _refuse_one(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> list[Event]:
        self._keep(transaction, slot, index, reply)
        if transaction.refused is not None:
            self._unsent.clear()
            return self._settled(transaction)
        self._send()
        return []

    def _refuse_data(
        self, transaction: Progress, slot: Slot, index: int, reply: Reply
    ) -> list[Event]:
        self._keep(transaction, slot, index, reply)
        return self._settled(transaction)

    def _go_ahead(self, transaction: Progress, slot: Slot, index: int, reply: Reply) -> list[Event]:
        if reply.code != _GO_AHEAD:
            return self._out_of_step(transaction, slot, index, reply)
        transaction.data = reply
        if transaction.refused is not None:
            self._output.append(b".\r\n")
            self._awaited.append((transaction, Slot.LONE_DOT, 0))
            return []
        transaction.writing = DotStuffer()
        return [ContentWanted()]

    def _finish(self, transaction: Progress, slot: Slot, index: int, reply: Reply) -> list[Event]:
        self._keep(transaction, slot, index, reply)
        transaction.opened = False
        return self._end(transaction, transaction.refused or Stage.DOT, None)

    def _out_of_step(
        self, transaction: Progress, slot: Slot, _index: int, _reply: Reply
    ) -> list[Event]:
        self._broken = True
        if slot in (Slot.RCPT, Slot.DATA):
            # This is the answer to something else: no earlier reply can be trusted to stand with
            # its own recipient.
            transaction.mail = None
            transaction.rcpts = [None] * len(transaction.recipients)
        return self._end(transaction, STAGES[slot], Fault.GARBAGE)

    def _settled(self, transaction: Progress) -> list[Event]:
        """Every recipient is refused: over, unless replies of the flight are still to be read."""
        if self._awaited:
            return []
        return self._end(transaction, transaction.refused or Stage.DATA, None)

    def _end(self, transaction: Progress, stage: Stage, fault: Fault | None) -> list[Event]:
        self._reset_due = transaction.opened
        self._current = None
        self._awaited.clear()
        self._unsent.clear()
        self._output.clear()
        self._dot_pending = False
        return [
            TransactionEnd(
                mail=transaction.mail,
                rcpts=tuple(transaction.rcpts),
                data=transaction.data,
                dot=transaction.dot,
                stage=stage,
                fault=fault,
                dot_written=transaction.dot_written,
                answered=transaction.answered,
                usable=not self._broken,
            )
        ]
