"""The client's half of the SQLite store: insert, change and read rows, durable before it returns.

Used by one writing thread (the client room's committer: ``enqueue``, ``change``, ``recent``,
``adopt``) and any number of reading threads, each reader with a connection of its own from a pool.
This file owns connections and transactions; what the verbs do within one lives in ``submissions``,
``changes``, ``finding``, ``asking``, ``streams``, ``copies`` and ``backups``. Nothing here knows
asyncio, DNS or SMTP.

One method a verb and little else, so that the file is long and flat.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import apsw

from mailstrom.errors import (
    IdempotencyConflict,
    InvalidMessage,
    OutcomeUnknown,
    SpoolBusy,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
    SpoolReadOnly,
    SpoolReplaced,
)
from mailstrom.storage.client import Owner, Selection, Submission, Target
from mailstrom.storage.pinned import mebibytes
from mailstrom.storage.sqlite import (
    asking,
    backups,
    changes,
    checking,
    copies,
    finding,
    forks,
    poison,
    schema,
    streams,
    wal,
)
from mailstrom.storage.sqlite.connection import (
    FREE_LOCK_S,
    abandon,
    only_reads,
    rolled_back,
    spool_errors,
)
from mailstrom.storage.sqlite.durable import LocksLost, Sync, system_sync
from mailstrom.storage.sqlite.place import FilePlace, Place
from mailstrom.storage.sqlite.rows import decode_statuses, digest, fits, named_rows
from mailstrom.storage.sqlite.sql import run
from mailstrom.storage.sqlite.submissions import UNFIT, Staged, encode, known, refusal, unstage
from mailstrom.types import Change, Event, MessageStatus, QueueStats, Suppression

_T = TypeVar("_T")
_Row = dict[str, Any] | str | Exception
"""Bindings of one submission, or what is known of it before it is inserted."""

EMPTY_S = 1.0
"""How often a client that is refused for a full log tries to empty it."""
_MOST_PASSED = 64
"""Readers of events of some types whose progress is remembered."""


class SQLiteClientStore:
    """``ClientStore`` on a SQLite spool.

    Args:
        path: the database file; created if missing.
        busy_ms: how long to wait for another writer.
        sync: what makes the -wal file durable; tests record it or make it fail.
        place: where the spool lives, if that is no file.
        boot: name of this boot of the machine: what was claimed in another one is changed only
            after its lapse. None: all claims are of this one.
    """

    def __init__(
        self,
        path: str,
        *,
        busy_ms: int = 5_000,
        sync: Sync = system_sync,
        place: Place | None = None,
        boot: str | None = None,
    ) -> None:
        self.path = path
        self._boot = boot
        self._busy_ms = busy_ms
        self._place: Place = place or FilePlace(path, sync)
        self._sync = self._place.durable
        self._writer: apsw.Connection | None = None
        self._readers: list[apsw.Connection] = []
        self._watcher: apsw.Connection | None = None
        self._watchers = 0
        self._watching = threading.RLock()  # only taken within ``forks.inside``
        self._emptied = float("-inf")
        self._passed: dict[tuple[int, frozenset[str]], int] = {}
        self._staged: list[Staged] = []  # what no message was made of yet
        self._unusable: str | None = None
        with forks.inside():
            self._place.prepare(busy_ms=busy_ms)
        forks.watch(self)

    # --- connections ------------------------------------------------------------------------

    def _usable(self) -> None:
        if self._unusable is not None:
            raise SpoolError(f"{self.path}: {self._unusable}")

    def _write_connection(self) -> apsw.Connection:
        self._usable()
        if self._writer is None:
            connection = self._place.connect(busy_ms=self._busy_ms)
            try:
                schema.require(connection, self.path, client=True)
                self._sync.bind()
            except BaseException:
                connection.close()
                raise
            self._writer = connection
        return self._writer

    @contextlib.contextmanager
    def _reader(self) -> Iterator[apsw.Connection]:
        """A reading connection for this call alone; list.pop and append are atomic."""
        with forks.inside():
            self._usable()
            pid = os.getpid()
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._place.connect(read_only=True, busy_ms=self._busy_ms)
            try:
                with spool_errors(self.path, "reading"):
                    yield connection
            finally:
                if pid != os.getpid():
                    abandon(connection)
                elif self._unusable is None and rolled_back(connection):
                    self._readers.append(connection)
                else:
                    connection.close()

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[apsw.Connection]:
        """A reading connection that sees one state of the spool throughout."""
        with self._reader() as connection, connection:
            yield connection

    def let_go(self) -> None:
        """Close the idle connections before a fork; see ``forks``."""
        writer, self._writer = self._writer, None
        watcher, self._watcher = self._watcher, None
        for connection in [writer, watcher, *self._readers]:
            if connection is not None:
                connection.close()
        self._readers.clear()

    def orphaned(self) -> None:
        """In a child whose parent forked in the middle of a read; see ``forks``."""
        self._unusable = (
            "this process was forked by code that interrupted a call of Mailstrom;"
            " start it with the multiprocessing method 'spawn'"
        )

    def close(self) -> None:
        """Close this process's connections; idempotent. Later calls raise SpoolError."""
        self._unusable = self._unusable or "this client is closed; open a new one"
        with forks.inside():
            self.let_go()
        self._place.close()

    # --- writing ----------------------------------------------------------------------------

    def enqueue(
        self, submissions: Sequence[Submission], now_ms: int, *, atomic: bool = False
    ) -> list[str | Exception]:
        """See ``ClientStore.enqueue``."""
        self._sync.check()
        with forks.inside():
            self._require_unreplaced()
            self._require_log_room()
            try:
                results = self._store(self._write_connection(), submissions, now_ms, atomic)
            except SpoolBusy:
                raise  # the next call deletes what was staged: now it would wait once more
            except BaseException:
                self._unstage()
                raise
            self._unstage()
        if any(isinstance(result, str) for result in results):
            self._durable(submissions[0].id)
        return results

    def _require_unreplaced(self) -> None:
        """Write nothing to files without a name, nor without locks that newcomers share."""
        if self._writer is not None:
            try:
                self._sync.verify()
            except SpoolReplaced:
                self.let_go()  # the next call opens what has the name now
                raise

    def _require_log_room(self) -> None:
        """Refuse while a reader pins a log that is at its limit: one ``stat`` in ordinary times.

        Where no engine runs nobody else would empty it, so now and then it is tried here.
        """
        if self._place.log_bytes() < wal.LEAST_LIMIT_BYTES:
            return
        with spool_errors(self.path, "looking at the write-ahead log"):
            connection = self._write_connection()
            limit = wal.limit_bytes(connection)
            if self._place.log_bytes() < limit:
                return
            found = wal.pinned(self.path)
            over = found.sure and not found.holders
            if over or time.monotonic() >= self._emptied + EMPTY_S:
                self._emptied = time.monotonic()
                wal.empty(connection, busy_ms=self._busy_ms, shorten=True)
            size = self._place.log_bytes()
            if size >= limit:
                raise SpoolFull(
                    f"{self.path}: the write-ahead log has {mebibytes(size)} and its limit is"
                    f" {mebibytes(limit)} ([spool] wal_limit): {wal.sentence(found)} keeps it from"
                    " being emptied; end its read transaction, or the process; nothing was written"
                )

    def _store(
        self,
        connection: apsw.Connection,
        submissions: Sequence[Submission],
        now_ms: int,
        atomic: bool,
    ) -> list[str | Exception]:
        rows: list[_Row] = []
        for submission in submissions:
            row: _Row
            try:
                row = encode(self.path, connection, submission, now_ms, self._staged)
            except UNFIT as error:
                row = refusal(error)
            if atomic and isinstance(row, Exception):
                raise row
            rows.append(row)
        return self._insert(connection, submissions, rows, atomic)

    def _unstage(self) -> None:
        """Delete what was staged for nothing; what cannot be deleted now is tried again later."""
        if self._staged:
            with contextlib.suppress(SpoolError):
                unstage(self.path, self._write_connection(), self._staged)

    def _durable(self, key: str) -> None:
        try:
            self._sync()
        except SpoolReplaced as error:
            with forks.inside():
                self.let_go()  # the next call opens what has the name now
            if not isinstance(error, LocksLost):
                raise
            raise OutcomeUnknown(f"{error}; ask status({key!r})", key=key) from error
        except (SpoolError, OSError) as error:
            raise OutcomeUnknown(
                f"{self.path}: the message was written, but the disk did not confirm it ({error});"
                f" ask status({key!r}) once the spool works again",
                key=key,
            ) from error

    def _insert(
        self,
        connection: apsw.Connection,
        submissions: Sequence[Submission],
        rows: Sequence[_Row],
        atomic: bool,
    ) -> list[str | Exception]:
        good = sum(isinstance(row, dict) for row in rows)
        if good == 0:
            return [row for row in rows if not isinstance(row, dict)]
        alone = good == 1
        results: list[str | Exception] = []
        try:
            with spool_errors(self.path, "storing a message"):
                if not alone:
                    connection.execute("BEGIN IMMEDIATE")
                for submission, row in zip(submissions, rows, strict=True):
                    if not isinstance(row, dict):
                        results.append(row)
                        continue
                    result = self._insert_one(connection, submission, row)
                    if atomic and isinstance(result, Exception):
                        raise result
                    results.append(result)
                if not alone:
                    connection.execute("COMMIT")
        except SpoolError as error:
            self._rollback(connection)
            if isinstance(error, SpoolBusy):
                raise
            results = self._look_up(submissions, rows, error)
            if atomic:
                _raise_first(results)
        except BaseException:
            self._rollback(connection)
            raise
        stored = {-row["content"] for row, result, submission in zip(
            rows, results, submissions, strict=True
        ) if isinstance(row, dict) and row["content"] and result == submission.id}  # fmt: skip
        self._staged = [staged for staged in self._staged if staged.seq not in stored]
        return results

    def _insert_one(
        self,
        connection: apsw.Connection,
        submission: Submission,
        row: dict[str, Any],
    ) -> str | Exception:
        try:
            # One statement: refused, SQLite takes it back whole and leaves its neighbours alone.
            run(connection, "enqueue", row)
        except apsw.ConstraintError as error:
            return self._refused(connection, submission, error)
        except apsw.TooBigError as error:
            return InvalidMessage(
                f"the message is too large for the spool: {error}", rule="too-large"
            )
        except UNFIT as error:
            return refusal(error)
        return submission.id

    def _refused(
        self, connection: apsw.Connection, submission: Submission, error: Exception
    ) -> str | Exception:
        if submission.idempotency is not None and "idempotency" in str(error):
            return known(connection, submission) or IdempotencyConflict(
                f"idempotency key {submission.idempotency[0]!r} was used for a message that is"
                " gone now; use a new key for new content"
            )
        return streams.refusal(connection, submission, error) or InvalidMessage(
            f"the spool refuses this message: {error}", rule="constraint"
        )

    def _rollback(self, connection: apsw.Connection) -> None:
        if not rolled_back(connection):
            self._writer = None
            connection.close()

    def _look_up(
        self,
        submissions: Sequence[Submission],
        rows: Sequence[_Row],
        error: SpoolError,
    ) -> list[str | Exception]:
        """After a failed commit: what is stored is stored, whatever the error said."""
        if self._writer is not None:
            with contextlib.suppress(apsw.Error):
                self._writer.close()
            self._writer = None
        ids = [submission.id for submission in submissions]
        try:
            connection = self._write_connection()
            found = {row[0] for row in run(connection, "known_ids", {"ids": json.dumps(ids)})}
            if type(error) in (SpoolError, SpoolFull) and len(found) < len(ids):
                self._take_its_place(connection, error)
        except (SpoolError, apsw.Error) as trouble:
            raise OutcomeUnknown(
                f"{self.path}: a commit failed ({error}) and the spool cannot be read now"
                f" ({trouble}); ask status({ids[0]!r}) later",
                key=ids[0],
            ) from error
        if not found and all(isinstance(row, dict) for row in rows):
            raise error
        return [
            submission.id if submission.id in found else error if isinstance(row, dict) else row
            for submission, row in zip(submissions, rows, strict=True)
        ]

    def _take_its_place(self, connection: apsw.Connection, error: SpoolError) -> None:
        """Commit something else, durably, where the frames of the failed commit may lie.

        A write that was said to have failed may be on the disk all the same. Nobody sees its
        commit now, but whoever recovers the WAL after a crash would. Only where SQLite itself found
        no room is the end of that commit missing for sure; an I/O error may come after it, as where
        the log's index cannot grow.
        """
        values = {"key": "commit_failed", "value": f"{time.time_ns()} {os.getpid()}"}
        try:
            run(connection, "meta_set", values)
        except apsw.Error:
            if isinstance(error.__cause__, apsw.FullError):
                return
            raise
        self._sync()

    def _write(self, doing: str, step: Callable[[apsw.Connection], _T]) -> _T:
        """Run one step as one immediate transaction."""
        with forks.inside(), spool_errors(self.path, doing):
            connection = self._write_connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = step(connection)
                connection.execute("COMMIT")
            except BaseException:
                self._rollback(connection)
                raise
        return result

    def change(self, change: Change, targets: Sequence[Target], now_ms: int) -> int:
        """See ``ClientStore.change``."""
        self._sync.check()
        if not targets:
            return 0
        changed = self._write(
            f"{change} of recipients",
            lambda c: changes.change(c, change, targets, now_ms, self._boot),
        )
        if changed:
            self._durable(targets[0].id)
        return changed

    def recent(self, limit: int) -> list[MessageStatus]:
        """See ``ClientStore.recent``.

        The cursor moves in a transaction of its own, after the messages were read, and only from
        where it stood then: the lock is not held while reading, and of two clients that look at the
        same time one looks again. It is no mail and is not synced: a power cut at worst tells of a
        completion twice.
        """
        self._sync.check()
        moved = False
        while not moved:
            with self._snapshot() as connection:
                look = asking.recent(connection, max(0, limit))
                found = self._statuses(connection, look.ids)
            step = partial(asking.move, look=look)
            moved = look.top == look.after or self._write("moving the cursor of recent()", step)
        return [found[id] for id in look.ids]

    def adopt(self, now_ms: int) -> bool:
        """See ``ClientStore.adopt``."""
        self._sync.check()
        step = partial(copies.adopt, now_ms=now_ms)
        more = self._write("adopting a copy", step)
        if more is None:
            return False
        while more:
            time.sleep(FREE_LOCK_S)
            more = self._write("adopting a copy", step)
        self._sync()
        return True

    # --- reading ----------------------------------------------------------------------------

    def statuses(self, ids: Sequence[str]) -> dict[str, MessageStatus]:
        """See ``ClientStore.statuses``."""
        with self._snapshot() as connection:  # one snapshot for both reads
            return self._statuses(connection, ids)

    def _statuses(
        self, connection: apsw.Connection, ids: Sequence[str]
    ) -> dict[str, MessageStatus]:
        values = {"ids": json.dumps(list(ids))}
        messages = run(connection, "status_messages", values)
        return decode_statuses(messages, run(connection, "status_recipients", values))

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
        with self._reader() as connection:
            return finding.targets(
                connection,
                selection,
                change=change,
                limit=limit,
                after=after,
                now_ms=now_ms,
                boot=self._boot,
            )

    def find(
        self, selection: Selection, *, limit: int, after: str | None = None
    ) -> list[MessageStatus]:
        """See ``ClientStore.find``."""
        with self._snapshot() as connection:
            ids = finding.find(connection, selection, limit=limit, after=after)
            found = self._statuses(connection, ids)
        return [found[id] for id in ids]

    def events(self, after: int, types: Sequence[str], limit: int) -> list[Event]:
        """See ``ClientStore.events``.

        How far a reader of rare types has looked is remembered, so that it does not look there
        again while it waits for the next one.
        """
        words = frozenset(types)
        start = max(after, self._passed.pop((after, words), after))
        with self._snapshot() as connection:
            found = asking.events(connection, start, types, limit)
            if words and len(found) < limit:
                reached = max(start, run(connection, "last_event")[0][0])
                while len(self._passed) >= _MOST_PASSED:
                    self._passed.pop(next(iter(self._passed)), None)
                self._passed[found[-1].id if found else after, words] = reached
        return found

    def stats(self, now_ms: int) -> QueueStats:
        """See ``ClientStore.stats``."""
        with self._snapshot() as connection:
            full = wal.full(connection, self._place.log_bytes())
            return asking.stats(connection, now_ms, log_full=full)

    def suppressions(self, addresses: Sequence[str], limit: int) -> list[Suppression]:
        """See ``ClientStore.suppressions``."""
        with self._reader() as connection:
            return asking.suppressions(connection, addresses, limit)

    def revision(self) -> int:
        """See ``ClientStore.revision``: SQLite's ``data_version`` of one connection kept for it."""
        with forks.inside(), self._watching, spool_errors(self.path, "looking for commits"):
            self._usable()
            if self._watcher is None:
                self._watcher = self._place.connect(read_only=True, busy_ms=self._busy_ms)
                self._watchers += 1
            rows: list[Any] = self._watcher.execute("PRAGMA data_version").fetchall()
            # A new connection counts from the beginning: its numbers must differ from the last's.
            return (self._watchers << 32) + int(rows[0][0])

    def content(self, id: str) -> bytes | None:
        """See ``ClientStore.content``."""
        with self._snapshot() as connection:
            rows = run(connection, "content_of", {"id": id})
            if not rows or rows[0][2] is not None:
                return None
            first = rows[0][0] * 4096
            pieces = run(connection, "content_chunks", {"first": first, "last": first + 4095})
        _, chunks, _, id, sender, message_id, size, eightbit, smtputf8, tls, doubt, sealed = rows[0]
        whole = (
            len(pieces) == chunks
            and sum(len(data) for data, _ in pieces) == size
            and all(digest(data) == kept for data, kept in pieces)
            and fits(
                sealed,
                require_tls=tls,
                on_doubt=doubt,
                id=id,
                sender=sender,
                message_id=message_id,
                size=size,
                chunks=chunks,
                eightbit=eightbit,
                smtputf8=smtputf8,
                digests=[kept for _, kept in pieces],
            )
        )
        if not whole:
            raise SpoolCorrupt(f"{self.path}: the content of message {id} is damaged on disk")
        return b"".join(data for data, _ in pieces)

    def query(
        self, sql: str, params: Sequence[object] | Mapping[str, object], seconds: float
    ) -> list[tuple[object, ...]]:
        """See ``ClientStore.query``."""
        allowed = self._place.longest_read_s(self._busy_ms)
        limit = seconds if allowed is None else min(seconds, allowed)
        deadline = time.monotonic() + limit
        bindings: Any = dict(params) if isinstance(params, Mapping) else tuple(params)
        with self._reader() as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            connection.authorizer = only_reads
            try:
                return named_rows(connection.execute(sql, bindings))
            except apsw.InterruptError as error:
                why = "" if limit == seconds else ", since commits wait for it in this spool"
                raise SpoolBusy(
                    f"the query took longer than {limit:g} s and was stopped{why}; narrow it"
                    + (", or ask a copy in a file (backup)" if why else "")
                ) from error
            except (apsw.ReadOnlyError, apsw.AuthError) as error:
                raise SpoolReadOnly(
                    "query() only reads: SELECT and nothing else; use the verbs to change mail"
                ) from error
            finally:
                connection.authorizer = None
                connection.set_progress_handler(None)

    def backup(self, target: str, now_ms: int) -> None:
        """See ``ClientStore.backup``."""
        backups.backup(self._source, self.path, target, now_ms)

    def _source(self) -> apsw.Connection:
        """A connection for a copy alone; only within ``inside``."""
        self._usable()
        return self._place.connect(read_only=True, busy_ms=self._busy_ms)

    def check(self) -> list[str]:
        """See ``ClientStore.check``."""
        with self._reader() as connection:
            return checking.check(connection, self.path) + poison.finding(self.path)

    def pinned(self) -> list[str]:
        """See ``ClientStore.pinned``."""
        with self._reader() as connection:
            return wal.note(self.path, connection) + wal.writer_note(self.path)

    def owners(self) -> list[Owner]:
        """See ``ClientStore.owners``."""
        with self._reader() as connection:
            return checking.owners(connection)


def _raise_first(results: Sequence[str | Exception]) -> None:
    """Raise the first exception among results, if there is one."""
    for result in results:
        if isinstance(result, Exception):
            raise result
