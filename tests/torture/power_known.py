"""What was promised, and what happened outside, while a spool was in use: values.

Contract. ``Fact`` is one promise or event with the number of steps that the disk had taken by then,
``Known`` what all facts up to a moment come to: the floor under whatever a power cut may leave.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import apsw

from mailstrom.storage.base import Claimed, Lane
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite.place import FilePlace
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import DAY
from tests.torture.power_engine import PowerDB

Pair = tuple[str, str]
"""Message id and address."""

KEPT_MS = DAY
"""How long an idempotency key answers."""
_UNTOLD = frozenset({"content", "staged", "sqlite_sequence"})  # judged by their content


@dataclass(slots=True)
class Known:
    """What had been promised, and had happened outside, at one moment.

    Args:
        acked: by id what ``enqueue`` returned for.
        begun: by id what may have been stored.
        far: copies that the far end took, by recipient.
        tokens: lanes under which a claim was handed out.
        purgeable: messages that retention may have deleted.
        resolved: recipients that a person said are delivered.
        floor, latest: the first state that may be on disk, and the last that there was.
    """

    acked: dict[str, Submission] = field(default_factory=dict)
    begun: dict[str, Submission] = field(default_factory=dict)
    far: Counter[Pair] = field(default_factory=Counter)
    tokens: set[int] = field(default_factory=set)
    purgeable: set[str] = field(default_factory=set)
    resolved: set[Pair] = field(default_factory=set)
    floor: int = 0
    latest: int = 0

    def copy(self) -> Known:
        """One that does not change with this one."""
        return Known(**{name: copy(getattr(self, name)) for name in self.__slots__})

    def learn(self, kind: str, what: Any) -> None:
        """Take one more fact."""
        match kind:
            case "begun":
                self.begun[what.id] = what
            case "acked":
                self.acked[what.id] = what
            case "far":
                self.far[what] += 1
            case "claimed":
                self.tokens.add(what)
            case "purging":
                self.purgeable |= what
            case "resolved":
                self.resolved.add(what)
            case "promised":
                self.floor = max(self.floor, what)
            case "state":
                self.latest = what
            case _:
                raise ValueError(kind)


@dataclass(frozen=True, slots=True)
class Fact:
    """Something promised, or something that happened outside, after ``at`` steps of the disk."""

    at: int
    kind: str
    what: Any


class EagerPlace(FilePlace):
    """A spool whose clients checkpoint by themselves after a few frames."""

    def connect(
        self, *, read_only: bool = False, busy_ms: int, checkpoint_frames: int = 40
    ) -> apsw.Connection:
        """See ``Place.connect``."""
        frames = checkpoint_frames and 40
        return super().connect(read_only=read_only, busy_ms=busy_ms, checkpoint_frames=frames)


@dataclass(slots=True)
class Hand:
    """A worker: its store's service, its row, its lanes, and what it holds of each."""

    db: PowerDB
    seq: int
    lanes: dict[int, Lane] = field(default_factory=dict)
    claimed: list[Claimed] = field(default_factory=list)
    opened: list[Claimed] = field(default_factory=list)
    sent: list[Claimed] = field(default_factory=list)  # taken by the far end, no verdict yet

    @property
    def store(self) -> SQLiteWorkerStore:
        """The store itself, for what needs no sync."""
        return self.db.store


def state_of(connection: apsw.Connection) -> bytes:
    """A digest of every row that is not content: two equal ones are the same commit."""
    found = hashlib.blake2b(digest_size=16)
    with connection:  # one snapshot
        tables = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
        ).fetchall()
        for (table,) in tables:
            if table not in _UNTOLD:
                found.update(
                    repr(connection.execute(f'SELECT * FROM "{table}"').fetchall()).encode()
                )
    return found.digest()
