"""Durable accepting: what ``send`` and ``send_many`` reach, what the disk allows, beside peers.

Contract. Every figure of ours is of calls that had returned: synced to disk. Each process has sent
one message before the start (due in a day): what is loaded and opened once is no call's time. One
process with one thread (one sync a message: the disk is its floor) and with 16 (they share
commits); 32 of them with the engine idle and with it draining, four beside an application whose
threads reckon without pause. ``others_p99_ms`` there is of the four alone. The disk's own pace
(4 KiB appended and ``fdatasync``; one insert a commit in SQLite, WAL, FULL) is measured in the same
directory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import apsw

from tools.bench.drain import SIZES, contenders
from tools.bench.engine import Applications, Engine, fill, relay_to, together
from tools.bench.figures import Figure
from tools.bench.peers.contender import Contender
from tools.bench.plan import Plan, attempt, folder
from tools.bench.processes import Meter
from tools.bench.stations import Sink

PROCESSES = 32
THREADS = 16
SECONDS = 3.0
MANY = 20_000
BACKLOG = 60_000
BUSY_THREADS = 3


def _sent(
    home: Path, blank: Figure, plans: Sequence[dict[str, object]], *, others: int = 0
) -> Figure:
    """Applications run together; ``others``: so many of the last are judged on their own, too."""
    applications = Applications(home, plans)
    meter = Meter(list)
    applications.go()
    parts = applications.join()
    used = meter.stop()
    handed = together(parts)
    values = {
        "rate": handed.rate,
        "cpu_s_per_1000": 1000 * handed.cpu_s / handed.messages,
        "busy_cores": used.busy_cores,
    }
    if handed.waits_ms:
        values |= {
            "p50_ms": handed.wait_ms(0.5),
            "p99_ms": handed.wait_ms(0.99),
            "max_ms": handed.wait_ms(1.0),
        }
    if others:
        values["others_p99_ms"] = together(parts[-others:]).wait_ms(0.99)
    return replace(blank, n=handed.messages, values=values, foreign_cores=used.foreign_cores)


def _plans(home: Path, number: int, **more: object) -> list[dict[str, object]]:
    return [
        {"store": str(home / "spool.db"), "number": one, "verb": "send", "domains": 10,
         "warm": True, **more}
        for one in range(number)
    ]  # fmt: skip


def _idle(plan: Plan, blank: Figure, number: int, **more: object) -> Figure:
    with folder() as home, _engine(home, plan):
        return _sent(home, blank, _plans(home, number, **more))


def _draining(plan: Plan, blank: Figure, number: int, seconds: float) -> Figure:
    with folder() as home:
        fill(home, home / "spool.db", plan.many(BACKLOG))
        with _engine(home, plan) as sink:
            sink.wait(plan.many(200), 60)
            return _sent(home, blank, _plans(home, number, seconds=seconds))


def _beside_busy(plan: Plan, blank: Figure, seconds: float) -> Figure:
    with folder() as home, _engine(home, plan):
        plans = _plans(home, 5, seconds=seconds)
        plans[0]["threads"] = BUSY_THREADS
        return _sent(home, blank, plans, others=4)


class _engine:
    """An engine that delivers to a sink, ready; a context manager."""

    def __init__(self, home: Path, plan: Plan) -> None:
        self._sink = Sink()
        self._engine = Engine(
            home, home / "spool.db", relay_to(self._sink.port),
            workers=plan.workers, uvloop=plan.fastest,
        )  # fmt: skip

    def __enter__(self) -> Sink:
        try:
            self._engine.start()
            self._engine.ready()
        except BaseException:
            self.__exit__()
            raise
        return self._sink

    def __exit__(self, *_: object) -> None:
        self._engine.stop()
        self._sink.close()


def _alone(blank: Figure, plans: Callable[[Path], list[dict[str, object]]]) -> Figure:
    """No engine at all: what a call costs by itself."""
    with folder() as home:
        return _sent(home, blank, plans(home))


def _filled(make: Callable[[Path, int], Contender], blank: Figure) -> Figure:
    with folder() as home:
        queue = make(home, 9)  # nothing is delivered: nothing listens there
        try:
            meter = Meter(list)
            seconds = queue.fill(blank.n)
            used = meter.stop()
            values = {"rate": blank.n / seconds, "busy_cores": used.busy_cores}
            return replace(blank, values=values, foreign_cores=used.foreign_cores)
        finally:
            queue.close()


def _syncs(seconds: float) -> float:
    with folder() as home:
        descriptor = os.open(home / "file", os.O_CREAT | os.O_WRONLY)
        try:
            count, until = 0, time.monotonic() + seconds
            while time.monotonic() < until:
                os.write(descriptor, bytes(4096))
                os.fdatasync(descriptor)
                count += 1
            return count / seconds
        finally:
            os.close(descriptor)


def _inserts(seconds: float) -> float:
    with folder() as home:
        database = apsw.Connection(str(home / "plain.db"))
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, body BLOB)")
            count, until = 0, time.monotonic() + seconds
            while time.monotonic() < until:
                database.execute("INSERT INTO message (body) VALUES (?)", (bytes(1024),))
                count += 1
            return count / seconds
        finally:
            database.close()


def accept(plan: Plan) -> Iterator[Figure]:
    """Every form of handing over, ours and the peers' own."""
    seconds = plan.long(SECONDS)
    crowd = PROCESSES if plan.scale == 1 else 4  # a smoke test has fewer
    forms: list[tuple[str, Callable[[Figure], Figure]]] = [
        ("send, 1 process",
         lambda blank: _idle(plan, blank, 1, seconds=seconds)),
        (f"send, {PROCESSES} processes, engine idle until then",
         lambda blank: _idle(plan, blank, crowd, seconds=seconds)),
        (f"send, {PROCESSES} processes, engine draining",
         lambda blank: _draining(plan, blank, crowd, seconds)),
        (f"send, {PROCESSES} processes, no engine",
         lambda blank: _alone(blank, lambda home: _plans(home, crowd, seconds=seconds))),
        ("send, 1 process, no engine",
         lambda blank: _alone(blank, lambda home: _plans(home, 1, seconds=seconds))),
        (f"send, 1 process of {THREADS} threads, no engine",
         lambda blank: _alone(
             blank, lambda home: _plans(home, 1, seconds=seconds, callers=THREADS))),
        ("send of an EmailMessage built per call, 1 process, no engine",
         lambda blank: _alone(
             blank, lambda home: _plans(home, 1, seconds=seconds / 2, verb="email"))),
        ("send, 5 processes, one of them busy with threads",
         lambda blank: _beside_busy(plan, blank, seconds)),
        ("send_many, no engine",
         lambda blank: _alone(
             blank, lambda home: _plans(home, 1, verb="many", messages=plan.many(MANY)))),
    ]  # fmt: skip
    for run in range(1, plan.runs + 1):
        for case, pace in (("4 KiB appended and fdatasync", _syncs),
                           ("SQLite, WAL, FULL: one 1 KiB insert a commit", _inserts)):  # fmt: skip
            value = {"disk_per_s": pace(plan.long(1.0))}
            yield Figure(bench="accept", case=case, who="disk", run=run, values=value)
        for case, measure in forms:
            # applications have no loop; where the engine takes part it is the fastest form
            loop = plan.fastest if "engine" in case and "no engine" not in case else None
            yield attempt(Figure(bench="accept", case=case, uvloop=loop, run=run), measure)
        for name, _, make in contenders(replace(plan, loops=())):
            case = {
                "postfix": "SMTP, 20 connections, delivery held",
                "huey": "one message a call, 1 process",
                "post-office": "500 messages a call, 1 process",
            }[name]
            blank = Figure(
                bench="accept", case=case, who=name, run=run, n=plan.many(SIZES[name][0])
            )
            yield attempt(blank, lambda blank, make=make: _filled(make, blank))  # type: ignore[misc]
