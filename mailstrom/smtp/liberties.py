"""What is sent ahead of replies on one session, and whether that is why the server stumbled.

Contract: liberties are what the server offers and the dialect allows; BDAT is proved, or given up,
by what comes back. A liberty is named as an end's ``stumbled`` where a server that mishandles it
would have done what this one did: refused a command for its place, fallen silent behind the first
reply to a flight, answered out of step. What ended in the same bytes as garbage is believed only
as far as no liberty could have shifted it.

Must not know: bytes, the order of replies, what anybody does about it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.progress import Progress
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.states import Slot
from mailstrom.smtp.transaction import (
    ContentWanted,
    Dialect,
    Event,
    Extension,
    Fault,
    TransactionEnd,
)
from mailstrom.smtp.wording import Wording
from mailstrom.types import Pipelining, Stage

BAD_SEQUENCE = 503
_NO_COMMAND = frozenset({500, 502, BAD_SEQUENCE})
_ENVELOPE = frozenset({Slot.MAIL, Slot.RCPT, Slot.DATA})
_OUT_OF_SYNC = re.compile(r"pipelin|synchroni[sz]", re.IGNORECASE)


class Liberties:
    """What may be sent ahead on one session.

    Args:
        capabilities: what the server offers.
        dialect: what of that may be used.

    Attributes:
        pipelined: a transaction's commands may leave in one flight.
        behind: they may leave behind content that is not answered yet.
        chunk_octets: content up to so many octets goes by BDAT; 0: none does.
        depth: transactions whose content is out and unanswered, at most.
        proved: a BDAT worked here, on this session or one before.
        chunk_answered: a BDAT had its reply on this session.
    """

    __slots__ = ("behind", "chunk_answered", "chunk_octets", "depth", "pipelined", "proved")

    def __init__(self, capabilities: Capabilities, dialect: Dialect) -> None:
        pipelining = dialect.pipelining if capabilities.pipelining else Pipelining.NONE
        self.pipelined = pipelining is not Pipelining.NONE
        self.behind = pipelining is Pipelining.FULL
        self.depth = dialect.depth
        self.proved = dialect.chunks_proved
        self.chunk_answered = False
        self.chunk_octets = dialect.chunk_octets if capabilities.chunking else 0

    def blamed(
        self,
        transaction: Progress,
        stage: Stage,
        fault: Fault,
        *,
        followed: Extension | None,
        refused: bool,
    ) -> Extension | None:
        """Which liberty may be why the server fell silent, or out of step.

        Args:
            transaction: the first that was not answered.
            stage: what was awaited.
            fault: ``TIMEOUT`` or ``GARBAGE``.
            followed: what stands behind its content, see ``waiting``.
            refused: the last content that was answered was refused.
        """
        # silence before MAIL was answered is none of a BDAT that did not leave
        shown = transaction.dot_written or stage is not Stage.MAIL
        if transaction.chunked and shown and (fault is Fault.TIMEOUT or stage is Stage.DOT):
            return Extension.CHUNKING
        if not self.pipelined:
            return None
        if stage is Stage.DOT:
            return followed
        if stage is Stage.MAIL and fault is Fault.GARBAGE and refused:
            return None  # the envelope before may be open: too soon for any command but RSET
        behind = transaction.behind and not transaction.answered
        # silence behind the first answer to a flight: the rest of it may have been thrown away
        late = (Stage.RCPT, Stage.DATA)
        flight = stage in (late if fault is Fault.TIMEOUT else (Stage.MAIL, *late))
        return Extension.PIPELINING if behind or flight else None


def too_soon(
    transaction: Progress,
    slot: Slot,
    reply: Reply,
    *,
    used: bool,
    followed: Extension | None,
    flown: bool,
) -> bool:
    """Whether a refusal only says that commands came too soon, or in the wrong place.

    It stands in the place of the first of those commands, or already in that of the content. Of a
    flight's own commands only words tell: 503 may be meant there.

    Args:
        transaction: whose command was refused.
        slot: which.
        reply: the refusal.
        used: a transaction ended on this session before.
        followed: what stands behind its content.
        flown: its commands left in one flight.
    """
    if flown and slot in _ENVELOPE and any(map(_OUT_OF_SYNC.search, reply.lines)):
        # behind a taken recipient a BDAT in the flight may have been taken, too
        return slot is Slot.MAIL or not transaction.chunked
    if slot is Slot.MAIL:
        if not transaction.behind:
            # an envelope is still open there: this says nothing about the present one
            return used and reply.code == BAD_SEQUENCE
        if reply.code in _NO_COMMAND:
            # what is left of a command whose head was thrown away with what came with the content
            return True
    elif slot is not Slot.DOT or followed is None:
        return False
    return reply.code == BAD_SEQUENCE or any(map(_OUT_OF_SYNC.search, reply.lines))


def spoiled(events: Sequence[Event], wording: Wording) -> list[Event]:
    """What ended in the same bytes as the session: no other transaction may follow.

    With garbage among them a reply to a BDAT may be another command's, and so may one to content
    that others stood behind, in words that others get: they are not believed.

    Args:
        events: what the bytes led to, in order.
        wording: of this session.

    Returns:
        The same events, as far as they are believed.
    """
    garbage = any(
        not isinstance(event, ContentWanted) and event.fault is Fault.GARBAGE for event in events
    )
    believed: list[Event] = []
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
                elif ahead and wording.known(told):
                    event = replace(
                        event, dot=None, fault=Fault.GARBAGE, stumbled=Extension.PIPELINING
                    )
            ahead = behind
        believed.append(event)
    believed.reverse()
    return believed
