"""What a look at a spool from outside found: values only, told by a store that can be examined.

Nobody writes for this look, and what could not be seen is said: ``Examined.trouble`` where the rows
could not be read at all, None or an empty list where one thing could not. What any of it means, and
what to do, is decided elsewhere (``mailstrom.doctor``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class TroubleKind(StrEnum):
    """Why the rows could not be read."""

    MISSING = "missing"
    NOT_A_SPOOL = "not_a_spool"
    SCHEMA = "schema"
    CORRUPT = "corrupt"
    BUSY = "busy"
    DENIED = "denied"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why the rows could not be read.

    Args:
        text: one sentence for a person, with what to do.
    """

    kind: TroubleKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file or directory of the spool, by its name alone.

    Args:
        error: why nothing is known of it; the rest is then empty.
        readable, writable: for the user that looks.
    """

    path: str
    error: str | None = None
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    readable: bool = False
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomFacts:
    """The file system of the spool.

    Args:
        network: one sentence where it is a network file system.
    """

    free_bytes: int
    total_bytes: int
    free_files: int | None
    network: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A process that had the same read transaction open at every look of ``looked_s``."""

    pid: int
    command: str
    looked_s: float
    behind_frames: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """The write-ahead log.

    Args:
        frames, moved: in the log, and of them in the database already; None where unknown.
        pinned: a sentence about who keeps a log over its alarm from being emptied.
        writer: a sentence about who keeps the write lock.
        readers: others with a read transaction that lasts.
    """

    size: int
    alarm_bytes: int
    limit_bytes: int
    frames: int | None = None
    moved: int | None = None
    pinned: str | None = None
    writer: str | None = None
    readers: tuple[Reader, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharer:
    """Another process that has the spool open, as far as the system lets us see.

    Args:
        copies: copies of SQLite that have it open: each opens the log's index once.
        writes: whether it opened the database for writing.
        ours: whether it holds the copy of SQLite that Mailstrom brings (apsw).
        libraries: other copies of SQLite that it has loaded: path and version, or empty.
    """

    pid: int
    command: str
    copies: int
    writes: bool
    ours: bool
    libraries: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """The clocks now, and what an engine wrote down at its last look (-1: never).

    Args:
        jumps: (when seen, by how much) of the last jumps, newest first, milliseconds.
        newest_ms: when the newest message says that it came.
    """

    wall_ms: int
    monotonic_ms: int
    boot: str
    row_wall_ms: int = -1
    row_monotonic_ms: int = -1
    row_boot: str = ""
    jumps: tuple[tuple[int, int], ...] = ()
    newest_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """An engine process whose row says that it lives."""

    worker: int
    kind: str
    pid: int
    host: str
    boot: str
    lock: str
    state: str
    started_ms: int
    heartbeat_ms: int
    sessions: int
    restarts: int
    lanes: int
    recipients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendedSite:
    """A site that is left alone now."""

    site: str
    until_ms: int
    by: str | None
    reason: str | None
    last_reply: str | None
    failures: int
    last_success_ms: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Oldest:
    """What has been due longest though nothing keeps it.

    Args:
        where: its site, or its domain where it has none yet.
        lanes, limit: connections that the site has and may have.
    """

    due_ms: int
    where: str
    lanes: int = 0
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the rows say; of one moment each.

    Args:
        waiting: recipients by status.
        held: held recipients by reason; empty where none is, or where counting took too long.
        suspended: the fullest sites that are left alone; ``suspended_sites`` counts all.
        failing_domains: domains whose DNS fails now, and one of them with its error.
        last_success_ms: when a host took a message last; 0: never, or long ago.
        lost_lately: engine processes that died without a word within a day.
        unreported: recipients of whom a report to the sender could not be made yet.
        unreported_error: why the last one could not.
    """

    schema: int
    copied_ms: int | None
    copied_from: str | None
    waiting: Mapping[str, int]
    held: Mapping[str, int]
    oldest_due_ms: int | None
    oldest: Oldest | None
    suspended_sites: int
    suspended: tuple[SuspendedSite, ...]
    failing_domains: int
    failing_domain: tuple[str, str] | None
    last_success_ms: int
    workers: tuple[ProcessFacts, ...]
    lost_lately: int
    unreported: int = 0
    unreported_error: str | None = None

    @property
    def unsent(self) -> int:
        """Recipients that an engine has to do with: those that wait, but for held ones."""
        return sum(amount for status, amount in self.waiting.items() if status != "held")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckFacts:
    """``store check`` as far as its time went.

    Args:
        left: how many of its questions were not answered in time.
    """

    findings: tuple[str, ...]
    asked: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A spool, looked at from outside.

    Args:
        files: facts of ``database``, ``log``, ``index``, ``directory`` and ``run``.
        named: one sentence where it has a second name.
        poisoned: sentences about a disk error that is not repaired.
        hidden: processes with locks on it that this user may not look at.
    """

    path: str
    version: str
    files: Mapping[str, FileFacts]
    room: RoomFacts | None
    clock: ClockFacts
    trouble: Trouble | None = None
    named: str | None = None
    poisoned: tuple[str, ...] = ()
    log: LogFacts | None = None
    contents: Contents | None = None
    check: CheckFacts | None = None
    sharers: tuple[Sharer, ...] = ()
    hidden: tuple[int, ...] = field(default=())
