"""Messages and recipients of a selection: statements put together from named fragments.

What is sought and what is walked is told at the head of ``finding.sql``. A walk stops at the limit
and goes on where the page before ended, so that nothing is looked at twice over all pages.

A deep queue has few messages of most words, and they may be its oldest: behind the newest ``NEAR``
numbers only candidates are looked at, unless they are more than ``FEW``. What is not finished is
always looked for so, however much it is: the newest of it at a time, out of its own index.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from typing import Any

import apsw

from mailstrom.errors import MessageNotFound
from mailstrom.storage.client import Selection, Target
from mailstrom.storage.sqlite.changes import touches
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import FINAL, Change, Status

NEAR = 2_000
"""Message numbers that are walked over before anybody is asked for candidates."""
FEW = 100_000
"""Most candidates: to read so many from an index costs as much as to walk over as many messages."""
DEARER = 4
"""To seek a recipient in its message costs so much more than to walk over one."""
WINDOW = 50_000
"""Recipients that one statement of a walk looks at, some milliseconds: no snapshot keeps the log
from being emptied for longer, and whoever interrupts the walk is heard in between."""

_NEWEST = 1 << 62
_WAITING = frozenset({Status.QUEUED, Status.SENDING, Status.DEFERRED, Status.HELD})
_STATES: dict[str, tuple[str, ...]] = {
    Status.QUEUED: ("queued", "claimed"),
    Status.DEFERRED: ("queued", "deferred", "claimed"),
}
"""States of rows that the view may show under another word; the others it shows as they are."""
_PLAIN = frozenset(Status) - {Status.QUEUED, Status.DEFERRED, Status.PARTIAL}
_HELD_CHANGES = frozenset(
    {Change.RELEASE, Change.RESOLVE_DELIVERED, Change.RESOLVE_RETRY, Change.RESOLVE_FAILED}
)
_ENDED = ("few_ended",)
_UNFINISHED = ("newest_unfinished",)
_CANDIDATES: dict[str, tuple[str, ...]] = {
    Status.SENDING: ("few_on_lanes",),
    Status.HELD: ("few_held",),
    Status.DEFERRED: ("few_deferred", "few_on_lanes"),
    **dict.fromkeys(FINAL, _ENDED),
}
"""Where those of a word are sought; queued ones are what the others are not, so that they are
sought among all that wait, where nothing that ended is asked for, too."""
_WITH_REASON = ("few_on_lanes", "few_held", "few_deferred", "few_ended")
"""Where those are that may have a reason: not what is queued."""
_OF_MESSAGES = ("ids", "tags", "senders", "streams", "since_ms", "until_ms")
_OF_RECIPIENTS = ("recipients", "domains", "statuses", "reasons")


def find(
    connection: apsw.Connection, selection: Selection, *, limit: int, after: str | None
) -> list[str]:
    """Ids of a selection's messages, newest first.

    Raises:
        MessageNotFound: no such message as ``after``.
    """
    values = _values(selection)
    values |= {"after": _NEWEST, "most": max(0, limit)}
    if after is not None:
        found = run(connection, "message_seq", {"id": after})
        if not found:
            raise MessageNotFound(
                f"no message {after[:80]!r} to go on after; it was purged, or never in this spool:"
                " begin again without it"
            )
        values["after"] = found[0][0]
    places = _candidates(selection)
    if not places:
        return _walk(connection, selection, values, 0)
    top = min(values["after"], run(connection, "newest_number")[0][0] + 1)
    floor = max(0, top - NEAR)
    ids = _walk(connection, selection, values, floor)
    if len(ids) < limit and floor:
        values |= {"after": floor, "most": limit - len(ids)}
        if places == _UNFINISHED:
            return ids + _unfinished(connection, selection, values, limit - len(ids))
        ids += _walk(connection, selection, values, 0, _few(connection, places, floor))
    return ids


def _unfinished(
    connection: apsw.Connection, selection: Selection, values: dict[str, Any], most: int
) -> list[str]:
    """Ids of those that wait behind ``after``, however many have ended in between."""
    ids: list[str] = []
    size = max(NEAR, 2 * most)
    while len(ids) < most:
        asked = {"after": values["after"], "most": size}
        newest = [row[0] for row in run(connection, "newest_unfinished", asked)]
        if not newest:
            break
        values |= {"most": most - len(ids)}
        ids += _walk(connection, selection, values, 0, set(newest))
        values["after"], size = newest[-1], min(4 * size, FEW)  # there is more in its way
    return ids


def _walk(
    connection: apsw.Connection,
    selection: Selection,
    values: dict[str, Any],
    floor: int,
    few: Set[int] | None = None,
) -> list[str]:
    """Ids of those behind ``after``, down to a number; of candidates alone where there are any."""
    parts = [STATEMENTS["find_head"], *_of_messages(selection)]
    words = set(selection.statuses)
    if words == {Status.HELD}:
        parts.append(STATEMENTS["by_holding"])
    elif words and words <= _WAITING:
        parts.append(STATEMENTS["by_unfinished"])
    inner = _of_recipients(selection)
    if inner:
        parts.append(" AND ".join([STATEMENTS["find_recipient"], *inner]) + ")")
    values = {**values, "floor": floor}
    if few is not None:
        parts.append(STATEMENTS["by_few"])
        values["few"] = json.dumps(list(few))
    sql = " AND ".join(parts) + " " + STATEMENTS["find_tail"]
    return [row[1] for row in connection.execute(sql, values)]


def _few(connection: apsw.Connection, places: Sequence[str], floor: int) -> Set[int] | None:
    """Candidates below a number; None where they are many, or cannot all be found so."""
    if "few_deferred" in places and run(connection, "few_moved"):
        return None
    sql = " UNION ALL ".join(STATEMENTS[place] for place in places)
    sql = f"{sql} {STATEMENTS['few_tail']}"
    found: list[Any] = connection.execute(sql, {"bound": FEW + 1}).fetchall()
    return {row[0] for row in found if row[0] < floor} if len(found) <= FEW else None


def _candidates(selection: Selection) -> tuple[str, ...]:
    """Where a selection's messages are sought, behind the newest; nowhere: they are walked to."""
    if selection.ids or selection.tags or set(selection.statuses) == {Status.HELD}:
        return ()  # sought by other means
    if Status.QUEUED in selection.statuses and _WAITING.issuperset(selection.statuses):
        return _UNFINISHED
    if selection.statuses and all(word in _CANDIDATES for word in selection.statuses):
        places = [place for word in selection.statuses for place in _CANDIDATES[word]]
        return tuple(dict.fromkeys(places))
    return _WITH_REASON if selection.reasons else ()


def targets(
    connection: apsw.Connection,
    selection: Selection,
    *,
    change: Change | None,
    limit: int,
    after: int,
    now_ms: int,
    boot: str | None,
) -> list[Target]:
    """Recipients of a selection in the spool's order, those only that ``change`` would touch.

    A walk sees each window of it as it is then.

    Args:
        connection: in no transaction.
        boot: as in ``changes.change``.
    """
    head, tail = "targets_walk", "targets_tail"
    if selection.ids or selection.tags:
        head, tail = "targets_sought", "targets_sought_tail"
    elif change in _HELD_CHANGES or set(selection.statuses) == {Status.HELD}:
        head = "targets_held"
    elif selection.recipients and _few_unfinished(connection, selection):
        head, tail = "targets_unfinished", "targets_sought_tail"
    parts = [STATEMENTS[head], *_of_messages(selection), *_of_recipients(selection)]
    if change is not None:
        parts.append(f"({touches(change)})")
    values = {**_values(selection), "after": after, "most": max(0, limit), "now_ms": now_ms}
    values["boot"] = boot
    if head != "targets_walk":
        sql = " AND ".join(parts) + " " + STATEMENTS[tail]
        return [Target(*row) for row in connection.execute(sql, values)]
    sql = " AND ".join([*parts, STATEMENTS["targets_window"]]) + " " + STATEMENTS[tail]
    found: list[Target] = []
    while len(found) < limit:
        first = run(connection, "next_recipient", {"after": values["after"]})[0][0]
        if first is None:
            break
        values |= {"last": first + WINDOW - 1, "most": limit - len(found)}
        found += [Target(*row) for row in connection.execute(sql, values)]
        values["after"] = values["last"]
    return found


def _few_unfinished(connection: apsw.Connection, selection: Selection) -> bool:
    """Whether only waiting ones are meant, in messages so few that each is looked into."""
    words = set(selection.statuses)
    if not words or not words <= _WAITING:
        return False
    few = min(FEW, run(connection, "recipient_span")[0][0] // DEARER)
    return bool(run(connection, "few_unfinished", {"bound": few + 1})[0][0] <= few)


def _of_messages(selection: Selection) -> list[str]:
    return [
        STATEMENTS[f"by_{name}"]
        for name in _OF_MESSAGES
        if getattr(selection, name) not in ((), None)
    ]


def _of_recipients(selection: Selection) -> list[str]:
    names = [f"by_{name}" for name in _OF_RECIPIENTS if getattr(selection, name)]
    words = set(selection.statuses)
    if Status.PARTIAL in words:
        names[names.index("by_statuses")] = "by_statuses_or_partial"
    elif words:
        names.insert(0, "by_states")
        if words <= _PLAIN:
            names.remove("by_statuses")
    return [STATEMENTS[name] for name in names]


def _values(selection: Selection) -> dict[str, Any]:
    """Every field as a parameter: words as JSON arrays, times as they are."""
    values: dict[str, Any] = {
        name: json.dumps(getattr(selection, name))
        for name in ("ids", "tags", "senders", "streams", *_OF_RECIPIENTS)
    }
    states = {state for word in selection.statuses for state in _STATES.get(word, (word,))}
    return {
        **values,
        "states": json.dumps(sorted(states)),
        "since_ms": selection.since_ms,
        "until_ms": selection.until_ms,
    }
