"""The stand tells what happened, whatever it is, and the meter misses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mailstrom.testing.script import Act, Rule, Script
from tests.hostile.meter import Meter
from tests.hostile.stand import Stand, standing
from tests.hostile.table import MIB, Row, markdown
from tests.support.engine import DEADLINE_S
from tests.support.sockets import eventually


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("stand")) as stand:
        yield stand


def refused(stand: Stand) -> str:
    domain, _ = stand.network.site(Script())
    address = f"refuse@{domain}"
    id = stand.engine.send(address)
    stand.engine.final(id)
    return stand.outcome(id, address)


def test_a_case_that_went_as_wanted_is_clean(stand: Stand) -> None:
    row = stand.measured("refuses", "failed bounced, 1 charged", lambda: refused(stand))
    assert row.clean
    assert row.seconds is not None
    assert row.cpu_s is not None
    assert row.memory is not None


def test_another_outcome_is_not_clean(stand: Stand) -> None:
    row = stand.measured("refuses", "delivered, 1 charged", lambda: refused(stand))
    assert not row.clean
    assert row.seen == "failed bounced, 1 charged"
    assert "**failed bounced, 1 charged**" in markdown([row])


def test_a_case_without_an_end_is_told_and_the_others_go_on(stand: Stand) -> None:
    def never() -> str:
        eventually(lambda: False, 0.1, what="a miracle")
        return "a miracle"

    row = stand.measured("is silent", "a miracle", never)
    assert (row.seen, row.clean) == ("no outcome", False)
    assert "a miracle" in row.findings[0]


def test_a_connection_that_stays_is_told(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stand.let_go().clean
    silent = Script(rules=(Rule(stage="greeting", act=Act.SILENCE),))
    domain, (host,) = stand.network.site(silent)
    stand.engine.send(f"a@{domain}")
    eventually(lambda: host.open == 1, DEADLINE_S, what="a connection")
    monkeypatch.setattr("tests.hostile.stand.DEADLINE_S", 0.2)
    assert stand.let_go().seen == "1 open"


def test_a_worker_that_dies_of_it_is_a_finding(stand: Stand) -> None:
    (pid,) = stand.engine.live()

    def deadly() -> str:
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: len(live := stand.engine.live()) == 1 and live != [pid],
            DEADLINE_S,
            what="another worker",
        )
        return "dead"

    assert stand.measured("kills", "dead", deadly).findings == ("the worker did not survive it",)


GREEDY = """
print(flush=True)
input()
b = bytearray(1 << 26)
del b
print(flush=True)
input()
"""


def test_what_comes_and_goes_between_two_looks_is_counted() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        meter = Meter(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert 63 * MIB < meter.memory < 66 * MIB
        child.kill()


@pytest.mark.parametrize("findings", [(), ("a second header",)])
def test_a_finding_makes_a_row_unclean(findings: tuple[str, ...]) -> None:
    assert Row(case="c", wanted="w", seen="w", findings=findings).clean is not bool(findings)
