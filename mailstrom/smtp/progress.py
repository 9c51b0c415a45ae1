"""What is known of one transaction while it runs, and the value that tells it at its end.

Contract: ``Progress`` holds what was sent and learnt, and derives nothing but what the
replies alone decided. Which reply is whose is settled before it comes here.

Must not know: bytes, when anything is sent, other transactions.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from mailstrom.smtp.flight import Group
from mailstrom.smtp.framing import DotStuffer
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.states import CONTENT, Slot
from mailstrom.smtp.transaction import Extension, Fault, TransactionEnd
from mailstrom.types import Stage


class Progress(Struct, eq=False, kw_only=True, gc=False):
    """What has been sent and learnt of one envelope so far.

    A struct, since one is made for each message; it is part of no cycle.

    Args:
        rcpts: the reply to each recipient, in the envelope's order.
        groups: commands that are still to be sent.
        behind: its commands left behind content that was not answered yet.
        chunked: its content goes by BDAT.
        body: the whole content, stuffed; None: it is asked for, was given, or goes by BDAT.
    """

    rcpts: list[Reply | None]
    groups: deque[Group]
    behind: bool = False
    chunked: bool = False
    body: bytes | None = None
    mail: Reply | None = None
    data: Reply | None = None
    dot: Reply | None = None
    accepted: int = 0
    answered: bool = False
    opened: bool = False  # the server holds an envelope that no content has ended
    writing: DotStuffer | None = None
    given: bool = False  # all content is among what is to be written, or was
    dot_written: bool = False
    stale: bool = False
    clearing: bool = False  # refused, and told once RSET shows that its replies were its own
    parting: bool = False  # as clearing, by QUIT: nothing can follow on the session
    reset: Reply | None = None  # what refused RSET, so that QUIT is to show it
    disbelieved: tuple[Reply | None, ...] = ()

    def keep(self, slot: Slot, index: int, reply: Reply) -> None:
        """A reply that decides, in its place.

        Args:
            slot: what it answers.
            index: the recipient's, where it answers RCPT.
            reply: what was said.
        """
        if slot is Slot.RCPT:
            # after a refused MAIL these answer nothing: 503s that must not look like verdicts
            if self.opened:
                self.rcpts[index] = reply
        elif slot is Slot.DATA:
            if self.opened:
                self.data = reply
        elif slot in CONTENT:
            self.dot = reply
        elif not self.clearing:
            self.mail = reply

    def disbelieve(self) -> None:
        """Forget the replies to the envelope: which of them was whose cannot be told.

        What each recipient was refused with is kept as words alone.
        """
        told = tuple(
            next((one for one in (self.mail, rcpt, self.data) if one and one.code >= 400), None)
            for rcpt in self.rcpts
        )
        if any(told):
            self.disbelieved = told
        self.mail = self.data = None
        self.rcpts = [None] * len(self.rcpts)

    @property
    def refused(self) -> Stage | None:
        """The stage at which replies alone decided against every recipient, or None."""
        if self.mail is not None and self.mail.code >= 300:
            return Stage.MAIL
        if not self.accepted and None not in self.rcpts:
            return Stage.RCPT
        if self.data is not None and self.data.code // 100 != 3:
            return Stage.DATA
        return None

    def end(
        self, stage: Stage, fault: Fault | None, stumbled: Extension | None, usable: bool
    ) -> TransactionEnd:
        """All that is known, now that it is over; see ``TransactionEnd`` for the arguments."""
        return TransactionEnd(
            mail=self.mail,
            rcpts=tuple(self.rcpts),
            data=self.data,
            dot=self.dot,
            stage=stage,
            fault=fault,
            dot_written=self.dot_written,
            answered=self.answered,
            usable=usable,
            behind=self.behind,
            chunked=self.chunked,
            stale=self.stale,
            stumbled=stumbled,
            disbelieved=self.disbelieved,
            reset=self.reset,
        )
