"""From whatever the caller hands in to what goes on the wire: ``compose`` and ``Prepared``.

Chooses the envelope (resent-aware, groups opened, duplicates collapsed), removes Bcc, Resent-Bcc
and Return-Path, adds Date, Message-ID and MIME-Version where they are missing, all at the top, and
touches nothing else: rendering belongs to ``header`` and ``body``, checking of bytes to ``plain``.
Rules: RFC 5322 section 3.6, RFC 6854, RFC 2045 section 4. The time comes in as an argument.

Past 400 lines: who sends, who receives and what is added hang together, and are told in one place.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mailstrom.errors import InvalidAddress, InvalidMessage
from mailstrom.message.address import Address, parse_address, parse_domain, plain_parts
from mailstrom.message.address_list import Entries, Mailbox, mailboxes, parse_address_list
from mailstrom.message.body import render_entity
from mailstrom.message.date import lenient_date, render_date
from mailstrom.message.encoded_word import decode_words
from mailstrom.message.grammar import message_ids
from mailstrom.message.header import Field
from mailstrom.message.leaf import CRLF
from mailstrom.message.mime import has_utf8_fields
from mailstrom.message.plain import Plain, read_plain, unfolded

if TYPE_CHECKING:
    from email.message import Message

_made = tuple.__new__
_One = Field | str
"""A field, or the value of one that was read from octets."""

SUBJECT_LIMIT = 998
_KEPT = 100  # characters of a value that is remembered with what it means

_REMOVED = frozenset({"bcc", "resent-bcc", "return-path"})
_ONCE = frozenset(
    {
        "date", "from", "sender", "reply-to", "to", "cc", "bcc", "message-id", "in-reply-to",
        "references", "subject", "mime-version", "content-type", "content-transfer-encoding",
    }
)  # fmt: skip
_OMITTED_IF_EMPTY = frozenset({"sender", "reply-to", "to", "cc"})
_TRACE = frozenset({"received", "return-path"})
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Prepared(NamedTuple):
    """A message ready for the spool; a tuple, since every message makes one.

    Args:
        content: the message as it goes on the wire: CRLF only, last line ended, not dot-stuffed.
        sender: envelope sender's key, ``""`` for the null sender.
        recipients: envelope recipients' keys, each once, in order of first sight.
        message_id: value of the Message-ID field, angle brackets included.
        subject: decoded, for display: at most 998 characters, controls replaced by spaces.
        eightbit: whether ``content`` holds an octet over 127 (needs 8BITMIME, RFC 6152).
        smtputf8: whether an address, a header or a part's header needs SMTPUTF8 (RFC 6531, 6532).
    """

    content: bytes
    sender: str
    recipients: tuple[str, ...]
    message_id: str
    subject: str
    eightbit: bool
    smtputf8: bool


def compose(
    message: Message[Any, Any] | bytes | bytearray | memoryview,
    *,
    sender: str | None = None,
    recipients: Iterable[str] | None = None,
    now: datetime,
    id_domain_fallback: str,
) -> Prepared:
    """Turn a message into wire octets and an envelope; the caller's object is only read.

    Args:
        message: an ``EmailMessage``, a legacy ``Message`` or a finished message as bytes.
        sender: envelope sender; ``""`` is the null sender; None takes Sender, else the only From.
            Several authors need a Sender header (RFC 5322 section 3.6.2), a group as author needs
            one or this argument (RFC 6854); bytes that come with a sender are not asked.
        recipients: envelope recipients; None takes To, Cc and Bcc, or those of the first resent
            block where there is one.
        now: aware time for a missing Date.
        id_domain_fallback: right side of a made Message-ID where neither sender nor From has one.

    Returns:
        The prepared message.

    Raises:
        InvalidMessage: nothing certain can be sent; ``.rule`` says why.
        InvalidAddress: an address that is needed is malformed.
        ValueError: ``now`` is naive.
    """
    if now.tzinfo is None:
        raise ValueError("compose(now=...) got a naive datetime; pass an aware one, e.g. in UTC")
    finished: Plain | None = None
    by_key: Mapping[str, _One]
    if isinstance(message, (bytes, bytearray, memoryview)):
        finished = read_plain(bytes(message))
        by_key, fields, body = finished.values, None, b""
        names = " ".join(by_key)
        if "from" not in by_key or "resent-" in names or not _REMOVED.isdisjoint(by_key):
            fields = finished.fields()
    else:
        fields, body = _rendered(message)
    block: Mapping[str, Field] = {}
    if fields is not None:
        by_key = {one.key: one for one in reversed(fields)}
        names = " ".join(by_key)
        if len(by_key) < len(fields) or "from" not in by_key:
            _check_counts(fields)
        block = _resent_block(fields)
        if sender is not None and finished is None:
            _check_authors(fields)
    envelope_sender = _sender(sender, by_key, block)
    keys, utf8 = _recipients(recipients, by_key, block)

    added: list[bytes] = []
    if "date" not in by_key:
        added.append(b"Date: " + _date(now) + CRLF)
    elif finished is not None:
        _check_date(by_key["date"])
    if "message-id" in by_key:
        message_id = _message_id(by_key["message-id"])
    else:
        domain = _id_domain(envelope_sender, by_key["from"], id_domain_fallback)
        message_id = f"<{_uuid4_hex()}.{int(now.timestamp() * 1000)}@{domain}>"
        added.append(f"Message-ID: {message_id}\r\n".encode("ascii"))
    typed = "content-" in names and any(key.startswith("content-") for key in by_key)
    if typed and "mime-version" not in by_key:
        added.append(b"MIME-Version: 1.0\r\n")

    if fields is None:  # nothing but what is added: it stays as it is, octet for octet
        assert finished is not None
        content = b"".join([*added, finished.content]) if added else finished.content
        body_at = len(content) - len(finished.content) + finished.body_at
    else:
        kept = [one.wire for one in fields if not _dropped(one)]
        if "resent-from" in block and "resent-date" not in block:
            first = block["resent-from"].wire
            kept.insert(kept.index(first), b"Resent-Date: " + _date(now) + CRLF)
        head = b"".join([*added, *kept, CRLF])
        if finished is not None:
            body = finished.content[finished.body_at :]
        content, body_at = head + body, len(head)
        if not content.endswith(CRLF):
            content += CRLF
    smtputf8 = utf8 or (envelope_sender is not None and envelope_sender.smtputf8)
    eightbit = not content.isascii()
    if eightbit and not smtputf8:
        smtputf8 = not content[:body_at].isascii()
        if not smtputf8 and finished is not None and "content-type" in by_key:
            # Objects have no such part: theirs are rendered in ASCII.
            smtputf8 = has_utf8_fields(unfolded(by_key["content-type"]), content[body_at:])
    key = "" if envelope_sender is None else envelope_sender.key
    subject = _subject(by_key.get("subject"))
    # As ``Prepared(...)`` does it, in a third of the time.
    return _made(Prepared, (content, key, keys, message_id, subject, eightbit, smtputf8))


def _rendered(message: object) -> tuple[tuple[Field, ...], bytes]:
    """Fields and body of a message object."""
    if isinstance(message, str):
        raise _refusal(
            "the message is a str, whose encoding is anybody's guess",
            "pass an EmailMessage, or bytes (text.encode('utf-8') if it has no other charset)",
            "message-type",
            value=message,
        )
    # Loaded only here: callers with ready bytes do not pay for the package.
    from email.message import Message

    if not isinstance(message, Message):
        raise _refusal(
            f"the message is a {type(message).__name__}",
            "pass an email.message.EmailMessage, a Message or bytes",
            "message-type",
            value=message,
        )
    entity = render_entity(message)
    return entity.fields, entity.body


def _dropped(one: Field) -> bool:
    if one.key in _REMOVED:
        return True
    return one.entries is not None and not one.entries and one.key in _OMITTED_IF_EMPTY


def _check_counts(fields: Sequence[Field]) -> None:
    counts = Counter(one.key for one in fields)
    senders = counts["from"]
    if senders != 1:
        raise _refusal(
            f"the message has {senders} From headers"
            if senders
            else "the message has no From header",
            "set exactly one (RFC 5322 section 3.6)",
            "from-duplicate" if senders else "from-missing",
            "From",
            [unfolded(one) for one in fields if one.key == "from"] or None,
        )
    for key, count in counts.items():
        if count > 1 and key in _ONCE:
            raise _refusal(
                f"the message has {count} {key.title()} headers",
                "keep one; several addresses go into one header, separated by commas",
                "duplicate-header",
                key.title(),
                [unfolded(one) for one in fields if one.key == key],
            )


def _resent_block(fields: Sequence[Field]) -> Mapping[str, Field]:
    """The newest resent block (RFC 5322 section 3.6.6): up to a repeated name or a trace field."""
    block: dict[str, Field] = {}
    for one in fields:
        if one.key.startswith("resent-"):
            if one.key in block:
                break
            block[one.key] = one
        elif block and one.key in _TRACE:
            break
    return block


def _check_authors(fields: Sequence[Field]) -> None:
    """Several authors need a Sender header, whatever the envelope says (RFC 5322 3.6.2)."""
    for one in fields:
        if one.key == "sender" and one.entries:
            return
    author = next(one for one in fields if one.key == "from")
    if len(author.entries or ()) > 1:
        raise _refusal(
            "From has several authors, and there is no Sender header",
            "set Sender to the one who sends",
            "sender-ambiguous",
            "From",
            _shown(author),
        )


def _is_date(text: str) -> bool:
    return lenient_date(text) is not None


# One sender writes many messages, and many within one second: short values come again and again.
_is_date_again = lru_cache(maxsize=64)(_is_date)
_entries_again = lru_cache(maxsize=256)(parse_address_list)


def _check_date(one: _One) -> None:
    text = unfolded(one)
    if not (_is_date_again if len(text) <= _KEPT else _is_date)(text):
        raise _refusal(
            f"the Date header is not a date of RFC 5322 section 3.3: {text[:60]!r}",
            "correct it, or leave it out (Mailstrom adds one)",
            "date-syntax",
            "Date",
            text,
        )


def _shown(one: _One | None) -> str | None:
    """A field's value for an error."""
    return None if one is None else unfolded(one)


def _entries(one: _One | None, key: str) -> Entries:
    if one is None:
        return ()
    if isinstance(one, Field) and one.entries is not None:
        return one.entries
    text = unfolded(one)
    parse = _entries_again if len(text) <= _KEPT else parse_address_list
    return parse(text, header=key.title())


def _sender(
    given: str | None, first: Mapping[str, _One], block: Mapping[str, _One]
) -> Address | None:
    if given is not None:
        return None if given == "" else _argument(given, "sender")
    prefix = "resent-" if block else ""
    where = block or first
    source, author = where.get(f"{prefix}sender"), where.get(f"{prefix}from")
    entries = _entries(source, f"{prefix}sender")
    if not entries:
        source, entries = None, _entries(author, f"{prefix}from")
    if len(entries) == 1 and isinstance(entries[0], Mailbox):
        return entries[0].address
    prefix = prefix.title()
    if source is not None:
        raise _refusal(
            f"the {prefix}Sender header is not one address",
            "keep one (RFC 5322 section 3.6.2), or pass sender=",
            "sender-ambiguous",
            f"{prefix}Sender",
            _shown(source),
        )
    if mailboxes(entries):
        raise _refusal(
            f"{prefix}From has several authors or a group, and there is no {prefix}Sender header",
            f"set {prefix}Sender to the one who sends",
            "sender-ambiguous",
            f"{prefix}From",
            _shown(author),
        )
    raise _refusal(
        f"the message has no sender in {prefix}From",
        f"set {prefix}From, or pass sender=",
        "no-sender",
        f"{prefix}From",
        _shown(author),
    )


def _recipients(
    given: Iterable[str] | None, first: Mapping[str, _One], block: Mapping[str, _One]
) -> tuple[tuple[str, ...], bool]:
    if given is None:
        names = ("resent-to", "resent-cc", "resent-bcc") if block else ("to", "cc", "bcc")
        found: list[str] = []
        for name in names:
            one = (block or first).get(name)
            if one is not None:
                found += _keys(one, name)
        keys = dict.fromkeys(found)
    else:
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise _refusal(
                f"recipients is a {type(given).__name__}",
                "pass a list of addresses: recipients=['a@example.com']",
                "recipients-type",
                "recipients",
                given,
            )
        keys = dict.fromkeys([_argument(one, "recipients").key for one in given])
    if not keys:
        raise _refusal(
            "the message has no recipients",
            "set To, Cc or Bcc, or pass recipients=",
            "no-recipients",
            "recipients",
        )
    return tuple(keys), not "".join(keys).isascii()


def _keys(one: _One, key: str) -> list[str]:
    """Keys of a field's addresses, in order."""
    plain = plain_parts(one) if isinstance(one, str) else None
    if plain is not None:
        return ["@".join(plain)]
    return [box.address.key for box in mailboxes(_entries(one, key))]


def _argument(text: str, name: str) -> Address:
    """An address argument: bare, or a display-name form that reads one way only."""
    if isinstance(text, str) and text.endswith(">"):
        found = parse_address_list(text, header=name) if text.isprintable() else ()
        if len(found) == 1 and isinstance(found[0], Mailbox):
            return found[0].address
    return parse_address(text, header=name)


def _id_domain(sender: Address | None, author: _One, fallback: str) -> str:
    if sender is not None:
        return sender.domain
    try:
        found = mailboxes(_entries(author, "from"))
    except InvalidMessage:
        found = ()
    if found:
        return found[0].address.domain
    try:
        return parse_domain(fallback, header="id_domain_fallback")
    except InvalidAddress:
        return "mailstrom.invalid"


def _message_id(one: _One) -> str:
    text = one.text if isinstance(one, Field) and one.text is not None else unfolded(one)
    found = message_ids(text, header="Message-ID")
    if found is None or len(found) != 1 or not found[0].isprintable():
        raise _refusal(
            f"the Message-ID header is not <left@right> in printable ASCII: {text[:60]!r}",
            "remove it (Mailstrom makes one) or write <unique@domain>",
            "message-id",
            "Message-ID",
            text,
        )
    return found[0]


def _subject(one: _One | None) -> str:
    if one is None:
        return ""
    text = None if isinstance(one, str) else one.text
    if text is None:
        text = decode_words(unfolded(one))
    return (text if text.isprintable() else _UNPRINTABLE.sub(" ", text))[:SUBJECT_LIMIT]


def _uuid4_hex() -> str:
    """Random UUID of RFC 9562 section 5.4 in hex; the uuid module costs its import."""
    octets = bytearray(os.urandom(16))
    octets[6] = octets[6] & 0x0F | 0x40
    octets[8] = octets[8] & 0x3F | 0x80
    return octets.hex()


def _date(now: datetime) -> bytes:
    """A date we add is in UTC: where the sender sits is nobody's business."""
    return _date_of(now.replace(microsecond=0))


@lru_cache(maxsize=16)
def _date_of(now: datetime) -> bytes:
    return render_date(now.astimezone(UTC)).encode("ascii")


def _refusal(
    what: str, fix: str, rule: str, header: str | None = None, value: object = None
) -> InvalidMessage:
    return InvalidMessage(f"{what}; {fix}", header=header, value=value, rule=rule)
