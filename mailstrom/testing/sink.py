"""A mail server for tests that keeps what it gets: look at it, wait for it, throw it away.

Contract. ``Sink`` is the scripted server with all its addresses that behave in some way
(``mailstrom.testing.script``), and it keeps each mail that it took over, as a value, in the order
in which the contents ended: before the client heard 250, so whoever was told finds it here. It runs
in a thread of its own (``with``) or in the caller's loop (``async with``); what it keeps may be
looked at from anywhere. Bounded: beyond ``keep`` mails it forgets the oldest.

By itself it prints what comes, for people (``mailstrom.testing.show``)::

    python -P -m mailstrom.testing.sink --port 2525

Must not know: pytest, the engine, the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from mailstrom.server.mail import Mail
from mailstrom.testing.connection import Shell
from mailstrom.testing.script import Director, Script
from mailstrom.testing.smtp import SMTPServer

KEEP = 10_000


class Sink(SMTPServer):
    """A server that keeps mail.

    Args:
        host: loopback address.
        port: 0 for a free one; read ``port`` once it runs.
        script: how it behaves beyond the addresses that do so by their name.
        tls: context for STARTTLS, or for the whole connection where ``implicit_tls``.
        auth: user -> password; AUTH is offered then, and needed.
        hostname: its own name.
        keep: mails kept; of more the oldest are forgotten.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        script: Script | Director | None = None,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        auth: Mapping[str, str] | None = None,
        hostname: str = "sink.test",
        keep: int = KEEP,
    ) -> None:
        if auth:
            if isinstance(script, Director):
                raise ValueError("users belong into the script of the director: Script(auth=...)")
            script = replace(script or Script(), auth=auth)
        super().__init__(
            host,
            port,
            script=script,
            tls=tls,
            implicit_tls=implicit_tls,
            hostname=hostname,
            keep_content=True,
            keep_flights=False,
        )
        self._keep = keep
        self._mails: deque[Mail] = deque(maxlen=keep)
        self._came = threading.Condition()
        self._running: contextlib.ExitStack | None = None

    # What came

    @property
    def messages(self) -> list[Mail]:
        """What was taken over and not cleared, oldest first."""
        with self._came:
            return list(self._mails)

    @property
    def address(self) -> str:
        """``127.0.0.1:2525``, or ``[::1]:2525``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def config(self) -> dict[str, dict[str, object]]:
        """For ``ms.start(config=...)``: an engine that delivers everything here, soon, or again."""
        return {
            "delivery": {"mode": "relay"},
            "relay": {"hosts": [self.address], "tls": "none"},
            "retry": {"schedule": ["1s"]},
            "sites": {"suspend": ["1s"]},
        }

    def wait(self, count: int = 1, timeout: float = 10.0) -> list[Mail]:
        """Wait until so many mails are here.

        Args:
            count: of all that are kept; :meth:`clear` begins anew.
            timeout: seconds.

        Returns:
            All that are kept, oldest first.

        Raises:
            TimeoutError: they did not come; says what did.
            RuntimeError: called in the loop that the server runs in, which it would stop.
        """
        if self.loop is not None and self.loop is _running_loop():
            raise RuntimeError("wait() would stop the server's own loop: await arrived() in it")
        deadline = time.monotonic() + timeout
        with self._came:
            while len(self._mails) < count:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(self._lacking(count, timeout))
                self._came.wait(left)
            return list(self._mails)

    async def arrived(self, count: int = 1, timeout: float = 10.0) -> list[Mail]:
        """Do as :meth:`wait`, in a loop, be it the server's or another."""
        return await asyncio.to_thread(self.wait, count, timeout)

    def clear(self) -> None:
        """Forget what came; addresses that behave once have behaved."""
        with self._came:
            self._mails.clear()

    def take_mail(self, mail: Mail) -> None:
        """Keep a mail; called before its answer."""
        with self._came:
            self._mails.append(mail)
            self._came.notify_all()
        self._trim(self.transactions)
        self._trim(self.dots)

    def opened(self, shell: Shell) -> None:
        """Count a connection."""
        super().opened(shell)
        self._trim(self.connections)

    def _trim(self, record: list[Any]) -> None:
        del record[: max(0, len(record) - self._keep)]

    def _lacking(self, count: int, timeout: float) -> str:
        came = ", ".join(
            f"{mail.message()['Subject']!s:.60} to {', '.join(mail.recipients)}"
            for mail in list(self._mails)[:5]
        )
        text = f"{len(self._mails)} of {count} mails came within {timeout:g} s"
        return f"{text}: {came}" if came else text

    # In a thread

    def __enter__(self) -> Self:
        """Run in a thread.

        Raises:
            OSError: the address cannot be had.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.in_thread())
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; what came stays."""
        running, self._running = self._running, None
        if running is not None:
            running.close()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


if __name__ == "__main__":
    from mailstrom.testing.show import main

    raise SystemExit(main())
