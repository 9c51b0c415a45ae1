"""Content and the message that it belongs to: reading it whole, deleting it and nobody else's.

Contract. Content lies under the message's own number (``message.content`` NULL) or, staged, under a
negative one; a positive number there is damage, and means the own one (statements say
``iif(content < 0, content, seq)``). No digest covers that number, so damage may make it name
another message's content. Reading notices by the message's digest. Deleting must not believe it,
and the digest is no proof, since two messages may have the same bytes: what was staged is deleted
only where nobody else names it. Content whose number was lost is looked for by the digest; what
stays all the same takes room and nothing else, and ``store check`` tells (``check_content_owner``).

Steps of somebody else's transaction, but for ``Shared``, which looks at all messages and at all
staged content: before the transaction, and only where something staged is to go. What came since
is asked for in the transaction (``late``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import apsw

from mailstrom.errors import SpoolCorrupt
from mailstrom.storage.sqlite.rows import SEALED, digest, fits, seal_fits
from mailstrom.storage.sqlite.sql import STATEMENTS, run

LOOK_S = 60.0
"""How long a look for numbers that two messages name holds: they come by damage alone."""


class PurgeFacts(NamedTuple):
    """What a purge must know and cannot look for while it has the lock.

    Args:
        seen: the newest message when it was looked; of those that came since, ask ``late``.
        shared: staged numbers that more than one message names -> JSON of these messages' own;
            none, in a sound spool.
        orphans: message -> where its content lies, of messages to be purged whose row no longer
            says so; none, in a sound spool.
    """

    seen: int
    shared: Mapping[int, str]
    orphans: Mapping[int, int]


class Shared:
    """Looks for staged content that two messages name, or none."""

    def __init__(self) -> None:
        self._found = PurgeFacts(0, {}, {})
        self._until_s = float("-inf")

    def __call__(self, connection: apsw.Connection, before_ms: int, limit: int) -> PurgeFacts:
        """Look, where one of the next ``limit`` messages to be purged was staged.

        Args:
            connection: in no transaction; a spool of a million messages is read for about a second.
            before_ms: what finished by then is to be purged.
        """
        staged = run(connection, "purges_staged", {"before_ms": before_ms, "most": limit})
        if staged and time.monotonic() >= self._until_s:
            # The number first: what comes meanwhile is asked for in the transaction.
            seen = run(connection, "newest_number")[0][0]
            self._found = PurgeFacts(seen, dict(run(connection, "contents_shared")), {})
            self._until_s = time.monotonic() + LOOK_S
        lost = [
            seq
            for seq, number, chunks, is_own, is_there in staged
            if chunks != 1 and not is_own and (not is_there or number in self._found.shared)
        ]
        return self._found._replace(orphans=_orphans(connection, lost) if lost else {})


def late(connection: apsw.Connection, look: PurgeFacts) -> dict[int, tuple[int, int]]:
    """Staged numbers that messages name which came since the look: the first and the last of them.

    Args:
        connection: in the transaction that purges. Reads those messages, whatever they name.
    """
    found = run(connection, "contents_since", {"seen": look.seen})
    return {number: (first, last) for number, first, last in found}


def read(connection: apsw.Connection, path: str, id: str) -> bytes | None:
    """The bytes of a message, or None where it is unknown or its body was purged.

    Args:
        connection: in a transaction, or content may be purged between two looks.
        path: the spool's name, for the error.

    Raises:
        SpoolCorrupt: they are not those that were accepted.
    """
    rows = run(connection, "content_of", {"id": id})
    if not rows or rows[0][1] is not None:
        return None
    number, _, kept, require_tls, on_doubt, *values = rows[0]
    facts = dict(zip(SEALED, values, strict=True))
    pieces = run(connection, "content_chunks", {"content": number})
    whole = (
        len(pieces) == facts["chunks"]
        and all(digest(data) == own for data, own in pieces)
        and sum(len(data) for data, _ in pieces) == facts["size"]
        and fits(
            kept,
            require_tls=require_tls,
            on_doubt=on_doubt,
            digests=[own for _, own in pieces],
            **facts,
        )
    )
    if not whole:
        raise SpoolCorrupt(f"{path}: the content of message {id} is damaged on disk")
    return b"".join(data for data, _ in pieces)


def original(connection: apsw.Connection, message: int, most: int) -> bytes:
    """What a report may return of a message: all of it up to ``most`` bytes, else its header.

    The header section comes with the empty line behind it; one that does not end in the first chunk
    is cut behind its last whole line there. Empty where the digests say that it is not this
    message's, or is damaged.
    """
    try:
        rows = connection.execute(
            f"{STATEMENTS['seals']} WHERE m.seq = :message", {"message": message}
        ).fetchall()
        if not rows or not seal_fits(rows[0]):
            return b""
        size = rows[0][3 + SEALED.index("size")]
        whole = isinstance(size, int) and size <= most
        pieces = run(connection, "original_chunks", {"message": message, "whole": int(whole)})
    except (apsw.CorruptError, UnicodeDecodeError, ValueError):
        return b""
    if not pieces or not all(digest(data) == own for data, own in pieces):
        return b""
    content = b"".join(data for data, _ in pieces)
    if whole or content.startswith(b"\r\n"):
        return content if whole else content[:2]
    end = content.find(b"\r\n\r\n")
    if end >= 0:
        return content[: end + 4]
    lines, newline, _ = content.rpartition(b"\r\n")
    return lines + newline


def delete(
    connection: apsw.Connection,
    message: int,
    number: int | None,
    look: PurgeFacts,
    since: Mapping[int, tuple[int, int]],
) -> None:
    """Delete a message's content.

    Args:
        message: its number.
        number: ``message.content``. It is made NULL where nothing was deleted under it.
        since: see ``late``.
    """

    def is_nobody_elses(number: int) -> bool:
        if since.get(number, (message, message)) != (message, message):
            return False
        named = {"content": number, "message": message, "among": look.shared.get(number, "[]")}
        return not run(connection, "is_anothers", named)

    if _delete(connection, message):  # then the rest is not there, or not this message's
        if number is not None:
            run(connection, "set_content", {"message": message, "content": None})
        return
    staged = 0 if number is None else number
    if not (staged < 0 and is_nobody_elses(staged) and _delete(connection, staged)):
        run(connection, "set_content", {"message": message, "content": None})
    orphan = look.orphans.get(message)
    if orphan is not None and is_nobody_elses(orphan):
        _delete(connection, orphan)


def delete_staged(connection: apsw.Connection, before_ms: int) -> None:
    """Delete what was staged so long ago that no client can still mean to make a message of it.

    What a message names is not staged, whatever the mark says: it stays, the mark goes.
    """
    for seq, is_named in run(connection, "stale_staged", {"before_ms": before_ms}):
        if not is_named:
            _delete(connection, -seq)
        run(connection, "delete_staged", {"seq": seq})


def _delete(connection: apsw.Connection, number: int) -> int:
    """Delete what lies under a number; how many pieces that were."""
    run(connection, "delete_content", {"content": number})
    return connection.changes()


def _orphans(connection: apsw.Connection, messages: list[int]) -> dict[int, int]:
    """Where the content of messages lies whose rows do not say so, as far as digests prove it."""
    wanted: dict[tuple[Any, Any], dict[int, Any]] = {}
    for message in messages:
        row = _seal(connection, message)
        if row is not None:
            facts = dict(zip(SEALED, row[3:], strict=False))
            wanted.setdefault((facts["chunks"], facts["size"]), {})[message] = row
    found: dict[int, int] = {}
    if not wanted:
        return found
    for orphan, chunks, size in connection.execute(STATEMENTS["orphaned_content"]):
        rows = wanted.get((chunks, size))
        if not rows:
            continue
        digests = run(connection, "content_digests", {"content": orphan})[0][0]
        for message, row in rows.items():
            if seal_fits((*row[:-1], digests)):
                found[message] = orphan
                del rows[message]
                break
    return found


def _seal(connection: apsw.Connection, message: int) -> tuple[Any, ...] | None:
    """A message's row of ``seals``; None where it has no digest, or a text that is none."""
    sql = f"{STATEMENTS['seals']} WHERE m.seq = :message"
    try:
        rows = connection.execute(sql, {"message": message}).fetchall()
    except UnicodeDecodeError:
        return None
    return rows[0] if rows and rows[0][0] is not None else None
