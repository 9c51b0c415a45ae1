"""From a ``Submission`` to the one row that the enqueue view takes; long content goes ahead.

What no column can hold is refused here, so that it fails alone and not the commit it shares.
"""

from __future__ import annotations

import json
from typing import Any

import apsw

from mailstrom.errors import InvalidMessage
from mailstrom.storage.client import CHUNK_BYTES, Submission
from mailstrom.storage.sqlite.connection import spool_errors
from mailstrom.storage.sqlite.rows import checksum, digest
from mailstrom.storage.sqlite.sql import run

MOST_CHUNKS = 4096
UNFIT = (InvalidMessage, ValueError, TypeError, OverflowError)
"""What a submission raises that no column can hold."""


def refusal(error: Exception) -> InvalidMessage:
    """The error for the one submission at fault."""
    if isinstance(error, InvalidMessage):
        return error
    return InvalidMessage(f"the spool cannot hold this message: {error}", rule="unfit")


def encode(
    path: str, connection: apsw.Connection, submission: Submission, now_ms: int
) -> dict[str, Any]:
    """Bindings of the statement ``enqueue``; content of several chunks is staged on the way.

    Raises:
        InvalidMessage: or another of ``UNFIT``: this submission cannot be stored.
        SpoolError: staging failed; nothing refers to what was staged.
    """
    content = submission.content
    if not submission.recipients:
        raise InvalidMessage("the message has no recipient", rule="no-recipients")
    chunks = max(1, -(-len(content) // CHUNK_BYTES))
    if chunks > MOST_CHUNKS:
        raise InvalidMessage(
            f"the message has {len(content)} bytes; the spool takes at most"
            f" {MOST_CHUNKS * CHUNK_BYTES}",
            rule="too-large",
        )
    key, hash = submission.idempotency or (None, None)
    values: dict[str, Any] = {
        "id": submission.id,
        "sender": submission.sender,
        "subject": submission.subject,
        "size": len(content),
        "chunks": chunks,
        "stream": submission.stream,
        "priority": submission.priority,
        "message_id": submission.message_id,
        "idempotency_key": key,
        "idempotency_hash": hash,
        "metadata": json.dumps(dict(submission.metadata), ensure_ascii=False),
        "tags": json.dumps(submission.tags, ensure_ascii=False),
        "on_doubt": None if submission.on_doubt is None else str(submission.on_doubt),
        "require_tls": int(submission.require_tls),
        "eightbit": int(submission.eightbit),
        "smtputf8": int(submission.smtputf8),
        "created_ms": submission.created_ms,
        "send_ms": submission.send_ms,
        "expires_ms": submission.expires_ms,
        "recipients": json.dumps(
            [
                [a, a.rpartition("@")[2], checksum(submission.id, submission.sender, a)]
                for a in submission.recipients
            ],
            ensure_ascii=False,
        ),
    }
    if chunks == 1:
        return {**values, "content": None, "body": content, "digest": digest(content)}
    staged = _stage(path, connection, content, now_ms)
    return {**values, "content": staged, "body": None, "digest": None}


def _stage(path: str, connection: apsw.Connection, content: bytes, now_ms: int) -> int:
    """Write large content ahead in short transactions; returns its (negative) content id.

    Cut off half-way, the pieces belong to no message and are purged after a day. They need no
    sync of their own: the one after the message row covers every earlier frame.
    """
    with spool_errors(path, "staging content"):
        seq = run(connection, "stage_begin", {"now_ms": now_ms})[0][0]
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
            data = content[start : start + CHUNK_BYTES]
            run(
                connection,
                "stage_chunk",
                {"key": -seq * 4096 + number, "data": data, "digest": digest(data)},
            )
    return -int(seq)
