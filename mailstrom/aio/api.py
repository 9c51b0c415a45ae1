"""``AsyncMailstrom``: the client's verbs, awaitable.

The same names, arguments, results and errors as ``Mailstrom``, over one of these: nothing is
decided here. The event loop is never kept waiting: what writes is called back by the committer,
reading runs on a few threads, waiting looks at the spool's revision. Iterables given as arguments
are read in the loop. One object serves any loop, one after the other or several in threads.

Cancelling an awaited verb that changes something leaves open whether it was done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mailstrom.aio.sending import AsyncSending
from mailstrom.aio.threads import Threads
from mailstrom.aio.watch import Finals, Watch
from mailstrom.client import arguments, rooms
from mailstrom.client.api import Mailstrom
from mailstrom.client.asking import cursor, not_completed, vocabulary
from mailstrom.client.changing import resolving
from mailstrom.client.commit import CHANGED, Request
from mailstrom.types import Change, Event, MessageStatus, QueueStats, Suppression, WorkerStatus

if TYPE_CHECKING:
    from email.message import EmailMessage

    from mailstrom.causes import Waiting

_FOR_EVER_S = 1e8
"""A timeout beyond three years is none; some loops cannot count further."""


class AsyncSuppressions:
    """Addresses that are not to be mailed; ``AsyncMailstrom.suppressions``."""

    def __init__(self, ms: Mailstrom, threads: Threads) -> None:
        self._ms = ms
        self._threads = threads

    async def list(self, limit: int = 10_000) -> list[Suppression]:
        """Suppressed addresses, sorted."""
        return await self._threads.read(self._ms.suppressions.list, limit)

    async def get(self, address: str) -> Suppression | None:
        """Why an address is not to be mailed, or None where it may be."""
        return await self._threads.read(self._ms.suppressions.get, address)


class AsyncMailstrom(AsyncSending):
    """A handle on a spool for an application with an event loop.

    Opening looks at the disk, for a moment; ``await AsyncMailstrom.create(path)`` does it on a
    thread.

    Args:
        store: as for ``Mailstrom``; or a ``Mailstrom``, which is used and not closed.
        config: as for ``Mailstrom``.
        timeout: as for ``Mailstrom``; a given one keeps its own.

    Raises:
        SpoolError: or a subclass, when the spool cannot be used.
        ConfigError: when the configuration file is unusable.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Mailstrom | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._own = not isinstance(store, Mailstrom)
        if isinstance(store, Mailstrom):
            if config is not None:
                raise TypeError("config: belongs to the Mailstrom that is given")
            self._ms = store
        else:
            self._ms = Mailstrom(store, config=config, timeout=timeout)
        self._threads = Threads()
        self._watch: tuple[asyncio.AbstractEventLoop, Watch, Finals] | None = None

    @classmethod
    async def create(cls, path: str | os.PathLike[str]) -> AsyncMailstrom:
        """Create the spool at ``path`` if it is missing, and open it."""
        opened = cls(await asyncio.to_thread(Mailstrom.create, path))
        opened._own = True
        return opened

    @property
    def path(self) -> str:
        """Path of the spool, or its name with a scheme."""
        return self._ms.path

    # --- asking -----------------------------------------------------------------------------

    async def status(self, id: str) -> MessageStatus:
        """What is known about a message; see ``Mailstrom.status``."""
        return await self._threads.read(self._ms.status, id)

    async def statuses(self, ids: Iterable[str]) -> dict[str, MessageStatus]:
        """Status of each id; see ``Mailstrom.statuses``."""
        wanted = arguments.texts("ids", ids)  # the caller's iterable stays in the caller's thread
        return await self._threads.read(self._ms.statuses, wanted)

    async def recent(self, limit: int = 10_000) -> list[MessageStatus]:
        """Messages completed since they were last told of here; see ``Mailstrom.recent``.

        What a cancelled call found counts as told: ``find()`` knows it still.
        """
        request = Request(call=self._ms._telling(limit), doubt=CHANGED)
        found: list[MessageStatus] = await self._written(request)
        return found

    async def find(
        self,
        *,
        status: str | Iterable[str] | None = None,
        reason: str | Iterable[str] | None = None,
        recipient: str | Iterable[str] | None = None,
        domain: str | Iterable[str] | None = None,
        sender: str | Iterable[str] | None = None,
        tag: str | Iterable[str] | None = None,
        stream: str | Iterable[str] | None = None,
        since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[MessageStatus]:
        """Messages, newest first; see ``Mailstrom.find``."""
        return await self._threads.read(
            self._ms.find,
            status=arguments.settled(status),
            reason=arguments.settled(reason),
            recipient=arguments.settled(recipient),
            domain=arguments.settled(domain),
            sender=arguments.settled(sender),
            tag=arguments.settled(tag),
            stream=arguments.settled(stream),
            since=since,
            until=until,
            limit=limit,
            after=after,
        )

    async def wait(self, id: str, timeout: float | None = None) -> MessageStatus:
        """Wait until every recipient is final; see ``Mailstrom.wait``."""
        arguments.text("id", id)
        if timeout is not None:
            timeout = arguments.number("timeout", timeout)
        if timeout is not None and timeout <= 0:
            found = await self.status(id)
            if found.completed:
                return found
            raise not_completed(found, timeout)
        limit = None if timeout is None or timeout >= _FOR_EVER_S else timeout
        _, finals = self._watched()
        future = finals.expect(id)
        try:
            async with asyncio.timeout(limit) as patience:
                return await future
        except TimeoutError:  # SpoolBusy is one, too
            if not patience.expired():
                raise
            found = await self.status(id)
            if found.completed:
                return found
            raise not_completed(found, timeout) from None
        finally:
            finals.forget(id, future)

    async def raw(self, id: str) -> bytes:
        """The bytes that go on the wire; see ``Mailstrom.raw``."""
        return await self._threads.read(self._ms.raw, id)

    async def message(self, id: str) -> EmailMessage:
        """What goes on the wire as an ``EmailMessage``; see ``Mailstrom.message``."""
        return await self._threads.read(self._ms.message, id)

    async def why(self, id_or_address: str, /, *, limit: int = 100) -> list[Waiting]:
        """Why recipients were not sent by now; see ``Mailstrom.why``."""
        return await self._threads.read(self._ms.why, id_or_address, limit=limit)

    async def events(
        self,
        after: int | None = None,
        *,
        types: str | Iterable[str] | None = None,
        limit: int = 1000,
    ) -> list[Event]:
        """What happened, in order; see ``Mailstrom.events``."""
        types = arguments.settled(types)
        return await self._threads.read(self._ms.events, after, types=types, limit=limit)

    def follow(
        self, after: int | None = None, *, types: str | Iterable[str] | None = None
    ) -> AsyncIterator[Event]:
        """Events as they come, for ever: ``async for event in ms.follow()``.

        See ``Mailstrom.follow``; without ``after`` it begins with what happens once it is iterated.
        """
        return self._following(None if after is None else cursor(after), vocabulary(types))

    async def _following(
        self, after: int | None, types: tuple[str, ...] | None
    ) -> AsyncIterator[Event]:
        if after is None:
            after = await self._threads.read(self._ms._newest, 0)
        while True:
            watch, _ = self._watched()
            generation = watch.generation
            ahead = await self._threads.watch(self._ms._ahead, after, types)
            if ahead is None:
                await watch.after(generation)
                continue
            after, events = ahead
            for event in events:
                yield event

    def _watched(self) -> tuple[Watch, Finals]:
        """What looks for changes on behalf of the running loop."""
        loop = asyncio.get_running_loop()
        if self._watch is None or self._watch[0] is not loop:
            watch = Watch(loop, lambda: self._threads.watch(self._ms._store.revision))
            finals = Finals(
                watch,
                lambda ids: self._threads.watch(self._ms.statuses, ids),
                self._ms._unknown,
            )
            self._watch = (loop, watch, finals)
        return self._watch[1], self._watch[2]

    async def stats(self) -> QueueStats:
        """Counters of the queue; see ``Mailstrom.stats``."""
        return await self._threads.read(self._ms.stats)

    @property
    def suppressions(self) -> AsyncSuppressions:
        """Addresses that are not to be mailed; see ``Mailstrom.suppressions``."""
        return AsyncSuppressions(self._ms, self._threads)

    async def query(
        self,
        sql: str,
        params: Sequence[object] | Mapping[str, object] = (),
        *,
        seconds: float = 30.0,
    ) -> list[Any]:
        """Rows of a read-only statement; see ``Mailstrom.query``."""
        return await self._threads.read(self._ms.query, sql, params, seconds=seconds)

    async def check(self) -> list[str]:
        """Broken invariants of the spool; see ``Mailstrom.check``."""
        return await self._threads.alone(self._ms.check)

    async def orphans(self) -> list[str]:
        """Engine processes that died without a word; see ``Mailstrom.orphans``."""
        return await self._threads.alone(self._ms.orphans)

    async def pinned(self) -> list[str]:
        """Who keeps the write-ahead log from being emptied; see ``Mailstrom.pinned``."""
        return await self._threads.alone(self._ms.pinned)

    # --- changing ---------------------------------------------------------------------------

    async def cancel(self, id: str, *, recipient: str | None = None) -> int:
        """Cancel recipients; see ``Mailstrom.cancel``."""
        return await self._change(Change.CANCEL, id, recipient)

    async def hold(self, id: str, *, recipient: str | None = None) -> int:
        """Keep recipients back; see ``Mailstrom.hold``."""
        return await self._change(Change.HOLD, id, recipient)

    async def release(self, id: str, *, recipient: str | None = None) -> int:
        """Let held recipients go; see ``Mailstrom.release``."""
        return await self._change(Change.RELEASE, id, recipient)

    async def retry(self, id: str, *, recipient: str | None = None) -> int:
        """Make recipients due now; see ``Mailstrom.retry``."""
        return await self._change(Change.RETRY, id, recipient)

    async def resolve(self, id: str, outcome: str, *, recipient: str | None = None) -> int:
        """Decide recipients in doubt; see ``Mailstrom.resolve``."""
        return await self._change(resolving(outcome), id, recipient)

    async def _change(self, change: Change, id: str, recipient: str | None) -> int:
        self._threads.require_open()
        if recipient is None or rooms.loaded():
            target = self._ms._target(id, recipient)
        else:
            target = await self._threads.compose(self._ms._target, id, recipient)
        changed = 0
        if id.isascii():
            call = self._ms._changing(change, [target])
            changed = await self._written(Request(call=call, key=id, doubt=CHANGED))
        if changed == 0:
            await self.status(id)  # raises where there is no such message
        return changed

    async def change_all(
        self,
        change: str,
        *,
        dry_run: bool = False,
        everything: bool = False,
        ids: str | Iterable[str] | None = None,
        status: str | Iterable[str] | None = None,
        reason: str | Iterable[str] | None = None,
        recipient: str | Iterable[str] | None = None,
        domain: str | Iterable[str] | None = None,
        sender: str | Iterable[str] | None = None,
        tag: str | Iterable[str] | None = None,
        stream: str | Iterable[str] | None = None,
        since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None,
    ) -> int:
        """Change all recipients that the filters mean; see ``Mailstrom.change_all``.

        Cancelled, it goes on in its thread to the end.
        """
        return await self._threads.alone(
            self._ms.change_all,
            change,
            dry_run=dry_run,
            everything=everything,
            ids=arguments.settled(ids),
            status=arguments.settled(status),
            reason=arguments.settled(reason),
            recipient=arguments.settled(recipient),
            domain=arguments.settled(domain),
            sender=arguments.settled(sender),
            tag=arguments.settled(tag),
            stream=arguments.settled(stream),
            since=since,
            until=until,
        )

    async def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the spool while it is in use; see ``Mailstrom.backup``."""
        await self._threads.alone(self._ms.backup, target)

    async def adopt(self) -> bool:
        """Let an engine deliver what waits in this copy; see ``Mailstrom.adopt``."""
        done: bool = await self._written(Request(call=self._ms._adopting(), doubt=CHANGED))
        return done

    # --- running ----------------------------------------------------------------------------

    async def start(
        self,
        workers: int = 1,
        config: str | os.PathLike[str] | Mapping[str, object] | None = None,
    ) -> None:
        """Deliver from this process, in a loop of its own; see ``Mailstrom.start``."""
        await self._threads.alone(self._ms.start, workers, config)

    async def stop(self, timeout: float = 30) -> bool:
        """End the delivery that ``start()`` began; see ``Mailstrom.stop``."""
        return await self._threads.alone(self._ms.stop, timeout)

    async def worker_status(self) -> WorkerStatus:
        """How the delivery in this process is; see ``Mailstrom.worker_status``."""
        return await self._threads.read(self._ms.worker_status)

    async def close(self) -> None:
        """Close; idempotent. A ``Mailstrom`` that was given stays open."""
        try:
            if self._own:
                await asyncio.to_thread(self._ms.close)
        finally:
            self._threads.close()

    async def __aenter__(self) -> AsyncMailstrom:
        self._threads.require_open()
        self._ms.__enter__()  # a given one may be closed
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
