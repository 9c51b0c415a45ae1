"""From a ``Submission`` to the one row that the enqueue view takes; long content goes ahead.

What no column can hold is refused here, so that it fails alone and not the commit it shares. Long
content is staged only for what the trigger would take now, and what became of no message is deleted
(``unstage``): a message refused again and again fills no disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from json.encoder import encode_basestring as _text
from typing import NamedTuple

import apsw

from mailstrom import interrupts
from mailstrom.errors import IdempotencyConflict, InvalidMessage
from mailstrom.storage.client import CHUNK_BYTES, Submission, require_notices
from mailstrom.storage.sqlite import streams
from mailstrom.storage.sqlite.connection import spool_errors
from mailstrom.storage.sqlite.rows import checksum, digest, domain_of, message_digest
from mailstrom.storage.sqlite.sql import run

MOST_CHUNKS = 4096
UNSTAGED_CHUNKS = 64
"""Chunks of one transaction when staged content is deleted: 16 MiB."""
UNFIT = (InvalidMessage, ValueError, TypeError, OverflowError)
"""What a submission raises that no column can hold."""


_made = tuple.__new__
_json = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes one a call


class Row(NamedTuple):
    """A row for the view ``enqueue``: values of the statement of that name, in its order."""

    id: str
    sender: str
    subject: str
    size: int
    content: int | None
    chunks: int
    body: bytes | None
    digest: bytes | None
    stream: str
    priority: int | None
    message_id: str
    idempotency_key: str | None
    idempotency_hash: bytes | None
    metadata: str
    tags: str
    on_doubt: str | None
    require_tls: int
    eightbit: int
    smtputf8: int
    created_ms: int
    send_ms: int
    expires_ms: int | None
    recipients: str
    message_digest: bytes
    origin: str | None
    client: str | None
    ret: str | None
    envid: str | None
    reports: int
    notices: int
    priority_wire: int | None
    requiretls: int


class Encoded(list[Submission]):
    """Submissions and their rows, made ahead of the writing thread; None: it is to be made there.

    Args:
        submissions: as they came.
    """

    __slots__ = ("rows",)

    def __init__(self, submissions: Iterable[Submission]) -> None:
        super().__init__(submissions)
        self.rows = [_ahead(submission) for submission in self]


class Staged(NamedTuple):
    """Content that was written ahead; the time tells it from one of this number elsewhere."""

    seq: int
    staged_ms: int


def refusal(error: Exception) -> InvalidMessage:
    """The error for the one submission at fault."""
    if isinstance(error, InvalidMessage):
        return error
    return InvalidMessage(f"the spool cannot hold this message: {error}", rule="unfit")


def known(connection: apsw.Connection, submission: Submission) -> str | IdempotencyConflict | None:
    """What its idempotency key says: the id of the same message, the error of another, or None."""
    if submission.idempotency is None:
        return None
    key, hash = submission.idempotency
    found = run(connection, "idempotency_get", {"key": key, "since_ms": submission.created_ms})
    if not found:
        return None
    if found[0][1] == hash:
        return str(found[0][0])
    return IdempotencyConflict(
        f"idempotency key {key!r} was used for a different message ({found[0][0]});"
        " use a new key for new content"
    )


def encode(
    path: str,
    connection: apsw.Connection,
    submission: Submission,
    now_ms: int,
    staged: list[Staged],
) -> Row | str | IdempotencyConflict:
    """The row of a submission; content of several chunks is staged on the way.

    Args:
        staged: gets what is staged here, for ``unstage``.

    Returns:
        Instead of a row, what ``known`` says of content that needs no staging therefore.

    Raises:
        InvalidMessage: or another of ``UNFIT``: this submission cannot be stored.
        SpoolError: staging failed; nothing refers to what was staged.
    """
    content = submission.content
    size = len(content)
    chunks = 1 if size <= CHUNK_BYTES else -(-size // CHUNK_BYTES)
    if not submission.recipients:
        raise InvalidMessage("the message has no recipient", rule="no-recipients")
    if chunks > MOST_CHUNKS:
        raise InvalidMessage(
            f"the message has {size} bytes; the spool takes at most {MOST_CHUNKS * CHUNK_BYTES}",
            rule="too-large",
        )
    if chunks == 1:
        own = digest(content)
        return _row(submission, None, 1, content, own, (own,))
    with spool_errors(path, "staging content"):
        # In the order of the trigger: what a key stands for was taken, whatever the limits are.
        earlier = known(connection, submission)
        if earlier is not None:
            return earlier
        too_large = streams.exceeded(connection, submission)
        if too_large is not None:
            raise too_large
        seq, digests = _stage(connection, content, now_ms, staged)
    return _row(submission, -seq, chunks, None, None, digests)


def _ahead(submission: Submission) -> Row | None:
    """The row of a submission that needs nothing of the spool; what is refused is refused later."""
    content = submission.content
    if len(content) > CHUNK_BYTES or not submission.recipients:
        return None
    try:
        own = digest(content)
        return _row(submission, None, 1, content, own, (own,))
    except UNFIT as error:
        if interrupts.raised(error):
            raise
        return None


def _row(
    submission: Submission,
    content: int | None,
    chunks: int,
    body: bytes | None,
    own: bytes | None,
    digests: Iterable[bytes],
) -> Row:
    (
        id, data, sender, recipients, subject, message_id, stream, priority, tags, metadata,
        created_ms, send_ms, expires_ms, doubt, tls, eight, utf8, idempotency, origin, client, ret,
        envid, notices, reports, priority_wire, required,
    ) = submission  # fmt: skip
    size, on_doubt = len(data), None if doubt is None else str(doubt)
    require_tls, eightbit, smtputf8 = int(tls or required), int(eight), int(utf8)
    requiretls = int(required)
    key, hash = idempotency or (None, None)
    whole = message_digest(
        id, sender, message_id, size, chunks, eightbit, smtputf8, require_tls, on_doubt, digests,
        int(reports), ret, envid, priority_wire, requiretls,
    )  # fmt: skip
    if notices:
        envelope = _noticed(submission)
    else:
        envelope = ",".join(
            [f"[{_text(a)},{_text(domain_of(a))},{checksum(id, sender, a)}]" for a in recipients]
        )
    # As ``Row(...)`` does it, in a third of the time.
    return _made(Row, (
        id, sender, subject, size, content, chunks, body, own, stream, priority, message_id,
        key, hash, _json(dict(metadata)) if metadata else "{}", _json(tags) if tags else "[]",
        on_doubt, require_tls, eightbit, smtputf8, created_ms, send_ms, expires_ms,
        f"[{envelope}]", whole, origin, None if client is None else _json(dict(client)), ret, envid,
        int(reports), len(notices), priority_wire, requiretls,
    ))  # fmt: skip


def _noticed(submission: Submission) -> str:
    """The rows of recipients of which something is said beside their addresses."""
    id, sender, notices = submission.id, submission.sender, submission.notices
    require_notices(submission.recipients, notices)
    rows = []
    for address, (notify, orcpt) in zip(submission.recipients, notices, strict=True):
        summed = checksum(id, sender, address, notify, orcpt)
        rows.append(_json([address, domain_of(address), summed, notify, orcpt]))
    return ",".join(rows)


def _stage(
    connection: apsw.Connection, content: bytes, now_ms: int, staged: list[Staged]
) -> tuple[int, list[bytes]]:
    """Write large content ahead in short transactions; returns its number and chunks' digests.

    A process killed half-way leaves pieces that belong to no message; they are purged after a day.
    They need no sync of their own: the one after the message row covers every earlier frame.
    """
    seq = int(run(connection, "stage_begin", {"now_ms": now_ms})[0][0])
    staged.append(Staged(seq, now_ms))
    digests: list[bytes] = []
    for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
        data = content[start : start + CHUNK_BYTES]
        digests.append(digest(data))
        run(
            connection,
            "stage_chunk",
            {"key": -seq * 4096 + number, "data": data, "digest": digests[-1]},
        )
    return seq, digests


def unstage(path: str, connection: apsw.Connection, staged: list[Staged]) -> None:
    """Delete what was staged and became of no message; what is done leaves the list.

    Where a message was made of it the trigger has deleted its row, and nothing is touched.

    Raises:
        SpoolError: the rest stays in the list.
    """
    with spool_errors(path, "deleting staged content"):
        while staged:
            values = {**staged[0]._asdict(), "most": UNSTAGED_CHUNKS}
            while len(run(connection, "unstage_content", values)) == UNSTAGED_CHUNKS:
                pass
            run(connection, "unstage", staged[0]._asdict())
            staged.pop(0)
