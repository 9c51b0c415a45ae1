"""Sending: a message and its options become a ``Submission``, and that is stored durably.

Everything is checked before anything is written. Nothing here touches the network. A stream is
stored in chunks: one is written while the next is made, so at most two are in memory.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, cast

from mailstrom.client import arguments, options
from mailstrom.client.commit import STORED, Committer, Line, Request
from mailstrom.client.handle import Handle
from mailstrom.client.identity import new_id
from mailstrom.client.rooms import message_room
from mailstrom.clock import wall_ms
from mailstrom.errors import InvalidMessage
from mailstrom.storage.client import AheadStore, Notice, Submission
from mailstrom.types import from_ms

if TYPE_CHECKING:
    from email.message import Message

    from mailstrom.message import Prepared

    AnyMessage = Message | bytes | bytearray | memoryview

CHUNK_MESSAGES = 256
"""Most messages of a chunk, and those of a client's first: what the store inserts in one step."""
CHUNK_BYTES = 1024 * 1024
LOCK_NS = 10_000_000
"""A chunk is made so long that storing it takes about so much of a processor."""
HEAD_START_S = 0.000_004
"""What the writing thread takes for a message before the chunk is in the database's hands."""
_LEAST_MESSAGES = 16
_STREAM = "default"

_made = tuple.__new__
_FROM_LIBRARY = ("library", None, None, None, (), False, None, False)
"""The last fields of a ``Submission``, from ``origin`` on."""
_moment = lru_cache(maxsize=8)(from_ms)  # one millisecond has many messages


class SendOptions(TypedDict, total=False):
    """Keyword arguments of ``send()`` and, as defaults for all, of ``send_many()``."""

    sender: str | None
    recipients: Iterable[str] | None
    send_at: datetime | timedelta | None
    expires_at: datetime | timedelta | None
    priority: str | None
    stream: str
    tags: Iterable[str]
    metadata: Mapping[str, object] | None
    idempotency_key: str | None
    require_tls: bool
    on_doubt: str | None
    notify: str | Iterable[str] | None


class Pace:
    """How many messages make a chunk, by what the last one cost.

    Measured is processor time, all of the store's included: what others do, and the disk, would
    make it look longer than it holds the lock.
    """

    __slots__ = ("messages",)

    def __init__(self) -> None:
        self.messages = CHUNK_MESSAGES

    def learn(self, messages: int, spent_ns: int) -> None:
        """Take in what so many messages cost; a few tell nothing."""
        if messages >= _LEAST_MESSAGES:
            fit = messages * LOCK_NS // max(1, spent_ns)
            self.messages = max(_LEAST_MESSAGES, min(fit, 2 * self.messages, CHUNK_MESSAGES))


class Chunk:
    """Submissions of ``send_many`` until there are enough of them for a transaction.

    Args:
        pace: says how many that are, when the chunk is begun.

    Attributes:
        begun: of its first: in a child that was forked since, all are the parent's to store.
    """

    __slots__ = ("_most", "_size", "begun", "items")

    def __init__(self, pace: Pace) -> None:
        self.items: list[Submission] = []
        self.begun: Line | None = None
        self._size = 0
        self._most = pace.messages

    def full_for(self, submission: Submission) -> bool:
        """Whether this one belongs into the next chunk."""
        return bool(self.items) and self._size + len(submission.content) > CHUNK_BYTES

    def add(self, submission: Submission, begun: Line) -> None:
        """Take one more.

        Args:
            begun: ``Committer.begin`` from before it was made.
        """
        if not self.items:
            self.begun = begun
        self.items.append(submission)
        self._size += len(submission.content)

    @property
    def full(self) -> bool:
        """Whether it should be stored before the next message is even looked at."""
        return len(self.items) >= self._most or self._size >= CHUNK_BYTES


class Ahead:
    """The chunk of a stream that is being stored while the next one is made.

    Args:
        committer: stores it.
        ids: gets the ids of what was stored.
    """

    __slots__ = ("_committer", "_ids", "_request")

    def __init__(self, committer: Committer, ids: list[str]) -> None:
        self._committer = committer
        self._ids = ids
        self._request: Request | None = None

    def put(self, chunk: Chunk, call: Callable[[], list[str]]) -> None:
        """Begin to store a chunk once the one before it is stored; raises that one's error."""
        self.settle()
        request = Request(call=call, key=chunk.items[0].id, doubt=STORED, begun=chunk.begun)
        self._request = request  # before: an interrupted stream withdraws what it can
        try:
            self._committer.submit(request)
        except Exception:
            self._request = None  # it was withdrawn
            raise
        # Else the writing thread would wait for its turn to run Python at each of its steps, while
        # this one makes the next chunk: it is let alone until it is inside the database. A mere
        # wait: whoever took the lock of its outcome for that, and was interrupted, would have it.
        time.sleep(len(chunk.items) * HEAD_START_S)

    def settle(self) -> None:
        """Wait until all is stored that was put; raises the error of what was not."""
        request, self._request = self._request, None
        if request is not None:
            self._ids.extend(self._committer.wait(request))

    def leave(self, error: BaseException) -> None:
        """After an error of the stream's: what was put comes first, and so does its error.

        Of what ends the program nothing takes the place: what was not begun is not stored.
        """
        request = self._request
        if isinstance(error, Exception):
            self.settle()
        elif request is not None and not request.withdraw():
            with contextlib.suppress(Exception):
                self.settle()


class Sending(Handle):
    """The verbs that send.

    Args:
        _pace: of this client's chunks.
    """

    _pace: Pace

    def send(
        self,
        message: AnyMessage,
        /,
        *,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
        send_at: datetime | timedelta | None = None,
        expires_at: datetime | timedelta | None = None,
        priority: str | None = None,
        stream: str = _STREAM,
        tags: Iterable[str] = (),
        metadata: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        require_tls: bool = False,
        on_doubt: str | None = None,
        notify: str | Iterable[str] | None = None,
    ) -> str:
        """Accept a message: when this returns, it survives power loss.

        Args:
            message: ``EmailMessage``, ``Message``, or the bytes of an RFC 5322 message.
            sender: envelope sender; ``""`` is the null sender. Default: Sender or From.
            recipients: envelope recipients. Default: To, Cc and Bcc (Bcc never leaves).
            send_at: not before this time (aware datetime, or timedelta from now).
            expires_at: give up at this time (as ``send_at``). Default: the stream's ``max_age``,
                else the engine's ``[retry] max_age``, counted from ``send_at``.
            priority: ``high``, ``normal`` or ``low``. Default: the stream's, else ``normal``.
            stream: the named policy it belongs to; one that no configuration names is
                fine. An engine brings the policies into the spool: there are none before.
            tags: at most 50 words to find it by.
            metadata: flat dict of texts, numbers and bools kept with it.
            idempotency_key: a second send with this key and the same content returns the first id.
            require_tls: never send it unencrypted; False leaves that to stream and engine.
            on_doubt: ``retry`` or ``hold`` where it cannot be known whether it was delivered.
                Default: the stream's, else the engine's.
            notify: what the sender is told of by mail (RFC 3461): some of ``failure``, ``delay``
                and ``success``, or ``"never"``; the next server is told, too. Default: no report
                from here, ``status()`` knows; what other servers do is left to them.

        Returns:
            The message id, to ask ``status()`` with.

        Raises:
            InvalidMessage: (or InvalidAddress) cannot be sent as given; nothing was stored.
            IdempotencyConflict: the key was used for a different message.
            SpoolBusy, SpoolFull, SpoolReadOnly, SpoolError: not stored.
            OutcomeUnknown: the disk failed half-way; ``.key`` is the id to ask for later.
        """
        begun = self._committer.begin()
        submission = self._submission(
            message,
            sender=sender,
            recipients=recipients,
            send_at=send_at,
            expires_at=expires_at,
            priority=priority,
            stream=stream,
            tags=tags,
            metadata=metadata,
            idempotency_key=idempotency_key,
            require_tls=require_tls,
            on_doubt=on_doubt,
            notify=notify,
        )
        return self._committer.enqueue(submission, begun)

    def send_many(
        self,
        messages: Iterable[AnyMessage | tuple[AnyMessage, SendOptions]],
        /,
        **defaults: Any,
    ) -> list[str]:
        """Accept a stream of messages in durable chunks, in bounded memory.

        Each chunk is all or nothing: at most 256 messages or about a mebibyte, and fewer where
        storing them takes more than 10 ms of a processor. While one is stored the next is made. An
        item is a message, or a pair of a message and its own options, which go before ``defaults``
        (the keyword arguments of ``send()``, but for ``idempotency_key``, which is one message's).

        Returns:
            The ids, in order.

        Raises:
            InvalidMessage: before the bad message's chunk is written; ``.ids`` lists what was
                accepted until then. Every other error, too, has ``.ids``: those of ``send()`` and
                what ``messages`` itself raises. ``OutcomeUnknown.key`` answers for its chunk.
            TypeError: not an iterable of messages and pairs, or an unknown option.
        """
        ids: list[str] = []
        with Telling(ids):
            options.require_defaults(defaults)
            defaults = options.settled(defaults)
            ahead = Ahead(self._committer, ids)
            try:
                chunk = Chunk(self._pace)
                for place, item in enumerate(arguments.messages(messages)):
                    begun = self._committer.begin()
                    submission = self._item(place, item, defaults)
                    if chunk.full_for(submission):
                        ahead.put(chunk, self._storing(self._encoded(chunk.items)))
                        chunk = Chunk(self._pace)
                    chunk.add(submission, begun)
                    if chunk.full:
                        ahead.put(chunk, self._storing(self._encoded(chunk.items)))
                        chunk = Chunk(self._pace)
                if chunk.items:
                    ahead.put(chunk, self._storing(self._encoded(chunk.items)))
                ahead.settle()
            except BaseException as error:
                ahead.leave(error)
                raise
        return ids

    def _encoded(self, items: Sequence[Submission]) -> Sequence[Submission]:
        """What the store can make of them on this thread is made; see ``AheadStore``."""
        return self._store.ahead(items) if isinstance(self._store, AheadStore) else items

    def _storing(self, items: Sequence[Submission]) -> Callable[[], list[str]]:
        def store() -> list[str]:
            # Of this thread, the writing one: the next chunk is made by another meanwhile.
            begun = time.thread_time_ns()
            # All or none: an exception among them is raised.
            ids = cast("list[str]", self._store.enqueue(items, wall_ms(), atomic=True))
            self._pace.learn(len(items), time.thread_time_ns() - begun)
            return ids

        return store

    def _item(self, place: int, item: object, defaults: Mapping[str, Any]) -> Submission:
        if not isinstance(item, tuple):
            return self._submission(item, **defaults)
        message, own = arguments.item(place, item)
        options.require_options(f"messages[{place}]", own)
        return self._submission(message, **{**defaults, **own})

    def _submission(
        self,
        message: object,
        *,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
        send_at: datetime | timedelta | None = None,
        expires_at: datetime | timedelta | None = None,
        priority: str | None = None,
        stream: str = _STREAM,
        tags: Iterable[str] = (),
        metadata: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        require_tls: bool = False,
        on_doubt: str | None = None,
        notify: str | Iterable[str] | None = None,
    ) -> Submission:
        room = message_room(self._timeout)
        now = due = wall_ms()
        if send_at is not None:
            due = max(options.coming_ms("send_at", send_at, now) or now, now)
        expires = None
        if expires_at is not None:
            expires = options.coming_ms("expires_at", expires_at, now)
            if expires is not None and expires <= due:
                raise InvalidMessage(
                    "expires_at: lies before the message may be sent",
                    header="expires_at",
                    value=expires_at,
                    rule="option",
                )
        prepared: Prepared = room.compose(
            message,
            sender=sender,
            recipients=recipients,
            now=_moment(now),
            id_domain_fallback=_host_name(),
        )
        key = None
        if idempotency_key is not None:
            key = (
                options.word("idempotency_key", idempotency_key, 256),
                room.fingerprint(prepared),
            )
        content, from_, to, message_id, subject, eightbit, smtputf8 = prepared
        # What is left at its default needs no look. As ``Submission(...)`` does it, in a third of
        # the time.
        return _made(Submission, (
            new_id(now), content, from_, to, subject, message_id,
            _STREAM if stream is _STREAM else options.word("stream", stream, 64),
            None if priority is None else options.rank(priority),
            () if tags == () else options.tag_list(arguments.tags(tags)),
            {} if metadata is None else options.flat(metadata),
            now, due, expires,
            None if on_doubt is None else options.doubt(on_doubt),
            False if require_tls is False else options.flag("require_tls", require_tls),
            eightbit, smtputf8, key,
            *(_FROM_LIBRARY if notify is None else _told_of(options.notices(notify), len(to))),
        ))  # fmt: skip


def _told_of(notify: str, recipients: int) -> tuple[Any, ...]:
    """The last fields of a ``Submission``, of which somebody wants to be told, or not to be."""
    notices = (Notice(notify),) * recipients
    return ("library", None, None, None, notices, notify != "never", None, False)


class Telling:
    """Around a stream: whatever is raised inside tells in ``.ids`` what was accepted.

    No generator made a context manager: that writes to the exception, which may be frozen.
    """

    __slots__ = ("_ids",)

    def __init__(self, ids: list[str]) -> None:
        self._ids = ids

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(AttributeError, TypeError):
            if error is not None:
                error.ids = self._ids  # type: ignore[attr-defined]


@cache
def _host_name() -> str:
    name = os.uname().nodename  # no import here: a signal handler may have interrupted the same one
    return name if "." in name else "localhost.localdomain"
