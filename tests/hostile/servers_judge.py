"""How rows that stand for many trials are judged: each trial by its own wanted words.

Contract. ``family`` brings all its trials about at once, and is clean only where each ended in the
words that were written for it; else the row tells the first that did not, and how many others.
``settled`` waits until every recipient of these messages has its first verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.sockets import eventually

FIRST_S = 90.0
"""So long a batch of first verdicts is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial that is over.

    Args:
        name: which.
        wanted: its outcome by policy.
        seen: its outcome.
    """

    name: str
    wanted: object
    seen: object


def family(stand: Stand, case: str, wanted: str, bring: Callable[[], Iterable[Trial]]) -> Row:
    """Many trials as one row.

    Args:
        stand: where.
        case: what the other side does in all of them.
        wanted: in words; each trial has its own exact ones.
        bring: brings them about and tells them once they are over.
    """
    told: list[Trial] = []

    def tried() -> str:
        told.extend(bring())
        off = [one for one in told if one.seen != one.wanted]
        if off or not told:
            return _worst(off)
        return wanted

    row = stand.measured(case, wanted, tried)
    return replace(row, tried=max(len(told), 1))


def _worst(off: Sequence[Trial]) -> str:
    if not off:
        return "nothing was tried"
    first = off[0]
    more = f", and {len(off) - 1} others" if off[1:] else ""
    return f"{first.name}: {first.seen}, not {first.wanted}{more}"


def settled(stand: Stand, ids: Iterable[str]) -> None:
    """Wait until nothing of these messages is queued or on the wire."""
    named = json.dumps(list(ids))
    eventually(
        lambda: (
            not stand.engine.rows(
                "SELECT 1 FROM recipients WHERE message_id IN (SELECT value FROM json_each(?))"
                " AND status IN ('queued', 'sending') LIMIT 1",
                named,
            )
        ),
        FIRST_S,
        what="a first verdict on every recipient",
        interval=0.05,
    )


def ended(stand: Stand, ids: Iterable[str]) -> None:
    """Wait until every recipient of these messages is final."""
    named = json.dumps(list(ids))
    eventually(
        lambda: (
            not stand.engine.rows(
                "SELECT 1 FROM recipients WHERE message_id IN (SELECT value FROM json_each(?))"
                " AND finished_ms IS NULL LIMIT 1",
                named,
            )
        ),
        FIRST_S,
        what="the end of every recipient",
        interval=0.05,
    )


def recipients(stand: Stand, ids: Iterable[str]) -> dict[str, Any]:
    """Their rows by address; addresses of these messages must not repeat."""
    rows = stand.engine.rows(
        "SELECT * FROM recipients WHERE message_id IN (SELECT value FROM json_each(?))",
        json.dumps(list(ids)),
    )
    found = {row.address: row for row in rows}
    assert len(found) == len(rows), "an address twice"
    return found


def words(row: Any) -> str:
    """A recipient as ``Stand.outcome`` tells it."""
    parts = [row.status, row.reason or "", "in doubt" if row.in_doubt else ""]
    return f"{' '.join(filter(None, parts))}, {row.attempts} charged"
