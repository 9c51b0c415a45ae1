"""Stories of ``why``: each cause is brought about by real servers, processes and people.

What ends, ends: a host that holds its answer back gives it before the test is over, a process that
was stopped goes on, so that every spool is sound and every engine drains.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailstrom import Cause, Mailstrom, Waiting
from mailstrom.clock import wall_ms
from mailstrom.storage.sqlite.poison import poison_path
from mailstrom.storage.sqlite.wal import LEAST_LIMIT_BYTES
from mailstrom.testing.script import Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.embedded import tables
from tests.support.engine import DEADLINE_S, Engine, environment, mail
from tests.support.network import HELD_S, Network
from tests.support.sockets import eventually

pytestmark = pytest.mark.timeout(180)

LASTING = {"retry": {"schedule": ["1h"], "jitter": 0.0}, "sites": {"suspend": ["1h"]}}
HELD_DOT = Script(rules=(Rule(stage="dot", delay=HELD_S),))
WHY = (sys.executable, "-m", "mailstrom", "why")
PIN = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM message").fetchall()
print("pinned", flush=True)
sys.stdin.read()
"""


def because(engine: Engine, name: str, cause: Cause, *, by: str = "") -> Waiting:
    """Wait until this is why the only recipient waits, by somebody whose name begins so."""
    return waits(engine.ms, name, cause, by=by)


def waits(ms: Mailstrom, name: str, cause: Cause, *, by: str = "") -> Waiting:
    """The same, asked of any client."""
    seen: list[Waiting] = []

    def probe() -> Waiting | None:
        seen[:] = ms.why(name)
        (found,) = seen
        return found if found.cause is cause and (found.by or "").startswith(by) else None

    try:
        return eventually(probe, DEADLINE_S, what=f"{cause} for {name}")
    except BaseException as error:
        error.add_note(f"seen last: {seen}")
        raise


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes of this test's own engine stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_what_waits_by_itself_says_until_when_and_by_whose_word(
    make_engine: MakeEngine, network: Network
) -> None:
    refusing = Script(rules=(Rule(stage="rcpt", code=451, enhanced="4.7.1", text="later"),))
    later, _ = network.site(refusing)
    dead, lost, none = network.new_domain(), network.new_domain(), network.new_domain()
    network.route(dead, [network.nobody()])
    network.zone(lost, "SERVFAIL")
    network.zone(none, {"MX": ["0 ."], "TTL": 600})
    engine = make_engine(workers=1, settings=LASTING).start()
    tomorrow = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    scheduled = engine.send(f"a@{later}", send_at=tomorrow)
    ids = {domain: engine.send(f"a@{domain}") for domain in (later, dead, lost, none)}

    found = because(engine, scheduled, Cause.SCHEDULED)
    assert found.until == tomorrow
    found = because(engine, ids[later], Cause.NOT_DUE)
    assert found.by == f"mx1.{later}"
    assert f"after mx1.{later} said: 451 4.7.1 later" in found.detail
    assert found.until is not None
    assert found.until > found.at + timedelta(minutes=50)
    found = because(engine, ids[dead], Cause.SITE_SUSPENDED)
    (row,) = engine.rows("SELECT * FROM destinations WHERE site = ?", found.site)
    assert found.by == row.suspended_by
    assert found.until is not None
    assert round(found.until.timestamp() * 1000) == row.suspended_until_ms
    assert row.last_reply in found.detail
    found = because(engine, ids[lost], Cause.DNS_TEMPORARY)
    assert found.until is not None
    assert "SERVFAIL" in found.detail
    found = because(engine, ids[none], Cause.FINAL_FAILED)
    assert f"by the same answer for {none} (null_mx) until " in found.change

    assert {one.message_id for one in engine.ms.why(f"a@{later}")} == {scheduled, ids[later]}
    assert engine.ms.hold(scheduled) == 1
    assert because(engine, scheduled, Cause.HELD_BY_USER).by == "a person"
    assert engine.ms.why(f"a@{none}") == []

    ran = subprocess.run(
        [*WHY, ids[dead], f"a@{later}", "--json", "--store", str(engine.store)],
        capture_output=True, text=True, env=environment(), check=True, timeout=DEADLINE_S,
    )  # fmt: skip
    causes = [json.loads(line)["cause"] for line in ran.stdout.splitlines()]
    assert causes == ["site_suspended", "held_by_user", "not_due"]

    target = str(engine.folder / "copy.db")
    engine.ms.backup(target)
    with Mailstrom(target) as copy:
        (found,) = copy.why(ids[dead])
        assert found.cause is Cause.COPIED
        assert str(engine.store) in found.detail


def test_what_waits_for_a_host_says_who_has_it_and_what_is_in_use(
    make_engine: MakeEngine, network: Network
) -> None:
    held = Script(rules=(Rule(stage="dot", delay=HELD_S, first=2),))
    domain, (host,) = network.site(held)
    mute, _ = network.site(Script(rules=(Rule(stage="greeting", delay=HELD_S),)))
    slow, other = network.new_domain(), network.new_domain()
    network.zone(slow, {"MX": {"values": [f"10 mx1.{domain}."], "delay": HELD_S}})
    network.route(other, [host.host])
    # Nothing goes behind a dot that is not answered; what was opened ahead there is given back.
    delivery = {"max_connections": 3, "pipelining": "none"}
    settings = {"sites": {"connections": 2}, "delivery": delivery}
    engine = make_engine(workers=1, settings=settings).start()
    (pid,) = engine.live()
    assert engine.final(engine.send(f"first@{domain}")).succeeded

    wire = [engine.send(f"a{number}@{domain}") for number in range(2)]
    eventually(lambda: len(host.dots) == 3, DEADLINE_S, what="a dot of each on a lane of its own")
    for id in wire:
        found = because(engine, id, Cause.SENDING)
        assert found.by is not None
        assert f"(pid {pid} on " in found.by
        assert f"mx1.{domain} [{host.host}] since " in found.detail
    third = engine.send(f"a3@{domain}")
    found = because(engine, third, Cause.SITE_LIMIT)
    assert (found.lanes, found.lanes_limit, found.ahead) == (2, 2, 0)
    claimed = engine.send(f"a@{mute}")
    found = because(engine, claimed, Cause.CLAIMED)
    assert f"(pid {pid} on " in str(found.by)
    routed = engine.send(f"a@{slow}")
    (row,) = engine.rows("SELECT id FROM workers WHERE pid = ?", pid)
    found = because(engine, routed, Cause.ROUTE_PENDING, by=f"worker {row.id} (pid {pid} on ")
    assert f"looks up the mail hosts of {slow} now" in found.detail
    # Three connections are open, as many as may work: their hosts keep them waiting.
    because(engine, engine.send(f"a@{other}"), Cause.SENDING)

    engine.signal(signal.SIGTERM)
    found = because(engine, third, Cause.DRAINING)
    assert found.by is not None
    network.pass_time()
    assert engine.wait_exit() == 0
    assert because(engine, third, Cause.NO_WORKER).change == "start 'mailstrom serve'"
    for id in (claimed, routed):
        engine.ms.cancel(id)


def test_a_killed_engine_leaves_lost_claims_and_nobody(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, (host,) = network.site(Script(rules=(Rule(stage="dot", delay=HELD_S, last=1),)))
    engine = make_engine(workers=1).start()
    (pid,) = engine.live()
    id = engine.send(f"a@{domain}", on_doubt="hold")
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    because(engine, id, Cause.SENDING)

    engine.kill_all()

    found = because(engine, id, Cause.WORKER_LOST)
    assert f"(pid {pid} on " in str(found.by)
    assert "start 'mailstrom serve'" in found.change
    next_one = engine.send(f"b@{domain}")
    found = because(engine, next_one, Cause.NO_WORKER)
    assert f"(pid {pid} on " in found.detail

    engine.start()
    found = because(engine, id, Cause.HELD_IN_DOUBT)
    assert f"mailstrom resolve {id} " in found.change
    assert engine.final(next_one).succeeded
    assert because(engine, next_one, Cause.FINAL_DELIVERED).until is None
    assert engine.ms.resolve(id, "delivered") == 1


def test_while_a_worker_stands_still_what_is_due_says_what_it_would_meet(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, _ = network.site(Script())
    none, fresh = network.new_domain(), network.new_domain()
    network.zone(none, {"MX": ["0 ."], "TTL": 600})
    settings = {"sites": {"idle": "200ms"}, "supervisor": {"watchdog": "120s"}}
    engine = make_engine(workers=1, settings=settings).start()
    assert engine.final(engine.send(f"first@{domain}")).succeeded
    assert not engine.final(engine.send(f"first@{none}")).succeeded
    engine.until("SELECT 1 FROM destinations WHERE lanes = 0")
    pids = (*engine.live(), *engine.live("janitor"))

    with stopped(*pids):
        due = [engine.send(f"a@{domain}") for _ in range(3)]
        found = because(engine, due[2], Cause.NO_LANE)
        assert (found.lanes, found.ahead) == (0, 2)
        found = because(engine, engine.send(f"a@{none}"), Cause.DNS_NEGATIVE)
        assert found.until is not None
        assert "it fails when a worker comes to it" in found.change
        routed = engine.send(f"a@{fresh}")
        because(engine, routed, Cause.ROUTE_PENDING)
        engine.tamper("UPDATE message SET expires_ms = ? WHERE id = ?", wall_ms() - 1, due[0])
        because(engine, due[0], Cause.EXPIRED)
        flag = Path(poison_path(str(engine.store)))
        flag.write_text("EIO\n")
        found = because(engine, due[1], Cause.SPOOL_POISONED)
        assert str(flag) in found.detail
        flag.unlink()
        engine.tamper("UPDATE worker SET heartbeat_ms = heartbeat_ms - 60000")
        found = because(engine, due[1], Cause.WORKER_SILENT)
        assert found.by is not None
        engine.ms.cancel(routed)

    assert engine.final(due[2]).succeeded
    assert because(engine, due[0], Cause.FINAL_FAILED).detail.endswith("(expired)")


def test_behind_an_idle_connection_what_is_due_waits_for_its_turn(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, _ = network.site(Script())
    engine = make_engine(workers=1, settings={"sites": {"idle": "60s", "connections": 4}}).start()
    assert engine.final(engine.send(f"first@{domain}")).succeeded
    with stopped(*engine.live()):
        id = engine.send(f"a@{domain}")
        found = because(engine, id, Cause.IN_LINE)
        assert (found.lanes, found.lanes_limit, found.ahead) == (1, 4, 0)
    assert engine.final(id).succeeded


def test_an_engine_inside_the_application_is_seen_to_live(network: Network, ms: Mailstrom) -> None:
    domain, (host,) = network.site(HELD_DOT)
    config = tables(network, sites={"connections": 1})
    ms.start(config=config)
    first = ms.send(mail(f"a@{domain}"), on_doubt="hold")
    found = waits(ms, first, Cause.SENDING)
    assert f"(pid {os.getpid()} on " in str(found.by)
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    second = ms.send(mail(f"b@{domain}"), on_doubt="hold")
    found = waits(ms, second, Cause.SITE_LIMIT)
    assert "one connection finds out about " in found.detail
    later = ms.send(mail(f"c@{domain}"), send_at=_soon())
    assert "no engine runs" not in waits(ms, later, Cause.SCHEDULED).detail
    network.pass_time()
    assert ms.wait(first, DEADLINE_S).succeeded
    ms.stop()
    assert "no engine runs" in waits(ms, later, Cause.SCHEDULED).detail


def test_a_log_at_its_limit_says_that_nothing_is_claimed(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, _ = network.site(HELD_DOT)
    engine = make_engine(workers=1, settings={"spool": {"wal_limit": "16MiB"}}).start()
    id = engine.send(f"a@{domain}")
    because(engine, id, Cause.SENDING)
    waits = [engine.send(f"b@{domain}")]
    reader = subprocess.Popen(
        [sys.executable, "-P", "-c", PIN, str(engine.store)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"pinned\n"
        log = Path(f"{engine.store}-wal")
        text = "x" * 76 + "\n"
        while log.stat().st_size < LEAST_LIMIT_BYTES:
            waits.append(engine.send(f"b@{domain}", text=text * 5_000, send_at=_soon()))
        assert because(engine, waits[0], Cause.LOG_FULL).change.startswith("'mailstrom store check")
    finally:
        reader.communicate(timeout=DEADLINE_S)
    network.pass_time()
    assert engine.final(id).succeeded
    engine.ms.change_all("cancel", recipient=f"b@{domain}")


def _soon() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)
