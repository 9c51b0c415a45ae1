"""Stories of routing: what the DNS says, what it stops saying, and who asks it how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom.testing.script import Rule, Script
from tests.scenarios.conftest import MakeEngine, sound
from tests.support.engine import DEADLINE_S, Engine, mail
from tests.support.network import HELD_S, Network, dots
from tests.support.sockets import eventually

ROUTE_FAILURES = {
    "null_mx": ({"MX": ["0 ."]}, "null_mx", "5.1.10"),
    "nxdomain": ("NXDOMAIN", "no_domain", "5.1.2"),
    "no_records": ("NODATA", "no_domain", "5.1.2"),
    "ourselves": ({"MX": ["5 sender.test."]}, "loop", "5.4.6"),
}


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path) -> Iterator[Engine]:
    settings = {"dns": {"timeout": "5s"}}  # two faults are waited for so long
    with sound(Engine(network, folder, workers=2, settings=settings)) as engine:
        yield engine.start()


@pytest.mark.parametrize("case", ROUTE_FAILURES)
def test_domains_that_take_no_mail_fail_at_once(
    engine: Engine, network: Network, case: str
) -> None:
    entry, reason, enhanced = ROUTE_FAILURES[case]
    domain = network.new_domain()
    network.zone(domain, entry)  # type: ignore[arg-type]

    (recipient,) = engine.final(id := engine.send(f"a@{domain}")).recipients.values()

    assert (str(recipient.status), recipient.reason) == ("failed", reason)
    assert (recipient.enhanced_code, recipient.attempts) == (enhanced, 1)
    assert [(row.stage, row.host) for row in engine.attempts(id)] == [("route", None)]


def test_a_domain_without_mx_is_its_own_host(engine: Engine, network: Network) -> None:
    domain, host = network.new_domain(), network.host()
    network.zone(domain, {"A": [host.host]})

    (recipient,) = engine.final(engine.send(f"a@{domain}")).recipients.values()

    assert (str(recipient.status), recipient.mx) == ("delivered", domain)
    (row,) = engine.rows("SELECT result FROM domains WHERE name = ?", domain)
    assert row.result == "implicit"


@pytest.mark.parametrize("fault", ["SERVFAIL", "REFUSED", "TIMEOUT", "GARBAGE"])
def test_dns_trouble_defers_and_then_passes(engine: Engine, network: Network, fault: str) -> None:
    domain = network.new_domain()
    network.zone(domain, fault)
    id = engine.send(f"a@{domain}")

    (row,) = engine.until("SELECT * FROM recipients WHERE message_id = ? AND reason = 'dns'", id)
    assert (row.status, row.attempts) == ("deferred", 0)
    (known,) = engine.rows("SELECT * FROM domains WHERE name = ?", domain)
    assert (known.result, known.site) == ("temporary", None)
    assert known.error

    network.site(Script(), domain=domain)
    engine.age_route(domain)
    assert engine.final(id).succeeded


def test_new_hosts_are_honoured_between_two_attempts(engine: Engine, network: Network) -> None:
    domain, (old,) = network.site(Script(rules=(Rule(stage="rcpt", code=450),)))
    id = engine.send(f"a@{domain}")
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND attempts > 0", id)

    new = network.host()
    network.route(domain, [new.host], prefix="new")
    engine.age_route(domain)

    (recipient,) = engine.final(id).recipients.values()
    assert (str(recipient.status), recipient.mx) == ("delivered", f"new1.{domain}")
    assert (old.dots, len(new.dots)) == ([], 1)
    assert {row.host for row in engine.attempts(id)} == {f"mx1.{domain}", f"new1.{domain}"}


def _let_go(network: Network, engine: Engine, ids: list[str]) -> bool:
    """Have the hosts answer what they hold back now; whether all is final."""
    network.pass_time()
    return all(status.completed for status in engine.ms.statuses(ids).values())


def test_an_answer_serves_all_workers_and_outlives_them(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=2).start()
    # One is taken at once, since a site that nobody knows gets one connection; then each lane of
    # whoever comes first is held, and what they cannot send is the other's.
    held = Rule(stage="dot", delay=HELD_S, first=2, last=30)
    domain, (host,) = network.site(Script(rules=(held,)))

    ids = engine.ms.send_many(mail(f"u{n}@{domain}") for n in range(30))
    sql = "SELECT DISTINCT worker FROM sessions WHERE host = ?"
    used = engine.until(sql, f"mx1.{domain}", count=2)
    eventually(lambda: _let_go(network, engine, ids), DEADLINE_S, what="thirty deliveries")
    assert all(engine.final(id).succeeded for id in ids)
    assert engine.stop() == 0
    engine.start()
    assert engine.final(engine.send(f"late@{domain}")).succeeded

    assert len(used) == 2, "both workers delivered"
    assert network.asked(domain, "MX") == 1
    assert len(host.dots) == 31


def test_loopback_is_no_place_for_mail_unless_configured(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1, settings={"dns": {"allow_loopback": False}}).start()
    domain, (host,) = network.site(Script())
    id = engine.send(f"a@{domain}")

    (row,) = engine.until(
        "SELECT * FROM recipients WHERE message_id = ? AND reason IS NOT NULL", id
    )

    assert (row.status, row.reason, row.attempts) == ("deferred", "dns", 0)
    assert "loopback" in row.reply_text
    assert host.connections == []


@pytest.mark.parametrize("literal", ["[169.254.169.254]", "[IPv6:fe80::1]", "[0.0.0.0]"])
def test_a_literal_that_no_mail_goes_to_fails_at_once(engine: Engine, literal: str) -> None:
    (recipient,) = engine.final(engine.send(f"a@{literal}")).recipients.values()

    assert (recipient.reason, recipient.enhanced_code) == ("no_domain", "5.1.2")
    assert (recipient.reply_text or "").startswith("mail is not delivered to [")


def test_a_loopback_literal_goes_through_once_it_is_allowed(
    make_engine: MakeEngine, network: Network
) -> None:
    host = network.host()
    engine = make_engine(workers=1, settings={"dns": {"allow_loopback": False}}).start()
    (recipient,) = engine.final(id := engine.send(f"a@[{host.host}]")).recipients.values()
    assert (recipient.enhanced_code, recipient.attempts) == ("5.1.2", 1)
    assert recipient.reply_text == f"mail is not delivered to [{host.host}] (loopback address)"

    engine.configure({"dns": {"allow_loopback": True}})
    engine.stop()
    engine.start()
    assert engine.ms.retry(id) == 1
    assert engine.final(id).succeeded
    assert len(host.dots) == 1


def test_a_slow_domain_delays_no_other(engine: Engine, network: Network) -> None:
    """Of names and of hosts: neither a silent DNS nor a silent host is waited for by others."""
    silent, (host,) = network.site(Script(rules=(Rule(stage="greeting", delay=HELD_S),)))
    unknown = network.new_domain()
    network.zone(unknown, "TIMEOUT")
    well, _ = network.site(Script())
    slow = engine.ms.send_many(mail(f"u{n}@{silent}") for n in range(40))
    lost = engine.send(f"a@{unknown}")
    eventually(lambda: host.connections, DEADLINE_S, what="a connection to the slow host")

    assert engine.final(engine.send(f"a@{well}")).succeeded

    assert not engine.ms.status(slow[0]).completed
    eventually(lambda: _let_go(network, engine, slow), DEADLINE_S, what="the slow host's mail")
    assert all(engine.final(id).succeeded for id in slow)
    assert engine.ms.cancel(lost) == 1


def test_hosts_of_equal_preference_share_the_load(engine: Engine, network: Network) -> None:
    hosts = [network.host(), network.host()]
    domains = [network.new_domain() for _ in range(24)]  # all to one host: once in 8 million runs
    for domain in domains:
        network.route(domain, [host.host for host in hosts])
        network.zone(domain, {"MX": [f"10 mx{n}.{domain}." for n in (1, 2)]})

    ids = engine.ms.send_many(mail(f"a@{domain}") for domain in domains)

    assert all(engine.final(id).succeeded for id in ids)
    assert all(host.dots for host in hosts)
    assert len(dots(hosts)) == 24


def test_what_never_reached_a_session_says_why_in_rows_and_log(
    network: Network, make_engine: MakeEngine
) -> None:
    """Expired at a dead site, and refused by its route: both keep the words, both are logged."""
    engine = make_engine(workers=1, settings={"sites": {"suspend": ["30s"]}}).start()
    dead, no_mail = network.new_domain(), network.new_domain()
    network.route(dead, [network.nobody()])
    network.zone(no_mail, {"MX": ["0 ."]})
    late, refused = engine.send(f"a@{dead}"), engine.send(f"b@{no_mail}")
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND reason = 'connect'", late)
    engine.expire_soon(late)

    (expired,) = engine.final(late).recipients.values()
    (failed,) = engine.final(refused).recipients.values()

    assert (str(expired.status), expired.reason, expired.attempts) == ("failed", "expired", 0)
    assert "refused" in (expired.reply_text or "")
    assert (str(failed.status), failed.reason) == ("failed", "null_mx")
    engine.wait_log("recipient.failed", message_id=late, reason="expired")
    engine.wait_log("recipient.failed", message_id=refused, reason="null_mx")
