"""What a lane has in hand, by how far it came: waiting, opened, on the wire.

Claims are worked off in the order in which they came, but what has a higher priority passes what
is not on the wire yet, for a while: then what was passed goes, or a flood of high mail would keep
it for ever. Content in hand counts for the worker's budget (``Context``) from here to its end.

Must not know: the store, sessions, verdicts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain

from mailstrom.storage.base import Claimed
from mailstrom_workers.context import Context
from mailstrom_workers.transactions import Transaction

YIELD_S = 1.0
"""So long after its claim a message lets those of higher priority pass."""


class Stock:
    """The transactions of one lane; each is in one of the queues.

    Args:
        ctx: whose budget counts the content.

    Attributes:
        waiting: claimed, for the present host or a later one.
        later: claimed, for another host than the present one.
        apart: claimed, for another session than the present one; see ``rejoin``.
        opening: in the exchange that is to open them.
        opened: on disk as ``sending``, not on the wire.
        wire: given to the session, in this order.
        starved: the wire asked for more than was opened, and nothing was since.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._held = 0  # of the budget
        self.waiting: deque[Transaction] = deque()
        self.later: deque[Transaction] = deque()
        self.apart: deque[Transaction] = deque()
        self.opening: list[Transaction] = []
        self.opened: deque[Transaction] = deque()
        self.wire: deque[Transaction] = deque()
        self.starved = False

    @property
    def ahead(self) -> int:
        """Transactions that the wire can go on with."""
        return len(self.waiting) + len(self.opening) + len(self.opened)

    @property
    def bound(self) -> Iterator[Claimed]:
        """Recipients that are opened for the present session and not on its wire, or are to be."""
        for transaction in chain(self.opened, self.opening):
            yield from transaction.recipients

    def take_in(
        self,
        rows: Iterable[Claimed],
        now_s: float,
        most: int,
        *,
        opened: Container[int],
        opened_at: float,
    ) -> int:
        """Claimed recipients, those of a message side by side; returns how many messages.

        Args:
            now_s: loop time of the claim.
            most: recipients of one transaction.
            opened: recipients that were opened with it, a message with all of them.
            opened_at: when; as in ``Transaction``.
        """
        last: Transaction | None = None
        count = 0
        for row in rows:
            if (
                last is not None
                and last.recipients[0].message == row.message
                and len(last.recipients) < most
            ):
                last.recipients.append(row)
                continue
            last = Transaction([row], claimed_at=now_s)
            count += 1
            self.hold(last)
            if row.recipient in opened:
                last.opened_at = opened_at
                self.open(last, now_s)
            else:
                put(self.waiting, last, now_s)
        return count

    def open(self, transaction: Transaction, now_s: float) -> None:
        """It is opened: the wire may go on with it.

        Args:
            now_s: loop time.
        """
        put(self.opened, transaction, now_s)
        self.starved = False

    def split(
        self, transaction: Transaction, recipients: int, domains: Container[str] | None
    ) -> None:
        """Leave in a transaction what a server takes at once; the rest waits, first in line.

        Args:
            recipients: most of one transaction.
            domains: those that its session may be given; None: any.
        """
        own = transaction.recipients
        most = min(len(own), recipients)
        if domains is not None and any(row.domain not in domains for row in own):
            places: dict[str, int] = {}
            for row in own:
                places.setdefault(row.domain, len(places))
            # side by side, or domains in turn would part them all
            own = sorted(own, key=lambda row: (row.domain not in domains, places[row.domain]))
            transaction.narrow(own)
            most = min(most, sum(row.domain in domains for row in own))
        if most < len(own):
            rest = transaction.rest(most)
            self.hold(rest)
            self.waiting.appendleft(rest)

    def hold(self, transaction: Transaction) -> None:
        """It came in hand: its content counts for the budget, to its end."""
        octets = transaction.octets
        self._held += octets
        self._ctx.hold(octets)

    def put_back(self, transactions: Sequence[Transaction], now_s: float) -> None:
        """They wait again, before all others but those that a host left unanswered, or pass them.

        The unanswered stay first: on a session's second place the next limit of the server would be
        theirs.

        Args:
            now_s: loop time.
        """
        waiting, index = self.waiting, 0
        for number, one in enumerate(waiting, 1):
            if one.unanswered:
                index = number
            elif not transactions or one.priority >= transactions[0].priority:
                break  # else it may be what came later and is more urgent, and passed them
        for transaction in transactions:
            while index < len(waiting) and _passes(waiting[index], transaction, now_s):
                index += 1
            waiting.insert(index, transaction)
            index += 1

    def rejoin(self, now_s: float) -> bool:
        """What does not suit the present session waits for the next one, before all others.

        Args:
            now_s: loop time.

        Returns:
            Whether there is such.
        """
        if not self.apart:
            return False
        self.put_back(self.apart, now_s)
        self.apart.clear()
        return True

    def put_down(self) -> None:
        """The content of what is on the wire is in hand no more; it can be read again."""
        for transaction in self.wire:
            if transaction.octets:
                self.over(transaction)
                transaction.put_down()

    def over(self, transaction: Transaction) -> None:
        """Nothing of it is in hand any more."""
        octets = transaction.octets
        self._held -= octets
        self._ctx.free(octets)

    def clear(self) -> None:
        """The lane is over: its budget is free, also of what an error took out of its queue."""
        waits = self.waiting, self.later, self.apart
        for queue in (*waits, self.opening, self.opened, self.wire):
            queue.clear()
        self._ctx.free(self._held)
        self._held = 0


def put(queue: deque[Transaction], transaction: Transaction, now_s: float) -> None:
    """Append it, in front of those of lower priority whose time to yield is not over."""
    priority = transaction.priority
    if not queue or queue[-1].priority <= priority:
        queue.append(transaction)
        return
    index = len(queue)
    while index:
        if not _passes(transaction, queue[index - 1], now_s):
            break
        index -= 1
    queue.insert(index, transaction)


def _passes(one: Transaction, before: Transaction, now_s: float) -> bool:
    """Whether it goes in front of one that stood before it."""
    return (
        one.priority < before.priority
        and before.claimed_at < one.claimed_at
        and now_s - before.claimed_at < YIELD_S
    )
