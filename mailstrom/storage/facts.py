"""What a store knows of waiting recipients and what may keep them: the rows, not what they mean.

By themselves, since only a client that is asked ``why`` needs them. What is the binding reason
among them is told in ``mailstrom.client.binding``, in one place for every store.
"""

from __future__ import annotations

from typing import NamedTuple

from mailstrom.types import RouteResult, Status

ROOM_BYTES = 8 * 1024 * 1024
"""With less free space nothing is claimed: a delivery that cannot be recorded is a duplicate."""
COUNTED = 100
"""Recipients that are due at a site before another are counted this far."""


class WorkerFacts(NamedTuple):
    """A delivery worker whose row says that it lives; whether it does its lock file tells."""

    worker: int
    pid: int
    host: str
    state: str
    """``starting``, ``ready`` or ``draining``."""
    heartbeat_ms: int
    lock: str
    """Name of its lock file in the run directory."""
    lanes: int


class SiteFacts(NamedTuple):
    """A set of mail hosts."""

    key: str
    suspended_until_ms: int
    """0: it is not."""
    suspended_by: str | None
    suspended_reason: str | None
    last_reply: str | None
    failures: int
    """Times in a row that no host of it would talk."""
    lanes: int
    """Connections that workers have leased there."""
    limit: int | None
    """Most of them by configuration; None: no engine told."""
    cap: int | None
    """Most that its hosts were seen to bear; None: nothing of that kind was seen."""
    canary: bool
    """Nothing is known of it, or it failed last: one connection finds out for all."""


class RouteFacts(NamedTuple):
    """What the shared cache holds of a domain; times may have passed."""

    result: RouteResult | None
    """None: it was never looked up."""
    error: str | None
    expires_ms: int
    retry_ms: int
    """It is not looked up before."""
    router: int | None
    """The worker that looks it up now."""


class LaneFacts(NamedTuple):
    """Who has a recipient in hand."""

    worker: int
    pid: int | None
    """None: its row is gone."""
    name: str | None
    """Of its machine."""
    lock: str | None
    token: int
    host: str | None
    """Mail host of the session that it is on the wire of, where that is known."""
    address: str | None
    opened_ms: int | None


class RecipientFacts(NamedTuple):
    """A recipient, and where it stands."""

    message_id: str
    address: str
    domain: str
    status: Status
    """As the ``recipients`` view shows it."""
    reason: str | None
    claimed: bool
    """In a lane's hands; ``status`` is what it waited as, or ``sending``."""
    due_ms: int | None
    created_ms: int
    send_ms: int
    expires_ms: int
    finished_ms: int | None
    attempts: int
    in_doubt: bool
    mx: str | None
    reply_code: int | None
    enhanced_code: str | None
    reply_text: str | None
    """Of its own last attempt."""
    site: SiteFacts | None
    """None: it waits for a route."""
    route: RouteFacts | None
    stale: bool
    """It has a site by an answer that holds no more: it is not claimed before the domain is looked
    up, or is sent back to be routed."""
    lane: LaneFacts | None
    ahead: int | None
    """Others that are due there before it, counted to ``COUNTED``; None: nobody counted."""


class Facts(NamedTuple):
    """What one look saw."""

    workers: tuple[WorkerFacts, ...]
    copied_ms: int | None
    """Since when the spool is a copy that waits for adoption."""
    copied_from: str | None
    log_full: bool
    room_bytes: int | None
    """Free where results go; None: nobody can tell."""
    trouble: str | None
    """Why nothing can be made durable now, a sentence; None where it can."""
    max_connections: int | None
    """Most connections of a worker; None: no engine told."""
    recipients: tuple[RecipientFacts, ...]
