"""A mail host that writes down when things came: witness.py PORT FILE.

One JSON line a message into FILE: ``sender`` (its address), and in seconds of the machine's
monotonic clock ``connected``, ``mail`` (MAIL FROM read) and ``done`` (the final dot read). The
clock is the same in every process of a machine. Prints ``{"ready": true}``; TERM ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TextIO, cast


class Host(asyncio.Protocol):
    """Takes every message; PIPELINING (RFC 2920), nothing else."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.rest = b""
        self.content = False
        self.seen: dict[str, float | str] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note whom to answer."""
        self.connected = time.monotonic()
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(b"220 witness.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        now = time.monotonic()
        self.rest += data
        while True:
            if self.content:
                _, dot, tail = self.rest.partition(b"\r\n.\r\n")
                if not dot:
                    return
                self.rest, self.content = tail, False
                self.out.write(json.dumps({**self.seen, "done": now}) + "\n")
                self.out.flush()
                self.transport.write(b"250 2.0.0 taken\r\n")
                continue
            line, end, tail = self.rest.partition(b"\r\n")
            if not end:
                return
            self.rest = tail
            self.command(line, now)

    def command(self, line: bytes, now: float) -> None:
        """Answer one command."""
        verb = line[:4].upper()
        if verb == b"EHLO":
            self.transport.write(b"250-witness.test\r\n250 PIPELINING\r\n")
        elif verb == b"MAIL":
            sender = line.partition(b"<")[2].partition(b">")[0].decode("ascii", "replace")
            self.seen = {"sender": sender, "connected": self.connected, "mail": now}
            self.transport.write(b"250 2.1.0 ok\r\n")
        elif verb == b"DATA":
            self.content = True
            # the empty line before the content makes the search for the dot find an empty one
            self.rest = b"\r\n" + self.rest
            self.transport.write(b"354 go on\r\n")
        elif verb == b"QUIT":
            self.transport.write(b"221 2.0.0 bye\r\n")
            self.transport.close()
        else:
            self.transport.write(b"250 2.0.0 ok\r\n")


async def main(out: TextIO) -> None:
    """Serve until ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Host(out), "127.0.0.1", int(sys.argv[1]))
    print(json.dumps({"ready": True}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with open(sys.argv[2], "a", encoding="utf-8") as opened:
        asyncio.run(main(opened))
