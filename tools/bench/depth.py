"""Depth: what a queue of a million recipients costs against one of ten thousand; and memory.

Contract. One spool is filled step by step, 20 recipients a domain, four a message, small bodies. At
each step: routing of so many domains as the first step has, which come to a running engine beside
all that wait already (their host never answers, so that nothing else goes on; CPU of the whole
engine, less what it uses in the same time while nothing comes, as it did just before);
``mailstrom queue count``; then runs that deliver the first few thousand, each in a fresh engine
that finds every domain routed, beside an application that sends 50 messages a second and notes its
waits. Rates and CPU there are of messages, four recipients each. ``wal_mib`` is the length of the
write-ahead log's file, filling included; ``first_s`` is from the start of the engine to the first
arrival. ``pss_mib`` is supervisor, workers and janitor together.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apsw

from tests.support.sockets import eventually, free_port
from tools.bench.engine import Applications, Engine, hand_over, relay_to, together
from tools.bench.figures import Figure
from tools.bench.plan import Plan, attempt, folder, installed
from tools.bench.processes import Meter
from tools.bench.stations import Sink

SHALLOW = 10_000
PER_DOMAIN = 20
PER_MESSAGE = 4
DELIVERED = 6_000
COUNTS = 5
LIMIT_S = 600.0
MEMORY_S = 6.0
IDLE_S = 3.0
SENDING_S = 5.0


class Longest:
    """Watches the length of a spool's write-ahead log; a context manager."""

    def __init__(self, store: Path) -> None:
        self._wal = store.with_name(store.name + "-wal")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.mib = 0.0

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            if self._wal.exists():
                self.mib = max(self.mib, self._wal.stat().st_size / 2**20)

    def __enter__(self) -> Longest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Deep:
    """A spool that is filled step by step.

    Args:
        home: its directory.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = home / "spool.db"
        self.port = free_port()  # of the one relay: another one would be another policy of routes
        self._batches = 0

    def queued(self) -> int:
        """Recipients that wait; asked by another reader than the product's."""
        if not self.store.exists():
            return 0
        return self._ask("SELECT count(*) FROM recipients WHERE status = 'queued'")

    def unrouted(self) -> int:
        """Domains that nobody has looked up yet."""
        return self._ask("SELECT count(*) FROM domains WHERE resolved_ms IS NULL")

    def _ask(self, sql: str) -> int:
        # one process, one SQLite: apsw, as the library
        database = apsw.Connection(str(self.store), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            database.set_busy_timeout(10_000)
            return int(database.execute(sql).fetchone()[0])  # type: ignore[index]
        finally:
            database.close()

    def fill(
        self, depth: int, zone: str = "test", domains: int | None = None, have: int | None = None
    ) -> None:
        """Adds messages until so many recipients wait.

        Args:
            zone: what their domains lie in.
            domains: how many there are to choose from; None: a twentieth of the depth.
            have: how many wait already; None: they are counted.
        """
        short = depth - (self.queued() if have is None else have)
        if short <= 0:
            return
        self._batches += 1
        processes = 2 if short > 50_000 else 1
        hand_over(
            self.home,
            [
                {"store": str(self.store), "number": 100 * self._batches + one, "verb": "many",
                 "messages": -(-short // (PER_MESSAGE * processes)), "size": 200,
                 "recipients": PER_MESSAGE, "zone": zone,
                 "domains": domains or max(1, depth // PER_DOMAIN)}
                for one in range(processes)
            ],
        )  # fmt: skip


def _count_ms(deep: Deep) -> float:
    """Median time of ``mailstrom queue count``, its start included; the first is not counted."""
    times = []
    chosen = installed({**os.environ, "MAILSTROM_STORE": str(deep.store)}, deep.home)
    for _ in range(COUNTS + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-P", "-m", "mailstrom", "queue", "count"],
            env=chosen, cwd=deep.home, check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def _routed(plan: Plan, deep: Deep, blank: Figure) -> Figure:
    step, fresh = blank.n, _steps(plan)[0]
    domains = max(1, fresh // PER_DOMAIN)
    settings = relay_to(deep.port, 1)
    settings["delivery"]["drain_timeout"] = "500ms"  # nothing that is on the wire there will end
    deep.fill(step - fresh)
    # nobody accepts: the kernel takes the connections, and no greeting comes
    with socket.create_server(("127.0.0.1", deep.port)):
        engine = Engine(deep.home, deep.store, settings, workers=plan.workers, uvloop=blank.uvloop)
        try:
            engine.start()
            engine.ready()
            _all_routed(deep)
            idle = _idle(plan, engine)
            # counting so many takes seconds, which are not the engine's work
            have = deep.queued()
            meter = Meter(engine.roots)
            deep.fill(step, zone=f"s{step}.test", domains=domains, have=have)
            _all_routed(deep)
            used = meter.stop()
        finally:
            engine.stop()
    values = {
        "route_us": 1e6 * max(used.cpu_s - idle * used.wall_s, 0.0) / domains,
        "seconds": used.wall_s,
        "busy_cores": used.busy_cores,
    }
    return replace(blank, n=domains, values=values, foreign_cores=used.foreign_cores)


def _idle(plan: Plan, engine: Engine) -> float:
    """The part of a processor that the engine uses while nothing comes."""
    meter = Meter(engine.roots)
    time.sleep(plan.long(IDLE_S))
    used = meter.stop()
    return used.cpu_s / used.wall_s


def _all_routed(deep: Deep) -> None:
    eventually(
        lambda: deep.store.exists() and not deep.unrouted(),
        LIMIT_S, what="every domain routed", interval=0.1,
    )  # fmt: skip


def _delivered(plan: Plan, deep: Deep, blank: Figure) -> Figure:
    deep.fill(int(blank.at or 0))
    sink = Sink(deep.port)
    engine = Engine(
        deep.home, deep.store, relay_to(deep.port), workers=plan.workers, uvloop=blank.uvloop
    )
    asked = Applications(
        deep.home,
        [
            {
                "store": str(deep.store),
                "number": 9,
                "verb": "send",
                "pause_s": 0.02,
                "seconds": plan.long(SENDING_S),
                "size": 200,
            }
        ],
    )
    try:
        # recipients of one message may share a transaction
        messages = min(blank.n, int(blank.at or 0) // PER_MESSAGE)
        with Longest(deep.store) as log:
            began = time.monotonic()
            engine.start()
            asked.go()
            if not sink.wait(1, LIMIT_S):
                raise RuntimeError(f"nothing arrived; {engine.words()}")
            meter = Meter(engine.roots, memory=True)
            counted = sink.count
            if not sink.wait(messages, LIMIT_S):
                raise RuntimeError(f"{sink.count} of {messages} arrived; {engine.words()}")
            used, arrived = meter.stop(), sink.count - counted
            waits = together(asked.join())
        values = {
            "rate": sink.rate(1, messages),
            "first_s": sink.at(1) - began,
            "stall_p99_ms": waits.wait_ms(0.99),
            "stall_max_ms": waits.wait_ms(1.0),
            "wal_mib": log.mib,
            "pss_mib": used.pss_mib,
            "busy_cores": used.busy_cores,
        }
        if arrived:
            values["cpu_s_per_1000"] = 1000 * used.cpu_s / arrived
        return replace(blank, n=messages, values=values, foreign_cores=used.foreign_cores)
    finally:
        asked.close()
        engine.stop()
        sink.close()


def _steps(plan: Plan) -> list[int]:
    deepest = max(200, int(plan.queued * plan.scale))
    shallow = min(deepest, max(100, int(SHALLOW * plan.scale)))
    between = int((shallow * deepest) ** 0.5)
    return sorted({shallow, between, deepest})


def depth(plan: Plan) -> Iterator[Figure]:
    """Every step's figures; the last step's memory."""
    loop = plan.fastest
    with folder() as home:
        deep = Deep(home)
        for step in _steps(plan):
            blank = Figure(
                bench="depth", case=f"{step:,} queued: routing", uvloop=loop, n=step, at=step
            )
            yield attempt(blank, lambda blank: _routed(plan, deep, blank))
            yield attempt(
                replace(blank, case=f"{step:,} queued: mailstrom queue count", uvloop=None),
                lambda blank: replace(blank, values={"count_ms": _count_ms(deep)}),
            )
            for run in range(1, plan.runs + 1):
                some = replace(
                    blank, case=f"{step:,} queued: delivery", run=run, n=plan.many(DELIVERED)
                )
                yield attempt(some, lambda blank: _delivered(plan, deep, blank))
        yield from _memory(plan, deep)


def _memory(plan: Plan, deep: Deep) -> Iterator[Figure]:
    blank = Figure(bench="memory", case=f"{_steps(plan)[-1]:,} queued, delivering")
    for run in range(1, plan.runs + 1):
        for uvloop in plan.loops:
            some = replace(blank, run=run, uvloop=uvloop)
            yield attempt(some, lambda blank: _held(plan, deep, blank))


def _held(plan: Plan, deep: Deep, blank: Figure) -> Figure:
    deep.fill(_steps(plan)[-1])
    sink = Sink(deep.port)
    engine = Engine(
        deep.home, deep.store, relay_to(deep.port), workers=plan.workers, uvloop=blank.uvloop
    )
    try:
        engine.start()
        engine.ready()
        meter = Meter(engine.roots, memory=True)
        time.sleep(plan.long(MEMORY_S))
        used = meter.stop()
        values = {"pss_mib": used.pss_mib}
        return replace(blank, n=deep.queued(), values=values, foreign_cores=used.foreign_cores)
    finally:
        engine.stop()
        sink.close()


def memory(plan: Plan) -> Iterator[Figure]:
    """Memory alone, with the deepest queue."""
    with folder() as home:
        yield from _memory(plan, Deep(home))
