"""Stories of resolver choices: which servers a real engine asks, and what becomes of mail without.

Whatever goes wrong between us and a nameserver is never "no such domain": the mail waits, the
``domains`` view says why, and it leaves once somebody answers.
"""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from mailstrom.testing.dns import DNSServer, Zone
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import Engine
from tests.support.network import Network
from tests.support.sockets import free_port

NAME = "dns.us.test"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that engines of this test trust as they would the system's."""
    roots = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    return authority


def _certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    return context


def _one_domain(network: Network) -> tuple[str, Zone]:
    """A domain of one host, and a zone that says so; the network's own DNS does not know it."""
    domain, host = network.new_domain(), network.host()
    return domain, {domain: {"MX": [f"10 mx.{domain}."]}, f"mx.{domain}": {"A": [host.host]}}


def _over_tls(*servers: str, name: str = NAME) -> dict[str, dict[str, object]]:
    return {"dns": {"nameservers": list(servers), "tls": True, "tls_hostname": name}}


def _place(server: DNSServer) -> str:
    return (
        f"[{server.host}]:{server.port}" if ":" in server.host else f"{server.host}:{server.port}"
    )


def test_dns_over_tls_delivers(
    network: Network, make_engine: MakeEngine, trusted: trustme.CA
) -> None:
    domain, zone = _one_domain(network)
    with DNSServer(zone, tls=_certified(trusted)).in_thread() as secure:
        engine = make_engine(workers=1, settings=_over_tls(_place(secure))).start()

        assert engine.final(engine.send(f"a@{domain}")).succeeded

        assert secure.tcp_queries == secure.total > 0
        assert network.asked(domain, "MX") == 0
        assert engine.stop() == 0


def _another_name(stack: ExitStack, authority: trustme.CA) -> tuple[list[str], str]:
    server = stack.enter_context(DNSServer({}, tls=_certified(authority)).in_thread())
    return [_place(server)], "other.us.test"


def _another_authority(stack: ExitStack, _: trustme.CA) -> tuple[list[str], str]:
    server = stack.enter_context(DNSServer({}, tls=_certified(trustme.CA())).in_thread())
    return [_place(server)], NAME


def _no_tls(stack: ExitStack, _: trustme.CA) -> tuple[list[str], str]:
    return [_place(stack.enter_context(DNSServer({}).in_thread()))], NAME


def _nobody(_: ExitStack, __: trustme.CA) -> tuple[list[str], str]:
    return [f"127.0.0.1:{free_port()}"], NAME


# Empty zones: whoever believed these servers would take the domain as missing and fail the mail.
UNTRUSTED: dict[str, tuple[Callable[[ExitStack, trustme.CA], tuple[list[str], str]], str]] = {
    "another name": (_another_name, "Hostname mismatch"),
    "another authority": (_another_authority, "certificate is refused"),
    "no TLS on that port": (_no_tls, "does it offer DNS over TLS"),
    "nobody there": (_nobody, "Connection refused"),
}


@pytest.mark.parametrize("what", UNTRUSTED)
def test_without_the_right_server_mail_waits_and_says_why(
    what: str, network: Network, make_engine: MakeEngine, trusted: trustme.CA
) -> None:
    make, words = UNTRUSTED[what]
    domain, zone = _one_domain(network)
    with ExitStack() as stack:
        servers, name = make(stack, trusted)
        secure = stack.enter_context(DNSServer(zone, tls=_certified(trusted)).in_thread())
        settings = _over_tls(*servers, name=name)
        settings["dns"]["timeout"] = "4s"  # one of them is silent
        engine = make_engine(workers=1, settings=settings).start()
        id = engine.send(f"a@{domain}")

        (known,) = engine.until("SELECT * FROM domains WHERE name = ? AND error > ''", domain)
        assert (known.result, known.site) == ("temporary", None)
        assert words in known.error
        (row,) = engine.ms.status(id).recipients.values()
        assert (row.status, row.reason, row.attempts) == ("deferred", "dns", 0)

        engine.configure(_over_tls(_place(secure)))
        engine.signal(signal.SIGHUP)
        assert engine.final(id).succeeded
        assert engine.stop() == 0


@pytest.mark.parametrize("tls", [True, False])
def test_a_dead_server_is_passed_over(
    tls: bool, network: Network, make_engine: MakeEngine, trusted: trustme.CA
) -> None:
    domain, zone = _one_domain(network)
    context = _certified(trusted) if tls else None
    with DNSServer(zone, tls=context).in_thread() as good:
        servers = [f"127.0.0.1:{free_port()}", _place(good)]
        settings = _over_tls(*servers) if tls else {"dns": {"nameservers": servers}}
        engine = make_engine(workers=1, settings=settings).start()

        assert engine.final(engine.send(f"a@{domain}")).succeeded
        assert engine.stop() == 0


@pytest.mark.parametrize("tcp", [True, False])
def test_questions_go_by_udp_or_by_tcp(
    tcp: bool, network: Network, make_engine: MakeEngine
) -> None:
    domain, zone = _one_domain(network)
    with DNSServer(zone).in_thread() as server:
        settings = {"dns": {"nameservers": [_place(server)], "tcp": tcp}}
        engine = make_engine(workers=1, settings=settings).start()

        assert engine.final(engine.send(f"a@{domain}")).succeeded
        assert server.tcp_queries == (server.total if tcp else 0)
        assert engine.stop() == 0


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
def test_a_nameserver_may_have_an_ipv6_address(network: Network, make_engine: MakeEngine) -> None:
    domain, zone = _one_domain(network)
    with DNSServer(zone, host="::1").in_thread() as six:
        engine: Engine = make_engine(
            workers=1, settings={"dns": {"nameservers": [_place(six)]}}
        ).start()

        assert engine.final(engine.send(f"a@{domain}")).succeeded
        assert six.total > 0
        assert engine.stop() == 0


def test_tls_with_the_system_resolver_does_not_start(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=1, settings={"dns": {"nameservers": [], "tls": True}})
    engine.start(wait=False)

    assert engine.wait_exit() == 78
    (line,) = engine.log("text")
    assert "[dns] tls needs nameservers, or a resolver other than system" in line["text"]
