"""What a server takes at once, where it announced no limit and has one: read from its replies.

Two limits are common. A transaction takes so many recipients, and the others get ``452`` (RFC 5321
section 4.5.3.1.10; ``552`` is the older word for it) or an enhanced code x.5.3 (RFC 3463: the
message is to be cut in two). And a connection takes so many messages, and every MAIL after those
gets a 4xx, though the connection stays open: on a new one the server would take them.

A single 4xx to MAIL may be meant for its message, and is charged to it. After ``REFUSALS`` in a row
the session counts as full; so does one that ends with a single one, where the one before ended so
behind as many messages. The count is kept for the host, for ``LIMIT_S``, when a new connection then
takes a message: only that proves that it was the connection, and not the message, nor the hour.

Must not know: the store, sockets, what else was answered.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TypeVar

from mailstrom.policy.blame import SERVICE_CLOSING, fault_of
from mailstrom.policy.verdict import FaultOf
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import TransactionEnd
from mailstrom.types import Stage

_T = TypeVar("_T")

REFUSALS = 2
"""MAIL refused so often in a row: the session takes no more."""
LIMIT_S = 3600.0
"""So long a host's limit holds before more is tried."""
MOST_KEPT = 10_000
STORAGE_EXCEEDED = 552
_TOO_MANY = (452, STORAGE_EXCEEDED)
_SESSION = (FaultOf.REMOTE, FaultOf.SOURCE, FaultOf.RATE, FaultOf.LOCAL)


# --- recipients of a transaction --------------------------------------------------------------


def may_follow(end: TransactionEnd, refusal: Reply) -> bool:
    """Whether a recipient refused at RCPT was one too many, and another transaction may follow.

    Args:
        end: of its transaction. Others must have been taken, so that each transaction leaves fewer,
            and replies must have decided over them: a server that goes away is not asked for each
            recipient.
        refusal: what it got.
    """
    return (
        _too_many(refusal)
        and end.fault is None
        and any(reply is not None and reply.positive for reply in end.rcpts)
        and not any(
            reply is not None and reply.code == SERVICE_CLOSING
            for reply in (end.data, end.dot, *end.rcpts)
        )
    )


def recipients_taken(end: TransactionEnd) -> int | None:
    """How many recipients the server takes in a transaction, if this one shows it.

    Args:
        end: of a transaction.

    Returns:
        None where it does not: all others must stand behind those it took, and a lone one that got
        no x.5.3 may have a full mailbox.
    """
    taken = refused = 0
    told = False
    for reply in end.rcpts:
        if reply is None:
            return None
        if reply.positive:
            if refused:
                return None
            taken += 1
        elif _too_many(reply):
            refused += 1
            told = told or _segments(reply)
    return taken if taken and (told or refused > 1) else None


def _too_many(reply: Reply) -> bool:
    if reply.code < 400 or reply.code == SERVICE_CLOSING:
        return False
    if _segments(reply):
        return True
    by = fault_of(reply, Stage.RCPT, permanent=False)
    return reply.code in _TOO_MANY and by is FaultOf.REMOTE


def _segments(reply: Reply) -> bool:
    return reply.enhanced is not None and reply.enhanced[1:] == ".5.3"


# --- messages of a connection -----------------------------------------------------------------


def refuses_session(reply: Reply) -> bool:
    """Whether a reply to MAIL says "not now" without a word against the message or its sender."""
    return (
        reply.transient
        and reply.code != SERVICE_CLOSING
        and fault_of(reply, Stage.MAIL, permanent=False) in _SESSION
    )


class MailLimits:
    """How many messages the hosts take of a connection, as far as a worker found out.

    Args:
        clock: seconds of any clock that only goes on.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended: dict[str, int] = {}
        self._suspected: dict[str, int] = {}
        self._known: dict[str, tuple[int, float]] = {}

    def most(self, host: str) -> float:
        """Messages of one connection; infinite where nothing is known."""
        known = self._known.get(host)
        if known is None:
            return inf
        most, until = known
        if self._clock() < until:
            return most
        del self._known[host]
        return inf

    def ended(self, host: str, taken: int) -> bool:
        """A connection took so many and ended with a refusal: whether the one before did, too."""
        before = self._ended.get(host)
        _keep(self._ended, host, taken)
        return before == taken

    def suspect(self, host: str, most: int) -> None:
        """A connection took so many, and then refused."""
        _keep(self._suspected, host, most)

    def decide(self, host: str, *, takes: bool) -> bool:
        """The first MAIL of a connection was answered: whether that proved a suspicion."""
        most = self._suspected.pop(host, None)
        if not takes or most is None:
            return False
        _keep(self._known, host, (int(min(most, self.most(host))), self._clock() + LIMIT_S))
        return True


class SessionMails:
    """The messages of one session, by the replies to MAIL.

    Args:
        host: whose session it is.
        limits: what is known of the hosts.

    Attributes:
        full: it took messages, and takes no more.
    """

    __slots__ = ("_host", "_limits", "_refused", "_taken", "full")

    def __init__(self, host: str, limits: MailLimits) -> None:
        self._host = host
        self._limits = limits
        self._taken = self._refused = 0
        self.full = False

    def took(self) -> bool:
        """MAIL was answered by a 2xx; whether that proved a limit, of this session, too."""
        first = not (self._taken or self._refused)
        self._taken += 1
        self._refused = 0
        return first and self._limits.decide(self._host, takes=True)

    def refused(self, *, last: bool) -> None:
        """MAIL was answered as ``refuses_session`` says.

        Args:
            last: the session ended with it.
        """
        self._refused += 1
        if self.full:
            return
        if not self._taken:
            self._limits.decide(self._host, takes=False)
            return
        host, taken = self._host, self._taken
        again = last and self._limits.ended(host, taken)
        if again or self._refused >= REFUSALS or taken >= self._limits.most(host):
            self.full = True
            self._limits.suspect(host, taken)


def _keep(kept: dict[str, _T], host: str, what: _T) -> None:
    kept[host] = what
    if len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]
