"""What the strict reader found in a message: ``Parsed`` and the values it is made of.

Typed access to each field that RFC 5322 defines, and to all others as text; what was read is kept
octet for octet, so that ``Parsed.render`` gives it back. Values only: the rules of reading are in
``reader``, those of building in ``compose``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import cast

from mailstrom.message.address import Address
from mailstrom.message.address_list import Entries, Group, Mailbox
from mailstrom.message.encoded_word import decode_words

TRACE = frozenset({"return-path", "received"})
DEFINED = TRACE | {
    "date", "from", "sender", "reply-to", "to", "cc", "bcc", "message-id", "in-reply-to",
    "references", "subject", "comments", "keywords", "resent-date", "resent-from", "resent-sender",
    "resent-to", "resent-cc", "resent-bcc", "resent-message-id",
}  # fmt: skip


def decoded(text: str) -> str:
    """A value as one line, encoded-words decoded."""
    return decode_words(text.replace("\r\n", "").strip(" \t"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A Received field: its tokens as one line of text, and when."""

    tokens: str
    date: datetime


Value = datetime | Entries | tuple[str, ...] | str | Received | Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedField:
    """One field as it stands in the message.

    Args:
        name: the name as written.
        raw: the whole field with its folds and final CRLF.
        position: offset of the field in octets.
        value: what it means; decoded text where the field has no grammar of its own.
    """

    name: str
    raw: bytes
    position: int
    value: Value

    @property
    def key(self) -> str:
        """The name in lower case."""
        return self.name.lower()

    @property
    def text(self) -> str:
        """The value as one line of decoded text."""
        return decoded(self.raw[len(self.name) + 1 : -2].decode("utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resent:
    """One block of Resent- fields (RFC 5322 section 3.6.6)."""

    date: datetime
    from_: Entries
    sender: Mailbox | Group | None = None
    to: Entries = ()
    cc: Entries = ()
    bcc: Entries = ()
    message_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A message that follows the rules.

    Args:
        fields: all fields in order.
        body: what stands behind the blank line.
        separated: whether there is a blank line; a message may end with its fields.
        resent: Resent- blocks, newest first.
    """

    fields: tuple[ParsedField, ...]
    body: bytes
    separated: bool
    resent: tuple[Resent, ...]

    def render(self) -> bytes:
        """The octets that were parsed."""
        return b"".join(
            [*(one.raw for one in self.fields), b"\r\n" if self.separated else b"", self.body]
        )

    def get(self, name: str) -> tuple[ParsedField, ...]:
        """All fields of a name, whatever its case, in order."""
        key = name.lower()
        return tuple(one for one in self.fields if one.key == key)

    def _value(self, key: str) -> Value:
        return next((one.value for one in self.fields if one.key == key), None)

    def _entries(self, key: str) -> Entries:
        return cast("Entries", self._value(key) or ())

    def _ids(self, key: str) -> tuple[str, ...]:
        return cast("tuple[str, ...]", self._value(key) or ())

    @property
    def date(self) -> datetime:
        """When the author called it finished: aware."""
        return cast("datetime", self._value("date"))

    @property
    def from_(self) -> Entries:
        """The authors: mailboxes, or groups (RFC 6854)."""
        return self._entries("from")

    @property
    def sender(self) -> Mailbox | Group | None:
        """Who sent it, where that is not the only author."""
        return next(iter(self._entries("sender")), None)

    @property
    def reply_to(self) -> Entries:
        """Where answers are wanted."""
        return self._entries("reply-to")

    @property
    def to(self) -> Entries:
        """Recipients: mailboxes and groups."""
        return self._entries("to")

    @property
    def cc(self) -> Entries:
        """Recipients of a copy."""
        return self._entries("cc")

    @property
    def bcc(self) -> Entries:
        """Recipients of a blind copy; empty, too, where the field is there and holds nothing."""
        return self._entries("bcc")

    @property
    def message_id(self) -> str | None:
        """The Message-ID with its angle brackets."""
        return next(iter(self._ids("message-id")), None)

    @property
    def in_reply_to(self) -> tuple[str, ...]:
        """Message-IDs this answers."""
        return self._ids("in-reply-to")

    @property
    def references(self) -> tuple[str, ...]:
        """Message-IDs of the thread."""
        return self._ids("references")

    @property
    def subject(self) -> str | None:
        """The subject, encoded-words decoded; None where there is none."""
        return cast("str | None", self._value("subject"))

    @property
    def comments(self) -> tuple[str, ...]:
        """Each Comments field, decoded."""
        return tuple(cast("str", one.value) for one in self.get("comments"))

    @property
    def keywords(self) -> tuple[str, ...]:
        """The phrases of all Keywords fields, decoded."""
        found = (cast("tuple[str, ...]", one.value) for one in self.get("keywords"))
        return tuple(phrase for phrases in found for phrase in phrases)

    @property
    def return_path(self) -> Address | None:
        """Address of the first Return-Path; None where there is none, or where it is ``<>``."""
        return cast("Address | None", self._value("return-path"))

    @property
    def received(self) -> tuple[Received, ...]:
        """The Received fields, newest first."""
        return tuple(cast("Received", one.value) for one in self.get("received"))

    @property
    def trace(self) -> tuple[ParsedField, ...]:
        """Return-Path and Received fields, as they stand."""
        return tuple(one for one in self.fields if one.key in TRACE)

    @property
    def optional(self) -> tuple[ParsedField, ...]:
        """Fields that RFC 5322 does not define (3.6.8): MIME's, X- and all others."""
        return tuple(one for one in self.fields if one.key not in DEFINED)
