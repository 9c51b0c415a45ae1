"""The client's half of the storage seam: insert rows, change what waits, read.

Rules as in ``base``: batch in, batch out; ``now_ms`` (wall milliseconds) is a parameter; a verb
happens whole or raises a ``SpoolError``; no SQL and no exception of a driver crosses this line. A
store is correct when the conformance suite in ``tests/storage`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from mailstrom.errors import InvalidMessage
from mailstrom.types import Change, Event, MessageStatus, OnDoubt, QueueStats, Suppression
from mailstrom.value import value

if TYPE_CHECKING:
    from mailstrom.storage.facts import Facts

CHUNK_BYTES = 256 * 1024
"""Largest piece of content in one row."""


class Notice(NamedTuple):
    """What a recipient's sender asked to be told about it (RFC 3461), one for each recipient.

    Args:
        notify: ``never``, or some of ``failure``, ``delay`` and ``success`` with commas in between;
            None where nothing was said, which means failure and delay.
        orcpt: the original recipient, ``type;address``, decoded; None where it was not given.
    """

    notify: str | None = None
    orcpt: str | None = None


NOTIFY = frozenset(("failure", "delay", "success"))
"""Words of ``Notice.notify`` that may stand together."""


def require_notices(recipients: Sequence[str], notices: Sequence[Notice]) -> None:
    """Raise unless notices can be those of the recipients; there may be none at all.

    Raises:
        InvalidMessage: nobody can have asked for that.
    """
    if notices and len(notices) != len(recipients):
        raise InvalidMessage("notices: there must be one for each recipient", rule="notify")
    for notify, _ in notices:
        if notify is None or notify == "never":
            continue
        words = notify.split(",")
        if NOTIFY.issuperset(words) and len(set(words)) == len(words):
            continue
        raise InvalidMessage(
            f"notify: {notify!r} is neither 'never' nor some of failure, delay and success",
            value=notify,
            rule="notify",
        )


class Submission(NamedTuple):
    """One message ready for the spool; a tuple, which costs a third of a frozen dataclass.

    Args:
        id: what ``send()`` returns; also the key that answers an unknown outcome.
        content: the bytes for the wire.
        recipients: address keys (``local@domain``), no duplicates.
        priority: rank 0 (high) to 2 (low); None is the stream's, else 1.
        idempotency: key and payload hash, or None.
        times: milliseconds UTC; without ``expires_ms`` the stream's, else the engine's maximum
            age holds, from ``send_ms`` on.
        on_doubt: None is the stream's, else the engine's.
        require_tls: True adds to what the stream says, False takes nothing from it.
        origin: how it came: ``library``, ``smtp``, ``sendmail`` or ``report``.
        client: what is known of who handed it in (address, helo, user, tls), for people.
        ret: how much of it a report returns, ``full`` or ``hdrs`` (RFC 3461).
        envid: the sender's own name for it, decoded (RFC 3461).
        notices: one for each of the recipients, or none at all.
        reports: whether reports about it go to the sender; the null sender never gets one.
        priority_wire: MT-PRIORITY as it was asked for, -9 to 9 (RFC 6710).
        requiretls: only to hosts whose certificates prove their names, and that take REQUIRETLS
            (RFC 8689); ``require_tls`` holds with it.
    """

    id: str
    content: bytes
    sender: str
    recipients: tuple[str, ...]
    subject: str
    message_id: str
    stream: str
    priority: int | None
    tags: tuple[str, ...]
    metadata: Mapping[str, object]
    created_ms: int
    send_ms: int
    expires_ms: int | None
    on_doubt: OnDoubt | None
    require_tls: bool
    eightbit: bool
    smtputf8: bool
    idempotency: tuple[str, bytes] | None = None
    origin: str = "library"
    client: Mapping[str, object] | None = None
    ret: str | None = None
    envid: str | None = None
    notices: tuple[Notice, ...] = ()
    reports: bool = False
    priority_wire: int | None = None
    requiretls: bool = False


@value
class Selection:
    """Which recipients are meant: fields are joined with "and", values of one field with "or".

    An empty field does not restrict. A message is meant when one of its recipients is.

    Args:
        ids: message ids.
        statuses: recipient status words as the ``recipients`` view shows them; ``partial`` means
            messages whose status is that word.
        reasons: recipient reason words.
        domains: lower-case A-labels.
        recipients: address keys.
        senders: envelope senders, ``""`` for the null sender.
        tags, streams: words of the message.
        since_ms, until_ms: accepted at or after, and before.
    """

    ids: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing restricts it."""
        return self == Selection()


class Target(NamedTuple):
    """A recipient to change; ``address`` None means all recipients of the message."""

    id: str
    address: str | None = None
    place: int = 0
    """Where it stands in the spool's order: ``after`` of the next page of ``targets``."""


class Owner(NamedTuple):
    """An engine process whose row says that it lives, and what it holds."""

    worker: int
    kind: str
    pid: int
    host: str
    lock: str
    """Name of its lock file in the run directory."""
    lanes: int
    recipients: int


class Prompt(Protocol):
    """Stores single messages on the thread that asks; one call at a time.

    It is a store of its own beside the one that made it: a signal handler that interrupts a call,
    anywhere, finds that one free. So a call holds nothing that others wait for between two
    bytecodes, and may be left there by an exception.
    """

    def store(self, submission: Submission, now_ms: int) -> str | Exception | None:
        """As ``ClientStore.enqueue`` of one; None: not here, and nothing was written."""
        ...

    def end(self, *, used: bool) -> None:
        """Later calls raise; ``used``: one that goes on keeps what it has. Idempotent."""
        ...

    def forked(self, *, used: bool) -> None:
        """This is a forked child, which uses another one; ``used``: its parent was in a call."""
        ...


@runtime_checkable
class AheadStore(Protocol):
    """A store that can do a part of its work before its writing thread has the submissions."""

    def ahead(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        """The same submissions, for ``enqueue``; on any thread, and nothing is written.

        What is wrong with one of them is told by ``enqueue``.
        """
        ...


@runtime_checkable
class PromptStore(Protocol):
    """A ``ClientStore`` may offer this, too."""

    def prompt(self, pid: int) -> Prompt:
        """A new ``Prompt`` on the same spool; it connects when it is first used.

        Args:
            pid: the process that it stores in; in another one it stores nothing.
        """
        ...


class ClientStore(Protocol):
    """What the thin client needs: insert, change and read rows."""

    def enqueue(
        self, submissions: Sequence[Submission], now_ms: int, *, atomic: bool = False
    ) -> list[str | Exception]:
        """Store each submission durably; one bad row never fails its neighbours.

        Returns, per submission, the id under which it is stored (an earlier one where the
        idempotency key and hash are known) or the exception for this one. ``atomic``: all of
        them or, when one is refused, none, and that one's exception is raised. Raises a
        ``SpoolError`` when none could be stored, ``OutcomeUnknown`` when that cannot be told.
        """
        ...

    def statuses(self, ids: Sequence[str]) -> dict[str, MessageStatus]:
        """Status of each known id."""
        ...

    def content(self, id: str) -> bytes | None:
        """The bytes that go on the wire, or None if the id is unknown or its body was purged."""
        ...

    def change(self, change: Change, targets: Sequence[Target], now_ms: int) -> int:
        """Change recipients, durably; returns how many changed.

        Up to some hundred in one transaction, more in several: where one of those fails, the ones
        before it stand, durably, and the same call made again does the rest.

        What each word does is told by ``Change``. A target in another state is left as it is.

        Raises:
            OutcomeUnknown: only a part of the recipients was changed, or nobody knows.
        """
        ...

    def targets(
        self,
        selection: Selection,
        now_ms: int,
        *,
        change: Change | None,
        limit: int,
        after: int = 0,
    ) -> list[Target]:
        """Recipients of a selection, in the spool's order from ``after`` (a ``place``) on.

        Args:
            change: only those that this change would touch now; None: all.
            limit: most targets.
        """
        ...

    def find(
        self, selection: Selection, *, limit: int, after: str | None = None
    ) -> list[MessageStatus]:
        """Messages of a selection, newest first; ``after`` is the last id of the page before.

        Raises:
            MessageNotFound: no such message as ``after``.
        """
        ...

    def recent(self, limit: int) -> list[MessageStatus]:
        """Messages that were completed since they were last told of here, then incomplete ones.

        A completed message is returned by one call only, over all clients of the spool (again if it
        is reopened and completed anew). Oldest first; at most ``limit``.
        """
        ...

    def events(self, after: int, types: Sequence[str], limit: int) -> list[Event]:
        """Events with an id above ``after``, in order; ``types`` empty: all."""
        ...

    def stats(self, now_ms: int) -> QueueStats:
        """Counters of the queue."""
        ...

    def facts(self, targets: Sequence[Target], now_ms: int) -> Facts:
        """What is known of these recipients, and of the spool, that tells why they wait.

        In the order of the targets, those of a whole message in that of its envelope; unknown ones
        are left out. What it costs does not grow with the queue.
        """
        ...

    def suppressions(self, addresses: Sequence[str], limit: int) -> list[Suppression]:
        """Suppressed addresses, sorted; ``addresses`` empty: all."""
        ...

    def query(
        self, sql: str, params: Sequence[object] | Mapping[str, object], seconds: float
    ) -> list[tuple[object, ...]]:
        """Rows of a read-only statement as named tuples, cut off after ``seconds``."""
        ...

    def check(self) -> list[str]:
        """Broken invariants, a sentence each; empty when the spool is sound.

        Everybody else goes on meanwhile: no lock is held for longer than one look takes.
        """
        ...

    def pinned(self) -> list[str]:
        """A sentence for a process that keeps the log from being emptied, or others from writing.

        It takes a second where somebody writes.
        """
        ...

    def writer(self) -> str | None:
        """Who keeps everybody else from writing in this moment, for a sentence; None: nobody known.

        Never waits, neither for the lock nor for the disk; asked once a call got no turn.
        """
        ...

    def owners(self) -> list[Owner]:
        """Engine processes whose row says that they live, with what they hold."""
        ...

    def revision(self) -> int:
        """A number that differs when somebody committed since it was last asked here; cheap."""
        ...

    def backup(self, target: str, now_ms: int) -> None:
        """Copy the spool, consistent, while it is in use; the copy is marked (``adopt``).

        Args:
            target: path of a SQLite spool that does not exist yet.

        Raises:
            SpoolError: it exists, or cannot be written; nothing is left of it.
        """
        ...

    def adopt(self, now_ms: int) -> bool:
        """Let an engine deliver what waits in a copy; False where this is no copy.

        Expiry of what is unfinished moves by the time it lay there: nobody could deliver it then.
        """
        ...

    def close(self) -> None:
        """Close what this process opened; idempotent."""
        ...
