"""What clients ask for: statuses, events, recent completions, counters, suppressions, SQL.

Steps of one read; the only write is the cursor of ``recent``, a number in ``meta``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import apsw

from mailstrom.errors import SpoolBusy, SpoolReadOnly
from mailstrom.storage.sqlite.connection import only_reads
from mailstrom.storage.sqlite.rows import decode_statuses, named_rows
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import FINAL, Event, MessageStatus, QueueStats, Status, Suppression, from_ms

_WAITING = (Status.QUEUED, Status.SENDING, Status.DEFERRED, Status.HELD)
NEAR = 2_000
"""So many message numbers are looked at before an index is asked that tells of all that wait."""


class Recent(NamedTuple):
    """A look for completed messages: their ids, and where the cursor stood and should move."""

    ids: list[str]
    after: int
    top: int


def recent(connection: apsw.Connection, limit: int) -> Recent:
    """Messages completed since the cursor, in the order of their ends; then incomplete ones."""
    found = run(connection, "meta_get", {"key": "recent_event"})
    after = int(found[0][0]) if found else 0
    completed = run(connection, "recent_completed", {"after": after, "most": limit})
    if len(completed) == limit:
        top = completed[-1][0] if completed else after
    else:
        top = max(after, run(connection, "last_event")[0][0])
    ids = [row[1] for row in completed]
    if len(ids) < limit:
        ids += _incomplete(connection, limit - len(ids))
    return Recent(ids, after, top)


def _incomplete(connection: apsw.Connection, most: int) -> list[str]:
    """The oldest messages that are not finished: mostly they are the oldest of all."""
    rows = run(connection, "recent_oldest", {"near": NEAR, "most": most})
    if len(rows) < most:
        rows = run(connection, "recent_incomplete", {"most": most})
    return [row[0] for row in rows]


def move(connection: apsw.Connection, look: Recent) -> bool:
    """Move the cursor behind what was seen; False if somebody else moved it since."""
    return bool(run(connection, "recent_move", {"after": look.after, "top": look.top}))


def statuses(connection: apsw.Connection, ids: Sequence[str]) -> dict[str, MessageStatus]:
    """Status of each known id; ``connection`` is in a transaction, since this looks twice."""
    values = {"ids": json.dumps(list(ids))}
    messages = run(connection, "status_messages", values)
    return decode_statuses(messages, run(connection, "status_recipients", values))


def events(
    connection: apsw.Connection, after: int, types: Sequence[str], limit: int
) -> list[Event]:
    """Events behind ``after``, in order."""
    values = {"after": after, "most": max(0, limit), "types": json.dumps(list(types))}
    rows = run(connection, "events_after_of" if types else "events_after", values)
    found = []
    for id, at_ms, type, message_id, recipient, detail in rows:
        at = from_ms(at_ms)
        assert at is not None
        found.append(
            Event(
                id=id,
                at=at,
                type=type,
                message_id=message_id,
                recipient=recipient,
                detail=json.loads(detail),
            )
        )
    return found


def stats(connection: apsw.Connection, now_ms: int, *, log_full: bool) -> QueueStats:
    """Counters of the queue; final recipients are not looked at."""
    waiting = {str(status): 0 for status in _WAITING}
    waiting.update(run(connection, "waiting"))  # a view, which counts by the system's clock
    finished = {str(status): 0 for status in sorted(FINAL - {Status.PARTIAL})}
    finished.update(run(connection, "finished_lately", {"now_ms": now_ms}))
    suspended, workers, copied = run(connection, "engine_now", {"now_ms": now_ms})[0]
    return QueueStats(
        waiting=waiting,
        finished=finished,
        oldest_due_at=from_ms(_oldest_due(connection, now_ms)),
        suspended_sites=suspended,
        workers=workers,
        copied=bool(copied),
        log_full=log_full,
    )


_OLDEST = ("oldest_at_sites", "oldest_at_kept_sites", "oldest_unrouted", "oldest_refreshed")


def _oldest_due(connection: apsw.Connection, now_ms: int) -> int | None:
    """Since when the longest waiting recipient is due; a few seeks, however many wait.

    Sites and domains come by when they may have something due at the earliest, so that the look
    ends where the rest cannot be older.
    """
    oldest: int | None = None
    for name in _OLDEST:
        sql = STATEMENTS[name]
        cursor = connection.execute(sql, {"now_ms": now_ms} if ":now_ms" in sql else {})
        for earliest_ms, due_ms in cursor:
            if due_ms is not None and due_ms <= now_ms and (oldest is None or due_ms < oldest):
                oldest = int(due_ms)
            if earliest_ms is not None and oldest is not None and earliest_ms >= oldest:
                break
        cursor.close(True)
    return oldest


def suppressions(
    connection: apsw.Connection, addresses: Sequence[str], limit: int
) -> list[Suppression]:
    """Suppressed addresses, sorted."""
    values = {"addresses": json.dumps(list(addresses)), "most": max(0, limit)}
    found = []
    for address, scope, reason, created_ms, expires_ms, evidence in run(
        connection, "suppressions_of" if addresses else "suppressions_all", values
    ):
        created = from_ms(created_ms)
        assert created is not None
        found.append(
            Suppression(
                address=address,
                scope=scope,
                reason=reason,
                created_at=created,
                expires_at=from_ms(expires_ms),
                evidence=evidence,
            )
        )
    return found


def query(
    connection: apsw.Connection,
    sql: str,
    params: Sequence[object] | Mapping[str, object],
    seconds: float,
    allowed: float | None,
) -> list[tuple[object, ...]]:
    """Rows of a caller's own SELECT, as named tuples.

    Args:
        connection: one that only reads; in no transaction.
        seconds: how long it may take.
        allowed: the same, where commits wait for it (``Place.longest_read_s``).

    Raises:
        SpoolBusy: it took longer.
        SpoolReadOnly: it would do something else than read.
    """
    limit = seconds if allowed is None else min(seconds, allowed)
    deadline = time.monotonic() + limit
    bindings: Any = dict(params) if isinstance(params, Mapping) else tuple(params)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    connection.authorizer = only_reads
    try:
        return named_rows(connection.execute(sql, bindings))
    except apsw.InterruptError as error:
        why = "" if limit == seconds else ", since commits wait for it in this spool"
        raise SpoolBusy(
            f"the query took longer than {limit:g} s and was stopped{why}; narrow it"
            + (", or ask a copy in a file (backup)" if why else "")
        ) from error
    except (apsw.ReadOnlyError, apsw.AuthError) as error:
        raise SpoolReadOnly(
            "query() only reads: SELECT and nothing else; use the verbs to change mail"
        ) from error
    finally:
        connection.authorizer = None
        connection.set_progress_handler(None)
