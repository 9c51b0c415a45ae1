"""Asking: verbs that only read, of a message, of the queue, of what happened.

Any thread may ask; a reader waits for no writer. Long answers are read in pages, so that no read
holds the spool's log for long.

Longer than a file should be: one short method for each question.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mailstrom.client import arguments, selecting, waiting
from mailstrom.client.handle import Handle
from mailstrom.client.rooms import message_room
from mailstrom.clock import wall_ms
from mailstrom.errors import MessageNotFound
from mailstrom.storage.client import Selection
from mailstrom.types import Event, MessageStatus, QueueStats, Suppression
from mailstrom.words import EVENT_WORDS

if TYPE_CHECKING:
    from email.message import EmailMessage

    from mailstrom.causes import Waiting

PAGE = 500
"""Most messages of one read."""
EVENT_PAGE = 1_000


class Suppressions:
    """Addresses that are not to be mailed; ``Mailstrom.suppressions``."""

    def __init__(self, client: Asking) -> None:
        self._client = client

    def list(self, limit: int = 10_000) -> list[Suppression]:
        """Suppressed addresses, sorted.

        Args:
            limit: most of them.
        """
        arguments.count("limit", limit)
        return self._client._store.suppressions((), limit)

    def get(self, address: str) -> Suppression | None:
        """Why an address is not to be mailed, or None where it may be.

        Raises:
            InvalidAddress: it is no address.
        """
        key = selecting.address_key("address", address, self._client._timeout)
        found = self._client._store.suppressions((key,), 1)
        return found[0] if found else None


class Asking(Handle):
    """The verbs that read."""

    # --- one message ------------------------------------------------------------------------

    def status(self, id: str) -> MessageStatus:
        """What is known about a message and each of its recipients.

        Raises:
            MessageNotFound: no such id here.
        """
        arguments.text("id", id)
        found = self._store.statuses([id]) if id.isascii() else {}
        if id not in found:
            raise self._unknown(id)
        return found[id]

    def _unknown(self, id: str) -> MessageNotFound:
        return MessageNotFound(f"no message {arguments.shown(id)} in {self.path}")

    def wait(self, id: str, timeout: float | None = None) -> MessageStatus:
        """Wait until every recipient is final.

        Args:
            timeout: seconds; 0 or less looks once, None waits for ever.

        Raises:
            MessageNotFound: no such id here.
            TimeoutError: not final in time.
        """
        arguments.text("id", id)
        if timeout is not None:
            timeout = arguments.number("timeout", timeout)

        def look() -> MessageStatus | None:
            status = self.status(id)
            return status if status.completed else None

        found = waiting.until(look, self._store.revision, timeout)
        if found is None:
            raise not_completed(self.status(id), timeout)
        return found

    def raw(self, id: str) -> bytes:
        """The bytes that go on the wire.

        Raises:
            MessageNotFound: no such id here, or its content was purged.
            SpoolCorrupt: the content is damaged on disk.
        """
        # No id holds anything else, and a lone surrogate would be an error of the driver.
        content = self._store.content(id) if arguments.text("id", id).isascii() else None
        if content is None:
            raise MessageNotFound(f"no content of message {arguments.shown(id)} in {self.path}")
        return content

    def message(self, id: str) -> EmailMessage:
        """What goes on the wire as an ``EmailMessage``.

        Header lines and bodies are as they are there; ``raw()`` has the very octets, also of a
        multipart whose boundaries are written in an odd way.

        Raises:
            MessageNotFound: no such id here, or its content was purged.
            SpoolCorrupt: the content is damaged on disk.
        """
        content = self.raw(id)
        message_room(self._timeout)  # brings the email package, from signal handlers, too
        from email import message_from_bytes

        from mailstrom.client.lossless import LOSSLESS

        return message_from_bytes(content, policy=LOSSLESS)

    def why(self, id_or_address: str, /, *, limit: int = 100) -> list[Waiting]:
        """Why recipients were not sent by now: the first thing in each one's way, and what ends it.

        As rows say it in this moment; a moment later it may be another reason. What it costs does
        not grow with the queue, but for an address in a deep one: a fraction of a second among a
        million unfinished recipients.

        Args:
            id_or_address: an id, for all recipients of a message, those that are not final first;
                or an address, for all its unfinished recipients, oldest message first.
            limit: most recipients.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: it holds an ``@`` and is no address.
        """
        from mailstrom.client import reasons  # with the words for it: only who asks loads them

        arguments.text("id_or_address", id_or_address)
        arguments.count("limit", limit)
        if "@" in id_or_address:
            key = selecting.address_key("id_or_address", id_or_address, self._timeout)
            return reasons.of_address(self, key, limit)
        found = reasons.of_message(self, id_or_address, limit) if id_or_address.isascii() else []
        if not found:
            raise self._unknown(id_or_address)
        return found

    # --- many messages ----------------------------------------------------------------------

    def statuses(self, ids: Iterable[str]) -> dict[str, MessageStatus]:
        """Status of each id, in the order given; unknown ids are left out.

        Raises:
            TypeError: not an iterable of texts; ``status()`` takes a single one.
        """
        wanted = [id for id in arguments.texts("ids", ids) if id.isascii()]
        found: dict[str, MessageStatus] = {}
        for start in range(0, len(wanted), PAGE):
            page = wanted[start : start + PAGE]
            known = self._store.statuses(page)
            found.update((id, known[id]) for id in page if id in known)
        return found

    def recent(self, limit: int = 10_000) -> list[MessageStatus]:
        """Messages completed since they were last told of here, then those that are not complete.

        A completed message is told of once, over all clients of the spool; again if it was reopened
        and is completed anew. Oldest first. To look without that, use ``find()``.

        Args:
            limit: most of them; what is completed and beyond it is told of by the next call.
        """
        return self._committer.call(self._telling(limit))

    def _telling(self, limit: int) -> Callable[[], list[MessageStatus]]:
        arguments.count("limit", limit)
        return lambda: self._store.recent(limit)

    def find(
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
        """Messages, newest first; a message is found when one of its recipients matches.

        Each filter is a word or a list of words, of which one must hold; all filters given must
        hold. An empty list matches nothing.

        Args:
            status: recipient status words, or ``partial`` for messages.
            reason: recipient reason words; ``policy``, ``suppressed`` and ``rate`` are reserved,
                nothing gives them yet.
            recipient: addresses.
            domain: domains of recipients, U-labels or A-labels.
            sender: envelope senders; ``""`` is the null sender.
            tag: tags of the message.
            stream: streams of the message.
            since: accepted at or after (aware datetime, or timedelta back from now).
            until: accepted before (as ``since``).
            limit: most messages.
            after: the last id of the page before.

        Raises:
            MessageNotFound: no such message as ``after``.
            InvalidAddress: ``recipient``, ``domain`` or ``sender`` is none.
            ValueError: an unknown word; names those that are near it.
        """
        filters: selecting.Filters = {
            "status": status, "reason": reason, "recipient": recipient, "domain": domain,
            "sender": sender, "tag": tag, "stream": stream, "since": since, "until": until,
        }  # fmt: skip
        arguments.count("limit", limit)
        if after is not None and not arguments.text("after", after).isascii():
            raise MessageNotFound(f"after: no message {arguments.shown(after)} in {self.path}")
        meant = selecting.selection(filters, wall_ms(), self._timeout)
        found: list[MessageStatus] = []
        while meant is not None and len(found) < limit:
            size = min(PAGE, limit - len(found))
            page = self._page(meant, size, found, after)
            found.extend(page)
            if len(page) < size:
                break
        return found

    def _page(
        self, meant: Selection, size: int, found: list[MessageStatus], after: str | None
    ) -> list[MessageStatus]:
        """What comes behind ``found``; the last of those may have been purged meanwhile."""
        for place in range(len(found) - 1, -1, -1):
            try:
                return self._store.find(meant, limit=size, after=found[place].id)
            except MessageNotFound:
                continue
        return self._store.find(meant, limit=size, after=after)

    # --- what happened ----------------------------------------------------------------------

    def events(
        self,
        after: int | None = None,
        *,
        types: str | Iterable[str] | None = None,
        limit: int = 1000,
    ) -> list[Event]:
        """What happened, in order.

        Args:
            after: id of the last event known; None begins with the oldest that is kept.
            types: event words (see the ``events`` view); None is all.
            limit: most events; more begin after the last one's id.

        Raises:
            ValueError: an unknown word; names those that are near it.
        """
        start, wanted = cursor(after), vocabulary(types)
        arguments.count("limit", limit)
        return [] if wanted == () else self._store.events(start, wanted or (), limit)

    def follow(
        self, after: int | None = None, *, types: str | Iterable[str] | None = None
    ) -> Iterator[Event]:
        """Events as they come, for ever.

        Args:
            after: id of the last event known; None begins with what happens from now on, 0 with
                the oldest that is kept.
            types: event words; None is all.

        Raises:
            ValueError: an unknown word; names those that are near it.
        """
        wanted = vocabulary(types)
        start = self._newest(0) if after is None else cursor(after)
        return self._following(start, wanted)

    def _following(self, after: int, types: tuple[str, ...] | None) -> Iterator[Event]:
        while True:
            found = waiting.until(
                lambda start=after: self._ahead(start, types),  # type: ignore[misc]
                self._store.revision,
                None,
            )
            assert found is not None  # without a timeout it waits for ever
            after, events = found
            yield from events

    def _ahead(
        self, after: int, types: tuple[str, ...] | None
    ) -> tuple[int, Sequence[Event]] | None:
        """The next events and where to go on; None where there are none.

        With ``types``, what was passed over is not read again: the second value may be empty.
        """
        newest = self._newest(after) if types is not None else after
        events = [] if types == () else self._store.events(after, types or (), EVENT_PAGE)
        if len(events) == EVENT_PAGE:
            return events[-1].id, events
        last = max(events[-1].id if events else after, newest)
        return (last, events) if last > after else None

    def _newest(self, after: int) -> int:
        """Id of the newest event, at least ``after``; ids grow, so a search by halves finds it."""

        def beyond(id: int) -> bool:
            return bool(self._store.events(id, (), 1))

        if not beyond(after):
            return after
        low, step = after, 1
        while beyond(low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:  # something lies beyond low, nothing beyond high
            middle = (low + high) // 2
            low, high = (middle, high) if beyond(middle) else (low, middle)
        return high

    # --- the spool --------------------------------------------------------------------------

    def stats(self) -> QueueStats:
        """Counters of the queue; cheap enough for every few seconds."""
        return self._store.stats(wall_ms())

    @property
    def suppressions(self) -> Suppressions:
        """Addresses that are not to be mailed: ``.list()`` and ``.get(address)``.

        Reserved: nothing fills the list yet.
        """
        return Suppressions(self)

    def query(
        self,
        sql: str,
        params: Sequence[object] | Mapping[str, object] = (),
        *,
        seconds: float = 30.0,
    ) -> list[Any]:
        """Rows of a read-only statement on the public views, as named tuples.

        Args:
            params: values for each ``?`` (list or tuple) or each ``:name`` (dict).
            seconds: the statement is stopped after this time, so that it cannot hold back the WAL.
                In a memory spool, where commits wait for it, after half the client's ``timeout`` at
                the latest.

        Raises:
            SpoolError: bad SQL, an attempt to write, or out of time (``SpoolBusy``).
            TypeError, ValueError: a value that SQLite has no kind for, or a missing ``:name``.
        """
        values = arguments.bindings(params)
        limit = arguments.seconds("seconds", seconds)
        try:
            return self._store.query(arguments.statement(sql), values, limit)
        except KeyError as error:
            raise ValueError(
                f"params: has no value for {arguments.shown(error.args[0])}"
            ) from error

    def check(self) -> list[str]:
        """Broken invariants of the spool, a sentence each; empty when it is sound.

        Reads the whole file: for a person or a test, not for every minute.

        Raises:
            SpoolError: or a subclass, when the spool cannot be read.
        """
        return self._store.check()

    def orphans(self) -> list[str]:
        """Engine processes that died with work in hand, a sentence each with what they left behind.

        No damage: the janitor of the running engine, or of the next one, takes it back. A process
        that lives holds its lock file; the clock is not asked.

        Raises:
            SpoolError: or a subclass, when the spool cannot be read.
        """
        from mailstrom.lockfile import is_free
        from mailstrom.storage import run_directory

        folder = run_directory(self.path)
        return [
            f"worker {one.worker} ({one.kind}, pid {one.pid} on {one.host}) is gone, with"
            f" {_number(one.lanes, 'lane')} and {_number(one.recipients, 'claimed recipient')}:"
            " the next engine's janitor takes them back"
            for one in self._store.owners()
            if one.lanes and is_free(os.path.join(folder, one.lock))
        ]

    def pinned(self) -> list[str]:
        """Who keeps a write-ahead log that has grown over 64 MiB from being emptied.

        One sentence with what to do, or none. No damage: it ends with that process's read
        transaction. Of a low ``[spool] wal_limit`` a quarter counts. Another sentence names a
        process that has held the write lock for more than a second.

        Raises:
            SpoolError: or a subclass, when the spool cannot be read.
        """
        return self._store.pinned()


def _number(amount: int, what: str) -> str:
    return f"{amount:,} {what}{'' if amount == 1 else 's'}"


def cursor(after: object) -> int:
    """Where a reader of events stands; None is the beginning."""
    return 0 if after is None else arguments.count("after", after, least=0)


def vocabulary(types: object) -> tuple[str, ...] | None:
    """Event words, checked; None is all of them."""
    return arguments.known("types", types, EVENT_WORDS)


def not_completed(status: MessageStatus, timeout: float | None) -> TimeoutError:
    """The error of a wait that took too long; says what the first open recipient waits for."""
    waits = next((one for one in status.recipients.values() if not one.status.final), None)
    why = ""
    if waits is not None:
        reason = "" if waits.reason is None else f" ({waits.reason})"
        why = f": {waits.address} is {waits.status}{reason}"
    return TimeoutError(f"message {status.id} was not completed within {timeout:g} s{why}")
