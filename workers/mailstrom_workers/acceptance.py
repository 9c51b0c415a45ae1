"""From what a client said and sent to what the spool stores.

The message itself is ``mailstrom.message.submission``'s; here its envelope and its options come
together. Pure but for a new id's chance.

Must not know: connections, the spool.
"""

from __future__ import annotations

from typing import NamedTuple

from mailstrom.client.identity import new_id
from mailstrom.errors import InvalidMessage
from mailstrom.message.address import parse_address
from mailstrom.message.submission import Trace, protocol, relayed, submitted
from mailstrom.storage.client import Submission

STREAM = "default"


class Client(NamedTuple):
    """Who hands a message in.

    Args:
        address: the client's.
        helo: what it called itself.
        extended: by EHLO.
        user: who logged in.
        tls: version and cipher, or "".
    """

    address: str
    helo: str
    extended: bool
    user: str | None
    tls: str


def address_key(text: str, hostname: str | None = None) -> str:
    """The key of an address of the envelope; "" stays the null sender.

    Args:
        hostname: what completes an address without a domain; None: it is refused.

    Raises:
        InvalidAddress: it is none.
    """
    if not text:
        return ""
    if hostname is not None and "@" not in text:
        text = f"{text}@{hostname}"
    return parse_address(text).key


def submission_of(
    content: bytes,
    client: Client,
    *,
    sender: str,
    recipients: tuple[str, ...],
    smtputf8: bool,
    role: str,
    hostname: str,
    now_ms: int,
) -> Submission:
    """A message ready to be stored.

    Args:
        content: as it came, dots unstuffed.
        sender: the envelope's, a key.
        recipients: keys, no duplicates.
        smtputf8: MAIL had the parameter.
        role: as in ``[listener] role``.
        hostname: our own.
        now_ms: when it came.

    Raises:
        InvalidMessage: it cannot be sent.
    """
    id = new_id(now_ms)
    trace = Trace(
        hostname=hostname,
        id=id,
        now_ms=now_ms,
        helo=client.helo,
        peer=client.address,
        protocol=protocol(
            extended=client.extended,
            tls=bool(client.tls),
            authenticated=client.user is not None,
            smtputf8=smtputf8,
        ),
        tls=client.tls,
    )
    if role == "relay":
        made = relayed(content, sender, recipients, trace, smtputf8=smtputf8)
    else:
        made = submitted(content, sender, recipients, trace, smtputf8=smtputf8)
    options = made.options
    due_ms = now_ms if options.send_ms is None else max(now_ms, options.send_ms)
    if options.expires_ms is not None and options.expires_ms <= due_ms:
        raise InvalidMessage(
            "X-Mailstrom-Expires-At lies before the message may be sent", rule="option"
        )
    return Submission(
        id=id,
        content=made.content,
        sender=sender,
        recipients=recipients,
        subject=made.subject,
        message_id=made.message_id,
        stream=options.stream or STREAM,
        priority=options.priority,
        tags=options.tags,
        metadata=options.metadata,
        created_ms=now_ms,
        send_ms=due_ms,
        expires_ms=options.expires_ms,
        on_doubt=options.on_doubt,
        require_tls=options.require_tls,
        eightbit=made.eightbit,
        smtputf8=made.smtputf8,
        idempotency=made.idempotency,
    )
