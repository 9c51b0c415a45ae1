"""The client's half of the SQLite store: insert and read rows, durable before it returns.

Used by one writing thread (the client room's committer) and any number of reading threads, each
reader with a connection of its own from a pool. Nothing here knows asyncio, DNS or SMTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apsw

from mailstrom.errors import (
    IdempotencyConflict,
    InvalidMessage,
    OutcomeUnknown,
    SpoolBusy,
    SpoolCorrupt,
    SpoolError,
    SpoolReadOnly,
)
from mailstrom.storage.base import CHUNK_BYTES, Submission
from mailstrom.storage.sqlite import forks, schema
from mailstrom.storage.sqlite.connection import abandon, connect, only_reads, spool_errors
from mailstrom.storage.sqlite.durable import Sync, WalSync, system_sync
from mailstrom.storage.sqlite.rows import checksum, digest
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import MessageStatus, Reason, RecipientStatus, Status, from_ms

_MOST_CHUNKS = 4096
_UNFIT = (InvalidMessage, ValueError, TypeError, OverflowError)
"""What a submission raises that no column can hold."""


def _refusal(error: Exception) -> InvalidMessage:
    if isinstance(error, InvalidMessage):
        return error
    return InvalidMessage(f"the spool cannot hold this message: {error}", rule="unfit")


class SQLiteClientStore:
    """``ClientStore`` on a SQLite spool.

    Args:
        path: the database file; created if missing.
        busy_ms: how long to wait for another writer.
        sync: what makes the -wal file durable; tests record it or make it fail.
    """

    def __init__(
        self,
        path: str,
        *,
        busy_ms: int = 5_000,
        sync: Sync = system_sync,
    ) -> None:
        self.path = path
        self._busy_ms = busy_ms
        self._sync = WalSync(path, sync)
        self._writer: apsw.Connection | None = None
        self._readers: list[apsw.Connection] = []
        self._unusable: str | None = None
        with forks.inside():
            schema.prepare(path, busy_ms=busy_ms)
        forks.watch(self)

    # --- connections ------------------------------------------------------------------------

    def _usable(self) -> None:
        if self._unusable is not None:
            raise SpoolError(f"{self.path}: {self._unusable}")

    def _write_connection(self) -> apsw.Connection:
        self._usable()
        if self._writer is None:
            connection = connect(self.path, busy_ms=self._busy_ms)
            try:
                schema.require(connection, self.path, client=True)
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
                connection = connect(self.path, read_only=True, busy_ms=self._busy_ms)
            try:
                with spool_errors(self.path, "reading"):
                    yield connection
            finally:
                if pid != os.getpid():
                    abandon(connection)
                elif self._unusable is None:
                    self._readers.append(connection)
                else:
                    connection.close()

    def let_go(self) -> None:
        """Close the idle connections before a fork; see ``forks``."""
        writer, self._writer = self._writer, None
        for connection in [writer, *self._readers]:
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
        self._sync.close()

    # --- writing ----------------------------------------------------------------------------

    def enqueue(
        self, submissions: Sequence[Submission], now_ms: int, *, atomic: bool = False
    ) -> list[str | Exception]:
        """See ``ClientStore.enqueue``."""
        self._sync.check()
        with forks.inside():
            connection = self._write_connection()
            rows: list[dict[str, Any] | Exception] = []
            for submission in submissions:
                try:
                    rows.append(self._row(connection, submission, now_ms))
                except _UNFIT as error:
                    rows.append(_refusal(error))
                    if atomic:
                        raise _refusal(error) from error
            results = self._insert(connection, submissions, rows, atomic)
        if any(isinstance(result, str) for result in results):
            self._durable(submissions[0].id)
        return results

    def _durable(self, key: str) -> None:
        try:
            self._sync()
        except (SpoolError, OSError) as error:
            raise OutcomeUnknown(
                f"{self.path}: the message was written, but the disk did not confirm it ({error});"
                f" ask status({key!r}) once the spool works again",
                key=key,
            ) from error

    def _row(
        self, connection: apsw.Connection, submission: Submission, now_ms: int
    ) -> dict[str, Any]:
        content = submission.content
        if not submission.recipients:
            raise InvalidMessage("the message has no recipient", rule="no-recipients")
        chunks = max(1, -(-len(content) // CHUNK_BYTES))
        if chunks > _MOST_CHUNKS:
            raise InvalidMessage(
                f"the message has {len(content)} bytes; the spool takes at most"
                f" {_MOST_CHUNKS * CHUNK_BYTES}",
                rule="too-large",
            )
        staged = self._stage(connection, content, now_ms) if chunks > 1 else None
        key, hash = submission.idempotency or (None, None)
        return {
            "id": submission.id,
            "sender": submission.sender,
            "subject": submission.subject,
            "size": len(content),
            "content": staged,
            "chunks": chunks,
            "body": content if staged is None else None,
            "digest": digest(content) if staged is None else None,
            "stream": submission.stream,
            "priority": submission.priority,
            "message_id": submission.message_id,
            "idempotency_key": key,
            "idempotency_hash": hash,
            "metadata": json.dumps(dict(submission.metadata), ensure_ascii=False),
            "tags": json.dumps(submission.tags, ensure_ascii=False),
            "on_doubt": None if submission.on_doubt is None else str(submission.on_doubt),
            "require_tls": int(submission.require_tls),
            "eightbit": int(submission.eightbit),
            "smtputf8": int(submission.smtputf8),
            "created_ms": submission.created_ms,
            "send_ms": submission.send_ms,
            "expires_ms": submission.expires_ms,
            "recipients": json.dumps(
                [
                    [a, a.rpartition("@")[2], checksum(submission.id, submission.sender, a)]
                    for a in submission.recipients
                ],
                ensure_ascii=False,
            ),
        }

    def _stage(self, connection: apsw.Connection, content: bytes, now_ms: int) -> int:
        """Write large content ahead in short transactions; returns its (negative) content id.

        Cut off half-way, the pieces belong to no message and are purged after a day. They need no
        sync of their own: the one after the message row covers every earlier frame.
        """
        with spool_errors(self.path, "staging content"):
            seq = run(connection, "stage_begin", {"now_ms": now_ms})[0][0]
            for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
                data = content[start : start + CHUNK_BYTES]
                run(
                    connection,
                    "stage_chunk",
                    {"key": -seq * 4096 + number, "data": data, "digest": digest(data)},
                )
        return -int(seq)

    def _insert(
        self,
        connection: apsw.Connection,
        submissions: Sequence[Submission],
        rows: Sequence[dict[str, Any] | Exception],
        atomic: bool,
    ) -> list[str | Exception]:
        good = sum(isinstance(row, dict) for row in rows)
        if good == 0:
            return [row for row in rows if isinstance(row, Exception)]
        alone = good == 1
        results: list[str | Exception] = []
        try:
            with spool_errors(self.path, "storing a message"):
                if not alone:
                    connection.execute("BEGIN IMMEDIATE")
                for submission, row in zip(submissions, rows, strict=True):
                    if isinstance(row, Exception):
                        results.append(row)
                        continue
                    result = self._insert_one(connection, submission, row, alone)
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
        return results

    def _insert_one(
        self,
        connection: apsw.Connection,
        submission: Submission,
        row: dict[str, Any],
        alone: bool,
    ) -> str | Exception:
        try:
            if alone:
                run(connection, "enqueue", row)
            else:
                with connection:  # a savepoint: a bad row leaves its neighbours alone
                    run(connection, "enqueue", row)
        except apsw.ConstraintError as error:
            return self._refused(connection, submission, error)
        except apsw.TooBigError as error:
            return InvalidMessage(
                f"the message is too large for the spool: {error}", rule="too-large"
            )
        except _UNFIT as error:
            return _refusal(error)
        return submission.id

    def _refused(
        self, connection: apsw.Connection, submission: Submission, error: Exception
    ) -> str | Exception:
        if submission.idempotency is not None and "idempotency" in str(error):
            key, hash = submission.idempotency
            found = run(connection, "idempotency_get", {"key": key})
            if found and found[0][1] == hash:
                return str(found[0][0])
            return IdempotencyConflict(
                f"idempotency key {key!r} was used for a different message"
                f" ({found[0][0] if found else 'now gone'}); use a new key for new content"
            )
        return InvalidMessage(f"the spool refuses this message: {error}", rule="constraint")

    def _rollback(self, connection: apsw.Connection) -> None:
        with contextlib.suppress(apsw.Error):
            if not connection.get_autocommit():
                connection.execute("ROLLBACK")

    def _look_up(
        self,
        submissions: Sequence[Submission],
        rows: Sequence[dict[str, Any] | Exception],
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
        except (SpoolError, apsw.Error) as trouble:
            raise OutcomeUnknown(
                f"{self.path}: a commit failed ({error}) and the spool cannot be read now"
                f" ({trouble}); ask status({ids[0]!r}) later",
                key=ids[0],
            ) from error
        if not found and all(isinstance(row, dict) for row in rows):
            raise error
        return [
            submission.id
            if submission.id in found
            else row
            if isinstance(row, Exception)
            else error
            for submission, row in zip(submissions, rows, strict=True)
        ]

    def cancel(self, ids: Sequence[str], recipient: str | None, now_ms: int) -> int:
        """See ``ClientStore.cancel``."""
        return self._change("cancel", ids, recipient, now_ms)

    def retry(self, ids: Sequence[str], recipient: str | None, now_ms: int) -> int:
        """See ``ClientStore.retry``."""
        return self._change("retry", ids, recipient, now_ms)

    def _change(self, verb: str, ids: Sequence[str], recipient: str | None, now_ms: int) -> int:
        self._sync.check()
        values = {"ids": json.dumps(ids), "address": recipient, "now_ms": now_ms}
        with forks.inside(), spool_errors(self.path, f"{verb} of recipients"):
            connection = self._write_connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                changed = [row[0] for row in _CHANGES[verb](connection, values)]
                connection.execute("COMMIT")
            except BaseException:
                self._rollback(connection)
                raise
        if changed:
            self._durable(ids[0])
        return len(changed)

    # --- reading ----------------------------------------------------------------------------

    def statuses(self, ids: Sequence[str]) -> dict[str, MessageStatus]:
        """See ``ClientStore.statuses``."""
        values = {"ids": json.dumps(list(ids))}
        with self._reader() as connection, connection:  # one snapshot for both reads
            messages = run(connection, "status_messages", values)
            recipients = run(connection, "status_recipients", values)
        by_message: dict[str, dict[str, RecipientStatus]] = {row[0]: {} for row in messages}
        for row in recipients:
            by_message[row[0]][row[1]] = RecipientStatus(
                address=row[1],
                status=Status(row[2]),
                reason=None if row[3] is None else Reason(row[3]),
                attempts=row[4],
                next_attempt_at=from_ms(row[5]),
                last_attempt_at=from_ms(row[6]),
                mx=row[7],
                reply_code=row[8],
                enhanced_code=row[9],
                reply_text=row[10],
                tls=row[11],
                in_doubt=bool(row[12]),
            )
        found = {}
        for row in messages:
            created, send, expires = from_ms(row[5]), from_ms(row[6]), from_ms(row[7])
            assert created is not None
            assert send is not None
            assert expires is not None
            found[row[0]] = MessageStatus(
                id=row[0],
                status=Status(row[1]),
                sender=row[2],
                subject=row[3],
                size=row[4],
                created_at=created,
                send_at=send,
                expires_at=expires,
                finished_at=from_ms(row[8]),
                tags=tuple(json.loads(row[9])),
                metadata=json.loads(row[10]),
                recipients=by_message[row[0]],
            )
        return found

    def content(self, id: str) -> bytes | None:
        """See ``ClientStore.content``."""
        with self._reader() as connection, connection:
            rows = run(connection, "content_of", {"id": id})
            if not rows or rows[0][2] is not None:
                return None
            first = rows[0][0] * 4096
            pieces = run(connection, "content_chunks", {"first": first, "last": first + 4095})
        if len(pieces) != rows[0][1] or any(digest(data) != kept for data, kept in pieces):
            raise SpoolCorrupt(f"{self.path}: the content of message {id} is damaged on disk")
        return b"".join(data for data, _ in pieces)

    def query(
        self, sql: str, params: Sequence[object] | Mapping[str, object], seconds: float
    ) -> list[tuple[object, ...]]:
        """See ``ClientStore.query``."""
        deadline = time.monotonic() + seconds
        bindings: Any = dict(params) if isinstance(params, Mapping) else tuple(params)
        with self._reader() as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            connection.authorizer = only_reads
            try:
                return _named_rows(connection.execute(sql, bindings))
            except apsw.InterruptError as error:
                raise SpoolBusy(
                    f"the query took longer than {seconds:g} s and was stopped; narrow it"
                ) from error
            except (apsw.ReadOnlyError, apsw.AuthError) as error:
                raise SpoolReadOnly(
                    "query() only reads: SELECT and nothing else; use the verbs to change mail"
                ) from error
            finally:
                connection.authorizer = None
                connection.set_progress_handler(None)

    def check(self) -> list[str]:
        """See ``ClientStore.check``."""
        findings: list[str] = []
        with self._reader() as connection, connection:
            for row in connection.execute("PRAGMA integrity_check"):
                if row[0] != "ok":
                    findings.append(str(row[0]))
            for name, sql in STATEMENTS.items():
                if name.startswith("check_"):
                    findings.extend(str(row[0]) for row in connection.execute(sql))
        return findings


def _cancel(connection: apsw.Connection, values: dict[str, Any]) -> list[Any]:
    changed = run(connection, "cancel", values)
    after = {"recipients": json.dumps([row[0] for row in changed]), "now_ms": values["now_ms"]}
    for name in ("finish_messages", "count_hour", "cancel_events"):
        run(connection, name, after)
    return changed


def _retry(connection: apsw.Connection, values: dict[str, Any]) -> list[Any]:
    for name in ("retry_sites", "retry_domains"):
        run(connection, name, values)
    changed = run(connection, "retry", values)
    after = {"recipients": json.dumps([row[0] for row in changed]), "now_ms": values["now_ms"]}
    for name in ("reopen_messages", "domains_due"):
        run(connection, name, after)
    return changed


_CHANGES = {"cancel": _cancel, "retry": _retry}


def _raise_first(results: Sequence[str | Exception]) -> None:
    """Raise the first exception among results, if there is one."""
    for result in results:
        if isinstance(result, Exception):
            raise result


def _named_rows(cursor: apsw.Cursor) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    make: Any = None
    for row in cursor:
        if make is None:
            columns = [column[0] for column in cursor.get_description()]
            make = getattr(namedtuple("Row", columns, rename=True), "_make")  # noqa: B009
        rows.append(make(row))
    return rows
