"""The DNS server that the other tests rely on: its denials, faults and life as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from mailstrom.testing.dns import DNSServer, Zone
from tests.support.sockets import eventually, eventually_async


def ask(zone: Zone, name: str, kind: str, *, tcp: bool = False) -> dns.message.Message:
    async def run() -> dns.message.Message:
        async with DNSServer(zone, negative_ttl_s=42) as server:
            query = dns.message.make_query(name, kind)
            exchange = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
            answer = await exchange(query, server.host, port=server.port, timeout=30)
            assert server.queries == {(name, kind): 1}
            assert server.tcp_queries == (1 if tcp else 0)
            return answer

    return asyncio.run(run())


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(
    ("name", "rcode"), [("d.test", dns.rcode.NOERROR), ("missing.test", dns.rcode.NXDOMAIN)]
)
def test_denials_carry_an_soa(name: str, rcode: dns.rcode.Rcode, tcp: bool) -> None:
    answer = ask({"d.test": {"A": ["192.0.2.1"]}}, name, "MX", tcp=tcp)
    assert answer.rcode() == rcode
    assert not answer.answer
    assert [rrset.ttl for rrset in answer.authority] == [42]


def test_a_name_above_another_exists() -> None:
    zone: Zone = {"a.b.test": {"A": ["192.0.2.1"]}}
    assert ask(zone, "b.test", "A").rcode() == dns.rcode.NOERROR


def test_large_answers_are_truncated_by_udp_and_whole_by_tcp() -> None:
    zone: Zone = {"d.test": {"MX": [f"{i} mx{i}.some-long-name.test" for i in range(40)]}}
    assert ask(zone, "d.test", "MX").flags & dns.flags.TC
    whole = ask(zone, "d.test", "MX", tcp=True)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 40


@pytest.mark.parametrize("word", ["SERVFAIL", "REFUSED", "FORMERR", "NXDOMAIN"])
def test_fault_words_by_name_and_by_type(word: str) -> None:
    assert dns.rcode.to_text(ask({"d.test": word}, "d.test", "A").rcode()) == word
    zone: Zone = {"d.test": {"A": word, "MX": ["10 a.test"]}}
    assert dns.rcode.to_text(ask(zone, "d.test", "A").rcode()) == word
    assert ask(zone, "d.test", "MX").rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize("entry", ["SERVFIAL", {"A": "nonsense"}, {"A": {"fault": "no"}}])
def test_a_mistake_in_the_zone_is_told_when_the_server_closes(entry: str | dict[str, str]) -> None:
    async def run() -> None:
        async with DNSServer({"d.test": entry}) as server:
            query = dns.message.make_query("d.test", "A")
            with pytest.raises(dns.exception.Timeout):
                await dns.asyncquery.udp(query, server.host, port=server.port, timeout=0.2)
            await eventually_async(lambda: server.total, what="the server's look at its zone")

    with pytest.raises(ValueError, match="unknown DNS fault"):
        asyncio.run(run())


def test_as_a_process_it_reads_its_zone_again_at_hup_and_ends_at_term(tmp_path: Path) -> None:
    zone = tmp_path / "zone.json"
    zone.write_text(json.dumps({"d.test": {"A": ["192.0.2.1"]}}))
    command = [sys.executable, "-P", "-m", "mailstrom.testing.dns", "--zone", str(zone)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            assert (ready["event"], ready["pid"]) == ("ready", server.pid)
            [[host, port]] = ready["bound"]

            def address() -> str:
                query = dns.message.make_query("d.test", "A")
                answer = dns.query.udp(query, host, port=port, timeout=30)
                return str(answer.answer[0][0])

            assert address() == "192.0.2.1"
            zone.write_text("{half")
            os.kill(server.pid, signal.SIGHUP)
            assert address() == "192.0.2.1"
            zone.write_text(json.dumps({"d.test": {"A": ["192.0.2.2"]}}))
            os.kill(server.pid, signal.SIGHUP)
            eventually(lambda: address() == "192.0.2.2", what="the zone, read again")
            server.terminate()
            assert server.wait(30) == 0
        finally:
            server.kill()
