"""A TCP proxy that adds a round trip; its plan comes as one JSON line on standard input.

Plan: ``listen`` (addresses), ``port``, ``silent`` (those that never answer), ``to`` (a port of
127.0.0.1), ``rtt_ms``. Every piece of data waits half a round trip; order is kept. Connecting to
loopback takes no time, so the other side's first words wait two whole round trips: the handshake
and the greeting. Prints ``{"ready": true}`` once it listens; TERM ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast


class Side(asyncio.Protocol):
    """One direction: what arrives here leaves at ``other`` half a round trip later."""

    def __init__(self, half_s: float, extra_s: float = 0.0) -> None:
        self.half_s = half_s
        self.extra_s = extra_s
        self.other: Side | None = None
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes | None] = []
        self.last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note whom to answer."""
        self.transport = cast(asyncio.Transport, transport)

    def join(self, other: Side) -> None:
        """Pass on what came before there was anybody to take it."""
        self.other = other
        for piece in self.early:
            self.pass_on(piece)
        self.early.clear()

    def pass_on(self, piece: bytes | None) -> None:
        """Hand a piece to the other side, half a round trip later; None is the end."""
        if self.other is None:
            self.early.append(piece)
            return
        loop = asyncio.get_running_loop()
        self.last = max(self.last, loop.time() + self.half_s + self.extra_s)
        self.extra_s = 0.0
        loop.call_at(self.last, self.other.take, piece)

    def take(self, piece: bytes | None) -> None:
        """Write a piece, or end."""
        if self.transport is None or self.transport.is_closing():
            return
        if piece is None:
            self.transport.close()
        else:
            self.transport.write(piece)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self.pass_on(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end takes as long as any piece."""
        self.pass_on(None)


class Inward(Side):
    """The side of a client; it dials the target."""

    def __init__(self, half_s: float, port: int) -> None:
        super().__init__(half_s)
        self.port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note whom to answer."""
        super().connection_made(transport)
        self.dialling = asyncio.ensure_future(self.dial())

    async def dial(self) -> None:
        """Connect to the target; a refusal ends the client's connection."""
        outward = Side(self.half_s, 3 * self.half_s)
        outward.other = self
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: outward, "127.0.0.1", self.port)
        except OSError:
            self.take(None)
            return
        self.join(outward)


class Silent(asyncio.Protocol):
    """Accepts, and says nothing for ever."""


async def main() -> None:
    """Serve until ended."""
    plan = json.loads(sys.stdin.readline())
    half_s = plan["rtt_ms"] / 2000
    loop = asyncio.get_running_loop()
    silent = set(plan["silent"])
    answering = [address for address in plan["listen"] if address not in silent]
    servers = [
        await loop.create_server(
            lambda: Inward(half_s, plan["to"]), answering, plan["port"], backlog=1024
        )
    ]
    if silent:
        servers.append(await loop.create_server(Silent, list(silent), plan["port"]))
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main())
