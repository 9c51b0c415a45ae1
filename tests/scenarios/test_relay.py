"""Stories of relays and of demanded TLS: each has a configuration, and so an engine, of its own."""

from __future__ import annotations

from pathlib import Path

from mailstrom.testing.script import Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import mail
from tests.support.network import Network

USERS = {"joe": "open sesame"}


def _relay(network: Network, *addresses: str, **more: object) -> dict[str, dict[str, object]]:
    hosts = [f"{address}:{network.port}" for address in addresses]
    return {"delivery": {"mode": "relay"}, "relay": {"hosts": hosts, **more}}


def test_all_domains_go_to_the_relay_and_its_spare(
    network: Network, make_engine: MakeEngine
) -> None:
    first, second = network.nobody(), network.host()
    engine = make_engine(settings=_relay(network, first, second.host)).start()
    domains = [network.new_domain() for _ in range(3)]

    ids = engine.ms.send_many(mail(f"a@{domain}", f"b@{domain}") for domain in domains)
    assert all(engine.final(id).succeeded for id in ids)

    main = network.host(address=first)
    engine.stop()  # a host that failed rests for a minute in its process
    engine.start()
    late = engine.final(engine.send(f"late@{domains[0]}"))

    assert late.succeeded
    assert (len(second.dots), len(main.dots)) == (3, 1)
    assert [network.dns.queries[domain, "MX"] for domain in domains] == [0, 0, 0]
    assert len(engine.rows("SELECT * FROM destinations")) == 1


def test_a_relay_that_refuses_one_message_has_the_spare_asked(
    network: Network, make_engine: MakeEngine
) -> None:
    busy, spare = network.host(Script(rules=(Rule(stage="mail", code=451),))), network.host()
    engine = make_engine(settings=_relay(network, busy.host, spare.host)).start()

    status = engine.final(id := engine.send("a@elsewhere.test"))

    assert status.succeeded
    assert [(row.address, row.verdict) for row in engine.attempts(id)] == [
        (busy.host, "deferred"),
        (spare.host, "delivered"),
    ]


def test_wrong_credentials_charge_nobody_and_right_ones_deliver(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    host = network.host(Script(auth=USERS), names=("relay.test",))
    password = tmp_path / "password"
    password.write_text("guess\n")
    login = {"tls": "required", "username": "joe", "password_file": str(password)}
    engine = make_engine(settings=_relay(network, host.host, **login)).start()
    id = engine.send("a@elsewhere.test")

    (row,) = engine.until("SELECT * FROM recipients WHERE message_id = ? AND reason = 'local'", id)
    assert (row.status, row.attempts) == ("deferred", 0)
    assert host.transactions == []

    password.write_text("open sesame\n")
    assert engine.final(id).succeeded
    (session,) = engine.rows("SELECT * FROM sessions WHERE messages > 0 OR end_cause IS NULL")
    assert (session.tls_wanted, session.tls_reached) == ("required", "encrypted")
    failed = engine.rows("SELECT end_cause FROM sessions WHERE end_cause LIKE 'auth:%'")
    assert failed
    assert not any("guess" in cause for (cause,) in failed)


def test_tls_from_the_first_byte(network: Network, make_engine: MakeEngine) -> None:
    host = network.host(names=("relay.test",), implicit_tls=True)
    engine = make_engine(settings=_relay(network, host.host, tls="implicit")).start()

    assert engine.final(engine.send("a@elsewhere.test")).succeeded
    assert [one.tls for one in host.connections] == ["TLSv1.3"]


def test_required_tls_is_waited_for(network: Network, make_engine: MakeEngine) -> None:
    engine = make_engine(settings={"tls": {"require": True}}).start()
    clear, (without,) = network.site(Script())
    domain, (offering,) = network.site(Script(), tls=True)

    waiting, sent = engine.send(f"a@{clear}"), engine.send(f"a@{domain}")

    assert engine.final(sent).succeeded
    assert offering.connections[0].tls == "TLSv1.3"
    (row,) = engine.until(
        "SELECT * FROM recipients WHERE message_id = ? AND reason = 'tls'", waiting
    )
    assert (row.status, row.attempts) == ("deferred", 0)
    (site,) = engine.rows("SELECT * FROM destinations WHERE domains LIKE ?", f'%"{clear}"%')
    assert site.reason == "tls"
    assert without.transactions == []


def test_a_certificate_must_be_valid_where_verify_is_on(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    roots = tmp_path / "roots.pem"
    network.authority.cert_pem.write_to_path(str(roots))
    engine = make_engine(
        settings={"tls": {"require": True, "verify": True, "ca_file": str(roots)}}
    ).start()
    good, (valid,) = network.site(Script(), tls=True)
    bad = network.new_domain()
    other = network.host(names=("another-name.test",))
    network.route(bad, [other.host])

    sent, waiting = engine.send(f"a@{good}"), engine.send(f"a@{bad}")

    assert engine.final(sent).succeeded
    (session,) = engine.rows("SELECT * FROM sessions WHERE address = ?", valid.host)
    assert (session.tls_reached, session.tls_verified) == ("verified", 1)
    (row,) = engine.until(
        "SELECT * FROM recipients WHERE message_id = ? AND reason = 'tls'", waiting
    )
    assert (row.status, row.attempts, other.transactions) == ("deferred", 0, [])
