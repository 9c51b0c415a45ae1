"""The header of a message that is submitted: read, mended and completed field by field.

Rules: RFC 6409 section 8, RFC 5322 sections 3.6 and 4.5. What is no field ends the header, as every
server has it. Fields keep their octets unless one of the cases of docs/design/submission.md is met.
Under a DKIM-Signature nothing is rewritten. Knows the envelope only by what it is told.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from functools import lru_cache

from mailstrom.errors import InvalidMessage
from mailstrom.message.address import parse_address
from mailstrom.message.address_list import Mailbox
from mailstrom.message.compose import SUBJECT_LIMIT
from mailstrom.message.date import lenient_date, render_date
from mailstrom.message.encoded_word import decode_words
from mailstrom.message.grammar import message_ids
from mailstrom.message.header import render_entries
from mailstrom.message.leaf import CRLF, too_long_line
from mailstrom.message.mending import (
    FIELD,
    ascii_field,
    broken,
    folded_field,
    lined_body,
    qualified,
    without_blank_folds,
)
from mailstrom.message.option_headers import PREFIX
from mailstrom.message.trace import Trace, is_own

# Postfix drops the same four (message_drop_headers): a length that may be wrong helps nobody.
_REMOVED = frozenset({b"bcc", b"resent-bcc", b"return-path", b"content-length"})
ADDRESSES = frozenset(
    {
        b"from", b"sender", b"reply-to", b"to", b"cc",
        b"resent-from", b"resent-sender", b"resent-to", b"resent-cc", b"resent-reply-to",
    }
)  # fmt: skip
_ONCE = frozenset(
    {
        b"date", b"from", b"sender", b"reply-to", b"to", b"cc", b"message-id", b"in-reply-to",
        b"references", b"subject", b"mime-version", b"content-type", b"content-transfer-encoding",
    }
)  # fmt: skip
_BLANK_IS_NONE = frozenset({b"date", b"from", b"sender", b"reply-to", b"to", b"cc", b"message-id"})
_NOTED = _REMOVED | ADDRESSES | _ONCE | {b"received"}
_OPTION = PREFIX.encode("ascii")
_RESENT = b"resent-"
_NOTED_PREFIXES = (_OPTION, _RESENT, b"content-")
_MAILBOX_LINES = (b"From ", b">From ")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TYPE = re.compile(rb"^content-type[ \t]*:((?:[^\r\n]|\r\n[ \t])*+)", re.IGNORECASE | re.MULTILINE)
_CHARSET = re.compile(r";[ \t]*charset[ \t]*=[ \t]*\"?([A-Za-z0-9_.:+-]+)", re.IGNORECASE)

HEAD_LIMIT = 1024 * 1024
"""Octets of a header; what each field costs would add up to seconds. Exim takes as many."""
_COMPLETED_LIMIT = 65_536  # octets of a field whose addresses are looked at for their domain
_MENDED_MOST = 1000  # fields, from the first, that are looked at for what has to be mended


class Head:
    """The header of a submitted message while it is read and completed.

    Args:
        content: with CRLF alone, the last line ended.
        domain: completes addresses.
        keep: UTF-8 in fields stays.
    """

    __slots__ = (
        "_content", "_domain", "_keep", "_merged", "_places", "_signed", "_told", "added",
        "changed", "end", "hops", "id", "kept", "options", "own", "values",
    )  # fmt: skip

    def __init__(self, content: bytes, domain: bytes, *, keep: bool) -> None:
        self._content = content
        self._domain = domain
        self._keep = keep
        self._places: dict[bytes, int] = {}  # in ``kept``, of fields that may stand once
        self._merged: dict[bytes, list[bytes]] = {}  # lists of To and Cc that stood again
        self._signed = False
        self._told: str | None = None
        self.kept: list[bytes] = []
        self.values: dict[bytes, bytes] = {}  # behind the colon, of the same, the first of each
        self.options: dict[str, bytes] = {}
        self.added: list[bytes] = []
        self.changed = False  # whether ``kept`` is something else than what came
        self.hops = self.own = 0
        self.id = ""
        self.end = 0

    def read(self, own_by: bytes) -> None:
        """Take in the fields, each kept, mended or left out."""
        content = self._content
        start = at = behind_mailbox_line(content)
        most = start + HEAD_LIMIT
        found: list[re.Match[bytes]] = []
        match = FIELD.match(content, at)
        while match is not None:
            found.append(match)
            at = match.end()
            if at > most:
                raise too_large()
            match = FIELD.match(content, at)
        head = content[start:at]
        if b"\0" in head:
            raise nul(content)
        if content.startswith(CRLF, at):
            self.end = at + 2
            self.changed = start > 0
        else:  # no blank line: what is no field is body
            self.end = at
            self.changed = True
        self._signed = b"\ndkim-signature" in (b"\n" + head).lower() and any(
            match[1].lower() == b"dkim-signature" for match in found
        )
        mend = not self._signed and (
            not head.isascii()
            or too_long_line(head) is not None
            or ((b"\r\n " in head or b"\r\n\t" in head) and without_blank_folds(head) != head)
        )
        for place, match in enumerate(found):
            mend = mend and place < _MENDED_MOST
            key = match[1].lower()
            if not mend and key not in _NOTED and not key.startswith(_NOTED_PREFIXES):
                self.kept.append(match[0])
            else:
                self._take(key, match, own_by, mend=mend)

    def _take(self, key: bytes, match: re.Match[bytes], own_by: bytes, *, mend: bool) -> None:
        wire, value = match[0], match[2]
        if key in _REMOVED:
            self.changed = True
            if key.startswith(_RESENT):
                self.values.setdefault(_RESENT, value)
            return
        if key.startswith(_OPTION):
            self.changed = True
            if not self.hops:  # below a Received it was somebody else who wrote it
                self._option(key, value)
            return
        if key == b"received":
            self.hops += 1
            self.own += is_own(value, own_by)
        elif key in ADDRESSES and self._incomplete(value):
            whole = qualified(value, self._domain)
            if whole != value:
                wire = match[1] + b":" + whole + CRLF
                if too_long_line(wire) is not None and too_long_line(match[0]) is None:
                    wire = folded_field(match[1].decode("ascii"), unfolded(whole)) or match[0]
                value = wire.partition(b":")[2][:-2]
        if mend:
            wire = self._mended(match[1].decode("ascii"), wire, value)
            value = wire.partition(b":")[2][:-2]
        if key in _ONCE:
            bare = unfolded(value)
            if not bare and key in _BLANK_IS_NONE and not self._signed:
                self.changed = True
                return
            if key in self.values:
                if not self._again(key, bare, wire):
                    return
            else:
                self.values[key] = bare
                self._places[key] = len(self.kept)
        elif key.startswith(_RESENT):
            self.values.setdefault(key, value)
        elif key.startswith(b"content-"):
            self.values.setdefault(b"content-", value)
        if wire != match[0]:
            self.changed = True
        self.kept.append(wire)

    def _again(self, key: bytes, bare: bytes, wire: bytes) -> bool:
        """A field that may stand once stands again; whether it stays."""
        same = bare == self.values[key]
        if not self._signed and (same or key in (b"date", b"message-id")):
            self.changed = True
            return False
        if key == b"from" and not same:
            raise InvalidMessage(
                "the message has two From headers that differ; keep one, several authors go into"
                " one header",
                header="From",
                value=[self.values[key], bare],
                rule="from-duplicate",
            )
        if key in (b"to", b"cc") and not self._signed:  # RFC 5322 section 4.5.3
            self._merged.setdefault(key, []).append(wire.partition(b":")[2][:-2].lstrip())
            self.changed = True
            return False
        return True

    def _incomplete(self, value: bytes) -> bool:
        """Whether an address may lack its domain: most have an @ each, and nothing else has."""
        if self._signed or value.count(b"@") > value.count(b",") + value.count(b":"):
            return False
        return len(value) <= _COMPLETED_LIMIT

    def _option(self, key: bytes, value: bytes) -> None:
        name = key.decode("ascii")
        if name in self.options:
            raise InvalidMessage(
                f"header {name} stands twice; say it once", header=name, rule="duplicate-header"
            )
        self.options[name] = unfolded(value)

    def _mended(self, name: str, wire: bytes, value: bytes) -> bytes:
        wire = without_blank_folds(wire)
        bare = unfolded(value)
        if not bare.isascii() and not (self._keep and is_utf8(bare)):
            wire = ascii_field(name, bare, self._charset()) or wire
        if too_long_line(wire) is not None:
            folded = folded_field(name, bare)
            if folded is None:
                raise too_long(wire, name)
            wire = folded
        return wire

    def _charset(self) -> str:
        """Of the message's text, wherever its Content-Type stands; "" where none is told."""
        if self._told is None:
            found = _TYPE.search(self._content, 0, self.end)
            charset = None if found is None else _CHARSET.search(found[1].decode("latin-1"))
            self._told = "" if charset is None else charset[1]
        return self._told

    def complete(self, sender: str, name: str, trace: Trace) -> bytes | None:
        """Add what is missing; gives the body where it had to be written anew."""
        values, added = self.values, self.added
        for key, lists in self._merged.items():
            place = self._places[key]
            self.kept[place] = b",\r\n ".join([self.kept[place][:-2], *lists]) + CRLF
        if b"from" not in values:
            added.append(_author(sender, name, trace.hostname))
        if b"date" not in values or not (self._signed or _is_date(values[b"date"])):
            self._replace(b"date", f"Date: {_date(trace.now_ms // 1000)}\r\n")
        known = message_ids(text_of(values.get(b"message-id", b"")), header="Message-ID")
        if known is not None and len(known) == 1 and known[0].isprintable():
            self.id = known[0]
        elif self._signed and b"message-id" in values:
            self.id = shown(values[b"message-id"], decoded=False)
        else:
            self.id = _new_id(sender, trace)
            self._replace(b"message-id", f"Message-ID: {self.id}\r\n")
        if any(key.startswith(_RESENT) for key in values):
            if b"resent-from" not in values:
                added.append(b"Resent-" + _author(sender, name, trace.hostname))
            if b"resent-date" not in values:
                added.append(f"Resent-Date: {_date(trace.now_ms // 1000)}\r\n".encode("ascii"))
        body = self._body()
        typed = b"content-" in values or b"content-type" in values
        if (typed or b"content-transfer-encoding" in values) and b"mime-version" not in values:
            added.append(b"MIME-Version: 1.0\r\n")
        return body

    def _body(self) -> bytes | None:
        content = self._content
        # Of a long one only every 998th octet is looked at.
        if not broken(content):
            return None
        body = content[self.end :]
        values = self.values
        if self._signed:
            if b"\0" in body:
                raise nul(content)
            if too_long_line(body) is not None:
                raise too_long(body)
            if broken(body):
                raise bare_cr()
            return None
        kind = text_of(values.get(b"content-type", b""))
        encoding = text_of(values.get(b"content-transfer-encoding", b""))
        mended, changed = lined_body(kind, encoding, body)
        if changed is not None:
            wire = b"Content-Transfer-Encoding: " + changed.encode("ascii") + CRLF
            values[b"content-transfer-encoding"] = wire
            place = self._places.get(b"content-transfer-encoding")
            if place is None:
                self.kept.append(wire)
            else:
                self.kept[place] = wire
        if mended == body:
            return None
        self.changed = True
        return mended

    def _replace(self, key: bytes, wire: str) -> None:
        place = self._places.get(key)
        if place is not None:
            self.kept[place] = b""
            self.changed = True
        self.added.append(wire.encode("ascii"))


def behind_mailbox_line(content: bytes) -> int:
    """Where the message begins: a first line as mailbox files have it is none of its own."""
    if content.startswith(_MAILBOX_LINES) and FIELD.match(content) is None:
        return content.find(CRLF) + 2
    return 0


def unfolded(value: bytes) -> bytes:
    """What stands behind a colon, as one line (RFC 5322 section 2.2.3)."""
    return (value.replace(CRLF, b"") if CRLF in value else value).strip(b" \t")


def text_of(value: bytes) -> str:
    """Octets as text; what is not UTF-8 is replaced."""
    return value.decode("utf-8", "replace")


def is_utf8(value: bytes) -> bool:
    """Whether octets are UTF-8, as ASCII is."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def shown(value: bytes, *, decoded: bool) -> str:
    """A value for display: one line of text, cut."""
    text = text_of(unfolded(value)[: 8 * SUBJECT_LIMIT])
    if decoded:
        text = decode_words(text)
    return (text if text.isprintable() else _UNPRINTABLE.sub(" ", text))[:SUBJECT_LIMIT]


def nul(content: bytes) -> InvalidMessage:
    """The refusal of NUL."""
    return InvalidMessage(
        "the message contains a NUL octet; encode the part as base64",
        rule="nul",
        position=content.find(b"\0"),
    )


def bare_cr() -> InvalidMessage:
    """The refusal of a CR that ends no line and cannot be encoded."""
    return InvalidMessage(
        "the content has a carriage return without a line feed; lines end in CRLF",
        rule="line-endings",
    )


def too_large() -> InvalidMessage:
    """The refusal of a header over ``HEAD_LIMIT``."""
    return InvalidMessage(
        f"the headers are larger than {HEAD_LIMIT:,} octets; send fewer", rule="header-too-large"
    )


def too_long(content: bytes, name: str | None = None) -> InvalidMessage:
    """The refusal of a line over 998 octets; ``name`` is the field it stands in."""
    position = too_long_line(content)
    where = "" if name is None else f" (header {name[:80]})"
    return InvalidMessage(
        f"the message has a line of more than 998 octets{where}; fold the header, or encode the"
        " body as quoted-printable or base64",
        header=name,
        rule="line-too-long",
        position=position,
    )


def _is_date(value: bytes) -> bool:
    return _is_date_text(value.decode("latin-1")) if len(value) < 200 else False


@lru_cache(maxsize=64)
def _is_date_text(text: str) -> bool:
    return lenient_date(text) is not None


def _author(sender: str, name: str, hostname: str) -> bytes:
    """A From for a message without one."""
    if name and sender:
        try:
            author = Mailbox(name=name, address=parse_address(sender))
            return render_entries("From", (author,)).wire
        except InvalidMessage:  # a name that is no text
            pass
    return f"From: {sender or f'MAILER-DAEMON@{hostname}'}\r\n".encode()


def _new_id(sender: str, trace: Trace) -> str:
    octets = bytearray(os.urandom(16))  # RFC 9562 section 5.4
    octets[6] = octets[6] & 0x0F | 0x40
    octets[8] = octets[8] & 0x3F | 0x80
    domain = sender.rpartition("@")[2] or trace.hostname
    return f"<{octets.hex()}.{trace.now_ms}@{domain}>"


@lru_cache(maxsize=8)
def _date(seconds: int) -> str:
    return render_date(datetime.fromtimestamp(seconds, UTC))
