"""Applications with the engine inside: their configuration, log and process.

Processes are ended by the ids that they, or the engine's own rows, name.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mailstrom import Mailstrom
from mailstrom.testing.script import Act, Rule, Script
from tests.support import leash
from tests.support.engine import DEADLINE_S, NAMES, PEERS, STAGES, environment
from tests.support.network import HELD_S, Network

APPLICATION = Path(__file__).parent.parent / "scenarios" / "embedded_app.py"
SILENT_ONCE = Script(rules=(Rule(stage="dot", act=Act.SILENCE, last=1),))
MUTE_ONCE = Script(rules=(Rule(stage="mail", act=Act.SILENCE, last=1),))
SLOW_ONCE = Script(rules=(Rule(stage="dot", delay=HELD_S, last=1),))

Tables = dict[str, Any]


def tables(network: Network, **more: dict[str, object]) -> Tables:
    """A configuration for this network, as an application writes it."""
    found: Tables = {
        "hostname": "sender.test",
        "delivery": {"port": network.port},
        "dns": {
            "nameservers": [f"127.0.0.1:{network.dns.port}"],
            "allow_loopback": True,
            "timeout": NAMES,
        },
        "retry": {"schedule": ["1s"], "jitter": 0.0},
        "sites": {"idle": "200ms", "suspend": ["1s"]},
        "timeouts": dict.fromkeys(STAGES, PEERS),
    }
    for name, table in more.items():
        found[name] = {**found.get(name, {}), **table}
    return found


class Records(logging.Handler):
    """What an application's logging was given."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def words(self) -> Counter[str]:
        return Counter(str(record.msg) for record in self.kept)


@contextmanager
def heard(name: str = "mailstrom") -> Iterator[Records]:
    """The records of a logger, for as long as the block lasts."""
    logger, records, level = logging.getLogger(name), Records(), logging.getLogger(name).level
    logger.addHandler(records)
    logger.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)


@contextmanager
def application(store: Path, config: Tables, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process with the engine inside, once it says ready; killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(APPLICATION), str(store), json.dumps(config), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=store.parent,
        env=environment(),
        text=True,
        start_new_session=True,
    )
    leash.hold(process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            assert process.stdout.readline() == f"ready {process.pid}\n"
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE_S)
            leash.let_go(process.pid)


def kept() -> tuple[int, Counter[str]]:
    """What this process holds: how many descriptors, and its threads by name.

    What earlier tests left to the collector is collected first, or it would be counted here.
    """
    gc.collect()
    threads = Counter(thread.name for thread in threading.enumerate())
    return len(os.listdir("/proc/self/fd")), threads


def nothing_left_since(before: tuple[int, Counter[str]]) -> bool:
    """Whether nothing is held that was not held then.

    Less may be: what an earlier test's closing peers held goes when they hear of it.
    """
    descriptors, threads = kept()
    return descriptors <= before[0] and threads <= before[1]


def state_of(ms: Mailstrom) -> str:
    return str(ms.worker_status().state)
