"""One simulated story: workers, a janitor, a client, mail hosts, DNS, and what befalls them.

Contract: everything is drawn from one seed; two runs of it leave the same trace. The engine's code
is the product's from ``presence.enter`` down: workers deliver and the janitor keeps in groups of
tasks on one loop, each with a real store on one real spool file and a real lock file. Faults stop
at a stated time; then the story has bounded virtual time to finish, and the workers drain.

Must not know: what is right (``sim_oracle`` does).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import apsw

from mailstrom import events
from mailstrom.config import Config, from_tables
from mailstrom.errors import SpoolBusy, SpoolCorrupt, SpoolError, SpoolFull
from mailstrom.policy.answers import Answer, Outcome
from mailstrom.storage.base import WorkerStore
from mailstrom.storage.client import Target
from mailstrom.storage.reporting import ReportFacts
from mailstrom.storage.sqlite import locks, schema
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.types import Change
from mailstrom_workers import duewatch
from mailstrom_workers import janitor as janitor_module
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.delivery import deliver
from mailstrom_workers.janitor import keep
from mailstrom_workers.machine import Machine
from mailstrom_workers.presence import enter
from mailstrom_workers.resolver import Resolver
from tests.torture.sim_cast import Mail, Worker
from tests.torture.sim_db import SimulatedDB
from tests.torture.sim_disk import Disk, NotedStore
from tests.torture.sim_fate import Fate
from tests.torture.sim_loop import GROUP, Group, VirtualLoop, unreal
from tests.torture.sim_net import Network, Wire
from tests.torture.sim_peer import CALM, Dot, MailHost, moody

WALL_MS = 1_800_000_000_000
FINISH_S = 700.0
"""Longest virtual time from the end of the faults to the end of the story."""
PLAIN_S = 150.0
"""The same where neither the DNS nor the clock was in trouble."""
TOLD_S = 90.0
"""A minute that is waited for more of a message, or behind a report that somebody died in, and a
janitor's rounds."""
SELF_S = 90.0
"""So long nobody helps; then a person retries what waits."""


class SimulatedResolver(Resolver):
    """The product's resolver, asking a zone of ours."""

    def __init__(self, world: World) -> None:
        super().__init__([("192.0.2.53", 53)], 5.0, own_names=("sender.test",), random=world.draw)
        self._world = world

    async def _look_up(self, name: str, kind: Any) -> Answer:
        world = self._world
        await asyncio.sleep(0.02 * world.rng.random())
        return world.answer(name, kind)


class World:
    """The story of one seed.

    Args:
        seed: what repeats it.
        folder: for the spool; a fresh one, on memory.
        template: an empty spool to copy, or None to make one.
    """

    def __init__(self, seed: int, folder: Path, template: Path | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.draw = rng.random
        self.path = str(folder / "spool.db")
        self._template = template
        self.loop = VirtualLoop()
        self.disk = Disk(self.path, lambda: self.loop.now_s)
        self.client: SQLiteClientStore  # from ``run`` on
        self.trace: list[str] = []
        self.faults: dict[str, int] = {}
        self.dots: list[Dot] = []
        self.mails: list[Mail] = []
        self.workers: list[Worker] = []
        self.boot = "boot-1"
        self.jump_ms = 0
        self.believed: set[tuple[str, str]] = set()
        self.calm = self.damaged = False
        self.finished = False
        self.drained: set[str] = set()  # kinds of process that are told to end, also as they start
        self.finished_s = 0.0
        self.findings: list[str] = []
        self._store_odds = rng.choice((0.0, 0.0, 0.0, 0.002, 0.02))
        self._sync_odds = rng.choice((0.0, 0.0, 0.0, 0.02))
        self.syncs_fail = self._sync_odds > 0
        self._step_s = rng.choice((0.0, 0.001, 0.004))
        self.dns_trouble = rng.random() < 0.1
        self.horizon_s = rng.choice((1.5, 2.5, 5.0))
        self.look_s = rng.choice((0.05, 0.25, 0.25))
        self.round_s = rng.choice((0.25, 0.5))
        self.jumps = rng.random() < 0.1
        self.limit = rng.choice((1, 2, 3, 8))
        self.limits = [self.limit]
        self._numbers = 0
        self._refused_s = -1.0
        self._looking: apsw.Connection | None = None
        self._session = ""
        network = Network(
            self.loop, rng, copy_context(), self._site_of, lambda wire: _zombie(wire.group)
        )
        network.session_of = self._session_of
        network.slow_s = rng.choice((0.002, 0.02, 0.05))
        self.network = self.loop.net = network
        self.sites: dict[str, list[str]] = {}
        self.hosts: dict[str, tuple[str, MailHost]] = {}
        self.zone: dict[str, str] = {}
        self.domains: list[str] = []
        self._build()
        self.depth = rng.choice((1, 1, 4))
        if self.depth > 1:
            # For a trusted relay. What is thrown away from among several, and answered by what
            # comes behind, cannot be told; the manual says so.
            for _, mail_host in self.hosts.values():
                mail_host.deaf = False
        self.config = self.configure()

    # --- what there is ----------------------------------------------------------------------

    def _build(self) -> None:
        rng = self.rng
        for site in range(rng.randint(1, 3)):
            names = []
            for host in range(rng.choice((1, 1, 2, 3))):
                name, address = f"mx{host}.site{site}.test", f"192.0.2.{10 * site + host + 1}"
                mail_host = MailHost(name, rng, self.dots, self.faults, self.note)
                mail_host.mood = moody(rng)
                self.network.hosts[address] = mail_host
                self.hosts[name] = (address, mail_host)
                names.append(name)
            self.sites[f"site{site}"] = names
        sites = list(self.sites)
        for number in range(rng.randint(1, 4)):
            domain = f"d{number}.test"
            self.domains.append(domain)
            self.zone[domain] = rng.choice(sites)
        if self.dns_trouble:
            for domain in self.domains:
                if rng.random() < 0.5:
                    self.zone[domain] = rng.choice(("temporary", "nxdomain", "null"))

    def _site_of(self, address: str) -> str:
        return str((int(address.rpartition(".")[2]) - 1) // 10)

    def answer(self, name: str, kind: str) -> Answer:
        """What the DNS says."""
        ttl_s = 30
        if name in self.hosts:
            if kind == "A":
                address = self.hosts[name][0]
                return Answer(
                    outcome=Outcome.RECORDS, records=((0, address),), name=name, ttl_s=ttl_s
                )
            return Answer(outcome=Outcome.NODATA, name=name, ttl_s=ttl_s)
        place = self.zone.get(name)
        if self.dns_trouble and not self.calm and self.rng.random() < 0.3:
            place = "temporary"
        if place == "temporary":
            self.fault("dns temporary")
            return Answer(outcome=Outcome.TEMPORARY, name=name, text="SERVFAIL")
        if place is None or place == "nxdomain":
            self.fault("dns nxdomain")
            return Answer(outcome=Outcome.NXDOMAIN, name=name, ttl_s=ttl_s, text="no such name")
        if place == "null":
            self.fault("dns null mx")
            return Answer(outcome=Outcome.RECORDS, records=((0, ""),), name=name, ttl_s=ttl_s)
        hosts = self.sites[place]
        equal = len(hosts) > 1 and hash_of(place) % 2
        records = tuple((10 if equal else 10 + number, host) for number, host in enumerate(hosts))
        return Answer(outcome=Outcome.RECORDS, records=records, name=name, ttl_s=ttl_s)

    def configure(self) -> Config:
        """A configuration of these workers; each reload draws another."""
        rng = self.rng
        stages = ("greeting", "ehlo", "mail", "rcpt", "data", "body", "dot", "connect", "rset")
        return from_tables(
            {
                "store": self.path,
                "hostname": "sender.test",
                "delivery": {
                    "on_doubt": rng.choice(("retry", "retry", "hold")),
                    "pipelining": rng.choice(("full", "full", "transaction", "none")),
                    "pipeline_depth": self.depth,
                    "max_connections": rng.choice((2, 200)),
                },
                "retry": {"schedule": ["1s", "2s"], "jitter": 0.0, "max_age": "1h"},
                "sites": {
                    "connections": self.limit,
                    "idle": rng.choice(("0ms", "100ms", "2s")),
                    "suspend": ["1s", "2s"],
                    "messages_per_connection": rng.choice((0, 0, 2)),
                },
                "timeouts": dict.fromkeys(stages, rng.choice(("500ms", "2s"))) | {"quit": "200ms"},
            },
            environ={},
        )

    def wall_ms(self) -> int:
        """The wall clock, jumps included."""
        return WALL_MS + self.jump_ms + int(self.loop.now_s * 1000)

    def machine(self) -> Machine:
        """What the workers run on."""
        return Machine(
            wall_ms=self.wall_ms,
            monotonic_ms=lambda: int(self.loop.now_s * 1000),
            boot_id=lambda: self.boot,
            random=self.draw,
            token=self._token,
            own_address=lambda address, port: "192.0.2.254",
        )

    def _token(self, size: int) -> str:
        self._numbers += 1
        self._session = f"{self._numbers:0{2 * size}x}"
        return self._session

    def _session_of(self) -> str:
        return self._session

    # --- notes ------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line of the trace; the folder has another name each time."""
        self.trace.append(f"{self.loop.now_s:.6f} {text}".replace(self.path, "spool"))

    def fault(self, kind: str) -> None:
        """One more fault."""
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def event(self, word: str, fields: dict[str, Any]) -> None:
        """A line of the log."""
        group = GROUP.get()
        if group is None or not group.dead:
            who = "-" if group is None else group.name
            told = " ".join(
                f"{k}={v}" for k, v in fields.items() if v is not None and k not in _UNTOLD
            )
            self.note(f"{who} {word} {told}")
            expected = self._refused(fields) or _expected(group, fields)
            if word == "engine.failed" and not expected:
                self.findings.append(f"engine.failed: {who} {fields}")

    def _refused(self, fields: dict[str, Any]) -> bool:
        """Whether a repair came to nothing since the disk refused a sync in it, and just now."""
        return fields.get("where") == "repair" and self._refused_s == self.loop.now_s

    # --- faults of the spool ----------------------------------------------------------------

    def store_fault(self, verb: str) -> None:
        """Before each verb of a worker's store."""
        if self.damaged and verb == "exchange":
            worker = GROUP.get()
            assert isinstance(worker, Worker)
            worker.spoilt = True
            self.fault("damage")
            raise SpoolCorrupt("exchange: as the seed says")
        if self.calm or not self._store_odds or self.rng.random() >= self._store_odds:
            return
        kind = SpoolBusy if self.rng.random() < 0.7 else SpoolFull
        self.fault(f"store {kind.__name__}")
        raise kind(f"{verb}: as the seed says")

    def sync(self, fd: int) -> None:
        """The disk."""
        if not self.calm and self._sync_odds and self.rng.random() < self._sync_odds:
            self.fault("sync failed")
            self._refused_s = self.loop.now_s
            raise OSError(5, "Input/output error")
        self.disk.synced()

    def power_cut(self) -> None:
        """Nobody lives any more, and the disk keeps what it was told to keep."""
        left = self.disk.left()
        self.client.close()
        if self._looking is not None:
            self._looking.close()
            self._looking = None
        if left.lost:
            self.fault("reboot, and commits are gone")
        self.note(f"power cut: {left.lost} frames lost")
        self.disk.put_back(left)
        self.client = self.open_client()

    def open_store(self, path: str, config: Config) -> WorkerStore:
        """A worker's store, on a disk of ours."""
        delays_ms = (0, *(int(seconds * 1000) for seconds in config.retry.schedule))
        store = NotedStore(
            path, busy_ms=0, sync=self.sync, doubt_delays_ms=delays_ms, disk=self.disk
        )
        store.use_reporter(self._told)
        return store

    def _told(self, facts: ReportFacts, now_ms: int) -> None:
        """What is owed to senders is told, and no mail made of it, which nobody here has sent."""
        for one in facts.recipients:
            self.note(f"told of {facts.message_id} {one.address}: {one.action}")

    def open_client(self) -> SQLiteClientStore:
        """The client's store, in this boot."""
        return SQLiteClientStore(self.path, busy_ms=0, sync=self.sync, boot=self.boot)

    # --- workers ----------------------------------------------------------------------------

    def start(self, kind: str, slot: int) -> None:
        """Start a process; not at the end of the story."""
        if self.finished:
            return
        worker = Worker(self.loop, kind, slot, sum(w.slot == slot for w in self.workers))
        self.workers.append(worker)
        self.note(f"start {worker.name}")
        worker.main = worker.begin(self._live(worker), worker.name)

    async def _live(self, worker: Worker) -> None:
        def crash(where: str, error: BaseException) -> NoReturn:
            self.note(f"{worker.name} crashed: {where}: {error}")
            if not worker.zombie:
                self.findings.append(f"{worker.name} crashed: {where}: {error!r}")
            self.loop.call_soon(partial(self.kill, worker, over=True), context=_OUTSIDE)
            raise StoreEnded(where)

        def serve(open_store: Callable[[], WorkerStore], *, crash: Any) -> SimulatedDB:
            worker.db = SimulatedDB(
                open_store,
                crash=crash,
                now_ms=self.wall_ms,
                wait_s=lambda: self._step_s * self.rng.random(),
                fault=self.store_fault,
            )
            return worker.db

        try:
            worker.presence = await enter(
                kind=worker.kind,
                slot=worker.slot,
                store=self.path,
                config=self.config,
                crash=crash,
                leads=lambda: True,
                machine=self.machine(),
                serve=serve,
                open_store=self.open_store,
            )
        except (SpoolError, StoreEnded) as error:
            self.note(f"{worker.name} did not start: {error}")
            self.later(0.3, lambda: self.start(worker.kind, worker.slot))
            return
        resolver = partial(deliver, resolver=lambda _: SimulatedResolver(self))
        if worker.kind in self.drained:
            worker.presence.drain()
        try:
            await worker.presence.run(resolver if worker.kind == "delivery" else keep)
        except BaseException as error:
            if not worker.dead:  # a process that ends by an error
                self.note(f"{worker.name} ended by {error!r}")
                self.findings.append(f"{worker.name} ended by {error!r}")
                self.loop.call_soon(partial(self.kill, worker, over=True), context=_OUTSIDE)
            raise
        self.note(f"{worker.name} ended")
        if not self.finished:
            self.later(0.1, lambda: self.start(worker.kind, worker.slot))

    def living(self, kind: str | None = None) -> list[Worker]:
        """Processes that run, stopped ones too."""
        return [
            w
            for w in self.workers
            if not w.dead and w.main is not None and not w.main.done() and kind in (None, w.kind)
        ]

    def kill(self, worker: Worker, *, restart: bool = True, over: bool = False) -> None:
        """SIGKILL; ``over``: it ends by itself, and everything falls with it."""
        if worker.dead or worker.main is None or (worker.main.done() and not over):
            return
        self.note(f"kill {worker.name}")
        worker.killed = True
        self.network.kill(worker)
        if worker.db is not None:
            worker.context.run(worker.db.die)
        worker.bury()
        if worker.presence is not None:
            worker.presence.lock.release()
        if restart:
            self.later(self.rng.random(), lambda: self.start(worker.kind, worker.slot))

    def later(self, seconds: float, step: Callable[[], object]) -> None:
        """Do something then, outside of all processes."""
        self.loop.call_later(seconds, step, context=_OUTSIDE)

    # --- the story --------------------------------------------------------------------------

    def run(self) -> None:
        """From the first start to the last drain."""
        with unreal(self.loop), _taken_over(self):
            if self._template is None:
                schema.prepare(self.path, engine=True)
            else:
                shutil.copyfile(self._template, self.path)
                os.makedirs(f"{self.path}-run", exist_ok=True)
            self.client = self.open_client()
            asyncio.set_event_loop(self.loop)
            try:
                self.loop.run_until_complete(self._story())
            finally:
                self.finished = True
                asyncio.set_event_loop(None)

    async def _story(self) -> None:
        loop, began_s = self.loop, self.loop.now_s
        self.start("janitor", 0)
        for slot in range(self.rng.choice((1, 2, 2, 3))):
            self.start("delivery", slot + 1)
        for at_s, step in Fate(self).plan():
            await asyncio.sleep(max(0.0, began_s + at_s - loop.now_s))
            step()
        await asyncio.sleep(max(0.0, began_s + self.horizon_s - loop.now_s))
        self.note("calm")
        self.calm, self.damaged = True, False
        self.jump_ms = max(self.jump_ms, 0)  # a send time of the user's own stays: somebody mends
        for _, host in self.hosts.values():
            host.mood = CALM
        for domain, place in self.zone.items():
            if place == "temporary":
                self.zone[domain] = "site0"
        calm_s = loop.now_s
        await asyncio.sleep(1.0)  # killed ones start again
        for _ in range(20):
            if any(worker.stopped for worker in self.living()):
                await asyncio.sleep(0.25)
        helped_s = calm_s + SELF_S
        while self.unfinished() or self.lanes():
            if loop.now_s > calm_s + (FINISH_S if self.dns_trouble or self.jumps else PLAIN_S):
                break
            if loop.now_s > helped_s and (self.dns_trouble or self.jumps):
                helped_s += SELF_S
                self._retry()
            await asyncio.sleep(0.5)
        self.finished_s = loop.now_s - calm_s
        for _ in range(int(2 * TOLD_S)):
            if not self.rows("SELECT 1 FROM owed LIMIT 1"):
                break
            await asyncio.sleep(0.5)
        await self._end()

    def _retry(self) -> None:
        self.note("a person retries what waits")
        now_ms = self.wall_ms()
        rows = self.rows(
            "SELECT m.id, r.address FROM recipient r JOIN message m ON m.seq = r.message"
            " WHERE r.state IN ('queued', 'deferred')"
        )
        targets = [Target(id, address) for id, address in rows]
        self.client.change(Change.RETRY, targets, now_ms)
        touched = {(id, address) for id, address in rows}
        for mail in self.mails:
            mail.touched |= {
                r for r in mail.submission.recipients if (mail.submission.id, r) in touched
            }

    async def _end(self) -> None:
        self.finished = True
        self.note("end")
        for kind in ("delivery", "janitor"):
            self.drained.add(kind)
            for worker in self.living(kind):
                if worker.presence is not None:
                    worker.presence.drain()
            for _ in range(200):
                if not self.living(kind):
                    break
                await asyncio.sleep(0.25)
            for worker in self.living(kind):
                self.findings.append(f"{worker.name} did not end within 50 s of its drain")
                self.kill(worker, restart=False)
            await asyncio.sleep(0.5 if kind == "delivery" else 0.01)

    def rows(self, sql: str) -> list[Any]:
        """Rows of the tables."""
        if self._looking is None:
            self._looking = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READONLY)
        return self._looking.execute(sql).fetchall()

    def close(self) -> None:
        """Let go of the spool; the world cannot be asked any more."""
        if self._looking is not None:
            self._looking.close()
        self.client.close()
        self.disk.close()
        self.loop.close()

    def unfinished(self) -> int:
        """How many recipients are neither final nor held."""
        sql = (
            "SELECT count(*) FROM recipient"
            " WHERE state NOT IN ('delivered', 'failed', 'cancelled', 'held')"
        )
        return int(self.rows(sql)[0][0])

    def lanes(self) -> int:
        """How many lanes are open, or were left by the dead: a power cut may bring them back."""
        return int(self.rows("SELECT count(*) FROM lane")[0][0])


_OUTSIDE = copy_context()
_UNTOLD = frozenset({"pid", "lost_pid", "trace"})
_EXPECTED = frozenset({"store", "look", "janitor", "reload", "disk"})


def hash_of(text: str) -> int:
    """A number that is the same in every process."""
    return sum(text.encode())


def _expected(group: Group | None, fields: dict[str, Any]) -> bool:
    """A lane that met damage under a drain ends by it; other failures have their places."""
    spoilt = isinstance(group, Worker) and group.spoilt
    if spoilt and str(fields.get("error")).startswith("SpoolCorrupt"):
        return str(fields.get("where")).startswith("lane ")
    return fields.get("where") in _EXPECTED


def _zombie(group: Group | None) -> bool:
    return isinstance(group, Worker) and group.zombie


@contextmanager
def _taken_over(world: World) -> Iterator[None]:
    """The log's lines become the trace; a quiet worker looks as often as the seed says."""
    emit, look_s, round_s = events._emit, duewatch.LOOK_S, janitor_module.ROUND_S
    held, locks.LOCKS = locks.LOCKS, os.devnull  # no sentence names a process of this machine
    events._emit = world.event
    duewatch.LOOK_S, janitor_module.ROUND_S = world.look_s, world.round_s
    try:
        yield
    finally:
        events._emit, duewatch.LOOK_S, janitor_module.ROUND_S = emit, look_s, round_s
        locks.LOCKS = held


__all__ = ["Mail", "Wire", "Worker", "World"]
