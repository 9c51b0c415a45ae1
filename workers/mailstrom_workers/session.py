"""One SMTP session: transactions over a transport that wire.py established.

Contract: what its owner asks and tells; ``pump`` runs the transactions of whoever feeds the
session. It ends politely if it is idle, at once if not.

Must not know: the database, sites, what a reply means for a recipient.
"""

from __future__ import annotations

import asyncio

from mailstrom.smtp import commands
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import ClientDialogue, Fault, PeerClosing
from mailstrom_workers.outgoing import Outgoing, Source
from mailstrom_workers.pump import BLOCK, Pump
from mailstrom_workers.wire import (
    Established,
    SessionFacts,
    SessionFailure,
    SessionPolicy,
    Target,
    establish,
)

__all__ = ["Outgoing", "Session", "Source"]

_LOW_WATER = 16384
_WHOLE = 262144  # octets of content that may be handed to the transport at once


class Session:
    """An open session. Use ``Session.open``; end it with ``quit`` or ``abort``."""

    def __init__(self, established: Established, policy: SessionPolicy) -> None:
        self.facts: SessionFacts = established.facts
        self.capabilities: Capabilities = established.capabilities
        self._timeouts = policy.timeouts
        self._dialogue = ClientDialogue(established.capabilities, policy.dialect)
        self._pump = Pump(
            established.transport,
            self._dialogue,
            policy.timeouts,
            whole=max(_WHOLE, policy.dialect.chunk_octets),
        )
        established.transport.set_protocol(self._pump)
        established.transport.set_write_buffer_limits(high=BLOCK, low=_LOW_WATER)

    @classmethod
    async def open(
        cls, target: Target, policy: SessionPolicy, patience: asyncio.Timeout | None = None
    ) -> Session | SessionFailure:
        """Connects and takes the transport over; see ``wire.establish`` for how it can fail."""
        established = await establish(target, policy, patience)
        if isinstance(established, SessionFailure):
            return established
        return cls(established, policy)  # no await in between: nothing can arrive unseen

    def feed(self, source: Source | None) -> None:
        """Take transactions from this source from now on; None: from nobody.

        A session that is over asks nothing of it: ``lost`` is told at once.

        Raises:
            RuntimeError: a transaction is under way; its end is told to whom it was taken from.
        """
        if not self.idle:
            raise RuntimeError("a transaction is under way on this session; let it end first")
        self._pump.source = source
        if source is not None and not self.usable:
            source.lost()
        else:
            self._pump.fill()

    def poke(self) -> None:
        """The source may have something: ask it, if a transaction may begin."""
        self._pump.fill()

    def put_down(self) -> bool:
        """Hold no content for a peer that says nothing: it is read when, and if, it is wanted.

        Returns:
            Whether none is held: not where it waits for a peer that does not read.
        """
        return self._pump.put_down()

    @property
    def idle(self) -> bool:
        """No transaction is under way."""
        return not self._pump.outgoing

    @property
    def usable(self) -> bool:
        """Whether another transaction may begin, now or once those under way are over."""
        if self._pump.transport.is_closing():
            return False
        return self._dialogue.ready or not self.idle

    @property
    def wrote_s(self) -> float:
        """Loop time when the peer last had taken a block of content that is written in several."""
        return self._pump.wrote_s

    @property
    def messages(self) -> int:
        """Messages that the server took."""
        return self._pump.messages

    @property
    def closing(self) -> PeerClosing | None:
        """What the peer ended the idle session with (a 421, say), or None."""
        return self._pump.closing

    @property
    def end_cause(self) -> str | None:
        """Why the session ended, for the ``sessions`` view; None while it lives."""
        if self._pump.end_cause is None and self._pump.closing is not None:
            closing = self._pump.closing
            return str(closing.fault) if closing.fault is not None else "reply"
        return self._pump.end_cause

    async def quit(self) -> None:
        """Ends the session politely if it is idle, at once if not; never raises for the peer.

        So it ends, too, behind a flight that was refused whole (RFC 5321 section 4.1.1.10: never
        without a QUIT).
        """
        pump = self._pump
        try:
            if self.idle and (self.usable or pump.parting) and not pump.transport.is_closing():
                pump.end_cause = pump.end_cause or "quit"
                pump.quitting = True
                pump.transport.write(commands.QUIT)
                await self._within(pump.farewell)
                pump.transport.close()
                await self._within(pump.closed)
        finally:
            self.abort()  # also where whoever says goodbye is cancelled

    def abort(self) -> None:
        """Cuts the connection; running transactions end with ``fault=closed``."""
        self._sever("aborted", Fault.CLOSED)

    def break_off(self) -> None:
        """Cuts the connection; running transactions end with ``fault=cut``: nobody is to blame."""
        self._sever("cut", Fault.CUT)

    def _sever(self, cause: str, fault: Fault) -> None:
        self._pump.end_cause = self.end_cause or cause
        self._pump.stop_writing()
        self._pump.abort(fault)
        self._pump.disarm_timer()

    async def _within(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._timeouts.quit):
                await event.wait()
        except TimeoutError:
            return
