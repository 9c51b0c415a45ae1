"""Why a recipient waits: the words for it, and the value that ``Mailstrom.why()`` gives.

A value and no more: no clock, no I/O. Loaded by the first question, not with the client.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from mailstrom.types import Status, iso
from mailstrom.value import value


class Cause(StrEnum):
    """The first thing in a recipient's way, in the order in which an engine would stumble."""

    # over
    FINAL_DELIVERED = "final_delivered"
    FINAL_FAILED = "final_failed"
    FINAL_CANCELLED = "final_cancelled"
    # a person decides
    HELD_BY_USER = "held_by_user"
    HELD_IN_DOUBT = "held_in_doubt"
    HELD_POISON = "held_poison"
    # nothing goes out from this spool
    COPIED = "copied"
    # in a worker's hands
    SENDING = "sending"
    CLAIMED = "claimed"
    WORKER_LOST = "worker_lost"
    # its time is over
    EXPIRED = "expired"
    # its time has not come: of these the one that lasts longest
    SCHEDULED = "scheduled"
    NOT_DUE = "not_due"
    SITE_SUSPENDED = "site_suspended"
    DNS_TEMPORARY = "dns_temporary"
    # nobody is there to send it
    NO_WORKER = "no_worker"
    WORKER_SILENT = "worker_silent"
    DRAINING = "draining"
    # nothing can be recorded
    SPOOL_POISONED = "spool_poisoned"
    # it is due
    DNS_NEGATIVE = "dns_negative"
    ROUTE_PENDING = "route_pending"
    LOG_FULL = "log_full"
    DISK_LOW = "disk_low"
    SITE_LIMIT = "site_limit"
    CONNECTION_LIMIT = "connection_limit"
    NO_LANE = "no_lane"
    IN_LINE = "in_line"


@value
class Waiting:
    """The binding reason why a recipient was not sent by now, as rows said it at one moment.

    Args:
        at: that moment; a moment later it may be another reason.
        status: as ``status()`` shows it.
        cause: the first thing in its way.
        until: when that ends by itself, at the latest; None: no time is known.
        by: who keeps it: a worker, a host's words, a person; None: nobody in particular.
        detail: the cause in a sentence.
        change: what would change it: a command, or an event.
        site: where it goes, or None while that is not known.
        lanes: connections that are open to the site, or None.
        lanes_limit: most of them now, or None where no engine told.
        ahead: others that are due there before it, counted to 100; None: nobody counted.
    """

    at: datetime
    message_id: str
    address: str
    status: Status
    cause: Cause
    until: datetime | None
    by: str | None
    detail: str
    change: str
    site: str | None = None
    lanes: int | None = None
    lanes_limit: int | None = None
    ahead: int | None = None

    @property
    def sentence(self) -> str:
        """The cause, and what would change it."""
        return f"{self.detail}; {self.change}" if self.change else self.detail

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; times as ISO 8601 UTC."""
        return {
            "at": iso(self.at),
            "message_id": self.message_id,
            "address": self.address,
            "status": str(self.status),
            "cause": str(self.cause),
            "until": iso(self.until),
            "by": self.by,
            "detail": self.detail,
            "change": self.change,
            "site": self.site,
            "lanes": self.lanes,
            "lanes_limit": self.lanes_limit,
            "ahead": self.ahead,
        }
