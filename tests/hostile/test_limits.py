"""The short form of the group, and that its judge objects: lost, doubled, charged, busy, untold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom.testing.script import Rule, Script
from tests.hostile import limits, limits_engine, limits_logs
from tests.hostile.table import Row
from tests.support.engine import Engine
from tests.support.network import Network
from tests.support.trial import Plan

pytestmark = pytest.mark.timeout(300)


def test_nothing_is_lost_where_this_machine_lacks_something(tmp_path: Path) -> None:
    rows = list(limits.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) >= 10


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Network() as network, Engine(network, tmp_path, workers=1) as engine:
        yield engine


def test_what_failed_was_charged_or_came_twice_is_told(engine: Engine) -> None:
    domain, hosts = engine.network.site(Script())
    assert limits.end(engine, hosts, [engine.send(f"a@{domain}")]) == limits.DELIVERED
    hosts[0].dots.append(hosts[0].dots[0])
    id = engine.send(f"b@{domain}")
    assert limits.end(engine, hosts, [id]).startswith("3 came, 2 of them different")
    del hosts[0].dots[1:]
    assert limits.end(engine, hosts, [engine.send(f"refuse@{domain}")]) == "0 unknown, 1 ['failed']"
    assert limits.end(engine, hosts, ["no-such-message"]) == "1 unknown, 0 []"
    once = engine.send(f"defer-once@{domain}")
    assert limits.end(engine, hosts, [once]) == "all delivered once, 1 charged for a failure"


def test_a_process_that_spins_is_busy_and_one_that_sleeps_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "LOOK_S", 1.0)
    monkeypatch.setattr(limits, "BUSY", 0.05)  # others have the processors, too
    for code, wanted in (("while True: pass", True), ("import time; time.sleep(60)", False)):
        with subprocess.Popen([sys.executable, "-S", "-c", f"print(flush=True)\n{code}"],
                              stdout=subprocess.PIPE) as child:  # fmt: skip
            assert child.stdout is not None
            child.stdout.readline()
            try:
                assert bool(limits.busy(child.pid)) is wanted
            finally:
                child.kill()


def test_an_engine_that_stops_delivering_without_its_log_is_no_clean_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_logs, "WAIT_S", 2.0)

    def mute(engine: limits_engine.Told, through: limits_logs.Through) -> str:
        read, write = os.pipe()
        engine.begin(write)
        os.close(write)
        os.close(read)
        engine.stop()
        return f"{through()}, exit 0"

    row: Row = limits_logs._row(Plan(folder=tmp_path), "mute", limits_logs.WANTED, mute)
    assert (row.seen, row.clean) == ("no outcome", False)


def test_what_a_slow_host_costs_is_no_lack(engine: Engine) -> None:
    """The judge waits for the end of the mail, however it comes."""
    slow = Script(rules=[Rule(stage="dot", delay=1.0)])
    domain, hosts = engine.network.site(slow)
    assert limits.end(engine, hosts, [engine.send(f"a@{domain}")]) == limits.DELIVERED
