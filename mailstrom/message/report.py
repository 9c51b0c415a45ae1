"""Delivery reports: what became of a message, as a message to its sender (RFC 3464, 6522, 6533).

``render_report`` turns facts into a finished ``multipart/report``: a text for a person
(``report_text``), the same for programs (``report_status``) and what is returned of the original
(``report_return``). The facts are hostile: remote servers chose the replies, senders the header,
the envelope id and the original recipients. Each of them ends up inside one field, one line or one
part and can begin no other; the boundary is one that occurs nowhere in the parts. The same facts
give the same Message-ID, whoever renders them, however often.

A report is ASCII alone, whatever the original was, unless the sender's own address needs SMTPUTF8:
else it could be lost at a host that takes less than those before it. Pure: knows no clock, no
spool and no configuration, and is called while others wait for a lock.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from mailstrom.message.address import parse_address
from mailstrom.message.address_list import Mailbox
from mailstrom.message.date import render_date
from mailstrom.message.encoded_word import decode_words, encode_words
from mailstrom.message.header import fold, render_entries, render_field
from mailstrom.message.leaf import CRLF, quoted_printable
from mailstrom.message.report_facts import ACTIONS, Fate, Original, Part, end_of_header, part
from mailstrom.message.report_return import returned
from mailstrom.message.report_status import delivery_status
from mailstrom.message.report_text import report_text
from mailstrom.printable import printable

MOST_SUBJECT = 200
"""Characters of the original's subject that are repeated."""

MINUTE_MS = 60_000
_SUBJECTS = {
    "failed": "Undelivered mail",
    "delayed": "Delayed mail (still being tried)",
    "relayed": "Delivered to the next server",
    "delivered": "Delivered",
}
_MOST_ID = 900
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]++"
_MESSAGE_ID = re.compile(
    rf"<{_ATEXT}(?:\.{_ATEXT})*+@(?:{_ATEXT}(?:\.{_ATEXT})*+|\[[!-Z^-~]*+\])>"
).fullmatch  # RFC 5322 section 3.6.4, without what it calls obsolete
_SUBJECT = re.compile(rb"^subject:((?:[^\r\n]|\r\n[ \t])*+)", re.IGNORECASE | re.MULTILINE)


class Report(NamedTuple):
    """A finished report.

    Args:
        content: the octets for the wire.
        message_id: its own Message-ID.
        subject: decoded.
        eightbit: it needs 8BITMIME; only where it needs SMTPUTF8, too.
        smtputf8: it needs SMTPUTF8.
    """

    content: bytes
    message_id: str
    subject: str
    eightbit: bool
    smtputf8: bool


def render_report(
    original: Original, fates: Sequence[Fate], *, hostname: str, author: str, now_ms: int
) -> Report:
    """Report on some recipients of a message, at least one.

    Args:
        original: the message.
        fates: what became of the recipients; those of one action belong into one report.
        hostname: who reports.
        author: address of the From field.
        now_ms: its Date, UTC.

    Returns:
        The report; to be sent from the null sender to ``original.sender`` (RFC 5321 section 4.5.5).

    Raises:
        InvalidAddress: the sender or the author is no address.
        ValueError: there are no fates, or an action is none.
    """
    if not fates:
        raise ValueError("a report tells of one recipient at least")
    present = {fate.action for fate in fates}
    action = next((one for one in ACTIONS if one in present), None)
    if action is None or not present <= set(ACTIONS):
        raise ValueError(f"no action of RFC 3464 section 2.3.3: {sorted(present)}")
    recipient = Mailbox(name="", address=parse_address(original.sender, header="To"))
    writer = Mailbox(name="Mail Delivery System", address=parse_address(author, header="From"))
    utf8 = recipient.address.smtputf8 or writer.address.smtputf8

    told = "" if original.redacted else _subject_of(original.content)
    text = report_text(original, fates, subject=told, hostname=hostname)
    status = delivery_status(original, fates, hostname=hostname, utf8=utf8)
    parts = [_text_part(text), status]
    third = returned(original, failed=action == "failed", utf8=utf8)
    if third is not None:
        parts.append(third)

    digest = _digest(original, fates, action, now_ms)
    message_id = f"<{action}.{digest[:16]}.{_local(original.id)}@{hostname}>"
    subject = _SUBJECTS[action] + (f": {told}" if told else "")
    boundary = _boundary(digest, parts)
    seven = all(one.body.isascii() for one in parts)
    head = [
        b"Date: " + render_date(datetime.fromtimestamp(now_ms / 1000, UTC)).encode() + CRLF,
        render_entries("From", (writer,)).wire,
        render_entries("To", (recipient,)).wire,
        _subject_field(subject),
        fold("Message-ID", [message_id]),
        *_references(original),
        b"Auto-Submitted: auto-replied\r\n",
        b"MIME-Version: 1.0\r\n",
        fold(
            "Content-Type",
            [
                "multipart/report;",
                f" report-type={status.kind.removeprefix('message/')};",
                f' boundary="{boundary}"',
            ],
        ),
        # Without it the whole would be said to be 7-bit (RFC 2045 section 6.1).
        *([] if seven else [b"Content-Transfer-Encoding: 8bit\r\n"]),
        CRLF,
    ]
    body: list[bytes] = [b"This is a report on the delivery of a message, in MIME format.\r\n"]
    delimiter = b"\r\n--" + boundary.encode()
    for one in parts:
        body += (delimiter, CRLF, one.head, CRLF, one.body)
    body += (delimiter, b"--\r\n")
    content = b"".join([*head, *body])
    return Report(content, message_id, subject, not content.isascii(), utf8)


def _text_part(text: str) -> Part:
    octets = text.encode("utf-8", "backslashreplace")
    if octets.isascii():
        return part("text/plain; charset=us-ascii", "Notification", "7bit", octets)
    encoded = quoted_printable(octets)
    return part("text/plain; charset=utf-8", "Notification", "quoted-printable", encoded)


def _subject_of(content: bytes) -> str:
    """The original's subject as a person reads it, on one line."""
    found = _SUBJECT.search(content, 0, end_of_header(content))
    if found is None:
        return ""
    value = found[1].replace(CRLF, b"").decode("utf-8", "replace").strip(" \t")
    # Cut first: decoding and escaping take their time, and the field may be long.
    return printable(decode_words(value[: 4 * MOST_SUBJECT]).strip(), MOST_SUBJECT)


def _subject_field(subject: str) -> bytes:
    """Subject, any reader of which sees these characters and no others."""
    if "=?" not in subject:
        return render_field("Subject", subject).wire
    words = encode_words(subject, first=60)
    return fold("Subject", [words[0], *(" " + word for word in words[1:])])


def _references(original: Original) -> list[bytes]:
    """In-Reply-To and References, where the original's Message-ID is one by the letter."""
    id = original.message_id
    if _MESSAGE_ID(id) is None or len(id) > _MOST_ID:
        return []
    return [fold("In-Reply-To", [id]), fold("References", [id])]


def _digest(original: Original, fates: Sequence[Fate], action: str, now_ms: int) -> str:
    """Of what the report is about: message, action, and whom it tells of as of when.

    The second delay of a message whose host is down comes without another try.
    """
    told = sorted((fate.address, fate.action, fate.tried_ms or 0) for fate in fates)
    if action == "delayed":
        told.append(("", action, (now_ms - original.arrived_ms) // MINUTE_MS))
    return hashlib.sha256(repr((original.id, action, told)).encode()).hexdigest()


def _local(id: str) -> str:
    """An id as a piece of a Message-ID's left side; ours are as they are."""
    return re.sub(r"[^A-Za-z0-9-]", "", id)[:64] or "message"


def _boundary(digest: str, parts: Sequence[Part]) -> str:
    """A boundary that occurs in no part: theirs may have been made to hold one (RFC 2046 5.1.1)."""
    number = 0
    while True:
        # "=_" occurs in no quoted-printable and no base64.
        boundary = f"=_{hashlib.sha256(f'{digest}.{number}'.encode()).hexdigest()[:32]}"
        octets = boundary.encode()
        if not any(octets in part.head or octets in part.body for part in parts):
            return boundary
        number += 1
