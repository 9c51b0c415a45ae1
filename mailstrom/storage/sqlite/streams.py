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


def exceeded(connection: apsw.Connection, submission: Submission) -> InvalidMessage | None:
    """The limit of its stream that a message exceeds as the spool stands, or None."""
    found = run(connection, "stream_limits", {"name": submission.stream})
    for (word, (_, actual)), limit in zip(
        _measured(submission).items(), found[0] if found else (), strict=False
    ):
        if limit is not None and actual > limit:
            return _error(submission, word, str(limit))
    return None


def refusal(
    connection: apsw.Connection, submission: Submission, error: Exception
) -> InvalidMessage | None:
    """What a limit of the message's stream refused, with its numbers; None if it was none."""
    for column, word in enumerate(_measured(submission)):
        if f"({word})" in str(error):
            found = run(connection, "stream_limits", {"name": submission.stream})
            limit = found[0][column] if found else None
            return _error(submission, word, "fewer" if limit is None else str(limit))
    return None


def _measured(submission: Submission) -> dict[str, tuple[str, int]]:
    """Limit -> unit and number of the message, in the order of ``stream_limits``."""
    return {
        "max_size": ("bytes", len(submission.content)),
        "max_recipients": ("recipients", len(submission.recipients)),
    }


def _error(submission: Submission, word: str, limit: str) -> InvalidMessage:
    unit, actual = _measured(submission)[word]
    return InvalidMessage(
        f"the message has {actual} {unit}; stream {submission.stream!r} takes at most"
        f" {limit} ({word})",
        value=actual,
        rule=f"stream-{word.replace('_', '-')}",
    )
