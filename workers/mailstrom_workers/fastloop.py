"""uvloop's event loop, as an engine needs it. Only ``loops`` imports this, where there is uvloop.

Its ``sock_connect`` looks every address up on libuv's pool of threads, numeric ones too. Once that
pool was used, libuv's end joins its threads at the end of each process, also in a forked child,
which has none: it dies there by SIGSEGV. So connections are made here without it. Addresses are
numeric wherever the engine connects (the resolver has been asked before).

Must not know: what connections are for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any
from weakref import WeakSet

import uvloop


class FastLoop(uvloop.Loop):
    """A loop that does not run yet."""

    NAME = "uvloop"

    def __init__(self) -> None:
        super().__init__()
        self._sockets: WeakSet[socket.socket] = WeakSet()

    def descriptors(self) -> set[int]:
        """Every connection that was made; the loop's own are closed by nobody in a child."""
        return {sock.fileno() for sock in self._sockets} - {-1}

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a socket that does not block.

        Args:
            address: numeric host, and port.

        Raises:
            OSError: what the system says.
        """
        self._sockets.add(sock)
        error = sock.connect_ex(address)
        if error in (errno.EINPROGRESS, errno.EINTR):
            connected = asyncio.Event()
            self.add_writer(sock, connected.set)
            try:
                await connected.wait()
            finally:
                self.remove_writer(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"connect to {address}: {os.strerror(error)}")
