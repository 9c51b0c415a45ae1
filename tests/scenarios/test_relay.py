"""Stories of relays and of demanded TLS: each has a configuration, and so an engine, of its own."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom.testing.script import Per, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import Engine, mail
from tests.support.network import Network
from tests.support.sockets import loopback_addresses

USERS = {"joe": "open sesame"}
MECHANISMS = ("plain", "login", "cram-md5", "xoauth2")

# The wire's table of refusals is in tests/wire; here what becomes of the mail behind them.
REFUSALS = (
    Rule(stage="auth", code=535, enhanced="5.7.8", text="no such user", last=1),
    Rule(stage="auth", code=554, enhanced="5.7.0", text="open sesame is wrong", last=1),
    Rule(stage="auth", code=454, enhanced="4.7.0", text="temporary failure", last=1),
)


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


def test_a_relay_that_closes_behind_unknown_recipients_has_the_others_at_once(
    network: Network, make_engine: MakeEngine
) -> None:
    closing = Rule(stage="rcpt", code=421, recipient="no*", per=Per.CONNECTION, first=3, close=True)
    unknown = Rule(stage="rcpt", code=550, enhanced="5.1.1", recipient="no*")
    strict, spare = network.host(Script(rules=(closing, unknown))), network.host()
    engine = make_engine(settings=_relay(network, strict.host, spare.host)).start()
    names = [*(f"no{n}@here.test" for n in range(4)), *(f"no{n}@there.test" for n in range(4))]

    status = engine.final(id := engine.ms.send(mail(*names, "a@here.test", "b@there.test")))

    told = {address: (row.status, row.attempts) for address, row in status.recipients.items()}
    known = dict.fromkeys(("a@here.test", "b@there.test"), ("delivered", 1))
    assert told == dict.fromkeys(names, ("failed", 1)) | known
    assert len(engine.attempts(id)) == len(told)
    assert len(spare.connections) == 0


def _secret_forms(password: str, user: str = "joe") -> list[bytes]:
    """A password as it might be written down somewhere."""
    sent = (password, f"\0{user}\0{password}", f"user={user}\x01auth=Bearer {password}\x01\x01")
    return [password.encode(), *(base64.b64encode(one.encode()) for one in sent)]


def _written(engine: Engine) -> Iterator[tuple[str, bytes]]:
    """Everything the engine wrote: log, spool and its side files."""
    for file in sorted(engine.folder.rglob("*")):
        if file.is_file():
            yield file.name, file.read_bytes()


def _assert_untold(engine: Engine, *passwords: str) -> None:
    found = [
        (name, form)
        for name, content in _written(engine)
        for password in passwords
        for form in _secret_forms(password)
        if form in content
    ]
    assert found == []


@pytest.mark.parametrize("tls", ["required", "implicit"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_delivers_under_tls(
    mechanism: str, tls: str, network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    (address,) = loopback_addresses()
    script = Script(auth=USERS, mechanisms=(mechanism.upper(),), auth_in_clear=False)
    host = network.host(script, address=address, names=(address,), implicit_tls=tls == "implicit")
    password, roots = tmp_path / "password", tmp_path / "roots.pem"
    password.write_text("open sesame\n")
    network.authority.cert_pem.write_to_path(str(roots))
    login = {"username": "joe", "password_file": str(password), "mechanism": mechanism}
    settings = _relay(network, host.host, tls=tls, **login)
    engine = make_engine(
        workers=1, settings={**settings, "tls": {"verify": True, "ca_file": str(roots)}}
    ).start()

    status = engine.final(engine.send("a@elsewhere.test"))

    assert status.succeeded
    (seen,) = host.connections
    assert (seen.auth, seen.tls) == ([(mechanism.upper(), "joe")], "TLSv1.3")
    (session,) = engine.rows("SELECT * FROM sessions")
    assert (session.tls_wanted, session.tls_verified) == (f"{tls}+verify", 1)
    _assert_untold(engine, "open sesame")


def test_no_answer_to_credentials_is_a_bounce_or_tells_the_password(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    host = network.host(Script(rules=REFUSALS, auth=USERS), names=("relay.test",))
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    login = {"tls": "required", "username": "joe", "password_file": str(password)}
    settings = _relay(network, host.host, **login)
    engine = make_engine(workers=1, settings=settings).start()

    status = engine.final(id := engine.send("a@elsewhere.test"))

    assert status.succeeded
    assert [row.verdict for row in engine.attempts(id)] == ["delivered"]
    causes = engine.rows("SELECT end_cause FROM sessions ORDER BY started_ms, id")
    assert len(causes) == len(REFUSALS) + 1
    for (cause,), rule in zip(causes, REFUSALS, strict=False):
        assert cause.startswith("auth: ")
        assert str(rule.code) in cause
    assert [line["reason"] for line in engine.log("site.suspended")] == ["local"] * 3
    _assert_untold(engine, "open sesame")


def test_a_mechanism_that_the_relay_lacks_is_named_and_waited_for(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    first = network.host(Script(auth=USERS, mechanisms=("LOGIN",)), names=("relay.test",))
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    login = {"username": "joe", "password_file": str(password), "mechanism": "cram-md5"}
    engine = make_engine(
        workers=1, settings=_relay(network, first.host, tls="required", **login)
    ).start()
    id = engine.send("a@elsewhere.test")

    # The site rests first, then the lane that found out gives its claim back: one look at both.
    (row,) = engine.until(
        "SELECT d.reason, d.last_reply, r.status, r.reason AS waits, r.attempts"
        " FROM destinations AS d, recipients AS r"
        " WHERE d.suspended_until_ms IS NOT NULL AND r.message_id = ? AND r.reason IS NOT NULL",
        id,
    )
    assert row.reason == "local"
    assert "CRAM-MD5" in row.last_reply
    assert "it offers LOGIN" in row.last_reply
    assert (row.status, row.waits, row.attempts) == ("deferred", "local", 0)
    assert first.connections[0].auth == []


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_wrong_credentials_charge_nobody_and_right_ones_deliver(
    mechanism: str, network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    script = Script(auth=USERS, mechanisms=(mechanism.upper(),))
    host = network.host(script, names=("relay.test",))
    password = tmp_path / "password"
    password.write_text("wild guess\n")
    login = {"tls": "required", "username": "joe", "password_file": str(password)}
    engine = make_engine(settings=_relay(network, host.host, mechanism=mechanism, **login)).start()
    id = engine.send("a@elsewhere.test")

    (row,) = engine.until("SELECT * FROM recipients WHERE message_id = ? AND reason = 'local'", id)
    assert (row.status, row.attempts) == ("deferred", 0)
    assert host.transactions == []
    (site,) = engine.rows("SELECT * FROM destinations")
    assert (site.reason, site.last_reply.startswith("auth")) == ("local", True)
    assert "535" in site.last_reply

    password.write_text("open sesame\n")
    assert engine.final(id).succeeded
    (session,) = engine.rows("SELECT * FROM sessions WHERE messages > 0 OR end_cause IS NULL")
    assert (session.tls_wanted, session.tls_reached) == ("required", "encrypted")
    failed = engine.rows("SELECT end_cause FROM sessions WHERE end_cause LIKE 'auth:%'")
    assert failed
    assert engine.rows("SELECT * FROM recipients WHERE status = 'failed'") == []
    _assert_untold(engine, "wild guess", "open sesame")


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
