"""A TCP proxy that adds a round trip; its plan comes as one JSON line on standard input.

Plan: ``listen`` (addresses), ``port``, ``silent`` (those that never answer), ``to`` (a port of
127.0.0.1), ``rtt_ms``. Every piece of data waits half a round trip; order is kept. Connecting to
loopback takes no time, so the other side's first words wait two whole round trips: the handshake
and the greeting. Prints ``{"ready": true}`` once it listens; TERM ends it.

Sockets and one poll, no layers: it runs on the cores that are measured, and is not what is
measured.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import select
import socket
import sys
import time
from itertools import count

READ = 1 << 16
TURN = 64  # descriptors that one look tells of: what is due meanwhile is late by their time


class End:
    """One of a connection's two sockets: what it says leaves at ``other`` later."""

    __slots__ = ("extra_s", "last", "open", "other", "over", "socket", "unwritten")

    def __init__(self, connected: socket.socket, extra_s: float) -> None:
        self.socket = connected
        self.other = self
        self.extra_s = extra_s  # before its first words
        self.last = 0.0  # when its last piece leaves
        self.unwritten = b""
        self.open = True
        self.over = False  # told its end: it closes once it has written the rest


class Proxy:
    """All connections.

    Args:
        half_s: how long a piece waits, in seconds.
        to: the port of 127.0.0.1 that is dialled.
    """

    def __init__(self, half_s: float, to: int) -> None:
        self.half_s = half_s
        self.to = to
        self.poll = select.epoll()
        self.doors: dict[int, socket.socket] = {}
        self.ends: dict[int, End] = {}
        self.silent: set[int] = set()
        self.kept: list[socket.socket] = []
        self.waiting: list[tuple[float, int, End, bytes]] = []
        self.numbers = count()

    def listen(self, address: str, port: int, *, silent: bool) -> None:
        """Open a door; behind a silent one nobody is, and nothing is read."""
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        door.setblocking(False)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones have it, too
        door.bind((address, port))
        door.listen(1024)
        self.doors[door.fileno()] = door
        if silent:
            self.silent.add(door.fileno())
        self.poll.register(door.fileno(), select.EPOLLIN)

    def serve(self) -> None:
        """Carry on until ended."""
        doors, ends, waiting, poll = self.doors, self.ends, self.waiting, self.poll.poll
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, end, piece = heapq.heappop(waiting)
                self.give(end, piece)
            seconds = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else -1.0
            for descriptor, what in poll(seconds, TURN):
                end = ends.get(descriptor)
                if end is not None:
                    if what & ~select.EPOLLOUT:
                        self.take(end)
                    else:
                        self.write(end, end.unwritten)
                elif descriptor in doors:
                    self.accept(descriptor)

    def accept(self, door: int) -> None:
        """A client; whom it wants to speak to is dialled at once."""
        try:
            client, _ = self.doors[door].accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if door in self.silent:
            self.kept.append(client)
            return
        client.setblocking(False)
        target = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        target.setblocking(False)
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # under way, or refused: reading it will tell
            target.connect(("127.0.0.1", self.to))
        inward, outward = End(client, 0.0), End(target, 3 * self.half_s)
        inward.other, outward.other = outward, inward
        for end in (inward, outward):
            self.ends[end.socket.fileno()] = end
            self.poll.register(end.socket.fileno(), select.EPOLLIN)

    def take(self, end: End) -> None:
        """What an end says waits; nothing is its end, which takes as long as any piece."""
        try:
            data = end.socket.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        end.last = max(end.last, time.monotonic() + self.half_s + end.extra_s)
        end.extra_s = 0.0
        heapq.heappush(self.waiting, (end.last, next(self.numbers), end.other, data))
        if not data:
            self.close(end)

    def give(self, end: End, piece: bytes) -> None:
        """An end is told a piece; nothing ends it, once all that is unwritten has left."""
        if not end.open or end.over:
            return
        if not piece:
            end.over = True
            if not end.unwritten:
                self.close(end)
        elif end.unwritten:
            end.unwritten += piece
        else:
            self.write(end, piece)

    def write(self, end: End, data: bytes) -> None:
        """As much as the kernel takes; the poll tells when it takes more."""
        try:
            sent = end.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # reading it tells its end
        more = bool(end.unwritten)
        end.unwritten = data[sent:]
        if bool(end.unwritten) != more:
            self.poll.modify(
                end.socket.fileno(),
                select.EPOLLIN if more else select.EPOLLIN | select.EPOLLOUT,
            )
        if end.over and not end.unwritten:
            self.close(end)

    def close(self, end: End) -> None:
        """It is over; what is still on its way to it goes nowhere."""
        end.open = False
        del self.ends[end.socket.fileno()]
        end.socket.close()


def main() -> None:
    """Serve until ended."""
    plan = json.loads(sys.stdin.readline())
    proxy = Proxy(plan["rtt_ms"] / 2000, plan["to"])
    silent = set(plan["silent"])
    for address in plan["listen"]:
        proxy.listen(address, plan["port"], silent=address in silent)
    print(json.dumps({"ready": True}), flush=True)
    proxy.serve()


if __name__ == "__main__":
    main()
