"""One SMTP session: transactions over a transport that wire.py established.

Contract: pumps a ``ClientDialogue`` from a *source*, which is asked for the next transaction
whenever one may begin and told of each end, all inside the callbacks of the transport: no task is
switched for a message whose content is small and at hand. Content that is large, or must be read
on, is written block by block by a task of its own. Reads while it writes, so that neither side can
wait for the other for ever; buffers are bounded (one small content and 64 KiB out, the reply
parser's limits in). Each awaited reply has its own total timeout (RFC 5321 section 4.5.3.2), which
neither dripping bytes nor further commands renew; commands behind a content are timed once that is
answered. The verdict is always a ``TransactionEnd``; trouble with the content itself cuts the
connection before its end, and is told instead.

Must not know: the database, sites, what a reply means for a recipient.

Longer than a file should be: who may write, and what is timed, depends on every callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol

from msgspec import Struct

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
from mailstrom.smtp.framing import require_crlf
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
_WHOLE = 262144  # octets of content that may be handed to the transport at once


class Outgoing(Struct, frozen=True, kw_only=True, eq=False):
    """A transaction to be run.

    Args:
        envelope: who to whom; ask ``smtp.client.unmet`` first.
        body: the whole content, CRLF line ends, not stuffed; or
        chunks: gives it piece by piece, asked only after a 354.
        of: what the source knows it by.
    """

    envelope: Envelope
    body: bytes | None = None
    chunks: Callable[[], AsyncIterator[bytes]] | None = None
    of: Any = None


class Source(Protocol):
    """Who has transactions for a session; called inside the loop's callbacks, never re-entered."""

    def next(self) -> Outgoing | None:
        """What may be sent now; after None the session waits for ``Session.poke``."""

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        """One is over; in the order in which they were given."""

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        """It cannot be sent: ``ValueError`` for what cannot be put on the wire, or what ``chunks``
        raised; not an octet behind that was sent. ``ended`` does not follow. The session is over
        where content had begun to leave, and as it was where nothing had."""

    def lost(self) -> None:
        """The session is over, and no transaction was on it; see ``Session.closing``."""


async def _content(outgoing: Outgoing) -> AsyncGenerator[bytes, None]:
    """The content, in the pieces that its owner has."""
    if outgoing.body is not None:
        yield outgoing.body
        return
    assert outgoing.chunks is not None
    chunks = outgoing.chunks()
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


class _Pump(asyncio.Protocol):
    """The transport's protocol: bytes to the dialogue, its output back, one timer."""

    def __init__(
        self,
        transport: asyncio.Transport,
        dialogue: ClientDialogue,
        timeouts: Timeouts,
        *,
        whole: int,
    ) -> None:
        self.transport = transport
        self.dialogue = dialogue
        self.timeouts = timeouts
        self.source: Source | None = None
        self.outgoing: deque[Outgoing] = deque()
        self.messages = 0
        self.end_cause: str | None = None
        self.closing: PeerClosing | None = None
        self.closed = asyncio.Event()
        self.quitting = False
        self.farewell = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._whole = whole
        self._seconds = {
            Stage.MAIL: timeouts.mail,
            Stage.RCPT: timeouts.rcpt,
            Stage.DATA: timeouts.data,
            Stage.DOT: timeouts.dot,
        }
        self._busy = False  # the source is being spoken to: what it asks for is done behind that
        self._spoiled: Outgoing | None = None
        self._writer: asyncio.Task[None] | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._timed: tuple[int, Stage] | None = None
        self._cut = False  # by ourselves: the peer is not to blame for what is then missing

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
            lost = self.dialogue.fail(Fault.CLOSED) if self._cut else self.dialogue.receive_eof()
            self._take(lost)
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
        self.fill()

    # the session's side

    def fill(self) -> None:
        """Begin what the source has ready and the dialogue takes; one write for all of it."""
        if self._busy or self.source is None:
            return
        self._busy = True
        try:
            while self.dialogue.ready and not self._paused and not self.transport.is_closing():
                outgoing = self.source.next()
                if outgoing is None:
                    break
                try:
                    self._begin(outgoing)
                except ValueError as error:
                    self.source.failed(outgoing, error)
                else:
                    self.outgoing.append(outgoing)
        finally:
            self._busy = False
        self.advance()

    def _begin(self, outgoing: Outgoing) -> None:
        body = outgoing.body
        if body is not None and len(body) > self._whole:
            require_crlf(body)
            body = None  # written block by block once its 354 has come
        self.dialogue.begin(outgoing.envelope, body)

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
        """After the dialogue was told something: write, and time what is awaited."""
        self.flush()
        stage = self.dialogue.stage
        if self.dialogue.idle:
            self._disarm()
        elif stage is Stage.BODY:
            if not self._paused:  # else a block is being timed
                self._disarm()
        elif self._timed != (self.dialogue.replies, stage):
            self._timed = self.dialogue.replies, stage
            self._arm(self._allowed(stage))

    def _allowed(self, stage: Stage) -> float:
        """How long the awaited reply may take."""
        if self.dialogue.resetting:
            return self.timeouts.rset
        if self.dialogue.overdue_behind:
            return min(self._seconds[stage], self.timeouts.behind)
        return self._seconds[stage]

    def abort(self) -> None:
        """Cuts the connection at once."""
        self._cut = True
        self._disarm()
        self.transport.abort()

    def disarm_timer(self) -> None:
        """No timer outlives the session."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self, events: list[Event]) -> None:
        over = False
        ends: list[tuple[Outgoing, TransactionEnd]] = []
        for event in events:
            if isinstance(event, TransactionEnd):
                ends.append((self.outgoing.popleft(), event))
                over = over or not event.usable
            elif isinstance(event, ContentWanted):
                self._writer = self._loop.create_task(self._stream(self.outgoing[0]))
            else:
                self.closing = event
                over = True
        if over:
            # nothing more can be said on it; a peer that floods or stalls must not keep it open
            self.abort()
        if ends:
            self._tell(ends)
        if over:
            if not ends and self.source is not None:
                self.source.lost()
        else:
            self.fill()
        if events and self._waiter is not None:
            self._wake()

    def _tell(self, ends: list[tuple[Outgoing, TransactionEnd]]) -> None:
        self._busy = True  # all ends are told before anything begins
        try:
            for outgoing, end in ends:
                if end.stage is Stage.DOT and end.dot is not None and end.dot.positive:
                    self.messages += 1
                if not end.usable:
                    self.end_cause = self.end_cause or str(end.fault or "reply")
                if outgoing is not self._spoiled and self.source is not None:
                    self.source.ended(outgoing, end)
        finally:
            self._busy = False

    # Content that is read on while it is written

    async def _stream(self, outgoing: Outgoing) -> None:
        try:
            await self._write(outgoing)
        except Exception as error:
            if not self._running(outgoing):
                return  # its end was told before: what it lacked behind that changes nothing
            self._spoiled = outgoing  # cut before its dot
            self.end_cause = self.end_cause or "aborted"
            self._take(self.dialogue.fail(Fault.CLOSED))
            if self.source is not None:
                self.source.failed(outgoing, error)

    async def _write(self, outgoing: Outgoing) -> None:
        """Content and the final dot, unless the peer answers before it."""
        if not self._running(outgoing):
            return
        async with contextlib.aclosing(_content(outgoing)) as content:
            async for chunk in content:
                self.flush()  # the chunk before; the last one shares a write with the dot
                await self._write_chunk(outgoing, chunk)
                if not self._running(outgoing):
                    return
        if self._running(outgoing):
            self.dialogue.end_content()
            self.fill()

    def _running(self, outgoing: Outgoing) -> bool:
        return bool(self.outgoing) and self.outgoing[0] is outgoing

    async def _write_chunk(self, outgoing: Outgoing, chunk: bytes) -> None:
        for start in range(0, len(chunk), _BLOCK):
            await self._drain(outgoing)
            if not self._running(outgoing):
                return
            self.dialogue.content(chunk[start : start + _BLOCK])
            if len(chunk) > start + _BLOCK:
                self.flush()

    async def _drain(self, outgoing: Outgoing) -> None:
        """Until the peer took enough, or the transaction ended; timed as one block."""
        if self._paused and self._running(outgoing):
            self._arm(self.timeouts.body)
            while self._paused and self._running(outgoing):
                await self._wait()
            if self._running(outgoing):
                self._disarm()

    def stop_writing(self) -> None:
        """Give up content that is being written; the connection is cut."""
        if self._writer is not None:
            self._writer.cancel()

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

    def _arm(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self.disarm_timer()
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._expire)

    def _disarm(self) -> None:
        self._deadline = self._timed = None

    def _expire(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._expire)
            return
        self._take(self.dialogue.fail(Fault.TIMEOUT))


class Session:
    """An open session. Use ``Session.open``; end it with ``quit`` or ``abort``."""

    def __init__(self, established: Established, policy: SessionPolicy) -> None:
        self.facts: SessionFacts = established.facts
        self.capabilities: Capabilities = established.capabilities
        self._timeouts = policy.timeouts
        self._dialogue = ClientDialogue(established.capabilities, policy.dialect)
        self._pump = _Pump(
            established.transport,
            self._dialogue,
            policy.timeouts,
            whole=max(_WHOLE, policy.dialect.chunk_octets),
        )
        established.transport.set_protocol(self._pump)
        established.transport.set_write_buffer_limits(high=_BLOCK, low=_LOW_WATER)

    @classmethod
    async def open(cls, target: Target, policy: SessionPolicy) -> Session | SessionFailure:
        """Connects and takes the transport over; see ``wire.establish`` for how it can fail."""
        established = await establish(target, policy)
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
        """Ends the session politely if it is idle, at once if not; never raises for the peer."""
        pump = self._pump
        if self.idle and self.usable:
            pump.end_cause = pump.end_cause or "quit"
            pump.quitting = True
            pump.transport.write(commands.QUIT)
            await self._within(pump.farewell)
            pump.transport.close()
            await self._within(pump.closed)
        self.abort()

    def abort(self) -> None:
        """Cuts the connection; running transactions end with ``fault=closed``."""
        self._pump.end_cause = self.end_cause or "aborted"
        self._pump.stop_writing()
        self._pump.abort()
        self._pump.disarm_timer()

    async def _within(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._timeouts.quit):
                await event.wait()
        except TimeoutError:
            return
