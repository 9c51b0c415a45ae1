"""A lane that always raises: its site rests longer each time, and nobody else's mail waits."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Cause
from mailstrom.policy.site import crash_s
from mailstrom.testing.script import Script
from tests.scenarios.conftest import MakeEngine
from tests.scenarios.test_doctor import doctor
from tests.support.engine import DEADLINE_S, Engine, Line
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.torture.launch import with_faults

pytestmark = pytest.mark.timeout(180)

SAID = "RuntimeError: injected: nobody foresaw this"


def crashes(engine: Engine, count: int) -> list[Line]:
    """So many lines about lanes that raised; waits for them."""
    return engine.wait_log("engine.failed", count=count, error=SAID)


def test_a_site_whose_lanes_always_raise_rests_longer_each_time_and_alone(
    make_engine: MakeEngine, network: Network, tmp_path: Path
) -> None:
    bad, _ = network.site(Script())
    good, _ = network.site(Script())
    spare = tmp_path / "no-more"
    faults = {"torture_lane": {"domain": bad, "spare": str(spare)}}
    engine = make_engine(workers=1)
    ids = [engine.send(f"{name}@{bad}") for name in "abc"]
    engine.start(env=with_faults(faults))
    rests = [crash_s(1), crash_s(2), crash_s(3)]

    def rested() -> list[Line]:
        # A lane that was leased in the moment of a crash crashes, too: that is the same crash.
        first = {line["pause_s"]: line for line in reversed(crashes(engine, 1))}
        return [first[rest] for rest in rests] if crash_s(3) in first else []

    lines = eventually(rested, DEADLINE_S, what="three crashes")
    at = {line["pause_s"]: datetime.fromisoformat(line["ts"]) for line in lines}
    for line in crashes(engine, 3):
        late = datetime.fromisoformat(line["ts"]) - at.get(
            line["pause_s"], datetime.max.replace(tzinfo=UTC)
        )
        assert late.total_seconds() < 0.5, "it crashed while its site was to rest"
    for one, next in pairwise(lines):
        waited = datetime.fromisoformat(next["ts"]) - datetime.fromisoformat(one["ts"])
        assert waited.total_seconds() >= one["pause_s"] - 0.1, "leased again before its time"
    fine = engine.send(f"a@{good}")
    assert engine.final(fine).succeeded

    def told() -> bool:
        found = engine.ms.why(ids[0])[0]
        return found.cause is Cause.SITE_SUSPENDED and "Mailstrom itself failed" in found.detail

    eventually(told, DEADLINE_S, what="why to say it")
    (row,) = engine.rows("SELECT * FROM destinations WHERE reason = 'local'")
    assert row.last_reply == f"internal error: {SAID}"
    assert row.suspended_by.startswith("worker ")

    def found() -> list[Any]:
        return [one for one in doctor(engine).found["queue.sites"] if "itself" in one["found"]]

    [site] = eventually(found, DEADLINE_S, what="doctor to say it", interval=0.2)
    assert (site["level"], site["evidence"]["reason"]) == ("warning", "local")
    assert "report it" in site["advice"]
    assert [engine.attempts(id) for id in ids] == [[], [], []], "nothing was charged"

    spare.touch()
    assert engine.ms.retry(ids[0]) == 1, "a person may end the pause"
    assert all(engine.final(id).succeeded for id in ids)
    assert [len(engine.attempts(id)) for id in ids] == [1, 1, 1]
    assert len(engine.log("engine.failed")) == len(crashes(engine, 3)), "no other trouble"


def test_a_message_that_ends_its_lane_each_time_keeps_no_other_of_its_site_waiting(
    make_engine: MakeEngine, network: Network, tmp_path: Path
) -> None:
    domain, (host,) = network.site(Script())
    spare = tmp_path / "no-more"
    faults = {"torture_lane": {"domain": f"bad@{domain}", "spare": str(spare)}}
    engine = make_engine(workers=1)
    bad = engine.send(f"bad@{domain}")
    fine = [engine.send(f"u{number}@{domain}") for number in range(40)]
    engine.start(env=with_faults(faults))
    assert all(engine.final(id).succeeded for id in fine)
    assert crashes(engine, 1)
    assert f"bad@{domain}" not in {name for dot in host.dots for name in dot.recipients}

    spare.touch()
    engine.ms.retry(bad)
    assert engine.final(bad).succeeded
