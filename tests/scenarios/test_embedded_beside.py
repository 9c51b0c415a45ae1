"""The engine inside an application next to a supervisor: who keeps the spool, who tells clients."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from mailstrom.control import SUPERVISOR_LOCK
from mailstrom.lockfile import LockFile, holder
from mailstrom.testing.script import Rule, Script
from mailstrom_workers import delivery
from tests.scenarios.conftest import MakeEngine
from tests.support.embedded import application, tables
from tests.support.engine import DEADLINE_S, alive, mail
from tests.support.network import HELD_S, Network
from tests.support.sockets import eventually

# The janitor's role


def test_next_to_a_supervisor_it_stands_by_and_takes_over_when_that_is_gone(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1).start()
    engine.ms.start(config=tables(network))
    assert not engine.ms.worker_status().janitor
    domain, _ = network.site(None)
    assert engine.final(engine.send(f"a@{domain}")).succeeded

    assert engine.stop() == 0

    eventually(lambda: engine.ms.worker_status().janitor, DEADLINE_S, what="the role")
    assert engine.final(engine.send(f"b@{domain}")).succeeded
    assert engine.ms.stop()


def test_a_killed_janitor_of_a_supervisor_comes_back_by_itself(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1).start()
    engine.ms.start(config=tables(network))
    (pid,) = engine.live("janitor")[:1]

    os.kill(pid, signal.SIGKILL)

    # The killed one may have died before it could log that it was ready.
    again = engine.wait_log("worker.started", kind="janitor", count=2)[1]
    engine.wait_log("worker.ready", pid=again["pid"])
    engine.wait_log("claim.lapsed", lost_pid=pid)
    assert not engine.ms.worker_status().janitor
    assert engine.ms.stop()


def test_the_role_is_taken_when_a_living_supervisor_leaves_it_free_for_long(
    network: Network, file_ms: Mailstrom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom_workers import role

    monkeypatch.setattr(role, "PATIENCE_MS", 3_600_000)
    file_ms.stats()
    supervisor = LockFile(Path(f"{tmp_path / 'spool.db'}-run") / SUPERVISOR_LOCK)
    assert supervisor.acquire()
    try:
        file_ms.start(config=tables(network))
        assert not file_ms.worker_status().janitor
        monkeypatch.setattr(role, "PATIENCE_MS", 500)
        eventually(lambda: file_ms.worker_status().janitor, DEADLINE_S, what="the role")
        other = LockFile(supervisor.path.with_name("janitor.lock"))
        eventually(other.acquire, DEADLINE_S, what="the role left to the supervisor's janitor")
        eventually(lambda: not file_ms.worker_status().janitor, DEADLINE_S, what="no second one")
        other.release()
        eventually(lambda: file_ms.worker_status().janitor, DEADLINE_S, what="the role again")
    finally:
        supervisor.release()


def test_an_application_that_stands_still_does_not_keep_the_role_from_a_supervisor(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1)
    busy = Rule(stage="greeting", code=421, text="not now")
    domain, _ = network.site(Script(rules=(busy,)))
    with application(engine.store, tables(network)) as process:
        role = Path(f"{engine.store}-run") / "janitor.lock"
        assert holder(role) == {"pid": process.pid}
        engine.start()
        eventually(lambda: holder(role).get("pid") in engine.live("janitor"), DEADLINE_S)

        os.kill(process.pid, signal.SIGSTOP)

        (worker,) = [pid for pid in engine.live() if pid != process.pid]
        os.kill(worker, signal.SIGKILL)
        engine.wait_log("claim.lapsed", lost_pid=worker)
        soon = timedelta(seconds=1)  # from the moment at which it is accepted
        status = engine.final(engine.ms.send(mail(f"a@{domain}"), expires_at=soon))
        (recipient,) = status.recipients.values()
        assert str(recipient.reason) == "expired"
        assert alive(process.pid)


# Next to a supervisor


def test_both_deliver_and_the_connection_limit_holds_over_both(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1, settings={"sites": {"connections": 4}}).start()
    # One is taken at once, since a site that nobody knows gets one connection; four are held back.
    held = Rule(stage="dot", delay=HELD_S, first=2, last=5)
    domain, (host,) = network.site(Script(rules=(held,)))
    engine.ms.start(config=tables(network, sites={"connections": 4}))
    names = [f"u{number:03}@{domain}" for number in range(200)]

    ids = engine.ms.send_many(mail(name) for name in names)
    eventually(lambda: len(host.dots) == 5, DEADLINE_S, what="four dots at once")
    network.pass_time()

    assert all(engine.final(id).succeeded for id in ids)
    assert Counter(a for dot in host.dots for a in dot.recipients) == dict.fromkeys(names, 1)
    (mine,) = engine.ms.worker_status().workers
    shares = engine.rows("SELECT worker, count(*) AS n FROM attempts GROUP BY worker")
    assert {row.worker == mine for row in shares} == {True, False}, shares
    assert host.most_open <= 4
    assert engine.ms.stop()


def test_the_supervisors_configuration_is_the_one_that_clients_are_told(
    network: Network, make_engine: MakeEngine
) -> None:
    streams = {"stream.bulk": {"priority": "low"}}
    engine = make_engine(workers=1, settings={"retry": {"max_age": "3h"}, **streams}).start()
    engine.ms.start(config=tables(network, stream={"other": {"priority": "high"}}))

    id = engine.ms.send(mail("a@later.test"), stream="bulk", send_at=_in_a_day())

    sql = "SELECT priority, expires_ms - send_ms AS age FROM messages WHERE id = ?"
    ((priority, age),) = engine.rows(sql, id)
    assert (str(priority), age) == ("low", 3 * 3_600_000)
    assert engine.ms.cancel(id) == 1
    assert engine.ms.stop()


def test_once_the_supervisor_has_left_clients_are_told_the_applications_configuration(
    network: Network, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LEAD_S", 0.1)
    engine = make_engine(workers=1, settings={"stream.bulk": {"priority": "low"}}).start()
    engine.ms.start(config=tables(network, stream={"other": {"priority": "high"}}))
    streams = "SELECT name FROM stream WHERE name IN ('bulk', 'other')"
    assert [row.name for row in engine.rows(streams)] == ["bulk"]

    assert engine.stop() == 0

    def told() -> bool:
        return [row.name for row in engine.rows(streams)] == ["other"]

    eventually(told, DEADLINE_S, what="the application's stream")
    id = engine.ms.send(mail("a@later.test"), stream="other", send_at=_in_a_day())
    ((priority,),) = engine.rows("SELECT priority FROM messages WHERE id = ?", id)
    assert str(priority) == "high"
    assert engine.ms.cancel(id) == 1
    assert engine.ms.stop()


def _in_a_day() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)
