"""How much goes into one exchange: so many rows that nobody waits long for the lock.

Contract. What lanes ask meanwhile shares a transaction, and a row of it costs 10 to 15 us. Messages
of one recipient make some hundred rows; those of many, or a worker that had to wait, would make
thousands, and senders would wait for all of them. So what was gathered is cut: in order, never
through what one lane asked for at once, which holds or fails together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mailstrom.storage.base import Work

MOST_ROWS = 800
"""About 10 ms of the lock."""

_T = TypeVar("_T")


def rows(work: Work) -> int:
    """How many rows an exchange writes for it, about: a claim takes a row for each message."""
    opened = sum(len(one.recipients) for one in work.opens)
    return len(work.settlements) + opened + sum(one.limit for one in work.claims)


def portions(asked: Sequence[_T], size: Callable[[_T], int]) -> Iterator[Sequence[_T]]:
    """What was asked, cut into pieces of ``MOST_ROWS`` at most, or of one.

    Args:
        size: the rows of one.
    """
    piece: list[_T] = []
    amount = 0
    for one in asked:
        more = size(one)
        if piece and amount + more > MOST_ROWS:
            yield piece
            piece, amount = [], 0
        piece.append(one)
        amount += more
    if piece:
        yield piece
