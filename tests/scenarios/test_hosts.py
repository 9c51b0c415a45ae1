"""Stories of hosts and sessions: dead addresses, sessions that end, a reload, a worker lapsed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from mailstrom.testing.script import Act, Per, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import DEADLINE_S, mail
from tests.support.network import HELD_S, Network, dots
from tests.support.sockets import eventually, loopback_addresses


def test_a_backup_host_is_reached_behind_many_dead_addresses(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, alive = network.new_domain(), network.host()
    network.zone("mx1.dead.test", {"A": loopback_addresses(5)})
    network.zone("mx2.dead.test", {"A": [alive.host]})
    network.zone(domain, {"MX": ["10 mx1.dead.test.", "20 mx2.dead.test."]})
    engine = make_engine().start()

    (recipient,) = engine.final(engine.send(f"a@{domain}")).recipients.values()

    assert (recipient.mx, recipient.attempts) == ("mx2.dead.test", 1)
    tried = engine.rows("SELECT address FROM sessions WHERE host = 'mx1.dead.test'")
    assert len({row.address for row in tried}) == 5


@pytest.mark.parametrize("act", ["close", "reply"])
def test_a_host_that_ends_after_a_refusal_is_not_blamed(
    make_engine: MakeEngine, network: Network, act: str
) -> None:
    """One refused message per session, then the server hangs up: nothing is wrong with it."""
    code = {"code": 421} if act == "reply" else {}
    rules = (
        Rule(stage="mail", act=act, per="connection", first=2, last=2, **code),
        Rule(stage="rcpt", act="reply", code=550, enhanced="5.1.1", recipient="no*"),
    )
    domain, _ = network.site(Script(rules=rules))
    engine = make_engine(settings={"sites": {"connections": 1, "suspend": ["1h"], "idle": "2s"}})
    ids = [engine.ms.send(mail(f"no{n}@{domain}")) for n in range(2)]
    ids.append(engine.ms.send(mail(f"yes@{domain}")))
    engine.start()

    states = [engine.final(id).recipients for id in ids]

    assert [str(r.status) for one in states for r in one.values()] == [
        "failed",
        "failed",
        "delivered",
    ]
    assert [r.attempts for one in states for r in one.values()] == [1, 1, 1]
    assert engine.rows("SELECT 1 FROM events WHERE type = 'site.suspended'") == []


def test_a_reload_that_demands_tls_renews_open_sessions(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, (host,) = network.site(Script())  # offers no STARTTLS
    engine = make_engine(settings={"sites": {"idle": "20s", "connections": 1}}).start()
    assert engine.final(engine.send(f"a@{domain}")).succeeded

    engine.configure({**engine.settings, "tls": {"require": True}})
    engine.signal(signal.SIGHUP)
    engine.wait_log("config.reloaded")
    id = engine.send(f"b@{domain}")
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND reason = 'tls'", id)

    assert len(dots([host])) == 1


def test_a_worker_taken_for_dead_is_replaced_by_a_fresh_one(
    make_engine: MakeEngine, network: Network
) -> None:
    """Somebody deletes its lock file: it is lapsed, notices, ends, and another goes on."""
    domain, _ = network.site(Script())
    engine = make_engine(workers=1).start()
    (before,) = engine.live()
    run = f"{engine.store}-run"
    for name in os.listdir(run):
        if name.startswith("delivery-"):
            os.unlink(os.path.join(run, name))
    engine.wait_log("worker.lost", pid=before)

    assert engine.final(engine.send(f"a@{domain}")).succeeded
    assert before not in engine.live()


def test_a_message_that_ends_every_session_does_not_keep_its_site_from_others(
    make_engine: MakeEngine, network: Network
) -> None:
    """The first hang-up is excused as the host's trouble; the second is charged to the message."""
    rules = (Rule(stage="mail", act=Act.CLOSE, sender="poison@*"),)
    domain, _ = network.site(Script(rules=rules))
    engine = make_engine(workers=1, settings={"sites": {"suspend": ["1s"]}}).start()
    poison = engine.ms.send(mail(f"a@{domain}", sender="poison@sender.test"))

    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND attempts >= 1", poison)

    assert engine.final(engine.send(f"b@{domain}")).succeeded
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND attempts >= 2", poison)
    suspended = engine.rows("SELECT 1 FROM events WHERE type = 'site.suspended'")
    assert len(suspended) == 1
    engine.ms.cancel(poison)


def test_a_host_that_limits_connections_is_not_hammered(
    make_engine: MakeEngine, network: Network
) -> None:
    """Two connections are served, a third is refused with 421: soon there are two and no more."""
    rules = (Rule(stage="rcpt", act=Act.REPLY, delay=0.02, recipient="*"),)
    domain, (host,) = network.site(Script(rules=rules, connection_limit=2))
    engine = make_engine(settings={"sites": {"connections": 10}})
    ids = [engine.ms.send(mail(f"u{n}@{domain}")) for n in range(150)]
    engine.start()

    for id in ids:
        engine.final(id)

    assert (
        engine.rows("SELECT count(*) AS n FROM recipients WHERE status = 'delivered'")[0].n == 150
    )
    assert engine.rows("SELECT 1 FROM events WHERE type = 'site.suspended'") == []
    (row,) = engine.rows("SELECT lanes_limit FROM destinations")
    assert row.lanes_limit == 2
    assert len(host.connections) <= 20  # the first rush of ten lanes, and not a storm


def test_a_lower_limit_of_connections_holds_after_a_reload(
    make_engine: MakeEngine, network: Network
) -> None:
    # One is taken at once, since a site that nobody knows gets one connection; then each of the
    # eight is held back, again and again, until the lower limit holds.
    held = Rule(stage="rcpt", act=Act.REPLY, delay=HELD_S, recipient="*", first=2)
    domain, (host,) = network.site(Script(rules=(held,)))
    engine = make_engine(settings={"sites": {"connections": 8}})
    ids = [engine.ms.send(mail(f"u{n}@{domain}")) for n in range(400)]
    engine.start()
    eventually(lambda: host.open == 8, DEADLINE_S, what="eight connections")

    engine.configure({"sites": {"connections": 2}})
    engine.signal(signal.SIGHUP)
    engine.until("SELECT 1 FROM destinations WHERE lanes_limit = 2")

    def answered(done: Callable[[], bool]) -> bool:
        network.pass_time()
        return done()

    eventually(lambda: answered(lambda: host.open <= 2), DEADLINE_S, what="two connections")
    before = len(host.dots)
    # A session keeps its script: what is held on it is let go until all are delivered.
    unfinished = "SELECT 1 FROM recipients WHERE finished_ms IS NULL LIMIT 1"
    eventually(
        lambda: answered(lambda: not engine.rows(unfinished)), DEADLINE_S, what="all deliveries"
    )
    assert all(engine.final(id).succeeded for id in ids)
    assert before < 400, "there was work left for the lower limit to bind"


@pytest.mark.parametrize("act", [Act.REPLY, Act.CLOSE])
def test_a_host_that_takes_one_message_a_connection_is_never_suspended(
    network: Network, make_engine: MakeEngine, act: Act
) -> None:
    """What it closed upon goes first on the next connection, before what was opened meanwhile."""
    code = 421 if act is Act.REPLY else None
    enough = Rule(stage="mail", act=act, code=code, close=True, first=2, per=Per.CONNECTION)
    domain, (host,) = network.site(Script(rules=(enough,)))
    sites = {"connections": 2, "idle": "200ms", "suspend": ["10m"]}
    engine = make_engine(workers=1, settings={"sites": sites}).start()
    ids = [engine.ms.send(mail(f"r{number}@{domain}")) for number in range(100)]
    assert all(engine.final(id).succeeded for id in ids)
    assert len(dots([host])) == 100
    assert engine.rows("SELECT 1 FROM events WHERE type = 'site.suspended'") == []
    assert engine.rows("SELECT 1 FROM attempts WHERE verdict <> 'delivered'") == []


def test_a_drain_does_not_wait_for_a_host_to_greet(
    network: Network, make_engine: MakeEngine
) -> None:
    """What waits for it goes back as it was: nothing was begun, so nothing is in doubt."""
    late = Rule(stage="greeting", act=Act.SILENCE)
    domain, (host,) = network.site(Script(rules=(late,)))
    engine = make_engine(workers=1).start()
    ids = [engine.ms.send(mail(f"r{number}@{domain}")) for number in range(3)]
    eventually(lambda: host.open == 1, DEADLINE_S, what="a connection that is not greeted")
    assert engine.stop() == 0, "no worker was killed because it waited on"
    for id in ids:
        (row,) = engine.rows("SELECT status, attempts FROM recipients WHERE message_id = ?", id)
        assert (row.status, row.attempts) == ("queued", 0)
