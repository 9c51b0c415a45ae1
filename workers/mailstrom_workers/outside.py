"""The network as this machine sees it, for ``mailstrom doctor``: a process that looks and ends.

``python -P -m mailstrom_workers.outside`` reads a ``mailstrom.outside.Question`` and writes an
``Outside``. Nameservers are asked by UDP and by TCP, our name and our addresses are looked up, our
own listener is met (``ownports``), mail hosts are connected to: of an MX host no more than its
greeting is heard before QUIT, of a relay EHLO and STARTTLS, never AUTH. All of it goes on at the
same time, each step within its own time; what is not known when the time is over is left out and
said. No message is sent. What it means is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

from msgspec import structs

from mailstrom.config import Config, from_json, nameserver_name, nameservers, relay_hosts
from mailstrom.errors import ConfigError
from mailstrom.outside import (
    Host,
    Name,
    NameserverAnswer,
    Outside,
    Port,
    Question,
    Source,
    encode,
    question,
)
from mailstrom.policy.answers import is_host_name
from mailstrom.policy.timeouts import Timeouts
from mailstrom_workers import dnswire, ownports
from mailstrom_workers.context import Settings
from mailstrom_workers.dnswire import Kind
from mailstrom_workers.endpoint import SessionFailure, Target
from mailstrom_workers.machine import local_address
from mailstrom_workers.nameservers import Nameserver, Nameservers, Unanswered
from mailstrom_workers.resolver import Resolver
from mailstrom_workers.wire import establish

DNS_S = 3.0
CONNECT_S = GREETING_S = 4.0
MOST_HOSTS = 3
MOST_NAMES = 10
_GREETING_LINES, _GREETING_OCTETS = 20, 4096
_WITHOUT_ROUTE = "127.0.0.1"
_ROOT = ""
_numbers = random.SystemRandom()


class _Look:
    """One look, from question to answer; what is found is noted as it comes."""

    def __init__(self, asked: Question) -> None:
        self.config: Config = from_json(bytes(asked.config))
        self.probe = asked.probe.rstrip(".").lower()
        self.seconds = asked.seconds
        self.dns_s = min(self.config.dns.timeout, DNS_S)
        self.servers: list[NameserverAnswer] = []
        self.hostname: Name | None = None
        self.sources: dict[str, Source] = {}
        self.hosts: list[Host] = []
        self.no_hosts: str | None = None
        self.ports: list[Port] = []
        self.trouble: list[str] = []
        self._network = asked.network

    async def run(self) -> Outside:
        """All looks at the same time."""
        steps = [self._look_at_ports()]
        if self._network:
            steps.append(self._look_around())
        await asyncio.gather(*steps)
        return self._found()

    async def _look_at_ports(self) -> None:
        self.ports += await ownports.look(self.config)

    async def _look_around(self) -> None:
        dns = self.config.dns
        try:
            asked = Nameservers.of(
                nameservers(dns),
                self.dns_s,
                tcp=dns.tcp,
                tls=dns.tls,
                tls_hostname=nameserver_name(dns),
            )
            resolver = Resolver(
                nameservers(dns),
                self.dns_s,
                allow_loopback=dns.allow_loopback,
                tls=dns.tls,
                tls_hostname=nameserver_name(dns),
                tcp=dns.tcp,
            )
        except ConfigError as error:
            self.trouble.append(str(error))
            return
        await asyncio.gather(
            self._within("the nameservers", self._look_at_servers(asked)),
            self._within("our name and addresses", self._look_at_names(asked, resolver)),
        )
        await resolver.close()

    def _found(self) -> Outside:
        return Outside(
            nameservers=self.servers,
            hostname=self.hostname,
            sources=list(self.sources.values()),
            hosts=self.hosts,
            no_hosts=self.no_hosts,
            ports=self.ports,
            trouble=self.trouble,
        )

    async def _within(self, what: str, step: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                await step
        except TimeoutError:
            self.trouble.append(f"{what}: not all could be looked at within {self.seconds:g} s")

    # Nameservers

    async def _look_at_servers(self, asked: Nameservers) -> None:
        self.servers += await asyncio.gather(*(self._server(one) for one in asked.each))

    async def _server(self, server: Nameserver) -> NameserverAnswer:
        if server.streams:
            tcp = await self._answered(server.by_stream)
            udp: tuple[float | None, str | None] = (None, None)
        else:
            udp, tcp = await asyncio.gather(
                self._answered(server.by_datagram), self._answered(server.by_stream)
            )
        return NameserverAnswer(
            server=f"{server.address} port {server.port}",
            udp_ms=udp[0],
            udp_error=udp[1],
            tcp_ms=tcp[0],
            tcp_error=tcp[1],
            tls=server.tls is not None,
        )

    async def _answered(
        self, ask: Callable[[bytes, float], Awaitable[dnswire.Response]]
    ) -> tuple[float | None, str | None]:
        """(milliseconds, why not).

        One that fails for the probe's domain, whose own servers may be what fails, or denies it is
        asked about the root as well: every resolver has an answer to that.
        """
        loop = asyncio.get_running_loop()
        wrong = ""
        for name in (self.probe, _ROOT):
            began = loop.time()
            text = dnswire.question(_numbers.getrandbits(16), name, "MX")
            try:
                response = await ask(text, self.dns_s)
            except Exception as error:  # each way to fail is the answer to what was asked
                return None, wrong or str(error) or type(error).__name__
            if response.rcode == dnswire.NOERROR:
                return (loop.time() - began) * 1000, None
            wrong = dnswire.RCODES.get(response.rcode, f"response code {response.rcode}")
            if response.rcode not in (dnswire.SERVFAIL, dnswire.NXDOMAIN):
                break  # what it says of all that it is asked
        return None, wrong

    # Names

    async def _look_at_names(self, asked: Nameservers, resolver: Resolver) -> None:
        named = asyncio.ensure_future(self._addresses(asked, self.config.hostname))
        try:
            async with asyncio.timeout(self.seconds * 0.75):
                targets = await self._targets(resolver)
                await self._connect(targets)
        except TimeoutError:
            targets = []
            self.trouble.append("mail hosts: not all could be connected to in time")
        self.hostname = await named
        local = [
            found
            for target in targets
            if (found := local_address(target.address, target.port)) != _WITHOUT_ROUTE
            or ip_address(target.address).is_loopback
        ]
        if self.config.delivery.mode == "relay":  # on this very machine it asks for no name
            local = [address for address in local if not ip_address(address).is_loopback]
        wanted = dict.fromkeys(local, True)
        if not any(ip_address(address).is_global for address in local):
            for address in self.hostname.addresses:
                if ip_address(address).is_global:
                    wanted.setdefault(address, False)
        steps = (self._source(asked, address, here) for address, here in wanted.items())
        for source in await asyncio.gather(*steps):
            self.sources[source.address] = source

    async def _records(self, asked: Nameservers, name: str, kind: Kind) -> list[str]:
        """Records as text.

        Raises:
            Unanswered: nobody gave an answer.
        """
        deadline = asyncio.get_running_loop().time() + self.dns_s
        response = await asked.ask(name, kind, deadline)
        return [
            what if isinstance(what, str) else b".".join(what).decode("ascii", "backslashreplace")
            for _, what in response.records
        ]

    async def _addresses(self, asked: Nameservers, name: str) -> Name:
        kinds: tuple[Kind, Kind] = ("A", "AAAA")
        told = await asyncio.gather(
            *(self._records(asked, name, kind) for kind in kinds), return_exceptions=True
        )
        found = [one for some in told if isinstance(some, list) for one in some]
        errors = [str(one) for one in told if isinstance(one, Unanswered)]
        for one in told:
            if isinstance(one, BaseException) and not isinstance(one, Unanswered):
                raise one
        return Name(name=name, addresses=found, error=errors[0] if errors and not found else None)

    async def _source(self, asked: Nameservers, address: str, local: bool) -> Source:
        parsed = ip_address(address)
        source = Source(address=address, public=parsed.is_global, local=local)
        try:
            names = await self._records(asked, parsed.reverse_pointer, "PTR")
        except Unanswered as error:
            return structs.replace(source, error=str(error))
        kind: Kind = "A" if parsed.version == 4 else "AAAA"
        confirmed = []
        for name in names[:MOST_NAMES]:
            with contextlib.suppress(Unanswered):
                if is_host_name(name) and address in await self._records(asked, name, kind):
                    confirmed.append(name)
        return structs.replace(source, names=names[:MOST_NAMES], confirmed=confirmed)

    # Hosts

    async def _targets(self, resolver: Resolver) -> list[Target]:
        """Whom to connect to: an address of each host."""
        relay = self.config.delivery.mode == "relay"
        if relay:
            hosts: Sequence[tuple[str, int | None]] = [
                (one.name, one.port) for one in relay_hosts(self.config.relay)
            ]
        else:
            route = await resolver.route(self.probe)
            hosts = [(one.name, one.port) for one in route.hosts]
            if not hosts:
                self.no_hosts = route.error or f"{self.probe} has no mail hosts"
        found, whys = [], []
        told = await asyncio.gather(
            *(resolver.addresses(host, relay=relay) for host, _ in hosts[:MOST_HOSTS])
        )
        for (host, port), addresses in zip(hosts, told, strict=False):
            if addresses.ips:
                number = port if port is not None else self.config.delivery.port
                found.append(Target(host=host, address=addresses.ips[0], port=number))
            else:
                whys.append(addresses.text or f"{host} has no address")
        if whys and not found:
            self.no_hosts = whys[0]
        return found

    async def _connect(self, targets: Sequence[Target]) -> None:
        relay = self.config.delivery.mode == "relay"
        await asyncio.gather(
            *(self._note(target, self._relay if relay else self._greeting) for target in targets)
        )

    async def _note(self, target: Target, look: Callable[[Target], Awaitable[Host]]) -> None:
        began, seconds = asyncio.get_running_loop().time(), self.seconds / 2
        try:
            async with asyncio.timeout(seconds):
                host = await look(target)
        except TimeoutError:
            host = Host(
                host=target.host,
                address=target.address,
                port=target.port,
                stage="connect",
                ms=0.0,
                error=f"no session within {seconds:g} s",
            )
        ms = (asyncio.get_running_loop().time() - began) * 1000
        self.hosts.append(structs.replace(host, ms=ms))

    async def _greeting(self, target: Target) -> Host:
        """Connect, hear the greeting, say QUIT."""
        host = Host(
            host=target.host, address=target.address, port=target.port, stage="connect", ms=0.0
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    target.address, target.port, limit=_GREETING_OCTETS
                )
        except TimeoutError:
            return structs.replace(host, error=f"no answer within {CONNECT_S:g} s")
        except OSError as error:
            said = os.strerror(error.errno) if error.errno else str(error)
            return structs.replace(host, error=said)
        host = structs.replace(host, stage="greeting")
        try:
            async with asyncio.timeout(GREETING_S):
                lines = await _reply(reader)
                writer.write(b"QUIT\r\n")
                await writer.drain()
        except TimeoutError:
            return structs.replace(host, error=f"connected, and no greeting in {GREETING_S:g} s")
        except (OSError, EOFError, ValueError) as error:
            return structs.replace(
                host, error=f"connected, and then: {error or type(error).__name__}"
            )
        finally:
            writer.close()
        banner = "\n".join(lines)
        if not banner.startswith("220"):
            return structs.replace(host, banner=banner, error="it does not take mail from here")
        return structs.replace(host, stage="done", banner=banner)

    async def _relay(self, target: Target) -> Host:
        """Set a session up as for mail, but for AUTH."""
        relay = structs.replace(self.config.relay, username=None, password_file=None)
        settings = Settings.of(structs.replace(self.config, relay=relay))
        own = local_address(target.address, target.port)
        policy = replace(
            settings.session_policy(lambda: own),
            timeouts=Timeouts(connect=CONNECT_S, greeting=GREETING_S, ehlo=GREETING_S,
                              starttls=GREETING_S),
        )  # fmt: skip
        opened = await establish(target, policy)
        if isinstance(opened, SessionFailure):
            return Host(
                host=target.host,
                address=target.address,
                port=target.port,
                stage=str(opened.stage),
                ms=0.0,
                error=opened.text,
            )
        opened.transport.write(b"QUIT\r\n")
        opened.transport.close()
        offers = opened.capabilities
        return Host(
            host=target.host,
            address=target.address,
            port=target.port,
            stage="done",
            ms=0.0,
            tls=opened.facts.tls_version,
            starttls=offers.starttls,
            auth=sorted(offers.auth),
        )


async def _reply(reader: asyncio.StreamReader) -> list[str]:
    """The lines of one reply.

    Raises:
        EOFError, ValueError: the server closed, or does not speak SMTP.
    """
    lines: list[str] = []
    while len(lines) < _GREETING_LINES:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the server closed the connection")
        lines.append(line.rstrip(b"\r\n").decode("utf-8", "backslashreplace"))
        if line[3:4] != b"-":
            return lines
    raise ValueError("its greeting has no end")


async def look(asked: Question) -> Outside:
    """Look at the network.

    Args:
        asked: whom to ask, and for how long.
    """
    return await _Look(asked).run()


def main() -> int:
    """Answer the question on standard input on standard output.

    Returns:
        the exit code: 0.
    """
    asked = question(sys.stdin.buffer.read())
    sys.stdout.buffer.write(encode(asyncio.run(look(asked))))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
