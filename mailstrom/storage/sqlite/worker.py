"""The engine's half of the SQLite store: one connection, used by one thread.

Contract. Each verb of ``WorkerStore`` is here once: which transaction it is, or which statement
reads for it, and what becomes of its rows. The connection and its transactions are
``worker_connection``'s, the log is ``logkeeper``'s; the verbs' SQL steps live in ``claims`` (open,
settle), ``lanes`` (lease, release, suspend), ``routes`` (the MX cache), ``upkeep`` (lapse, expire,
purge) and ``clocks``. Must not know: how a connection is had, kept and closed.

Longer than a file should be, and flat: one method for each verb of a protocol that has forty.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import apsw

from mailstrom.errors import SpoolCorrupt, SpoolError
from mailstrom.storage.base import (
    AnswerLost,
    Checkpoint,
    Claimed,
    DueDomain,
    Exchange,
    Failure,
    Lane,
    Lapsed,
    Retention,
    RouteAnswer,
    StreamPolicy,
    Suspension,
    Unreported,
    Work,
    WorkerRow,
)
from mailstrom.storage.reporting import ORIGINAL_BYTES, Reporter
from mailstrom.storage.sqlite import (
    claims,
    clocks,
    contents,
    forks,
    lanes,
    reports,
    routes,
    sweeps,
    upkeep,
)
from mailstrom.storage.sqlite.connection import FREE_LOCK_S, spool_errors
from mailstrom.storage.sqlite.durable import Sync, system_sync
from mailstrom.storage.sqlite.encoding import encoded
from mailstrom.storage.sqlite.logkeeper import LogKeeper
from mailstrom.storage.sqlite.place import FilePlace, Place
from mailstrom.storage.sqlite.rows import digest
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.storage.sqlite.streams import use as put_streams
from mailstrom.storage.sqlite.worker_connection import WorkerConnection
from mailstrom.types import OnDoubt


class SQLiteWorkerStore:
    """``WorkerStore`` on a SQLite spool; not for several threads.

    Args:
        path: the database file; must exist with the current schema (see ``schema.prepare``).
        busy_ms: how long to wait for another writer.
        sync: what makes the -wal file durable.
        doubt_delays_ms: how long a recipient waits that was lost on the wire, by how often it was
            lost in a row before; the last one repeats.
        place: where the spool lives, if that is no file.
    """

    def __init__(
        self,
        path: str,
        *,
        busy_ms: int = 8_000,
        sync: Sync = system_sync,
        doubt_delays_ms: Sequence[int] = lanes.DOUBT_DELAYS_MS,
        place: Place | None = None,
    ) -> None:
        self.path = path
        self._doubt_delays_ms = tuple(doubt_delays_ms)
        self._shared = contents.Shared()
        self._reporting: reports.Reporting | None = None
        self._place: Place = place or FilePlace(path, sync)
        self._sync = self._place.durable
        self._connection = WorkerConnection(path, self._place, busy_ms)
        self._log = LogKeeper(self._connection, self._place)
        self._write, self._read = self._connection.write, self._connection.read

    def _go_on(self, doing: str, step: Callable[[apsw.Connection], bool], more: bool) -> None:
        """What a sweep has left, a piece in each transaction; others get the lock in between."""
        while more:
            time.sleep(FREE_LOCK_S)
            more = self._write(doing, step)

    # --- workers ----------------------------------------------------------------------------

    def register(
        self, *, kind: str, pid: int, host: str, boot: str, lock: str, restarts: int, now_ms: int
    ) -> WorkerRow:
        """See ``WorkerStore.register``."""
        values = {
            "kind": kind,
            "pid": pid,
            "host": host,
            "boot": boot,
            "lock": lock,
            "restarts": restarts,
            "now_ms": now_ms,
        }

        def step(connection: apsw.Connection) -> int:
            seq = run(connection, "worker_add", values)[0][0]
            run(
                connection,
                "worker_event",
                {"worker": seq, "type": "worker.started", "now_ms": now_ms},
            )
            return int(seq)

        seq = self._write("registering a worker", step)
        return WorkerRow(
            seq=seq, kind=kind, pid=pid, host=host, state="starting", boot=boot, lock=lock
        )

    def beat(self, worker: int, *, state: str, sessions: int, now_ms: int) -> None:
        """See ``WorkerStore.beat``."""
        values = {"worker": worker, "state": state, "sessions": sessions, "now_ms": now_ms}
        self._write("beating", lambda c: run(c, "worker_beat", values))

    def retire(
        self, worker: int, *, state: str, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> None:
        """See ``WorkerStore.retire``."""

        def step(connection: apsw.Connection) -> bool:
            return upkeep.retire(
                connection,
                worker,
                state=state,
                now_ms=now_ms,
                on_doubt=on_doubt,
                delays_ms=self._doubt_delays_ms,
            )

        while not self._write("ending a worker", step):
            time.sleep(FREE_LOCK_S)

    def workers(self, *, live: bool = True) -> list[WorkerRow]:
        """See ``WorkerStore.workers``."""
        rows = self._read(
            "listing workers", STATEMENTS["workers_live" if live else "workers_all"], {}
        )
        return [
            WorkerRow(
                seq=row[0],
                kind=row[1],
                pid=row[2],
                host=row[3],
                state=row[4],
                boot=row[5],
                lock=row[6],
            )
            for row in rows
        ]

    def watched(self) -> str | None:
        """See ``WorkerStore.watched``."""
        return self._place.log_path()

    def live_workers(self) -> int:
        """See ``WorkerStore.live_workers``."""
        return max(
            1, int(self._read("counting workers", STATEMENTS["workers_delivering"], {})[0][0])
        )

    def tell(self, key: str, value: object) -> None:
        """See ``WorkerStore.tell``; kept in ``meta``."""
        values = {"key": key, "value": value}
        self._write("writing meta", lambda c: run(c, "meta_set", values))

    def use_streams(self, streams: Sequence[StreamPolicy]) -> None:
        """See ``WorkerStore.use_streams``."""
        self._write("setting the streams", lambda c: put_streams(c, streams))

    @property
    def copied(self) -> bool:
        """See ``WorkerStore.copied``."""
        return bool(self._read("looking for the mark of a copy", STATEMENTS["copied"], {}))

    def room_bytes(self) -> int | None:
        """See ``WorkerStore.room_bytes``."""
        with forks.inside(), spool_errors(self.path, "looking for room"):
            return self._place.room_bytes(self._connection.opened())

    @property
    def log_full(self) -> bool:
        """See ``WorkerStore.log_full``."""
        return self._log.full

    def log_bytes(self) -> int:
        """See ``WorkerStore.log_bytes``."""
        return self._place.log_bytes()

    # --- routes -----------------------------------------------------------------------------

    def use_routes(self, policy: str, now_ms: int) -> bool:
        """See ``WorkerStore.use_routes``."""
        doing = "setting the routing policy"
        other, more = self._write(doing, lambda c: routes.use(c, policy))
        self._go_on(doing, sweeps.expire, more)
        return other

    def due_domains(self, worker: int, limit: int, now_ms: int) -> list[DueDomain]:
        """See ``WorkerStore.due_domains``; takes the lock only where there is something to take."""
        if not self._read("looking for domains", STATEMENTS["domain_due"], {"now_ms": now_ms}):
            return []
        return self._write(
            "taking domains to route", lambda c: routes.due(c, worker, limit, now_ms)
        )

    def put_routes(self, worker: int, answers: Sequence[RouteAnswer], now_ms: int) -> list[bool]:
        """See ``WorkerStore.put_routes``."""

        left = self._write("storing routes", lambda c: routes.put(c, worker, answers, now_ms))
        if any(answer.refusal is not None for answer in answers):
            with suppress(SpoolError):  # the routes are stored; what is owed stays owed
                self._report(now_ms)
        return left

    def give_back(self, worker: int, domains: Mapping[str, int]) -> None:
        """See ``WorkerStore.give_back``."""
        values = {"worker": worker, "rows": encoded(list(domains.items()))}
        self._write("giving domains back", lambda c: run(c, "give_back", values))

    # --- lanes and claims -------------------------------------------------------------------

    def due_sites(self, now_ms: int) -> list[int]:
        """See ``WorkerStore.due_sites``."""
        rows = self._read("looking for due sites", STATEMENTS["due_sites"], {"now_ms": now_ms})
        sites: list[int] = json.loads(rows[0][0])
        return sites

    def open_sites(
        self, worker: int, *, limit: int, workers: int, most: int, now_ms: int
    ) -> list[int]:
        """See ``WorkerStore.open_sites``."""
        share = -(-limit // max(1, workers))
        values = {"worker": worker, "limit": limit, "share": share, "most": most, "now_ms": now_ms}
        rows = self._read("looking for sites with room", STATEMENTS["open_sites"], values)
        return [row[0] for row in rows]

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
        among: str | None = None
        if proven:
            share = -(-limit // max(1, workers))
            values = {
                "worker": worker, "limit": limit, "share": share, "page": lanes.PROVEN_PAGE,
                "most": want, "now_ms": now_ms,
            }  # fmt: skip
            found = self._read("looking for proven sites", STATEMENTS["proven_sites"], values)
            if found[0][0] == "[]":
                return []
            among = found[0][0]
        return self._write(
            "leasing lanes",
            lambda c: lanes.lease(
                c, worker, want=want, limit=limit, workers=workers, now_ms=now_ms, among=among
            ),
        )

    def release(
        self, ended: Sequence[int], now_ms: int, *, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> int:
        """See ``WorkerStore.release``."""
        left = ended

        def step(connection: apsw.Connection) -> tuple[int, Sequence[int]]:
            return lanes.release(connection, left, now_ms, on_doubt, self._doubt_delays_ms)

        held, left = self._write("releasing lanes", step)
        while left:
            time.sleep(FREE_LOCK_S)
            more, left = self._write("releasing lanes", step)
            held += more
        return held

    def exchange(self, work: Work, now_ms: int) -> Exchange:
        """See ``WorkerStore.exchange``."""
        if work.empty:
            return Exchange(frozenset(), frozenset(), [])

        def step(connection: apsw.Connection) -> claims.Exchanged:
            done = claims.exchange(connection, work, now_ms)
            if work.settlements:
                ended = [settlement.recipient for settlement in work.settlements]
                reports.make(self.path, connection, self._reporting, ended, now_ms)
            return done

        done = self._write("exchanging work", step)
        times = self._connection.locked_s, self._connection.freed_s
        try:
            rows = self._with_bodies(done.rows)
        except BaseException as error:
            raise AnswerLost("what an exchange claimed cannot be told") from error
        return Exchange(done.settled, done.opened, rows, done.ended, *times, done.more)

    def _with_bodies(self, rows: list[tuple[int, Any]]) -> list[Claimed]:
        """Read and verify content, now that the lock is free: nothing else waits for it.

        The claim stands, so no trouble here may look as if it did not: what cannot be read now,
        for whatever reason, is marked so (``Claimed.unread``). A damaged page costs the content
        that lies on it.
        """
        try:
            return claims.complete(rows, self._bodies(rows))
        except Exception:
            found: dict[int, claims.Kept | None] = {}
            for row in rows:
                try:
                    found |= self._bodies([row])
                except SpoolCorrupt:
                    found[row[1][8]] = None
                except Exception:  # a lack of memory, say
                    continue
            return claims.complete(rows, found)

    def _bodies(self, rows: list[tuple[int, Any]]) -> dict[int, claims.Kept | None]:
        if not rows:
            return {}
        with forks.inside(), spool_errors(self.path, "reading content"):
            return claims.bodies(self._connection.opened(), rows)

    def chunk(self, content: int, number: int) -> bytes | None:
        """See ``WorkerStore.chunk``."""
        values = {"key": content * 4096 + number}
        try:
            rows = self._read("reading content", STATEMENTS["chunk"], values)
        except SpoolCorrupt:  # given back, it would be claimed again without end
            return None
        if not rows or digest(rows[0][0]) != rows[0][1]:
            return None
        return bytes(rows[0][0])

    def suspend(self, suspension: Suspension, now_ms: int) -> int:
        """See ``WorkerStore.suspend``."""
        return self._write("suspending a site", lambda c: lanes.suspend(c, suspension, now_ms))

    def failures(self, site: int) -> int:
        """See ``WorkerStore.failures``."""
        rows = self._read("reading a site", STATEMENTS["site_failures"], {"site": site})
        return int(rows[0][0]) if rows else 0

    # --- upkeep -----------------------------------------------------------------------------

    def lapse(
        self, worker: int, *, boot: str, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> Lapsed:
        """See ``WorkerStore.lapse``."""
        lapsed = Lapsed(worker, 0, 0, 0)

        def step(connection: apsw.Connection) -> tuple[Lapsed, bool]:
            return upkeep.lapse(
                connection,
                lapsed,
                boot=boot,
                now_ms=now_ms,
                on_doubt=on_doubt,
                delays_ms=self._doubt_delays_ms,
            )

        lapsed, all_done = self._write("lapsing claims", step)
        while not all_done:
            time.sleep(FREE_LOCK_S)
            lapsed, all_done = self._write("lapsing claims", step)
        return lapsed

    def last_event(self) -> int:
        """See ``WorkerStore.last_event``."""
        return int(self._read("reading events", STATEMENTS["last_event"], {})[0][0])

    def failed_since(self, event: int, *, domain: str | None = None) -> list[Failure]:
        """See ``WorkerStore.failed_since``."""
        values = {"event": event, "domain": domain}
        rows = self._read("reading events", STATEMENTS["failed_since"], values)
        return [Failure(*row) for row in rows]

    def unreported_since(self, event: int) -> list[Unreported]:
        """See ``WorkerStore.unreported_since``."""
        rows = self._read("reading events", STATEMENTS["unreported_since"], {"event": event})
        return [
            Unreported(id, kind, count, error, tries, bool(given_up))
            for id, kind, count, error, tries, given_up in rows
        ]

    def expire(self, limit: int, now_ms: int) -> int:
        """See ``WorkerStore.expire``."""

        expired = self._write("expiring", lambda c: upkeep.expire(c, limit, now_ms))
        if expired:
            with suppress(SpoolError):  # they are expired; what is owed stays owed
                self._report(now_ms)
        return expired

    def use_reporter(self, reporter: Reporter | None, original_bytes: int = ORIGINAL_BYTES) -> None:
        """See ``WorkerStore.use_reporter``."""
        self._reporting = None if reporter is None else reports.Reporting(reporter, original_bytes)

    def report(self, delays_ms: Sequence[int], limit: int, now_ms: int) -> int:
        """See ``WorkerStore.report``; takes the lock only where there is something to do."""
        delays_ms = sorted(set(delays_ms))
        asked = {"thresholds": encoded(delays_ms), "now_ms": now_ms}
        if (
            self._reporting is None
            or not self._read("looking for reports", STATEMENTS["owed_any"], asked)[0][0]
        ):
            return 0
        doing = "making reports"
        total = self._write(doing, lambda c: reports.owe_delays(c, delays_ms, limit, now_ms))
        while made := self._report(now_ms):
            total += made
            if total >= limit:
                break
            time.sleep(FREE_LOCK_S)
        return total

    def _report(self, now_ms: int) -> int:
        """Make some of what is owed: first it is said what is begun, then it is made."""
        reporting = self._reporting
        asked = {"now_ms": now_ms}
        if (
            reporting is None  # else most mail wants none: the lock is for those that do
            or not self._read("looking for reports", STATEMENTS["owed_waits"], asked)[0][0]
        ):
            return 0
        begun, given_up = self._write("beginning reports", lambda c: reports.begin(c, now_ms))
        if not begun:
            return given_up
        time.sleep(FREE_LOCK_S)
        return given_up + self._write(
            "making reports",
            lambda c: reports.finish(self.path, c, reporting, begun, now_ms),
        )

    def keep_clock(self, *, wall_ms: int, monotonic_ms: int, boot: str, limit: int) -> int:
        """See ``WorkerStore.keep_clock``."""
        look = clocks.Look(wall_ms, monotonic_ms, boot)
        with forks.inside(), spool_errors(self.path, "looking at the clock"):
            if clocks.quiet(self._connection.opened(), look):
                return 0
        passed, more = self._write("keeping the clock", lambda c: clocks.keep(c, look, limit))
        self._go_on("keeping the clock", sweeps.shift, more)
        return passed

    def retention(self) -> Retention:
        """See ``WorkerStore.retention``; kept in ``meta``."""
        kept = {row[0]: row[1] for row in self._read("reading meta", STATEMENTS["retention"], {})}
        return Retention(
            bodies_ms=int(kept["retention_bodies_ms"]),
            attempts_ms=int(kept["retention_attempts_ms"]),
            events_ms=int(kept["retention_events_ms"]),
        )

    def purge(self, retention: Retention, limit: int, now_ms: int) -> int:
        """See ``WorkerStore.purge``."""
        with forks.inside(), spool_errors(self.path, "looking for what to purge"):
            shared = self._shared(self._connection.opened(), now_ms - retention.bodies_ms, limit)
        step = partial(upkeep.purge, retention=retention, limit=limit, now_ms=now_ms, shared=shared)
        deleted = self._write("purging", step)
        return deleted + self._write("shrinking the file", upkeep.vacuum)

    def checkpoint(self) -> Checkpoint:
        """See ``WorkerStore.checkpoint``."""
        return self._log.checkpoint()

    def sync(self) -> None:
        """See ``WorkerStore.sync``."""
        self._sync.check()
        self._sync()

    def verify(self) -> None:
        """See ``WorkerStore.verify``."""
        self._sync.verify()

    def repair(self) -> bool:
        """See ``WorkerStore.repair``."""
        return self._log.repair()

    def unrepaired(self) -> str:
        """See ``WorkerStore.unrepaired``."""
        return self._log.unrepaired()

    @property
    def poisoned(self) -> bool:
        """See ``WorkerStore.poisoned``."""
        try:
            self._sync.check()
        except SpoolError:
            return True
        return False

    def version(self) -> int:
        """See ``WorkerStore.version``."""
        return int(self._read("looking for commits", "PRAGMA data_version", {})[0][0])

    def next_due_ms(self, now_ms: int) -> int | None:
        """See ``WorkerStore.next_due_ms``."""
        rows = self._read("looking for due work", STATEMENTS["next_due"], {})
        due_ms = rows[0][0]
        return None if due_ms is None or due_ms >= lanes.NEVER_MS else int(due_ms)

    def close(self) -> None:
        """Close the connection; idempotent. Later calls raise SpoolError."""
        self._connection.close()
