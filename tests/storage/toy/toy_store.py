"""A store as somebody else would write it: dictionaries, one process, no SQL.

It keeps the promises of ``mailstrom.storage.client`` and ``mailstrom.storage.base`` with the least
code that delivers: one lock around every verb makes each of them whole, nothing survives the
process (``shared`` is False), routes are asked at every claim instead of being stamped on
recipients. It has no SQL, keeps neither sessions nor hourly sums, and makes neither copies nor
reports.

One file of more than 400 lines, because it is installed as one module.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from mailstrom.errors import (
    ConfigError,
    IdempotencyConflict,
    InvalidMessage,
    MessageNotFound,
    SpoolError,
)
from mailstrom.storage.base import (
    Attempt,
    Checkpoint,
    Claimed,
    ClaimRequest,
    DueDomain,
    Exchange,
    Failure,
    Lane,
    Lapsed,
    Retention,
    RouteAnswer,
    Settlement,
    StreamPolicy,
    Suspension,
    Unreported,
    Work,
    WorkerRow,
)
from mailstrom.storage.client import Notice, Owner, Selection, Submission, Target, require_notices
from mailstrom.storage.facts import (
    Facts,
    LaneFacts,
    RecipientFacts,
    RouteFacts,
    SiteFacts,
    WorkerFacts,
)
from mailstrom.storage.reporting import ORIGINAL_BYTES, Reporter
from mailstrom.types import (
    DELIVERABLE,
    Change,
    Event,
    Host,
    Judgement,
    MessageStatus,
    OnDoubt,
    QueueStats,
    Reason,
    RecipientStatus,
    Route,
    RouteResult,
    Stage,
    Status,
    Suppression,
    from_ms,
)

DAY_MS = 86_400_000
MAX_AGE_MS = 5 * DAY_MS
DOUBT_DELAYS_MS = (0, 60_000, 300_000, 900_000, 3_600_000)
DOUBT_MOST = 5
FINAL = ("delivered", "failed", "cancelled")
WAITING = ("queued", "deferred")
NO_ATTEMPT = Attempt(
    session=None,
    started_ms=0,
    ended_ms=0,
    stage=Stage.ROUTE,
    host=None,
    address=None,
    reply_code=None,
    enhanced_code=None,
    reply_text=None,
    verdict=Judgement.DEFERRED,
    reason=None,
    in_doubt=False,
)
NOTHING_SAID = Notice()
_DOWN, _UP, _MIDDLE = (0, 1, 2), (2, 1, 0), (1, 0, 2)
TURNS = (_DOWN, _DOWN, _DOWN, _DOWN, _UP, _DOWN, _DOWN, _MIDDLE, _DOWN, _UP)
TOUCHES: dict[Change, Callable[[Row, int], bool]] = {
    Change.CANCEL: lambda row, now: row.state in (*WAITING, "claimed", "held"),
    Change.HOLD: lambda row, now: row.state in (*WAITING, "claimed"),
    Change.RELEASE: lambda row, now: row.state == "held" and row.reason in ("user", "poison"),
    Change.RETRY: lambda row, now: (
        row.state in ("deferred", "failed") or (row.state == "queued" and row.of.send_ms <= now)
    ),
    **dict.fromkeys(
        (Change.RESOLVE_DELIVERED, Change.RESOLVE_RETRY, Change.RESOLVE_FAILED),
        lambda row, now: row.state == "held" and row.reason == "in_doubt",
    ),
}


_ends = itertools.count(1)


@dataclass(slots=True, eq=False)
class Message:
    """A submission with its stream's policy applied."""

    seq: int
    given: Submission
    priority: int
    send_ms: int
    expires_ms: int
    on_doubt: OnDoubt | None
    require_tls: bool
    rows: list[Row] = field(default_factory=list)
    finished_ms: int | None = None
    ended: int = 0
    """Its place among completions that nobody was told of; 0 for none."""

    def settle(self, now_ms: int) -> None:
        """Note whether every recipient is final."""
        done = all(row.state in FINAL for row in self.rows)
        if done and self.finished_ms is None:
            self.finished_ms, self.ended = now_ms, next(_ends)
        elif not done:
            self.finished_ms, self.ended = None, 0

    @property
    def status(self) -> Status:
        """One word for all recipients."""
        words = {row.shown for row in self.rows}
        if len(words) == 1:
            return Status(words.pop())
        if words <= set(FINAL):
            return Status.PARTIAL
        return Status(next(w for w in ("sending", "deferred", "queued", "held") if w in words))


@dataclass(slots=True, eq=False)
class Row:
    """A recipient."""

    seq: int
    of: Message
    address: str
    due_ms: int | None
    state: str = "queued"
    reason: str | None = None
    lane: int | None = None
    session: str | None = None
    opened_ms: int = 0
    attempts: int = 0
    deferrals: int = 0
    doubts: int = 0
    in_doubt: bool = False
    reopened_ms: int = 0
    notice: Notice = NOTHING_SAID
    last: Attempt | None = None

    @property
    def domain(self) -> str:
        """The part behind the last @."""
        return self.address.rpartition("@")[2]

    @property
    def waits_as(self) -> str:
        """The word for a recipient that waits."""
        return "deferred" if self.deferrals or self.in_doubt else "queued"

    @property
    def shown(self) -> str:
        """The public status word."""
        return self.waits_as if self.state == "claimed" else self.state

    def move(self, state: str, reason: str | None, now_ms: int, due_ms: int | None = None) -> None:
        """Change the state; only what is claimed keeps a lane, only what waits has a due time."""
        self.state, self.reason = state, reason
        self.due_ms = due_ms if state in WAITING else None
        if state not in ("claimed", "sending"):
            self.lane = None
        self.of.settle(now_ms)


@dataclass(slots=True)
class Domain:
    """What is known of a domain's route."""

    route: Route | None = None
    site: int | None = None
    expires_ms: int = 0
    retry_ms: int = 0
    failures: int = 0
    worker: int | None = None


@dataclass(slots=True)
class Site:
    """A set of hosts."""

    key: str
    hosts: tuple[Host, ...]
    provider: str | None
    until_ms: int = 0
    failures: int = 0
    success_ms: int = 0


@dataclass(slots=True)
class Held:
    """A leased lane."""

    site: int
    worker: int
    claims: int = 0


class Spool:
    """The dictionaries of one spool, and the steps that both halves take."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)
        self.revision = 0
        self.folder = tempfile.mkdtemp(prefix="toy-")
        weakref.finalize(self, shutil.rmtree, self.folder, True)
        self.messages: dict[str, Message] = {}
        self.rows: dict[int, Row] = {}
        self.keys: dict[str, tuple[bytes, str, int]] = {}  # hash, id, until when
        self.domains: dict[str, Domain] = {}
        self.sites: dict[int, Site] = {}
        self.lanes: dict[int, Held] = {}
        self.workers: dict[int, WorkerRow] = {}
        self.beats: dict[int, tuple[str, int]] = {}  # state, when
        self.streams: dict[str, StreamPolicy] = {}
        self.facts: dict[str, object] = {}
        self.events: list[Event] = []

    def tell(
        self,
        type: str,
        now_ms: int,
        row: Row | None = None,
        *,
        whole: bool = False,
        **detail: object,
    ) -> None:
        """Add an event; ``whole``: about the message, not the recipient."""
        at = from_ms(now_ms)
        assert at is not None
        self.events.append(
            Event(
                id=len(self.events) + 1,
                at=at,
                type=type,
                message_id=None if row is None else row.of.given.id,
                recipient=None if row is None or whole else row.address,
                detail=detail,
            )
        )

    def site_of(self, row: Row, now_ms: int) -> int | None:
        """Where a recipient goes, by a route that still holds."""
        domain = self.domains[row.domain]
        return domain.site if domain.expires_ms > now_ms else None

    def due_at(self, site: int, now_ms: int) -> list[Row]:
        """What waits at a site and may be claimed, oldest first."""
        due = [
            row
            for row in self.rows.values()
            if row.due_ms is not None and row.due_ms <= now_ms < row.of.expires_ms
            if self.site_of(row, now_ms) == site
        ]
        return sorted(due, key=lambda row: (row.due_ms or 0, row.of.seq, row.seq))

    def lose(self, row: Row, on_doubt: OnDoubt, delays_ms: Sequence[int], now_ms: int) -> None:
        """A recipient's lane ended with it on the wire: it may have been delivered."""
        row.attempts += 1
        row.in_doubt = True
        policy = row.of.on_doubt or on_doubt
        if policy is OnDoubt.HOLD or row.doubts + 1 >= DOUBT_MOST:
            held = Reason.IN_DOUBT if policy is OnDoubt.HOLD else Reason.POISON
            row.move("held", held, now_ms)
        else:
            wait = delays_ms[min(row.doubts, len(delays_ms) - 1)]
            row.move("deferred", Reason.IN_DOUBT, now_ms, now_ms + wait)
            row.deferrals += 1
        row.doubts += 1
        self.tell(f"recipient.{row.state}", now_ms, row, reason=row.reason, in_doubt=1)


class ToyClient:
    """``ClientStore`` over dictionaries."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def enqueue(
        self, submissions: Sequence[Submission], now_ms: int, *, atomic: bool = False
    ) -> list[str | Exception]:
        """See ``ClientStore.enqueue``."""
        with self._spool.lock:
            found = [self._known(one) for one in submissions]
            refused = next((one for one in found if isinstance(one, Exception)), None)
            if atomic and refused is not None:
                raise refused
            for place, one in enumerate(submissions):
                if found[place] is None:  # asked again: an earlier one of the batch has its key
                    found[place] = self._known(one) or self._store(one, now_ms)
            return [one for one in found if one is not None]

    def _known(self, one: Submission) -> str | Exception | None:
        """An earlier id, or why it cannot be stored, or None."""
        if one.idempotency is not None:
            key, hash = one.idempotency
            first, id, until_ms = self._spool.keys.get(key, (b"", "", one.created_ms))
            if until_ms > one.created_ms:
                if first == hash:
                    return id
                return IdempotencyConflict(f"{key!r} was used for another message")
        stream = self._spool.streams.get(one.stream, StreamPolicy(name=one.stream))
        for rule, limit, found in (
            ("stream-max-size", stream.max_size, len(one.content)),
            ("stream-max-recipients", stream.max_recipients, len(one.recipients)),
        ):
            if limit is not None and found > limit:
                text = f"{found} is more than the {limit} that stream {one.stream!r} takes"
                return InvalidMessage(text, rule=rule)
        try:
            require_notices(one.recipients, one.notices)
        except InvalidMessage as error:
            return error
        if one.id in self._spool.messages:
            return InvalidMessage(f"the id {one.id!r} is taken", rule="constraint")
        return None

    def _store(self, one: Submission, now_ms: int) -> str:
        spool, stream = self._spool, self._spool.streams.get(one.stream)
        stream = stream or StreamPolicy(name=one.stream)
        message = Message(
            seq=next(spool.numbers),
            given=one,
            priority=stream.priority if one.priority is None else one.priority,
            send_ms=one.send_ms,
            expires_ms=one.expires_ms or one.send_ms + (stream.max_age_ms or MAX_AGE_MS),
            on_doubt=one.on_doubt or stream.on_doubt,
            require_tls=one.require_tls or one.requiretls or stream.require_tls,
        )
        notices = one.notices or [NOTHING_SAID] * len(one.recipients)
        for address, notice in zip(one.recipients, notices, strict=True):
            row = Row(next(spool.numbers), message, address, one.send_ms, notice=notice)
            message.rows.append(row)
            spool.rows[row.seq] = row
            spool.domains.setdefault(row.domain, Domain())
        spool.messages[one.id] = message
        if one.idempotency is not None:
            key, hash = one.idempotency
            window_ms = spool.facts.get("idempotency_window_ms", DAY_MS)
            assert isinstance(window_ms, int)
            spool.keys[key] = hash, one.id, one.created_ms + window_ms
        spool.tell("message.accepted", now_ms, message.rows[0], whole=True)
        spool.revision += 1
        return one.id

    def statuses(self, ids: Sequence[str]) -> dict[str, MessageStatus]:
        """See ``ClientStore.statuses``."""
        with self._spool.lock:
            known = self._spool.messages
            return {id: _status(known[id]) for id in ids if id in known}

    def content(self, id: str) -> bytes | None:
        """See ``ClientStore.content``."""
        found = self._spool.messages.get(id)
        return None if found is None else found.given.content

    def change(self, change: Change, targets: Sequence[Target], now_ms: int) -> int:
        """See ``ClientStore.change``."""
        with self._spool.lock:
            rows = {
                row.seq: row
                for target in targets
                if target.id in self._spool.messages
                for row in self._spool.messages[target.id].rows
                if target.address in (None, row.address) and TOUCHES[change](row, now_ms)
            }
            for row in rows.values():
                self._change(change, row, now_ms)
            self._spool.revision += bool(rows)
            return len(rows)

    def _change(self, change: Change, row: Row, now_ms: int) -> None:
        due_ms = max(now_ms, row.of.send_ms)
        if change is Change.RETRY:
            if row.state == "failed":
                row.reopened_ms, row.deferrals, row.doubts = now_ms, 0, 0
                row.of.expires_ms = max(row.of.expires_ms, now_ms + DAY_MS)
            domain = self._spool.domains[row.domain]
            domain.retry_ms = min(domain.retry_ms, now_ms)
            if domain.site is not None:
                site = self._spool.sites[domain.site]
                site.until_ms = min(site.until_ms, now_ms)
            row.move("queued", None, now_ms, min(row.due_ms or due_ms, due_ms))
            return
        state, reason, event = {
            Change.CANCEL: ("cancelled", "user", "message.cancelled"),
            Change.HOLD: ("held", "user", "message.held"),
            Change.RELEASE: ("queued", None, "message.released"),
            Change.RESOLVE_RETRY: ("queued", None, "message.released"),
            Change.RESOLVE_DELIVERED: ("delivered", None, "recipient.delivered"),
            Change.RESOLVE_FAILED: ("failed", "in_doubt", "recipient.failed"),
        }[change]
        row.move(state, reason, now_ms, due_ms)
        resolved = {"by": "resolve"} if change.startswith("resolve") else {}
        self._spool.tell(event, now_ms, row, **resolved)

    def _meant(self, selection: Selection, change: Change | None, now_ms: int) -> Iterator[Row]:
        want = selection
        for row in self._spool.rows.values():
            given = row.of.given
            if (
                (not want.ids or given.id in want.ids)
                and (not want.statuses or {row.shown, row.of.status} & set(want.statuses))
                and (not want.reasons or row.reason in want.reasons)
                and (not want.domains or row.domain in want.domains)
                and (not want.recipients or row.address in want.recipients)
                and (not want.senders or given.sender in want.senders)
                and (not want.tags or set(given.tags) & set(want.tags))
                and (not want.streams or given.stream in want.streams)
                and (want.since_ms is None or given.created_ms >= want.since_ms)
                and (want.until_ms is None or given.created_ms < want.until_ms)
                and (change is None or TOUCHES[change](row, now_ms))
            ):
                yield row

    def targets(
        self,
        selection: Selection,
        now_ms: int,
        *,
        change: Change | None,
        limit: int,
        after: int = 0,
    ) -> list[Target]:
        """See ``ClientStore.targets``."""
        with self._spool.lock:
            rows = (row for row in self._meant(selection, change, now_ms) if row.seq > after)
            return [Target(r.of.given.id, r.address, r.seq) for r in itertools.islice(rows, limit)]

    def find(
        self, selection: Selection, *, limit: int, after: str | None = None
    ) -> list[MessageStatus]:
        """See ``ClientStore.find``."""
        with self._spool.lock:
            if after is not None and after not in self._spool.messages:
                raise MessageNotFound(f"no message {after!r}")
            last = 1 << 60 if after is None else self._spool.messages[after].seq
            found = {row.of.seq: row.of for row in self._meant(selection, None, 0)}
            newest = sorted((seq for seq in found if seq < last), reverse=True)
            return [_status(found[seq]) for seq in newest[:limit]]

    def recent(self, limit: int) -> list[MessageStatus]:
        """See ``ClientStore.recent``."""
        with self._spool.lock:
            every = self._spool.messages.values()
            done = sorted((one for one in every if one.ended), key=lambda one: one.ended)
            for one in done[:limit]:
                one.ended = 0
            left = [one for one in every if one.finished_ms is None]
            return [_status(one) for one in [*done, *left][:limit]]

    def events(self, after: int, types: Sequence[str], limit: int) -> list[Event]:
        """See ``ClientStore.events``."""
        with self._spool.lock:
            found = (e for e in self._spool.events[after:] if not types or e.type in types)
            return list(itertools.islice(found, limit))

    def stats(self, now_ms: int) -> QueueStats:
        """See ``ClientStore.stats``; the hours before now are the last 24, exactly."""
        with self._spool.lock:
            rows = self._spool.rows.values()
            shown = [row.shown for row in rows]
            due = [r.due_ms for r in rows if r.due_ms is not None and r.due_ms <= now_ms]
            lately = [
                row.state
                for row in rows
                if row.last is not None and row.last.ended_ms > now_ms - DAY_MS
            ]
            return QueueStats(
                waiting={w: shown.count(w) for w in ("queued", "sending", "deferred", "held")},
                finished={word: lately.count(word) for word in FINAL},
                oldest_due_at=from_ms(min(due, default=None)),
                suspended_sites=sum(s.until_ms > now_ms for s in self._spool.sites.values()),
                workers=sum(w.kind == "delivery" for w in self._spool.workers.values()),
                copied=False,
                log_full=False,
            )

    def facts(self, targets: Sequence[Target], now_ms: int) -> Facts:
        """See ``ClientStore.facts``; who is due before whom is not counted."""
        with self._spool.lock:
            rows = [
                row
                for target in targets
                if target.id in self._spool.messages
                for row in self._spool.messages[target.id].rows
                if target.address in (None, row.address)
            ]
            lanes = [held.worker for held in self._spool.lanes.values()]
            most = self._spool.facts.get("max_connections")
            return Facts(
                workers=tuple(
                    WorkerFacts(one.seq, one.pid, one.host, *self._spool.beats[one.seq], one.lock,
                                lanes.count(one.seq))
                    for one in self._spool.workers.values()
                    if one.kind == "delivery"
                ),
                copied_ms=None,
                copied_from=None,
                log_full=False,
                room_bytes=None,
                trouble=None,
                max_connections=most if isinstance(most, int) else None,
                recipients=tuple(self._facts(row, now_ms) for row in rows),
            )  # fmt: skip

    def _facts(self, row: Row, now_ms: int) -> RecipientFacts:
        spool, last, domain = self._spool, row.last or NO_ATTEMPT, self._spool.domains[row.domain]
        seq = spool.site_of(row, now_ms)
        found = lane = None
        if seq is not None:
            site, limit = spool.sites[seq], spool.facts.get("lanes_limit")
            found = SiteFacts(
                key=site.key,
                suspended_until_ms=site.until_ms,
                suspended_by=None,
                suspended_reason=None,
                last_reply=None,
                failures=site.failures,
                lanes=sum(held.site == seq for held in spool.lanes.values()),
                limit=limit if isinstance(limit, int) else None,
                cap=None,
                canary=site.failures > 0 or not site.success_ms,
            )
        if row.lane is not None:
            worker = spool.workers.get(spool.lanes[row.lane].worker)
            lane = LaneFacts(
                worker=spool.lanes[row.lane].worker,
                pid=worker.pid if worker else None,
                name=worker.host if worker else None,
                lock=worker.lock if worker else None,
                token=row.lane,
                host=None,
                address=None,
                opened_ms=row.opened_ms if row.state == "sending" else None,
            )
        route = domain.route
        return RecipientFacts(
            message_id=row.of.given.id,
            address=row.address,
            domain=row.domain,
            status=Status(row.shown),
            reason=row.reason,
            claimed=row.lane is not None,
            due_ms=row.due_ms,
            created_ms=row.of.given.created_ms,
            send_ms=row.of.send_ms,
            expires_ms=row.of.expires_ms,
            finished_ms=last.ended_ms if row.state in FINAL else None,
            attempts=row.attempts,
            in_doubt=row.in_doubt,
            mx=last.host,
            reply_code=last.reply_code,
            enhanced_code=last.enhanced_code,
            reply_text=last.reply_text,
            site=found,
            route=RouteFacts(
                result=route.result if route else None,
                error=route.error if route else None,
                expires_ms=domain.expires_ms,
                retry_ms=domain.retry_ms,
                router=domain.worker,
            ),
            stale=False,
            lane=lane,
            ahead=None,
        )

    def suppressions(self, addresses: Sequence[str], limit: int) -> list[Suppression]:
        """See ``ClientStore.suppressions``."""
        return []

    def query(
        self, sql: str, params: Sequence[object] | Mapping[str, object], seconds: float
    ) -> list[tuple[object, ...]]:
        """There is nothing to query."""
        raise SpoolError("this store has no SQL; use find(), events() and stats()")

    def check(self) -> list[str]:
        """See ``ClientStore.check``."""
        with self._spool.lock:
            return [
                f"recipient {row.seq}: {row.state} with due {row.due_ms} and lane {row.lane}"
                for row in self._spool.rows.values()
                if (row.state in WAITING) != (row.due_ms is not None)
                or (row.state in ("claimed", "sending")) != (row.lane in self._spool.lanes)
            ]

    def pinned(self) -> list[str]:
        """There is no log."""
        return []

    def writer(self) -> str | None:
        """Nobody holds the lock for longer than a verb."""
        return None

    def owners(self) -> list[Owner]:
        """See ``ClientStore.owners``."""
        with self._spool.lock:
            found = []
            for worker in self._spool.workers.values():
                if worker.state in ("stopped", "lost"):
                    continue
                lanes = {t for t, lane in self._spool.lanes.items() if lane.worker == worker.seq}
                held = sum(row.lane in lanes for row in self._spool.rows.values())
                found.append(Owner(worker.seq, worker.kind, worker.pid, worker.host, worker.lock,
                                   len(lanes), held))  # fmt: skip
            return found

    def revision(self) -> int:
        """See ``ClientStore.revision``."""
        return self._spool.revision

    def backup(self, target: str, now_ms: int) -> None:
        """There is no file to copy, and none is made."""
        raise SpoolError("this store makes no copies")

    def adopt(self, now_ms: int) -> bool:
        """See ``ClientStore.adopt``."""
        return False

    def close(self) -> None:
        """See ``ClientStore.close``; the spool stays while somebody refers to it."""


class ToyWorker:
    """``WorkerStore`` over dictionaries."""

    copied = False
    poisoned = False

    def __init__(self, spool: Spool, delays_ms: Sequence[int]) -> None:
        self._spool = spool
        self._delays_ms = delays_ms

    # --- workers ---

    def register(
        self, *, kind: str, pid: int, host: str, boot: str, lock: str, restarts: int, now_ms: int
    ) -> WorkerRow:
        """See ``WorkerStore.register``."""
        with self._spool.lock:
            seq = next(self._spool.numbers)
            row = WorkerRow(
                seq=seq, kind=kind, pid=pid, host=host, state="starting", boot=boot, lock=lock
            )
            self._spool.workers[seq] = row
            self._spool.beats[seq] = row.state, now_ms
            self._spool.tell("worker.started", now_ms, worker=seq)
            return row

    def beat(self, worker: int, *, state: str, sessions: int, now_ms: int) -> None:
        """See ``WorkerStore.beat``."""
        self._spool.beats[worker] = state, now_ms

    def retire(
        self, worker: int, *, state: str, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> None:
        """See ``WorkerStore.retire``."""
        with self._spool.lock:
            self._take_back(worker, True, now_ms, on_doubt)
            if self._spool.workers.pop(worker, None):
                self._spool.tell("worker.stopped", now_ms, worker=worker)

    def workers(self, *, live: bool = True) -> list[WorkerRow]:
        """See ``WorkerStore.workers``; those that ended are forgotten."""
        with self._spool.lock:
            return list(self._spool.workers.values())

    def version(self) -> int:
        """See ``WorkerStore.version``; it also counts this worker's own changes."""
        return self._spool.revision

    def watched(self) -> str | None:
        """See ``WorkerStore.watched``."""
        return None

    def live_workers(self) -> int:
        """See ``WorkerStore.live_workers``."""
        return max(1, sum(row.kind == "delivery" for row in self.workers()))

    def tell(self, key: str, value: object) -> None:
        """See ``WorkerStore.tell``."""
        self._spool.facts[key] = value

    def use_streams(self, streams: Sequence[StreamPolicy]) -> None:
        """See ``WorkerStore.use_streams``."""
        with self._spool.lock:
            self._spool.streams = {stream.name: stream for stream in streams}

    def lapse(
        self, worker: int, *, boot: str, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> Lapsed:
        """See ``WorkerStore.lapse``."""
        with self._spool.lock:
            row = self._spool.workers.pop(worker, None)
            if row is None:
                return Lapsed(worker, 0, 0, 0)
            self._spool.tell("worker.lost", now_ms, worker=worker)
            return self._take_back(worker, boot != "" and row.boot == boot, now_ms, on_doubt)

    def _take_back(self, worker: int, same_boot: bool, now_ms: int, on_doubt: OnDoubt) -> Lapsed:
        lanes = [token for token, lane in self._spool.lanes.items() if lane.worker == worker]
        released = doubtful = 0
        for token in lanes:
            free, lost = self._end(token, now_ms, on_doubt, claims_too=not same_boot)
            released, doubtful = released + free, doubtful + lost
        for domain in self._spool.domains.values():
            if domain.worker == worker:
                domain.worker = None
        return Lapsed(worker, len(lanes), released, doubtful)

    def _end(
        self, token: int, now_ms: int, on_doubt: OnDoubt, *, claims_too: bool = False
    ) -> tuple[int, int]:
        """End a lane; how many were due again, and how many are in doubt."""
        held = [row for row in self._spool.rows.values() if row.lane == token]
        self._spool.lanes.pop(token, None)
        self._spool.revision += 1
        lost = 0
        for row in held:
            if row.state == "sending" or claims_too:
                self._spool.lose(row, on_doubt, self._delays_ms, now_ms)
                lost += 1
            else:
                row.move(row.waits_as, row.reason, now_ms, now_ms)
        return len(held) - lost, lost

    # --- routes ---

    def use_routes(self, policy: str, now_ms: int) -> bool:
        """See ``WorkerStore.use_routes``."""
        with self._spool.lock:
            before = self._spool.facts.get("routes")
            self._spool.facts["routes"] = policy
            if before == policy:
                return False
            for domain in self._spool.domains.values():
                domain.expires_ms = domain.retry_ms = 0
                if domain.site is not None:
                    self._spool.sites[domain.site].until_ms = 0
            return True

    def _unrouted(self) -> dict[str, int]:
        """When each domain is to be resolved that nobody resolves now."""
        due: dict[str, int] = {}
        for row in self._spool.rows.values():
            domain = self._spool.domains[row.domain]
            if row.due_ms is not None and domain.worker is None:
                usable_ms = 0 if domain.site is None else domain.expires_ms
                at = max(row.due_ms, domain.retry_ms, usable_ms)
                due[row.domain] = min(due.get(row.domain, at), at)
        return due

    def due_domains(self, worker: int, limit: int, now_ms: int) -> list[DueDomain]:
        """See ``WorkerStore.due_domains``."""
        with self._spool.lock:
            found = []
            for name, at in self._unrouted().items():
                if at > now_ms or len(found) == limit or worker not in self._spool.workers:
                    continue
                domain = self._spool.domains[name]
                domain.worker = worker
                cached = domain.route if domain.expires_ms > now_ms else None
                found.append(DueDomain(name=name, cached=cached, failures=domain.failures))
            return found

    def put_routes(self, worker: int, answers: Sequence[RouteAnswer], now_ms: int) -> list[bool]:
        """See ``WorkerStore.put_routes``; one call does all."""
        return [self._put_route(worker, answer, now_ms) for answer in answers]

    def _put_route(self, worker: int, answer: RouteAnswer, now_ms: int) -> bool:
        with self._spool.lock:
            name = answer.route.domain
            domain = self._spool.domains.get(name)
            if domain is None or domain.worker != worker:
                return False
            self._spool.revision += 1
            domain.worker, domain.route, domain.site = None, answer.route, None
            failures, domain.failures = domain.failures, 0
            domain.expires_ms = answer.expires_ms
            waiting = [r for r in self._spool.rows.values() if r.due_ms is not None]
            mine = [row for row in waiting if row.domain == name]
            if answer.route.result in DELIVERABLE and answer.site_key is not None:
                domain.site = self._site(answer)
            elif answer.refusal is not None:
                for row in mine:
                    row.attempts += 1
                    row.move("failed", answer.refusal.reason, now_ms)
                    self._spool.tell("recipient.failed", now_ms, row, text=answer.refusal.text)
            elif answer.route.result is RouteResult.TEMPORARY:
                domain.failures, domain.expires_ms = failures + 1, 0
                domain.retry_ms = answer.expires_ms
                for row in mine:
                    assert row.due_ms is not None
                    if row.due_ms <= now_ms:
                        row.move("deferred", Reason.DNS, now_ms, row.due_ms)
            return False

    def _site(self, answer: RouteAnswer) -> int:
        for seq, site in self._spool.sites.items():
            if site.key == answer.site_key:
                site.hosts = answer.route.hosts
                return seq
        seq = next(self._spool.numbers)
        assert answer.site_key is not None
        self._spool.sites[seq] = Site(answer.site_key, answer.route.hosts, answer.provider)
        return seq

    def give_back(self, worker: int, domains: Mapping[str, int]) -> None:
        """See ``WorkerStore.give_back``."""
        with self._spool.lock:
            for domain, retry_ms in domains.items():
                found = self._spool.domains.get(domain)
                if found is not None and found.worker == worker:
                    found.worker, found.retry_ms = None, retry_ms

    # --- lanes and claims ---

    def due_sites(self, now_ms: int) -> list[int]:
        """See ``WorkerStore.due_sites``."""
        with self._spool.lock:
            due = {
                seq: rows[0].due_ms or 0
                for seq, site in self._spool.sites.items()
                if site.until_ms <= now_ms and (rows := self._spool.due_at(seq, now_ms))
            }
            return sorted(due, key=lambda seq: due[seq])

    def open_sites(
        self, worker: int, *, limit: int, workers: int, most: int, now_ms: int
    ) -> list[int]:
        """See ``WorkerStore.open_sites``."""
        with self._spool.lock:
            share = -(-limit // max(1, workers))
            found = []
            for seq in self.due_sites(now_ms):
                site = self._spool.sites[seq]
                there = [lane for lane in self._spool.lanes.values() if lane.site == seq]
                lanes = 1 if site.failures or not site.success_ms else limit
                if len(there) < lanes and sum(lane.worker == worker for lane in there) < share:
                    found.append(seq)
            return found[:most]

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
        """See ``WorkerStore.lease``."""
        with self._spool.lock:
            if worker not in self._spool.workers:
                return []
            lanes: list[Lane] = []
            share = -(-limit // max(1, workers))
            for seq in self.due_sites(now_ms):
                site = self._spool.sites[seq]
                canary = site.failures > 0 or not site.success_ms
                if proven and canary:
                    continue
                there = [lane for lane in self._spool.lanes.values() if lane.site == seq]
                mine = sum(lane.worker == worker for lane in there)
                due = len({row.of.seq for row in self._spool.due_at(seq, now_ms)})
                most = 1 if canary else limit
                room = min(most - len(there), share - mine, want - len(lanes), due)
                for _ in range(room):
                    token = next(self._spool.numbers)
                    self._spool.lanes[token] = Held(seq, worker)
                    lanes.append(
                        Lane(
                            token=token,
                            site=seq,
                            site_key=site.key,
                            hosts=site.hosts,
                            provider=site.provider,
                            due=due,
                            failing=site.failures > 0,
                            canary=canary,
                        )
                    )
            return lanes

    def release(
        self, ended: Sequence[int], now_ms: int, *, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> int:
        """See ``WorkerStore.release``."""
        with self._spool.lock:
            return sum(sum(self._end(lane, now_ms, on_doubt)) for lane in ended)

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        """See ``WorkerStore.exchange``; sessions' rows are not kept."""
        with self._spool.lock:
            settled = {s.recipient for s in work.settlements if self._settle(s, now_ms)}
            opened = set()
            for request in work.opens:
                for seq in request.recipients:
                    row = self._spool.rows[seq]
                    again = row.state == "sending" and row.session == request.session
                    if row.lane == request.lane and (row.state == "claimed" or again):
                        if row.of.expires_ms <= now_ms:
                            continue
                        row.state, row.session, row.opened_ms = "sending", request.session, now_ms
                        opened.add(seq)
            claimed: list[Claimed] = []
            ended, more = set(), set()
            for claim in work.claims:
                if not self._claim(claim, claimed, now_ms):
                    ended.add(claim.lane)
                elif self._spool.due_at(self._spool.lanes[claim.lane].site, now_ms):
                    more.add(claim.lane)
            self._spool.revision += not work.empty
            done = frozenset(settled), frozenset(opened), claimed, frozenset(ended)
            return Exchange(*done, more=frozenset(more))

    def _settle(self, one: Settlement, now_ms: int) -> bool:
        row = self._spool.rows[one.recipient]
        mine = row.lane == one.lane and (
            row.state == "sending"
            or (row.state == "claimed" and one.state not in ("delivered", "held"))
        )
        attempt = one.attempt
        at = now_ms if attempt is None else attempt.ended_ms
        if not mine:
            if attempt is not None:
                row.attempts += 1
                if (
                    one.state == "delivered"
                    and row.state in (*WAITING, "held", "claimed")
                    and row.reopened_ms <= attempt.started_ms
                ):
                    row.last = attempt
                    row.move("delivered", None, at)
                if one.state != "claimed":
                    self._spool.tell(f"recipient.{one.state}", at, row, late=1)
            return False
        reason = row.reason
        if attempt is not None:
            row.attempts, row.last = row.attempts + 1, attempt
            row.in_doubt = row.in_doubt or attempt.in_doubt
            row.doubts = row.doubts if attempt.in_doubt else 0
            reason = one.reason
        row.deferrals += one.state == "deferred" and one.charge
        row.move(row.waits_as if one.state == "queued" else one.state, reason, at, one.due_ms)
        if one.state == "delivered":
            site = self._spool.sites[self._spool.lanes[one.lane].site]
            site.success_ms, site.failures, site.until_ms = now_ms, 0, 0
        if one.state not in ("queued", "claimed"):
            self._spool.tell(f"recipient.{one.state}", at, row, reason=reason)
        return True

    def _claim(self, request: ClaimRequest, claimed: list[Claimed], now_ms: int) -> bool:
        lane = self._spool.lanes.get(request.lane)
        if lane is None:
            return False
        older = [
            other
            for token, other in self._spool.lanes.items()
            if token < request.lane and other.site == lane.site
        ]
        mine = sum(other.worker == lane.worker for other in older)
        if request.limit_lanes is not None and len(older) >= request.limit_lanes:
            return False
        if request.share is not None and mine >= request.share:
            return False
        due = self._spool.due_at(lane.site, now_ms)
        limit = request.limit
        if request.even:
            lanes = sum(other.site == lane.site for other in self._spool.lanes.values())
            limit = max(min(limit, -(-len(due) // lanes)), 1)
        taken: dict[int, list[Row]] = {}
        size = 0
        for priority in TURNS[(request.lane + lane.claims) % len(TURNS)]:
            for row in due:
                if row.of.priority != priority:
                    continue
                if row.of.seq not in taken:
                    length = len(row.of.given.content)
                    if taken and (len(taken) >= limit or size + length > request.max_bytes):
                        break
                    size += length
                taken.setdefault(row.of.seq, []).append(row)
            else:
                continue
            break
        lane.claims += bool(taken)
        for rows in taken.values():
            for row in rows:
                row.state, row.lane, row.due_ms = "claimed", request.lane, None
                claimed.append(_claimed(row))
        return True

    def chunk(self, content: int, number: int) -> bytes | None:
        """See ``WorkerStore.chunk``; content is always one chunk."""
        with self._spool.lock:
            for message in self._spool.messages.values():
                if message.seq == content and number == 0:
                    return message.given.content
            return None

    def failures(self, site: int) -> int:
        """See ``WorkerStore.failures``."""
        found = self._spool.sites.get(site)
        return 0 if found is None else found.failures

    def suspend(self, suspension: Suspension, now_ms: int) -> int:
        """See ``WorkerStore.suspend``."""
        with self._spool.lock:
            site = self._spool.sites[suspension.site]
            if site.until_ms > now_ms:
                return 0
            site.failures = 1 if site.success_ms >= suspension.since_ms else site.failures + 1
            site.until_ms = suspension.until_ms
            self._spool.tell("site.suspended", now_ms, site=site.key)
            return site.failures

    # --- upkeep ---

    def last_event(self) -> int:
        """See ``WorkerStore.last_event``."""
        return len(self._spool.events)

    def failed_since(self, event: int, *, domain: str | None = None) -> list[Failure]:
        """See ``WorkerStore.failed_since``."""
        with self._spool.lock:
            found: list[Failure] = []
            for one in self._spool.events[event:]:
                address, by_route = one.recipient, "text" in one.detail
                if one.type != "recipient.failed" or address is None or one.message_id is None:
                    continue
                own = domain is not None and address.endswith(f"@{domain}")
                if (by_route and own) or ("expired" in one.detail and domain is None):
                    row = self._spool.messages[one.message_id]
                    reason = next(r.reason for r in row.rows if r.address == address)
                    text = one.detail.get("text")
                    found.append(
                        Failure(one.message_id, address, reason or "", None, str(text or ""))
                    )
            return found[:1_000]

    def expire(self, limit: int, now_ms: int) -> int:
        """See ``WorkerStore.expire``."""
        with self._spool.lock:
            late = [
                row
                for row in self._spool.rows.values()
                if row.state not in (*FINAL, "sending") and row.of.expires_ms <= now_ms
            ]
            for row in late[:limit]:
                doubtful = row.state == "held" and row.in_doubt
                row.move("failed", Reason.IN_DOUBT if doubtful else Reason.EXPIRED, now_ms)
                self._spool.tell("recipient.failed", now_ms, row, expired=1)
            return len(late[:limit])

    def use_reporter(self, reporter: Reporter | None, original_bytes: int = ORIGINAL_BYTES) -> None:
        """Not used: the toy tells nobody."""

    def unreported_since(self, event: int) -> list[Unreported]:
        """Nothing is owed, so nothing cannot be made."""
        return []

    def report(self, delays_ms: Sequence[int], limit: int, now_ms: int) -> int:
        """Nothing is owed."""
        return 0

    def keep_clock(self, *, wall_ms: int, monotonic_ms: int, boot: str, limit: int) -> int:
        """Not kept: a jump of the wall clock moves what is due."""
        return 0

    def retention(self) -> Retention:
        """See ``WorkerStore.retention``."""
        return Retention()

    def purge(self, retention: Retention, limit: int, now_ms: int) -> int:
        """Messages that finished long ago, whole; events stay."""
        with self._spool.lock:
            before_ms = now_ms - retention.attempts_ms
            old = [
                one
                for one in self._spool.messages.values()
                if one.finished_ms is not None and one.finished_ms < before_ms
            ][:limit]
            for one in old:
                del self._spool.messages[one.given.id]
                for row in one.rows:
                    del self._spool.rows[row.seq]
            return len(old)

    def room_bytes(self) -> int | None:
        """See ``WorkerStore.room_bytes``."""
        return None

    log_full = False

    def log_bytes(self) -> int:
        """See ``WorkerStore.log_bytes``."""
        return 0

    def checkpoint(self) -> Checkpoint:
        """There is no log."""
        return Checkpoint(frames=0, moved=0, wal_bytes=0, mode="none")

    def sync(self) -> None:
        """There is no disk."""

    def verify(self) -> None:
        """Nothing can be replaced."""

    def repair(self) -> bool:
        """Nothing breaks."""
        return True

    def unrepaired(self) -> str:
        """Nothing to repair."""
        return "nothing is wrong"

    def next_due_ms(self, now_ms: int) -> int | None:
        """See ``WorkerStore.next_due_ms``."""
        with self._spool.lock:
            times = list(self._unrouted().values())
            for row in self._spool.rows.values():
                site = self._spool.domains[row.domain].site
                if row.due_ms is not None and site is not None:
                    times.append(max(row.due_ms, self._spool.sites[site].until_ms))
            return min(times, default=None)

    def close(self) -> None:
        """See ``WorkerStore.close``."""


def _status(message: Message) -> MessageStatus:
    given = message.given
    created, send, expires = map(from_ms, (given.created_ms, given.send_ms, message.expires_ms))
    assert created is not None
    assert send is not None
    assert expires is not None
    return MessageStatus(
        id=given.id,
        status=message.status,
        sender=given.sender,
        subject=given.subject,
        size=len(given.content),
        created_at=created,
        send_at=send,
        expires_at=expires,
        finished_at=from_ms(message.finished_ms),
        tags=given.tags,
        metadata=dict(given.metadata),
        recipients={row.address: _recipient(row) for row in message.rows},
    )


def _recipient(row: Row) -> RecipientStatus:
    last = row.last or NO_ATTEMPT
    return RecipientStatus(
        address=row.address,
        status=Status(row.shown),
        reason=None if row.reason is None else Reason(row.reason),
        attempts=row.attempts,
        next_attempt_at=from_ms(row.due_ms),
        last_attempt_at=None if row.last is None else from_ms(last.ended_ms),
        mx=last.host,
        reply_code=last.reply_code,
        enhanced_code=last.enhanced_code,
        reply_text=last.reply_text,
        tls=last.tls,
        in_doubt=row.in_doubt,
    )


def _claimed(row: Row) -> Claimed:
    message, given = row.of, row.of.given
    assert row.lane is not None
    return Claimed(
        lane=row.lane,
        recipient=row.seq,
        message=message.seq,
        message_id=given.id,
        address=row.address,
        domain=row.domain,
        sender=given.sender,
        size=len(given.content),
        content=message.seq,
        chunks=1,
        body=given.content,
        damaged=False,
        stream=given.stream,
        priority=message.priority,
        created_ms=given.created_ms,
        expires_ms=message.expires_ms,
        attempts=row.attempts,
        deferrals=row.deferrals,
        on_doubt=message.on_doubt,
        require_tls=message.require_tls,
        eightbit=given.eightbit,
        smtputf8=given.smtputf8,
        ret=given.ret,
        envid=given.envid,
        priority_wire=given.priority_wire,
        requiretls=given.requiretls,
        notify=row.notice.notify,
        orcpt=row.notice.orcpt,
    )


# --- the provider: what the entry point names ----------------------------------------------------

shared = False
_spools: dict[str, Spool] = {}


def canonical(name: str) -> str:
    """See ``StoreProvider.canonical``."""
    scheme, _, rest = name.partition(":")
    if not rest.isidentifier():
        raise ConfigError(f"{name!r}: a toy spool is named toy:WORD")
    return f"{scheme.lower()}:{rest}"


def prepare(name: str, *, engine: bool) -> None:
    """See ``StoreProvider.prepare``."""
    _spools.setdefault(canonical(name), Spool())


def open_client(name: str, *, busy_ms: int) -> ToyClient:
    """See ``StoreProvider.open_client``."""
    prepare(name, engine=False)
    return ToyClient(_spools[canonical(name)])


def open_worker(name: str, *, busy_ms: int, doubt_delays_ms: Sequence[int] | None) -> ToyWorker:
    """See ``StoreProvider.open_worker``."""
    return ToyWorker(_existing(name), doubt_delays_ms or DOUBT_DELAYS_MS)


def run_directory(name: str) -> str:
    """See ``StoreProvider.run_directory``."""
    return _existing(name).folder


def _existing(name: str) -> Spool:
    found = _spools.get(canonical(name))
    return _missing(name) if found is None else found


def _missing(name: str) -> NoReturn:
    raise SpoolError(f"{name}: no such spool in this process")
