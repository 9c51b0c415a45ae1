"""The engine's half of the storage seam: domain verbs, and the values that cross it.

Rules: batch in, batch out; ``now_ms`` (wall milliseconds) is always a parameter; a verb either
happens whole or raises a ``SpoolError``, but for those that say that they go in pieces; no SQL, no
driver, no exception of a driver crosses this line. A store is correct when the conformance suite in
``tests/storage`` says so.

Guards: every write about a recipient names the lane (fencing token) it was claimed under. A verb
whose guard no longer holds changes nothing and says so in its result; that is never an error.

Longer than a file should be. It is the line that stores of other packages are written against:
its name is public, and a verb is read beside the values that it takes and gives. Nothing in it does
anything that could stand by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from msgspec import Struct

from mailstrom.storage.pinned import Pinned
from mailstrom.storage.reporting import ORIGINAL_BYTES, Reporter
from mailstrom.types import (
    Host,
    Judgement,
    OnDoubt,
    Pipelining,
    Reason,
    Route,
    Stage,
)

# --- what workers exchange ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A leased right to hold one connection to a site; ``token`` is never given out twice."""

    token: int
    site: int
    site_key: str
    hosts: tuple[Host, ...]
    provider: str | None
    due: int
    """Recipients that were due at the site when the lane was leased (bounded count)."""
    pipelining: Pipelining = Pipelining.FULL
    """Most that the site's hosts were seen to bear."""
    chunking: bool | None = None
    """Whether a BDAT worked there (True), or CHUNKING was offered and mishandled (False)."""
    failing: bool = False
    """Whether the last pass over the site's hosts failed."""
    canary: bool = False
    """Whether the site has yet to show that it takes mail: it never did, or failed since."""


class Lesson(Struct, frozen=True, kw_only=True, gc=False):
    """What a session taught about a site's hosts; kept with the site.

    Args:
        pipelining: most that they bear, less than was tried; None: nothing new.
        chunking: True: a BDAT worked. False: CHUNKING is offered and mishandled. None: nothing new.
        until_ms: until when what is bad of it holds; then everything is tried again.
    """

    site: int
    pipelining: Pipelining | None = None
    chunking: bool | None = None
    until_ms: int = 0


class Ahead(Struct, frozen=True, kw_only=True, gc=False):
    """Open the first messages of a claim in the same step, for a session that waits for them.

    Up to the first that does not suit: that one is opened in its own time, and so is what comes
    behind it. What says of itself ``on_doubt = "hold"`` never suits. A store may open fewer.

    Args:
        session: on which they go on the wire next.
        messages: so many at most.
        recipients: most of one message.
        octets: largest message that the session takes; 0: of any size.
        encrypted: whether it may carry what must not travel in clear.
        eightbit: whether it takes 8-bit content.
        smtputf8: whether it takes addresses beyond ASCII.
        requiretls: whether it may carry what REQUIRETLS was said of.
    """

    session: str
    messages: int
    recipients: int
    octets: int
    encrypted: bool
    eightbit: bool
    smtputf8: bool
    requiretls: bool = False


class ClaimRequest(Struct, frozen=True, kw_only=True, gc=False):
    """Ask for due recipients of the lane's site.

    Args:
        limit: most messages; a message's due recipients come together (in bounded number).
        max_bytes: most content bytes together; at least one message is always given.
        limit_lanes: how many lanes the site may have now; a lane beyond the oldest so many gets
            nothing and is told to end. None: as many as were leased.
        share: how many of them the lane's worker may have, so that a worker that came later gets
            its part of a site that is never idle. None: as many as were leased.
        even: where less is due than all lanes of the site would claim, take this lane's part of it
            only, but so many messages at least: they come to the end together, and none keeps mail
            for long while others have nothing. 0: take what is there.
        ahead: what of it is opened at once; ``Exchange.opened`` tells. None: nothing.

    Claims come by priority, then by due time, the recipients of a message side by side. Of ten
    claims two begin with low and one with normal priority, so that nothing is starved.
    """

    lane: int
    limit: int
    max_bytes: int
    limit_lanes: int | None = None
    share: int | None = None
    even: int = 0
    ahead: Ahead | None = None


class Claimed(Struct, frozen=True, kw_only=True, gc=False):
    """One claimed recipient with what its attempt needs."""

    lane: int
    recipient: int
    message: int
    message_id: str
    address: str
    domain: str
    sender: str
    size: int
    content: int
    chunks: int
    body: bytes | None
    """The content where it is one chunk and undamaged; longer content is read by chunk."""
    damaged: bool
    stream: str
    priority: int
    created_ms: int
    expires_ms: int
    attempts: int
    deferrals: int
    on_doubt: OnDoubt | None
    require_tls: bool
    eightbit: bool
    smtputf8: bool
    ret: str | None = None
    envid: str | None = None
    """This and ``ret``, ``notify``, ``orcpt``, ``priority_wire`` and
    ``requiretls``: as in ``Submission``."""
    notify: str | None = None
    orcpt: str | None = None
    priority_wire: int | None = None
    requiretls: bool = False
    unread: bool = False
    """Its content could not be read when it was claimed, so nobody compared it with its digests: it
    is to be given back, never sent."""


class Open(Struct, frozen=True, kw_only=True, gc=False):
    """Mark claimed recipients ``sending``: they go on the wire next, on this session.

    What its lane has open on it already is opened once more: so one that waited for long is asked
    for again before it is sent.
    """

    lane: int
    recipients: tuple[int, ...]
    session: str


class Attempt(Struct, frozen=True, kw_only=True, gc=False):
    """One attempt for one recipient, as the ``attempts`` view shows it."""

    session: str | None
    started_ms: int
    ended_ms: int
    stage: Stage
    host: str | None
    address: str | None
    reply_code: int | None
    enhanced_code: str | None
    reply_text: str | None
    verdict: Judgement
    reason: Reason | None
    in_doubt: bool
    tls: str | None = None


class Settlement(Struct, frozen=True, kw_only=True, gc=False):
    """The verdict on one recipient, guarded by its lane.

    Args:
        state: ``delivered failed deferred held``, or ``claimed`` (attempt recorded, the lane keeps
            it for the next host), or ``queued`` (nothing to record: due again at ``due_ms``).
        due_ms: next attempt, required for ``deferred`` and ``queued``.
        attempt: None where nothing happened since the last one: ``queued``, ``claimed`` (to be
            opened anew), or ``deferred`` by what an earlier host said.
        charge: whether a deferral advances the retry schedule.
        confirmed: of a delivery: the host took over to report it, as its sender asked (RFC 3461
            section 5.2.2); so no report of ours says that it was relayed.
    """

    lane: int
    recipient: int
    state: str
    reason: Reason | None = None
    due_ms: int | None = None
    attempt: Attempt | None = None
    charge: bool = True
    confirmed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A connection as the ``sessions`` view shows it; written when opened and again at its end."""

    id: str
    lane: int
    site: int
    host: str
    address: str
    source: str | None
    started_ms: int
    ended_ms: int | None
    messages: int
    ehlo: str | None
    tls_wanted: str
    tls_reached: str
    tls_version: str | None
    tls_cipher: str | None
    tls_peer: str | None
    tls_verified: bool
    end_cause: str | None


MOST_ROWS = 800
"""Most rows that are to be written by one exchange: about 10 ms of the lock, which senders wait
for. Who asks for several things at once keeps to it; so does what a store claims."""


class AnswerLost(Exception):
    """What was asked is committed, and what became of it cannot be told: it is not to be asked
    again, and whoever holds what was claimed and opened ends, as after a death."""


class Exchange(NamedTuple):
    """Result of ``WorkerStore.exchange``: what the guards let through."""

    settled: frozenset[int]
    opened: frozenset[int]
    claimed: list[Claimed]
    ended: frozenset[int] = frozenset()
    """Lanes that claim nothing any more: beyond ``limit_lanes`` or ``share``, or gone."""
    locked_s: float = 0.0
    """Monotonic seconds when the store had its lock; what it opened is as fresh as that. 0: the
    store does not say."""
    freed_s: float = 0.0
    """When all was committed, and the lock free again."""
    more: frozenset[int] = frozenset()
    """Lanes whose claim left something due behind, for its bounds or as it is others' part. With
    nothing claimed: the exchange had no room left for it, and the lane may ask again at once."""


class Suspension(NamedTuple):
    """A site that is not to be leased before ``until_ms``."""

    site: int
    until_ms: int
    since_ms: int
    """When the failing pass began: a success after it keeps the site's failure count at one."""
    by: str
    reason: Reason
    text: str
    crowded: bool = False
    """Whether a host refused the connection itself, as one that has enough of them does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDomain:
    """A domain whose recipients wait for a route; ``cached`` is a still valid answer."""

    name: str
    cached: Route | None
    failures: int


class Refusal(NamedTuple):
    """Why recipients of a domain fail without an attempt on the wire."""

    reason: Reason
    enhanced_code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteAnswer:
    """A route to store: the site it leads to, if any, and when to look again.

    Args:
        refusal: set where the route decides that waiting recipients fail.
        cached: the route is ``DueDomain.cached``: it is applied, and neither prolonged nor told.
    """

    route: Route
    site_key: str | None
    provider: str | None
    expires_ms: int
    refusal: Refusal | None = None
    cached: bool = False


class Failure(NamedTuple):
    """A recipient that failed without an attempt on the wire."""

    message_id: str
    address: str
    reason: str
    enhanced_code: str | None
    reply_text: str | None


class Unreported(NamedTuple):
    """A report that could not be made: of how many recipients, after how many tries."""

    message_id: str
    kind: str
    recipients: int
    error: str
    tries: int
    given_up: bool


class Lapsed(NamedTuple):
    """What a dead worker left behind."""

    worker: int
    lanes: int
    released: int
    in_doubt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A registered engine process."""

    seq: int
    kind: str
    pid: int
    host: str
    state: str
    boot: str
    lock: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint found: frames in the WAL and frames moved to the database."""

    frames: int
    moved: int
    wal_bytes: int
    mode: str
    pinned: Pinned | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long finished things stay, in milliseconds."""

    bodies_ms: int = 7 * 86_400_000
    attempts_ms: int = 30 * 86_400_000
    events_ms: int = 30 * 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPolicy:
    """What a stream says about its messages; applied when a message is enqueued.

    Args:
        priority: rank 0 to 2, for messages that name none.
        max_age_ms: age at which they expire, for messages that name no time.
        on_doubt: for messages that say nothing about it.
        require_tls: never send them unencrypted.
        max_size: most bytes of content; None is no limit.
        max_recipients: most envelope recipients of one message; None is no limit.
    """

    name: str
    priority: int = 1
    max_age_ms: int | None = None
    on_doubt: OnDoubt | None = None
    require_tls: bool = False
    max_size: int | None = None
    max_recipients: int | None = None


@dataclass(slots=True, kw_only=True)
class Work:
    """Everything that one transaction carries for many lanes; see ``WorkerStore.exchange``."""

    sessions: list[SessionRow] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    opens: list[Open] = field(default_factory=list)
    claims: list[ClaimRequest] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Nothing to do."""
        return not (self.sessions or self.settlements or self.opens or self.claims or self.lessons)


class WorkerStore(Protocol):
    """What the engine needs: route, lease, claim, settle, lapse, expire, purge."""

    def register(
        self, *, kind: str, pid: int, host: str, boot: str, lock: str, restarts: int, now_ms: int
    ) -> WorkerRow:
        """Add an engine process that already holds its lock file."""
        ...

    def beat(self, worker: int, *, state: str, sessions: int, now_ms: int) -> None:
        """Record that the worker is alive, for people; liveness is the held lock."""
        ...

    def retire(
        self, worker: int, *, state: str, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> None:
        """The worker ended by itself; lanes it did not release are taken back as in ``lapse``.

        In pieces: where one fails, the same call made again does the rest.
        """
        ...

    def workers(self, *, live: bool = True) -> list[WorkerRow]:
        """Registered processes, by default those that did not end."""
        ...

    def tell(self, key: str, value: object) -> None:
        """Write a fact about the engine that clients and views read."""
        ...

    def use_streams(self, streams: Sequence[StreamPolicy]) -> None:
        """The streams that hold from now on, instead of those before."""
        ...

    @property
    def copied(self) -> bool:
        """Whether this spool is a copy (``ClientStore.backup``) that nobody adopted yet.

        Its messages may have been delivered since by the spool it was copied from: nothing in it is
        routed, leased, expired or purged.
        """
        ...

    def room_bytes(self) -> int | None:
        """Space left where results go; None where nothing limits it."""
        ...

    @property
    def log_full(self) -> bool:
        """Whether the write-ahead log is at its limit, so that nothing is to be claimed."""
        ...

    def log_bytes(self) -> int:
        """Size of the write-ahead log that ``checkpoint`` empties; 0 where there is none."""
        ...

    def use_routes(self, policy: str, now_ms: int) -> bool:
        """Tell which routing policy holds; another one than before calls every cached route off,
        and lets no suspension hold the mail that waits where they led.

        True if it was another one. In pieces, of which the policy is the first: where a later one
        fails, whoever names this policy next does the rest, and is told False.
        """
        ...

    def due_domains(self, worker: int, limit: int, now_ms: int) -> list[DueDomain]:
        """Take domains whose recipients are due and unrouted, for this live worker to resolve."""
        ...

    def put_routes(
        self, worker: int, answers: Sequence[RouteAnswer], now_ms: int
    ) -> Sequence[bool]:
        """Store answers in one transaction, and stamp up to 1,000 waiting recipients in all.

        For each whether some of its recipients are left: its domain stays due.
        """
        ...

    def give_back(self, worker: int, domains: Mapping[str, int]) -> None:
        """Leave taken domains unresolved, each until its time."""
        ...

    def due_sites(self, now_ms: int) -> list[int]:
        """Some sites with due work that are not suspended, longest due first; reads only."""
        ...

    def open_sites(
        self, worker: int, *, limit: int, workers: int, most: int, now_ms: int
    ) -> list[int]:
        """Those where ``lease`` would give the worker a lane, at most ``most``; reads only."""
        ...

    def lease(
        self,
        worker: int,
        *,
        want: int,
        limit: int,
        workers: int,
        now_ms: int,
        proven: bool = False,
    ) -> list[Lane]:
        """Lease up to ``want`` lanes at sites with due work, at most ``limit`` a site in all.

        A worker that has lapsed or retired gets none: nobody would take them back.

        Args:
            proven: only at sites that took mail last time, of those that are due longest; where
                there is none, nothing is written.
        """
        ...

    def release(
        self, ended: Sequence[int], now_ms: int, *, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> int:
        """Give lanes back; what they still claim is due again, what they left open is in doubt.

        Returns how many recipients they still held. In pieces, as ``retire``.
        """
        ...

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        """Settle, open and claim for many lanes in one transaction, in that order.

        Raises:
            AnswerLost: it is done, and nobody can be told. Any other error: nothing is.
        """
        ...

    def chunk(self, content: int, number: int) -> bytes | None:
        """One chunk of content; None when it is missing or damaged."""
        ...

    def failures(self, site: int) -> int:
        """How many passes over the site's hosts failed in a row."""
        ...

    def suspend(self, suspension: Suspension, now_ms: int) -> int:
        """Stop leasing a site until a time; its failures in a row, 0 if it is suspended already."""
        ...

    def lapse(
        self, worker: int, *, boot: str, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> Lapsed:
        """Take back everything a dead worker held; ``on_doubt`` where the message names none.

        In short transactions; ``boot`` empty is a boot that nobody knows, so another one. What was
        on the wire is charged and waits longer with each loss in a row; the fifth is held (poison).
        """
        ...

    def last_event(self) -> int:
        """The newest event's id; 0 when there is none."""
        ...

    def failed_since(self, event: int, *, domain: str | None = None) -> list[Failure]:
        """Recipients that failed without a session after an event, for the log; at most 1,000.

        ``domain``: those whom its route refused; without it, those whose time was over.
        """
        ...

    def unreported_since(self, event: int) -> list[Unreported]:
        """Reports that could not be made after an event, for the log; at most 100."""
        ...

    def expire(self, limit: int, now_ms: int) -> int:
        """Fail recipients whose message's time is over; returns how many."""
        ...

    def use_reporter(self, reporter: Reporter | None, original_bytes: int = ORIGINAL_BYTES) -> None:
        """Who makes reports from now on, in ``report`` and each verb that ends a recipient.

        Those verbs make few, and leave the rest to ``report``. Without a reporter nothing is made
        here, and what is owed waits for a store that has one.

        Args:
            original_bytes: largest content that is handed over whole, where the sender wants it.
        """
        ...

    def report(self, delays_ms: Sequence[int], limit: int, now_ms: int) -> int:
        """Make what is owed, and reports of delays; returns how much was done, 0 when all is.

        In short transactions. Nothing in a copy. A delay is told once for each threshold, whatever
        number of recipients still waits by then, and not of those that are held.

        Args:
            delays_ms: how old a message is when its sender is told that it waits.
            limit: about how many reports, and how many messages whose delay is looked at.
        """
        ...

    def keep_clock(self, *, wall_ms: int, monotonic_ms: int, boot: str, limit: int) -> int:
        """Notice jumps of the wall clock and shift what the old clock stamped.

        At most ``limit`` messages a jump and call; returns how many were passed. Sites and domains
        are shifted in pieces: where one fails the next call goes on. An even clock is only read,
        and written down every 30 seconds.
        """
        ...

    def retention(self) -> Retention:
        """What the spool was created with."""
        ...

    def purge(self, retention: Retention, limit: int, now_ms: int) -> int:
        """Delete what is older than its retention; returns how much was done, 0 when all is.

        Bounded by ``limit`` for each kind; nothing for an hour after a jump of the clock.
        """
        ...

    def checkpoint(self) -> Checkpoint:
        """Move WAL frames into the database."""
        ...

    def sync(self) -> None:
        """Make every commit so far durable."""
        ...

    def verify(self) -> None:
        """Raise ``SpoolReplaced`` if the files in use are no longer those that have the names."""
        ...

    def repair(self) -> bool:
        """Try to lift a spool poisoned by a disk error; True if acknowledgements may go on."""
        ...

    def unrepaired(self) -> str:
        """What may keep ``repair`` from ending, for the log: which file, whose, and what to do."""
        ...

    @property
    def poisoned(self) -> bool:
        """Whether acknowledgements are stopped by a disk error."""
        ...

    def next_due_ms(self, now_ms: int) -> int | None:
        """When the next site or domain becomes due; None when nothing waits."""
        ...

    def version(self) -> int:
        """A number that changes when another connection committed; reads no more than that."""
        ...

    def watched(self) -> str | None:
        """A file that is written to whenever ``version`` changes; None where there is none."""
        ...

    def live_workers(self) -> int:
        """How many delivery workers are registered and not ended; at least 1."""
        ...

    def close(self) -> None:
        """Close the connection; idempotent."""
        ...
