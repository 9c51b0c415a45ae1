"""Thousands of domains of a dead DNS, and good new ones that were handed in behind them.

Contract. Messages are octets that were made before: made one by one they come more slowly than
their domains are asked for, and nothing is in front of the good ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from email.policy import SMTP

from mailstrom_workers.places import MOST_LOOKUPS
from tests.hostile.dns_peer import MX, mx, only, right
from tests.hostile.dns_world import world
from tests.hostile.table import MIB, Row
from tests.support.engine import DEADLINE_S, mail
from tests.support.sockets import eventually
from tests.support.trial import Plan

GOOD = 50
MOST_MEMORY = 64 * MIB
MOST_FILES = 2 * MOST_LOOKUPS + 464
"""Lookups, connections with their own, and what a worker has in any case."""


def rows(plan: Plan) -> Iterator[Row]:
    """New ones behind those that nobody knows yet, then behind those that failed."""
    dead = plan.pick(1_500, 5_000)
    # the default for 5,000; as long for fewer that whoever waits for them would be seen
    settings = {"dns": {"timeout": f"{plan.pick(60, 5)}s"}}
    with world(plan, "dead", settings) as names:
        engine = names.stand.engine
        names.peer.says("dead.test", lambda question: ())
        host = names.well("mx.good.test")
        names.peer.says("good.test", only(MX, lambda question: right(question, mx(host))))
        most_files = 0

        def routed(turn: str) -> str:
            nonlocal most_files
            (pid,) = engine.live()
            sql = (
                "SELECT count(*) AS n FROM recipients"
                f" WHERE status = 'delivered' AND domain LIKE '{turn}%.good.test'"
            )
            deadline = time.monotonic() + DEADLINE_S

            def probe() -> bool:
                nonlocal most_files
                most_files = max(most_files, len(os.listdir(f"/proc/{pid}/fd")))
                return bool(engine.rows(sql)[0].n == GOOD)

            eventually(probe, deadline - time.monotonic(), what=f"{GOOD} deliveries")
            failed = engine.rows("SELECT count(*) AS n FROM recipients WHERE status = 'failed'")
            return f"{GOOD} delivered, {failed[0].n} failed"

        def failed_ones() -> int:
            sql = "SELECT count(*) AS n FROM domains WHERE result = 'temporary'"
            return int(engine.rows(sql)[0].n)

        def behind(turn: str) -> str:
            engine.ms.send_many(octets(f"a@{turn}{n}.good.test") for n in range(GOOD))
            late = plan.long and turn == "new" and failed_ones() > dead // 2
            return routed(turn) + (", most dead ones were asked for before" if late else "")

        wanted = f"{GOOD} delivered, 0 failed"
        engine.ms.send_many([octets(f"a@d{n}.dead.test") for n in range(dead)])
        yield names.many(
            f"{GOOD} good domains behind {dead:,} of a dead DNS", wanted,
            lambda: behind("new"), MOST_MEMORY,
        )  # fmt: skip
        at_least = dead - MOST_LOOKUPS
        eventually(lambda: failed_ones() >= at_least, 60, what="domains that failed")
        yield names.many(
            "the same, when those are known to fail", wanted,
            lambda: behind("late"), MOST_MEMORY,
        )  # fmt: skip
        yield Row(
            case="descriptors of the worker meanwhile", wanted="bounded",
            seen="bounded" if most_files <= MOST_FILES else f"{most_files} open",
            tried=dead,
        )  # fmt: skip


def octets(address: str) -> bytes:
    """A small finished message."""
    return mail(address).as_bytes(policy=SMTP)
