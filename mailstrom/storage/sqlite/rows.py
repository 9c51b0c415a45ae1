"""Values and rows: hosts, content digests, the checksum of a recipient, statuses, named tuples."""

from __future__ import annotations

import json
import zlib
from collections import namedtuple
from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from mailstrom.types import Host, MessageStatus, Reason, RecipientStatus, Status, from_ms

try:
    from _blake2 import blake2b  # the same function; hashlib loads OpenSSL first, for nothing here
except ImportError:  # an interpreter that keeps it elsewhere
    from hashlib import blake2b


def digest(data: bytes) -> bytes:
    """The digest kept beside each chunk of content (BLAKE2b, 16 bytes).

    A damaged file may show something else than bytes there, NULL even: that fits no digest.
    """
    if not isinstance(data, bytes):
        return b""
    return blake2b(data, digest_size=16).digest()


def checksum(
    id: str, sender: str, address: str, notify: str | None = None, orcpt: str | None = None
) -> int:
    """CRC-32 that ties an address to its message and sender, so that a damaged row is seen.

    Covers what is to be told about it, too, where anything was said.
    """
    text = f"{id}\0{sender}\0{address}"
    if notify is not None or orcpt is not None:
        text = f"{text}\0{notify}\0{orcpt}"
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def domain_of(address: str) -> str:
    """What the stored domain of an address must be."""
    return address.rpartition("@")[2]


SEALED = (
    "id", "sender", "message_id", "size", "chunks", "eightbit", "smtputf8", "reports", "ret",
    "envid", "priority_wire", "requiretls",
)  # fmt: skip
"""Columns of a message that its digest covers as they are, in the order of ``seals``."""


def message_digest(
    id: str,
    sender: str,
    message_id: str,
    size: int,
    chunks: int,
    eightbit: int,
    smtputf8: int,
    require_tls: int,
    on_doubt: str | None,
    digests: Iterable[bytes],
    reports: int = 0,
    ret: str | None = None,
    envid: str | None = None,
    priority_wire: int | None = None,
    requiretls: int = 0,
) -> bytes:
    """What ties a message's content to its envelope and flags (BLAKE2b, 16 bytes).

    Args:
        require_tls: 0 or 1, as the client asked; the stream may have raised it in the row.
        on_doubt: as the client asked; where it is None the row may have the stream's.
        digests: of the chunks of content, in order.
        reports, ret, envid, priority_wire, requiretls: left out where all have their defaults, as
            of messages that were stored before there were such columns.
    """
    flags = f"{size} {chunks} {eightbit}{smtputf8}{require_tls} {on_doubt}"
    if reports or ret is not None or envid is not None or priority_wire is not None:
        flags = f"{flags} {reports} {ret} {priority_wire} {envid}"
    if requiretls:
        flags = f"{flags} requiretls"
    head = f"{id}\0{sender}\0{message_id}\0{flags}\0"
    return digest(head.encode("utf-8", "surrogatepass") + b"".join(digests))


def fits(kept: bytes | None, *, require_tls: int, on_doubt: str | None, **facts: Any) -> bool:
    """Whether a message's digest is that of its row and content; one without a digest fits.

    Args:
        kept: the digest in the row.
        require_tls, on_doubt: as in the row: what was asked, or what the stream made of it.
        facts: the other arguments of ``message_digest``.
    """
    if kept is None:
        return True
    if not all(isinstance(facts[name], str) for name in ("id", "sender", "message_id")):
        return False  # damaged: no digest was made over what is no text
    facts["digests"] = tuple(facts["digests"])
    return any(
        message_digest(require_tls=tls, on_doubt=doubt, **facts) == kept
        for tls in ((1, 0) if require_tls else (0,))
        for doubt in ((on_doubt,) if on_doubt is None else (on_doubt, None))
    )


def seal_fits(row: Sequence[Any]) -> bool:
    """Whether a row of the statement ``seals`` fits: the message's own digest, and all its chunks.

    Args:
        row: digest, ``require_tls``, ``on_doubt``, the columns ``SEALED``, and the digests of the
            content's chunks in hex, one after another; None where there is no chunk.
    """
    kept, require_tls, on_doubt, *values, digests = row
    facts = dict(zip(SEALED, values, strict=True))
    content = bytes.fromhex(digests or "")
    pieces = tuple(content[at : at + 16] for at in range(0, len(content), 16))
    if len(pieces) != facts["chunks"]:
        return False
    return fits(kept, require_tls=require_tls, on_doubt=on_doubt, digests=pieces, **facts)


def encode_hosts(hosts: tuple[Host, ...]) -> str:
    """Hosts as the JSON that tables and views hold: ``[[preference, name, port], ...]``."""
    return json.dumps([[host.preference, host.name, host.port] for host in hosts])


def readable(text: bytes | None) -> str | None:
    """A text that was read as bytes; what damage made no text is replaced."""
    return None if text is None else text.decode("utf-8", "replace")


def decode_hosts(text: bytes | None) -> tuple[Host, ...] | None:
    """Hosts from the JSON of ``encode_hosts``; None where damage made it something else."""
    try:
        found = json.loads("" if text is None else text.decode())
        hosts = tuple(Host(preference=p, name=n, port=port) for p, n, port in found)
    except (ValueError, TypeError):
        return None
    whole = all(
        type(host.preference) is int and type(host.name) is str and type(host.port) in _PORT
        for host in hosts
    )
    return hosts if whole else None


_PORT = (int, type(None))


def decode_statuses(messages: Sequence[Any], recipients: Sequence[Any]) -> dict[str, MessageStatus]:
    """Statuses by id, from rows of ``status_messages`` and ``status_recipients``."""
    by_message: dict[str, dict[str, RecipientStatus]] = {row[0]: {} for row in messages}
    for row in recipients:
        by_message[row[0]][row[1]] = RecipientStatus(
            address=row[1],
            status=Status(row[2]),
            reason=None if row[3] is None else Reason(row[3]),
            attempts=row[4],
            next_attempt_at=from_ms(row[5]),
            last_attempt_at=from_ms(row[6]),
            mx=row[7],
            reply_code=row[8],
            enhanced_code=row[9],
            reply_text=row[10],
            tls=row[11],
            in_doubt=bool(row[12]),
        )
    found = {}
    for row in messages:
        created, send, expires = from_ms(row[5]), from_ms(row[6]), from_ms(row[7])
        assert created is not None
        assert send is not None
        assert expires is not None
        found[row[0]] = MessageStatus(
            id=row[0],
            status=Status(row[1]),
            sender=row[2],
            subject=row[3],
            size=row[4],
            created_at=created,
            send_at=send,
            expires_at=expires,
            finished_at=from_ms(row[8]),
            tags=tuple(json.loads(row[9])),
            metadata=json.loads(row[10]),
            recipients=by_message[row[0]],
        )
    return found


def named_rows(cursor: apsw.Cursor) -> list[tuple[object, ...]]:
    """All rows as named tuples; a column without a usable name becomes ``_0``, ``_1``, ..."""
    rows: list[tuple[object, ...]] = []
    make: Any = None
    for row in cursor:
        if make is None:
            columns = [column[0] for column in cursor.get_description()]
            make = getattr(namedtuple("Row", columns, rename=True), "_make")  # noqa: B009
        rows.append(make(row))
    return rows
