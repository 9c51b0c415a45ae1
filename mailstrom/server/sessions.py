"""The sessions open in one loop: what bounds them, who they are, one timer for all.

Contract. A session has a deadline that it moves as it goes on, by writing an attribute; one timer
looks at all of them every so often and cuts who is late. So a deadline costs nothing to move and
an idle session no timer. It is kept to within a quarter of the shortest limit, a second at most.

Must not know: what a session says, what it is cut for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from math import inf
from typing import Protocol

from mailstrom.smtp.reply import Reply

log = logging.getLogger("mailstrom.server")

READ_OCTETS = 65536
MOST_LINGERING = 32
"""Sessions that were refused in their greeting and are kept for a moment behind it, at a time: each
has a descriptor, and a flood of them would take all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one session may take; ``inf``, or 0 of a rate, for no limit.

    Args:
        command_s: from a reply to the next whole command (RFC 5321 section 4.5.3.2.7).
        content_s: from one piece of content to the next.
        content_rate: octets a second at which content comes at least, ``content_s`` spared.
        handshake_s: a TLS handshake, and what comes before a session.
        unread_s: from replies that the peer does not read to its reading on.
        finish_s: from our end of the connection to the peer's.
        unread: octets taken in and not looked at, at which reading stops.
    """

    command_s: float = 300.0
    content_s: float = 180.0
    content_rate: float = 1000.0
    handshake_s: float = 30.0
    unread_s: float = 180.0
    finish_s: float = 5.0
    unread: int = 65536

    @property
    def coarseness(self) -> float:
        """Seconds between two looks at the deadlines."""
        shortest = min(
            self.command_s, self.content_s, self.handshake_s, self.unread_s, self.finish_s
        )
        return max(0.02, min(1.0, shortest / 4))


UNLIMITED = Limits(command_s=inf, content_s=inf, content_rate=0, unread_s=inf)
"""Of a peer that is trusted to end by itself."""


class Session(Protocol):
    """What is counted here."""

    deadline: float

    @property
    def over(self) -> bool:
        """Whether it has nothing more to say or to hear."""

    def expired(self) -> None:
        """The deadline is over."""

    def abort(self, cause: str) -> None:
        """Cut it at once."""

    def stop(self) -> None:
        """End it as soon as nothing is half said."""

    def part(self, reply: Reply, cause: str) -> None:
        """Say this and end it."""


class Sessions:
    """Those of one loop.

    Args:
        limits: what each of them may take.

    Attributes:
        open: the sessions.
        buffer: what all of them read into, one after the other.
        turned_away: open ones that were refused in their greeting.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.open: set[Session] = set()
        self.turned_away = 0
        self.buffer = memoryview(bytearray(READ_OCTETS))
        self._every = self.limits.coarseness
        self._timer: asyncio.TimerHandle | None = None
        self._watching: set[asyncio.Future[None]] = set()

    def add(self, session: Session) -> None:
        """A session begins."""
        self.open.add(session)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._look)

    def remove(self, session: Session) -> None:
        """A session is over; one that was removed before may be again."""
        self.open.discard(session)
        if not self.open and self._timer is not None:  # there may be another loop the next time
            self._timer.cancel()
            self._timer = None
        self.changed()

    def changed(self) -> None:
        """A session is over, or gone."""
        for watching in self._watching:
            if not watching.done():
                watching.set_result(None)

    async def deserted(self) -> None:
        """Return once no session is open."""
        while self.open:
            await self._change()

    async def finished(self, seconds: float) -> bool:
        """Return once every session is over, though peers may not have closed, or time is.

        Returns:
            whether every session is.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(session.over for session in self.open):
                    await self._change()
                return True
        return False

    async def _change(self) -> None:
        watching: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watching.add(watching)
        try:
            await watching
        finally:
            self._watching.discard(watching)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._every, self._look)
        now = loop.time()
        for late in [session for session in self.open if session.deadline <= now]:
            try:
                late.expired()
            except Exception:  # others have deadlines, too
                log.exception("a session that was late could not be ended")
                late.abort("timeout")
