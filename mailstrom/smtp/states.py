"""The client dialogue's states as data: what is awaited, and what each kind of reply leads to.

Contract: ``TABLE`` is total over slot and first digit (RFC 5321 sections 4.2.1 and 4.3.2);
``Progress`` holds what has been learnt about one envelope and derives nothing but ``refused``.

Must not know: bytes, commands, when anything is sent.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum, auto
from functools import lru_cache
from typing import NamedTuple

from mailstrom.smtp.framing import DotStuffer
from mailstrom.smtp.reply import Reply, ReplyKind
from mailstrom.types import Stage


class Slot(StrEnum):
    """What an awaited reply answers."""

    RSET = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    DOT = auto()
    LONE_DOT = auto()
    BDAT = auto()


class Step(StrEnum):
    """What a reply leads to."""

    PROCEED = auto()
    REFUSE_ALL = auto()  # MAIL refused: nothing that follows can change it
    REFUSE_ONE = auto()
    ACCEPT_ONE = auto()
    REFUSE_DATA = auto()
    GO_AHEAD = auto()
    FINISH = auto()
    REFUSE_CHUNK = auto()
    GARBAGE = auto()


STAGES = {
    Slot.RSET: Stage.MAIL,
    Slot.MAIL: Stage.MAIL,
    Slot.RCPT: Stage.RCPT,
    Slot.DATA: Stage.DATA,
    Slot.DOT: Stage.DOT,
    Slot.LONE_DOT: Stage.DOT,
    Slot.BDAT: Stage.DOT,
}

_P, _I = ReplyKind.POSITIVE, ReplyKind.INTERMEDIATE
_T, _F = ReplyKind.TRANSIENT, ReplyKind.PERMANENT

# RFC 5321 section 4.3.2, by first digit. A refused RSET leaves the server in an unknown state.
TABLE: dict[tuple[Slot, ReplyKind], Step] = {
    (Slot.RSET, _P): Step.PROCEED,
    (Slot.RSET, _I): Step.GARBAGE,
    (Slot.RSET, _T): Step.GARBAGE,
    (Slot.RSET, _F): Step.GARBAGE,
    (Slot.MAIL, _P): Step.PROCEED,
    (Slot.MAIL, _I): Step.GARBAGE,
    (Slot.MAIL, _T): Step.REFUSE_ALL,
    (Slot.MAIL, _F): Step.REFUSE_ALL,
    (Slot.RCPT, _P): Step.ACCEPT_ONE,
    (Slot.RCPT, _I): Step.GARBAGE,
    (Slot.RCPT, _T): Step.REFUSE_ONE,
    (Slot.RCPT, _F): Step.REFUSE_ONE,
    (Slot.DATA, _P): Step.GARBAGE,
    (Slot.DATA, _I): Step.GO_AHEAD,
    (Slot.DATA, _T): Step.REFUSE_DATA,
    (Slot.DATA, _F): Step.REFUSE_DATA,
    (Slot.DOT, _P): Step.FINISH,
    (Slot.DOT, _I): Step.GARBAGE,
    (Slot.DOT, _T): Step.FINISH,
    (Slot.DOT, _F): Step.FINISH,
    (Slot.LONE_DOT, _P): Step.FINISH,
    (Slot.LONE_DOT, _I): Step.FINISH,
    (Slot.LONE_DOT, _T): Step.FINISH,
    (Slot.LONE_DOT, _F): Step.FINISH,
    (Slot.BDAT, _P): Step.FINISH,
    (Slot.BDAT, _I): Step.GARBAGE,
    (Slot.BDAT, _T): Step.REFUSE_CHUNK,
    (Slot.BDAT, _F): Step.REFUSE_CHUNK,
}


class Group(NamedTuple):
    """Commands that leave together, and what their replies answer: slot and recipient's index."""

    octets: bytes
    slots: tuple[tuple[Slot, int], ...]


@lru_cache(maxsize=512)
def slots(reset: bool, recipients: int, last: Slot | None) -> tuple[tuple[Slot, int], ...]:
    """What the replies to a flight answer: ``[RSET] MAIL RCPT* [DATA or BDAT]``."""
    before = [(Slot.RSET, 0)] if reset else []
    after = [] if last is None else [(last, 0)]
    return (*before, (Slot.MAIL, 0), *[(Slot.RCPT, index) for index in range(recipients)], *after)


class Progress:
    """What has been learnt about one envelope so far."""

    __slots__ = (
        "accepted",
        "answered",
        "behind",
        "body",
        "chunked",
        "clearing",
        "data",
        "dot",
        "dot_written",
        "given",
        "groups",
        "mail",
        "opened",
        "rcpts",
        "recipients",
        "stale",
        "writing",
    )

    def __init__(self, recipients: tuple[str, ...]) -> None:
        self.recipients = recipients
        self.mail: Reply | None = None
        self.rcpts: list[Reply | None] = [None] * len(recipients)
        self.data: Reply | None = None
        self.dot: Reply | None = None
        self.accepted = 0
        self.answered = False
        self.opened = False  # the server holds an envelope that no content has ended
        self.groups: deque[Group] = deque()
        self.body: bytes | None = None
        self.writing: DotStuffer | None = None
        self.given = False  # all content is among what is to be written, or was
        self.dot_written = False
        self.behind = False
        self.stale = False
        self.chunked = False
        self.clearing = False  # refused, and told once RSET shows that its replies were its own

    def disbelieve(self) -> None:
        """Forget the replies to the envelope: which of them was whose cannot be told."""
        self.mail = self.data = None
        self.rcpts = [None] * len(self.recipients)

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
