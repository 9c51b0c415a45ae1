"""What is on its way to a server, and the replies that it owes, in one order.

Contract: octets leave in the order in which they were put here, each once; replies are owed in the
order of their commands (RFC 5321 section 4.1.1, RFC 2920 section 3.1), and due once their command
was taken for the wire. Transactions end in the order in which they began. The end of a content
counts as written from the moment it is taken: from then on its message may arrive, unless it is
called back.

Must not know: what a reply says, what it leads to.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat

from mailstrom.smtp.flight import Place
from mailstrom.smtp.progress import Progress
from mailstrom.smtp.states import AWAITED, CONTENT, Awaited, Slot

_DOT: Place = (Slot.DOT, 0)


class Pipeline:
    """The transactions of one session, what they send, and what answers it.

    Attributes:
        running: transactions under way, the first one's replies come first.
        due: whose reply comes next, and what it answers: commands that were taken for the wire.
        unsent: the same, of commands that were not.
    """

    __slots__ = ("_finished", "_output", "_tail", "due", "running", "unsent")

    def __init__(self) -> None:
        self.running: deque[Progress] = deque()
        self.due: deque[tuple[Progress, Place]] = deque()
        self.unsent: deque[tuple[Progress, Place]] = deque()
        self._output: list[bytes] = []
        self._finished: list[Progress] = []  # content that is whole in the output
        self._tail: Progress | None = None  # whose content ends with the last octet of all

    def take(self) -> bytes:
        """What is to be written now, each octet once; empty if there is nothing."""
        output = self._output
        if not output:
            return b""
        taken = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        self.due.extend(self.unsent)
        self.unsent.clear()
        for transaction in self._finished:
            transaction.dot_written = True
        self._finished.clear()
        return taken

    def send(self, transaction: Progress) -> None:
        """Puts its next group on the wire, once every reply to the one before has come."""
        groups = transaction.groups
        line = self.due or self.unsent
        if not groups or (line and line[0][0] is transaction):
            return
        group = groups.popleft()
        self._tail = None
        self._output.append(group.octets)
        self.unsent.extend(zip(repeat(transaction), group.places))
        if transaction.chunked and not groups:
            self._whole(transaction)

    def add(self, transaction: Progress, octets: bytes, slot: Slot) -> None:
        """A command of a transaction that stands in none of its groups."""
        self._tail = None
        self._output.append(octets)
        self.unsent.append((transaction, (slot, 0)))

    def content(self, octets: bytes) -> None:
        """Content that more follows."""
        self._output.append(octets)

    def end_content(self, transaction: Progress, octets: bytes) -> None:
        """The rest of a content, with its final dot."""
        self._output.append(octets)
        self.unsent.append((transaction, _DOT))
        self._whole(transaction)

    def _whole(self, transaction: Progress) -> None:
        """The end of its content is among what is to be written."""
        transaction.given = True
        self._finished.append(transaction)
        self._tail = transaction

    def call_back(self) -> None:
        """The last octet that was taken did not leave, and never will."""
        if self._tail is not None and not self._output:
            self._tail.dot_written = False

    def awaits(self, transaction: Progress) -> bool:
        """Whether the next reply is to be one to this transaction."""
        line = self.due or self.unsent
        return bool(line) and line[0][0] is transaction

    def awaited(self) -> Awaited:
        """What is to come next."""
        if self.due:
            transaction, (slot, _) = self.due[0]
        elif self.unsent and self.unsent[0][1][0] not in CONTENT:
            transaction, (slot, _) = self.unsent[0]
        else:
            return Awaited.BODY if self.running else Awaited.NOTHING
        if slot is Slot.MAIL and transaction.behind and not transaction.answered:
            return Awaited.BEHIND
        return AWAITED[slot]

    def clear(self) -> None:
        """Nothing more is sent or awaited."""
        self.running.clear()
        self.due.clear()
        self.unsent.clear()
        self._output.clear()
        self._finished.clear()
