"""An SMTP server for tests and the demo: real sockets, behaviour by script, a record of everything.

Contract. ``SMTPServer`` listens on one loopback address, with STARTTLS or TLS from the start where
it is given a context, and plays a ``Script`` (``mailstrom.testing.script``). Its grammar is the
``ServerDialogue`` that a real listener would use; only exceptions are scripted. Each content is
recorded at its final dot before anything is answered. It is no mail server: contents go nowhere.

As a process of its own, ended by SIGTERM or SIGINT (``--help`` shows the options)::

    python -P -m mailstrom.testing.smtp --bind 127.0.0.2:2525 --record seen.jsonl

It prints one JSON line when it listens. Must not know: the engine, the spool.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from mailstrom.server.mail import Mail
from mailstrom.server.sessions import UNLIMITED, Sessions
from mailstrom.testing.connection import Shell
from mailstrom.testing.records import Connection, Dot, Journal, Transaction
from mailstrom.testing.script import Director, Script

BACKLOG = 512


class SMTPServer:
    """One listening address.

    Args:
        host: loopback address, IPv4 or IPv6.
        port: 0 for a free one; read ``port`` once started.
        script: how it behaves; several servers may share a ``Director`` and so its counts.
        tls: context for STARTTLS, or for the whole connection where ``implicit_tls``.
        hostname: its own name.
        at_dot: called with each ``Dot`` before the answer.
        record: file for JSON lines (``mailstrom.testing.records``).
        keep_content: keep the bytes in ``Dot.content``, and call ``take_mail``.
        keep_flights: keep what came with each read in ``Connection.flights``.

    Attributes:
        connections, transactions, dots: everything seen, in order.
        open: connections open now; ``most_open``: the highest that number has been.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        script: Script | Director | None = None,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        hostname: str = "mx.test",
        at_dot: Callable[[Dot], None] | None = None,
        record: Path | None = None,
        keep_content: bool = False,
        keep_flights: bool = True,
    ) -> None:
        if implicit_tls and tls is None:
            raise ValueError("implicit TLS needs a context: pass tls=")
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is none: pass 0 for a free one, or 1 to 65535")
        self.host = host
        self.port = port
        self.hostname = hostname
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.director = script if isinstance(script, Director) else Director(script or Script())
        self.keep_content = keep_content
        self.keep_flights = keep_flights
        self.at_dot = at_dot
        self.connections: list[Connection] = []
        self.transactions: list[Transaction] = []
        self.dots: list[Dot] = []
        self.open = 0
        self.most_open = 0
        self.numbers = itertools.count(1)
        self.transaction_numbers = itertools.count(1)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._record = record
        self.journal = Journal(None)
        self._listener: asyncio.Server | None = None
        self.sessions = Sessions(UNLIMITED)

    async def start(self) -> Self:
        """Listen; connections are taken as soon as this returns.

        Raises:
            OSError: the address or the record file cannot be had.
        """
        self.journal = Journal(self._record)
        loop = self.loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Shell(self),
            self.host,
            self.port,
            backlog=BACKLOG,
        )
        self.port = int(self._listener.sockets[0].getsockname()[1])
        return self

    async def stop(self) -> None:
        """Stop listening and cut every connection; records stay readable."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.close()
        for shell in list(self.sessions.open):
            shell.abort("stopped")
        await self.sessions.deserted()
        await listener.wait_closed()
        self.journal.close()

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Run on a loop in a thread of its own, for callers without a loop.

        Raises:
            OSError: as :meth:`start`.
        """
        loop = asyncio.new_event_loop()
        runner = threading.Thread(target=loop.run_forever, name=f"smtp-{self.host}", daemon=True)
        runner.start()
        try:
            asyncio.run_coroutine_threadsafe(self.start(), loop).result()
            try:
                yield self
            finally:
                asyncio.run_coroutine_threadsafe(self.stop(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            runner.join()
            loop.close()

    @property
    def connected(self) -> list[Shell]:
        """The connections open now; to be looked at in the server's loop."""
        return [one for one in self.sessions.open if isinstance(one, Shell)]

    # What a connection tells

    def opened(self, shell: Shell) -> None:
        """Count a connection."""
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        seen = shell.seen
        self.connections.append(seen)
        self.journal.write(
            "connection.opened",
            connection=seen.number,
            address=seen.address,
            peer=seen.peer,
            open=self.open,
        )

    def closed(self, shell: Shell) -> None:
        """Uncount a connection."""
        self.open -= 1
        seen = shell.seen
        seen.closed = time.time()
        self.journal.write(
            "connection.closed",
            connection=seen.number,
            tls=seen.tls,
            auth=seen.auth,
            transactions=seen.transactions,
            cause=seen.cause,
            open=self.open,
        )

    def take_dot(self, dot: Dot) -> None:
        """Record a content; called before its answer."""
        self.dots.append(dot)
        self.journal.dot(dot)
        if self.at_dot is not None:
            self.at_dot(dot)

    def take_mail(self, mail: Mail) -> None:
        """A mail was taken over, where contents are kept; called before its answer."""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -P -m mailstrom.testing.smtp",
        description="SMTP server with scripted behaviour; contents go nowhere.",
    )
    parser.add_argument(
        "--bind",
        action="append",
        required=True,
        metavar="ADDRESS:PORT",
        help="may be repeated; port 0 takes a free one",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="append a JSON line per event")
    parser.add_argument("--script", default="{}", metavar="JSON", help="a script, or @FILE")
    parser.add_argument("--hostname", default="mx.test")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate chain")
    parser.add_argument("--tls-key", type=Path, metavar="PEM")
    parser.add_argument("--implicit-tls", action="store_true", help="TLS from the first byte")
    return parser.parse_args(argv)


async def _serve(arguments: argparse.Namespace) -> None:
    text: str = arguments.script
    if text.startswith("@"):
        text = await asyncio.to_thread(Path(text[1:]).read_text)
    director = Director(Script.from_json(text))
    tls: ssl.SSLContext | None = None
    if arguments.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with contextlib.AsyncExitStack() as stack:
        bound = []
        for bind in arguments.bind:
            host, _, port = bind.rpartition(":")
            server = SMTPServer(
                host.strip("[]"),
                int(port),
                script=director,
                tls=tls,
                implicit_tls=arguments.implicit_tls,
                hostname=arguments.hostname,
                record=arguments.record,
            )
            await stack.enter_async_context(server)
            bound.append([server.host, server.port])
        print(json.dumps({"event": "ready", "pid": os.getpid(), "bound": bound}), flush=True)
        await ended.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT.

    Args:
        argv: options; None: those of the process.

    Returns:
        0 after a signal; 2 if an address, a file or the script is unusable.
    """
    try:
        asyncio.run(_serve(_arguments(argv)))
    except (OSError, ValueError) as error:
        print(f"mailstrom.testing.smtp: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
