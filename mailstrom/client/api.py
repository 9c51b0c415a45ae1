"""``Mailstrom``: what an application uses.

``send()`` returns when the message is on disk; it never touches the network. All methods may be
called from any thread, in forked children, and from signal handlers. Errors are those of
``mailstrom.errors``; an error from ``send()`` means that nothing was stored, except
``OutcomeUnknown``, which says so. An argument of a wrong kind is a TypeError or ValueError (for
what belongs to a message: InvalidMessage) that names it, raised before anything happens.
"""

# Past 400 lines: one class, and half of it the docstrings that the reference is made of.

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from mailstrom.client import arguments, options
from mailstrom.client.commit import Committer, poll
from mailstrom.client.identity import new_id
from mailstrom.client.locate import locate_store
from mailstrom.client.rooms import message_room
from mailstrom.clock import wall_ms
from mailstrom.errors import InvalidMessage, MessageNotFound
from mailstrom.storage import open_client_store
from mailstrom.storage.client import Submission
from mailstrom.types import MessageStatus

if TYPE_CHECKING:
    from email.message import Message

    from mailstrom.message import Prepared

    AnyMessage = Message | bytes | bytearray | memoryview

CHUNK_MESSAGES = 500
CHUNK_BYTES = 1024 * 1024

_living: weakref.WeakSet[Mailstrom] = weakref.WeakSet()


class SendOptions(TypedDict, total=False):
    """Keyword arguments of ``send()`` and, as defaults for all, of ``send_many()``."""

    sender: str | None
    recipients: Iterable[str] | None
    send_at: datetime | timedelta | None
    expires_at: datetime | timedelta | None
    priority: str
    stream: str
    tags: Iterable[str]
    metadata: Mapping[str, object] | None
    idempotency_key: str | None
    require_tls: bool
    on_doubt: str | None


class Mailstrom:
    """A handle on a spool.

    Args:
        store: path of the spool (or ``sqlite:///path``); found by MAILSTROM_STORE, configuration
            file or default when None. Created if it is missing in an existing directory.
        config: configuration file to look for ``store`` in.
        timeout: seconds, at most a day, to wait for other writers before ``SpoolBusy``.

    Raises:
        SpoolError: or a subclass, when the spool cannot be used.
        ConfigError: when the configuration file is unusable.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._timeout = arguments.seconds("timeout", timeout, arguments.LONGEST_TIMEOUT_S)
        self.path = locate_store(store, config, os.environ)
        self._store = open_client_store(self.path, busy_ms=int(self._timeout * 1000))
        self._committer = Committer(self._store, self._timeout, wall_ms)
        self._finalizer = weakref.finalize(self, self._committer.stop)
        _living.add(self)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Mailstrom:
        """Create the spool at ``path`` if it is missing, and open it.

        The same as ``Mailstrom(path)``, but never one found elsewhere.

        Raises:
            TypeError: no path.
            SpoolError: or a subclass, when the spool cannot be used.
        """
        return cls(arguments.path("path", path))

    # --- sending ----------------------------------------------------------------------------

    def send(
        self,
        message: AnyMessage,
        /,
        *,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
        send_at: datetime | timedelta | None = None,
        expires_at: datetime | timedelta | None = None,
        priority: str = "normal",
        stream: str = "default",
        tags: Iterable[str] = (),
        metadata: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        require_tls: bool = False,
        on_doubt: str | None = None,
    ) -> str:
        """Accept a message: when this returns, it survives power loss.

        Args:
            message: ``EmailMessage``, ``Message``, or the bytes of an RFC 5322 message.
            sender: envelope sender; ``""`` is the null sender. Default: Sender or From.
            recipients: envelope recipients. Default: To, Cc and Bcc (Bcc never leaves).
            send_at: not before this time (aware datetime, or timedelta from now).
            expires_at: give up at this time. Default: the engine's ``[retry] max_age``.
            priority: ``high``, ``normal`` or ``low``.
            stream: the named policy it belongs to.
            tags: words to find it by.
            metadata: flat dict of plain values kept with it.
            idempotency_key: a second send with this key and the same content returns the first id.
            require_tls: never send it unencrypted.
            on_doubt: ``retry`` or ``hold`` where it cannot be known whether it was delivered.

        Returns:
            The message id, to ask ``status()`` with.

        Raises:
            InvalidMessage: (or InvalidAddress) cannot be sent as given; nothing was stored.
            IdempotencyConflict: the key was used for a different message.
            SpoolBusy, SpoolFull, SpoolReadOnly, SpoolError: not stored.
            OutcomeUnknown: the disk failed half-way; ``.key`` is the id to ask for later.
        """
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
        )
        return self._committer.enqueue(submission)

    def send_many(
        self,
        messages: Iterable[AnyMessage | tuple[AnyMessage, SendOptions]],
        /,
        **defaults: Any,
    ) -> list[str]:
        """Accept a stream of messages in durable chunks, in bounded memory.

        Each chunk is all or nothing. An item is a message, or a pair of a message and its own
        options, which go before ``defaults`` (the keyword arguments of ``send()``).

        Returns:
            The ids, in order.

        Raises:
            InvalidMessage: before the bad message's chunk is written; ``.ids`` lists what was
                accepted until then. Every other error, too, has ``.ids``: those of ``send()`` and
                what ``messages`` itself raises. ``OutcomeUnknown.key`` answers for its chunk.
            TypeError: not an iterable of messages and pairs.
        """
        ids: list[str] = []
        try:
            for chunk in self._chunks(arguments.messages(messages), defaults):
                ids.extend(self._committer.call(self._enqueue_all(chunk), chunk[0].id))
        except BaseException as error:
            with contextlib.suppress(AttributeError, TypeError):  # a caller's own, frozen
                error.ids = ids  # type: ignore[attr-defined]
            raise
        return ids

    def _enqueue_all(self, chunk: list[Submission]) -> Callable[[], list[str | Exception]]:
        return lambda: self._store.enqueue(chunk, wall_ms(), atomic=True)

    def _chunks(
        self,
        messages: Iterable[object],
        defaults: dict[str, Any],
    ) -> Iterator[list[Submission]]:
        chunk: list[Submission] = []
        size = 0
        for place, item in enumerate(messages):
            message, own = arguments.item(place, item)
            given: dict[str, Any] = {**defaults, **own}
            submission = self._submission(message, **given)
            if chunk and size + len(submission.content) > CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(submission)
            size += len(submission.content)
            if len(chunk) >= CHUNK_MESSAGES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _submission(
        self,
        message: object,
        *,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
        send_at: datetime | timedelta | None = None,
        expires_at: datetime | timedelta | None = None,
        priority: str = "normal",
        stream: str = "default",
        tags: Iterable[str] = (),
        metadata: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        require_tls: bool = False,
        on_doubt: str | None = None,
    ) -> Submission:
        room = message_room(self._timeout)
        now = wall_ms()
        due = options.moment_ms("send_at", send_at, now)
        due = now if due is None else max(due, now)
        expires = options.moment_ms("expires_at", expires_at, now)
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
            now=datetime.fromtimestamp(now / 1000, UTC),
            id_domain_fallback=_host_name(),
        )
        key = None
        if idempotency_key is not None:
            key = (
                options.word("idempotency_key", idempotency_key, 256),
                room.fingerprint(prepared),
            )
        return Submission(
            id=new_id(now),
            content=prepared.content,
            sender=prepared.sender,
            recipients=prepared.recipients,
            subject=prepared.subject,
            message_id=prepared.message_id,
            stream=options.word("stream", stream, 64),
            priority=options.rank(priority),
            tags=options.tag_list(arguments.tags(tags)),
            metadata=options.flat(metadata),
            created_ms=now,
            send_ms=due,
            expires_ms=expires,
            on_doubt=options.doubt(on_doubt),
            require_tls=options.flag("require_tls", require_tls),
            eightbit=prepared.eightbit,
            smtputf8=prepared.smtputf8,
            idempotency=key,
        )

    # --- asking -----------------------------------------------------------------------------

    def status(self, id: str) -> MessageStatus:
        """What is known about a message and each of its recipients.

        Raises:
            MessageNotFound: no such id here.
        """
        arguments.text("id", id)
        found = self._store.statuses([id])
        if id not in found:
            raise MessageNotFound(f"no message {id!r} in {self.path}")
        return found[id]

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

        found: MessageStatus = poll(look, timeout, f"message {id} was not completed")
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
            raise MessageNotFound(f"no content of message {id!r} in {self.path}")
        return content

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

        Raises:
            SpoolError: bad SQL, an attempt to write, or out of time (``SpoolBusy``).
            TypeError, ValueError: a value that SQLite has no kind for, or a missing ``:name``.
        """
        values = arguments.bindings(params)
        limit = arguments.seconds("seconds", seconds)
        try:
            return self._store.query(arguments.statement(sql), values, limit)
        except KeyError as error:
            raise ValueError(f"params: has no value for {error.args[0]!r}") from error

    def check(self) -> list[str]:
        """Broken invariants of the spool, a sentence each; empty when it is sound.

        Reads the whole file: for a person or a test, not for every minute.

        Raises:
            SpoolError: or a subclass, when the spool cannot be read.
        """
        return self._store.check()

    # --- changing ---------------------------------------------------------------------------

    def cancel(self, id: str, *, recipient: str | None = None) -> int:
        """Cancel recipients that are neither final nor on the wire.

        Args:
            recipient: only this address.

        Returns:
            How many were cancelled.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: ``recipient`` is no address.
        """
        return self._change("cancel", id, recipient)

    def retry(self, id: str, *, recipient: str | None = None) -> int:
        """Make waiting recipients due now, not before their ``send_at``; reopen failed ones.

        Args:
            recipient: only this address.

        Returns:
            How many changed.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: ``recipient`` is no address.
        """
        return self._change("retry", id, recipient)

    def _change(self, verb: str, id: str, recipient: str | None) -> int:
        arguments.text("id", id)
        step = getattr(self._store, verb)
        address = None
        if recipient is not None:
            parse = message_room(self._timeout).parse_address
            address = parse(recipient, header="recipient").key
        changed = int(self._committer.call(lambda: step([id], address, wall_ms()), id))
        if changed == 0:
            self.status(id)
        return changed

    # --- life -------------------------------------------------------------------------------

    def close(self) -> None:
        """Close this process's connections; idempotent. Every later call raises SpoolError.

        What other threads are sending is stored first.
        """
        if self._finalizer.detach() is not None:
            try:
                self._committer.call(self._store.close)
            finally:
                self._committer.stop()

    def __enter__(self) -> Mailstrom:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _forked(self) -> None:
        self._committer.forked()


def _after_fork_in_child() -> None:
    for client in list(_living):
        client._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _host_name() -> str:
    name = socket.gethostname()
    return name if "." in name else "localhost.localdomain"
