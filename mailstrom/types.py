"""The words of the house and the frozen values made of them.

Everything here is a value: no clock, no I/O, no imports beyond the standard library's data types.
The words are those of the public views, so a ``Status`` compares equal to the text in SQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum


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


class Reason(StrEnum):
    """Why a recipient has its status."""

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
RANK_PRIORITY = {rank: priority for priority, rank in PRIORITY_RANK.items()}


class OnDoubt(StrEnum):
    """What to do with a recipient that may or may not have been delivered."""

    RETRY = "retry"
    HOLD = "hold"


def from_ms(ms: int | None) -> datetime | None:
    """Aware UTC datetime of integer milliseconds; None stays None."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def iso_ms(ms: int | None) -> str | None:
    """ISO 8601 text with milliseconds and Z, as the ``*_at`` columns have it."""
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
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
            "next_attempt_at": _iso(self.next_attempt_at),
            "last_attempt_at": _iso(self.last_attempt_at),
            "mx": self.mx,
            "reply_code": self.reply_code,
            "enhanced_code": self.enhanced_code,
            "reply_text": self.reply_text,
            "tls": self.tls,
            "in_doubt": self.in_doubt,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
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
            "created_at": _iso(self.created_at),
            "send_at": _iso(self.send_at),
            "expires_at": _iso(self.expires_at),
            "finished_at": _iso(self.finished_at),
            "tags": list(self.tags),
            "metadata": dict(self.metadata),
            "recipients": {a: r.to_dict() for a, r in self.recipients.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
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
