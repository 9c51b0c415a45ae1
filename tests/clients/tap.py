"""What a client really sends: a line between it and a server that writes down every octet.

Contract. ``Tap`` listens on a port and hands each connection on to another, both ways, octet for
octet; ``said`` is what clients sent, a list of pieces for each connection, in order. A piece is all
that came before the server's next octets were handed on: two commands in one piece were pipelined.
While ``hold`` is more than 0 those are held back so long, so that a client that does not wait for
them is told from one that does, however it cuts its writes.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Self

READ = 65536
KEPT = 1 << 20
"""Octets of a connection that are kept; contents may be larger."""


class Tap:
    """One line.

    Args:
        address: where it listens, and the server does.
        port: of the server.
        source: the address that the server sees; "": the system's choice.
    """

    def __init__(self, address: str, port: int, source: str = "") -> None:
        self._to = (address, port)
        self._from = (source, 0) if source else None
        self._listener = socket.create_server((address, 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.said: list[list[bytes]] = []
        self.hold = 0.0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and all its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *self._threads):
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            said: list[bytes] = []
            self.said.append(said)
            thread = threading.Thread(target=self._carry, args=(client, said), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket, said: list[bytes]) -> None:
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(self._to, source_address=self._from) as server,
        ):
            self._open |= {client, server}
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._both_ways(client, server, said)
            finally:
                self._open -= {client, server}

    def _both_ways(self, client: socket.socket, server: socket.socket, said: list[bytes]) -> None:
        piece = _Piece(said)
        with selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while ready.get_map():
                for key, _ in ready.select():
                    if key.fileobj is client:
                        over = not _passed(client, server, piece)
                    else:
                        data = server.recv(READ)
                        over = not data
                        time.sleep(self.hold)
                        while self.hold and select.select([client], [], [], 0)[0]:
                            if not _passed(client, server, piece):
                                break
                        piece.answered = True
                        client.sendall(data)
                    if over:
                        ready.unregister(key.fileobj)
                        with contextlib.suppress(OSError):
                            key.data.shutdown(socket.SHUT_WR)


class _Piece:
    """What a client has sent, as it comes in."""

    def __init__(self, said: list[bytes]) -> None:
        self._said = said
        self._kept = 0
        self.answered = True

    def add(self, data: bytes) -> None:
        """Octets came."""
        if self._kept >= KEPT:
            return
        self._kept += len(data)
        if self.answered:
            self._said.append(data)
        else:
            self._said[-1] += data
        self.answered = False


def _passed(client: socket.socket, server: socket.socket, piece: _Piece) -> bool:
    """Hand on what the client has sent; whether there was anything."""
    data = client.recv(READ)
    if not data:
        return False
    piece.add(data)
    server.sendall(data)
    return True
