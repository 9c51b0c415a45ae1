"""The engine's half of the SQLite store: one connection, used by one thread.

This file owns the connection and the transactions; the verbs' SQL steps live in ``claims`` (lease,
claim, open, settle), ``routes`` (the MX cache), ``upkeep`` (lapse, expire, purge) and ``clocks``.

One method a verb and nothing else, so that the file is long and flat.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import apsw

from mailstrom.errors import SpoolCorrupt, SpoolError, SpoolReplaced
from mailstrom.storage.base import (
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
    Work,
    WorkerRow,
)
from mailstrom.storage.sqlite import (
    claims,
    clocks,
    contents,
    forks,
    lanes,
    poison,
    routes,
    schema,
    upkeep,
    wal,
)
from mailstrom.storage.sqlite.connection import FREE_LOCK_S, rolled_back, spool_errors
from mailstrom.storage.sqlite.durable import Sync, system_sync
from mailstrom.storage.sqlite.frames import FramesLost
from mailstrom.storage.sqlite.patience import Patience
from mailstrom.storage.sqlite.place import FilePlace, Place
from mailstrom.storage.sqlite.rows import digest
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.storage.sqlite.streams import use as put_streams
from mailstrom.types import OnDoubt

_T = TypeVar("_T")


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
        self._busy_ms = busy_ms
        self._doubt_delays_ms = tuple(doubt_delays_ms)
        self._open: apsw.Connection | None = None
        self._emptying = wal.Emptying()
        self._shared = contents.Shared()
        self._unusable: str | None = None
        self._lost = ""  # why the last repair may not move the log
        self._locked_s = self._freed_s = 0.0  # of the last transaction
        self._place: Place = place or FilePlace(path, sync)
        self._sync = self._place.durable
        self._patience = Patience(busy_ms)
        with forks.inside():
            self._connection()
        forks.watch(self)

    def _connection(self) -> apsw.Connection:
        """The one connection; closed by ``let_go`` and opened again. Only within ``inside``."""
        if self._unusable is not None:
            raise SpoolError(f"{self.path}: {self._unusable}")
        if self._open is None:
            connection = self._place.connect(busy_ms=self._busy_ms, checkpoint_frames=0)
            try:
                schema.require(connection, self.path, client=False)
                self._sync.bind()
                self._patience.bind(connection)
            except BaseException:
                connection.close()
                raise
            self._open = connection
        return self._open

    def let_go(self) -> None:
        """Close the idle connection before a fork; see ``forks``."""
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    def orphaned(self) -> None:
        """In a child whose parent forked in the middle of a call; see ``forks``."""
        self._unusable = "this process was forked in the middle of a transaction"

    def _write(self, doing: str, step: Callable[[apsw.Connection], _T]) -> _T:
        """Run one step as one immediate transaction."""
        with forks.inside(), spool_errors(self.path, doing):
            connection = self._connection()
            self._sync.verify()  # without shared locks it would write over what others commit
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._locked_s = time.monotonic()
                result = step(connection)
                connection.execute("COMMIT")
                self._freed_s = time.monotonic()
            except BaseException:
                if not rolled_back(connection):
                    self.let_go()
                raise
        return result

    def _read(self, doing: str, sql: str, values: dict[str, Any]) -> list[Any]:
        with forks.inside(), spool_errors(self.path, doing):
            return self._connection().execute(sql, values).fetchall()

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
            return self._place.room_bytes(self._connection())

    @property
    def log_full(self) -> bool:
        """See ``WorkerStore.log_full``."""
        with forks.inside(), spool_errors(self.path, "looking at the log"):
            return wal.full(self._connection(), self._place.log_bytes())

    def log_bytes(self) -> int:
        """See ``WorkerStore.log_bytes``."""
        return self._place.log_bytes()

    # --- routes -----------------------------------------------------------------------------

    def use_routes(self, policy: str, now_ms: int) -> bool:
        """See ``WorkerStore.use_routes``."""
        return self._write("setting the routing policy", lambda c: routes.use(c, policy))

    def due_domains(self, worker: int, limit: int, now_ms: int) -> list[DueDomain]:
        """See ``WorkerStore.due_domains``; takes the lock only where there is something to take."""
        if not self._read("looking for domains", STATEMENTS["domain_due"], {"now_ms": now_ms}):
            return []
        return self._write(
            "taking domains to route", lambda c: routes.due(c, worker, limit, now_ms)
        )

    def put_routes(self, worker: int, answers: Sequence[RouteAnswer], now_ms: int) -> list[bool]:
        """See ``WorkerStore.put_routes``."""
        return self._write("storing routes", lambda c: routes.put(c, worker, answers, now_ms))

    def give_back(self, worker: int, domain: str, retry_ms: int) -> None:
        """See ``WorkerStore.give_back``."""
        values = {"worker": worker, "name": domain, "retry_ms": retry_ms}
        self._write("giving a domain back", lambda c: run(c, "give_back", values))

    # --- lanes and claims -------------------------------------------------------------------

    def due_sites(self, now_ms: int) -> list[int]:
        """See ``WorkerStore.due_sites``."""
        rows = self._read("looking for due sites", STATEMENTS["due_sites"], {"now_ms": now_ms})
        return [row[0] for row in rows]

    def open_sites(self, worker: int, *, limit: int, workers: int, now_ms: int) -> list[int]:
        """See ``WorkerStore.open_sites``."""
        share = -(-limit // max(1, workers))
        values = {"worker": worker, "limit": limit, "share": share, "now_ms": now_ms}
        rows = self._read("looking for sites with room", STATEMENTS["open_sites"], values)
        return [row[0] for row in rows]

    def lease(self, worker: int, *, want: int, limit: int, workers: int, now_ms: int) -> list[Lane]:
        """See ``WorkerStore.lease``."""
        return self._write(
            "leasing lanes",
            lambda c: lanes.lease(
                c, worker, want=want, limit=limit, workers=workers, now_ms=now_ms
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
        done = self._write("exchanging work", lambda c: claims.exchange(c, work, now_ms))
        times = self._locked_s, self._freed_s
        rows = self._with_bodies(done.rows)
        return Exchange(done.settled, done.opened, rows, done.ended, *times, done.more)

    def _with_bodies(self, rows: list[tuple[int, Any]]) -> list[Claimed]:
        """Read and verify content, now that the lock is free: nothing else waits for it.

        The claim stands, so trouble here must not look as if it did not: what cannot be read now is
        marked so (``Claimed.unread``). A damaged page costs the content that lies on it.
        """
        try:
            return claims.complete(rows, self._bodies(rows))
        except SpoolError:
            found: dict[int, claims.Kept | None] = {}
            for row in rows:
                try:
                    found |= self._bodies([row])
                except SpoolCorrupt:
                    found[row[1][8]] = None
                except SpoolError:
                    continue
            return claims.complete(rows, found)

    def _bodies(self, rows: list[tuple[int, Any]]) -> dict[int, claims.Kept | None]:
        if not rows:
            return {}
        with forks.inside(), spool_errors(self.path, "reading content"):
            return claims.bodies(self._connection(), rows)

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

    def expire(self, limit: int, now_ms: int) -> int:
        """See ``WorkerStore.expire``."""
        return self._write("expiring", lambda c: upkeep.expire(c, limit, now_ms))

    def keep_clock(self, *, wall_ms: int, monotonic_ms: int, boot: str, limit: int) -> int:
        """See ``WorkerStore.keep_clock``."""
        look = clocks.Look(wall_ms, monotonic_ms, boot)
        with forks.inside(), spool_errors(self.path, "looking at the clock"):
            if clocks.quiet(self._connection(), look):
                return 0
        return self._write("keeping the clock", lambda c: clocks.keep(c, look, limit))

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
            shared = self._shared(self._connection(), now_ms - retention.bodies_ms, limit)
        step = partial(upkeep.purge, retention=retention, limit=limit, now_ms=now_ms, shared=shared)
        deleted = self._write("purging", step)
        return deleted + self._write("shrinking the file", upkeep.vacuum)

    def checkpoint(self) -> Checkpoint:
        """See ``WorkerStore.checkpoint``; a file that grew over its alarm is cut back, too.

        Nothing in a poisoned spool: the WAL on the disk may have a gap (see ``repair``).
        """
        self._sync.check()
        with forks.inside(), self._disk_errors("checkpointing"):
            connection = self._connection()
            size, limit = self._place.log_bytes(), wal.LIMIT_BYTES
            if size >= wal.LEAST_ALARM_BYTES:
                limit = wal.limit_bytes(connection)
            try:
                frames, moved, mode = self._emptying(
                    connection, size=size, limit=limit, busy_ms=self._busy_ms, ask=self._sync.check
                )
            finally:
                self._patience.bind(connection)  # a timeout of SQLite's own has taken its place
            found = None
            if size >= wal.alarm_bytes(limit) and mode != "truncate":
                found = wal.pinned(self.path)
                seen = found.holders or not found.sure
                found = replace(found, limit_bytes=limit) if seen else None
        return Checkpoint(
            frames=frames,
            moved=moved,
            wal_bytes=frames * wal.FRAME_BYTES,
            mode=mode,
            pinned=found,
        )

    def sync(self) -> None:
        """See ``WorkerStore.sync``."""
        self._sync.check()
        self._sync()

    def verify(self) -> None:
        """See ``WorkerStore.verify``."""
        self._sync.verify()

    def repair(self) -> bool:
        """See ``WorkerStore.repair``: write the WAL anew, empty it, sync afresh.

        First the frames that a failed sync dropped, from the page cache, so that a power cut during
        all this finds a whole WAL. Then a TRUNCATE checkpoint, and not RESTART, which leaves the
        old frames in the file until somebody writes; it waits for readers with the write lock, so
        not for longer than writers may have to wait. Where the page cache has lost them as well
        nothing is moved; see ``frames``.
        """
        self._sync.verify()  # never on the word of files that are not ours
        begun, self._lost = self._sync.begin_repair(), ""
        try:
            with forks.inside():
                connection = self._connection()
                connection.execute("BEGIN IMMEDIATE").fetchall()
                try:
                    self._sync.rewrite()
                finally:
                    connection.execute("ROLLBACK").fetchall()
                connection.execute("PRAGMA synchronous = 2").fetchall()
                connection.set_busy_timeout(min(self._busy_ms, wal.LAST_MS))
                try:
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                finally:
                    self._patience.bind(connection)
                    connection.execute("PRAGMA synchronous = 1").fetchall()
            self._sync.fresh()
        except SpoolReplaced:
            raise
        except FramesLost as error:
            self._lost = str(error)
            return False
        except (apsw.Error, OSError, SpoolError):
            return False
        return self._sync.heal(begun)

    def unrepaired(self) -> str:
        """See ``WorkerStore.unrepaired``."""
        return self._lost or poison.unrepaired(self.path)

    @contextlib.contextmanager
    def _disk_errors(self, doing: str) -> Iterator[None]:
        """A sync that fails inside SQLite poisons the spool as one of ours does."""
        with spool_errors(self.path, doing):
            try:
                yield
            except apsw.IOError as error:
                self._sync.poison(OSError(errno.EIO, str(error)))
                raise

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
        self._unusable = self._unusable or "this store is closed"
        with forks.inside():
            self.let_go()
        self._place.close()
