"""One SMTP session: transactions over a transport that wire.py established.

Contract: pumps a ``ClientDialogue``. Reads while it writes, so that neither side can wait for the
other for ever; buffers are bounded (64 KiB out, the reply parser's limits in). Each awaited reply
has its own total timeout (RFC 5321 section 4.5.3.2), which dripping bytes do not renew; content
is timed by block. The verdict is always a ``TransactionEnd``; exceptions are bugs, cancellation,
or the content source's own error, and with each of them the connection is cut before the dot.

Must not know: the database, sites, what a reply means for a recipient.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator

from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp import commands
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Envelope,
    Event,
    Fault,
    PeerClosing,
    TransactionEnd,
)
from mailstrom.types import Stage
from mailstrom_workers.wire import (
    Established,
    SessionFacts,
    SessionFailure,
    SessionPolicy,
    Target,
    establish,
)

_BLOCK = 65536  # octets of content per write, and what is timed by ``Timeouts.body``
_LOW_WATER = 16384


def _seconds(dialogue: ClientDialogue, timeouts: Timeouts) -> float:
    """How long the awaited reply may take."""
    if dialogue.resetting:
        return timeouts.rset
    by_stage = {
        Stage.MAIL: timeouts.mail,
        Stage.RCPT: timeouts.rcpt,
        Stage.DATA: timeouts.data,
        Stage.BODY: timeouts.body,
        Stage.DOT: timeouts.dot,
    }
    return by_stage[dialogue.stage]


class _Pump(asyncio.Protocol):
    """The transport's protocol: bytes to the dialogue, its output back, one timer."""

    def __init__(
        self, transport: asyncio.Transport, dialogue: ClientDialogue, timeouts: Timeouts
    ) -> None:
        self.transport = transport
        self.dialogue = dialogue
        self.timeouts = timeouts
        self.events: deque[ContentWanted | TransactionEnd] = deque()
        self.closing: PeerClosing | None = None
        self.closed = asyncio.Event()
        self.quitting = False
        self.farewell = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None

    # asyncio's side

    def data_received(self, data: bytes) -> None:
        """Replies, at any time."""
        if self.quitting:
            self.farewell.set()
            return
        before = self.dialogue.replies
        events = self.dialogue.receive(data)
        if events or self.dialogue.replies != before:  # dripping bytes renew no deadline
            self._take(events)

    def eof_received(self) -> bool:
        """A peer that half-closes is done; it may never read what is still buffered for it."""
        if not self.quitting:
            self._take(self.dialogue.receive_eof())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection, from whichever side."""
        if exc is not None:
            self._salvage()
        if not self.quitting:
            self._take(self.dialogue.receive_eof())
        self._disarm()
        self.disarm_timer()
        self._paused = False
        self.farewell.set()
        self.closed.set()
        self._wake()

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The write buffer has drained."""
        self._paused = False
        self._wake()

    # the session's side

    async def next_event(self) -> ContentWanted | TransactionEnd:
        """The transaction's next event; comes in bounded time, since each stage is timed."""
        while not self.events:
            await self._wait()
        return self.events.popleft()

    async def drain(self) -> None:
        """Until the peer took enough, or the transaction ended; timed as one block."""
        if self._paused and not self.events:
            self._arm()
            while self._paused and not self.events:
                await self._wait()
            if not self.events:
                self._disarm()

    def flush(self) -> None:
        """Hands the dialogue's output to the transport.

        Nothing is taken for a transport that is closing: what it would have carried counts as not
        written.
        """
        if self.transport.is_closing():
            return
        output = self.dialogue.take_output()
        if output:
            self.transport.write(output)

    def advance(self) -> None:
        """After the session told the dialogue something: write, and time what is awaited."""
        self.flush()
        if self.dialogue.idle or self.dialogue.stage is Stage.BODY:
            self._disarm()
        else:
            self._arm()

    def abort(self) -> None:
        """Cuts the connection at once."""
        self._disarm()
        self.transport.abort()

    def disarm_timer(self) -> None:
        """No timer outlives the session."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self, events: list[Event]) -> None:
        over = False
        for event in events:
            if isinstance(event, PeerClosing):
                self.closing = event
                over = True
            else:
                self.events.append(event)
                over = over or (isinstance(event, TransactionEnd) and not event.usable)
        if over:
            # nothing more can be said on it; a peer that floods or stalls must not keep it open
            self.abort()
        else:
            self.advance()
        if events:
            self._wake()

    def _salvage(self) -> None:
        """Reads what the peer said before a write failed: asyncio would drop that 5xx unread."""
        if self.transport.get_extra_info("sslcontext") is not None:
            return
        peer = self.transport.get_extra_info("socket")
        try:
            data = os.read(peer.fileno(), 65536)
        except (OSError, ValueError):
            return
        if data:
            self._take(self.dialogue.receive(data))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # One timer per session: a later deadline costs an assignment, only an earlier one a new timer.

    def _arm(self) -> None:
        self._deadline = self._loop.time() + _seconds(self.dialogue, self.timeouts)
        if self._timer is not None and self._timer.when() > self._deadline:
            self.disarm_timer()
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._expire)

    def _disarm(self) -> None:
        self._deadline = None

    def _expire(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._expire)
            return
        self._take(self.dialogue.fail(Fault.TIMEOUT))


class Session:
    """An open session. Use ``Session.open``; end it with ``quit`` or ``abort``.

    One transaction at a time; the session may be used again while ``usable``.
    """

    def __init__(self, established: Established, policy: SessionPolicy) -> None:
        self.facts: SessionFacts = established.facts
        self.capabilities: Capabilities = established.capabilities
        self.messages = 0
        self._timeouts = policy.timeouts
        self._dialogue = ClientDialogue(established.capabilities, pipelining=policy.pipelining)
        self._pump = _Pump(established.transport, self._dialogue, policy.timeouts)
        self._end_cause: str | None = None
        established.transport.set_protocol(self._pump)
        established.transport.set_write_buffer_limits(high=_BLOCK, low=_LOW_WATER)

    @classmethod
    async def open(cls, target: Target, policy: SessionPolicy) -> Session | SessionFailure:
        """Connects and takes the transport over; see ``wire.establish`` for how it can fail."""
        established = await establish(target, policy)
        if isinstance(established, SessionFailure):
            return established
        return cls(established, policy)  # no await in between: nothing can arrive unseen

    @property
    def usable(self) -> bool:
        """Whether another transaction may be begun."""
        return self._dialogue.usable and not self._pump.transport.is_closing()

    @property
    def dot_written(self) -> bool:
        """Whether the final dot of the current or last transaction was handed to the transport."""
        return self._dialogue.dot_written

    @property
    def closing(self) -> PeerClosing | None:
        """What the peer ended the idle session with (a 421, say), or None."""
        return self._pump.closing

    @property
    def end_cause(self) -> str | None:
        """Why the session ended, for the ``sessions`` view; None while it lives."""
        if self._end_cause is None and self._pump.closing is not None:
            closing = self._pump.closing
            return str(closing.fault) if closing.fault is not None else "reply"
        return self._end_cause

    async def transact(
        self, envelope: Envelope, content: AsyncIterator[bytes] | bytes
    ) -> TransactionEnd:
        """Runs one transaction.

        Args:
            envelope: who to whom; ask ``smtp.client.unmet`` first.
            content: CRLF line ends, not dot-stuffed, whole or in chunks; read only after a 354.

        Returns:
            All that was learnt. If the session ended while it was idle: ``answered=False`` and
            ``fault=closed``, which charges no message.

        Raises:
            ValueError: the envelope cannot be put on the wire (nothing was written), or content
                with a CR or LF alone (the connection is cut before the dot).
            RuntimeError: a transaction is under way.
            Exception: the content source's own, after the connection was cut before the dot.
        """
        if not self._dialogue.idle:
            raise RuntimeError("a transaction is under way on this session; await it first")
        if not self.usable:
            return _never_begun(envelope)
        self._dialogue.begin(envelope)
        try:
            self._pump.advance()
            event = await self._pump.next_event()
            if isinstance(event, ContentWanted):
                await self._write(content)
                event = await self._pump.next_event()
        except BaseException:
            self._end_cause = "aborted"
            self._pump.abort()
            raise
        if isinstance(event, ContentWanted):
            raise RuntimeError("content was asked for twice; this is a bug in the dialogue")
        if event.stage is Stage.DOT and event.dot is not None and event.dot.positive:
            self.messages += 1
        if not event.usable:
            self._end_cause = self._end_cause or str(event.fault or "reply")
        return event

    async def quit(self) -> None:
        """Ends the session politely if it is usable, at once if not; never raises for the peer."""
        pump = self._pump
        if self.usable:
            self._end_cause = self._end_cause or "quit"
            pump.quitting = True
            pump.transport.write(commands.QUIT)
            await self._within(pump.farewell)
            pump.transport.close()
            await self._within(pump.closed)
        self.abort()

    def abort(self) -> None:
        """Cuts the connection; a running transaction ends with ``fault=closed``."""
        self._end_cause = self.end_cause or "aborted"
        self._pump.abort()
        self._pump.disarm_timer()

    async def _within(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._timeouts.quit):
                await event.wait()
        except TimeoutError:
            return

    async def _write(self, content: AsyncIterator[bytes] | bytes) -> None:
        """Content and the final dot, unless the peer answers before it."""
        pump, dialogue = self._pump, self._dialogue
        if isinstance(content, bytes):
            await self._write_chunk(content)
        else:
            try:
                async for chunk in content:
                    pump.flush()  # the chunk before; the last one shares a write with the dot
                    await self._write_chunk(chunk)
                    if pump.events:
                        break
            finally:
                close = getattr(content, "aclose", None)
                if close is not None:
                    await close()
        if not pump.events:
            dialogue.end_content()
            pump.advance()

    async def _write_chunk(self, chunk: bytes) -> None:
        pump, dialogue = self._pump, self._dialogue
        for start in range(0, len(chunk), _BLOCK):
            await pump.drain()
            if pump.events:
                return
            dialogue.content(chunk[start : start + _BLOCK])
            if len(chunk) > start + _BLOCK:
                pump.flush()


def _never_begun(envelope: Envelope) -> TransactionEnd:
    return TransactionEnd(
        mail=None,
        rcpts=(None,) * len(envelope.recipients),
        data=None,
        dot=None,
        stage=Stage.MAIL,
        fault=Fault.CLOSED,
        dot_written=False,
        answered=False,
        usable=False,
    )
