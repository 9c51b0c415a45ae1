"""The world around the engine: a DNS server and SMTP servers, each on an address of its own.

Contract. ``world()`` runs them on a loop in a thread until its block ends. All SMTP servers share
one unprivileged port on different 127.x.y.z addresses, as real hosts share port 25; the host that
refuses connections is an address whose port is bound and not listened on, so that nobody else can
answer there. What each server has at the final dot is recorded before it answers
(``mailstrom.testing``), which makes ``dots`` a witness of its own.

Must not know: the spool, the engine, what was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mailstrom.demo import plan
from mailstrom.demo.certificate import server_context
from mailstrom.testing.dns import DNSServer, Zone
from mailstrom.testing.records import Dot
from mailstrom.testing.script import Per, Rule, Script
from mailstrom.testing.smtp import SMTPServer

SLOW_S = 0.3
_PORT_TRIES = 20

_GREYLISTING = Rule(
    stage="rcpt",
    code=450,
    enhanced="4.7.1",
    text="greylisted: we do not know you yet, come again a little later",
    recipient="*",
    per=Per.RECIPIENT,
    last=1,
)
_UNKNOWN_USER = Rule(
    stage="rcpt",
    code=550,
    enhanced="5.1.1",
    text="no such user here",
    recipient=f"{plan.UNKNOWN_USER}*",
)
_SCANNING = Rule(stage="dot", delay=SLOW_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An MX host: its name, how it behaves (None: connections are refused), whether it has TLS."""

    name: str
    script: Script | None
    tls: bool = False


def _script(*rules: Rule, pipelining: bool = True) -> Script:
    return Script(rules=rules, magic=False, pipelining=pipelining)


# domain -> hosts in order of preference; a domain that is not here has no host
_HOSTS: dict[str, tuple[Host, ...]] = {
    plan.PROMPT.domain: (Host(name="mx.prompt.example", script=_script()),),
    plan.STARTTLS.domain: (Host(name="mx.starttls.example", script=_script(), tls=True),),
    plan.GREYLIST.domain: (Host(name="mx.greylist.example", script=_script(_GREYLISTING)),),
    plan.STRICT.domain: (Host(name="mx.strict.example", script=_script(_UNKNOWN_USER)),),
    plan.SLOW.domain: (Host(name="mx.slow.example", script=_script(_SCANNING, pipelining=False)),),
    plan.TWO_HOSTS.domain: (
        Host(name="mx1.twomx.example", script=None),
        Host(name="mx2.twomx.example", script=_script()),
    ),
}


class World:
    """The running servers.

    Args:
        folder: for the certificate.

    Attributes:
        port: of every SMTP server.
        servers: by host name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.AsyncExitStack()
        self._dns: DNSServer | None = None
        self.port = 0
        self.servers: dict[str, SMTPServer] = {}

    async def start(self) -> None:
        """Start everything.

        Raises:
            OSError: an address or port cannot be had.
        """
        hosts = [host for hosts in _HOSTS.values() for host in hosts]
        names = [host.name for host in hosts if host.tls]
        context = await asyncio.to_thread(server_context, names, self._folder)
        addresses = _addresses(len(hosts))
        self._stack = await self._listen(list(zip(hosts, addresses, strict=True)), context)
        by_name = {host.name: address for host, address in zip(hosts, addresses, strict=True)}
        self._dns = await self._stack.enter_async_context(DNSServer(_zone(by_name)))

    async def _listen(
        self, hosts: list[tuple[Host, str]], context: ssl.SSLContext
    ) -> contextlib.AsyncExitStack:
        error: OSError | None = None
        for _ in range(_PORT_TRIES):
            async with contextlib.AsyncExitStack() as stack:
                port = 0
                servers: dict[str, SMTPServer] = {}
                try:
                    for host, address in hosts:
                        if host.script is None:
                            port = stack.enter_context(_refusing(address, port))
                            continue
                        server = SMTPServer(
                            address,
                            port,
                            script=host.script,
                            tls=context if host.tls else None,
                            hostname=host.name,
                        )
                        port = (await stack.enter_async_context(server)).port
                        servers[host.name] = server
                except OSError as caught:
                    error = caught  # the port is taken on one of the addresses: another one
                    continue
                self.port, self.servers = port, servers
                return stack.pop_all()
        raise OSError(
            f"no port is free on {len(hosts)} loopback addresses ({error}); the demonstration needs"
            " 127.0.0.0/8 on the loopback interface, as Linux has it"
        )

    async def stop(self) -> None:
        """Stop everything; ``dots`` stays readable."""
        await self._stack.aclose()

    @property
    def nameserver(self) -> str:
        """``address:port`` of the DNS server."""
        assert self._dns is not None
        return f"{self._dns.host}:{self._dns.port}"

    @property
    def open_connections(self) -> int:
        """SMTP connections open at this moment."""
        return sum(server.open for server in self.servers.values())

    @property
    def connections(self) -> int:
        """SMTP connections seen so far."""
        return sum(len(server.connections) for server in self.servers.values())

    def dots(self) -> Iterator[Dot]:
        """Every content that reached its final dot, at all servers."""
        for server in self.servers.values():
            yield from server.dots


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Run the servers in a thread for the time of the block.

    Args:
        folder: an existing directory of this run.

    Raises:
        OSError: an address, a port or the certificate's file cannot be had.
    """
    servers = World(folder)
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever, name="demo-servers", daemon=True)
    runner.start()
    try:
        asyncio.run_coroutine_threadsafe(servers.start(), loop).result()
        try:
            yield servers
        finally:
            asyncio.run_coroutine_threadsafe(servers.stop(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        runner.join()
        loop.close()


@contextlib.contextmanager
def _refusing(address: str, port: int) -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind((address, port))
        yield int(bound.getsockname()[1])


def _addresses(count: int) -> list[str]:
    # Drawn at random, so that two demonstrations at once do not meet; never 127.0.y.z, where
    # other programs live.
    net = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
    return [f"{net}.{number}" for number in range(1, count + 1)]


def _zone(addresses: dict[str, str]) -> Zone:
    zone: Zone = {name: {"A": [address]} for name, address in addresses.items()}
    for domain, hosts in _HOSTS.items():
        zone[domain] = {
            "MX": [f"{10 * rank} {host.name}." for rank, host in enumerate(hosts, start=1)]
        }
    zone[plan.NULL_MX.domain] = {"MX": ["0 ."]}  # RFC 7505
    zone[plan.NO_DOMAIN.domain] = "NXDOMAIN"
    return zone
