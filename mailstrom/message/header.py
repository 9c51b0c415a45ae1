"""Header fields: whatever an ``email`` object holds becomes one safe, folded field.

The standard library's serialiser is never asked: its refold loses recipients and moves
encoded-words into addresses. Each field has a kind (one table) that says how it is rendered. A
value is either *wire text* (a ``str`` or ``Header``: encoded-words still encoded, legal folding
allowed) or *decoded text* (a ``headerregistry`` object: what a person reads, so ``=?`` in it is
literal). Lines fold at 78 where there is white space and never exceed 998 octets (RFC 5322
sections 2.1.1 and 2.2.3); continuation lines are never blank. Knows nothing of envelopes or bodies.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple

from mailstrom.errors import InvalidMessage
from mailstrom.message.address_list import Entries, Group, Mailbox
from mailstrom.message.date import FIRST_YEAR, lenient_date, render_date, strict_date
from mailstrom.message.encoded_word import decode_words, encode_words
from mailstrom.message.grammar import (
    CONTROL,
    LINE_BREAK,
    TEXT_LIMIT,
    longer_than,
    message_ids,
    quote,
    refusal,
)
from mailstrom.message.header_value import (
    SURROGATE,
    check_name,
    entries_of,
    is_decoded,
    refusal_undecodable,
    wire_text,
)
from mailstrom.message.parameters import (
    Parameterised,
    parse_parameterised,
    render_parameterised,
)

FOLD_AT = 78
LINE_LIMIT = 998
_WORD_LIMIT = 70  # a word or quoted name up to here leaves room for a header's name on its line
_TOKEN_LIMIT = 900  # a longer run without white space cannot be folded and is encoded instead


class Kind(Enum):
    """How a field's value is read and rendered."""

    ADDRESSES = "addresses"
    TEXT = "text"
    STRUCTURED = "structured"
    DATE = "date"
    PARAMETERS = "parameters"


_KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "from", "sender", "reply-to", "to", "cc", "bcc",
            "resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc",
            "disposition-notification-to", "return-receipt-to", "mail-followup-to",
        ),
        Kind.ADDRESSES,
    ),
    **dict.fromkeys(
        (
            "message-id", "in-reply-to", "references", "resent-message-id",
            "received", "return-path", "mime-version", "content-transfer-encoding", "content-id",
            "content-location", "content-language", "content-base", "content-md5", "auto-submitted",
            "dkim-signature", "domainkey-signature", "authentication-results", "autocrypt",
            "original-recipient", "final-recipient", "precedence", "importance",
        ),
        Kind.STRUCTURED,
    ),
    **dict.fromkeys(("date", "resent-date"), Kind.DATE),
    **dict.fromkeys(("content-type", "content-disposition"), Kind.PARAMETERS),
}  # fmt: skip
# Written one after another without comments; what else stands in them (4.5.4) stays as it is.
_IDENTIFIERS = frozenset(
    {"message-id", "in-reply-to", "references", "resent-message-id", "content-id"}
)
_STRUCTURED_PREFIXES = ("list-", "arc-", "received-")

_ATOMS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+)*"
).fullmatch
_WORDS = re.compile(r"[ \t]*[^ \t]+")


class Field(NamedTuple):
    """One header field, ready for the wire; a tuple, since every message makes several.

    Args:
        key: lower-case name.
        wire: the whole field with its final CRLF.
        entries: parsed mailboxes where they were needed for rendering.
        text: decoded value for display where it was at hand.
    """

    key: str
    wire: bytes
    entries: Entries | None = None
    text: str | None = None


def kind_of(key: str) -> Kind:
    """Kind of a field by its lower-case name; unknown fields are unstructured (RFC 5322 3.6.8)."""
    kind = _KINDS.get(key)
    if kind is not None:
        return kind
    return Kind.STRUCTURED if key.startswith(_STRUCTURED_PREFIXES) else Kind.TEXT


def render_field(name: str, value: object) -> Field:
    """Render one field of a message object.

    Args:
        name: field name as the caller wrote it.
        value: raw value as ``Message.raw_items()`` gives it.

    Returns:
        The field; ASCII only, except an address whose local part needs SMTPUTF8.

    Raises:
        InvalidMessage: by a named rule, where the value cannot be rendered with certainty.
    """
    key = check_name(name)
    kind = kind_of(key)
    if kind is Kind.DATE:
        return _render_date(name, key, value)
    text = wire_text(name, value)
    if kind is Kind.ADDRESSES:
        return render_entries(name, entries_of(name, value, text))
    if kind is Kind.PARAMETERS:
        return render_parameters(name, parse_parameterised(text, header=name))
    if kind is Kind.STRUCTURED:
        return _render_structured(name, key, text)
    return _render_text(name, key, text, decoded=is_decoded(value))


def render_verbatim(name: str, value: object, *, signed: bool) -> Field:
    """Render a field of a nested message or signed part: somebody's exact octets, copied.

    Args:
        name: field name.
        value: raw value as ``Message.raw_items()`` gives it.
        signed: whether a signature covers the field, so that rewriting it is out of the question.

    Returns:
        The field; its own folding kept where it is legal. What cannot be copied is rendered anew.

    Raises:
        InvalidMessage: rule ``"signed-part-would-change"`` or a rule about the value itself.
    """
    key = check_name(name)
    wire_text(name, value)  # refuses smuggled line breaks
    text = str(value)
    lines = re.split(r"\r?\n", f"{name}: {text}")
    certain = (
        isinstance(value, str)
        and (signed or not is_decoded(value))
        and text.isascii()
        and not CONTROL.search(text.replace("\r", "").replace("\n", ""))
        # The library that signed an object folds at 78: up to there it writes what we write.
        and max(map(len, lines)) <= (FOLD_AT if signed else LINE_LIMIT)
    )
    if certain:
        return Field(key=key, wire="\r\n".join(lines).encode("ascii") + b"\r\n")
    if signed:
        raise refusal(
            name,
            "belongs to a signed part and would have to be rewritten",
            "pass the finished message as bytes",
            value,
            "signed-part-would-change",
        )
    return render_field(name, value)


def render_parameters(name: str, value: Parameterised) -> Field:
    """Render a value with parameters, folded between parameters."""
    pieces = render_parameterised(value, header=name)
    # No encoded-word is a type or a disposition (RFC 2047 section 5), and some readers decode it.
    if not pieces[0].isascii() or CONTROL.search(pieces[0]) or "=?" in pieces[0]:
        raise refusal(
            name, "is not ASCII", "write for example 'text/plain'", value.value, "parameter"
        )
    return Field(key=name.lower(), wire=fold(name, [pieces[0], *(" " + p for p in pieces[1:])]))


def render_entries(name: str, entries: Entries) -> Field:
    """Render an address field from its mailboxes and groups; each mailbox whole on a line."""
    pieces: list[str] = []
    for entry in entries:
        if isinstance(entry, Group):
            phrase = _phrase(name, entry.name)
            members = [_mailbox(name, member) for member in entry.members]
            phrase[-1] += ":"
            pieces.extend(phrase)
            for number, member in enumerate(members, 1):
                member[-1] += "," if number < len(members) else ""
                pieces.extend(member)
            pieces[-1] += ";,"
        else:
            mailbox = _mailbox(name, entry)
            mailbox[-1] += ","
            pieces.extend(mailbox)
    if pieces:
        pieces[-1] = pieces[-1][:-1]
    wire = fold(name, [piece if n == 0 else " " + piece for n, piece in enumerate(pieces)])
    return Field(key=name.lower(), wire=wire, entries=entries)


def fold(name: str, pieces: list[str]) -> bytes:
    """Lay pieces out in lines of at most 78 octets where possible, 998 always.

    Args:
        name: field name.
        pieces: the value; each but the first starts with the white space before which the line may
            be folded, and holds something else besides.

    Returns:
        The field with CRLF line ends.

    Raises:
        InvalidMessage: rule ``"line-too-long"``: a piece does not fit a line.
    """
    lines: list[str] = []
    line = name + ": "
    width = len(line)
    fresh = True
    for piece in pieces:
        size = len(piece) if piece.isascii() else len(piece.encode("utf-8"))
        if not fresh and width + size > FOLD_AT:
            lines.append(line)
            line, width = "", 0
        line += piece
        width += size
        fresh = False
        if width > LINE_LIMIT:
            raise refusal(
                name,
                f"needs a line of more than {LINE_LIMIT} octets",
                "shorten it, or put white space where it may be folded",
                piece,
                "line-too-long",
            )
    lines.append(line)
    return "\r\n".join(lines).encode("utf-8") + b"\r\n"


def _render_text(name: str, key: str, text: str, *, decoded: bool) -> Field:
    if not decoded:
        text = text.strip(" \t")
    shown = text if decoded else decode_words(text)
    if LINE_BREAK.search(shown):
        raise _refusal_encoded_break(name, text)
    plain = text.isascii() and not CONTROL.search(text)
    if plain and decoded:
        plain = "=?" not in text and "\t" not in text and text == text.strip(" ")
    words = _WORDS.findall(text) if plain else []
    if plain and not any(len(word) > _TOKEN_LIMIT for word in words):
        return Field(key=key, wire=fold(name, words), text=shown)
    if SURROGATE(shown):
        raise refusal_undecodable(name, text)
    first = FOLD_AT - len(name) - 2
    encoded = encode_words(shown, first=first if first >= 40 else 75)
    pieces = [word if n == 0 else " " + word for n, word in enumerate(encoded)]
    return Field(key=key, wire=fold(name, pieces), text=shown)


def _render_structured(name: str, key: str, text: str) -> Field:
    text = text.strip(" \t")
    if not text.isascii():
        raise refusal(
            name,
            "may hold ASCII only",
            "this field has no encoding for other characters; rewrite it",
            text,
            "header-not-ascii",
        )
    if CONTROL.search(text):
        raise refusal(name, "holds a control character", "remove it", text, "header-control")
    # Its phrases and comments may hold encoded-words, and some readers decode them anywhere.
    if "=?" in text and LINE_BREAK.search(decode_words(text)):
        raise _refusal_encoded_break(name, text)
    words = _WORDS.findall(text)
    ids = message_ids(text, header=name) if key in _IDENTIFIERS else None
    if ids:
        text = " ".join(ids)
        words = [one if number == 0 else " " + one for number, one in enumerate(ids)]
    return Field(key=key, wire=fold(name, words), text=text)


def _refusal_encoded_break(name: str, text: str) -> InvalidMessage:
    return refusal(
        name,
        "holds an encoded line break or NUL",
        "remove it; a header is one line",
        text,
        "header-injection",
    )


def _render_date(name: str, key: str, value: object) -> Field:
    """A date from text, from a datetime, or from the registry object that holds one."""
    moment: object = value
    text = ""
    if not isinstance(value, datetime):
        text = wire_text(name, value).strip(" \t")
        moment = getattr(value, "datetime", None)
        if moment is None:
            moment = lenient_date(text)
    if not isinstance(moment, datetime) or moment.year < FIRST_YEAR:
        raise refusal(
            name,
            "is not a date of RFC 5322 section 3.3",
            "set it to an aware datetime of 1900 or later, or leave it out",
            text or value,
            "date-syntax",
        )
    # The registry object keeps no sign whether it was made of "-0000" (UTC, its local zone unknown)
    # or of a naive datetime: both are sent as "-0000". A datetime as it stands is told apart.
    if moment.tzinfo is None and not text:
        raise refusal(
            name, "is a datetime without a time zone", "use datetime.now(UTC)", moment, "date-naive"
        )
    found = strict_date(text)
    if found is None or found[1] != len(text):
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        text = render_date(moment)
    return Field(key=key, wire=fold(name, _WORDS.findall(text)), text=text)


def _mailbox(name: str, mailbox: Mailbox) -> list[str]:
    """Pieces of a mailbox; one piece unless it is too long for a line of its own."""
    if not mailbox.name:
        return [mailbox.address.key]
    phrase = _phrase(name, mailbox.name)
    last = f"{phrase[-1]} <{mailbox.address.key}>"
    if len(last) > FOLD_AT - 2:
        return [*phrase, f"<{mailbox.address.key}>"]
    return [*phrase[:-1], last]


def _phrase(name: str, text: str) -> list[str]:
    """A display name as atoms, quoted string or encoded-words (RFC 5322 3.2.5, RFC 2047 5)."""
    if LINE_BREAK.search(text):
        raise refusal(
            name, "has a line break in a display name", "remove it", text, "header-injection"
        )
    if longer_than(text, TEXT_LIMIT):
        raise refusal(
            name,
            f"has a display name of more than {TEXT_LIMIT:,} octets",
            "shorten it",
            text[:200],
            "display-name-too-long",
        )
    if SURROGATE(text):
        raise refusal_undecodable(name, text)
    if "=?" not in text:
        if _ATOMS(text) is not None:
            if len(text) <= _WORD_LIMIT:
                return [text]
            words = text.split(" ")
            if max(map(len, words)) <= _WORD_LIMIT:
                return words
        elif text.isascii() and text.isprintable():
            quoted = quote(text)
            if len(quoted) <= _WORD_LIMIT:
                return [quoted]
    return encode_words(text, first=FOLD_AT - len(name) - 2 if len(name) < 30 else 75)
