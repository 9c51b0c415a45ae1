"""An engine with nothing to do: what it uses, and how soon a message of then is on the wire.

Contract. CPU is that of supervisor, workers and janitor together, from seven seconds after they
were ready: by then a heartbeat, each five, has shown each worker that writes are told. The wait is
from the call of ``send`` (its sync included) to what the witness saw: its connection accepted, MAIL
read. ``import_ms`` is the median of fresh processes that import the library and open a spool, less
that of processes that do nothing, taken in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from mailstrom import Mailstrom
from tests.support.sockets import eventually
from tools.bench.engine import Engine, environ, relay_to
from tools.bench.figures import Figure
from tools.bench.plan import Plan, attempt, folder, installed
from tools.bench.processes import Meter
from tools.bench.stations import Witness

SETTLE_S = 7.0
WATCH_S = 8.0
WARM = (30, 0.13)
COLD = (20, 0.37)
IMPORTS = 15
MESSAGE = (
    b"From: %s@bench.test\r\nTo: u@d0.test\r\nSubject: wake\r\nMessage-ID: <%s@bench.test>\r\n"
    b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\nword\r\n"
)


def _resting(plan: Plan, blank: Figure) -> Figure:
    with folder() as home:
        engine = Engine(
            home, home / "spool.db", relay_to(9), workers=plan.workers, uvloop=blank.uvloop
        )
        try:
            engine.start()
            engine.ready()
            time.sleep(plan.long(SETTLE_S))
            meter = Meter(engine.roots, memory=False)
            time.sleep(plan.long(WATCH_S))
            used = meter.stop()
            values = {"idle_core_percent": 100 * used.cpu_s / used.wall_s}
            return replace(blank, values=values, foreign_cores=used.foreign_cores)
        finally:
            engine.stop()


def _woken(plan: Plan, blank: Figure, times: int, pause_s: float, idle: str) -> Figure:
    with folder() as home:
        witness = Witness(home)
        settings = relay_to(witness.port)
        settings["sites"]["idle"] = idle
        engine = Engine(
            home, home / "spool.db", settings, workers=plan.workers, uvloop=blank.uvloop
        )
        try:
            engine.start()
            engine.ready()
            called: dict[str, float] = {}
            with Mailstrom(home / "spool.db") as ms:
                for n in range(times + 1):
                    word = f"w{n}"
                    called[f"{word}@bench.test"] = time.monotonic()
                    ms.send(MESSAGE % (word.encode(), word.encode()))
                    time.sleep(pause_s * (0.8 + 0.4 * (n % 7) / 6))  # in no step with any poll
            eventually(lambda: len(list(witness.arrivals())) > times, what="every message there")
            connects, mails = [], []
            for seen in witness.arrivals():
                if seen["sender"] == "w0@bench.test":
                    continue  # the first one finds the route unknown
                since = called[str(seen["sender"])]
                mails.append(1000 * (float(seen["mail"]) - since))
                connects.append(1000 * (float(seen["connected"]) - since))
            values = {
                "wire_p50_ms": statistics.median(mails),
                "wire_p99_ms": sorted(mails)[int(0.99 * len(mails))],
            }
            if blank.case == COLD_CASE:
                values["connect_p50_ms"] = statistics.median(connects)
            return replace(blank, n=times, values=values)
        finally:
            engine.stop()
            witness.close()


COLD_CASE = "send to MAIL, no connection open"


def _imported(plan: Plan, blank: Figure) -> Figure:
    with folder() as home:
        chosen = installed(environ(None, home), home)

        def run(code: str) -> float:
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-P", "-c", code, str(home / "spool.db")],
                env=chosen, cwd=home, check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            return 1000 * (time.perf_counter() - began)

        opened = "import sys, mailstrom; mailstrom.Mailstrom(sys.argv[1])"
        run(opened)  # makes the spool, and the .pyc files
        run("pass")
        times = plan.few(IMPORTS)
        pairs = [(run(opened), run("pass")) for _ in range(times)]
        ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        return replace(blank, n=times, values={"import_ms": ours - bare})


def idle(plan: Plan) -> Iterator[Figure]:
    """Rest, waking, and the library's start."""
    warm, cold = ((plan.few(times), pause) for times, pause in (WARM, COLD))
    for run in range(1, plan.runs + 1):
        for uvloop in plan.loops:
            blank = Figure(bench="idle", case="at rest", uvloop=uvloop, run=run)
            yield attempt(blank, lambda blank: _resting(plan, blank))
            yield attempt(
                replace(blank, case="send to MAIL, a connection open"),
                lambda blank: _woken(plan, blank, *warm, "2s"),
            )
            yield attempt(
                replace(blank, case=COLD_CASE), lambda blank: _woken(plan, blank, *cold, "100ms")
            )
        yield attempt(
            Figure(bench="idle", case="import mailstrom; Mailstrom(path)", run=run),
            lambda blank: _imported(plan, blank),
        )
