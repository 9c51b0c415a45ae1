"""One spool in one process, its stores, and what was promised about it: the in-process half.

Contract. A ``World`` has a client, another client, a delivery worker's store and the janitor's,
all over a file layer in which one operation fails. Every verb goes through it, notes what was
acknowledged, refused or left unknown, and ``judge`` compares that with what the stores say, and
with what a power cut would leave (``errors_disk.Disk``). What breaks a promise becomes a finding:

* acknowledged and gone, refused and there, unknown and contradicted later: what a status said of
  an unknown one holds after a power cut, too;
* an acknowledgement between a failed sync and the repair;
* a recipient that the far end took and whose row on disk does not say so, nor that it was claimed;
* a verdict recorded twice or not at all; wrong bytes; a broken invariant; a pinned WAL;
* an exception of the driver or of the system that crosses the store's seam, or does not name the
  spool.
"""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import apsw

from mailstrom.errors import InvalidMessage, OutcomeUnknown, SpoolError
from mailstrom.storage.base import Claimed, ClaimRequest, Lane, Open, Work
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, Spool, change, settlement, submission
from tests.torture.errors_disk import Disk
from tests.torture.errors_inject import Fault, Fuse, faults

_T = TypeVar("_T")
PATIENCE = 25
_ON_DISK = ("claimed", "sending", "delivered", "held", "failed", "deferred")
"""What may be on disk of a recipient that the far end has."""
BUSY_MS = 20


class World(Spool):
    """A spool, its stores and its promises; use as a context.

    Args:
        folder: an empty directory.
        seed: for what an image keeps.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.path = folder / "spool.db"
        self.seed = seed
        self.dice = random.Random(seed)
        self.acked: dict[str, bytes] = {}
        self.refused: set[str] = set()
        self.unknown: dict[str, bytes] = {}
        self.told: set[str] = set()  # unknown, and then a status said that it is stored
        self.wired: dict[int, int] = {}  # recipient -> lane, durable claim returned
        self.taken: dict[int, int] = {}  # recipient -> copies at the far end
        self.changed: set[str] = set()  # cancelled, and told so
        self.findings: list[str] = []
        self.images = 0
        self.trials = 0
        self.repairs = 0
        self.no_memory = 0
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> World:
        SQLiteClientStore(str(self.path)).close()
        self.disk = Disk(self.path)  # before anything has the files open: see R1
        self.fuse: Fuse = self._exit.enter_context(
            faults(str(self.folder), failed=self.disk.failed, done=self.disk.done)
        )
        self._exit.callback(self.disk.watch_pwrite())
        self.client: SQLiteClientStore = SQLiteClientStore(str(self.path), busy_ms=BUSY_MS)
        self.other = SQLiteClientStore(str(self.path), busy_ms=BUSY_MS)
        self.engine: SQLiteWorkerStore = SQLiteWorkerStore(str(self.path), busy_ms=BUSY_MS)
        self.janitor = SQLiteWorkerStore(str(self.path), busy_ms=BUSY_MS)
        for store in (self.client, self.other, self.engine, self.janitor):
            self._exit.callback(store.close)
        self.worker = self.register()
        return self

    def __exit__(self, *_error: object) -> None:
        self.fuse.disarm()
        self._exit.close()

    # --- what is promised -----------------------------------------------------------------------

    def put(
        self, store: SQLiteClientStore, batch: Sequence[Submission], *, atomic: bool = False
    ) -> list[str]:
        """Enqueue, noting what the answer promises; the stored ids."""
        content = {one.id: one.content for one in batch}
        try:
            results = store.enqueue(batch, T0, atomic=atomic)
        except OutcomeUnknown as error:
            self.unknown |= content
            if error.key != batch[0].id:
                self.findings.append(f"the key of an unknown outcome is {error.key!r}")
            raise
        except (SpoolError, InvalidMessage):
            self.refused |= content.keys()
            raise
        for one, result in zip(batch, results, strict=True):
            if result == one.id:
                self.acked[one.id] = one.content
            elif isinstance(result, str):
                self.acked.setdefault(result, one.content)
                self.refused.add(one.id)
            elif isinstance(result, OutcomeUnknown):
                self.unknown[one.id] = one.content
            else:
                self.refused.add(one.id)
        return [result for result in results if isinstance(result, str)]

    def insist(self, step: Callable[[], _T]) -> _T:
        """As the engine's thread does: until the spool takes it; the janitor repairs beside it."""
        for left in reversed(range(PATIENCE)):
            try:
                return step()
            except SpoolError as error:  # as the store's thread does; nothing else is tried again
                self._note(error)
                if not left:
                    raise
                self.fuse.disarm()
                self.repair()
        raise AssertionError("never here")

    def _note(self, error: BaseException) -> None:
        cause = error.__cause__
        self.no_memory += isinstance(cause, apsw.NoMemError | MemoryError)

    def repair(self) -> None:
        """What the janitor's rounds do, now that the disk works again."""
        self.repairs += 1
        for _ in range(PATIENCE):
            if not self.janitor.poisoned or self.janitor.repair():
                return
        self.findings.append("a working disk, and still the spool could not be repaired")

    def claim_durably(self, lane: Lane) -> list[Claimed]:
        """Claim and sync; what is returned may go on the wire."""
        work = Work(claims=[ClaimRequest(lane=lane.token, limit=100, max_bytes=1 << 24)])
        rows = self.insist(lambda: self.engine.exchange(work, T0)).claimed
        self.insist(self.engine.sync)
        self.wired |= {row.recipient: row.lane for row in rows}
        return rows

    def deliver(self, lane: Lane, rows: Sequence[Claimed], session: str) -> None:
        """Open, let the far end take what was opened, settle, sync."""
        wanted = tuple(row.recipient for row in rows)
        opened = self.insist(
            lambda: self.engine.exchange(
                Work(opens=[Open(lane=lane.token, recipients=wanted, session=session)]), T0
            )
        ).opened
        for row in rows:
            if row.recipient not in opened:
                continue
            body = row.body
            if body is None and not row.damaged:
                pieces = [self.insist(lambda n=n, c=row.content: self.engine.chunk(c, n))  # type: ignore[misc]
                          for n in range(row.chunks)]  # fmt: skip
                body = None if None in pieces else b"".join(filter(None, pieces))
            if body != self.acked.get(row.message_id, self.unknown.get(row.message_id)):
                self.findings.append(f"{row.message_id}: wrong bytes for the wire")
            self.taken[row.recipient] = self.taken.get(row.recipient, 0) + 1
        work = Work(settlements=[settlement(lane.token, r, "delivered") for r in sorted(opened)])
        self.insist(lambda: self.engine.exchange(work, T0 + 200))
        self.insist(self.engine.sync)

    # --- trials ---------------------------------------------------------------------------------

    def trial(self, verb: Callable[[World], Iterator[None]], fault: Fault, *, deep: bool) -> int:
        """One verb with one fault armed; how often it fired. ``deep``: judge all there is."""
        told = f"{verb.__name__} {fault} (seed {self.seed}, trial {self.trials})"
        self.trials += 1
        known, failures = len(self.findings), self.disk.failures
        self.repairs = self.no_memory = 0
        steps = verb(self)
        next(steps)
        self.fuse.arm(fault)
        try:
            next(steps, None)
        except InvalidMessage:
            pass
        except (SpoolError, OutcomeUnknown) as error:
            self._note(error)
            if ".db" not in str(error):
                self.findings.append(f"does not name the file: {error}")
        except Exception as error:
            self._note(error)
            self.findings.append(f"crosses the seam: {type(error).__name__}: {error}")
        fired = self.fuse.fired or (self.no_memory if fault.op == "heap" else 0)
        if self.disk.failures > failures and not self.repairs:
            self._nobody_acknowledges()
        self.fuse.disarm()
        steps.close()
        if fired:
            if deep:
                self.power_cut()
            self.repair()
            self.judge(deep=deep)
        self.findings[known:] = [f"{told}: {text}" for text in self.findings[known:]]
        return fired

    def _nobody_acknowledges(self) -> None:
        """After a failed sync another process' client is refused, too, though its sync works."""
        self.fuse.disarm()
        for store in (self.other, self.client):
            one = submission()
            with contextlib.suppress(SpoolError, OutcomeUnknown):
                self.put(store, [one])
                self.findings.append("acknowledged between a failed sync and the repair")

    def judge(self, *, deep: bool) -> None:
        """What the live stores say against what was promised."""
        try:
            self._judge_live(self.other, "the spool")
            if deep:
                self._put_more()
                self.findings += [f"store check: {text}" for text in self.client.check()]
                found = self.janitor.checkpoint()
                if found.frames != found.moved:
                    self.findings.append("a connection pins the WAL: it is still in a transaction")
                self.power_cut()
        except Exception as error:
            self.findings.append(f"works no more: {type(error).__name__}: {error}")

    def _put_more(self) -> None:
        for store in (self.client, self.other):
            self.put(store, [submission()])

    def _judge_live(self, store: SQLiteClientStore, where: str) -> None:
        for id in list(self.unknown):  # resolved for good: what it is now it stays
            if store.statuses([id]):
                self.acked[id] = self.unknown.pop(id)
                self.told.add(id)
            else:
                del self.unknown[id]
                self.refused.add(id)
        found = store.query("SELECT id, status FROM messages", (), 10.0)
        ids = {str(row[0]) for row in found}
        self._compare(ids, {str(row[0]) for row in found if row[1] == "cancelled"}, where)
        twice = store.query(
            "SELECT message_id, count(*) FROM attempts WHERE verdict = 'delivered'"
            " GROUP BY message_id, recipient HAVING count(*) > 1", (), 10.0,
        )  # fmt: skip
        self.findings += [f"{row[0]}: its delivery is recorded {row[1]} times" for row in twice]

    def _compare(self, found: set[str], cancelled: set[str], where: str) -> None:
        for id in sorted(self.acked.keys() - found):
            said = "said to be stored by a status" if id in self.told else "acknowledged"
            self.findings.append(f"{id}: {said}, not in {where}")
        self.findings += [f"{id}: refused, and in {where}" for id in self.refused & found]
        self.findings += [
            f"{id}: told cancelled, not in {where}" for id in self.changed - cancelled
        ]

    def power_cut(self) -> None:
        """What a power cut at this point leaves must keep every promise."""
        folder = self.folder.with_name(f"{self.folder.name}-image")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.images += 1
        path = self.disk.image(folder, self.dice)
        connection = apsw.Connection(str(path), vfs="unix")  # past the file layer: a fresh boot
        try:
            found = {str(row[0]) for row in connection.execute("SELECT id FROM messages")}
            cancelled = connection.execute("SELECT id FROM messages WHERE status = 'cancelled'")
            self._compare(found, {str(row[0]) for row in cancelled}, "what a power cut leaves")
            states = dict(connection.execute("SELECT seq, state FROM recipient").fetchall())
            for (text,) in connection.execute("PRAGMA integrity_check(3)"):
                if text != "ok":
                    self.findings.append(f"after a power cut: {text}")
        except apsw.Error as error:
            self.findings.append(f"a power cut leaves what cannot be read: {error}")
            return
        finally:
            connection.close()
        self.findings += [
            f"recipient {one}: taken by the far end, {states.get(one)} after a power cut"
            for one in self.taken
            if states.get(one) not in _ON_DISK
        ]


def _unrouted(world: World) -> None:
    """Route what waits for it."""
    for due in world.engine.due_domains(world.worker, 1_000, T0):
        world.engine.put_routes(world.worker, [world.answer(due.name)], T0)


# --- verbs: what comes before ``yield`` is not in danger ------------------------------------------

Verb = Callable[[World], Iterator[None]]


def enqueue_one(w: World) -> Iterator[None]:
    """One small message."""
    one = submission()
    yield
    w.put(w.client, [one])


def enqueue_batch(w: World) -> Iterator[None]:
    """Several in one commit, of which one is unfit and one was stored before."""
    key = (f"key-{w.trials}", b"hash")
    w.put(w.client, [submission(idempotency=key)])
    batch = [submission("a@one.test", "b@two.test"), submission(recipients=()), submission()]
    batch.append(submission(idempotency=key))
    yield
    w.put(w.client, batch)


def enqueue_atomic(w: World) -> Iterator[None]:
    """Several, all or none."""
    batch = [submission(), submission()]
    yield
    w.put(w.client, batch, atomic=True)


def enqueue_large(w: World) -> Iterator[None]:
    """Staged content."""
    one = submission(content=w.dice.randbytes(300_000))
    yield
    w.put(w.client, [one])


def cancel(w: World) -> Iterator[None]:
    """A change by a person."""
    (id,) = w.put(w.client, [submission("c@cancel.test")])
    yield
    if change(w.client, "cancel", [id], None, T0):
        w.changed.add(id)


def read(w: World) -> Iterator[None]:
    """Everything that only looks."""
    (id,) = w.put(w.client, [submission()])
    yield
    if w.client.content(id) != w.acked[id]:
        w.findings.append("content() gave other bytes")
    w.client.statuses([id])
    w.client.stats(T0)
    w.client.query("SELECT * FROM recipients WHERE message_id = ?", [id], 5.0)
    w.client.events(0, (), 10)
    w.client.revision()
    w.client.recent(3)


def reopen(w: World) -> Iterator[None]:
    """A fresh process: opening, first use, closing."""
    one = submission()
    yield
    store = SQLiteClientStore(str(w.path), busy_ms=BUSY_MS)
    try:
        w.put(store, [one])
    finally:
        store.close()
    worker = SQLiteWorkerStore(str(w.path), busy_ms=BUSY_MS)
    worker.close()


def claim(w: World) -> Iterator[None]:
    """Route, lease, claim."""
    w.put(w.client, [submission(f"x@claim{w.trials % 3}.test")])
    _unrouted(w)
    yield
    for lane in w.insist(lambda: w.engine.lease(w.worker, want=2, limit=20, workers=1, now_ms=T0)):
        w.claim_durably(lane)
        w.insist(lambda lane=lane: w.engine.release([lane.token], T0))  # type: ignore[misc]


def route(w: World) -> Iterator[None]:
    """Domains that are due."""
    w.put(w.client, [submission(f"x@route{w.trials}.test")])
    yield
    for due in w.insist(lambda: w.engine.due_domains(w.worker, 100, T0)):
        answer = w.answer(due.name)
        w.insist(lambda answer=answer: w.engine.put_routes(w.worker, [answer], T0))  # type: ignore[misc]


def deliver(w: World) -> Iterator[None]:
    """Claim, open, settle: nothing may be recorded twice or not at all."""
    large = b"z" * 300_000 if w.trials % 4 == 0 else b"z"
    batch = [submission("x@deliver.test"), submission("y@deliver.test", content=large)]
    ids = w.put(w.client, batch)
    _unrouted(w)
    lanes = w.engine.lease(w.worker, want=9, limit=20, workers=1, now_ms=T0)
    yield
    for lane in lanes:
        rows = w.claim_durably(lane)
        w.deliver(lane, rows, f"session-{lane.token}")
        w.insist(lambda lane=lane: w.engine.release([lane.token], T0))  # type: ignore[misc]
    w.fuse.disarm()
    status = w.other.statuses(ids)
    if any(str(r.status) != "delivered" for id in ids for r in status[id].recipients.values()):
        w.findings.append("the far end took it, its verdict is not recorded")


def upkeep(w: World) -> Iterator[None]:
    """Lapse, expire, clock, purge, beat: what the janitor and the heartbeat write."""
    dead = w.register(lock="dead.lock")
    w.put(w.client, [submission("x@late.test", expires_ms=T0 + 5)])
    yield
    w.insist(lambda: w.janitor.lapse(dead, boot="boot-1", now_ms=T0))
    w.insist(w.janitor.sync)
    w.insist(lambda: w.janitor.expire(100, T0 + 10))
    w.insist(
        lambda: w.janitor.keep_clock(
            wall_ms=T0 + w.trials, monotonic_ms=w.trials, boot="boot-1", limit=100
        )
    )
    w.insist(lambda: w.janitor.purge(w.janitor.retention(), 100, T0))
    w.insist(lambda: w.engine.beat(w.worker, state="ready", sessions=1, now_ms=T0))
    w.engine.room_bytes()


def checkpoint(w: World) -> Iterator[None]:
    """PASSIVE and RESTART."""
    w.put(w.client, [submission()])
    yield
    w.janitor.checkpoint()
    w.janitor.checkpoint()


def after_restart(w: World) -> Iterator[None]:
    """The first commit of a WAL that begins again."""
    w.janitor.checkpoint()
    one = submission()
    yield
    w.put(w.client, [one])


def mend(w: World) -> Iterator[None]:
    """The repair of a poisoned spool, under errors of its own."""
    w.put(w.client, [submission()])
    w.fuse.arm(Fault(op="sync", file="wal"))
    with contextlib.suppress(SpoolError, OutcomeUnknown):
        w.put(w.other, [submission()])
    w.fuse.disarm()
    if not w.janitor.poisoned:
        w.findings.append("a failed sync did not poison")
    yield
    if w.janitor.repair():
        w.repairs += 1
        w.put(w.other, [submission()])
    elif not w.janitor.poisoned:
        w.findings.append("a repair that failed took the flag away")


def raise_flag(w: World) -> Iterator[None]:
    """The flag that tells every process of a failed sync, under errors of its own."""
    w.put(w.client, [submission()])
    yield
    w.client._sync.poison(OSError(errno.EIO, "injected"))
    w.fuse.disarm()
    if not w.janitor.poisoned:
        w.findings.append("a failed sync is not told")
    w.repair()


def backup(w: World) -> Iterator[None]:
    """A copy: whole and marked under its name, or not there."""
    target = w.folder / f"copy-{w.trials}.db"
    yield
    try:
        w.client.backup(str(target), T0)
        w.fuse.disarm()
        if w.acked.keys() - _ids(target):
            w.findings.append("a finished copy lacks what was acknowledged")
    except SpoolError:
        w.fuse.disarm()
        if target.exists():
            w.findings.append("a failed copy is there under its name")
        raise
    finally:
        w.fuse.disarm()
        for path in w.folder.glob("*copy-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def adopt(w: World) -> Iterator[None]:
    """A copy is taken into use."""
    target = w.folder / f"copy-{w.trials}.db"
    w.client.backup(str(target), T0)
    store = SQLiteClientStore(str(target), busy_ms=BUSY_MS)
    yield
    try:
        store.adopt(T0 + 1_000)
        w.fuse.disarm()
        if store.adopt(T0 + 2_000):
            w.findings.append("adopted twice")
    finally:
        w.fuse.disarm()
        store.close()
        for path in w.folder.glob("*copy-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def create(w: World) -> Iterator[None]:
    """A fresh spool: whole, or begun again by the next call."""
    path = w.folder / f"fresh-{w.trials}.db"
    yield
    try:
        SQLiteClientStore(str(path), busy_ms=BUSY_MS).close()
    finally:
        w.fuse.disarm()
        store = SQLiteClientStore(str(path), busy_ms=BUSY_MS)
        # Who saw a sync fail says so as soon as there is a directory to say it in: at once, or a
        # quarter of a second later.
        engine = SQLiteWorkerStore(str(path), busy_ms=BUSY_MS)
        if engine.poisoned and not any(engine.repair() for _ in range(PATIENCE)):
            w.findings.append("a fresh spool: it could not be repaired")
        engine.close()
        w.findings += [f"a fresh spool: {text}" for text in store.check()]
        store.close()
        for left in w.folder.glob("fresh-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _ids(path: Path) -> set[str]:
    store = SQLiteClientStore(str(path))
    try:
        return {str(row[0]) for row in store.query("SELECT id FROM messages", (), 10.0)}
    finally:
        store.close()


VERBS: tuple[Verb, ...] = (
    enqueue_one, enqueue_batch, enqueue_atomic, enqueue_large, cancel, read, reopen, claim, route,
    deliver, upkeep, checkpoint, after_restart, mend, raise_flag, backup, adopt, create,
)  # fmt: skip
