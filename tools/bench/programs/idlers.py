"""Clients that say EHLO and then nothing: idlers.py PORT NUMBER.

Opens so many connections to 127.0.0.1:PORT, a hundred at a time, reads greeting and EHLO reply on
each, and prints one JSON line: ``open``, how many are; ``error``, what the first of the others met.
TERM ends it. Plain sockets, so that a client costs this machine little more than its descriptor.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
import sys
from collections.abc import Iterator

TOGETHER = 100
PATIENCE_S = 30.0
SPARE = 50


def _reply(client: socket.socket) -> bytes:
    """One whole reply.

    Raises:
        OSError: it did not come, or the connection ended.
        ValueError: it refuses.
    """
    came = b""
    while True:
        data = client.recv(4096)
        if not data:
            raise ConnectionError("closed by the server")
        came += data
        last = came.rstrip(b"\r\n").rpartition(b"\n")[2]
        if came.endswith(b"\n") and last[3:4] == b" ":
            if not last.startswith(b"2"):
                raise ValueError(last.decode("ascii", "replace"))
            return came


def _opened(port: int, number: int) -> Iterator[socket.socket]:
    for first in range(0, number, TOGETHER):
        some = []
        for _ in range(min(TOGETHER, number - first)):
            client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            some.append(client)
        for client in some:
            _reply(client)
            client.sendall(b"EHLO idle.bench.test\r\n")
        for client in some:
            _reply(client)
            yield client


def main(port: int, number: int) -> None:
    """Open them, say so, and wait."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number + SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, number + SPARE), hard))
    held: list[socket.socket] = []
    error = ""
    try:
        for client in _opened(port, number):
            held.append(client)
    except (OSError, ValueError) as met:
        error = f"{type(met).__name__}: {met}"
    print(json.dumps({"open": len(held), "error": error}), flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
