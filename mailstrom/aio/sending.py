"""Sending from an event loop: no thread waits for the disk, the committer calls back.

A small message given as bytes is composed in the loop where it has few recipients, since that is
quicker than a thread's turn; everything else on a thread. Then the submission joins the others in
the client's queue, so that a thousand concurrent sends share a few commits. A send that is
cancelled before the committer took it is withdrawn: nothing is stored; after that it may be stored
although nobody learns its id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mailstrom.aio.threads import Threads
from mailstrom.client import arguments, options, rooms
from mailstrom.client.api import Mailstrom, SendOptions
from mailstrom.client.commit import STORED, SYNC_GRACE_S, Request
from mailstrom.client.sending import Chunk, Telling
from mailstrom.storage.client import Submission

if TYPE_CHECKING:
    from mailstrom.client.sending import AnyMessage

SMALL_BYTES = 16 * 1024
FEW = 100
"""Composing so much, with so many recipients, tags and metadata, takes less than a millisecond."""
_BREATH = 50
"""Items of a plain iterable between two turns that the loop gets."""


class Endings:
    """Requests that the committer ended, handed over to a loop in as few wake-ups as possible."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ended: deque[asyncio.Future[None]] = deque()
        self._called = False

    def put(self, future: asyncio.Future[None]) -> None:
        """Called in the committer's thread."""
        self._ended.append(future)
        if not self._called:
            self._called = True
            self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._called = False  # before the queue is emptied: what comes meanwhile calls again
        while self._ended:
            future = self._ended.popleft()
            if not future.done():
                future.set_result(None)


class AsyncSending:
    """The verbs that send, and whatever else is written by the committer."""

    _ms: Mailstrom
    _threads: Threads
    _endings: Endings | None = None

    async def send(
        self,
        message: AnyMessage,
        /,
        *,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
        send_at: datetime | timedelta | None = None,
        expires_at: datetime | timedelta | None = None,
        priority: str | None = None,
        stream: str = "default",
        tags: Iterable[str] = (),
        metadata: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        require_tls: bool = False,
        on_doubt: str | None = None,
        notify: str | Iterable[str] | None = None,
    ) -> str:
        """Accept a message; see ``Mailstrom.send``. Concurrent calls share a commit.

        Cancelled while it waits for its turn, it stores nothing; cancelled later, the message may
        be stored: give an ``idempotency_key`` where you would send it again.
        """
        submission = await self._composed(
            message,
            {
                "sender": sender,
                "recipients": recipients,
                "send_at": send_at,
                "expires_at": expires_at,
                "priority": priority,
                "stream": stream,
                "tags": tags,
                "metadata": metadata,
                "idempotency_key": idempotency_key,
                "require_tls": require_tls,
                "on_doubt": on_doubt,
                "notify": notify,
            },
        )
        id: str = await self._written(Request(submission=submission, key=submission.id))
        return id

    async def send_many(
        self,
        messages: Iterable[AnyMessage | tuple[AnyMessage, SendOptions]]
        | AsyncIterable[AnyMessage | tuple[AnyMessage, SendOptions]],
        /,
        **defaults: Any,
    ) -> list[str]:
        """Accept a stream of messages; see ``Mailstrom.send_many``.

        ``messages`` may be an asynchronous iterable, too. Cancelled, the chunk that is being
        written may be stored; ``.ids`` of the CancelledError lists what surely was.
        """
        ids: list[str] = []
        with Telling(ids):
            options.require_defaults(defaults)
            defaults = options.settled(defaults)
            chunk = Chunk(self._ms._pace)
            async with contextlib.aclosing(_numbered(messages)) as items:
                async for place, item in items:
                    message, own = arguments.item(place, item)
                    options.require_options(f"messages[{place}]", own)
                    begun = self._ms._committer.begin()
                    submission = await self._composed(message, {**defaults, **own})
                    if chunk.full_for(submission):
                        ids.extend(await self._stored(chunk))
                        chunk = Chunk(self._ms._pace)
                    chunk.add(submission, begun)
                    if chunk.full:
                        ids.extend(await self._stored(chunk))
                        chunk = Chunk(self._ms._pace)
            if chunk.items:
                ids.extend(await self._stored(chunk))
        return ids

    async def _composed(self, message: object, given: Mapping[str, Any]) -> Submission:
        self._threads.require_open()
        own = options.settled(given)
        small = _small(message) and all(_few(own.get(name)) for name in options.MANY)
        if small and rooms.loaded():
            return self._ms._submission(message, **own)
        return await self._threads.compose(self._ms._submission, message, **own)

    async def _stored(self, chunk: Chunk) -> list[str]:
        call = self._ms._storing(chunk.items)
        stored: list[str] = await self._written(
            Request(call=call, key=chunk.items[0].id, doubt=STORED, begun=chunk.begun)
        )
        return stored

    async def _written(self, request: Request) -> Any:
        """What the committer made of a request, as ``Committer.call`` has it."""
        timeout = self._ms._timeout
        endings = self._endings
        if endings is None or endings.loop is not asyncio.get_running_loop():
            endings = self._endings = Endings(asyncio.get_running_loop())
        future: asyncio.Future[None] = endings.loop.create_future()
        request.finished = lambda: endings.put(future)
        self._ms._committer.submit(request)
        try:
            done, _ = await asyncio.wait((future,), timeout=timeout)
            if not done:
                if request.withdraw():
                    raise self._ms._committer.busy(timeout)
                done, _ = await asyncio.wait((future,), timeout=timeout + SYNC_GRACE_S)
                if not done:
                    raise request.unknown()
        except asyncio.CancelledError:
            request.withdraw()
            raise
        return request.outcome()


def _small(message: object) -> bool:
    return isinstance(message, bytes | bytearray | memoryview) and len(message) <= SMALL_BYTES


def _few(values: object) -> bool:
    """Whether an argument is not long; metadata also in its texts."""
    if isinstance(values, dict):
        texts = (value for value in values.values() if isinstance(value, str))
        return len(values) <= FEW and sum(map(len, texts)) <= SMALL_BYTES
    return not isinstance(values, list) or len(values) <= FEW


async def _numbered(messages: object) -> AsyncGenerator[tuple[int, object], None]:
    """Items of a plain or an asynchronous iterable with their places."""
    place = 0
    if isinstance(messages, AsyncIterable):
        async for item in messages:
            yield place, item
            place += 1
        return
    for item in arguments.messages(messages):
        yield place, item
        place += 1
        if place % _BREATH == 0:
            await asyncio.sleep(0)
