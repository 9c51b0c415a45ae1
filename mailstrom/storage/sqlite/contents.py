"""Content and the message that it belongs to: reading it whole, deleting it and nobody else's.

Contract. Content lies under the message's own number (``message.content`` NULL) or, staged, under a
negative one; a positive number there is damage, and means the own one (statements say
``iif(content < 0, content, seq)``). No digest covers that number, so damage may make it name
another message's content. Reading notices by the message's digest. Deleting must not believe it,
and the digest is no proof, since two messages may have the same bytes: what was staged is deleted
only where nobody else names it. Content whose number was lost is looked for by the digest; what
stays all the same takes room and nothing else, and ``store check`` tells (``check_content_owner``).

Steps of somebody else's transaction, but for ``Shared``, which looks at all messages: before the
transaction, seldom, and only where something staged is to go.
"""

from __future__ import annotations

import time

import apsw

from mailstrom.errors import SpoolCorrupt
from mailstrom.storage.sqlite.rows import SEALED, digest, fits, seal_fits
from mailstrom.storage.sqlite.sql import STATEMENTS, run

LOOK_S = 60.0
"""How long a look for numbers that two messages name holds: they come by damage alone."""


class Shared:
    """The staged numbers that more than one message names; none, in a sound spool."""

    def __init__(self) -> None:
        self._found: frozenset[int] = frozenset()
        self._until_s = float("-inf")

    def __call__(self, connection: apsw.Connection, before_ms: int, limit: int) -> frozenset[int]:
        """Look, where one of the next ``limit`` messages to be purged was staged.

        Args:
            connection: in no transaction; a spool of a million messages is read for about a second.
            before_ms: what finished by then is to be purged.
        """
        staged = run(connection, "purges_staged", {"before_ms": before_ms, "most": limit})
        if staged and time.monotonic() >= self._until_s:
            self._found = frozenset(row[0] for row in run(connection, "contents_shared"))
            self._until_s = time.monotonic() + LOOK_S
        return self._found


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


def delete(
    connection: apsw.Connection, message: int, number: int | None, shared: frozenset[int]
) -> None:
    """Delete a message's content.

    Args:
        message: its number.
        number: ``message.content``. It is made NULL where nothing was deleted under it.
        shared: numbers that others name, too.
    """
    if _delete(connection, message):  # then the rest is not there, or not this message's
        if number is not None:
            run(connection, "set_content", {"message": message, "content": None})
        return
    if number is not None and number < 0 and number not in shared:
        is_staged = run(connection, "is_staged", {"content": number})
        if not is_staged and _delete(connection, number):
            return
    run(connection, "set_content", {"message": message, "content": None})
    for (orphan,) in run(connection, "orphaned_content"):
        run(connection, "set_content", {"message": message, "content": orphan})
        if _proved(connection, message):
            _delete(connection, orphan)
            return
        run(connection, "set_content", {"message": message, "content": None})


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


def _proved(connection: apsw.Connection, message: int) -> bool:
    """Whether what lies where a message's row says fits its digest; never without a digest."""
    sql = f"{STATEMENTS['seals']} WHERE m.seq = :message"
    ((kept, *rest),) = connection.execute(sql, {"message": message}).fetchall()
    return kept is not None and seal_fits((kept, *rest))
