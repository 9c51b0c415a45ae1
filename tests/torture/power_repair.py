"""A spool whose syncs fail and drop what they were for, and whose janitor repairs it.

Contract. ``arm`` makes one of the next syncs fail as a broken disk does: whoever asked is told, the
journal says that what waited is on no disk (``Recorder.drop``), and the files themselves read as
before, since the page cache has it still. It is a sync of the product's own, of SQLite's on the
log, or of SQLite's on the database; of whoever comes first, or of somebody who came in the midst of
another's sync, so that one fails between another's commit and its confirmation. That other sync
fails then as well, since the kernel tells each descriptor that was open; one of the product's own
may have been opened since, and succeeds. Until the repair is done clients and workers go on trying,
and some of the repairs meet a failed sync of their own.

``spans`` are the steps of all repairs: where the power goes. What is promised in the meantime is
promised: whoever hands out a confirmation that a repair does not earn is found by its image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

from mailstrom.errors import OutcomeUnknown, SpoolError
from tests.torture.inject.torture_vfs import Op, fault
from tests.torture.power_known import Hand
from tests.torture.power_world import World

ROUNDS = 4
"""Failures of one run, each with its repair."""
_PIECE = 24_000
"""A repair's writes take no more at once, so that the power goes within them, too."""
_PATIENCE = 60
_KINDS = ("wal", "wal", "db")


class RepairWorld(World):
    """See ``World``; with a disk that fails when it is told to."""

    def __init__(self, path: str, random: Random, **more: Any) -> None:
        super().__init__(path, random, **more)
        self.armed: str | None = None
        self.inside = False
        self.failures = 0
        self.failed: Counter[str] = Counter()
        self.spans: list[range] = []
        self.poisoned: list[range] = []
        self._failed_at = 0
        self._mending = False
        assert self.recorder is not None
        self.recorder.piece = _PIECE

    # --- the disk ---------------------------------------------------------------------------

    def arm(self, kind: str, *, inside: bool = False) -> None:
        """The next sync of the log (wal) or the database (db) fails.

        Args:
            inside: only one that comes in the midst of somebody else's step.
        """
        self.armed, self.inside = kind, inside

    def between(self, op: Op) -> None:
        """See ``SpoolInUse.between``; then the failure."""
        failures = self.failed[op.kind]
        super().between(op)
        if self._observer is None or op.path.removesuffix("-wal") != self.path:
            return
        if self._mending and self.random.random() < 0.3:
            self._confirm()
        if op.name != "sync":
            return
        if self.inside and self.armed == op.kind == "wal" and not (op.flags or self._depth):
            self.inside = False
            self._confirm()  # somebody else, now that what this one wants confirmed is written
        wanted = op.kind == self.armed and (not self.inside or self._depth)
        told = self.failed[op.kind] > failures and (op.flags or self.random.random() < 0.3)
        if wanted or told:
            assert self.recorder is not None
            if wanted:
                self.armed = None
            self.failures += 1
            self.failed[op.kind] += 1
            self._failed_at = self.at
            self.recorder.drop(op)
            raise fault("sync")

    def _confirm(self) -> None:
        """A worker whose results wait for the disk asks for them now; that takes no lock."""
        hand = self.random.choice(self.hands)
        self._commits.append(0)
        self._depth += 1
        try:
            with self.using(hand.store) as free:
                if free:
                    with self.promising():
                        hand.store.sync()
        except SpoolError:
            pass  # as it must be
        finally:
            self._depth -= 1
            self._commits.pop()

    # --- verbs ------------------------------------------------------------------------------

    def _do(self, name: str) -> None:
        failures, ill = self.failures, self._ill
        try:
            super()._do(name)
        except (SpoolError, OutcomeUnknown):
            self.note()
            if not (ill or self._ill or self.failures > failures):
                raise
        if self._depth == 0:
            self._replace()

    @property
    def _ill(self) -> bool:
        return self.janitor is not None and self.janitor.poisoned

    def repair(self) -> None:
        """What the janitor does in a poisoned spool; now and then the disk fails in it again."""
        with self._keeper() as store:
            if store is None or not store.poisoned or self._mending:
                return
            if self.random.random() < 0.3:
                self.arm(self.random.choice(_KINDS))
            begun, self._mending = self.at, True
            try:
                with self.promising() as kept:
                    kept.append(store.repair())
            finally:
                self._mending, self.armed = False, None
            self.spans.append(range(begun + 1, self.at + 1))
            self.poisoned.append(range(self._failed_at + 1, begun + 1))

    @contextmanager
    def _hand(self) -> Iterator[Hand | None]:
        with super()._hand() as hand:
            yield None if hand is None or hand.db.over else hand

    def die(self) -> None:
        """Not in the midst of trouble: whoever follows must be able to begin."""
        armed, self.armed = self.armed, None
        if not self._ill:
            super().die()
        self.armed = armed

    def open_engine(self, many: int = 2) -> None:
        """Workers that wait for the janitor where a sync is refused."""
        super().open_engine(many)
        for hand in self.hands:
            hand.db.mended = self._mended

    def _mended(self) -> bool:
        """Whether the janitor has repaired it while a worker waited."""
        for _ in range(3):
            if self._ill:
                self.repair()
        return not self._ill

    def _replace(self) -> None:
        """A worker that could not wait has ended; another comes when the spool is well again."""
        for number, hand in enumerate(self.hands):
            if not hand.db.over or self._ill:
                continue
            armed, self.armed = self.armed, None
            with self._keeper() as store:
                assert store is not None
                store.lapse(hand.seq, boot=self.boot, now_ms=self.now)
                with self.promising():
                    store.sync()
                self.note()
                hand.db.end()
                hand.store.close()
                fresh = self._worker(self.db_type(self._store(), lambda: self.now))
                fresh.db.mended = self._mended
                self.hands[number] = fresh
            self.armed = armed

    # --- a run ------------------------------------------------------------------------------

    def fail_and_mend(self) -> None:
        """Some life, a failure, some more, the repair."""
        random = self.random
        for _ in range(random.randint(8, 20)):
            self.verb()
        before = self.failures
        kind = random.choice(_KINDS)
        if kind == "db":  # what a checkpoint moved that was cut short is dropped with the next one
            for name in ("send", "read", "send", "checkpoint", "read_on"):
                self._do(name)
        self.arm(kind, inside=random.random() < 0.5)
        for turn in range(_PATIENCE):
            if self.failures > before:
                break
            self.inside = self.inside and turn < _PATIENCE // 2
            self.verb()
            if self.armed == "db":
                for name in ("read_on", "send", "checkpoint"):
                    self._do(name)
        assert self.failures > before, "no sync came that could fail"
        for _ in range(random.randrange(4)):
            self.verb()
        for turn in range(_PATIENCE):
            if not self._ill:
                break
            if turn > 3:
                self._do("read_on")
            self._do("repair")
        assert not self._ill, "a disk that works, and no repair"
        self._do("send")

    def chosen(self, many: int, last: int) -> Sequence[int]:
        """Where the power goes: each step of each repair in turn; some before the repairs begin."""
        within = sorted({step for span in self.spans for step in span if step <= last})
        before = sorted({step for span in self.poisoned for step in span if step <= last})
        assert within, "no repair"
        self.random.shuffle(within)
        found = [within[number % len(within)] for number in range(many - many // 5)]
        return [*found, *self.random.choices(before or within, k=many - len(found))]
