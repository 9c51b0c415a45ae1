"""Storing submissions: what the client's two ways of writing share.

Contract. Submissions become rows (``submissions``), rows go in (``inserting``), and only then, with
the lock free, the log is synced (``durable``). What to say of a commit that failed is in
``outcomes``. Whoever calls ``enqueue`` is alone with this object's writer; many rows, or staged
content, take several transactions, and so a thread that no signal handler interrupts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from itertools import repeat

import apsw

from mailstrom import interrupts
from mailstrom.errors import SpoolBusy, SpoolError, SpoolReplaced
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite import forks, inserting, outcomes
from mailstrom.storage.sqlite.client_connections import ClientConnections
from mailstrom.storage.sqlite.connection import spool_errors
from mailstrom.storage.sqlite.durable import LocksLost
from mailstrom.storage.sqlite.inserting import Found
from mailstrom.storage.sqlite.logroom import LogRoom
from mailstrom.storage.sqlite.place import Place
from mailstrom.storage.sqlite.sql import run
from mailstrom.storage.sqlite.submissions import (
    UNFIT,
    Encoded,
    Row,
    Staged,
    encode,
    refusal,
    unstage,
)
from mailstrom.storage.sqlite.turnstile import at_once


class Storing(ClientConnections):
    """Connections to one spool, and storing over the writer.

    Args:
        path: what errors call the spool.
        place: where it lives.
        busy_ms: how long to wait for another writer.
    """

    def __init__(self, path: str, place: Place, busy_ms: int) -> None:
        super().__init__(path, place, busy_ms)
        self._log_room = LogRoom(path, place, busy_ms)
        self._staged: list[Staged] = []  # what no message was made of yet

    def enqueue(
        self, submissions: Sequence[Submission], now_ms: int, *, atomic: bool = False
    ) -> list[str | Exception]:
        """See ``ClientStore.enqueue``."""
        self._sync.check()
        with forks.inside():
            self._require_unreplaced()
            self._log_room.require(self._write_connection)
            try:
                results = self._store(self._write_connection(), submissions, now_ms, atomic)
            except SpoolBusy:
                raise  # the next call deletes what was staged: now it would wait once more
            except BaseException:
                self._unstage()
                raise
            self._unstage()
        if any(isinstance(result, str) for result in results):
            self._durable("the message was written", submissions[0].id)
        return results

    def _store(
        self,
        connection: apsw.Connection,
        submissions: Sequence[Submission],
        now_ms: int,
        atomic: bool,
    ) -> list[str | Exception]:
        rows: list[Found] = []
        made: Iterable[Row | None]
        made = submissions.rows if isinstance(submissions, Encoded) else repeat(None)
        for submission, row in zip(submissions, made, strict=False):
            if row is not None:
                rows.append(row)
                continue
            found: Found
            try:
                found = encode(self.path, connection, submission, now_ms, self._staged)
            except UNFIT as error:
                found = refusal(error)
            if atomic and isinstance(found, Exception):
                raise found
            rows.append(found)
        return self._insert(connection, submissions, rows, atomic)

    def _unstage(self) -> None:
        """Delete what was staged for nothing; what cannot be deleted now is tried again later."""
        if self._staged:
            with contextlib.suppress(SpoolError):
                unstage(self.path, self._write_connection(), self._staged)

    def _durable(self, done: str, key: str = "") -> None:
        """Sync what was committed: ``done`` says what; ``key`` is as in ``_write``."""
        try:
            self._sync()
        except SpoolReplaced as error:
            with forks.inside():
                self.let_go()  # the next call opens what has the name now
            if not isinstance(error, LocksLost):
                raise
            raise outcomes.overwritten(error, key) from error
        except (SpoolError, OSError) as error:
            if interrupts.raised(error):
                raise
            raise outcomes.unconfirmed(self.path, error, done, key) from error

    def _insert(
        self,
        connection: apsw.Connection,
        submissions: Sequence[Submission],
        rows: Sequence[Found],
        atomic: bool,
        failed: Exception | None = None,
    ) -> list[str | Exception]:
        """Results of submissions that were looked at.

        Args:
            failed: so the insertion of this one ended, in its turn: what is left to do only reads,
                or raises, and takes no turn once more.
        """
        if not any(isinstance(row, Row) for row in rows):
            return [row for row in rows if not isinstance(row, Row)]
        turn = self._place.turn if failed is None else at_once
        try:
            with spool_errors(self.path, "storing a message"):
                results = turn(inserting.insert, connection, submissions, rows, atomic, failed)
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
        if self._staged:
            stored = {
                -(row.content or 0)
                for row, result, submission in zip(rows, results, submissions, strict=True)
                if isinstance(row, Row) and result == submission.id
            }
            self._staged = [staged for staged in self._staged if staged.seq not in stored]
        return results

    def _look_up(
        self,
        submissions: Sequence[Submission],
        rows: Sequence[Found],
        error: SpoolError,
    ) -> list[str | Exception]:
        """After a failed commit: what is stored is stored, whatever the error said."""
        self._drop_writer()
        ids = [submission.id for submission in submissions]
        try:
            connection = self._write_connection()
            found = {row[0] for row in run(connection, "known_ids", {"ids": json.dumps(ids)})}
            if outcomes.may_come_back(error) and len(found) < len(ids):
                outcomes.take_its_place(connection, error, self._sync)
        except (SpoolError, OSError, apsw.Error) as trouble:
            raise outcomes.unknown(self.path, error, trouble, ids[0]) from error
        if not found and all(isinstance(row, Row) for row in rows):
            raise error
        return [
            submission.id if submission.id in found else error if isinstance(row, Row) else row
            for submission, row in zip(submissions, rows, strict=True)
        ]


def _raise_first(results: Sequence[str | Exception]) -> None:
    """Raise the first exception among results, if there is one."""
    for result in results:
        if isinstance(result, Exception):
            raise result
