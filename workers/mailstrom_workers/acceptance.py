"""From what a client said and sent to what the spool stores.

The message itself is ``mailstrom.message.submission``'s; here its envelope and its options come
together. Pure but for a new id's chance.

Must not know: connections, the spool.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from mailstrom.client.identity import new_id
from mailstrom.message.address import parse_address
from mailstrom.message.submission import Trace, protocol, relayed, submitted
from mailstrom.smtp.server_events import MailFrom, RcptTo
from mailstrom.storage.client import Notice, Submission
from mailstrom.types import PRIORITY_RANK, Priority

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


@lru_cache(maxsize=4096)  # asked at RCPT and at the end, and a client has few senders
def address_key(text: str, hostname: str) -> str:
    """The key of an address of the envelope; "" stays the null sender.

    Args:
        text: the address; whether one without a domain may come is the dialogue's to say.
        hostname: what completes it then.

    Raises:
        InvalidAddress: it is none.
    """
    if not text:
        return ""
    if "@" not in text or text.endswith('"'):  # no domain ends so, a quoted local part does
        text = f"{text}@{hostname}"
    return parse_address(text).key


def submission_of(
    content: bytes,
    client: Client,
    mail: MailFrom,
    recipients: Sequence[RcptTo],
    *,
    role: str,
    hostname: str,
    now_ms: int,
) -> Submission:
    """A message ready to be stored.

    Args:
        content: as it came, dots unstuffed.
        mail, recipients: the envelope, whose addresses were seen to be some; who is named twice
            gets it once.
        role: as in ``[listener] role``.
        hostname: our own, and that of an address without a domain.
        now_ms: when it came.

    Raises:
        InvalidMessage: it cannot be sent.
    """
    id = new_id(now_ms)
    sender = address_key(mail.address, hostname)
    named: dict[str, RcptTo] = {}
    for one in recipients:
        named.setdefault(address_key(one.address, hostname), one)
    keys = tuple(named)
    asked = any(one.notify is not None or one.orcpt is not None for one in named.values())
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
            smtputf8=mail.smtputf8,
        ),
        tls=client.tls,
    )
    held_ms = _held_ms(mail, now_ms)
    if role == "relay":
        made = relayed(content, sender, keys, trace, smtputf8=mail.smtputf8)
    else:
        made = submitted(content, sender, keys, trace, smtputf8=mail.smtputf8, send_ms=held_ms)
    options = made.options
    told = {"address": client.address, "helo": client.helo, "user": client.user, "tls": client.tls}
    wire = mail.mt_priority
    return Submission(
        id=id,
        content=made.content,
        sender=sender,
        recipients=keys,
        subject=made.subject,
        message_id=made.message_id,
        stream=options.stream or STREAM,
        priority=_rank(wire) if options.priority is None else options.priority,
        tags=options.tags,
        metadata=options.metadata,
        created_ms=now_ms,
        send_ms=max(now_ms, options.send_ms or 0, held_ms or 0),
        expires_ms=options.expires_ms,
        on_doubt=options.on_doubt,
        require_tls=options.require_tls or mail.requiretls,
        eightbit=made.eightbit,
        smtputf8=made.smtputf8,
        idempotency=made.idempotency,
        origin="smtp",
        client={name: value for name, value in told.items() if value},
        ret=mail.ret,
        envid=mail.envid,
        notices=tuple(Notice(one.notify, one.orcpt) for one in named.values()) if asked else (),
        reports=True,
        priority_wire=wire,
        requiretls=mail.requiretls,
    )


def _held_ms(mail: MailFrom, now_ms: int) -> int | None:
    """Until when the client wants it held (RFC 4865)."""
    if mail.hold_for is not None:
        return now_ms + mail.hold_for * 1000
    return mail.hold_until_ms


def _rank(mt_priority: int | None) -> int | None:
    """The order of claims for a priority of RFC 6710; 0 leaves it to the stream."""
    if not mt_priority:
        return None
    return PRIORITY_RANK[Priority.HIGH if mt_priority > 0 else Priority.LOW]
