"""A spool with everything open on it, seeded: verbs by chance, and verbs of others in between.

Contract. ``between`` is called by the recorder just before a write or a sync of the spool: it notes
each state of the spool (a state is a commit) and now and then lets another verb happen at that very
moment. What promises durability says so (``promising``); the floor it raises is the state that its
own commit made, so that a sync that was skipped is noticed. Who cannot get the lock (``SpoolBusy``)
tries again another time. Which verbs there are is told by a subclass (``power_world``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, ClassVar

import apsw

from mailstrom.errors import SpoolBusy
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.durable import system_sync
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0
from tests.torture.disk_record import Recorder
from tests.torture.inject.torture_vfs import Op
from tests.torture.power_engine import PowerDB
from tests.torture.power_known import EagerPlace, Fact, Hand, Known, state_of
from tests.torture.power_old import Old

BUSY_MS = 1
UPKEEP = "lapse, expiry and purge"


class SpoolInUse:
    """One spool, what is open on it, and what it promised.

    Args:
        path: the spool; made if it is missing.
        random: what decides everything.
        boot: the name of this boot.
        name: begins the ids of messages sent here.
        recorder: of the spool's folder, or None.
        known: what was promised before.
        now: milliseconds.
        keen: how often somebody comes in between, 0 to 1.
    """

    verbs: ClassVar[Mapping[str, float]] = {}
    """Methods that are verbs of a life, and how often each comes."""
    labels_of: ClassVar[Mapping[str, str]] = {}
    """What is being done while a verb runs, by its name."""
    quick: ClassVar[Sequence[str]] = ()
    """Verbs that may come in the middle of somebody's transaction: they need no write lock."""
    db_type: ClassVar[type[PowerDB]] = PowerDB
    """What serves a worker's store."""

    def __init__(
        self, path: str, random: Random, *, boot: str, name: str, recorder: Recorder | None = None,
        known: Known | None = None, now: int = T0, keen: float = 1.0,
    ) -> None:  # fmt: skip
        self.path, self.random, self.boot, self.name = path, random, boot, name
        self.recorder, self.now, self.keen = recorder, now, keen
        self.known = known.copy() if known else Known()
        self.before = self.known.copy()
        self.facts: list[Fact] = []
        self.labels: list[tuple[int, str, int]] = [(0, UPKEEP, now)]
        self.states: list[bytes] = []
        self.clients: list[SQLiteClientStore] = []
        self.hands: list[Hand] = []
        self.janitor: SQLiteWorkerStore | None = None
        self.reader: apsw.Connection | None = None
        self._observer: apsw.Connection | None = None
        self._seen: int | None = None
        self._busy: set[int] = set()
        self._commits: list[int | None] = []
        self._depth = 0
        self._sent = 0
        self._labelled = UPKEEP
        if recorder is not None:
            recorder.between = self.between

    # --- what is known ----------------------------------------------------------------------

    @property
    def at(self) -> int:
        """Steps the disk has taken."""
        return len(self.recorder.steps) if self.recorder is not None else 0

    def tell(self, kind: str, what: Any) -> None:
        """A fact of this moment."""
        self.known.learn(kind, what)
        self.facts.append(Fact(self.at, kind, what))

    def note(self) -> int:
        """The number of the spool's state now; looked at only where a journal is written."""
        if self.recorder is None:
            return 0
        if self._observer is None:
            self._observer = apsw.Connection(
                self.path, vfs="unix", flags=apsw.SQLITE_OPEN_READWRITE
            )
            self._observer.set_busy_timeout(1_000)
            self._observer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        version = int(str(self._observer.execute("PRAGMA data_version").fetchall()[0][0]))
        if version != self._seen:
            self._seen = version
            state = state_of(self._observer)
            if not self.states or self.states[-1] != state:
                self.states.append(state)
                self.tell("state", len(self.states) - 1)
        return len(self.states) - 1

    @contextmanager
    def promising(self) -> Iterator[list[bool]]:
        """A verb whose commit is durable when it returns; ``False`` in the list takes it back."""
        kept: list[bool] = []
        self._commits.append(None)
        try:
            yield kept
        finally:
            own = self._commits.pop()
        if all(kept):
            self.tell("promised", self.note() if own is None else own)

    # --- somebody else, at that moment ------------------------------------------------------

    def between(self, op: Op) -> None:
        """Before a write or a sync: note what was committed; perhaps another verb."""
        if self._observer is None or op.path.removesuffix("-wal") != self.path:
            return
        if op.kind == "wal" and op.name == "sync":
            number = self.note()
            if self._commits and self._commits[-1] is None:
                self._commits[-1] = number
        odds = {("sync", "wal"): 0.25, ("sync", "db"): 0.5, ("write", "db"): 0.04,
                ("write", "wal"): 0.01}.get((op.name, op.kind), 0.0)  # fmt: skip
        if self.hands and self._depth < 2 and self.random.random() < odds * self.keen:
            self._commits.append(0)  # what syncs in there is not the outer verb's commit
            self._depth += 1
            try:
                if (op.name, op.kind) == ("write", "wal"):
                    self._do(self.random.choice(self.quick))
                else:
                    self.verb()
            finally:
                self._depth -= 1
                self._commits.pop()

    @contextmanager
    def using(self, store: object) -> Iterator[bool]:
        """Whether the store is free; it is ours then. Who finds the lock taken did nothing."""
        if id(store) in self._busy:
            yield False
            return
        self._busy.add(id(store))
        try:
            yield True
        finally:
            self._busy.discard(id(store))

    def verb(self) -> None:
        """One verb, by chance."""
        names, weights = zip(*self.verbs.items(), strict=True)
        self._do(self.random.choices(names, weights)[0])

    def _do(self, name: str) -> None:
        outer = self._labelled
        self._labelled = self.labels_of[name]
        self.now += self.random.choice((1, 1_000, 5_000))
        self.labels.append((self.at, self._labelled, self.now))
        call: Callable[[], None] = getattr(self, name)
        try:
            call()
            self.note()
        except SpoolBusy:
            self.note()  # another time
        finally:
            self._labelled = outer
            self.labels.append((self.at, outer, self.now))

    def moment(self, at: int) -> tuple[str, int]:
        """What was being done when the disk had taken so many steps, and the time.

        The time is that of the last thing that began by then, for what is known at this step may
        come from there: verbs that write nothing let time pass, and days of it, without a step.
        """
        _, label, _ = self.labels[bisect_left(self.labels, at, key=lambda one: one[0]) - 1]
        _, _, now = self.labels[bisect_right(self.labels, at, key=lambda one: one[0]) - 1]
        return label, now

    def inherit(self, old: Old) -> None:
        """What an earlier release promised here."""
        self.now = max(self.now, old.now)
        self.labels.append((self.at, UPKEEP, self.now))
        for one in old.sent:
            self.tell("begun", one)
            self.tell("acked", one)
        self.tell("claimed", old.token)
        self.tell("far", old.far)

    def disk_sync(self, fd: int) -> None:
        """What its stores sync the -wal file with."""
        system_sync(fd)

    # --- opening and closing ----------------------------------------------------------------

    def open_clients(self, many: int = 2) -> None:
        """Client stores; the last one checkpoints by itself."""
        for number in range(many):
            place = EagerPlace(self.path, self.disk_sync) if number == many - 1 else None
            self.clients.append(
                SQLiteClientStore(
                    self.path, busy_ms=BUSY_MS, sync=self.disk_sync, place=place, boot=self.boot
                )
            )
        self.note()

    def open_engine(self, many: int = 2) -> None:
        """Workers, registered, and the janitor's store."""
        self.janitor = self._store()
        for _ in range(many):
            self.hands.append(self._worker(self.db_type(self._store(), lambda: self.now)))
        self.note()

    def _store(self) -> SQLiteWorkerStore:
        return SQLiteWorkerStore(self.path, busy_ms=BUSY_MS, sync=self.disk_sync)

    def _worker(self, db: PowerDB) -> Hand:
        row = db.store.register(
            kind="delivery", pid=4711, host="machine", boot=self.boot, lock="delivery.lock",
            restarts=0, now_ms=self.now,
        )  # fmt: skip
        self.note()
        return Hand(db, row.seq)

    def close(self) -> None:
        """Close everything that is open."""
        for client in self.clients:
            client.close()
        for hand in self.hands:
            hand.db.end()
        for other in (self.janitor, self.reader, self._observer):
            if other is not None:
                other.close()
        self.janitor = self.reader = self._observer = None
        self.clients, self.hands = [], []
