"""A little internet on loopback: one DNS server and any number of scripted mail hosts.

Contract. All servers run on one event loop in a thread of their own, so tests stay plain functions
and a server keeps answering while a test waits. Every mail host has an address of its own in
127.0.0.0/8 and all share one port, as real ones share port 25. A domain's hosts are named
``mx1.DOMAIN``, ``mx2.DOMAIN`` in order of preference. The zone is changed on the loop only, because
the DNS server reads it there.

Time on that loop may be let pass (``pass_time``): a host that is to keep somebody waiting gets a
rule with a delay of ``HELD_S``, longer than any test, and answers when the test has seen what it
waited for. No test depends on how much it gets done within a short delay.

Must not know: the engine, the spool.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import trustme

from mailstrom.testing.dns import DNSServer, Entry
from mailstrom.testing.records import Dot
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.support.sockets import free_port, loopback_addresses

T = TypeVar("T")


class Server(Protocol):
    """What can be started and stopped on the network's loop."""

    async def start(self) -> object:
        """Listen."""

    async def stop(self) -> None:
        """Stop listening and cut what is open."""


SETUP_S = 30.0
HELD_S = 3600.0
"""The delay of an answer that is held back until ``Network.pass_time``."""


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose clock may be put forward; every timer that is due by then is run."""

    passed_s = 0.0

    def time(self) -> float:
        """Seconds, as everywhere in asyncio."""
        return super().time() + self.passed_s


class Network:
    """DNS and mail hosts of a test; a context manager.

    Attributes:
        port: the port of every mail host.
        dns: the DNS server; ``dns.queries`` counts (name, type).
        servers: every mail host started so far.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.dns = DNSServer({})
        self.servers: list[SMTPServer] = []
        self._others: list[Server] = []
        self._listeners: list[asyncio.Server] = []
        self._deaf: tuple[str, list[socket.socket]] | None = None
        self._numbers = itertools.count(1)
        self._authority: trustme.CA | None = None
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def __enter__(self) -> Self:
        """Start the loop and the DNS server."""
        self._thread.start()
        self._run(self.dns.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut every connection and end the loop."""
        try:
            for server in (*self.servers, *self._others):
                self._run(server.stop())
            for listener in self._listeners:
                self.on_loop(listener.close)
            self._run(self.dns.__aexit__(kind, error, trace))
        finally:
            for one in self._deaf[1] if self._deaf is not None else ():
                one.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, step: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(SETUP_S)

    def on_loop(self, change: Callable[[], T]) -> T:
        """Run ``change`` on the servers' loop, between two of their steps."""

        async def step() -> T:
            return change()

        return self._run(step())

    def pass_time(self, seconds: float = HELD_S) -> None:
        """Let so much time pass for the servers at once: what they hold back so long goes out."""

        def change() -> None:
            self._loop.passed_s += seconds

        self.on_loop(change)

    # Names

    def new_domain(self) -> str:
        """A domain that no test of this network has used; nothing is in the zone for it."""
        return f"d{next(self._numbers)}.test"

    def zone(self, name: str, entry: Entry | None) -> None:
        """Put (or with None remove) an entry of the zone; see ``mailstrom.testing.dns``."""

        def change() -> None:
            if entry is None:
                self.dns.zone.pop(name, None)
            else:
                self.dns.zone[name] = entry

        self.on_loop(change)

    def route(self, domain: str, addresses: Iterable[str], *, prefix: str = "mx") -> None:
        """Make hosts at these addresses a domain's MX hosts, in order of preference.

        Args:
            prefix: of the hosts' names; another one makes another site.
        """
        exchanges: list[str] = []
        for number, address in enumerate(addresses, 1):
            name = f"{prefix}{number}.{domain}"
            self.zone(name, {"A": [address]})
            exchanges.append(f"{10 * number} {name}.")
        self.zone(domain, {"MX": exchanges})

    def asked(self, name: str, kind: str) -> int:
        """How often the DNS server was asked this."""
        return self.dns.queries[name, kind]

    # Hosts

    def host(
        self,
        script: Script | None = None,
        *,
        address: str | None = None,
        names: tuple[str, ...] = (),
        implicit_tls: bool = False,
        keep_content: bool = False,
    ) -> SMTPServer:
        """Start a mail host.

        Args:
            script: how it behaves; well if None.
            address: where; a fresh one if None.
            names: names in its certificate; without any it offers no TLS.
            keep_content: keep the bytes of what it takes.
        """
        server = SMTPServer(
            address or loopback_addresses()[0],
            self.port,
            script=script,
            tls=self._certificate(names) if names else None,
            implicit_tls=implicit_tls,
            keep_content=keep_content,
        )
        self._run(server.start())
        self.servers.append(server)
        return server

    def serve(self, other: Server) -> None:
        """Start a server of another kind; it is stopped with the rest."""
        self._run(other.start())
        self._others.append(other)

    def site(
        self, *scripts: Script, domain: str | None = None, tls: bool = False, keep: bool = False
    ) -> tuple[str, list[SMTPServer]]:
        """Start one mail host per script and make them a domain's MX hosts in this order.

        Args:
            domain: a new one if None.
            tls: whether the hosts have certificates for their names.
            keep: keep the bytes of what they take.

        Returns:
            the domain and its hosts.
        """
        domain = domain or self.new_domain()
        servers = [
            self.host(script, names=(f"mx{number}.{domain}",) if tls else (), keep_content=keep)
            for number, script in enumerate(scripts, 1)
        ]
        self.route(domain, [server.host for server in servers])
        return domain, servers

    def listen(self, protocol: Callable[[], asyncio.BaseProtocol]) -> str:
        """Start a server that is no mail host of ours: one protocol a connection; its address."""
        address = loopback_addresses()[0]

        async def begin() -> asyncio.Server:
            return await self._loop.create_server(protocol, address, self.port)

        self._listeners.append(self._run(begin()))
        return address

    def nobody(self) -> str:
        """An address where nothing listens: connections are refused."""
        return loopback_addresses()[0]

    def deaf(self) -> str:
        """An address whose queue of connections is full: a connect gets no answer."""
        if self._deaf is None:
            address = loopback_addresses()[0]
            listening = socket.create_server((address, self.port), backlog=0)
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex((address, self.port))
            self._deaf = address, [listening, *waiting]
        return self._deaf[0]

    @property
    def authority(self) -> trustme.CA:
        """Who issues the hosts' certificates."""
        if self._authority is None:
            self._authority = trustme.CA()
        return self._authority

    def _certificate(self, names: tuple[str, ...]) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(*names).configure_cert(context)
        return context


def dots(servers: Iterable[SMTPServer]) -> list[Dot]:
    """Everything these hosts had at a final dot."""
    return [dot for server in servers for dot in list(server.dots)]
