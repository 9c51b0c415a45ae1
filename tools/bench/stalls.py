"""Stalls: what a sender and a message see of the janitor's work, and of a report left open.

Contract. An engine delivers what one sender hands over, one message every few milliseconds; noted
are each call's wait (``sender``) and the time from the call to MAIL at the mail host, a connection
open (``MAIL``): what a worker waited for is in that. Three cases: nothing else goes on; the janitor
purges finished mail that is past its retention, without an end while it is watched (``purged a
second``: messages), and checkpoints what that writes; another process, with an SQLite of its own,
holds a read transaction open, and so much was handed over since (not due for a day) that the
write-ahead log has grown over its alarm (``wal_mib``).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mailstrom import Mailstrom
from tests.support.sockets import eventually
from tools.bench.depth import Longest
from tools.bench.engine import Engine, fill, relay_to
from tools.bench.figures import Figure
from tools.bench.goals import PINNED, PURGING
from tools.bench.plan import Plan, attempt, folder
from tools.bench.processes import Meter, Started
from tools.bench.stations import Witness, said

ALONE = "nothing else goes on"
FINISHED = 100_000
BULK = 12_000
SEND_S = 12.0
PAUSE_S = 0.004
DONE_S = 120.0
MESSAGE = (
    b"From: %s@bench.test\r\nTo: u@d0.test\r\nSubject: stall\r\nMessage-ID: <%s@bench.test>\r\n"
    b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\nword\r\n"
)
REPORT = """
import json, sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
database.execute("BEGIN")
database.execute("SELECT count(*) FROM messages").fetchall()
print(json.dumps({"ready": True}), flush=True)
sys.stdin.read()
"""


def _finished(home: Path, store: Path, messages: int) -> None:
    """A spool of messages that are final; nobody delivered them, which purging does not mind."""
    fill(home, store, messages, domains=50)
    with Mailstrom(store, timeout=60) as ms:
        ms.change_all("cancel", everything=True)


def _left(store: Path) -> int:
    with Mailstrom(store, timeout=60) as ms:
        return int(ms.query("SELECT count(*) AS n FROM messages")[0].n)


def _seen(store: Path, witness: Witness, seconds: float) -> dict[str, float]:
    """What the sender's calls and its messages waited."""
    called: dict[str, float] = {}
    waits: list[float] = []
    with Mailstrom(store, timeout=60) as ms:
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(called) < 20:
            word = f"w{len(called)}"
            message = MESSAGE % (word.encode(), word.encode())
            began = time.monotonic()
            ms.send(message)
            waits.append(1000 * (time.monotonic() - began))
            called[f"{word}@bench.test"] = began
            time.sleep(PAUSE_S)

    def mails() -> dict[str, float]:
        return {
            sender: 1000 * (float(one["mail"]) - called[sender])
            for one in witness.arrivals()
            if (sender := str(one["sender"])) in called
        }

    eventually(
        lambda: len(mails()) == len(called), DONE_S, what="every message there", interval=0.3
    )
    first = "w0@bench.test"  # finds no route and no connection
    wires = sorted(wait for sender, wait in mails().items() if sender != first)
    waits = sorted(waits[1:])
    return {
        "stall_p99_ms": waits[int(0.99 * len(waits))],
        "stall_max_ms": waits[-1],
        "wire_p50_ms": statistics.median(wires),
        "wire_p99_ms": wires[int(0.99 * len(wires))],
        "wire_max_ms": wires[-1],
    }


def _measured(plan: Plan, blank: Figure) -> Figure:
    with folder() as home:
        store = home / "spool.db"
        witness = Witness(home)
        settings = relay_to(witness.port)
        beside: list[Started] = []
        if blank.case == PURGING:
            _finished(home, store, plan.many(FINISHED))
            settings["spool.retention"] = {"bodies": "1s", "attempts": "1s", "events": "1s"}
            time.sleep(1.5)  # all of it is past that
        engine = Engine(home, store, settings, workers=plan.workers, uvloop=blank.uvloop)
        try:
            engine.start()
            engine.ready()
            if blank.case == PINNED:
                report = Started([sys.executable, "-c", REPORT, store], piped=True)
                beside.append(report)
                said(report)
                fill(home, store, plan.many(BULK), size=4000, later_s=86_400)
            before = _left(store)
            meter = Meter(engine.roots)
            with Longest(store) as log:
                values = _seen(store, witness, plan.long(SEND_S))
            used = meter.stop()
            values |= {"wal_mib": log.mib, "busy_cores": used.busy_cores}
            if blank.case == PURGING:
                values["purged"] = max(0, before - _left(store)) / used.wall_s
            return replace(blank, values=values, foreign_cores=used.foreign_cores)
        finally:
            for one in beside:
                one.stop()
            engine.stop()
            witness.close()


def stalls(plan: Plan) -> Iterator[Figure]:
    """The three cases in turn."""
    for run in range(1, plan.runs + 1):
        for case in (ALONE, PURGING, PINNED):
            blank = Figure(bench="stalls", case=case, uvloop=plan.fastest, run=run)
            yield attempt(blank, lambda blank: _measured(plan, blank))
