"""How transactions end, and how a session does.

Contract: the first of those running ends, with all that is known about it; a session that is broken
ends all of them, since no reply to the others can have come. It is broken by whatever leaves in
doubt which reply is whose, by 421, by a loss, by silence. Replies that decided against every
recipient before that stand, unless which of them was whose cannot be told. What was out of step
on a session used before may have begun with the transaction before: it is told as heard of nothing.

Must not know: what a reply in its place leads to, bytes, when anything is sent.
"""

from __future__ import annotations

from mailstrom.smtp import commands
from mailstrom.smtp.liberties import Liberties, too_soon
from mailstrom.smtp.pipeline import Pipeline
from mailstrom.smtp.progress import Progress
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.states import AWAITED, CLOSING, CONTENT, STAGES, Awaited, Slot
from mailstrom.smtp.transaction import Event, Extension, Fault, PeerClosing
from mailstrom.smtp.wording import refuses_address, repeats
from mailstrom.types import Stage


class Endings:
    """Ends the transactions of one session, and knows what the last of them left.

    Args:
        pipeline: of the session.
        liberties: of the session.

    Attributes:
        broken: no further transaction may be on the session, no reply to one is read.
        reset_due: the server may hold an envelope that nothing ended.
    """

    __slots__ = ("_liberties", "_pipeline", "_refused", "_used", "broken", "reset_due")

    def __init__(self, pipeline: Pipeline, liberties: Liberties) -> None:
        self._pipeline = pipeline
        self._liberties = liberties
        self._used = False  # a transaction ended here
        self._refused = False  # its content was the last to be answered, and refused
        self.broken = False
        self.reset_due = False

    def end(
        self,
        transaction: Progress,
        stage: Stage,
        fault: Fault | None = None,
        stumbled: Extension | None = None,
        *,
        behind: Fault = Fault.ENDED,
    ) -> list[Event]:
        """The first of those running is over; with a broken session all of them are.

        Args:
            transaction: the first of those running.
            stage: where it was decided.
            fault: None if replies decided it.
            stumbled: the extension that is to blame.
            behind: how the session ended for the others, where replies decided the first.
        """
        if stumbled is None and (fault is Fault.GARBAGE or fault is Fault.TIMEOUT):
            stumbled = self._liberties.blamed(
                transaction, stage, fault, followed=self._followed(), refused=self._refused
            )
        running = self._pipeline.running
        running.popleft()
        events: list[Event] = [transaction.end(stage, fault, stumbled, not self.broken)]
        if not self.broken:
            self.reset_due = transaction.opened and not running
            self._used = True
            self._refused = transaction.dot is not None and transaction.dot.code >= 300
            return events
        for other in running:  # no reply to them can have come: replies come in order
            lost = Stage.DOT if other.dot_written else Stage.MAIL
            other.stale = transaction.clearing
            events.append(other.end(lost, fault or behind, None, False))
        self._pipeline.clear()
        return events

    def settled(self, transaction: Progress, slot: Slot, reply: Reply) -> None:
        """Every recipient is refused: told once RSET, or QUIT, behind it is answered as it must be.

        No 354 says that no reply was one too many: what answers RSET must not be what the command
        before it was answered with. The last of several recipients is no such command: he may have
        been taken. DATA is, which has nobody to go to. So it goes behind them where commands leave
        one by one, and where a BDAT was to follow. What a lone recipient got is his own, and honest
        servers complain of a DATA without recipients, or behind a refused MAIL.

        Args:
            transaction: the first of those running.
            slot: what was answered last.
            reply: how.
        """
        pipeline, groups = self._pipeline, transaction.groups
        if pipeline.awaits(transaction):
            groups.clear()  # replies of the flight are still to be read
            return
        if groups and transaction.opened and transaction.rcpts[1:]:
            transaction.chunked = False  # its BDAT did not leave
            groups.clear()
            pipeline.add(transaction, commands.DATA, Slot.DATA)
            return
        groups.clear()
        transaction.clearing = True
        transaction.parting = self._unproved(transaction, slot, reply)
        if transaction.parting:
            pipeline.add(transaction, commands.QUIT, Slot.QUIT)
        else:
            pipeline.add(transaction, commands.RSET, Slot.RSET)

    def asks_by_quit(self, transaction: Progress, reply: Reply) -> bool:
        """Whether QUIT goes out, to show whose the refusal is: RSET was refused behind it.

        Either the server has no RSET, or a reply too many came before, and this is not the one to
        RSET: then that comes in QUIT's place. 221 does not, it answers QUIT alone. Where a flight
        left with the RSET its replies stand before that: it goes alone the next time.
        """
        if not transaction.clearing or reply.code < 400:
            return False
        transaction.reset = reply
        pipeline = self._pipeline
        if len(pipeline.running) > 1 or pipeline.awaits(transaction):
            return False
        transaction.parting = True
        pipeline.add(transaction, commands.QUIT, Slot.QUIT)
        return True

    # Without a reply

    def peer_closed(self) -> list[Event]:
        """The peer closed the connection."""
        running = self._pipeline.running
        at_content = self._pipeline.awaited() is Awaited.DOT
        stumbled = self._followed() if at_content else None
        if running and running[0].chunked:
            # It closes at a BDAT, maybe, or behind each message: all of them by BDAT, or each
            # second one, would be in doubt.
            first = running[0]
            at_bdat = at_content and not self._liberties.chunk_answered
            if at_bdat or (self._used and first.dot_written and not first.answered):
                stumbled = Extension.CHUNKING
        return self.fail(Fault.CLOSED, stumbled)

    def fail(self, fault: Fault, stumbled: Extension | None = None) -> list[Event]:
        """The session is over without a reply; nothing follows if it was before."""
        if self.broken:
            return []
        self.broken = True
        if not self._pipeline.running:
            return [PeerClosing(reply=None, fault=fault)]
        transaction = self._pipeline.running[0]
        if transaction.clearing and (fault is Fault.GARBAGE or self._confirms(transaction)):
            return self._unclear(transaction, fault)
        awaited = self._pipeline.awaited()
        transaction.stale = awaited is Awaited.RSET
        refused = transaction.refused
        if fault is Fault.TIMEOUT and self._missing(transaction, awaited):
            transaction.disbelieve()  # which of them cannot be told
            refused = None
        if refused is not None:
            # "550 go away" and a close: the reply decided, the close only ends the session. Nor
            # does silence behind the last reply take it back: none was too many.
            return self.end(transaction, refused, behind=fault)
        return self.end(transaction, STAGES[awaited], fault, stumbled)

    def _missing(self, transaction: Progress, awaited: Awaited) -> bool:
        """Whether silence may mean that a reply to the flight before is missing.

        With DATA in the flight the reply to that shows it, unless there is nobody to go to.
        """
        if not self._liberties.pipelined:
            return False
        if transaction.chunked:
            several = len(transaction.rcpts) > 1  # what a lone recipient got is his own
            return several and awaited in (Awaited.RCPT, Awaited.DOT)
        return awaited is Awaited.DATA and transaction.refused is not None

    # By a reply that is none to its command

    def too_soon(self, transaction: Progress, slot: Slot, reply: Reply) -> bool:
        """Whether a refusal only says that commands came too soon, or in the wrong place."""
        return too_soon(
            transaction,
            slot,
            reply,
            used=self._used,
            followed=self._followed(),
            flown=self._liberties.pipelined,
        )

    def not_due(self, reply: Reply) -> list[Event]:
        """A reply that no command on the wire waits for."""
        unsent = self._pipeline.unsent
        if not unsent or (unsent[0][1][0] in CONTENT and not unsent[0][0].chunked):
            return self._unasked(reply)
        transaction, (slot, index) = unsent.popleft()
        if reply.code != CLOSING:
            # it came before its command left: a reply too many
            return self.out_of_step(transaction, slot)
        transaction.answered = transaction.answered or slot is not Slot.RSET
        return self.closing(transaction, slot, index, reply)

    def closing(self, transaction: Progress, slot: Slot, index: int, reply: Reply) -> list[Event]:
        """421 anywhere: kept for its stage, and nothing follows it (RFC 5321 section 3.8)."""
        self.broken = True
        if self._confirms(transaction):
            return self._unclear(transaction, Fault.CLOSED)
        transaction.keep(slot, index, reply)
        stage = transaction.refused or STAGES[AWAITED[slot]]
        return self.end(transaction, stage, behind=Fault.CLOSED)

    def out_of_step(self, transaction: Progress, slot: Slot) -> list[Event]:
        """What stands in the place of a reply is the answer to something else."""
        self.broken = True
        if transaction.clearing:
            return self._unclear(transaction)
        transaction.stale = slot in (Slot.RSET, Slot.MAIL) and not transaction.answered
        if slot in (Slot.RCPT, Slot.DATA, Slot.BDAT):
            # no earlier reply can be trusted to stand with its own recipient; behind a 354 they can
            transaction.disbelieve()
            if self._used or transaction.behind:
                self._shifted(transaction)
        return self.end(transaction, STAGES[AWAITED[slot]], Fault.GARBAGE)

    def _unasked(self, reply: Reply) -> list[Event]:
        self.broken = True
        running = self._pipeline.running
        if not running:
            closing = reply.code == CLOSING
            return [PeerClosing(reply=reply, fault=None if closing else Fault.GARBAGE)]
        # The verdict on the content, before its dot left: a refusal holds, a consent cannot.
        if reply.transient or reply.permanent:
            running[0].dot = reply
            closed = Fault.CLOSED if reply.code == CLOSING else Fault.ENDED
            return self.end(running[0], Stage.BODY, behind=closed)
        return self.end(running[0], Stage.BODY, Fault.GARBAGE)

    def _unclear(self, transaction: Progress, fault: Fault = Fault.GARBAGE) -> list[Event]:
        """No answer to RSET or QUIT came behind a refusal: a reply too many came before it.

        Where nothing came it may be so.
        """
        if transaction.reset is not None and fault is not Fault.CUT:
            fault = Fault.GARBAGE  # something came; what it was cannot be told
        transaction.disbelieve()
        self._shifted(transaction)
        stumbled = Extension.PIPELINING if fault is Fault.CLOSED else None
        return self.end(transaction, Stage.DATA, fault, stumbled)

    def _confirms(self, transaction: Progress) -> bool:
        """Whether its refusal is asked for once more, in lock step, where nothing answers QUIT.

        Behind a refused RSET it is none without the 221, in lock step, too.
        """
        return transaction.parting and (self._liberties.pipelined or transaction.reset is not None)

    def _unproved(self, transaction: Progress, slot: Slot, refusal: Reply) -> bool:
        """Whether the reply to RSET could not tell that the last refusal stands in its place.

        With two replies too many it could be a recipient's consent: that refusal was another one's
        then. DATA is refused behind a taken recipient so, or in the words of a refusal before. With
        one too many it could be the consent to MAIL where that left alone, behind replies that
        were read: refused for good it must be proved. Then QUIT proves it: 221 answers nothing
        else. What a lone recipient got is his own.
        """
        if not transaction.opened:
            if slot is Slot.MAIL:
                return refusal.permanent and not self._liberties.pipelined
            return repeats(refusal, transaction.mail)
        if slot is not Slot.DATA or not transaction.rcpts[1:]:
            return False
        if transaction.accepted or refuses_address(refusal):
            return True
        return any(repeats(refusal, before) for before in transaction.rcpts)

    def _shifted(self, transaction: Progress) -> None:
        """What was out of step may have begun before it, if anything came before it."""
        transaction.answered = False  # not by replies that are surely its own
        transaction.stale = self._used

    def _followed(self) -> Extension | None:
        """PIPELINING where something stands behind the first content that is unanswered."""
        return Extension.PIPELINING if len(self._pipeline.running) > 1 else None
