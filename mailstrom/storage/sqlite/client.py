"""The client's half of the SQLite store: insert, change and read rows, durable before it returns.

Used by one writing thread (the client room's committer: ``enqueue``, ``change``, ``recent``,
``adopt``) and any number of reading threads. The verbs and their transactions are here; storing in
``storing``, connections in ``client_connections``, what to say of a failed commit in ``outcomes``,
steps of a transaction in ``changes`` and the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import apsw

from mailstrom import interrupts
from mailstrom.errors import MailstromError, SpoolError, SpoolReplaced
from mailstrom.storage.client import Owner, Selection, Submission, Target
from mailstrom.storage.sqlite import (
    asking,
    backups,
    changes,
    checking,
    contents,
    copies,
    finding,
    forks,
    locks,
    outcomes,
    poison,
    wal,
)
from mailstrom.storage.sqlite.connection import FREE_LOCK_S, spool_errors
from mailstrom.storage.sqlite.durable import LocksLost, Sync, system_sync
from mailstrom.storage.sqlite.place import FilePlace, Place
from mailstrom.storage.sqlite.prompt import SQLitePrompt
from mailstrom.storage.sqlite.sql import run
from mailstrom.storage.sqlite.storing import Storing
from mailstrom.storage.sqlite.submissions import Encoded
from mailstrom.types import Change, Event, MessageStatus, QueueStats, Suppression

if TYPE_CHECKING:
    from mailstrom.storage.facts import Facts

_T = TypeVar("_T")
_MOST_PASSED = 64
"""Readers of events of some types whose progress is remembered."""


class SQLiteClientStore(Storing):
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
        super().__init__(path, place or FilePlace(path, sync), busy_ms)
        self._boot = boot
        self._passed: dict[tuple[int, frozenset[str]], int] = {}
        with forks.inside():
            self._place.prepare(busy_ms=busy_ms)
        forks.watch(self)

    # --- writing ----------------------------------------------------------------------------

    def prompt(self, pid: int) -> SQLitePrompt:
        """See ``PromptStore.prompt``."""
        self._usable()
        return SQLitePrompt(self.path, self._place.again(), self._busy_ms, pid)

    def ahead(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        """See ``AheadStore.ahead``."""
        return Encoded(submissions)

    def _write(self, doing: str, step: Callable[[apsw.Connection], _T], key: str = "") -> _T:
        """Run one step as one immediate transaction.

        Args:
            doing: for errors.
            step: what it does.
            key: the id to ask for where its outcome is unknown.

        Raises:
            SpoolError: nothing was changed, and no crash changes that; see ``outcomes``.
            OutcomeUnknown: it may have been.
        """
        committing = False
        with forks.inside():
            try:
                with spool_errors(self.path, doing):
                    connection = self._write_connection()
                    connection.execute("BEGIN IMMEDIATE")
                    try:
                        result = step(connection)
                        committing = True
                        connection.execute("COMMIT")
                    except BaseException:
                        self._rollback(connection)
                        raise
            except SpoolError as error:
                if committing and outcomes.may_come_back(error):
                    self._deny(error, key)
                raise
        return result

    def _deny(self, error: SpoolError, key: str) -> None:
        """See that a commit that failed never takes place after all.

        On the very connection that failed: the first to open a spool recovers its log, and would
        find the commit.
        """
        try:
            if self._writer is None:
                raise SpoolError("it could not be rolled back")
            outcomes.take_its_place(self._write_connection(), error, self._sync)
        except (SpoolError, OSError, apsw.Error) as trouble:
            raise outcomes.unknown(self.path, error, trouble, key) from error

    def _of(
        self, spool: tuple[int, ...], step: Callable[[apsw.Connection], _T]
    ) -> Callable[[apsw.Connection], _T]:
        """A step that counts by numbers of one file, where a fork may have closed the writer.

        Args:
            spool: ``Durable.spool`` of that file.
        """

        def checked(connection: apsw.Connection) -> _T:
            if self._sync.spool() != spool:
                raise SpoolReplaced(
                    f"{self.path}: the spool was replaced while this was done; what was changed"
                    " before is in the former one: look, then say it again"
                )
            return step(connection)

        return checked

    def change(self, change: Change, targets: Sequence[Target], now_ms: int) -> int:
        """See ``ClientStore.change``."""
        self._sync.check()
        if not targets:
            return 0
        doing, key = f"{change} of recipients", targets[0].id
        with forks.inside(), spool_errors(self.path, doing):
            self._require_unreplaced()
            pieces = changes.found(self._write_connection(), targets)
            spool = self._sync.spool()
        changed = 0
        for number, some in enumerate(pieces):
            piece = partial(
                changes.change, change=change, some=some, now_ms=now_ms, boot=self._boot
            )
            try:
                if number:
                    time.sleep(FREE_LOCK_S)
                    with forks.inside():
                        self._require_unreplaced()
                step = self._of(spool, piece)
                changed += self._write(doing, step, key)
            except MailstromError as error:
                if not changed or interrupts.raised(error):
                    raise
                if isinstance(error, LocksLost):
                    raise outcomes.overwritten(error, key) from error
                if isinstance(error, SpoolReplaced):
                    raise
                self._durable("a part of the change was written", key)
                raise outcomes.half_way(self.path, change, changed, error, key) from error
        if changed:
            self._durable("the change was written", key)
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
                found = asking.statuses(connection, look.ids)
            step = partial(asking.move, look=look)
            moved = look.top == look.after or self._write("moving the cursor of recent()", step)
        return [found[id] for id in look.ids]

    def adopt(self, now_ms: int) -> bool:
        """See ``ClientStore.adopt``; without a mark it syncs, too, what took the mark away."""
        self._sync.check()
        step = partial(copies.adopt, now_ms=now_ms)
        more = marked = self._write("adopting a copy", step)
        while more:
            time.sleep(FREE_LOCK_S)
            more = self._write("adopting a copy", step)
        self._durable("the copy was adopted")
        return marked is not None

    # --- reading ----------------------------------------------------------------------------

    def statuses(self, ids: Sequence[str]) -> dict[str, MessageStatus]:
        """See ``ClientStore.statuses``."""
        with self._snapshot() as connection:  # one snapshot for both reads
            return asking.statuses(connection, ids)

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
            found = asking.statuses(connection, ids)
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

    def facts(self, targets: Sequence[Target], now_ms: int) -> Facts:
        """See ``ClientStore.facts``."""
        from mailstrom.storage.sqlite import facts  # only who asks why loads it

        trouble = None
        try:
            self._sync.check()
        except SpoolError as error:
            trouble = str(error)
        with self._snapshot() as connection:
            return facts.facts(
                connection,
                targets,
                now_ms,
                log_full=wal.full(connection, self._place.log_bytes()),
                room_bytes=self._place.room_bytes(connection),
                trouble=trouble,
            )

    def suppressions(self, addresses: Sequence[str], limit: int) -> list[Suppression]:
        """See ``ClientStore.suppressions``."""
        with self._reader() as connection:
            return asking.suppressions(connection, addresses, limit)

    def content(self, id: str) -> bytes | None:
        """See ``ClientStore.content``."""
        with self._snapshot() as connection:
            return contents.read(connection, self.path, id)

    def query(
        self, sql: str, params: Sequence[object] | Mapping[str, object], seconds: float
    ) -> list[tuple[object, ...]]:
        """See ``ClientStore.query``."""
        with self._reader() as connection:
            allowed = self._place.longest_read_s(self._busy_ms)
            return asking.query(connection, sql, params, seconds, allowed)

    def backup(self, target: str, now_ms: int) -> None:
        """See ``ClientStore.backup``."""
        backups.backup(self._source, self.path, target, now_ms)

    def check(self) -> list[str]:
        """See ``ClientStore.check``."""
        with self._reader() as connection:
            return checking.check(connection, self.path) + poison.finding(self.path)

    def pinned(self) -> list[str]:
        """See ``ClientStore.pinned``."""
        with self._reader() as connection:
            return wal.note(self.path, connection) + wal.writer_note(self.path)

    def writer(self) -> str | None:
        """See ``ClientStore.writer``."""
        return locks.writer(self.path)

    def owners(self) -> list[Owner]:
        """See ``ClientStore.owners``."""
        with self._reader() as connection:
            return checking.owners(connection)
