"""A supervisor whose lock file is deleted: one serves the spool all the same."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from mailstrom.supervisor.instance import lock_path

if TYPE_CHECKING:
    from tests.supervisor.conftest import Stage


def test_a_deleted_lock_is_taken_again_and_still_refuses_the_next(stage: Stage) -> None:
    first = stage.start()
    first.wait("supervisor.ready")
    path = lock_path(str(stage.store))
    path.unlink()

    (line,) = first.wait("engine.failed", where="lock")
    assert "taken again" in line["error"]
    assert json.loads(path.read_bytes())["pid"] == first.pid
    second = stage.start()

    assert second.wait_exit() == 75
    assert f"pid {first.pid} " in second.stderr
    first.signal(signal.SIGTERM)
    assert first.wait_exit() == 0


def test_whoever_lost_its_lock_to_another_drains_and_leaves_the_spool_to_it(stage: Stage) -> None:
    first = stage.start()
    first.wait("supervisor.ready")
    first.signal(signal.SIGSTOP)  # so that the second one is faster
    lock_path(str(stage.store)).unlink()
    second = stage.start()
    second.wait("supervisor.ready")
    first.signal(signal.SIGCONT)

    (line,) = first.wait("engine.failed", where="lock")
    assert f"pid {second.pid} on host" in line["error"]
    assert first.wait_exit() == 75
    assert first.lines("supervisor.draining")
    assert second.process.poll() is None
    assert not second.lines("engine.failed")
    second.signal(signal.SIGTERM)
    assert second.wait_exit() == 0


def test_a_lock_that_cannot_be_looked_at_costs_no_service_and_is_said_once(stage: Stage) -> None:
    first = stage.start()
    first.wait("supervisor.ready")
    folder = lock_path(str(stage.store)).parent
    away = folder.with_suffix(".away")
    folder.rename(away)
    first.wait("engine.failed", where="lock")
    for count in (1, 2, 3):  # each is obeyed in a turn of its own, and each turn looks
        first.signal(signal.SIGHUP)
        first.wait("config.reloaded", count=count)
    away.rename(folder)

    assert len(first.lines("engine.failed", where="lock")) == 1
    first.signal(signal.SIGTERM)
    assert first.wait_exit() == 0
