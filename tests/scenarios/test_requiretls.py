"""Mail that REQUIRETLS was said of (RFC 8689): whom it goes to, and what its sender hears.

It is put into the spool as a listener does it. One engine serves all stories of MX hosts; it trusts
the authority that issues the network's certificates.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailstrom.testing.script import Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.scenarios.conftest import MakeEngine, sound
from tests.scenarios.test_reports import hand_in, mailbox, submission, told
from tests.support.engine import Engine, Tables
from tests.support.network import Network
from tests.support.sockets import free_port, loopback_addresses

OFFERS = Script(requiretls=True)


@pytest.fixture(scope="module")
def roots(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("roots") / "roots.pem"
    network.authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path, roots: Path) -> Iterator[Engine]:
    settings: Tables = {"tls": {"ca_file": str(roots)}}
    with sound(Engine(network, folder, workers=1, settings=settings)) as engine:
        yield engine.start()


def strict(engine: Engine, address: str, sender: str = "a@sender.test", **more: Any) -> str:
    """Hand in mail that REQUIRETLS was said of."""
    (id,) = hand_in(engine, submission(sender, address, requiretls=True, **more))
    return id


def outcome(engine: Engine, id: str) -> Any:
    """The one recipient of a message, when it is final."""
    (recipient,) = engine.final(id).recipients.values()
    return recipient


def impostor(network: Network, domain: str, script: Script = OFFERS) -> SMTPServer:
    """A domain's mail host whose certificate is for another name."""
    host = network.host(script, names=("other.test",))
    network.route(domain, [host.host])
    return host


def said(host: SMTPServer) -> list[bool]:
    """Of each transaction, whether MAIL had REQUIRETLS."""
    return ["REQUIRETLS" in one.params for one in list(host.transactions)]


def test_a_host_that_proves_its_name_and_offers_it_gets_the_mail(
    engine: Engine, network: Network
) -> None:
    domain, (host,) = network.site(OFFERS, tls=True)

    id = strict(engine, f"a@{domain}")

    assert outcome(engine, id).status == "delivered"
    assert said(host) == [True]
    (row,) = engine.rows("SELECT requiretls FROM messages WHERE id = ?", id)
    assert row.requiretls == 1
    (attempt,) = engine.attempts(id)
    (session,) = engine.rows("SELECT * FROM sessions WHERE id = ?", attempt.session_id)
    assert (session.tls_reached, session.tls_verified) == ("verified", 1)


@pytest.mark.parametrize("script", [Script(), Script(starttls=False, requiretls=True)])
def test_where_it_is_not_offered_it_fails_and_says_which_host_lacks_what(
    engine: Engine, network: Network, script: Script
) -> None:
    domain, (host,) = network.site(script, tls=True)

    found = outcome(engine, strict(engine, f"a@{domain}"))

    assert (found.status, found.reason) == ("failed", "policy")
    assert f"mx1.{domain}" in found.reply_text
    if script.starttls:
        assert found.enhanced_code == "5.7.30"
        assert found.reply_text.startswith("REQUIRETLS support required: ")
    else:
        assert found.enhanced_code == "5.7.10"
        assert found.reply_text.startswith("encryption needed: ")
    assert host.transactions == []
    assert outcome(engine, engine.send(f"b@{domain}")).status == "delivered"


def test_a_host_without_a_certificate_gets_nothing_of_it(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(OFFERS)
    found = outcome(engine, strict(engine, f"a@{domain}"))
    assert (found.status, found.reason, found.enhanced_code) == ("failed", "policy", "5.7.10")
    assert host.transactions == []


def test_a_certificate_of_another_name_proves_nothing(engine: Engine, network: Network) -> None:
    domain = network.new_domain()
    host = impostor(network, domain)

    found = outcome(engine, strict(engine, f"a@{domain}"))

    assert (found.status, found.reason, found.enhanced_code) == ("failed", "policy", "5.7.10")
    assert f"mx1.{domain}: " in found.reply_text
    assert "certificate" in found.reply_text
    assert host.transactions == []
    assert engine.log("site.suspended", site=f"mx1.{domain}") == []
    sent = outcome(engine, engine.send(f"b@{domain}", require_tls=True))
    assert (sent.status, said(host)) == ("delivered", [False]), "TLS alone asks for no proof"


@pytest.mark.parametrize("first", ["not offered", "clear", "unproved"])
def test_the_next_host_is_asked_where_the_first_lacks_it(
    engine: Engine, network: Network, first: str
) -> None:
    domain = network.new_domain()
    hosts = [
        network.host(
            Script(requiretls=first != "not offered", starttls=first != "clear"),
            names=("other.test" if first == "unproved" else f"mx1.{domain}",),
        ),
        network.host(Script(), names=(f"mx2.{domain}",)),
        network.host(OFFERS, names=(f"mx3.{domain}",)),
    ]
    network.route(domain, [host.host for host in hosts])

    found = outcome(engine, strict(engine, f"a@{domain}"))

    assert (found.status, found.mx) == ("delivered", f"mx3.{domain}")
    assert [said(host) for host in hosts] == [[], [], [True]]


def test_while_a_host_cannot_be_asked_it_waits(engine: Engine, network: Network) -> None:
    domain = network.new_domain()
    address = network.nobody()
    lacks = network.host(Script(), names=(f"mx1.{domain}",))
    network.route(domain, [lacks.host, address])

    id = strict(engine, f"a@{domain}")

    waiting = "SELECT * FROM recipients WHERE message_id = ? AND status = 'deferred'"
    (row,) = engine.until(waiting, id)
    assert (row.reason, row.enhanced_code) == ("tls", "4.7.30")
    assert outcome(engine, engine.send(f"b@{domain}")).status == "delivered"
    able = network.host(OFFERS, address=address, names=(f"mx2.{domain}",))
    engine.ms.retry(id)
    assert outcome(engine, id).mx == f"mx2.{domain}"
    assert (said(lacks), said(able)) == ([False], [True])


def test_ordinary_mail_on_the_same_lane_goes_as_ever(engine: Engine, network: Network) -> None:
    able, (host,) = network.site(OFFERS, tls=True)
    domain = network.new_domain()
    unable = impostor(network, domain)
    mails = []
    for number in range(60):
        for place in (able, domain):
            mails.append(
                submission(
                    "a@sender.test", f"r{number}@{place}", requiretls=number % 3 == 0, reports=False
                )
            )

    ids = hand_in(engine, *mails)

    fates = [outcome(engine, id) for id in ids]
    for mail, fate in zip(mails, fates, strict=True):
        fails = mail.requiretls and fate.address.endswith(f"@{domain}")
        assert fate.status == ("failed" if fails else "delivered"), fate
        assert fate.attempts == 1
    assert sorted(said(host)) == [False] * 40 + [True] * 20
    assert said(unable) == [False] * 40
    assert engine.log("site.suspended", site=f"mx1.{domain}") == []


def test_its_report_has_the_header_alone_and_is_sent_with_requiretls(
    engine: Engine, network: Network
) -> None:
    home, (able,) = network.site(OFFERS, tls=True, keep=True)
    plain, (unable,) = network.site(Script(), tls=True, keep=True)
    domain, _ = network.site(
        Script(requiretls=True, rules=(Rule(stage="rcpt", code=550, enhanced="5.1.1"),)), tls=True
    )

    for sender in (f"anna@{home}", f"anna@{plain}"):
        strict(engine, f"x@{domain}", sender, ret="full", text=b"between us\r\n")

    for host, place, with_it in ((able, home, True), (unable, plain, False)):
        [report] = mailbox(host, f"anna@{place}")
        assert told(report) == {f"x@{domain}": ("failed", "5.1.1")}
        third: Any = report.get_payload(2)
        assert third.get_content_type() == "text/rfc822-headers"
        assert "between us" not in report.as_string()
        assert said(host) == [with_it], "a bounce is not lost for want of it (section 5)"
        assert host.connections[-1].tls is not None


def test_its_sender_hears_that_no_host_can_have_it(engine: Engine, network: Network) -> None:
    home, (mine,) = network.site(OFFERS, tls=True, keep=True)
    domain, _ = network.site(Script(), tls=True)
    strict(engine, f"x@{domain}", f"anna@{home}")
    [report] = mailbox(mine, f"anna@{home}")
    assert told(report) == {f"x@{domain}": ("failed", "5.7.30")}
    assert "REQUIRETLS support required" in report.as_string()
    assert "You asked that it go only to mail servers that prove" in report.as_string()


@pytest.mark.parametrize("tls", ["none", "opportunistic", "required", "implicit"])
@pytest.mark.parametrize("proved", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_a_relay_is_asked_for_the_same(
    network: Network, make_engine: MakeEngine, roots: Path, tls: str, proved: bool, offered: bool
) -> None:
    (address,) = loopback_addresses()
    host = network.host(
        Script(requiretls=offered),
        address=address,
        names=(address if proved else "other.test",),
        implicit_tls=tls == "implicit",
    )
    settings: Tables = {
        "delivery": {"mode": "relay"},
        "relay": {"hosts": [f"{address}:{network.port}"], "tls": tls},
        "tls": {"ca_file": str(roots)},
    }
    engine = make_engine(workers=1, settings=settings).start()

    found = outcome(engine, strict(engine, "x@elsewhere.test", reports=False))

    if proved and offered:
        assert (found.status, said(host)) == ("delivered", [True])
    else:
        assert (found.status, found.reason) == ("failed", "policy")
        assert found.enhanced_code in ("5.7.10", "5.7.30")
        assert address in found.reply_text
        assert host.transactions == []
    assert outcome(engine, engine.send("y@elsewhere.test")).status == "delivered"


def test_what_a_client_says_to_the_listener_holds_on_the_way(
    network: Network, make_engine: MakeEngine, roots: Path, tmp_path: Path
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    port = free_port()
    settings: Tables = {
        "listener": {
            "bind": [f"127.0.0.1:{port}"],
            "tls_cert": str(tmp_path / "cert.pem"),
            "tls_key": str(tmp_path / "key.pem"),
        },
        "tls": {"ca_file": str(roots)},
    }
    engine = make_engine(workers=1, settings=settings).start()
    domain, (host,) = network.site(OFFERS, tls=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo()
        assert not client.has_extn("requiretls")
        assert client.docmd("MAIL", "FROM:<a@sender.test> REQUIRETLS")[0] in (530, 555)
        client.starttls(context=context)
        client.ehlo()
        assert client.has_extn("requiretls")
        client.sendmail(
            "a@sender.test", [f"b@{domain}"], "Subject: x\r\n\r\nx\r\n", mail_options=["REQUIRETLS"]
        )
    (row,) = engine.rows("SELECT id, requiretls FROM messages WHERE origin = 'smtp'")
    assert row.requiretls == 1
    assert outcome(engine, row.id).status == "delivered"
    assert said(host) == [True]
