"""Connections that exist in memory: latency, split and merged packets, resets, slow readers.

Contract: what is written arrives in order, some time later, in other pieces; a connection that is
cut may lose what was under way. A client's process that dies leaves what it wrote to the network,
as the system's buffers do. Keeps what the oracle asks: which connections were open together, and
what the client wrote when.

Must not know: what a peer answers, the spool.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from tests.torture.sim_loop import GROUP, Group, VirtualLoop

DOT = b"\r\n.\r\n"


class Server(Protocol):
    """The far end of a connection."""

    def received(self, data: bytes) -> None:
        """Octets of the client's."""

    def ended(self) -> None:
        """The client is gone."""


class Host(Protocol):
    """Who listens at an address."""

    def admit(self) -> str:
        """``yes``, ``refused`` or ``silent``."""

    def serve(self, wire: Wire) -> Server:
        """A connection was made."""


class Pipe:
    """One direction.

    Args:
        latency: gives seconds.
        arrive: takes octets, then None (an orderly end) or an error, once.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        latency: Callable[[], float],
        arrive: Callable[[bytes | Exception | None], None],
        context: Context | None,
    ) -> None:
        self._loop, self._rng, self._latency, self._arrive = loop, rng, latency, arrive
        self._context = context
        self.waiting = bytearray()
        self._end: list[Exception | None] = []
        self._under_way = False
        self.blocked = False
        self.sent = self.arrived = 0
        self.over = False

    def send(self, data: bytes) -> None:
        """More octets."""
        if not self._end:
            self.waiting += data
            self.sent += len(data)
            self._go()

    def end(self, error: Exception | None, *, lose: bool) -> None:
        """No more; ``lose`` what has not arrived yet."""
        if self._end:
            return
        if lose:
            self.waiting.clear()
        self._end.append(error)
        self._go()

    def _go(self) -> None:
        if not self._under_way and not self.over:
            self._under_way = True
            self._loop.call_later(self._latency(), self._come, context=self._context)

    def _come(self) -> None:
        self._under_way = False
        if self.over:
            return
        if self.blocked and not self._end:
            return
        if self.waiting:
            size = len(self.waiting)
            if size > 1 and self._rng.random() < 0.2:
                size = self._rng.randrange(1, size)
            piece = bytes(self.waiting[:size])
            del self.waiting[:size]
            self._arrive(piece)
        elif self._end:
            self.over = True
            self._arrive(self._end[0])
            return
        if self.waiting or self._end:
            self._go()


class Wire(asyncio.Transport):
    """A connection; as a transport, the client's end of it.

    Attributes:
        session: id of the session that it was opened for.
        mails: times at which the client wrote a MAIL command.
        unread: where in what the peer sent the client stops reading: a BDAT had no recipients.
        garbage: where in what the peer sent its line that is no reply begins.
        written: all that the client wrote.
        open: whether the client's end is.
    """

    def __init__(
        self, network: Network, sock: socket.socket, address: str, session: str, group: Group | None
    ) -> None:
        super().__init__()
        loop = network.loop
        self.network, self.address, self.session, self.group = network, address, session, group
        self.sock = sock
        self.opened_s = loop.time()
        self.open = True
        self.mails: list[float] = []
        self.written = bytearray()
        self.attached = False
        self.unread: int | None = None
        self.garbage: int | None = None
        self._spoilt = range(0)
        self._protocol: asyncio.Protocol | None = None
        self._closing = self._lost = False
        self._high = 65536
        self._paused = False
        own = None if group is None else group.context
        rng = network.rng
        self.up = Pipe(loop, rng, network.latency, self._up, network.context)
        self.down = Pipe(loop, rng, network.latency, self._down, own)
        self._server: Server | None = None

    # The client's side

    def attach(self, protocol: asyncio.Protocol, server: Server) -> None:
        self._protocol, self._server, self.attached = protocol, server, True
        protocol.connection_made(self)

    def heard(self, end: int) -> bool:
        """Whether the client heard a reply, by where it ends in what the peer sent.

        What came in the same piece as a line that is no reply need not be believed.
        """
        if self.unread is not None and end > self.unread:
            return False
        return self.down.arrived >= end and end not in self._spoilt

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket, which was never connected: nothing is read from it."""
        return self.sock if name == "socket" else default

    def set_protocol(self, protocol: Any) -> None:
        """Who gets what comes."""
        self._protocol = protocol

    def get_protocol(self) -> Any:
        """Who gets what comes."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it is over for the client."""
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to ask the writer to wait."""
        self._high = 65536 if high is None else high

    def get_write_buffer_size(self) -> int:
        """What has not arrived."""
        return len(self.up.waiting)

    def write(self, data: Any) -> None:
        """To the peer, some time."""
        if self._closing or (self.group is not None and self.group.dead):
            return
        octets = bytes(data)
        self.written += octets
        now_s = self.network.loop.time()
        self.mails += [now_s] * octets.count(b"MAIL FROM:")
        self.up.send(octets)
        if len(self.up.waiting) > self._high and not self._paused and self._protocol is not None:
            self._paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        """An orderly end behind what was written."""
        self._cut(None, lose=False, error=None)

    def abort(self) -> None:
        """At once; what is under way may be lost."""
        reset = ConnectionResetError("reset by the client")
        self._cut(reset, lose=self.network.rng.random() < 0.5, error=None)

    def _cut(self, told: Exception | None, *, lose: bool, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self.network.closed(self)
        self.up.end(told, lose=lose)
        own = None if self.group is None else self.group.context
        self.network.loop.call_soon(self._over, error, context=own)

    def _over(self, error: Exception | None) -> None:
        self.down.over = True
        self.sock.close()
        if self._protocol is not None and not self._lost:
            self._lost = True
            self._protocol.connection_lost(error)

    def die(self) -> None:
        """The client's process was killed; the system closes its sockets."""
        if not self._closing:
            self._closing = self._lost = True
            self.network.closed(self)
            self.up.end(None, lose=self.network.rng.random() < 0.2)
            self.down.over = True
            self.sock.close()

    def _down(self, came: bytes | Exception | None) -> None:
        protocol = self._protocol
        if self._closing or protocol is None:
            return
        if isinstance(came, bytes):
            before, arrived = self.down.arrived, self.down.arrived + len(came)
            self.down.arrived = arrived
            if self.garbage is not None and before <= self.garbage < arrived:
                self._spoilt = range(before + 1, arrived + 1)
            protocol.data_received(came)
        elif came is None:
            if not protocol.eof_received():
                self.close()
        else:
            self._cut(None, lose=True, error=came)

    # The peer's side

    def _up(self, came: bytes | Exception | None) -> None:
        if self._server is None:
            return
        if isinstance(came, bytes):
            self._server.received(came)
            if self._paused and len(self.up.waiting) <= self._high // 4 and self._protocol:
                self._paused = False
                if not self._closing:
                    own = None if self.group is None else self.group.context
                    self.network.loop.call_soon(self._protocol.resume_writing, context=own)
        else:
            self._server.ended()


class Network:
    """Who listens where, and every connection there was.

    Attributes:
        wires: all connections, oldest first.
        most: address -> most connections that living clients had open together; by ``site_of``.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        context: Context,
        site_of: Callable[[str], str],
        exempt: Callable[[Wire], bool],
    ) -> None:
        self.loop, self.rng, self.context = loop, rng, context
        self.hosts: dict[str, Host] = {}
        self.wires: list[Wire] = []
        self.most: dict[str, int] = {}
        self.slow_s = 0.010
        self._site_of, self._exempt = site_of, exempt
        self._by_socket: dict[Any, Wire] = {}
        self._open: list[Wire] = []
        self.session_of: Callable[[], str] = lambda: ""

    def latency(self) -> float:
        """Of one packet."""
        return 0.0005 + self.slow_s * self.rng.random()

    async def connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        """See ``loop.sock_connect``."""
        session = self.session_of()  # at once: others begin meanwhile
        host = self.hosts.get(address[0])
        said = "silent" if host is None else host.admit()
        if said == "silent":
            await self.loop.create_future()
        await asyncio.sleep(self.latency())
        if said == "refused":
            raise ConnectionRefusedError(111, "Connection refused")
        wire = Wire(self, sock, address[0], session, GROUP.get())
        self._by_socket[sock] = wire
        self.wires.append(wire)
        self._open.append(wire)
        site = self._site_of(wire.address)
        together = sum(self._site_of(w.address) == site and not self._exempt(w) for w in self._open)
        self.most[site] = max(self.most.get(site, 0), together)

    def attach(self, sock: socket.socket, protocol: asyncio.Protocol) -> asyncio.Transport:
        """See ``VirtualLoop.create_connection``."""
        wire = self._by_socket[sock]
        wire.attach(protocol, self.hosts[wire.address].serve(wire))
        return wire

    def closed(self, wire: Wire) -> None:
        """The client's end is."""
        wire.open = False
        if wire in self._open:
            self._open.remove(wire)
        self._by_socket.pop(wire.sock, None)

    def kill(self, group: Group) -> None:
        """A process died."""
        for wire in list(self._open):
            if wire.group is group:
                wire.die()
