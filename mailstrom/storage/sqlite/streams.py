"""Streams in the spool: kept where the enqueue trigger reads them.

Limits are refused by the trigger, whatever client it is; this file gives the refusal its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import apsw

from mailstrom.errors import InvalidMessage
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite.sql import run

if TYPE_CHECKING:  # a client needs nothing of the engine's half at run time
    from mailstrom.storage.base import StreamPolicy


def use(connection: apsw.Connection, streams: Sequence[StreamPolicy]) -> None:
    """Replace the streams; nothing is written where they are the same."""
    rows = [
        {
            "name": stream.name,
            "priority": stream.priority,
            "max_age_ms": stream.max_age_ms,
            "on_doubt": None if stream.on_doubt is None else str(stream.on_doubt),
            "require_tls": int(stream.require_tls),
            "max_size": stream.max_size,
            "max_recipients": stream.max_recipients,
        }
        for stream in streams
    ]
    wanted = sorted((tuple(row.values()) for row in rows), key=lambda row: str(row[0]))
    if run(connection, "streams") == wanted:
        return
    run(connection, "streams_clear")
    for row in rows:
        run(connection, "stream_put", row)


def refusal(
    connection: apsw.Connection, submission: Submission, error: Exception
) -> InvalidMessage | None:
    """What a limit of the message's stream refused, with its numbers; None if it was none."""
    for word, unit, actual in (
        ("max_size", "bytes", len(submission.content)),
        ("max_recipients", "recipients", len(submission.recipients)),
    ):
        if f"({word})" not in str(error):
            continue
        found = run(connection, "stream_limits", {"name": submission.stream})
        limit = found[0][word == "max_recipients"] if found else None
        rule = f"stream-{word.replace('_', '-')}"
        return InvalidMessage(
            f"the message has {actual} {unit}; stream {submission.stream!r} takes at most"
            f" {'fewer' if limit is None else limit} ({word})",
            value=actual,
            rule=rule,
        )
    return None
