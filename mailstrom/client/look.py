"""What one look at a spool saw, and the words in which it is told.

Pure values and sentences; ``binding`` and ``obstacles`` decide by them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from mailstrom.causes import Cause
from mailstrom.spans import span_text
from mailstrom.storage.facts import COUNTED, Facts, LaneFacts, WorkerFacts
from mailstrom.types import RouteResult, iso_ms

SIGN_OF_LIFE_MS = 30_000
"""A worker's row is written every five seconds."""
NEGATIVE = frozenset({RouteResult.NULL_MX, RouteResult.NO_DOMAIN, RouteResult.LOOP})
"""Answers by which a domain takes no mail."""


class Look(NamedTuple):
    """What a look saw, and who lives.

    Args:
        held: lock files that somebody holds; a process whose file is not among them has ended.
    """

    facts: Facts
    held: Collection[str]
    now_ms: int

    @property
    def living(self) -> list[WorkerFacts]:
        """Delivery workers whose process lives."""
        return [one for one in self.facts.workers if one.lock in self.held]

    @property
    def working(self) -> list[WorkerFacts]:
        """Those that gave a sign of life lately, and may claim."""
        since_ms = self.now_ms - SIGN_OF_LIFE_MS
        return [
            one for one in self.living if one.heartbeat_ms > since_ms and one.state != "draining"
        ]


class Said(NamedTuple):
    """A cause in words; see ``Waiting``."""

    cause: Cause
    detail: str
    change: str = ""
    until_ms: int | None = None
    by: str | None = None


def worker(lane: LaneFacts) -> str:
    """Who has a lane: ``worker 3 (pid 4711 on host)``."""
    where = f" (pid {lane.pid} on {lane.name})" if lane.pid is not None else ""
    return f"worker {lane.worker}{where}"


def registered(one: WorkerFacts) -> str:
    """As ``worker``, of one whose row says that it lives."""
    return f"worker {one.worker} (pid {one.pid} on {one.host})"


def due_before(ahead: int | None) -> str:
    """How many others come first, behind a semicolon; empty where nobody does, or counted."""
    if not ahead:
        return ""
    number = f"{COUNTED:,} or more others are" if ahead >= COUNTED else f"{ahead:,} others are"
    return f"; {'one other is' if ahead == 1 else number} due there before it"


def moment(at_ms: int, now_ms: int) -> str:
    """``2030-01-31T08:00:00.000Z (in 4m 10s)``."""
    return f"{iso_ms(at_ms)} (in {span_text(at_ms - now_ms)})"


def reply(code: int | None, enhanced: str | None, text: str | None) -> str:
    """The remote server's words on one line, as it said them."""
    words = text or ""
    if enhanced and not words.startswith(enhanced):
        words = f"{enhanced} {words}"
    if code is not None and not words.startswith(str(code)):
        words = f"{code} {words}"
    return words.strip()
