"""Servers that end a connection behind recipients that they refused: who is left goes on another.

Many servers count refused recipients: behind so many errors they answer 421 and close (chasquid
behind three, Postfix behind twenty), whoever else is in the envelope. What was refused for good is
settled then. Who is left, those it had taken among them, was not judged at all: on another
connection to the same host, without the refused, they are asked for again at once. Each such round
settles a recipient, so this ends; a host may bear a grudge against whoever it closes on, so it is
bounded as well.

Must not know: what becomes of a recipient (``outcome`` does), sessions, clocks.
"""

from __future__ import annotations

from collections.abc import Hashable

from mailstrom.policy.limits import STORAGE_EXCEEDED
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.states import CLOSING
from mailstrom.smtp.transaction import Fault, TransactionEnd
from mailstrom.types import Stage

MOST_CLOSES = 10
"""A host closed so often on one message in one attempt: who is left then waits for the next."""
MOST_ATTEMPTS = 10_000
"""Attempts whose closes are remembered."""
_BEFORE_CONTENT = (Stage.RCPT, Stage.DATA)


def closed_behind_refusals(end: TransactionEnd) -> bool:
    """Whether the server ended the session behind recipients that it refused, and others are left.

    Only before it said a word of the content: what it says there, 421 too, is about that.

    Args:
        end: of a transaction; at least one recipient must have been refused for good, in a reply
            of its own, before a 421 or a close.
    """
    if end.usable or end.dot is not None or end.stage not in _BEFORE_CONTENT:
        return False
    if end.fault is not Fault.CLOSED and not any(map(_closes, (end.data, *end.rcpts))):
        return False
    rcpts = end.rcpts
    return any(map(_final, rcpts)) and any(map(_open, rcpts))


def _final(reply: Reply | None) -> bool:
    return reply is not None and reply.permanent and reply.code != STORAGE_EXCEEDED


def _closes(reply: Reply | None) -> bool:
    return reply is not None and reply.code == CLOSING


def _open(reply: Reply | None) -> bool:
    return reply is None or reply.positive or reply.code == CLOSING


class Rounds:
    """How often hosts closed so, by attempt, as far as a worker saw it."""

    def __init__(self) -> None:
        self._closes: dict[Hashable, int] = {}

    def closed(self, attempt: Hashable) -> bool:
        """A host closed in this attempt; whether another connection may follow at once."""
        count = self._closes.pop(attempt, 0) + 1
        self._closes[attempt] = count
        if len(self._closes) > MOST_ATTEMPTS:
            del self._closes[next(iter(self._closes))]
        return count < MOST_CLOSES
