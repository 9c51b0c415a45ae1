"""The janitor: lapse the dead, expire the late, report, keep the clock, checkpoint, purge, repair.

Only whoever has the role (``role``) has rounds. Every step is bounded and idempotent: killed at any
point, the next janitor goes on.

A round each quarter of a second, as long as somebody writes to the spool or the last one left
something to do; in a spool at rest about each second. A death that the supervisor saw has its round
at once.

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
from mailstrom_workers.role import Role

ROUND_S = 0.25
CALM_S = 0.5
"""So often it looks whether somebody wrote, in a spool at rest: a log that nobody empties grows by
100 MiB a second at most."""
REST_S = 1.0
"""Where nobody writes and nothing is left over, what comes with time alone waits so long."""
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""A -wal file below this size is checkpointed only now and then."""
CHECKPOINT_S = 30.0
PURGE_S = 60.0
PURGE_MS = 20
"""So long a round goes on purging, before the steps in front of it have their turn again: the dead,
a repair, the log. Lanes wait for no more than the lock: every worker has a store thread of its own,
also inside an application (``presence.enter``)."""
PURGE_PAUSE_MS, PURGE_PAUSE_MOST_MS = 2, 15
"""Between two pieces others get the lock, for as long as the last piece had it, within these."""
PURGE_AGAIN_S = 0.08
"""So soon the next round goes on with what is left."""
PURGE_PIECE = 200
"""Messages of one piece: 4 to 10 ms of the lock."""
BATCH = 1_000
SPARED_MS = 30_000
"""So long a process may miss its lock file: it looks every few seconds, and then ends."""
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
        self._seen: int | None = None  # the last one that was looked at for the log
        self._unlapsed = True
        self._looked_ms: int | None = None  # the wall clock that the round's look wrote down
        self._missing: dict[int, int] = {}
        self._version: int | None = None  # of the spool, before the last round; None: look again
        self._rounded_ms = 0
        self._left = False  # the last round left something for the next one
        self._purging = False  # and that is mail to be purged
        self._hurried = False  # this round came early, for that alone

    def turn(self, store: WorkerStore) -> float:
        """A round, unless the spool has been at rest since the last one, a moment ago.

        Returns:
            Seconds until the next turn.

        Raises:
            SpoolError: see ``round``.
        """
        version, now_ms = None, self._machine.monotonic_ms()
        with contextlib.suppress(SpoolError):  # the round says it, after what it can do about it
            version = store.version()
        done = version is not None and version == self._version and not self._left
        if done and now_ms - self._rounded_ms < REST_S * 1000 and not store.poisoned:
            return max(CALM_S, ROUND_S)
        self._version, self._rounded_ms = None, now_ms  # it stays so where the round raises
        self.round(store)
        self._version = version
        return min(PURGE_AGAIN_S, ROUND_S) if self._purging else ROUND_S

    def round(self, store: WorkerStore) -> None:
        """One round; returns quickly when there is nothing to do.

        Each step by itself, and first those that free a spool that cannot be written: one that
        fails must not keep the others from their turn.

        Raises:
            SpoolError: the first that a step met, after all had their turn.
        """
        store.verify()
        self._hurried, self._left, self._purging = self._purging, False, False
        trouble: SpoolError | None = None
        steps: list[Callable[[WorkerStore], None]]
        steps = [self._repair, self._checkpoint, self.lapse, self._clock]
        if not self._is_copy(store):
            steps += [self._unless_full(self._expire), self._unless_full(self._report)]
            steps += [self._unless_full(self._purge)]
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
        passed = store.keep_clock(
            wall_ms=wall_ms,
            monotonic_ms=machine.monotonic_ms(),
            boot=machine.boot_id(),
            limit=BATCH,
        )
        self._left |= passed > 0
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
            self._left = True
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
        self._left = True
        for failure in store.failed_since(before):
            events.recipient_failed(
                message_id=failure.message_id,
                recipient=failure.address,
                reason=failure.reason,
                enhanced=failure.enhanced_code,
                reply=failure.reply_text,
            )

    def _report(self, store: WorkerStore) -> None:
        """Tell senders what clients' changes left to be told, and of delays.

        What could not be told is said in the log.
        """
        if self._looked_ms is None:
            return  # by a clock that jumped since the last look all mail may seem late
        delays_ms = [int(delay * 1000) for delay in self.config.reports.delays]
        self._left |= store.report(delays_ms, BATCH, self._looked_ms) > 0
        before, self._seen = self._seen, store.last_event()
        if before is None or before == self._seen:
            return
        for untold in store.unreported_since(before):  # by any worker
            events.message_unreported(
                message_id=untold.message_id,
                kind=untold.kind,
                count=untold.recipients,
                error=untold.error,
                tries=untold.tries,
                given_up=untold.given_up,
            )

    def _repair(self, store: WorkerStore) -> None:
        if not store.poisoned:
            self._poisoned = False
            self._unrepaired.over()
            return
        self._left = True
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
        since_s = self._machine.monotonic_ms() / 1000 - self._checkpointed
        if size < CHECKPOINT_BYTES and since_s <= CHECKPOINT_S:
            return
        if self._hurried and since_s < ROUND_S:
            return  # its syncs would be in the way of senders'
        found = store.checkpoint()
        self._left |= found.moved < found.frames or found.pinned is not None
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
        clock = self._machine.monotonic_ms
        retention, began_ms = self._retention(store), clock()
        piece_ms, self._purging = began_ms, True
        while store.purge(retention, PURGE_PIECE, self._looked_ms):
            held_ms = clock() - piece_ms
            if clock() - began_ms >= PURGE_MS:
                self._left = True
                return
            time.sleep(min(max(PURGE_PAUSE_MS, held_ms), PURGE_PAUSE_MOST_MS) / 1000)
            piece_ms = clock()
        self._purged, self._purging = now, False
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


async def keep(presence: Presence) -> None:
    """Do rounds while this worker holds the role, until drained."""
    role = Role(presence)
    trouble = Complaint("janitor", asyncio.get_running_loop().time)
    janitor = Janitor(
        presence.store, presence.worker, presence.config, presence.mates, presence.machine
    )
    pause = _Pause(presence)
    try:
        with contextlib.suppress(OSError):  # said by the first round
            role.take()
        await presence.ready()
        while not presence.draining.is_set():
            told, seconds = presence.lapsed.is_set(), ROUND_S
            presence.lapsed.clear()
            janitor.config = presence.config
            try:
                if not role.take():
                    pass
                elif told:
                    await presence.db.call(janitor.round)
                else:
                    seconds = await presence.db.call(janitor.turn)
                trouble.over()
            except SpoolReplaced as error:
                presence.crash("janitor", error)  # a fresh one opens what has the name now
            except (SpoolError, OSError) as error:
                trouble.say(error)
            await pause(seconds)
        if presence.role:  # what outlived the drain and was ended by force
            with contextlib.suppress(SpoolError, OSError):
                await presence.db.call(janitor.lapse)
    finally:
        pause.close()
        role.give()


class _Pause:
    """Until the next round, a word about somebody's death, or the drain.

    What waits for the two words is kept from pause to pause: making it was most of what they cost.
    """

    def __init__(self, presence: Presence) -> None:
        self._words = (presence.lapsed, presence.draining)
        self._waits: dict[asyncio.Event, asyncio.Task[bool]] = {}

    async def __call__(self, seconds: float) -> None:
        for word in self._words:
            if word not in self._waits or self._waits[word].done():
                self._waits[word] = asyncio.create_task(word.wait())
        await asyncio.wait(
            self._waits.values(), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )

    def close(self) -> None:
        """Wait no more."""
        for wait in self._waits.values():
            wait.cancel()


if __name__ == "__main__":
    from mailstrom_workers.boot import main

    sys.exit(main(keep))
