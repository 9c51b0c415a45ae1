"""The janitor: lapse the dead, expire the late, keep the clock, checkpoint, purge, repair.

The role is a lock file that one worker of a spool holds; whoever cannot get it waits for it. An
engine that does not lead (``Presence.leads``) leaves it to the supervisor's janitor, which is
started again when it dies, and gives it back as soon as a supervisor is there: an application may
stand still with the lock, and nobody watches it. It stands in only when nobody has had the role for
long, and then for one round at a time. Every step is bounded and idempotent: killed at any point,
the next janitor goes on.

In a copy that nobody adopted the dead lapse, and nothing expires or is purged: what waits there may
have been delivered since by the spool it was copied from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Collection

from mailstrom import events
from mailstrom.config import Config
from mailstrom.errors import SpoolError, SpoolReplaced
from mailstrom.lockfile import LockFile, is_free
from mailstrom.storage import run_directory
from mailstrom.storage.base import Retention, WorkerRow, WorkerStore
from mailstrom.types import OnDoubt
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.machine import THIS, Machine
from mailstrom_workers.pinned import PinAlarm
from mailstrom_workers.presence import Presence

ROUND_S = 0.25
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""A -wal file below this size is checkpointed only now and then."""
CHECKPOINT_S = 30.0
PURGE_S = 60.0
PURGE_MS = 20
"""So long a round goes on purging: it may share its thread with a worker's lanes."""
PURGE_PAUSE_S = 0.002
"""Between two pieces others get the lock."""
BATCH = 1_000
SPARED_MS = 30_000
"""So long a process may miss its lock file: it looks every few seconds, and then ends."""
PATIENCE_MS = 15_000
"""So long the role may be free before an engine that does not lead takes it."""
ADVICE = (
    "this spool is a copy: what waits in it may have been delivered by the original, so nothing is"
    " delivered, expired or purged; 'mailstrom store adopt' takes it into use"
)


class Janitor:
    """The janitor's rounds over one spool.

    Args:
        path: name of the spool.
        worker: our own row.
        config: for ``on_doubt`` and retention.
        mates: tells the rows of the other workers of this process.
        machine: where it runs.
    """

    def __init__(
        self,
        path: str,
        worker: int,
        config: Config,
        mates: Callable[[], Collection[int]] = tuple,
        machine: Machine = THIS,
    ) -> None:
        self._path = path
        self._worker = worker
        self._mates = mates
        self._machine = machine
        self.config = config
        self._checkpointed = 0.0
        self._pin = PinAlarm(path)
        self._purged = 0.0
        self._poisoned = False
        self._unrepaired = Complaint("repair", lambda: machine.monotonic_ms() / 1000)
        self._copied = False
        self._unlapsed = True
        self._looked_ms: int | None = None  # the wall clock that the round's look wrote down
        self._missing: dict[int, int] = {}

    def round(self, store: WorkerStore) -> None:
        """One round; returns quickly when there is nothing to do.

        Each step by itself, and first those that free a spool that cannot be written: one that
        fails must not keep the others from their turn.

        Raises:
            SpoolError: the first that a step met, after all had their turn.
        """
        store.verify()
        trouble: SpoolError | None = None
        steps: list[Callable[[WorkerStore], None]]
        steps = [self._repair, self._checkpoint, self.lapse, self._clock]
        if not self._is_copy(store):
            steps += [self._unless_full(self._expire), self._unless_full(self._purge)]
        for step in steps:
            try:
                step(store)
            except SpoolReplaced:
                raise
            except SpoolError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble

    def _is_copy(self, store: WorkerStore) -> bool:
        """Whether nothing may end here; said once, and again only for another copy."""
        try:
            copied = store.copied
        except SpoolError:
            return True  # cannot be told now: the next round is near
        if copied and not self._copied:
            events.store_copied(advice=ADVICE, store=self._path)
        self._copied = copied
        return copied

    def _spared(self, row: WorkerRow) -> bool:
        """Whether a process without its lock file may live: here, since this boot, and not long."""
        if row.boot != self._machine.boot_id() or not row.boot or row.host != socket.gethostname():
            return False
        if row.pid == os.getpid() and row.seq not in self._mates():
            return False  # of a process that had our id before us
        if not _exists(row.pid):
            return False
        since = self._missing.setdefault(row.seq, self._machine.monotonic_ms())
        return self._machine.monotonic_ms() - since < SPARED_MS

    def _clock(self, store: WorkerStore) -> None:
        machine = self._machine
        self._looked_ms, wall_ms = None, machine.wall_ms()
        store.keep_clock(
            wall_ms=wall_ms,
            monotonic_ms=machine.monotonic_ms(),
            boot=machine.boot_id(),
            limit=BATCH,
        )
        self._looked_ms = wall_ms

    def lapse(self, store: WorkerStore) -> None:
        """Take back what processes held whose lock is free."""
        self._unlapsed = True
        folder = run_directory(self._path)
        for row in store.workers():
            lock = os.path.join(folder, row.lock)
            if row.seq == self._worker or not is_free(lock):
                continue
            if not os.path.exists(lock) and self._spared(row):
                continue  # somebody deleted its file: it notices and ends by itself
            lapsed = store.lapse(
                row.seq,
                boot=self._machine.boot_id(),
                now_ms=self._machine.wall_ms(),
                on_doubt=OnDoubt(self.config.delivery.on_doubt),
            )
            store.sync()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lock)
            events.claim_lapsed(
                recipients=lapsed.released + lapsed.in_doubt,
                in_doubt=lapsed.in_doubt,
                lanes=lapsed.lanes,
                worker=row.seq,
                lost_pid=row.pid,
            )
        self._unlapsed = False

    def _expire(self, store: WorkerStore) -> None:
        if self._unlapsed:
            return  # what the dead hold may have been on the wire: that is marked first
        if self._looked_ms is None:
            return  # by a clock that jumped since the last look all mail may seem too old
        before = store.last_event()
        if store.expire(BATCH, self._looked_ms) == 0:
            return
        for failure in store.failed_since(before):
            events.recipient_failed(
                message_id=failure.message_id,
                recipient=failure.address,
                reason=failure.reason,
                enhanced=failure.enhanced_code,
                reply=failure.reply_text,
            )

    def _repair(self, store: WorkerStore) -> None:
        if not store.poisoned:
            self._poisoned = False
            self._unrepaired.over()
            return
        if not self._poisoned:
            self._poisoned = True
            events.store_poisoned(error="the disk did not confirm a write", store=self._path)
        if not store.repair():
            self._unrepaired.say(f"{self._path}: still poisoned: {store.unrepaired()}")

    def _unless_full(self, step: Callable[[WorkerStore], None]) -> Callable[[WorkerStore], None]:
        """``step``, which can wait, unless a reader pins a log that may grow no more."""
        return lambda store: None if self._pin.full else step(store)

    def _checkpoint(self, store: WorkerStore) -> None:
        size = store.log_bytes()
        if size < CHECKPOINT_BYTES:
            self._pin.look(None, size, self._machine.monotonic_ms())
        if size == 0:
            return
        due = self._machine.monotonic_ms() / 1000 - self._checkpointed > CHECKPOINT_S
        if size < CHECKPOINT_BYTES and not due:
            return
        found = store.checkpoint()
        now_ms = self._machine.monotonic_ms()
        self._checkpointed = now_ms / 1000
        self._pin.look(found.pinned, store.log_bytes(), now_ms)
        if found.frames:
            events.store_checkpointed(
                frames=found.frames, checkpointed=found.moved, wal_bytes=size, mode=found.mode
            )

    def _purge(self, store: WorkerStore) -> None:
        now = self._machine.monotonic_ms() / 1000
        if now - self._purged < PURGE_S or self._looked_ms is None:
            return
        retention, began_ms = self._retention(store), self._machine.monotonic_ms()
        while store.purge(retention, 200, self._looked_ms):
            if self._machine.monotonic_ms() - began_ms >= PURGE_MS:
                return
            time.sleep(PURGE_PAUSE_S)
        self._purged = now
        self._sweep(store)

    def _retention(self, store: WorkerStore) -> Retention:
        """What the configuration says, else what the spool was created with."""
        own, kept = store.retention(), self.config.spool.retention
        said = {key.rpartition(".")[2] for key in self.config.sources if "retention." in key}
        return Retention(
            bodies_ms=int(kept.bodies * 1000) if "bodies" in said else own.bodies_ms,
            attempts_ms=int(kept.attempts * 1000) if "attempts" in said else own.attempts_ms,
            events_ms=int(kept.events * 1000) if "events" in said else own.events_ms,
        )

    def _sweep(self, store: WorkerStore) -> None:
        """Delete lock files of processes that died before their row could be seen."""
        folder = run_directory(self._path)
        known = {row.lock for row in store.workers()}
        for name in os.listdir(folder):
            if name.count("-") == 2 and name.endswith(".lock") and name not in known:
                lock = LockFile(os.path.join(folder, name))
                if lock.acquire():  # held while it is deleted: no newcomer can lock it meanwhile
                    lock.release(delete=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Role:
    """The janitor's role at one spool, for one worker.

    Held on and on by the engine that leads. One that does not lead and stands in lets go of it
    every other round, in which the supervisor's janitor finds it free.

    Args:
        presence: the worker; told in ``presence.role``.
    """

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._lock = LockFile(os.path.join(run_directory(presence.store), "janitor.lock"))
        self._free_since_ms: int | None = None

    def take(self) -> bool:
        """Take it if it is free and ours to take; whether we have it."""
        if self._lock.held:
            if not self._presence.leads():
                self.give()
        elif self._may() and self._lock.acquire({"pid": os.getpid()}):
            self._presence.role = True
        return self._presence.role

    def _may(self) -> bool:
        if self._presence.leads():
            self._free_since_ms = None
            return True
        if not is_free(self._lock.path):
            self._free_since_ms = None
            return False
        now_ms = self._presence.machine.monotonic_ms()
        if self._free_since_ms is None:
            self._free_since_ms = now_ms
        return now_ms - self._free_since_ms > PATIENCE_MS

    def give(self) -> None:
        """Let the next one have it."""
        self._lock.release()
        self._presence.role = False


async def keep(presence: Presence) -> None:
    """Do rounds while this worker holds the role, until drained."""
    role = Role(presence)
    trouble = Complaint("janitor", asyncio.get_running_loop().time)
    janitor = Janitor(
        presence.store, presence.worker, presence.config, presence.mates, presence.machine
    )
    try:
        with contextlib.suppress(OSError):  # said by the first round
            role.take()
        await presence.ready()
        while not presence.draining.is_set():
            presence.lapsed.clear()
            janitor.config = presence.config
            try:
                if role.take():
                    await presence.db.call(janitor.round)
                trouble.over()
            except SpoolReplaced as error:
                presence.crash("janitor", error)  # a fresh one opens what has the name now
            except (SpoolError, OSError) as error:
                trouble.say(error)
            await _pause(presence)
        if presence.role:  # what outlived the drain and was ended by force
            with contextlib.suppress(SpoolError, OSError):
                await presence.db.call(janitor.lapse)
    finally:
        role.give()


async def _pause(presence: Presence) -> None:
    """Until the next round, a word about somebody's death, or the drain."""
    waits = {
        asyncio.create_task(presence.lapsed.wait()),
        asyncio.create_task(presence.draining.wait()),
    }
    _, pending = await asyncio.wait(waits, timeout=ROUND_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()


if __name__ == "__main__":
    from mailstrom_workers.boot import main

    sys.exit(main(keep))
