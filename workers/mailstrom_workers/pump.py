"""The transport's protocol of a session: bytes to the dialogue, its output back, one timer.

Contract: pumps a ``ClientDialogue`` from a *source*, which is asked for the next transaction
whenever one may begin and told of each end, all inside the callbacks of the transport: no task is
switched for a message whose content is small and at hand. Content that is large, or must be read
on, is written block by block by a task of its own. Reads while it writes, so that neither side can
wait for the other for ever; buffers are bounded (one small content and 64 KiB out, the reply
parser's limits in). Each awaited reply has its own total timeout (RFC 5321 section 4.5.3.2), which
neither dripping bytes nor further commands renew; commands behind a content are timed once that is
answered. The verdict is always a ``TransactionEnd``; trouble with the content itself cuts the
connection before its end, and is told instead.

Must not know: the database, sites, what a reply means for a recipient, how a session is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import termios
from array import array
from collections import deque
from collections.abc import AsyncGenerator

from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp.client import (
    Awaited,
    ClientDialogue,
    ContentWanted,
    Event,
    Fault,
    PeerClosing,
    TransactionEnd,
)
from mailstrom.smtp.framing import require_crlf
from mailstrom.smtp.states import CLOSING
from mailstrom.types import Stage
from mailstrom_workers.outgoing import Outgoing, Source
from mailstrom_workers.tls import spoiled

BLOCK = 65536  # octets of content per write, and what is timed by ``Timeouts.body``
LATE_S = 0.5
"""A timer that comes so late tells that this process stood still (stopped, frozen, swapped out).
Some loops run timers before they read: the peer gets as long again, once, for what it said then.
"""


def _heard_out(ends: list[tuple[Outgoing, TransactionEnd]]) -> bool:
    """Whether replies refused all recipients of a flight by BDAT, and the server still listens."""
    if not ends:
        return False
    end = ends[0][1]
    refused = end.chunked and end.fault is None and end.dot is None
    return refused and all(
        reply is None or reply.code != CLOSING for reply in (end.mail, *end.rcpts)
    )


def _unread(transport: asyncio.Transport) -> bool:
    """Whether the peer's system has not taken all that was written, or none can tell.

    Under TLS this alone tells what the transport below still holds: it gives no less to the system
    than that takes.
    """
    held = array("i", [0])
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
    except (AttributeError, OSError, ValueError):
        return True
    return held[0] != 0


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


class Pump(asyncio.Protocol):
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
        self.wrote_s = float("-inf")  # loop time of the last block of content
        self.end_cause: str | None = None
        self.closing: PeerClosing | None = None
        self.closed = asyncio.Event()
        self.quitting = False  # whatever else comes is not read
        self.parting = False  # by QUIT, though no transaction may follow here
        self.farewell = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._whole = whole
        self._encrypted = transport.get_extra_info("sslcontext") is not None
        self._seconds = {
            Awaited.RSET: timeouts.rset,
            Awaited.MAIL: timeouts.mail,
            Awaited.BEHIND: min(timeouts.mail, timeouts.behind),
            Awaited.RCPT: timeouts.rcpt,
            Awaited.DATA: timeouts.data,
            Awaited.DOT: timeouts.dot,
        }
        self._busy = False  # the source is being spoken to: what it asks for is done behind that
        self._spoiled: Outgoing | None = None
        self._writer: asyncio.Task[None] | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._spared = False  # for a deadline that passed while this process stood still
        self._timed: tuple[int, Awaited] | None = None
        self._cut: Fault | None = None  # by ourselves, and what is told of what runs then

    # asyncio's side

    def data_received(self, data: bytes) -> None:
        """Replies, at any time."""
        if self.quitting:
            self.farewell.set()
            return
        dialogue = self.dialogue
        before = dialogue.replies
        events = dialogue.receive(data)
        if self._encrypted and spoiled(self.transport):
            events += dialogue.receive_eof()
        if events or dialogue.replies != before:  # dripping bytes renew no deadline
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
            cut, dialogue = self._cut, self.dialogue
            self._take(dialogue.receive_eof() if cut is None else dialogue.fail(cut))
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
        source, dialogue = self.source, self.dialogue
        if self._busy or source is None:
            return
        self._busy = True
        try:
            while dialogue.ready and not self._paused and not self.transport.is_closing():
                outgoing = source.next()
                if outgoing is None:
                    break
                body = outgoing.body
                try:
                    if body is not None and len(body) > self._whole:
                        require_crlf(body)
                        body = None  # written block by block once its 354 has come
                    dialogue.begin(outgoing.envelope, body)
                except ValueError as error:
                    source.failed(outgoing, error)
                else:
                    self.outgoing.append(outgoing)
        finally:
            self._busy = False
        self.advance()

    def put_down(self) -> bool:
        """Forget content that can be read again: the peer says nothing.

        Returns:
            Whether none of it is held: not where it waits for a peer that does not read.
        """
        outgoing = self.outgoing
        again = all(one.body is None or one.chunks is not None for one in outgoing)
        if not again or self.transport.get_write_buffer_size() or _unread(self.transport):
            return False
        self.dialogue.put_down()
        for one in outgoing:
            one.body = None
        return True

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
        awaited = self.dialogue.awaited
        seconds = self._seconds.get(awaited)
        if seconds is not None:
            timed = self.dialogue.replies, awaited
            if self._timed != timed:
                self._timed = timed
                self._arm(seconds)
        elif awaited is Awaited.NOTHING or not self._paused:  # else a block is being timed
            self._disarm()

    def abort(self, fault: Fault = Fault.CLOSED) -> None:
        """Cuts the connection at once; what runs on it ends with this fault."""
        self._cut = self._cut or fault
        self._disarm()
        self._call_back()
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
        if over and _heard_out(ends) and self.closing is None:
            # its flight was refused whole: nothing else is told, or believed, on it but QUIT
            self.parting = self.quitting = True
            self._disarm()
        elif over:
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
                if end.stage is Stage.DOT and end.dot is not None and end.dot.code < 300:
                    self.messages += 1
                if not end.usable:
                    cause = "quit" if self.dialogue.parted else str(end.fault or "reply")
                    self.end_cause = self.end_cause or cause
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
        for start in range(0, len(chunk), BLOCK):
            await self._drain(outgoing)
            if not self._running(outgoing):
                return
            self.wrote_s = self._loop.time()
            self.dialogue.content(chunk[start : start + BLOCK])
            if len(chunk) > start + BLOCK:
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
        if self._encrypted:
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

    def _call_back(self) -> None:
        """The connection is about to be cut: what the system did not take never leaves."""
        transport = self.transport
        if not transport.is_closing() and transport.get_write_buffer_size():
            self.dialogue.call_back()

    # One timer per session: a later deadline costs an assignment, only an earlier one a new timer.

    def _arm(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds
        self._spared = False
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
        now = self._loop.time()
        if now > self._deadline + LATE_S and not self._spared:
            self._deadline, self._spared = now + LATE_S, True
        if now < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._expire)
            return
        self._call_back()
        self._take(self.dialogue.fail(Fault.TIMEOUT))
