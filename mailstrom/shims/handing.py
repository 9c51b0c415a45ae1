"""A message from this machine to the spool: addresses, submission, one durable row.

What -t and the command line name is read by the one address reader of the house, local parts alone
completed before; the message itself is made by ``mailstrom.message.submission``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from mailstrom.client.identity import new_id
from mailstrom.clock import wall_ms
from mailstrom.message.address_list import mailboxes, parse_address_list
from mailstrom.message.head import HEAD_LIMIT, behind_mailbox_line, too_large
from mailstrom.message.mending import FIELD, qualified
from mailstrom.message.submission import Trace, relayed, submitted
from mailstrom.shims.place import Place
from mailstrom.shims.sysexits import DATA, USAGE, Refusal
from mailstrom.storage.client import ClientStore, Notice, Submission

LARGEST = 256 * 1024 * 1024
"""Octets of a message."""
STREAM = "default"

_PLAIN = ("to", "cc", "bcc")
_RESENT = ("resent-to", "resent-cc", "resent-bcc")
_TRACE = ("received", "return-path")


def addresses(text: str | bytes, origin: str, header: str) -> list[str]:
    """Keys of an address list; a local part alone is one at ``origin``.

    Raises:
        InvalidAddress: it reads more than one way, or not at all.
    """
    octets = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    whole = qualified(octets, origin.encode("ascii")).replace(b"\r\n", b"")
    entries = parse_address_list(whole.decode("utf-8", "surrogateescape"), header=header)
    return [box.address.key for box in mailboxes(entries)]


def sender_of(text: str, origin: str) -> str:
    """Key of an envelope sender; "" for the null sender.

    Raises:
        InvalidAddress: it is none.
        Refusal: it is not one.
    """
    if text.strip() in ("", "<>"):
        return ""
    found = addresses(text, origin, "sender")
    if len(found) != 1:
        raise Refusal(USAGE, f"the sender {text[:80]!r} is not one address")
    return found[0]


def named_in(content: bytes, origin: str) -> list[str]:
    """Recipients that a header names: To, Cc and Bcc, or those of the newest resent block.

    Args:
        content: in CRLF lines.
        origin: completes local parts.

    Raises:
        InvalidAddress: a list cannot be read with certainty.
        InvalidMessage: the header is too large.
    """
    plain: list[tuple[str, bytes]] = []
    block: dict[str, bytes] = {}
    open_ = True
    for match in _fields(content):
        key = match[1].decode("ascii").lower()
        if key in _PLAIN:
            plain.append((key, match[2]))
        elif key.startswith("resent-") and open_:
            open_ = key not in block
            if open_:
                block[key] = match[2]
        elif block and key in _TRACE:
            open_ = False
    chosen = [(key, block[key]) for key in _RESENT if key in block] if block else plain
    return [key for name, value in chosen for key in addresses(value, origin, name.title())]


def without_blind(content: bytes) -> bytes:
    """The same without Bcc and Resent-Bcc, which never leave."""
    at, pieces = 0, []
    for match in _fields(content):
        if match[1].lower() in (b"bcc", b"resent-bcc"):
            pieces.append(content[at : match.start()])
            at = match.end()
    return b"".join([*pieces, content[at:]]) if at else content


def _fields(content: bytes) -> Iterator[re.Match[bytes]]:
    at = behind_mailbox_line(content)
    most = at + HEAD_LIMIT
    while (match := FIELD.match(content, at)) is not None:
        at = match.end()
        if at > most:  # refused in the end: it is not read for addresses first
            raise too_large()
        yield match


def stored(
    store: ClientStore,
    content: bytes,
    sender: str,
    recipients: Sequence[str],
    place: Place,
    client: Mapping[str, object],
    *,
    name: str = "",
    relay: bool = False,
    protocol: str = "local",
    helo: str = "",
    smtputf8: bool = False,
    notices: Sequence[Notice] = (),
    ret: str | None = None,
    envid: str | None = None,
) -> str:
    """Hand a message over; when this returns, it is durable.

    Args:
        content: in CRLF lines.
        client: who calls, for people who look at the message later.
        name: for a From that is added.
        relay: touch no header but Bcc.
        protocol, helo: for Received.

    Returns:
        Its id.

    Raises:
        InvalidMessage: it cannot be sent.
        MailstromError: it was not stored, or nobody knows.
    """
    if not recipients:
        raise Refusal(DATA, "the message has no recipient")
    now = wall_ms()
    trace = Trace(place.hostname, new_id(now), now, helo, "", protocol)
    if relay:
        made = relayed(without_blind(content), sender, recipients, trace, smtputf8=smtputf8)
    else:
        made = submitted(
            content,
            sender,
            recipients,
            trace,
            smtputf8=smtputf8,
            domain=place.origin,
            name=name,
        )
    options = made.options
    submission = Submission(
        id=trace.id,
        content=made.content,
        sender=sender,
        recipients=tuple(recipients),
        subject=made.subject,
        message_id=made.message_id,
        stream=options.stream or STREAM,
        priority=options.priority,
        tags=options.tags,
        metadata=options.metadata,
        created_ms=now,
        send_ms=options.send_ms or now,
        expires_ms=options.expires_ms,
        on_doubt=options.on_doubt,
        require_tls=options.require_tls,
        eightbit=made.eightbit,
        smtputf8=made.smtputf8,
        idempotency=made.idempotency,
        origin="sendmail",
        client=client,
        ret=ret,
        envid=envid,
        notices=tuple(notices),
        reports=sender != "",
    )
    (result,) = store.enqueue([submission], now)
    if isinstance(result, Exception):
        raise result
    return result
