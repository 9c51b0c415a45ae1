"""From what a run left behind to the checker's history: spool views, server records, peers' files.

Reads public views only (``messages``, ``recipients``, ``attempts``), through whatever runs SQL:
``Mailstrom.query`` in process, or Debian's sqlite3 from outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from mailstrom.testing.records import Dot
from tests.support.checker import Row, Seen, content_digest
from tests.support.postfix import Received

Query = Callable[[str], Sequence[Sequence[object]]]

_ROWS = (
    "SELECT m.id, m.message_id, r.address, r.status, r.reason, r.in_doubt"
    " FROM recipients AS r JOIN messages AS m ON m.id = r.message_id"
)
_ATTEMPTS = "SELECT message_id, recipient, in_doubt FROM attempts ORDER BY id"


def spool_rows(query: Query) -> tuple[Row, ...]:
    """Every recipient of the spool with its attempts.

    Args:
        query: runs one SELECT and returns its rows as sequences.
    """
    attempts: dict[tuple[object, object], list[bool]] = defaultdict(list)
    for message, recipient, in_doubt in query(_ATTEMPTS):
        attempts[message, recipient].append(bool(in_doubt))
    return tuple(
        Row(
            id=str(message),
            message_id=str(header),
            recipient=str(address),
            status=str(status),
            reason=None if reason is None else str(reason),
            in_doubt=bool(in_doubt),
            attempts=tuple(attempts[message, address]),
        )
        for message, header, address, status, reason, in_doubt in query(_ROWS)
    )


def seen_by_server(dots: Iterable[Dot]) -> tuple[Seen, ...]:
    """What our scripted servers recorded at the final dot (``SMTPServer.dots``, ``read_dots``)."""
    return tuple(
        Seen(
            message_id=dot.message_id,
            recipient=recipient,
            digest=dot.digest,
            kept=dot.kept,
            at=dot.at,
        )
        for dot in dots
        for recipient in dot.recipients
    )


def seen_by_peer(received: Iterable[Received]) -> tuple[Seen, ...]:
    """What smtp-sink dumped or Postfix delivered."""
    return tuple(
        Seen(message_id=one.message_id, recipient=recipient, digest=content_digest(one.content))
        for one in received
        for recipient in one.recipients
    )
