"""What lanes ask, put together into exchanges, and what came of one given to each who asked.

Contract. What lanes ask meanwhile shares a transaction, and a row of it costs 10 to 15 us. Messages
of one recipient make some hundred rows; those of many, or a worker that had to wait, would make
thousands, and senders would wait for all of them. So what was gathered is cut, so that nobody waits
long for the lock: in order, never through what one lane asked for at once, which holds or fails
together. What is claimed for a lane is told to whoever asked for it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from mailstrom.storage.base import MOST_ROWS, Claimed, ClaimRequest, Exchange, Work

FORGET = 0.9
"""So much is left, after an exchange, of what was learned of messages with many recipients."""

_T = TypeVar("_T")


def rows(work: Work, each: float = 1.0) -> int:
    """How many rows an exchange writes for it, about.

    Args:
        each: rows that a claim takes for each message that it asks for; see ``learned``.
    """
    opened = sum(len(one.recipients) for one in work.opens)
    claimed = sum(min(one.limit * each, MOST_ROWS) for one in work.claims)
    return len(work.settlements) + opened + math.ceil(claimed)


def learned(each: float, claims: Sequence[ClaimRequest], claimed: Sequence[Claimed]) -> float:
    """What ``each`` of ``rows`` is now: it rises at once, and falls slowly; 1 at the least.

    Too little, and what does not fit is asked for once more; too much, and fewer share a commit.

    Args:
        claims: of an exchange.
        claimed: what they gave.
    """
    if not claimed:
        return each
    served = {row.lane for row in claimed}
    asked = sum(one.limit for one in claims if one.lane in served)
    return max(1.0, len(claimed) / max(1, asked), each * FORGET)


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


def joined(works: Iterable[Work]) -> Work:
    """What all of them ask, in one."""
    whole = Work()
    for work in works:
        whole.sessions += work.sessions
        whole.settlements += work.settlements
        whole.opens += work.opens
        whole.claims += work.claims
        whole.lessons += work.lessons
    return whole


def parts(done: Exchange, works: Iterable[Work]) -> list[Exchange]:
    """What an exchange did, for each who asked: claims are its own lanes' alone, the rest is all.

    Args:
        done: of ``joined(works)``, or of those and more.
    """
    claimed: dict[int, list[Claimed]] = {}
    for row in done.claimed:
        claimed.setdefault(row.lane, []).append(row)
    found: list[Exchange] = []
    settled, opened, times = done.settled, done.opened, (done.locked_s, done.freed_s)
    for work in works:
        lanes = [claim.lane for claim in work.claims]
        own = [row for lane in lanes for row in claimed.get(lane, ())]
        ended, more = done.ended.intersection(lanes), done.more.intersection(lanes)
        found.append(Exchange(settled, opened, own, ended, *times, more))
    return found
