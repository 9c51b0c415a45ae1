"""The client dialogue's states as data: what is awaited, and what each kind of reply leads to.

Contract: ``TABLE`` is total over slot and first digit (RFC 5321 sections 4.2.1 and 4.3.2).

Must not know: bytes, commands, when anything is sent.
"""

from __future__ import annotations

from enum import StrEnum, auto

from mailstrom.smtp.reply import ReplyKind
from mailstrom.types import Stage

CLOSING = 421
"""The code that ends a session wherever it comes (RFC 5321 section 3.8)."""


class Slot(StrEnum):
    """What an awaited reply answers."""

    RSET = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    DOT = auto()
    LONE_DOT = auto()
    BDAT = auto()
    QUIT = auto()  # the mark behind a refusal that RSET cannot prove


CONTENT = frozenset({Slot.DOT, Slot.LONE_DOT, Slot.BDAT})
"""Slots whose reply is one to content."""


class Awaited(StrEnum):
    """What a session waits for: all that decides how long it may."""

    NOTHING = auto()
    BODY = auto()  # content is being written
    RSET = auto()  # or QUIT: nothing but what proves a refusal is waited for
    MAIL = auto()
    BEHIND = auto()  # the first reply to commands that left behind content, which is answered
    RCPT = auto()
    DATA = auto()
    DOT = auto()


AWAITED = {
    Slot.RSET: Awaited.RSET,
    Slot.MAIL: Awaited.MAIL,
    Slot.RCPT: Awaited.RCPT,
    Slot.DATA: Awaited.DATA,
    Slot.DOT: Awaited.DOT,
    Slot.LONE_DOT: Awaited.DOT,
    Slot.BDAT: Awaited.DOT,
    Slot.QUIT: Awaited.RSET,
}

STAGES = {
    Awaited.NOTHING: Stage.MAIL,
    Awaited.BODY: Stage.BODY,
    Awaited.RSET: Stage.MAIL,
    Awaited.MAIL: Stage.MAIL,
    Awaited.BEHIND: Stage.MAIL,
    Awaited.RCPT: Stage.RCPT,
    Awaited.DATA: Stage.DATA,
    Awaited.DOT: Stage.DOT,
}


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
    PART = auto()
    GARBAGE = auto()


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
    (Slot.QUIT, _P): Step.PART,
    (Slot.QUIT, _I): Step.GARBAGE,
    (Slot.QUIT, _T): Step.GARBAGE,
    (Slot.QUIT, _F): Step.GARBAGE,
}
