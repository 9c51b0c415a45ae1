"""``why`` and ``doctor`` where nothing can be recorded, and where a message ends who sends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailstrom import Cause
from mailstrom.policy.site import crash_s
from mailstrom.storage.facts import ROOM_BYTES
from mailstrom.testing.script import Script
from tests.scenarios.conftest import MakeEngine, sound
from tests.scenarios.test_doctor import doctor
from tests.scenarios.test_why import because
from tests.support.engine import DEADLINE_S, Engine
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.torture.full_disk import disk
from tests.torture.launch import with_faults

pytestmark = pytest.mark.timeout(180)

LOSSES = 5
"""So often a recipient may be lost on the wire in a row, then it is held."""
MARK = "the end of a lane"


def test_with_little_room_for_results_nothing_is_claimed_and_both_say_so(
    network: Network, tmp_path: Path
) -> None:
    domain, (host,) = network.site(Script())
    with disk(tmp_path / "small", "48m") as place:
        if not place.mounted:
            pytest.skip("this process may not mount")
        with sound(Engine(network, place.folder, workers=1)) as engine:
            engine.start()
            assert engine.final(engine.send(f"a@{domain}")).succeeded
            place.fill(leave=ROOM_BYTES // 2)
            engine.wait_log("engine.failed", where="disk")
            id = engine.send(f"b@{domain}")

            found = because(engine, id, Cause.DISK_LOW)
            assert found.detail.startswith("due; nothing is claimed with ")
            assert found.change == "room for results: 8 MiB or more"
            told = doctor(engine)
            assert (told.levels["spool.room"], told.code) == ("problem", 1)
            [room] = told.found["spool.room"]
            assert 0 < room["evidence"]["free_bytes"] < ROOM_BYTES
            assert "nothing is claimed" in room["found"]
            assert len(host.dots) == 1, "nothing went out meanwhile"

            place.empty()
            assert engine.final(id).succeeded
            told = doctor(engine)
            assert told.levels["spool.room"] == "warning", "48 MiB are little"
            assert because(engine, id, Cause.FINAL_DELIVERED)


def test_what_ends_its_lane_each_time_is_held_and_both_say_so(
    network: Network, make_engine: MakeEngine
) -> None:
    domain, (host,) = network.site(Script())
    engine = make_engine(workers=1)
    engine.start(env=with_faults({"torture_poison": {"memory": MARK}}))
    id = engine.send(f"a@{domain}", text=f"{MARK}\n")

    def lost() -> int:
        return sum(row.in_doubt for row in engine.attempts(id))

    for losses in range(1, LOSSES + 1):
        eventually(lambda: lost() >= losses, DEADLINE_S, what=f"{losses} losses")  # noqa: B023
        if losses < LOSSES:
            engine.ms.retry(id)  # each waits longer than the one before
    found = because(engine, id, Cause.HELD_POISON)
    assert found.status == "held"
    assert "queue release" in found.change
    assert lost() == LOSSES
    told = doctor(engine)
    [held] = told.found["queue.held"]
    assert held["level"] == "warning"
    assert (held["evidence"]["reason"], held["evidence"]["recipients"]) == ("poison", 1)
    fine = engine.send(f"b@{domain}")
    assert engine.final(fine).succeeded, "its neighbours go on"

    assert engine.ms.release(id) == 1
    eventually(lambda: lost() == LOSSES + 1, DEADLINE_S, what="one loss more")
    because(engine, id, Cause.HELD_POISON)
    [dot] = host.dots
    assert list(dot.recipients) == [f"b@{domain}"], "nothing of it came out"
    assert engine.log("engine.failed")[-1]["pause_s"] == crash_s(1), "a host took mail meanwhile"
    assert engine.ms.cancel(id) == 1
    assert doctor(engine).levels["queue.held"] == "ok"
