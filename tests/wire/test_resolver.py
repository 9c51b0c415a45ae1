"""The resolver against a real DNS server on loopback: RFC 5321 section 5, RFC 7505.

One file past 400 lines: it is one table of zones and what they mean, with its few companions.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import dns.message
import pytest
import trustme

from mailstrom.config import nameserver_name, nameservers
from mailstrom.config.settings import Dns
from mailstrom.errors import ConfigError
from mailstrom.testing.dns import DNSServer, Zone
from mailstrom.types import Route, RouteResult
from mailstrom_workers.nameservers import MOST_STRANGE, Nameservers
from mailstrom_workers.resolver import MAX_RECORDS, AddressError, Resolver
from tests.hostile.dns_peer import (
    NS,
    A,
    Act,
    Out,
    Peer,
    Question,
    address,
    message,
    mx,
    record,
    right,
    soa,
    spelled,
)
from tests.support.sockets import free_port

T = TypeVar("T")
Ask = Callable[[Resolver, DNSServer], Awaitable[T]]
OWN = ("mail.us.test",)


PATIENCE_S = 20.0
"""Longer than a machine stands still: only what is silent on purpose is waited for so long."""


def with_dns(zone: Zone, ask: Ask[T], *, timeout: float = PATIENCE_S, loopback: bool = False) -> T:
    async def run() -> T:
        async with DNSServer(zone) as server:
            resolver = Resolver(
                [(server.host, server.port)],
                timeout,
                own_names=OWN,
                allow_loopback=loopback,
                random=lambda: 0.5,
            )
            try:
                return await ask(resolver, server)
            finally:
                await resolver.close()

    return asyncio.run(run())


def route(zone: Zone, domain: str = "d.test", *, timeout: float = PATIENCE_S) -> Route:
    return with_dns(zone, lambda resolver, _: resolver.route(domain), timeout=timeout)


def names(found: Route) -> list[str]:
    return [host.name for host in found.hosts]


CHAIN = {f"c{i}.test": {"CNAME": [f"c{i + 1}.test"]} for i in range(30)}

MAIL: Zone = {"d.test": {"MX": ["10 a.test"]}}

# zone, result, host names
ROUTES: dict[str, tuple[Zone, RouteResult, list[str]]] = {
    "mx sorted by preference": (
        {"d.test": {"MX": ["20 b.test", "10 c.test", "30 a.test"]}},
        RouteResult.MX,
        ["c.test", "b.test", "a.test"],
    ),
    "mx names in lower case": (
        {"d.test": {"MX": ["10 MX.Example.TEST"]}},
        RouteResult.MX,
        ["mx.example.test"],
    ),
    "the same mx twice counts once, with its best preference": (
        {"d.test": {"MX": ["20 a.test", "10 b.test", "5 a.test"]}},
        RouteResult.MX,
        ["a.test", "b.test"],
    ),
    "no mx but an address": ({"d.test": {"A": ["192.0.2.1"]}}, RouteResult.IMPLICIT, ["d.test"]),
    "no mx but an ipv6 address": (
        {"d.test": {"AAAA": ["2001:db8::1"]}},
        RouteResult.IMPLICIT,
        ["d.test"],
    ),
    "implicit mx though one family fails": (
        {"d.test": {"A": ["192.0.2.1"], "AAAA": "SERVFAIL"}},
        RouteResult.IMPLICIT,
        ["d.test"],
    ),
    "neither mx nor address": ({"d.test": {"TXT": ["x"]}}, RouteResult.NO_DOMAIN, []),
    "only names below it": ({"www.d.test": {"A": ["192.0.2.1"]}}, RouteResult.NO_DOMAIN, []),
    "no such domain": ({}, RouteResult.NO_DOMAIN, []),
    "no address and one family unknown": (
        {"d.test": {"AAAA": "SERVFAIL"}},
        RouteResult.TEMPORARY,
        [],
    ),
    "null mx": ({"d.test": {"MX": ["0 ."]}}, RouteResult.NULL_MX, []),
    "null mx beats an address": (
        {"d.test": {"MX": ["0 ."], "A": ["192.0.2.1"]}},
        RouteResult.NULL_MX,
        [],
    ),
    "root among others is ignored": (
        {"d.test": {"MX": ["0 .", "10 a.test"]}},
        RouteResult.MX,
        ["a.test"],
    ),
    "servfail": ({"d.test": {"MX": "SERVFAIL", "A": ["192.0.2.1"]}}, RouteResult.TEMPORARY, []),
    "refused": ({"d.test": {"MX": "REFUSED", "A": ["192.0.2.1"]}}, RouteResult.TEMPORARY, []),
    "formerr": ({"d.test": {"MX": "FORMERR", "A": ["192.0.2.1"]}}, RouteResult.TEMPORARY, []),
    "truncated, whole by tcp": (
        {"d.test": {"MX": {"values": ["10 a.test"], "fault": "TRUNCATE"}}},
        RouteResult.MX,
        ["a.test"],
    ),
    "truncated and tcp dead": (
        {"d.test": {"MX": "TRUNCATE_DEAD", "A": ["192.0.2.1"]}},
        RouteResult.TEMPORARY,
        [],
    ),
    "truncated by tcp, too, and empty": (
        {"d.test": {"MX": "TRUNCATE_EMPTY", "A": "TRUNCATE_EMPTY", "AAAA": "TRUNCATE_EMPTY"}},
        RouteResult.TEMPORARY,
        [],
    ),
    "truncated by tcp, too, with some": (
        {"d.test": {"MX": {"values": ["20 b.test", "10 a.test"], "fault": "TRUNCATE_PART"}}},
        RouteResult.TEMPORARY,
        [],
    ),
    "ip text as mx is no host": (
        {"d.test": {"MX": ["10 192.0.2.7", "20 a.test"]}},
        RouteResult.MX,
        ["a.test"],
    ),
    "only ip text as mx": ({"d.test": {"MX": ["10 192.0.2.7"]}}, RouteResult.TEMPORARY, []),
    "nul, space, control, dot in a label": (
        {
            "d.test": {
                "MX": [
                    r"1 a\000b.test",
                    r"2 a\032b.test",
                    r"3 a\013\010b.test",
                    r"4 a\.b.test",
                    "9 a.test",
                ]
            }
        },
        RouteResult.MX,
        ["a.test"],
    ),
    "own name and worse ones removed": (
        {"d.test": {"MX": ["10 a.test", "20 MAIL.us.test", "20 b.test", "30 c.test"]}},
        RouteResult.MX,
        ["a.test"],
    ),
    "own name is best": (
        {"d.test": {"MX": ["10 mail.us.test", "10 b.test", "20 c.test"]}},
        RouteResult.LOOP,
        [],
    ),
    "own name by cname is implicit": (
        {"d.test": {"CNAME": ["mail.us.test"]}, "mail.us.test": {"A": ["192.0.2.1"]}},
        RouteResult.LOOP,
        [],
    ),
    "cname to a domain with mx": (
        {"d.test": {"CNAME": ["e.test"]}, "e.test": {"MX": ["10 a.test"]}},
        RouteResult.MX,
        ["a.test"],
    ),
    "cname to a domain without mx": (
        {"d.test": {"CNAME": ["e.test"]}, "e.test": {"A": ["192.0.2.1"]}},
        RouteResult.IMPLICIT,
        ["e.test"],
    ),
    "cname to nothing": ({"d.test": {"CNAME": ["e.test"]}}, RouteResult.NO_DOMAIN, []),
    "cname to servfail": (
        {"d.test": {"CNAME": ["e.test"]}, "e.test": "SERVFAIL"},
        RouteResult.TEMPORARY,
        [],
    ),
    "cname loop": (
        {"d.test": {"CNAME": ["e.test"]}, "e.test": {"CNAME": ["d.test"]}},
        RouteResult.TEMPORARY,
        [],
    ),
    "cname to itself": ({"d.test": {"CNAME": ["d.test"]}}, RouteResult.TEMPORARY, []),
    "long cname chain": (
        {"d.test": {"CNAME": ["c0.test"]}, **CHAIN, "c30.test": {"MX": ["10 a.test"]}},
        RouteResult.TEMPORARY,
        [],
    ),
    "eight cnames are followed": (
        {"d.test": {"CNAME": ["c23.test"]}, **CHAIN, "c30.test": {"MX": ["10 a.test"]}},
        RouteResult.MX,
        ["a.test"],
    ),
    "nine cnames are not": (
        {"d.test": {"CNAME": ["c22.test"]}, **CHAIN, "c30.test": {"MX": ["10 a.test"]}},
        RouteResult.TEMPORARY,
        [],
    ),
    "cname into strange characters": (
        {"d.test": {"CNAME": [r"a\032b.test"]}, r"a\032b.test": {"MX": ["10 a.test"]}},
        RouteResult.TEMPORARY,
        [],
    ),
}


@pytest.mark.parametrize("case", ROUTES)
def test_route(case: str) -> None:
    zone, result, hosts = ROUTES[case]
    found = route(zone)
    assert (found.result, names(found)) == (result, hosts)
    assert (found.error is None) == bool(hosts)
    assert found.domain == "d.test"


@pytest.mark.parametrize("fault", ["TIMEOUT", "GARBAGE", "WRONG_ID", "WRONG_QUESTION"])
def test_silence_and_forged_answers_are_temporary_and_end_in_time(fault: str) -> None:
    zone: Zone = {"d.test": {"MX": {"values": ["10 evil.test"], "fault": fault}}}
    found = route(zone, timeout=0.3)
    assert found.result is RouteResult.TEMPORARY
    assert found.hosts == ()
    assert found.ttl_s == 60
    assert found.error is not None
    assert "MX lookup of d.test failed" in found.error


def test_fifty_hosts_at_most_and_the_best_of_them() -> None:
    records = [f"{i} mx{i}.test" for i in range(1000)]
    found = route({"d.test": {"MX": records}})
    assert names(found) == [f"mx{i}.test" for i in range(50)]


@pytest.mark.parametrize(
    ("domain", "result", "hosts"),
    [
        ("[192.0.2.1]", RouteResult.LITERAL, ["192.0.2.1"]),
        ("[IPv6:2001:db8::1]", RouteResult.LITERAL, ["2001:db8::1"]),
        ("[ipv6:2001:DB8::1]", RouteResult.LITERAL, ["2001:db8::1"]),
        ("[2001:db8::1]", RouteResult.NO_DOMAIN, []),
        ("[IPv6:192.0.2.1]", RouteResult.NO_DOMAIN, []),
        ("[192.0.2.1", RouteResult.NO_DOMAIN, []),
        ("[]", RouteResult.NO_DOMAIN, []),
        ("192.0.2.1", RouteResult.NO_DOMAIN, []),
        ("", RouteResult.NO_DOMAIN, []),
        ("a..test", RouteResult.NO_DOMAIN, []),
        ("a b.test", RouteResult.NO_DOMAIN, []),
        ("a\x00.test", RouteResult.NO_DOMAIN, []),
        ("é.test", RouteResult.NO_DOMAIN, []),
        ("x" * 64 + ".test", RouteResult.NO_DOMAIN, []),
        (".".join(["x" * 63] * 4), RouteResult.NO_DOMAIN, []),
    ],
)
def test_what_is_no_domain_is_never_asked(
    domain: str, result: RouteResult, hosts: list[str]
) -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> tuple[Route, int]:
        return await resolver.route(domain), server.total

    found, asked = with_dns({}, ask)
    assert (found.result, names(found)) == (result, hosts)
    assert asked == 0


@pytest.mark.parametrize(
    ("entry", "ttl_s"),
    [
        ({"MX": ["10 a.test"], "TTL": 0}, 30),
        ({"MX": ["10 a.test"], "TTL": 777}, 777),
        ({"MX": ["10 a.test"], "TTL": 2**31 - 1}, 3600),
        ({"MX": ["0 ."], "TTL": 500}, 500),
        ({"A": ["192.0.2.1"], "TTL": 3000}, 60),
        ("NXDOMAIN", 60),
        ("SERVFAIL", 60),
    ],
)
def test_time_to_live_is_clamped(entry: str | dict[str, object], ttl_s: int) -> None:
    assert route({"d.test": entry}).ttl_s == ttl_s


@pytest.mark.parametrize(("soa_s", "ttl_s"), [(1, 30), (120, 120), (86_400, 300)])
def test_negative_answers_live_by_their_soa(soa_s: int, ttl_s: int) -> None:
    async def ask() -> list[int]:
        zone: Zone = {"nodata.test": {"TXT": ["x"]}}
        async with DNSServer(zone, negative_ttl_s=soa_s) as server:
            resolver = Resolver([(server.host, server.port)])
            return [(await resolver.route(d)).ttl_s for d in ("nodata.test", "missing.test")]

    assert asyncio.run(ask()) == [ttl_s, ttl_s]


def test_the_zone_may_change_while_the_server_runs() -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> list[RouteResult]:
        results = [(await resolver.route("d.test")).result]
        server.zone["d.test"] = {"MX": ["0 ."]}
        results.append((await resolver.route("d.test")).result)
        server.zone["d.test"] = "SERVFAIL"
        return [*results, (await resolver.route("d.test")).result]

    zone: Zone = {"d.test": {"MX": ["10 a.test"]}}
    assert with_dns(zone, ask) == [RouteResult.MX, RouteResult.NULL_MX, RouteResult.TEMPORARY]


def test_the_second_name_server_answers_where_the_first_fails() -> None:
    async def ask() -> RouteResult:
        async with (
            DNSServer({"d.test": "SERVFAIL"}) as bad,
            DNSServer({"d.test": {"MX": ["10 a.test"]}}) as good,
        ):
            servers = [(bad.host, bad.port), (good.host, good.port)]
            return (await Resolver(servers).route("d.test")).result

    assert asyncio.run(ask()) is RouteResult.MX


def test_the_second_name_server_answers_where_the_first_is_silent() -> None:
    async def ask() -> RouteResult:
        async with (
            DNSServer({"d.test": "TIMEOUT"}) as silent,
            DNSServer({"d.test": {"MX": ["10 a.test"]}}) as good,
        ):
            servers = [(silent.host, silent.port), (good.host, good.port)]
            return (await Resolver(servers, 2.0).route("d.test")).result

    assert asyncio.run(ask()) is RouteResult.MX


def test_two_lost_datagrams_cost_no_answer() -> None:
    class Losing(asyncio.DatagramProtocol):
        asked = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)  # uvloop's is none by class

        def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
            self.asked += 1
            if self.asked > 2:
                answer = dns.message.make_response(dns.message.from_wire(data))
                self.transport.sendto(answer.to_wire(), sender)

    async def ask() -> int:
        loop = asyncio.get_running_loop()
        transport, losing = await loop.create_datagram_endpoint(Losing, local_addr=("127.0.0.1", 0))
        try:
            servers = Nameservers.of([transport.get_extra_info("sockname")], 2.0)
            response = await servers.ask("d.test", "MX", loop.time() + 2.0)
            assert response.rcode == 0
        finally:
            transport.close()
        return losing.asked

    assert asyncio.run(ask()) == 3


def test_no_name_server_at_all_is_temporary() -> None:
    async def ask() -> RouteResult:
        gone = ("127.0.0.1", free_port())
        return (await Resolver([gone], 0.5).route("d.test")).result

    assert asyncio.run(ask()) is RouteResult.TEMPORARY


# Addresses


def test_addresses_of_both_families_take_turns_ipv4_first() -> None:
    zone: Zone = {
        "h.test": {
            "A": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"],
            "AAAA": ["2001:db8::1", "2001:db8::2"],
        }
    }
    found = with_dns(zone, lambda resolver, _: resolver.addresses("h.test"))
    families = [":" in ip for ip in found.ips]
    assert families == [False, True, False, True, False]
    assert len(set(found.ips)) == 5
    assert found.error is None


def test_addresses_that_nobody_told_are_asked_for_again_before_the_site_is_tried_again() -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> tuple[int, int]:
        return (await resolver.addresses("h.test")).ttl_s, (
            await resolver.addresses("i.test")
        ).ttl_s

    zone: Zone = {"h.test": "SERVFAIL", "i.test": {"A": ["192.0.2.1"], "AAAA": "SERVFAIL"}}
    assert with_dns(zone, ask) == (10, 60)


ADDRESSES: dict[str, tuple[Zone, AddressError | None, tuple[str, ...]]] = {
    "no such host": ({}, AddressError.NO_HOST, ()),
    "no address": ({"h.test": {"TXT": ["x"]}}, AddressError.NO_HOST, ()),
    "servfail": ({"h.test": "SERVFAIL"}, AddressError.TEMPORARY, ()),
    "one family fails, the other is empty": (
        {"h.test": {"AAAA": "SERVFAIL"}},
        AddressError.TEMPORARY,
        (),
    ),
    "one family fails, the other answers": (
        {"h.test": {"A": "REFUSED", "AAAA": ["2001:db8::1"]}},
        None,
        ("2001:db8::1",),
    ),
    "mx target is a cname": (
        {"h.test": {"CNAME": ["i.test"]}, "i.test": {"A": ["192.0.2.1"]}},
        None,
        ("192.0.2.1",),
    ),
    "only loopback": ({"h.test": {"A": ["127.0.0.1"]}}, AddressError.REFUSED, ()),
    "loopback, unspecified, mapped": (
        {"h.test": {"A": ["127.9.9.9", "0.0.0.0"], "AAAA": ["::1", "::", "::ffff:127.0.0.1"]}},
        AddressError.REFUSED,
        (),
    ),
    "loopback beside a real address": (
        {"h.test": {"A": ["127.0.0.1", "192.0.2.1"]}},
        None,
        ("192.0.2.1",),
    ),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_addresses(case: str) -> None:
    zone, error, ips = ADDRESSES[case]
    found = with_dns(zone, lambda resolver, _: resolver.addresses("h.test"))
    assert (found.error, found.ips) == (error, ips)
    assert (found.text is None) == (error is None)


def test_loopback_is_used_where_it_is_allowed_but_never_zero() -> None:
    zone: Zone = {"h.test": {"A": ["127.0.0.7", "0.0.0.0"]}}
    found = with_dns(zone, lambda resolver, _: resolver.addresses("h.test"), loopback=True)
    assert found.ips == ("127.0.0.7",)


def test_a_relay_may_be_on_loopback_without_the_setting() -> None:
    zone: Zone = {"h.test": {"A": ["127.0.0.7"]}}
    found = with_dns(zone, lambda resolver, _: resolver.addresses("h.test", relay=True))
    assert found.ips == ("127.0.0.7",)


@pytest.mark.parametrize(
    ("host", "error", "ips"),
    [
        ("192.0.2.9", None, ("192.0.2.9",)),
        ("2001:db8::9", None, ("2001:db8::9",)),
        ("127.0.0.1", AddressError.REFUSED, ()),
        ("a b", AddressError.NO_HOST, ()),
    ],
)
def test_ip_text_and_nonsense_need_no_question(
    host: str, error: AddressError | None, ips: tuple[str, ...]
) -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> int:
        found = await resolver.addresses(host)
        assert (found.error, found.ips) == (error, ips)
        return server.total

    assert with_dns({}, ask) == 0


def test_addresses_are_remembered_failures_too() -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> list[int]:
        counts = []
        for host in ("h.test", "h.test", "missing.test", "missing.test", "bad.test", "bad.test"):
            await resolver.addresses(host)
            counts.append(server.total)
        return counts

    zone: Zone = {"h.test": {"A": ["192.0.2.1"]}, "bad.test": "SERVFAIL"}
    assert with_dns(zone, ask) == [2, 2, 4, 4, 6, 6]


def test_of_very_many_addresses_some_are_kept_by_lot() -> None:
    told = [f"192.0.2.{number}" for number in range(1, 201)]

    async def ask(_: Resolver, server: DNSServer) -> tuple[set[str], int]:
        lot = random.Random(7).random
        resolver = Resolver([(server.host, server.port)], PATIENCE_S, random=lot)
        found = {ip for _ in range(200) for ip in (await resolver.addresses("h.test")).ips}
        await resolver.close()
        return found, server.queries["h.test", "A"]

    found, asked = with_dns({"h.test": {"A": list(told)}}, ask)
    assert asked == 2  # by UDP, and since that was cut off by TCP; then never again
    assert len(found) == MAX_RECORDS  # five of these at a time
    assert found < set(told)


@pytest.mark.parametrize("step", [1, -1])
def test_the_lot_may_fall_on_each_of_very_many_addresses(step: int) -> None:
    told = [f"192.0.2.{number}" for number in range(1, 201)]
    lot = itertools.count(0, step)  # what is told first goes first, or last

    def answers(question: Question) -> Iterator[Act]:
        if question.kind == A:
            return right(question, *map(address, told))
        return right(question, authority=[soa()])

    async def ask(peer: Peer) -> tuple[str, ...]:
        resolver = Resolver([(peer.host, peer.port)], PATIENCE_S, random=lambda: float(next(lot)))
        found = (await resolver.addresses("h.test")).ips
        await resolver.close()
        return found

    with Peer() as peer:
        peer.says("h.test", answers)
        found = asyncio.run(ask(peer))
    assert found
    assert set(found) < set(told[:MAX_RECORDS] if step > 0 else told[-MAX_RECORDS:])


def test_the_same_question_is_asked_once_at_a_time() -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> int:
        found = await asyncio.gather(*(resolver.route("d.test") for _ in range(50)))
        assert {names(one)[0] for one in found} == {"a.test"}
        return server.queries["d.test", "MX"]

    zone: Zone = {"d.test": {"MX": {"values": ["10 a.test"], "delay": 0.05}}}
    assert with_dns(zone, ask) == 1


def test_one_cancelled_caller_does_not_take_the_answer_from_the_others() -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> Route:
        first = asyncio.ensure_future(resolver.route("d.test"))
        second = asyncio.ensure_future(resolver.route("d.test"))
        await server.asked(1)
        first.cancel()
        return await second

    zone: Zone = {"d.test": {"MX": {"values": ["10 a.test"], "delay": 0.05}}}
    assert names(with_dns(zone, ask)) == ["a.test"]


def test_hosts_that_are_looked_for_at_once_are_bounded_and_hold_up_no_domain() -> None:
    async def ask() -> list[str]:
        zone: Zone = {f"h{i}.test": "TIMEOUT" for i in range(200)}
        async with DNSServer(zone) as server:
            resolver = Resolver([(server.host, server.port)], PATIENCE_S, tcp=True)
            asking = [asyncio.ensure_future(resolver.addresses(f"h{i}.test")) for i in range(200)]
            await server.asked(2 * resolver.places)  # A and AAAA
            assert server.total == 2 * resolver.places == 2 * 128
            zone["d.test"] = {"MX": ["10 a.test"]}
            found = await resolver.route("d.test")
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            return names(found)

    assert asyncio.run(ask()) == ["a.test"]


def test_a_lookup_that_nobody_waits_for_ends_and_who_comes_then_asks_anew() -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> list[str]:
        first = asyncio.ensure_future(resolver.route("d.test"))
        await server.asked(1)
        open_then = len(os.listdir("/proc/self/fd"))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        server.zone["d.test"] = {"MX": ["10 a.test"]}
        found = names(await resolver.route("d.test"))
        assert len(os.listdir("/proc/self/fd")) < open_then
        return found

    assert with_dns({"d.test": "TIMEOUT"}, ask, timeout=600) == ["a.test"]


def test_dns_over_tls_checks_the_name(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("dns.us.test").configure_cert(context)

    async def ask() -> list[RouteResult]:
        results = []
        async with DNSServer({"d.test": {"MX": ["10 a.test"]}}, tls=context) as server:
            for name in ("dns.us.test", "other.test"):
                resolver = Resolver(
                    [(server.host, server.port)],
                    2.0,
                    tls=True,
                    tls_hostname=name,
                    tls_ca_file=str(tmp_path / "ca.pem"),
                )
                results.append((await resolver.route("d.test")).result)
            assert server.queries["d.test", "MX"] == server.tcp_queries == 1
        return results

    assert asyncio.run(ask()) == [RouteResult.MX, RouteResult.TEMPORARY]


@pytest.mark.parametrize(
    ("name", "servers", "certificate"),
    [
        ("google", ["8.8.8.8", "8.8.4.4"], "dns.google"),
        ("cloudflare", ["1.1.1.1", "1.0.0.1"], "one.one.one.one"),
        ("quad9", ["9.9.9.9", "149.112.112.112"], "dns.quad9.net"),
    ],
)
def test_public_resolvers_by_name(name: str, servers: list[str], certificate: str) -> None:
    for tls, port in ((False, 53), (True, 853)):
        asked = Dns(resolver=name, tls=tls)  # type: ignore[arg-type]
        assert nameservers(asked) == [(server, port) for server in servers]
        assert nameserver_name(asked) == (certificate if tls else None)
        stub = Nameservers.of(
            nameservers(asked), 5.0, tls=asked.tls, tls_hostname=nameserver_name(asked)
        )
        kind = "DoT" if tls else "Do53"
        assert [str(one) for one in stub.each] == [f"{kind}:{s}@{port}" for s in servers]


def test_the_system_resolver_is_what_resolv_conf_names() -> None:
    assert nameservers(Dns()) is None
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    named = [line.split()[1] for line in lines if line.startswith("nameserver ")]
    for tcp in (False, True):
        stub = Nameservers.of(nameservers(Dns()), 5.0, tcp=tcp)
        found = [one.address for one in stub.each]
        assert found == (named or ["127.0.0.1"])


@pytest.mark.parametrize(
    ("entry", "tls", "server"),
    [
        ("192.0.2.1", False, "Do53:192.0.2.1@53"),
        ("192.0.2.1:5353", False, "Do53:192.0.2.1@5353"),
        ("::1", False, "Do53:::1@53"),
        ("[::1]:53", False, "Do53:::1@53"),
        ("[2001:db8::1]:5353", False, "Do53:2001:db8::1@5353"),
        ("192.0.2.1", True, "DoT:192.0.2.1@853"),
        ("192.0.2.1:53", True, "DoT:192.0.2.1@853"),  # RFC 7858 forbids TLS on port 53
        ("[::1]:8853", True, "DoT:::1@8853"),
    ],
)
def test_specific_servers_and_ports(entry: str, tls: bool, server: str) -> None:
    asked = Dns(nameservers=(entry,), tls=tls, tls_hostname="dns.us.test" if tls else None)
    stub = Nameservers.of(
        nameservers(asked), 5.0, tls=asked.tls, tls_hostname=nameserver_name(asked)
    )
    assert [str(one) for one in stub.each] == [server]


def test_a_name_server_that_begins_anew_is_asked_again() -> None:
    async def ask() -> list[str]:
        gone = ("127.0.0.1", free_port())
        asking = asyncio.ensure_future(Resolver([gone], 10.0).route("d.test"))
        await asyncio.sleep(0)  # its datagram is refused
        async with DNSServer(MAIL, host=gone[0], port=gone[1]):
            return names(await asking)

    assert asyncio.run(ask()) == ["a.test"]


def test_a_forged_answer_that_comes_first_does_not_end_a_question() -> None:
    async def ask(resolver: Resolver, server: DNSServer) -> list[str]:
        asking = asyncio.ensure_future(resolver.route("d.test"))
        await server.asked(1)
        server.zone["d.test"] = {"MX": ["10 a.test"]}  # the next datagram is answered
        return names(await asking)

    zone: Zone = {"d.test": {"MX": {"values": ["10 evil.test"], "fault": "WRONG_ID"}}}
    assert with_dns(zone, ask) == ["a.test"]


def test_trouble_names_each_server_and_what_it_said() -> None:
    async def ask() -> str | None:
        gone = ("127.0.0.1", free_port())
        async with DNSServer({"d.test": "SERVFAIL"}) as bad, DNSServer({"d.test": "TIMEOUT"}) as no:
            servers = [gone, (bad.host, bad.port), (no.host, no.port)]
            resolver = Resolver(servers, 4.5, tcp=True)  # a third of it for each
            found = await resolver.route("d.test")
            assert found.result is RouteResult.TEMPORARY
            assert found.error is not None
            for (host, port), words in zip(
                servers, ("Connection refused", "SERVFAIL", "no answer in time"), strict=True
            ):
                assert f"nameserver Do53:{host}@{port}: {words}" in found.error
        return found.error

    error = asyncio.run(ask())
    assert error is not None
    assert error.startswith("MX lookup of d.test failed: ")


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_what_is_cut_off_over_a_stream_is_no_answer_and_the_next_server_has_its_turn(
    transport: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("dns.us.test").configure_cert(context)
    tls = context if transport == "tls" else None
    cut: Zone = {"d.test": dict.fromkeys(("MX", "A", "AAAA"), "TRUNCATE_EMPTY")}

    def resolver(*servers: DNSServer) -> Resolver:
        return Resolver(
            [(server.host, server.port) for server in servers],
            5.0,
            tcp=transport == "tcp",
            tls=tls is not None,
            tls_hostname="dns.us.test" if tls else None,
            tls_ca_file=str(tmp_path / "ca.pem") if tls else None,
        )

    async def ask() -> None:
        async with DNSServer(cut, tls=tls) as bad, DNSServer(MAIL, tls=tls) as good:
            alone = await resolver(bad).route("d.test")
            assert alone.result is RouteResult.TEMPORARY
            assert alone.error is not None
            assert "its answer is cut off" in alone.error
            address = await resolver(bad).addresses("d.test")
            assert address.error is AddressError.TEMPORARY
            both = await resolver(bad, good).route("d.test")
            assert names(both) == ["a.test"]

    asyncio.run(ask())


def test_tls_needs_a_name_and_readable_certificates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tls_hostname"):
        Resolver([("192.0.2.1", 853)], tls=True)
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        Resolver([("192.0.2.1", 853)], tls=True, tls_hostname="a.test", tls_ca_file=missing)


def test_tls_without_name_servers_is_refused() -> None:
    with pytest.raises(ConfigError, match="nameservers"):
        Resolver(None, tls=True)


def test_who_guesses_answers_is_not_heard_for_long_and_the_question_goes_by_tcp() -> None:
    def guesses(question: Question) -> Iterator[Out]:
        if question.tcp:
            yield Out(message(question, mx("a.test")))
            return
        number = int.from_bytes(question.id, "big")
        for other in range(1, 2 * MOST_STRANGE):
            wrong = ((number + other) % 65536).to_bytes(2, "big")
            yield Out(message(question, mx("evil.test"), id=wrong))
        yield Out(message(question, mx("late.test")))

    async def ask(peer: Peer) -> list[str]:
        return names(await Resolver([(peer.host, peer.port)], PATIENCE_S).route("d.test"))

    with Peer() as peer:
        peer.says("d.test", guesses)
        assert asyncio.run(ask(peer)) == ["a.test"]
        assert [question.tcp for question in peer.asked] == [False, True]


def test_a_server_that_only_names_others_is_passed_over() -> None:
    def refers(question: Question) -> Iterator[Out]:
        yield Out(message(question, authority=[record(NS, spelled("ns.test"))]))

    async def ask(*servers: tuple[str, int]) -> Route:
        return await Resolver(servers, PATIENCE_S).route("d.test")

    async def both(lame: Peer) -> None:
        alone = await ask((lame.host, lame.port))
        assert alone.result is RouteResult.TEMPORARY
        assert "referral" in (alone.error or "")
        async with DNSServer(MAIL) as good:
            assert names(await ask((lame.host, lame.port), (good.host, good.port))) == ["a.test"]

    with Peer() as lame:
        lame.says("d.test", refers)
        asyncio.run(both(lame))
