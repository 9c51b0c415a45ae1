"""Stories of processes: killed, stopped, drained, orphaned, reloaded, started twice.

What a host has seen at the final dot is the witness; a rule that holds back the answer to it keeps
a recipient on the wire for as long as a story needs. Processes are ended by the ids that the
engine's own rows name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import apsw

from mailstrom import Mailstrom
from mailstrom.policy.pace import FIRST_CLAIM
from mailstrom.testing.script import Act, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import DEADLINE_S, Engine, alive, environment, mail
from tests.support.network import HELD_S, Network, dots
from tests.support.sockets import eventually

# The first content gets no answer, for ever or until time passes; what follows is answered at once.
SILENT_ONCE = Script(rules=(Rule(stage="dot", act=Act.SILENCE, last=1),))
HELD_ONCE = Script(rules=(Rule(stage="dot", delay=HELD_S, last=1),))
MUTE_ONCE = Script(rules=(Rule(stage="mail", act=Act.SILENCE, last=1),))
ONE_LANE = {"sites": {"connections": 1}}
SHORT_DRAIN = {"delivery": {"drain_timeout": "300ms"}}


def _names(domain: str, count: int) -> list[str]:
    return [f"u{number:02}@{domain}" for number in range(count)]


def _send_each(engine: Engine, addresses: list[str]) -> list[str]:
    return engine.ms.send_many(mail(address) for address in addresses)


def _term_twice(engine: Engine) -> None:
    """TERM, and again so late that it counts: within a second of the first it is the same one."""
    engine.signal(signal.SIGTERM)
    engine.wait_log("supervisor.draining")
    told = time.monotonic()
    eventually(lambda: time.monotonic() - told > 1.1, DEADLINE_S, what="a second to pass")
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 1


def _doubtful(engine: Engine, domain: str) -> set[str]:
    rows = engine.rows("SELECT address FROM recipients WHERE domain = ? AND in_doubt", domain)
    return {row.address for row in rows}


# Doubt


def test_killed_after_the_final_dot_marked_and_sent_again(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine().start()
    domain, (host,) = network.site(SILENT_ONCE)
    id = engine.send(f"a@{domain}")
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    pid = engine.pid_at(f"mx1.{domain}")

    os.kill(pid, signal.SIGKILL)

    (recipient,) = engine.final(id).recipients.values()
    assert (str(recipient.status), recipient.attempts, recipient.in_doubt) == ("delivered", 2, True)
    first, second = engine.attempts(id)
    assert (first.verdict, first.reason, first.in_doubt, first.stage) == (
        "deferred", "in_doubt", 1, "dot",
    )  # fmt: skip
    assert (second.verdict, second.in_doubt) == ("delivered", 0)
    assert first.worker != second.worker
    assert len({(dot.digest, dot.message_id) for dot in host.dots}) == 1
    assert len(host.dots) == 2
    assert [line["in_doubt"] for line in engine.wait_log("claim.lapsed", lost_pid=pid)] == [1]
    (ended,) = engine.rows("SELECT end_cause FROM sessions WHERE id = ?", first.session_id)
    assert ended.end_cause == "worker lost"


def test_killed_after_the_final_dot_held_for_a_person(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine().start()
    domain, (host,) = network.site(SILENT_ONCE)
    id = engine.send(f"a@{domain}", on_doubt="hold")
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")

    os.kill(engine.pid_at(f"mx1.{domain}"), signal.SIGKILL)

    (row,) = engine.until("SELECT * FROM recipients WHERE message_id = ? AND status = 'held'", id)
    assert (row.reason, row.in_doubt, row.next_attempt_ms) == ("in_doubt", 1, None)
    assert [row.verdict for row in engine.attempts(id)] == ["held"]
    assert engine.final(engine.send(f"b@{domain}")).succeeded
    assert [dot.recipients for dot in host.dots] == [(f"a@{domain}",), (f"b@{domain}",)]
    assert str(engine.ms.status(id).status) == "held"


def test_a_stopped_worker_is_killed_and_only_its_open_recipient_is_in_doubt(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings={**ONE_LANE, "supervisor": {"watchdog": "8s"}}).start()
    domain, (host,) = network.site(SILENT_ONCE)
    names = _names(domain, 10)
    ids = _send_each(engine, names)
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    pid = engine.pid_at(f"mx1.{domain}")
    (stuck,) = host.dots[0].recipients
    (stopped,) = engine.rows("SELECT id FROM workers WHERE pid = ?", pid)

    os.kill(pid, signal.SIGSTOP)

    assert all(engine.final(id).succeeded for id in ids)
    (lost,) = engine.wait_log("worker.lost", pid=pid)
    assert "no heartbeat" in lost["cause"]
    (lapsed,) = engine.wait_log("claim.lapsed", lost_pid=pid)
    assert (lapsed["recipients"], lapsed["in_doubt"], lapsed["lanes"]) == (FIRST_CLAIM, 1, 1)
    assert _doubtful(engine, domain) == {stuck}
    by_stopped = engine.rows("SELECT recipient FROM attempts WHERE worker = ?", stopped.id)
    assert [row.recipient for row in by_stopped] == [stuck]
    seen = Counter(address for dot in host.dots for address in dot.recipients)
    assert seen == {name: 2 if name == stuck else 1 for name in names}


# Ends


def test_term_finishes_what_is_on_the_wire_and_gives_back_the_rest(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings=ONE_LANE).start()
    domain, (host,) = network.site(HELD_ONCE)
    names = _names(domain, 10)
    ids = _send_each(engine, names)
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    (first,) = host.dots[0].recipients

    engine.signal(signal.SIGTERM)
    # Both are told at the same moment; the one that has nothing on the wire ends at once.
    eventually(lambda: len(engine.live()) == 1, DEADLINE_S, what="the end of the idle worker")
    network.pass_time()
    assert engine.wait_exit() == 0

    rows = engine.rows("SELECT address, status, attempts, in_doubt FROM recipients")
    assert {(row.address, row.status, row.attempts, row.in_doubt) for row in rows} == {
        (name, "delivered" if name == first else "queued", int(name == first), 0) for name in names
    }
    assert len(host.dots) == 1
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    assert sorted(address for dot in host.dots for address in dot.recipients) == names


def test_a_second_term_ends_at_once_and_leaves_one_in_doubt(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings=ONE_LANE).start()
    domain, (host,) = network.site(SILENT_ONCE)
    ids = _send_each(engine, _names(domain, 5))
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    (stuck,) = host.dots[0].recipients

    _term_twice(engine)

    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    assert _doubtful(engine, domain) == {stuck}
    assert len(host.dots) == 6


def test_a_second_term_leaves_nothing_in_doubt_that_had_no_dot(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings=ONE_LANE).start()
    domain, (host,) = network.site(MUTE_ONCE)
    ids = _send_each(engine, _names(domain, 5))
    eventually(lambda: host.transactions, DEADLINE_S, what="the first MAIL")

    _term_twice(engine)
    assert engine.log("worker.stopped", cause="stopped")

    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    assert (len(host.dots), _doubtful(engine, domain)) == (5, set())


def test_a_drain_that_takes_too_long_gives_back_what_was_not_sent(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings={**ONE_LANE, **SHORT_DRAIN}).start()
    domain, (host,) = network.site(MUTE_ONCE)
    names = _names(domain, 10)
    ids = _send_each(engine, names)
    eventually(lambda: host.transactions, DEADLINE_S, what="the first MAIL")

    engine.signal(signal.SIGTERM)

    assert engine.wait_exit() == 0
    assert not engine.log("worker.lost")
    assert engine.log("worker.stopped", cause="drain timeout")
    rows = engine.rows("SELECT status, attempts, in_doubt FROM recipients")
    assert [(row.status, row.attempts, row.in_doubt) for row in rows] == [("queued", 0, 0)] * 10
    assert not engine.rows("SELECT * FROM attempts"), "nobody is charged for our hurry"
    (session,) = engine.rows("SELECT end_cause FROM sessions")
    assert session.end_cause == "cut"
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    assert sorted(address for dot in host.dots for address in dot.recipients) == names


def test_a_drain_that_takes_too_long_leaves_in_doubt_what_had_its_dot(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings={**ONE_LANE, **SHORT_DRAIN}).start()
    domain, (host,) = network.site(SILENT_ONCE)
    ids = _send_each(engine, _names(domain, 5))
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    (stuck,) = host.dots[0].recipients

    engine.signal(signal.SIGTERM)

    assert engine.wait_exit() == 0
    assert not engine.log("worker.lost")
    rows = engine.rows("SELECT address, status, attempts, in_doubt FROM recipients")
    assert {(row.address, row.status, row.attempts, row.in_doubt) for row in rows} == {
        (name, *(("deferred", 1, 1) if name == stuck else ("queued", 0, 0)))
        for name in _names(domain, 5)
    }
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    assert _doubtful(engine, domain) == {stuck}


def test_a_server_that_does_not_answer_quit_holds_no_drain_up(
    network: Network, make_engine: MakeEngine
) -> None:
    patient = {"timeouts": {"quit": "60s"}, "sites": {"idle": "60s", "connections": 1}}
    engine = make_engine(settings={**SHORT_DRAIN, **patient}).start()
    domain, (host,) = network.site(Script(rules=(Rule(stage="quit", act=Act.SILENCE),)))
    assert engine.final(engine.send(f"a@{domain}")).succeeded

    engine.signal(signal.SIGTERM)

    assert engine.wait_exit() == 0
    assert not engine.log("worker.lost")
    assert host.connections[0].stages[-1] == "quit"


def test_orphans_finish_and_a_new_supervisor_goes_on(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings=ONE_LANE).start()
    domain, (host,) = network.site(HELD_ONCE)
    ids = _send_each(engine, _names(domain, 10))
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    orphans = [*engine.live(), *engine.live("janitor")]
    assert len(orphans) == 3

    engine.signal(signal.SIGKILL)

    # All see the end of the same pipes; the one that has nothing on the wire ends at once.
    eventually(lambda: len(engine.live()) == 1, DEADLINE_S, what="the end of the idle worker")
    network.pass_time()
    eventually(lambda: not any(map(alive, orphans)), DEADLINE_S, what="the end of the orphans")
    assert len(host.dots) == 1, "nothing was begun without a supervisor"
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    assert (len(host.dots), _doubtful(engine, domain)) == (10, set())


def test_all_killed_at_once_only_what_was_on_the_wire_is_in_doubt(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings=ONE_LANE).start()
    sites = [network.site(SILENT_ONCE) for _ in range(3)]
    ids = [id for domain, _ in sites for id in _send_each(engine, _names(domain, 5))]
    for _, (host,) in sites:
        eventually(lambda host=host: host.dots, DEADLINE_S, what="a first dot")  # type: ignore[misc]
    open_ones = {domain: set(host.dots[0].recipients) for domain, (host,) in sites}

    engine.kill_all()
    assert engine.ms.check() == []
    engine.start()

    assert all(engine.final(id).succeeded for id in ids)
    for domain, hosts in sites:
        assert _doubtful(engine, domain) == open_ones[domain]
        assert len(dots(hosts)) == 6


def test_a_new_janitor_takes_the_role_of_a_killed_one(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine().start()
    (janitor,) = engine.live("janitor")
    os.kill(janitor, signal.SIGKILL)
    # The killed one may have died before it could log that it was ready.
    again = engine.wait_log("worker.started", kind="janitor", count=2)[1]
    engine.wait_log("worker.ready", pid=again["pid"])

    domain, (host,) = network.site(SILENT_ONCE)
    id = engine.send(f"a@{domain}")
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
    os.kill(engine.pid_at(f"mx1.{domain}"), signal.SIGKILL)

    assert engine.final(id).succeeded
    (row,) = engine.rows("SELECT state FROM workers WHERE pid = ?", janitor)
    assert row.state == "lost"


# Several at once


def test_one_recipient_is_taken_by_one_of_two_idle_workers(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings={"sites": {"idle": "0s"}}).start()
    domain, (host,) = network.site(Script())

    for address in _names(domain, 30):
        assert engine.final(engine.send(address)).succeeded

    assert Counter(a for dot in host.dots for a in dot.recipients) == dict.fromkeys(
        _names(domain, 30), 1
    )
    assert {row.number for row in engine.rows("SELECT number FROM attempts")} == {1}


def test_connections_to_a_site_never_exceed_its_limit_over_all_workers(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(settings={"sites": {"connections": 3, "idle": "20s"}}).start()
    # One is taken at once, since a site that nobody knows gets one connection; three are held back.
    held = Rule(stage="dot", delay=HELD_S, first=2, last=4)
    domain, (host,) = network.site(Script(rules=(held,)))

    ids = _send_each(engine, _names(domain, 150))

    eventually(lambda: len(host.dots) == 4, DEADLINE_S, what="three dots at once")
    used = engine.rows(
        "SELECT worker, count(*) AS sessions FROM sessions WHERE host = ? GROUP BY worker",
        f"mx1.{domain}",
    )
    assert sorted(row.sessions for row in used) == [1, 2]
    network.pass_time()
    assert all(engine.final(id).succeeded for id in ids)
    assert host.most_open == 3
    assert len(host.dots) == 150


def test_a_second_supervisor_is_refused(network: Network, make_engine: MakeEngine) -> None:
    engine = make_engine().start()
    assert engine.process is not None

    refused = subprocess.run(
        engine.command(),
        cwd=engine.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert refused.returncode == 75
    assert str(engine.process.pid) in refused.stderr
    assert "Traceback" not in refused.stderr
    domain, _ = network.site(Script())
    assert engine.final(engine.send(f"a@{domain}")).succeeded


# Damage


def test_a_drain_does_not_wait_for_a_damaged_spool(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    domain, _ = network.site(Script())
    engine.send(f"a@{domain}")
    engine.ms.close()
    connection = apsw.Connection(str(engine.store))
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    ((size,),) = connection.execute("PRAGMA page_size")
    ((root,),) = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'recipient_unrouted'"
    )
    connection.close()

    def put(page: bytes) -> bytes:
        with open(engine.store, "r+b") as file:
            file.seek((root - 1) * size)
            before = file.read(size)
            file.seek((root - 1) * size)
            file.write(page)
        return before

    whole = put(b"\xff" * size)
    engine.start()
    (told, *_) = engine.wait_log("engine.failed")
    assert "mailstrom store salvage" in told["error"]
    engine.signal(signal.SIGTERM)
    engine.wait_exit()
    ends = [line["cause"] for line in engine.log("worker.lost")]
    assert not [cause for cause in ends if "signal" in cause], "it had to be killed"
    assert len(engine.log("engine.failed")) < 12, "each trouble is told once a minute"
    put(whole)
    engine.ms = Mailstrom(engine.store)


# Surroundings


def test_hup_takes_a_good_configuration_and_refuses_a_bad_one(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine().start()
    workers = set(engine.live())
    domain, (host,) = network.site(HELD_ONCE)
    id = engine.send(f"a@{domain}")
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")

    engine.configure({"sites": {"connections": 7}})
    engine.signal(signal.SIGHUP)
    engine.wait_log("config.reloaded")
    engine.until("SELECT 1 FROM destinations WHERE lanes_limit = 7")
    network.pass_time()
    assert engine.final(id).succeeded
    assert (len(host.dots), _doubtful(engine, domain)) == (1, set())

    engine.configure({"sites": {"connexions": 9}})
    engine.signal(signal.SIGHUP)
    (rejected,) = engine.wait_log("config.rejected")
    assert "connexions" in rejected["error"]
    assert engine.final(engine.send(f"b@{domain}")).succeeded
    assert set(engine.live()) == workers


def test_a_hostile_working_directory_does_no_harm(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile"
    for name in ("email", "workers", "queue", "dns", "mailstrom_workers"):
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text("raise SystemExit('imported from here')\n")
    engine = make_engine().start(cwd=hostile)
    domain, (host,) = network.site(Script())

    assert engine.final(engine.send(f"a@{domain}")).succeeded
    assert len(host.dots) == 1
    assert engine.log("worker.lost") == []
