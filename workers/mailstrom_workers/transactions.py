"""Recipients of one message that travel together, and what is left of them for another host.

Values of a lane: what goes to a session (``Transaction``), what comes back from one undone
(``Again``), and what the hosts of one walk have said so far (``Pass``). They decide nothing, and
know neither sessions nor the spool.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from mailstrom.policy.verdict import Verdict
from mailstrom.smtp.dsn import Asked
from mailstrom.smtp.transaction import Envelope
from mailstrom.storage.base import Attempt, Claimed
from mailstrom.types import OnDoubt


def _asked(rows: list[Claimed]) -> tuple[Asked, ...]:
    """What is asked for each of them, or nothing where nothing is."""
    for row in rows:
        if row.notify is not None or row.orcpt is not None:
            return tuple([(one.notify, one.orcpt) for one in rows])
    return ()


class Transaction(Struct, eq=False):
    """Recipients of one message that travel together.

    Args:
        claimed_at: loop time when they were claimed.
        position: index of the first host that may still take them.
        hosts_tried: hosts that have answered for them in this attempt.
        reconnected: whether a closed session was already renewed for them.
        unanswered: whether a host ended the session without a word on them.
        envelope: what MAIL and RCPT say for all of them; None: to be made.
        opened_at: loop time when the store looked whether they may be sent.
        started_ms: when they went to the session.
        reused: whether that had begun a transaction before.
        octets: content held in memory.
        priority: rank of its message; 0 is the highest.
    """

    recipients: list[Claimed]
    claimed_at: float = 0.0
    position: int = 0
    hosts_tried: int = 0
    reconnected: bool = False
    unanswered: bool = False
    envelope: Envelope | None = None
    opened_at: float = 0.0
    started_ms: int = 0
    reused: bool = False
    octets: int = 0
    priority: int = 0

    def __post_init__(self) -> None:
        first = self.recipients[0]  # all have one message
        self.octets = 0 if first.body is None else len(first.body)
        self.priority = first.priority

    @property
    def strict(self) -> bool:
        """Whether it goes only to a host that proves its name and offers REQUIRETLS (RFC 8689).

        Not a bounce: section 5 has it sent all the same.
        """
        first = self.recipients[0]
        return first.requiretls and bool(first.sender)

    def address(self) -> Envelope:
        """The envelope for its recipients, as they are now."""
        if self.envelope is None:
            first = self.recipients[0]
            self.envelope = Envelope(
                sender=first.sender,
                recipients=(first.address,)
                if len(self.recipients) == 1
                else tuple([row.address for row in self.recipients]),
                size=first.size,
                eightbit=first.eightbit,
                smtputf8=first.smtputf8,
                ret=first.ret,
                envid=first.envid,
                asked=_asked(self.recipients),
                mt_priority=first.priority_wire,
                requiretls=first.requiretls,
            )
        return self.envelope

    def on_doubt(self, default: OnDoubt) -> OnDoubt:
        """What to do in doubt; all of its recipients have one message.

        Args:
            default: where the message does not say.
        """
        return self.recipients[0].on_doubt or default

    def narrow(self, rows: list[Claimed]) -> None:
        """Only these travel."""
        self.recipients, self.envelope = rows, None

    def put_down(self) -> None:
        """Its content is held no longer: it is read again where it is wanted."""
        self.recipients = [replace(row, body=None) for row in self.recipients]
        self.octets = 0

    def rest(self, most: int) -> Transaction:
        """Cut off what is beyond so many recipients, as another one."""
        left = self.recipients[most:]
        self.narrow(self.recipients[:most])
        return replace(self, recipients=left)


@dataclass(slots=True, eq=False)
class Again:
    """What is left of a transaction for another host, or for this one: once more, or at last.

    Args:
        before: the transaction.
        recipients: who is left.
        uncharged: nothing was answered that counts.
        same_host: in a new session to the same host.
        follows: they were too many for the transaction: in the next one, of any session.
        left: the host closed behind others that it refused, which is progress: in a new session.
    """

    before: Transaction
    recipients: list[Claimed]
    uncharged: bool = False
    same_host: bool = False
    follows: bool = False
    left: bool = False

    def transaction(self, index: int) -> Transaction:
        """The next transaction, after one on the host with this index."""
        return Transaction(
            self.recipients,
            claimed_at=self.before.claimed_at,
            position=index if self.same_host or self.follows or self.left else index + 1,
            hosts_tried=self.before.hosts_tried + (not self.uncharged),
            reconnected=self.before.reconnected or self.same_host,
            unanswered=self.before.unanswered
            or (self.uncharged and not self.follows and not self.left),
        )


@dataclass(slots=True)
class Pass:
    """One walk of a batch over the site's hosts.

    Args:
        retained: recipient -> what the last host said, where the next host has its turn.
    """

    started_ms: int
    retained: dict[int, tuple[Verdict, Attempt, int]] = field(default_factory=dict)
