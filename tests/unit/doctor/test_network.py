"""Checks of DNS, our name and the way out, on what a worker found."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from mailstrom.doctor import network
from mailstrom.doctor.finding import Finding
from mailstrom.outside import Host, Name, NameserverAnswer, Outside, Source
from tests.unit.doctor.facts import config, levels, only

SERVER = NameserverAnswer(server="192.0.2.53 port 53", udp_ms=4.0, tcp_ms=9.0)
NAME = Name(name="mail.example.org", addresses=["198.51.100.7"])
SOURCE = Source(
    address="198.51.100.7",
    public=True,
    local=True,
    names=["mail.example.org"],
    confirmed=["mail.example.org"],
)
HOST = Host(
    host="mx.probe.test", address="203.0.113.1", port=25, stage="done", ms=30.0, banner="220 hi"
)
SEEN = Outside(nameservers=[SERVER], hostname=NAME, sources=[SOURCE], hosts=[HOST])
RELAY = {
    "delivery": {"mode": "relay"},
    "relay": {"hosts": ["smtp.relay.test:587"], "tls": "required"},
}


def checked(tables: dict[str, Any] | None = None, **changes: Any) -> list[Finding]:
    return [*network.checks(replace(SEEN, **changes), config(**(tables or {})), "probe.test")]


def test_a_network_that_works_is_well() -> None:
    told = levels(checked())
    assert set(told.values()) == {"ok"}
    assert set(told) == {"dns.servers", "hostname.address", "hostname.reverse", "outgoing.port"}


# --- DNS ------------------------------------------------------------------------------------------

DEAD = replace(SERVER, udp_ms=None, tcp_ms=None, udp_error="no answer in time", tcp_error="x")


@pytest.mark.parametrize(
    ("servers", "check", "level"),
    [
        ([DEAD], "dns.servers", "problem"),
        ([SERVER, DEAD], "dns.servers", "warning"),
        ([replace(SERVER, tcp_ms=None, tcp_error="closed")], "dns.tcp", "warning"),
        ([replace(SERVER, udp_ms=None, udp_error="late")], "dns.udp", "warning"),
        ([replace(SERVER, udp_ms=None)], "dns.servers", "ok"),
        ([replace(SERVER, udp_ms=2_000.0)], "dns.servers", "warning"),
    ],
)
def test_nameservers(servers: list[NameserverAnswer], check: str, level: str) -> None:
    assert levels(checked(nameservers=servers))[check] == level


@pytest.mark.parametrize(
    ("hosts", "level"),
    [
        (["192.0.2.25"], "note"),
        (["[2001:db8::25]:587"], "note"),
        (["192.0.2.25", "smtp.relay.test"], "problem"),
    ],
)
def test_a_relay_told_by_its_address_needs_no_nameserver(hosts: list[str], level: str) -> None:
    tables = {**RELAY, "relay": {"hosts": hosts, "tls": "none"}}
    assert only(checked(tables, nameservers=[DEAD]), "dns.servers").level == level


@pytest.mark.parametrize(
    ("server", "check"),
    [
        (replace(SERVER, tcp_ms=None, tcp_error="closed"), "dns.tcp"),
        (replace(SERVER, udp_ms=None, udp_error="late"), "dns.udp"),
    ],
)
def test_a_relay_needs_a_nameserver_for_its_address_alone(
    server: NameserverAnswer, check: str
) -> None:
    found = only(checked(RELAY, nameservers=[server]), check)
    assert (found.level, "deferred" in found.found) == ("note", False)


# --- our name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tables", "level"), [({}, "warning"), (RELAY, "note")])
def test_a_name_that_is_not_qualified(tables: dict[str, Any], level: str) -> None:
    told = levels(checked({**tables, "hostname": "laptop"}))
    assert told["hostname.qualified"] == level
    assert "hostname.address" not in told


@pytest.mark.parametrize(
    ("name", "level"),
    [
        (Name(name="mail.example.org"), "warning"),
        (Name(name="mail.example.org", error="SERVFAIL"), "warning"),
        (Name(name="mail.example.org", addresses=["198.51.100.99"]), "note"),
    ],
)
def test_a_name_that_leads_nowhere_or_elsewhere(name: Name, level: str) -> None:
    assert levels(checked(hostname=name))["hostname.address"] == level


def test_a_private_address_is_a_routers_affair() -> None:
    private = Source(address="10.0.0.5", public=False, local=True)
    seen = checked(sources=[private, replace(SOURCE, local=False)])
    told = levels(seen)
    assert (told["hostname.private"], told["hostname.reverse"]) == ("note", "note")
    assert "10.0.0.5" in only(seen, "hostname.private").found


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"names": [], "confirmed": []}, "warning"),
        ({"names": ["other.test"], "confirmed": []}, "warning"),
        ({"names": ["vps7.test"], "confirmed": ["vps7.test"]}, "note"),
        ({"names": ["MAIL.example.org."], "confirmed": ["MAIL.example.org."]}, "ok"),
        ({"error": "SERVFAIL"}, "warning"),
    ],
)
def test_the_ptr_record_leads_back(changes: dict[str, Any], level: str) -> None:
    assert levels(checked(sources=[replace(SOURCE, **changes)]))["hostname.reverse"] == level
    relayed = levels(checked(RELAY, sources=[replace(SOURCE, **changes)]))
    assert relayed["hostname.reverse"] in ("ok", "note")


def test_the_advice_about_a_ptr_record_is_one_that_helps() -> None:
    def advice(hostname: str, *names: str, confirmed: bool = False) -> str:
        source = replace(SOURCE, names=[*names], confirmed=[*names] if confirmed else [])
        found = checked({"hostname": hostname}, sources=[source])
        return only(found, "hostname.reverse").advice

    assert "PTR record to mail.example.org," in advice("mail.example.org")
    assert advice("mail.example.org", "mail.example.org.").startswith("Let mail.example.org lead")
    assert "PTR record to a name of yours," in advice("localhost")
    told = advice("localhost", "mx.example.org.", confirmed=True)
    assert 'hostname = "mx.example.org"' in told
    assert "record to localhost" not in told


def test_where_an_error_happened_is_said_once() -> None:
    for error, told in (
        (f"connect at {HOST.host} [{HOST.address}]:{HOST.port}: refused", 1),
        ("refused", 1),
    ):
        found = only(checked(RELAY, hosts=[failed("connect", error)]), "outgoing.relay").found
        assert found.count(f"[{HOST.address}]") == told
        assert "refused" in found
        assert found.startswith("no session with the relay: ")


# --- the way out ----------------------------------------------------------------------------------


def failed(stage: str, error: str, **changes: Any) -> Host:
    return replace(HOST, stage=stage, error=error, banner=None, **changes)


@pytest.mark.parametrize(
    ("hosts", "level", "words"),
    [
        ([failed("connect", "no answer within 4 s")], "problem", "seems to be closed"),
        ([failed("connect", "x"), HOST], "ok", "open"),
        ([replace(failed("greeting", "no"), banner="554 blocked by list\nmore")], "warning",
         "(554 blocked by list)"),
        ([], "problem", "could not be tried: NXDOMAIN"),
    ],
)  # fmt: skip
def test_the_port_to_the_outside(hosts: list[Host], level: str, words: str) -> None:
    found = only(checked(hosts=hosts, no_hosts="NXDOMAIN"), "outgoing.port")
    assert found.level == level
    assert words in found.found


def test_without_any_nameserver_the_port_is_not_blamed() -> None:
    told = levels(checked(nameservers=[], hosts=[], trouble=["the system names no DNS servers"]))
    assert "outgoing.port" not in told
    assert told["dns.looked"] == "warning"


RELAYED = Host(
    host="smtp.relay.test", address="192.0.2.25", port=587, stage="done", ms=5.0,
    tls="TLSv1.3", starttls=True, auth=["LOGIN", "PLAIN"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("hosts", "level"),
    [
        ([RELAYED], "ok"),
        ([replace(RELAYED, tls=None)], "note"),
        ([failed("connect", "refused")], "problem"),
        ([failed("starttls", "certificate refused"), RELAYED], "warning"),
        ([], "problem"),
    ],
)
def test_the_relay(hosts: list[Host], level: str) -> None:
    assert levels(checked(RELAY, hosts=hosts))["outgoing.relay"] == level


def test_a_relay_without_auth_is_of_no_use_to_who_has_a_password(tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x\n")
    relay = {**RELAY["relay"], "username": "u", "password_file": str(secret)}
    tables = {**RELAY, "relay": relay}
    found = only(checked(tables, hosts=[replace(RELAYED, auth=[])]), "outgoing.relay")
    assert found.level == "problem"
    strange = {**RELAY, "relay": {**relay, "mechanism": "cram-md5"}}
    assert levels(checked(strange, hosts=[RELAYED]))["outgoing.auth"] == "warning"
    assert "outgoing.auth" not in levels(checked(tables, hosts=[RELAYED]))
