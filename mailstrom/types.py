"""The words of the house and the frozen values made of them.

Everything here is a value: no clock, no I/O, no imports beyond the standard library's data types.
The words are those of the public views, so a ``Status`` compares equal to the text in SQL.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from mailstrom.value import field, value


class Status(StrEnum):
    """Status of a recipient or message; the last three are final, ``partial`` is a message's."""

    QUEUED = "queued"
    SENDING = "sending"
    DEFERRED = "deferred"
    HELD = "held"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PARTIAL = "partial"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self in FINAL


FINAL = frozenset({Status.DELIVERED, Status.FAILED, Status.CANCELLED, Status.PARTIAL})


class Pipelining(StrEnum):
    """How much is sent ahead of replies where a server offers PIPELINING (RFC 2920)."""

    NONE = "none"  # one command, one reply
    TRANSACTION = "transaction"  # MAIL RCPT... DATA in one flight
    FULL = "full"  # the next transaction's flight behind the dot, too


class Reason(StrEnum):
    """Why a recipient has its status.

    ``suppressed`` and ``rate`` are reserved: nothing gives them yet.
    """

    # failed
    BOUNCED = "bounced"
    EXPIRED = "expired"
    NULL_MX = "null_mx"
    NO_DOMAIN = "no_domain"
    LOOP = "loop"
    POLICY = "policy"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    DAMAGED = "damaged"
    SUPPRESSED = "suppressed"
    # deferred
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    REMOTE = "remote"
    RATE = "rate"
    LOCAL = "local"
    # failed, deferred or held
    IN_DOUBT = "in_doubt"
    # held
    USER = "user"
    POISON = "poison"


RESERVED = (Reason.SUPPRESSED, Reason.RATE)
"""Reasons that nothing gives yet."""


class Stage(StrEnum):
    """Where in an attempt something happened, in the order of the wire."""

    ROUTE = "route"
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"
    DOT = "dot"


class Judgement(StrEnum):
    """The verdict word of an attempt row."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    HELD = "held"


class Priority(StrEnum):
    """Order of claims at a site."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


PRIORITY_RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


class OnDoubt(StrEnum):
    """What to do with a recipient that may or may not have been delivered."""

    RETRY = "retry"
    HOLD = "hold"


class Change(StrEnum):
    """What a person may do to recipients; none of it touches one that is on the wire.

    ``cancel``: queued, deferred and held ones become cancelled. ``hold``: queued and deferred ones
    become held/user. ``release``: held/user and held/poison ones are due again, not before
    ``send_at``. ``retry``: queued and deferred ones are due now, not before ``send_at``; failed
    ones are reopened. The last three decide held/in_doubt ones (``resolve``): they were delivered,
    are sent again, or failed.
    """

    CANCEL = "cancel"
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    RESOLVE_DELIVERED = "resolve-delivered"
    RESOLVE_RETRY = "resolve-retry"
    RESOLVE_FAILED = "resolve-failed"


def from_ms(ms: int | None) -> datetime | None:
    """Aware UTC datetime of integer milliseconds; None stays None."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def iso_ms(ms: int | None) -> str | None:
    """ISO 8601 text with milliseconds and Z, as the ``*_at`` columns have it."""
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def iso(moment: datetime | None) -> str | None:
    """ISO 8601 text of an aware UTC datetime, as ``iso_ms`` has it; None stays None."""
    if moment is None:
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


@value
class RecipientStatus:
    """What is known about one recipient of a message."""

    address: str
    status: Status
    reason: Reason | None
    attempts: int
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    mx: str | None
    reply_code: int | None
    enhanced_code: str | None
    reply_text: str | None
    tls: str | None
    in_doubt: bool

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; times as ISO 8601 UTC."""
        return {
            "address": self.address,
            "status": str(self.status),
            "reason": None if self.reason is None else str(self.reason),
            "attempts": self.attempts,
            "next_attempt_at": iso(self.next_attempt_at),
            "last_attempt_at": iso(self.last_attempt_at),
            "mx": self.mx,
            "reply_code": self.reply_code,
            "enhanced_code": self.enhanced_code,
            "reply_text": self.reply_text,
            "tls": self.tls,
            "in_doubt": self.in_doubt,
        }


@value
class MessageStatus:
    """What is known about a message; ``recipients`` is keyed by address."""

    id: str
    status: Status
    sender: str
    subject: str
    size: int
    created_at: datetime
    send_at: datetime
    expires_at: datetime
    finished_at: datetime | None
    tags: tuple[str, ...] = ()
    metadata: dict[str, object] = field(default_factory=dict)
    recipients: dict[str, RecipientStatus] = field(default_factory=dict)

    @property
    def completed(self) -> bool:
        """Every recipient has a final status."""
        return all(recipient.status.final for recipient in self.recipients.values())

    @property
    def succeeded(self) -> bool:
        """Every recipient was delivered."""
        return all(r.status is Status.DELIVERED for r in self.recipients.values())

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; times as ISO 8601 UTC."""
        return {
            "id": self.id,
            "status": str(self.status),
            "completed": self.completed,
            "succeeded": self.succeeded,
            "sender": self.sender,
            "subject": self.subject,
            "size": self.size,
            "created_at": iso(self.created_at),
            "send_at": iso(self.send_at),
            "expires_at": iso(self.expires_at),
            "finished_at": iso(self.finished_at),
            "tags": list(self.tags),
            "metadata": dict(self.metadata),
            "recipients": {a: r.to_dict() for a, r in self.recipients.items()},
        }


@value
class Event:
    """One row of the ``events`` view; ids grow, so the last one read is a cursor.

    Args:
        type: one of the words of ``mailstrom.events``.
        message_id: what ``send()`` returned, where the event is about a message.
        recipient: its address, where it is about one.
    """

    id: int
    at: datetime
    type: str
    message_id: str | None
    recipient: str | None
    detail: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; times as ISO 8601 UTC."""
        return {
            "id": self.id,
            "at": iso(self.at),
            "type": self.type,
            "message_id": self.message_id,
            "recipient": self.recipient,
            "detail": dict(self.detail),
        }


@value
class QueueStats:
    """Counters of the queue.

    Args:
        waiting: recipients that are not final, by status as the ``recipients`` view shows it; every
            non-final status has a key.
        finished: recipients that became final within the last 24 hours, by status (whole hours of
            ``hourly_stats``); every final status has a key.
        oldest_due_at: since when the longest waiting recipient is due and unclaimed, or None.
        suspended_sites: sites left alone now.
        workers: live delivery workers.
        copied: whether the spool is a copy that waits for ``store adopt``.
        log_full: whether the write-ahead log is at its limit: nothing is accepted or claimed until
            the process that keeps it from being emptied ends its read transaction.
    """

    waiting: dict[str, int]
    finished: dict[str, int]
    oldest_due_at: datetime | None
    suspended_sites: int
    workers: int
    copied: bool
    log_full: bool

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; times as ISO 8601 UTC."""
        return {
            "waiting": dict(self.waiting),
            "finished": dict(self.finished),
            "oldest_due_at": iso(self.oldest_due_at),
            "suspended_sites": self.suspended_sites,
            "workers": self.workers,
            "copied": self.copied,
            "log_full": self.log_full,
        }


@value
class Suppression:
    """An address that is not to be mailed, and why; one row of the ``suppressions`` view.

    Reserved: nothing fills the view yet.
    """

    address: str
    scope: str
    reason: str
    created_at: datetime
    expires_at: datetime | None
    evidence: str | None

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; times as ISO 8601 UTC."""
        return {
            "address": self.address,
            "scope": self.scope,
            "reason": self.reason,
            "created_at": iso(self.created_at),
            "expires_at": iso(self.expires_at),
            "evidence": self.evidence,
        }


class EngineState(StrEnum):
    """State of the delivery loop that ``Mailstrom.start()`` runs in this process."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@value
class WorkerStatus:
    """What is known about the delivery loop of this process.

    Args:
        workers: ids of its rows in the ``workers`` view.
        sessions: open connections.
        janitor: whether it holds the janitor's role now.
        error: what ended it, where the state is ``failed``.
    """

    state: EngineState
    workers: tuple[int, ...] = ()
    sessions: int = 0
    janitor: bool = False
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it delivers."""
        return self.state is EngineState.READY


@value
class Host:
    """One mail host of a site: an MX exchange or a relay.

    Args:
        preference: lower is tried first (RFC 5321 section 5.1); equals in random order.
        name: lower-case A-label host name without the final dot, or an address literal's text.
        port: TCP port, or None for the configured ``[delivery] port``.
    """

    preference: int
    name: str
    port: int | None = None


class RouteResult(StrEnum):
    """What a domain's route lookup decided."""

    MX = "mx"
    IMPLICIT = "implicit"  # no MX record: the domain itself (RFC 5321 section 5.1)
    LITERAL = "literal"  # user@[192.0.2.1]
    RELAY = "relay"
    NULL_MX = "null_mx"  # RFC 7505
    NO_DOMAIN = "no_domain"  # NXDOMAIN, or neither MX nor address records
    LOOP = "loop"  # our own name is the best preference
    TEMPORARY = "temporary"  # SERVFAIL, timeout, refused: never "no MX"


DELIVERABLE = frozenset(
    {RouteResult.MX, RouteResult.IMPLICIT, RouteResult.LITERAL, RouteResult.RELAY}
)


@value
class Route:
    """The answer to "which hosts serve this domain", as the shared cache keeps it.

    Args:
        domain: lower-case A-label domain, or ``[literal]``.
        result: what was decided.
        hosts: in order of preference; empty unless ``result`` is deliverable.
        ttl_s: seconds the answer may be used, already clamped.
        error: a sentence for ``domains.error`` where the result is not deliverable.
    """

    domain: str
    result: RouteResult
    hosts: tuple[Host, ...] = ()
    ttl_s: int = 300
    error: str | None = None
