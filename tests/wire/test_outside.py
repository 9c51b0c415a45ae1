"""The network as a worker sees it: DNS, our name, mail hosts and a relay, on real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from typing import Any

import msgspec
import pytest
import trustme

from mailstrom import outside
from mailstrom.config import from_tables, to_json
from mailstrom.outside import Host, Outside, Question
from mailstrom.testing.dns import DNSServer, Zone
from mailstrom.testing.script import Act, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from mailstrom_workers.outside import look
from tests.support.engine import environment
from tests.support.sockets import free_port, loopback_addresses

PROBE = "probe.test"


def question(dns_port: int, port: int, seconds: float = 20.0, **tables: Any) -> Question:
    found: dict[str, Any] = {
        "store": "/nowhere/spool.db",
        "hostname": "mail.sender.test",
        "delivery": {"port": port, **tables.pop("delivery", {})},
        "dns": {
            "nameservers": [f"127.0.0.1:{dns_port}"],
            "allow_loopback": True,
            **tables.pop("dns", {}),
        },
        **tables,
    }
    config = msgspec.Raw(to_json(from_tables(found)))
    return Question(config=config, probe=PROBE, seconds=seconds)


def zone(*addresses: str, **more: Any) -> Zone:
    found: Zone = {
        "mail.sender.test": {"A": ["127.0.0.1"]},
        "1.0.0.127.in-addr.arpa": {"PTR": ["mail.sender.test."]},
        PROBE: {"MX": [f"{10 * n} mx{n}.{PROBE}." for n in range(1, len(addresses) + 1)]},
    }
    for n, address in enumerate(addresses, 1):
        found[f"mx{n}.{PROBE}"] = {"A": [address]}
    return {**found, **more}


def seen(records: Zone, script: Script | None = None, **options: Any) -> Outside:
    """What is found where one mail host of this script serves the probe."""

    async def run() -> Outside:
        [address] = loopback_addresses()
        port = free_port(address)
        known = {**zone(address), **records}
        async with (
            DNSServer(known) as dns,
            SMTPServer(address, port, script=script or Script()),
        ):
            return await look(question(dns.port, port, **options))

    return asyncio.run(run())


def test_a_network_that_works_is_told_in_full() -> None:
    found = seen({})
    [server] = found.nameservers
    assert (server.udp_error, server.tcp_error) == (None, None)
    assert server.udp_ms is not None
    assert server.tcp_ms is not None
    assert found.hostname is not None
    assert found.hostname.addresses == ["127.0.0.1"]
    [source] = found.sources
    assert (source.address, source.local, source.public) == ("127.0.0.1", True, False)
    assert (source.names, source.confirmed) == (["mail.sender.test"], ["mail.sender.test"])
    [host] = found.hosts
    assert (host.host, host.stage, host.error) == (f"mx1.{PROBE}", "done", None)
    assert (host.banner or "").startswith("220")
    assert (found.trouble, found.no_hosts) == ([], None)


def test_of_a_mail_host_only_the_greeting_is_heard() -> None:
    said: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220-a greeting\r\n220 of two lines\r\n")
        said.append(await reader.read())
        writer.close()

    async def run() -> Outside:
        [address] = loopback_addresses()
        server = await asyncio.start_server(serve, address, free_port(address))
        async with server, DNSServer(zone(address)) as dns:
            return await look(question(dns.port, server.sockets[0].getsockname()[1]))

    [host] = asyncio.run(run()).hosts
    assert host.banner == "220-a greeting\n220 of two lines"
    assert said == [b"QUIT\r\n"]


def test_a_ptr_record_that_does_not_lead_back_is_not_confirmed() -> None:
    wrong: Zone = {
        "1.0.0.127.in-addr.arpa": {"PTR": ["other.test.", "mail.sender.test.", r"a\032b.test."]},
        "other.test": {"A": ["127.0.0.9"]},
    }
    [source] = seen(wrong).sources
    assert sorted(source.names) == ["a b.test", "mail.sender.test", "other.test"]
    assert source.confirmed == ["mail.sender.test"]
    [none] = seen({"1.0.0.127.in-addr.arpa": "NXDOMAIN"}).sources
    assert (none.names, none.confirmed, none.error) == ([], [], None)
    [failing] = seen({"1.0.0.127.in-addr.arpa": "SERVFAIL"}).sources
    assert "SERVFAIL" in (failing.error or "")


def test_a_nameserver_without_tcp_and_one_that_is_dead() -> None:
    [half] = seen({PROBE: "TRUNCATE_DEAD"}).nameservers
    assert half.udp_error is None
    assert half.tcp_error is not None
    [refusing] = seen({PROBE: "REFUSED"}).nameservers
    assert (refusing.udp_error, refusing.tcp_error) == ("REFUSED", "REFUSED")
    for word in ("SERVFAIL", "NXDOMAIN"):
        [useless] = seen({PROBE: word, ".": word}).nameservers
        assert (useless.udp_error, useless.tcp_error) == (word, word)
    found = seen({PROBE: "TIMEOUT"}, dns={"timeout": "200ms"})
    [silent] = found.nameservers
    assert (silent.udp_ms, silent.tcp_ms) == (None, None)
    assert found.hosts == []
    assert found.no_hosts


@pytest.mark.parametrize("fault", ["SERVFAIL", "NXDOMAIN"])
def test_a_nameserver_is_not_to_blame_for_one_domain_that_fails(fault: str) -> None:
    found = seen({PROBE: fault})
    [server] = found.nameservers
    assert (server.udp_error, server.tcp_error) == (None, None)
    assert found.no_hosts


def greeted(rule: Rule) -> Host:
    [host] = seen({}, Script(rules=(rule,))).hosts
    return host


def test_hosts_that_do_not_greet() -> None:
    refused = greeted(Rule(stage="greeting", code=554, text="listed\x1b[2J"))
    assert (refused.stage, bool(refused.error)) == ("greeting", True)
    assert (refused.banner or "").startswith("554")
    closed = greeted(Rule(stage="greeting", act=Act.CLOSE))
    assert (closed.stage, closed.error) == (
        "greeting", "connected, and then: the server closed the connection",
    )  # fmt: skip
    endless = greeted(Rule(stage="greeting", act=Act.GARBAGE, data="x" * 100_000))
    assert endless.stage == "greeting"
    assert endless.error


def test_nobody_at_the_port() -> None:
    async def run() -> Outside:
        [address] = loopback_addresses()
        async with DNSServer(zone(address)) as dns:
            return await look(question(dns.port, free_port(address)))

    [host] = asyncio.run(run()).hosts
    assert (host.stage, host.error) == ("connect", "Connection refused")


def relayed(tls: str, script: Script, *, trusted: bool = False) -> Host:
    """A relay on this machine; nobody trusts its certificate unless asked to."""

    async def run() -> Outside:
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        with authority.cert_pem.tempfile() as ca_file:
            demands = {"tls": {"verify": True, **({"ca_file": ca_file} if trusted else {})}}
            async with (
                DNSServer(zone("127.0.0.1")) as dns,
                SMTPServer(script=script, tls=context) as server,
            ):
                relay = {"hosts": [f"127.0.0.1:{server.port}"], "tls": tls}
                more = {"delivery": {"mode": "relay"}, "relay": relay}
                return await look(
                    question(dns.port, 25, **more, **(demands if tls == "required" else {}))
                )

    [host] = asyncio.run(run()).hosts
    return host


def test_a_relay_tells_its_tls_and_auth_and_is_told_no_password() -> None:
    script = Script(auth={"joe": "secret"}, mechanisms=("PLAIN", "CRAM-MD5"))
    host = relayed("required", script, trusted=True)
    assert (host.stage, host.error, host.auth) == ("done", None, ["CRAM-MD5", "PLAIN"])
    assert (host.tls or "").startswith("TLSv1")
    plain = relayed("none", Script())
    assert (plain.stage, plain.tls, plain.auth) == ("done", None, [])


def test_a_relay_whose_certificate_is_refused() -> None:
    host = relayed("required", Script())
    assert host.stage == "starttls"
    assert "certificate" in (host.error or "")


def test_a_relay_that_says_nothing_more_is_given_up() -> None:
    async def run() -> Outside:
        script = Script(rules=(Rule(stage="ehlo", act=Act.SILENCE),))
        async with DNSServer(zone("127.0.0.1")) as dns, SMTPServer(script=script) as server:
            relay = {"hosts": [f"127.0.0.1:{server.port}"], "tls": "none"}
            more = {"delivery": {"mode": "relay"}, "relay": relay}
            return await look(question(dns.port, 25, seconds=3.0, **more))

    [host] = asyncio.run(run()).hosts
    assert host.error == "no session within 1.5 s"


def test_nothing_is_left_to_look_at_when_the_time_is_over() -> None:
    slow = {"values": ["127.0.0.1"], "delay": 60.0}
    found = seen({"mail.sender.test": {"A": slow}}, seconds=0.5)
    assert found.trouble


def test_as_a_process_it_answers_in_json() -> None:
    asked = outside.encode(question(free_port(), 25, seconds=5, dns={"timeout": "100ms"}))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mailstrom_workers.outside"],
        input=asked,
        env=environment(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == b""
    assert outside.outside(done.stdout).nameservers[0].udp_ms is None
    assert isinstance(json.loads(done.stdout), dict)
