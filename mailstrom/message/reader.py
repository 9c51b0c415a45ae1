"""A strict reader of whole messages: ``parse``.

Takes what RFC 5322 allows to be *generated* with the additions of RFC 6532 (UTF-8) and RFC 6854
(groups of authors): CRLF only, lines of at most 998 octets, no obsolete form, each field as often
as section 3.6 says, a Sender where there are several authors. The first violation found in reading
order is refused by field, rule and octet. The body is lines and nothing more: no MIME structure.
Reading only: messages are built with ``email.message.EmailMessage`` and sent through ``compose``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import cast

from mailstrom.errors import InvalidMessage
from mailstrom.message.address_list import Entries, Group
from mailstrom.message.grammar import CONTROL
from mailstrom.message.parsed import (
    TRACE,
    Parsed,
    ParsedField,
    Received,
    Resent,
    Value,
    decoded,
)
from mailstrom.message.rules import RULES
from mailstrom.message.strict import Cursor

LINE_LIMIT = 998

_NAME = re.compile(rb"[!-9;-~]+")
_BAD_LINE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


Reader = Callable[[Cursor], Value]


def _one_address(cursor: Cursor) -> Entries:
    entries = cursor.address_list()
    if len(entries) > 1:
        raise cursor.refusal("sender-ambiguous", "has more than one address", 0)
    return entries


def _text(cursor: Cursor) -> str:
    return decoded(cursor.text)


def _addresses(cursor: Cursor) -> Entries:
    return cursor.address_list()


def _bcc(cursor: Cursor) -> Entries:
    return cursor.optional_address_list()


def _date(cursor: Cursor) -> datetime:
    return cursor.date()


def _one_id(cursor: Cursor) -> tuple[str, ...]:
    return cursor.message_ids(several=False)


def _ids(cursor: Cursor) -> tuple[str, ...]:
    return cursor.message_ids(several=True)


def _received(cursor: Cursor) -> Received:
    tokens, date = cursor.received()
    return Received(tokens=tokens, date=date)


_GRAMMAR: dict[str, Reader] = {
    "date": _date, "from": _addresses, "sender": _one_address, "reply-to": _addresses,
    "to": _addresses, "cc": _addresses, "bcc": _bcc, "message-id": _one_id, "in-reply-to": _ids,
    "references": _ids, "subject": _text, "comments": _text, "keywords": Cursor.phrases,
    "resent-date": _date, "resent-from": _addresses, "resent-sender": _one_address,
    "resent-to": _addresses, "resent-cc": _addresses, "resent-bcc": _bcc,
    "resent-message-id": _one_id, "return-path": Cursor.path, "received": _received,
}  # fmt: skip
_ONCE = frozenset(
    key for key in _GRAMMAR if not key.startswith("resent-") and key not in TRACE
) - {"comments", "keywords"}  # fmt: skip


def parse(data: bytes | bytearray | memoryview) -> Parsed:
    """Read a message by the letter of RFC 5322, 6532 and 6854.

    Args:
        data: the whole message; CRLF line ends. The last line of the body need not be ended.

    Returns:
        Its fields with their values, and its body.

    Raises:
        InvalidMessage: the first violation: ``.header``, ``.value``, ``.rule``, ``.position``
            (InvalidAddress where it is inside an address). What is no bytes has no position.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidMessage(
            f"the message is a {type(data).__name__}; {RULES['message-type'].advice}",
            value=data,
            rule="message-type",
        )
    data = bytes(data)
    fields: list[ParsedField] = []
    seen: set[str] = set()
    at = 0
    separated = False
    while at < len(data):
        if data.startswith(b"\r\n", at):
            separated = True
            at += 2
            break
        end = _end_of_field(data, at)
        field = _field(data[at:end], at)
        if field.key in seen and field.key in _ONCE:
            raise _refusal("duplicate-header", "is given again", at, field)
        seen.add(field.key)
        fields.append(field)
        at = end
    body = data[at:]
    for key in ("date", "from"):
        if key not in seen:
            raise _refusal(f"{key}-missing", "is missing", at, key.title())
    author = next(one for one in fields if one.key == "from")
    if _several(author) and "sender" not in seen:
        raise _refusal(
            "sender-ambiguous",
            "has several authors or a group, and there is no Sender",
            author.position,
            author,
        )
    resent = _resent(fields)
    _check_body(body, at)
    return Parsed(fields=tuple(fields), body=body, separated=separated, resent=resent)


def _end_of_field(data: bytes, start: int) -> int:
    """Offset behind the CRLF that no white space follows."""
    at = start
    while True:
        stop = data.find(b"\n", at)
        if stop < 0:
            # Bare CRs come first in reading order, the missing end last.
            _check_lines(data[start:], start, None)
            raise _refusal(
                "line-endings", "has a header line that does not end with CRLF", len(data)
            )
        at = stop + 1
        if data[at : at + 1] not in (b" ", b"\t"):
            return at


def _check_lines(octets: bytes, base: int, header: str | None) -> None:
    """Refuse bare CR, bare LF, NUL and over-long lines, whichever comes first."""
    found: list[tuple[int, str, str]] = []
    pairs = octets.count(b"\r\n")
    if pairs != octets.count(b"\n") or pairs != octets.count(b"\r"):
        bad = _BAD_LINE_END.search(octets)
        assert bad is not None
        found.append((bad.start(), "line-endings", "has a bare CR or LF"))
    nul = octets.find(b"\0")
    if nul >= 0:
        found.append((nul, "nul", "has a NUL"))
    at = 0
    while len(octets) - at > LINE_LIMIT:
        stop = octets.rfind(b"\n", at, at + LINE_LIMIT + 2)
        if stop < 0:
            what = f"has a line of more than {LINE_LIMIT} octets"
            found.append((at + LINE_LIMIT, "line-too-long", what))
            break
        at = stop + 1
    if found:
        offset, rule, what = min(found)
        raise _refusal(rule, what, base + offset, header, octets[max(0, offset - 40) : offset + 40])


def _check_body(body: bytes, base: int) -> None:
    _check_lines(body, base, None)


def _field(raw: bytes, base: int) -> ParsedField:
    """Check the lines of one field, then its value."""
    match = _NAME.match(raw)
    name = match[0].decode("ascii") if match is not None else ""
    if not name or raw[len(name) : len(name) + 1] != b":":
        raise _refusal(
            "header-syntax",
            "has a line that is not 'Name: value' nor a continuation of one",
            base + len(name),
            None,
            raw[:80],
        )
    _check_lines(raw, base, name)
    offset = 0
    for line in raw.split(b"\r\n")[:-1]:
        if offset and not line.strip(b" \t"):
            raise _refusal(
                "header-blank-fold", "has a blank line inside a field", base + offset, name
            )
        offset += len(line) + 2
    control = _CONTROL.search(raw)
    try:
        text = raw[len(name) + 1 : -2].decode("utf-8")
    except UnicodeDecodeError as error:
        if control is None or control.start() > error.start + len(name) + 1:
            raise _refusal(
                "header-undecodable",
                "has an octet that is not UTF-8",
                base + len(name) + 1 + error.start,
                name,
                raw[:80],
            ) from None
        text = ""
    foreign = CONTROL.search(text.replace("\r\n", "  "))
    if control is None and foreign is not None:
        # C1 controls and line separators: RFC 6532 lets them be, many readers break lines there.
        before = text.replace("\r\n", "  ")[: foreign.start()].encode("utf-8")
        raise _refusal(
            "header-control",
            "has a control character",
            base + len(name) + 1 + len(before),
            name,
            text,
        )
    if control is not None:
        raise _refusal(
            "header-control", "has a control character", base + control.start(), name, raw[:80]
        )
    cursor = Cursor(text, header=name, base=base + len(name) + 1)
    value = _GRAMMAR.get(name.lower(), _text)(cursor)
    return ParsedField(name=name, raw=raw, position=base, value=value)


def _several(author: ParsedField) -> bool:
    entries = cast("Entries", author.value)
    return len(entries) > 1 or isinstance(entries[0], Group)


def _resent(fields: list[ParsedField]) -> tuple[Resent, ...]:
    """Cut Resent- fields into blocks: at a repeated name and at trace fields (3.6.6, 3.6.7)."""
    blocks: list[dict[str, ParsedField]] = [{}]
    for field in fields:
        if field.key in TRACE and blocks[-1]:
            blocks.append({})
        elif field.key.startswith("resent-") and field.key in _GRAMMAR:
            if field.key in blocks[-1]:
                blocks.append({})
            blocks[-1][field.key] = field
    return tuple(_resent_block(block) for block in blocks if block)


def _resent_block(block: dict[str, ParsedField]) -> Resent:
    first = next(iter(block.values()))
    for name in ("Resent-Date", "Resent-From"):
        if name.lower() not in block:
            raise _refusal(
                "resent-incomplete",
                f"has a block of Resent- headers without {name}",
                first.position,
            )
    author = block["resent-from"]
    if _several(author) and "resent-sender" not in block:
        raise _refusal(
            "sender-ambiguous",
            "has several authors or a group, and there is no Resent-Sender",
            author.position,
            author,
        )

    def entries(key: str) -> Entries:
        return cast("Entries", block[key].value) if key in block else ()

    ids = cast(
        "tuple[str, ...]", block["resent-message-id"].value if "resent-message-id" in block else ()
    )
    return Resent(
        date=cast("datetime", block["resent-date"].value),
        from_=entries("resent-from"),
        sender=next(iter(entries("resent-sender")), None),
        to=entries("resent-to"),
        cc=entries("resent-cc"),
        bcc=entries("resent-bcc"),
        message_id=next(iter(ids), None),
    )


def _refusal(
    rule: str,
    what: str,
    position: int,
    header: ParsedField | str | None = None,
    value: object = None,
) -> InvalidMessage:
    if isinstance(header, ParsedField):
        value = header.text
        header = header.name
    where = "the message" if header is None else f"header {header}"
    return InvalidMessage(
        f"{where} {what}, at octet {position}; {RULES[rule].advice}",
        header=header,
        value=value,
        rule=rule,
        position=position,
    )
