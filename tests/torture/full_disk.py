"""A disk that fills up, loses its inodes or becomes read-only, while real workers deliver.

Contract. The spool lies on a small tmpfs of its own, mounted here and unmounted at the end; log and
configuration lie elsewhere. Where this process may not mount, the engine's processes get a limit on
the size of files instead (``prlimit``, from outside), and the rows say so. After each fault nothing
that was acknowledged is lost, nothing doubled in silence, and all goes on by itself once there is
space. What the sink saw while nothing could be recorded must not exceed what was on the wire.

Past 400 lines: six short ways of being full, and the one disk under all of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.policy import SMTP
from pathlib import Path

import apsw

from mailstrom import Mailstrom
from mailstrom.errors import OutcomeUnknown, SpoolFull, SpoolReadOnly
from mailstrom.storage.base import Retention
from mailstrom.storage.facts import ROOM_BYTES
from mailstrom.storage.sqlite import schema
from mailstrom.storage.sqlite.connection import APPLICATION_ID, mark_new
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.testing.script import Rule, Script
from mailstrom_workers.context import ROOM_LOOK_S
from tests.support.checker import History, Sent, check, content_digest
from tests.support.engine import Engine, environment, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.support.witnesses import seen_by_server, spool_rows
from tests.torture.table import Row

CYCLE_MB, CLIENT_MB = 24, 4
GROWTH_MB = 7
"""What the messages of one cycle take at most, besides what the engine keeps free."""
PATIENCE_S = 45.0
LANES = 4
DOT_S = 0.25
"""So long the sink thinks about a message, so that many wait when the disk fills up."""
MOST_FILLED = 4
BURST, LOADED = 30, 20
"""Messages of a cycle, and how many must wait before the disk is filled."""
MOST_LOG_BYTES = 16 << 20
WATCH_S = 1.5
"""So long a full disk is watched for deliveries."""
_UNPRIVILEGED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for capability in (1, 2, 3):
    if os.geteuid() == 0 and libc.prctl(24, capability, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Disk:
    """A small file system of its own, or, where none may be mounted, a plain folder.

    Args:
        folder: an empty directory.
        size: as tmpfs takes it.
        inodes: most files, or None.
    """

    def __init__(self, folder: Path, size: str, inodes: int | None = None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        options = f"size={size},mode=0700" + (f",nr_inodes={inodes}" if inodes else "")
        libc = ctypes.CDLL(None, use_errno=True)
        self.mounted = libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options.encode()) == 0

    def fill(self, leave: int = 0) -> None:
        """Take all the space but ``leave`` bytes."""
        with (self.folder / "ballast").open("ab", buffering=0) as stream:
            while (left := self.free() - leave) > 0:
                try:
                    stream.write(bytes(min(left, 1 << 20)))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break

    def empty(self) -> None:
        """Give the space and the files back."""
        for file in self.folder.glob("ballast*"):
            file.unlink()

    def free(self) -> int:
        """Bytes that are left."""
        space = os.statvfs(self.folder)
        return space.f_bavail * space.f_frsize

    def fill_inodes(self) -> int:
        """Take every file name that is left; how many those were."""
        made = 0
        while True:
            try:
                (self.folder / f"ballast{made}").touch()
            except OSError:
                return made
            made += 1

    def close(self) -> None:
        """Unmount it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@contextmanager
def disk(folder: Path, size: str, inodes: int | None = None) -> Iterator[Disk]:
    """A disk until the end of the block."""
    made = Disk(folder, size, inodes)
    try:
        yield made
    finally:
        made.close()


def run(plan: Plan) -> Iterator[Row]:
    """Every way a disk can be full; a row each."""
    probe = Disk(plan.folder / "probe", "1m")
    probe.close()
    if not probe.mounted:
        yield _row(plan, "a disk of its own may not be mounted: not tried", 0, [])
    else:
        yield _enqueue(plan)
        yield _upkeep(plan)
        yield _migration(plan)
        yield _inodes(plan)
        yield _read_only(plan)
    yield from _cycles(plan, mounted=probe.mounted)


def _row(plan: Plan, fault: str, tried: int, findings: list[str], messages: int = 0) -> Row:
    return Row(
        part="disk", fault=fault, tried=tried, messages=messages, findings=tuple(findings),
        seed=plan.seed,
    )  # fmt: skip


def _enqueue(plan: Plan) -> Row:
    """Send until it is full: what was acknowledged is there, what was refused is not."""
    findings, tried, sent = [], 0, 0
    chance = random.Random(plan.seed)
    for cycle in range(plan.pick(4, 60)):
        with disk(plan.folder / f"enqueue{cycle}", f"{CLIENT_MB}m") as place:
            spool = place.folder / "spool.db"
            with Mailstrom(spool) as ms:
                acked = {ms.send(mail("a@d.test"))}
                refused = 0
                place.fill(chance.randrange(200_000) if cycle % 2 else 3 << 20)
                for _ in range(2_000):
                    size = chance.choice((100, 20_000, 400_000))
                    try:
                        acked.add(ms.send(mail("a@d.test", text="x" * 70 + "\n" + "y\n" * size)))
                    except SpoolFull:
                        refused += 1
                        if refused == 5:
                            break
                    except OutcomeUnknown as error:
                        findings.append(f"cycle {cycle}: unknown where it is full: {error}")
                tried += refused
                sent += len(acked)
                code = _cli(spool, "send") if cycle % 6 == 0 else 75
                if code != 75:
                    findings.append(f"cycle {cycle}: send exits {code} on a full disk")
                place.empty()
                found = {str(row[0]) for row in ms.query("SELECT id FROM messages")}
                missing, extra = acked - found, len(found - acked)
                if missing or extra:
                    findings.append(
                        f"cycle {cycle}: {len(missing)} lost, {extra} refused and there"
                    )
                ms.send(mail("a@d.test"))  # at once, by itself
                findings += [f"cycle {cycle}: {text}" for text in ms.check()]
    return _row(plan, "disk full at enqueue", tried, findings, sent)


def _cli(spool: Path, verb: str, *, launcher: tuple[str, ...] = ()) -> int:
    done = subprocess.run(
        [sys.executable, "-P", *launcher, *(("-P",) if launcher else ()), "-m", "mailstrom", verb,
         "--store", str(spool)],
        input=b"From: a@x.test\r\nTo: b@y.test\r\n\r\n" + b"body\r\n" * 2_000,
        capture_output=True, env=environment(), cwd="/", timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return done.returncode


def _upkeep(plan: Plan) -> Row:
    """Checkpoint, expiry, purge and vacuum with no room: refused or done, never half."""
    findings: list[str] = []
    tried = sent = 0
    for cycle in range(plan.pick(4, 40)):
        with disk(plan.folder / f"upkeep{cycle}", f"{CLIENT_MB}m") as place:
            refused, stored, found = _upkeep_once(place, 4096 * cycle)
        tried, sent = tried + refused, sent + stored
        findings += [f"cycle {cycle}: {text}" for text in found]
    return _row(plan, "disk full at checkpoint, expiry and purge", tried, findings, sent)


def _upkeep_once(place: Disk, leave: int) -> tuple[int, int, list[str]]:
    """Steps that were refused, messages that were there, what was wrong."""
    spool, refused = place.folder / "spool.db", 0
    with Mailstrom(spool) as ms:
        ids = [ms.send(mail("a@d.test", text="y\n" * 4_000)) for _ in range(30)]
        ms.cancel(ids[0])
        store = SQLiteWorkerStore(str(spool))
        now_ms = int(time.time() * 1000) + 10**11
        none = Retention(bodies_ms=0, attempts_ms=0, events_ms=0)
        try:
            place.fill(leave)
            steps = (
                store.checkpoint,
                lambda: store.expire(100, now_ms),
                lambda: store.purge(none, 100, now_ms),
                store.checkpoint,
            )
            for step in steps:
                try:
                    step()
                except SpoolFull:
                    refused += 1
            place.empty()
            for step in steps:
                step()
            found = ms.check()
            left = ms.query("SELECT count(*) FROM recipients WHERE status = 'queued'")[0][0]
            if left:
                found.append(f"{left} not expired after all")
        finally:
            store.close()
    return refused, len(ids), found


def _migration(plan: Plan) -> Row:
    """A migration without room leaves the old schema whole, and is done when there is room."""
    findings, tried = [], 0
    for cycle in range(plan.pick(4, 40)):
        with disk(plan.folder / f"migration{cycle}", f"{CLIENT_MB}m") as place:
            spool = place.folder / "spool.db"
            old = 1 + cycle % (schema.VERSION - 1)
            _old_spool(spool, old)
            place.fill(4096 * (cycle // 4))
            try:
                with Mailstrom(spool) as ms:
                    ms.send(mail("a@d.test"))
            except SpoolFull:
                tried += 1
            place.empty()
            with Mailstrom(spool) as ms:
                id = ms.send(mail("a@d.test"))
                if ms.status(id).status != "queued":
                    findings.append(f"from schema {old}: not queued after all")
                findings += [f"from schema {old}: {text}" for text in ms.check()]
    return _row(plan, "disk full at migration", tried, findings)


def _old_spool(path: Path, version: int) -> None:
    connection = apsw.Connection(str(path))
    mark_new(connection)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    for number in range(1, version + 1):
        for statement in schema._statements(connection, schema.migrations()[number]):
            connection.execute(statement).fetchall()
    for key, value in schema.DEFAULTS.items():
        connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}").fetchall()
    connection.execute(f"PRAGMA user_version = {version}").fetchall()
    connection.close()


def _inodes(plan: Plan) -> Row:
    """No file can be made: a new spool says so, one in use goes on."""
    findings, tried = [], 0
    for cycle in range(plan.pick(2, 20)):
        with (
            disk(plan.folder / f"inodes{cycle}", f"{CLIENT_MB}m", inodes=40) as place,
            Mailstrom(place.folder / "spool.db") as ms,
        ):
            ids = [ms.send(mail("a@d.test"))]
            tried += place.fill_inodes() > 0
            ids.append(ms.send(mail("a@d.test")))  # needs no new file
            try:
                Mailstrom(place.folder / "other.db").send(mail("a@d.test"))
                findings.append(f"cycle {cycle}: a spool was made without an inode")
            except SpoolFull as error:
                if "other.db" not in str(error):
                    findings.append(f"cycle {cycle}: does not name the file: {error}")
            place.empty()
            findings += [f"cycle {cycle}: {text}" for text in ms.check()]
            if len(ms.query("SELECT id FROM messages")) != len(ids):
                findings.append(f"cycle {cycle}: not what was acknowledged")
    return _row(plan, "no inode left", tried, findings)


def _read_only(plan: Plan) -> Row:
    """Files and directory become read-only and are writable again."""
    findings, tried = [], 0
    for cycle in range(plan.pick(1, 10)):
        folder = plan.folder / f"read_only{cycle}"
        folder.mkdir()
        spool = folder / "spool.db"
        launcher = ("-c", _UNPRIVILEGED)
        with Mailstrom(spool) as ms:
            acked = ms.send(mail("a@d.test"))
            files = [entry for entry in (folder, *folder.iterdir()) if entry.name != "spool.db-run"]
            modes = {entry: entry.stat().st_mode for entry in files}
            for entry in files:
                entry.chmod(0o555 if entry.is_dir() else 0o444)
            try:
                code = _cli(spool, "send", launcher=launcher)
                tried += code != 0
                if code != 73:
                    findings.append(f"cycle {cycle}: send exits {code} on a read-only spool")
            finally:
                for entry, mode in modes.items():
                    entry.chmod(mode)
            code = _cli(spool, "send", launcher=launcher)
            with suppress(SpoolReadOnly):
                ms.send(mail("a@d.test"))
            found = len(ms.query("SELECT id FROM messages"))
            if code != 0 or found != 3 or ms.status(acked).status != "queued":
                findings.append(f"cycle {cycle}: not writable again ({code}, {found} messages)")
    return _row(plan, "files and directory made read-only", tried, findings)


class _Load:
    """An engine on a small disk, a sink that takes its time, and what was sent.

    Args:
        folder: empty.
        network: of the sink.
        cycles: how often it will be filled and freed.
        mounted: whether there may be a disk of its own.
    """

    def __init__(self, folder: Path, network: Network, *, cycles: int, mounted: bool) -> None:
        folder.mkdir()
        size = f"{CYCLE_MB + GROWTH_MB * cycles}m"
        self.disk = Disk(folder / "disk", size) if mounted else None
        (folder / "engine").mkdir()
        if self.disk is not None:
            (folder / "engine" / "spool.db").symlink_to(folder / "disk" / "spool.db")
        script = Script(rules=(Rule(stage="dot", delay=DOT_S),))
        self.domain, self.hosts = network.site(script)
        settings = {"sites": {"connections": LANES, "idle": "200ms", "suspend": ["1s"]}}
        self.engine = Engine(network, folder / "engine", workers=2, settings=settings)
        self.sent: list[Sent] = []
        self.refused = 0

    def send(self, size: int) -> None:
        """Send one message, or be refused."""
        number = len(self.sent) + self.refused
        message = mail(f"r{number}@{self.domain}", text="y" * 60 + "\n" + "z\n" * size)
        message["Message-ID"] = f"<{number}@sender.test>"
        message["Date"] = "Fri, 1 Aug 2025 12:00:00 +0000"  # no header is left to the client
        raw = message.as_bytes(policy=SMTP)
        digest = content_digest(raw)  # of what was handed over, whatever the store makes of it
        try:
            id = self.engine.ms.send(raw)
        except SpoolFull:
            self.refused += 1
            return
        self.sent.append(
            Sent(
                id=id, message_id=f"<{number}@sender.test>",
                recipient=f"r{number}@{self.domain}", digest=digest,
            )
        )  # fmt: skip

    def shrink(self) -> None:
        """Leave a small disk, whatever lies on it from before: the rest then fills at once."""
        if self.disk is not None:
            self.disk.fill(CYCLE_MB << 20)

    def fill(self, leave: int = 0) -> None:
        """No byte more can be written, or ``leave`` on a disk of its own."""
        if self.disk is not None:
            self.disk.fill(leave)
            return
        spool = self.engine.store.resolve()
        largest = max(p.stat().st_size for p in (spool, spool.with_name("spool.db-wal")))
        self._limit(largest)

    def empty(self) -> None:
        """There is space again."""
        if self.disk is not None:
            self.disk.empty()
        else:
            self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        for kind in ("delivery", "janitor"):
            for pid in self.engine.live(kind):
                hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    def dots(self) -> int:
        """How many messages reached the final dot."""
        return len(dots(self.hosts))

    def delivered(self) -> int:
        """Recipients that the spool says are delivered."""
        sql = "SELECT count(*) FROM recipients WHERE status = 'delivered'"
        return int(self.engine.rows(sql)[0][0])

    def waiting(self) -> int:
        """Recipients that are not final."""
        sql = "SELECT count(*) FROM recipients WHERE finished_ms IS NULL"
        return int(self.engine.rows(sql)[0][0])

    def paused(self, fresh: int) -> list[str]:
        """What a worker did although it had seen that there is no room; it looks once a second.

        A file of its own limit is no full disk: a worker cannot see it beforehand.

        Args:
            fresh: messages that are sent meanwhile, where there is room for them.
        """
        if self.disk is None:
            return []
        time.sleep(3 * ROOM_LOOK_S)  # a look, and the delivery that was claimed before it
        dots, sending = self.dots(), self.sending()
        for _ in range(fresh):
            self.send(10)
        time.sleep(WATCH_S)
        found = []
        if self.dots() > dots:
            found.append(f"{self.dots() - dots} delivered on a full disk")
        if fresh := self.sending() - sending:
            found.append(f"{len(fresh)} begun on a full disk")
        return found

    def sending(self) -> set[tuple[str, str]]:
        """Recipients that are on the wire."""
        sql = "SELECT message_id, address FROM recipients WHERE status = 'sending'"
        return {(str(id), str(address)) for id, address in self.engine.rows(sql)}

    def close(self) -> None:
        """End the engine, then its disk."""
        try:
            self.empty()
            self.engine.close()
        finally:
            if self.disk is not None:
                self.disk.close()


def _cycles(plan: Plan, *, mounted: bool) -> Iterator[Row]:
    """Fill and free while workers deliver and an application sends."""
    chance = random.Random(plan.seed)
    findings: list[str] = []
    cycles, worst, tried = plan.pick(3, 50), 0.0, 0
    fault = "disk full and free again under load" + ("" if mounted else " (limit on file size)")
    with Network() as network:
        load = _Load(plan.folder / "cycles", network, cycles=cycles, mounted=mounted)
        try:
            load.engine.start()
            for cycle in range(cycles):
                low = cycle % 2 == 1  # room enough to record much, and less than must stay free
                tried += _filled(load, chance, ROOM_BYTES // 2 if low else 0)
                _settled(load)
                # What is sent is on the disk as begun, from before that until its verdict is there.
                sent, begun, recorded = load.dots(), load.sending(), load.delivered()
                if sent > len(begun) + recorded:
                    unmarked = sent - len(begun) - recorded
                    findings.append(f"cycle {cycle}: {unmarked} sent, and not recorded as begun")
                findings += [f"cycle {cycle}: {text}" for text in load.paused(LANES if low else 0)]
                if mounted:
                    for _ in range(20):  # the -wal may have room of its own at first
                        load.send(100_000)
                load.empty()
                freed = time.monotonic()
                _until(lambda: not load.waiting(), load, "the end of the queue")
                worst = max(worst, time.monotonic() - freed)
                log = f"{os.path.realpath(load.engine.store)}-wal"
                if os.stat(log).st_size > MOST_LOG_BYTES:
                    findings.append(f"cycle {cycle}: -wal of {os.stat(log).st_size:,} bytes")
                plan.say(f"cycle {cycle}: {load.dots()} delivered, {load.refused} refused,"
                         f" -wal {os.stat(log).st_size:,} bytes")  # fmt: skip
            findings += load.engine.ms.check()
            if mounted and not load.refused:
                findings.append("no send was ever refused: the disk was not full")
            rows = spool_rows(lambda sql: load.engine.rows(sql))
            history = History(
                acknowledged=tuple(load.sent), seen=seen_by_server(dots(load.hosts)), spool=rows
            )
            report = check(history)
            found = (*report.phantom, *report.wrong_bytes, *report.stuck)
            findings += [f"{one.message_id}: {one.text}" for one in found]
        except AssertionError as error:
            told = "\n".join([str(error), *getattr(error, "__notes__", ())])
            findings.append(f"seed {plan.seed}: {told}"[:12_000])
            report = None
        finally:
            load.close()
    yield Row(
        part="disk",
        fault=fault,
        tried=tried,
        messages=len(load.sent),
        lost=len(report.lost) if report else 0,
        silent=len(report.doubled_unmarked) if report else 0,
        marked=sum(sum(row.attempts) for row in rows) if report else 0,
        worst_recovery_s=worst,
        findings=tuple(findings),
        seed=plan.seed,
    )


def _filled(load: _Load, chance: random.Random, leave: int) -> bool:
    """Fill the disk with mail on its way: with none of it, a full disk proves little.

    Where this process stood still until all had arrived, it is emptied and filled once more.
    """
    for _ in range(MOST_FILLED):
        load.shrink()
        for _ in range(BURST):
            load.send(chance.choice((10, 500, 20_000)))
        for _ in range(10 * BURST):  # what was sent while these were handed over
            if load.waiting() >= LOADED:
                break
            load.send(10)
        # No more than there are: while the last were sent, the first were delivered.
        enough = min(load.dots() + 1 + chance.randrange(8), len(load.sent))
        _until(lambda enough=enough: load.dots() >= enough, load, "a delivery")
        load.fill(leave)
        if load.waiting() > 0:
            return True
        load.empty()
    return False


def _until(probe: object, load: _Load, what: str) -> None:
    assert callable(probe)
    try:
        eventually(probe, PATIENCE_S, what=what)
    except AssertionError as error:
        error.add_note(load.engine.describe())
        raise


def _settled(load: _Load) -> None:
    """Wait until no delivery has come for longer than any takes."""
    last, since = load.dots(), time.monotonic()
    while time.monotonic() - since < 1.0:
        time.sleep(0.05)
        if load.dots() != last:
            last, since = load.dots(), time.monotonic()
