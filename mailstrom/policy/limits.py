"""What a server takes at once, where it announced no limit and has one: read from its replies.

Two limits are common. A transaction takes so many recipients, and the others get ``452`` (RFC 5321
section 4.5.3.1.10; ``552`` is the older word for it) or an enhanced code x.5.3 (RFC 3463: the
message is to be cut in two). And a connection takes so many messages, and every MAIL after those
gets a 4xx, though the connection stays open: on a new one the server would take them.

A bare ``452`` may speak of a full mailbox as well. So it only makes a suspicion: the number holds
for the session once another transaction took somebody who was refused so. A full mailbox refuses
again.

A single 4xx to MAIL may be meant for its message, and is charged to it. After ``REFUSALS`` in a row
the session counts as full; so does one that ends with a single one, where the one before ended so
behind as many messages. The count is kept for the host, for ``LIMIT_S``, when a new connection then
takes a message: only that proves that it was the connection, and not the message, nor the hour.

It may have been a moment's trouble all the same. So the ``TRIED_FIRST``-th session after that, and
each ``TRIED_EACH``-th then, may go one message further. If the server takes that the count is
forgotten; where it was found a second time it rises by one.

Must not know: the store, sockets, what else was answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple, TypeVar

from mailstrom.policy.blame import fault_of
from mailstrom.policy.verdict import FaultOf
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.states import CLOSING
from mailstrom.smtp.transaction import TransactionEnd
from mailstrom.types import Stage

_K = TypeVar("_K")
_T = TypeVar("_T")

REFUSALS = 2
"""MAIL refused so often in a row: the session takes no more."""
LIMIT_S = 3600.0
"""So long a host's limit is remembered once it was found, or found anew."""
TRIED_FIRST = 4
"""This session behind a proof tries one message more."""
TRIED_EACH = 12
"""Of so many sessions one does so."""
MOST_KEPT = 10_000
MOST_REFUSED = 1_000
"""Recipients of a session that are remembered as one too many."""
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
            reply is not None and reply.code == CLOSING for reply in (end.data, end.dot, *end.rcpts)
        )
    )


class Taken(NamedTuple):
    """How many recipients a server took of a transaction, where all others were too many.

    Args:
        most: so many.
        told: x.5.3 said so; else they may have full mailboxes.
    """

    most: int
    told: bool


def recipients_taken(end: TransactionEnd) -> Taken | None:
    """How many recipients the server takes in a transaction, if this one shows it.

    Args:
        end: of a transaction.

    Returns:
        None where it does not: all others must stand behind those it took, and a lone one that got
        no x.5.3 shows nothing.
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
    return Taken(taken, told) if taken and (told or refused > 1) else None


class SessionRecipients:
    """How many recipients one session takes in a transaction, by its replies to RCPT.

    Args:
        most: by what the server announced.

    Attributes:
        most: by what is known by now.
    """

    __slots__ = ("_refused", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._refused: dict[int, int] = {}  # recipient -> how many were taken instead

    @property
    def suspects(self) -> bool:
        """Whether somebody was refused who may have been one too many."""
        return bool(self._refused)

    def ended(self, end: TransactionEnd, recipients: Sequence[int]) -> None:
        """A transaction ended.

        Args:
            recipients: who they are, in its order.
        """
        if self._refused:
            self._decide(end, recipients)
        found = recipients_taken(end)
        if found is None:
            return
        if found.told:
            self.most = min(self.most, found.most)
            return
        for who, reply in zip(recipients, end.rcpts, strict=True):
            if reply is not None and _too_many(reply):
                _keep(self._refused, who, found.most, MOST_REFUSED)

    def _decide(self, end: TransactionEnd, recipients: Sequence[int]) -> None:
        """Who was refused before and is taken now was one too many; not if more were taken now."""
        taken = sum(reply is not None and reply.positive for reply in end.rcpts)
        for who, reply in zip(recipients, end.rcpts, strict=True):
            before = self._refused.pop(who, 0)
            if reply is not None and reply.positive and taken <= before:
                self.most = min(self.most, before)


def _too_many(reply: Reply) -> bool:
    if reply.code < 400 or reply.code == CLOSING:
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
        and reply.code != CLOSING
        and fault_of(reply, Stage.MAIL, permanent=False) in _SESSION
    )


class _Known(NamedTuple):
    """What is known of a host.

    Args:
        most: messages of a connection; infinite where that was found to be wrong.
        until: so long it is remembered.
        again: it was found to be wrong once.
        sessions: opened since it was found.
    """

    most: float
    until: float
    again: bool = False
    sessions: int = 0


class MailLimits:
    """How many messages the hosts take of a connection, as far as a worker found out.

    Args:
        clock: seconds of any clock that only goes on.

    Attributes:
        moment: grows with each suspicion.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended: dict[str, int] = {}
        self._suspected: dict[str, tuple[int, int]] = {}  # host -> count, moment
        self._known: dict[str, _Known] = {}
        self.moment = 0

    def most(self, host: str) -> float:
        """Messages of one connection; infinite where nothing is known."""
        known = self._remembered(host)
        return inf if known is None else known.most

    def opened(self, host: str) -> tuple[float, bool]:
        """A session was opened: how many messages it may be given, and whether one to try."""
        known = self._remembered(host)
        if known is None:
            return inf, False
        known = known._replace(sessions=known.sessions + 1)
        self._known[host] = known
        tries = known.most < inf and known.sessions % TRIED_EACH == TRIED_FIRST
        return known.most + tries, tries

    def exceeded(self, host: str, taken: int) -> None:
        """A session that was to try took so many."""
        known = self._remembered(host)
        if known is not None and taken > known.most:
            self._known[host] = known._replace(most=taken if known.again else inf, again=True)

    def _remembered(self, host: str) -> _Known | None:
        known = self._known.get(host)
        if known is not None and self._clock() >= known.until:
            del self._known[host]
            return None
        return known

    def ended(self, host: str, taken: int) -> bool:
        """A connection took so many and ended with a refusal: whether the one before did, too."""
        before = self._ended.get(host)
        _keep(self._ended, host, taken)
        return before == taken

    def ended_so(self, host: str, taken: int) -> bool:
        """Whether the last connection that ended with a refusal had taken as many."""
        return self._ended.get(host) == taken

    def suspect(self, host: str, most: int) -> None:
        """A connection took so many, and then refused."""
        self.moment += 1
        _keep(self._suspected, host, (most, self.moment))

    def decide(self, host: str, *, takes: bool, moment: int) -> bool:
        """The first MAIL of a connection was answered: whether that proved a suspicion.

        Args:
            host: whose connection it is.
            takes: whether it was taken.
            moment: at which the connection was begun: one from before a suspicion says nothing.
        """
        most, since = self._suspected.get(host, (0, inf))
        if moment < since:
            return False
        del self._suspected[host]
        if not takes:
            return False
        until = self._clock() + LIMIT_S
        known = self._remembered(host) or _Known(inf, until)
        _keep(self._known, host, known._replace(most=min(most, known.most), until=until))
        return True


class SessionMails:
    """The messages of one session, by the replies to MAIL.

    Args:
        host: whose session it is.
        limits: what is known of the hosts.
        moment: of ``limits``, when the connection was begun.

    Attributes:
        most: so many it may be given.
        full: it took messages, and takes no more.
    """

    __slots__ = ("_host", "_limits", "_moment", "_refused", "_taken", "_tries", "full", "most")

    def __init__(self, host: str, limits: MailLimits, moment: int) -> None:
        self._host = host
        self._limits = limits
        self._moment = moment
        self._taken = self._refused = 0
        self.most, self._tries = limits.opened(host)
        self.full = False

    def took(self) -> bool:
        """MAIL was answered by a 2xx; whether that proved a limit, of this session, too."""
        first = not (self._taken or self._refused)
        self._taken += 1
        self._refused = 0
        if self._tries and self._taken == self.most:
            self._limits.exceeded(self._host, self._taken)
        return first and self._limits.decide(self._host, takes=True, moment=self._moment)

    def refused(self, *, last: bool) -> None:
        """MAIL was answered as ``refuses_session`` says.

        Args:
            last: the session ended with it.
        """
        self._refused += 1
        if self.full:
            return
        if not self._taken:
            self._limits.decide(self._host, takes=False, moment=self._moment)
            return
        host, taken, limits = self._host, self._taken, self._limits
        again = limits.ended(host, taken) if last else limits.ended_so(host, taken)
        if again or self._refused >= REFUSALS or taken >= limits.most(host):
            self.full = True
            limits.suspect(host, taken)

    def over(self) -> None:
        """The session is over, by whosever wish: perhaps no second MAIL was asked.

        What is known of the host may be one too many, or its mail may come in pairs.
        """
        if self._taken and self._refused and not self.full:
            self._limits.ended(self._host, self._taken)


def _keep(kept: dict[_K, _T], key: _K, what: _T, most: int = MOST_KEPT) -> None:
    kept[key] = what
    if len(kept) > most:
        del kept[next(iter(kept))]
