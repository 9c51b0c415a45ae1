"""Address headers: mailboxes and groups out of unfolded text (RFC 5322 section 3.4, RFC 6854).

Strict where readers disagree: routes, several @, text behind an angle address and encoded-words
inside addresses are refused, for who receives the mail must not depend on the parser. Lenient
only where all agree: comments are dropped; dots in display names, empty list entries and white
space round the dots and the @ of an address pass (RFC 5322 section 4.4).
Display names come back decoded (RFC 2047). Knows nothing of rendering or of message objects.
"""

from __future__ import annotations

import re

from mailstrom.errors import InvalidAddress
from mailstrom.message.address import Address, parse_address, quote_local
from mailstrom.message.encoded_word import WORD, decode_words
from mailstrom.message.grammar import TEXT_LIMIT, quoted_string, skip_cfws
from mailstrom.value import value

_ADDR_SPEC = re.compile(
    r'(?:"(?:[^"\\]|\\.)*+"|[^\s"(),:;<>@\[\]\\]++)@(?:\[[^\[\]\\\s]*+\]|[^\s"(),:;<>@\[\]\\]++)'
)
_ATOM = re.compile(r'[^\s"(),:;<>@\[\]\\]++')
_PART = re.compile(r'[^\s"(),:;<>@\[\]\\.]++')  # a word of a local part, a label of a domain
_LITERAL = re.compile(r"\[[^\[\]\\\s]*+\]")
_NAMED = re.compile(
    r"([A-Za-z0-9]++(?: [A-Za-z0-9]++)*+) <([A-Za-z0-9._+-]++@[A-Za-z0-9.-]++)>(?=,|$)"
)
_SIMPLE = re.compile(r"[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+").fullmatch
_PHRASE_LIMIT = 4 * TEXT_LIMIT  # characters that a display name of that limit is encoded in


@value
class Mailbox:
    """One mailbox: decoded display name (may be empty) and checked address."""

    name: str
    address: Address


@value
class Group:
    """A named group; may have no members (``undisclosed-recipients:;``)."""

    name: str
    members: tuple[Mailbox, ...]


Entries = tuple["Mailbox | Group", ...]


def parse_address_list(text: str, *, header: str) -> Entries:
    """Parse the value of an address header.

    Args:
        text: the unfolded value; encoded-words still encoded.
        header: header name for the errors.

    Returns:
        Mailboxes and groups in order.

    Raises:
        InvalidAddress: the value cannot be read with certainty, or an address is invalid.
    """
    text = text.strip(" \t")
    if _SIMPLE(text) is not None:
        return (Mailbox(name="", address=parse_address(text, header=header)),)
    named = _NAMED.fullmatch(text)
    if named is not None:
        return (Mailbox(name=named[1], address=parse_address(named[2], header=header)),)
    reader = _Reader(text, header)
    return reader.entries()


def mailboxes(entries: Entries) -> tuple[Mailbox, ...]:
    """All mailboxes in order, groups opened."""
    flat: list[Mailbox] = []
    for entry in entries:
        if isinstance(entry, Group):
            flat.extend(entry.members)
        else:
            flat.append(entry)
    return tuple(flat)


class _Reader:
    """Cursor over one value; one pass from left to right."""

    __slots__ = ("at", "header", "text")

    def __init__(self, text: str, header: str) -> None:
        self.text = text
        self.header = header
        self.at = 0

    def entries(self) -> Entries:
        found: list[Mailbox | Group] = []
        while True:
            self._skip()
            if self.at >= len(self.text):
                return tuple(found)
            if self._take(","):
                continue
            found.append(self._entry())
            self._skip()
            if self.at < len(self.text) and not self._take(","):
                raise self._refusal("has text behind an address", "address-syntax")

    def _entry(self) -> Mailbox | Group:
        name = self._mailbox_or_name()
        if isinstance(name, Mailbox):
            return name
        return Group(name=name, members=self._members())

    def _mailbox_or_name(self) -> Mailbox | str:
        """A mailbox, or the name of a group with its colon."""
        plain = _NAMED.match(self.text, self.at)  # what most mail has, at a third of the time
        if plain is not None:
            self.at = plain.end()
            return Mailbox(name=plain[1], address=parse_address(plain[2], header=self.header))
        bare = self._bare_address()
        if bare is not None:
            return bare
        name = self._phrase()
        if self._take("<"):
            return Mailbox(name=name, address=self._angle())
        if name and self._take(":"):
            return name
        raise self._refusal("is not an address", "address-syntax")

    def _members(self) -> tuple[Mailbox, ...]:
        members: list[Mailbox] = []
        while True:
            self._skip()
            if self._take(";"):
                return tuple(members)
            if self.at >= len(self.text):
                raise self._refusal("has a group that does not end with ;", "address-group")
            if self._take(","):
                continue
            member = self._mailbox_or_name()
            if not isinstance(member, Mailbox):  # before it is read: groups nest to no depth
                raise self._refusal("has a group inside a group", "address-group")
            members.append(member)
            self._skip()
            if self.text[self.at : self.at + 1] not in (",", ";"):
                raise self._refusal("has text behind an address", "address-syntax")

    def _bare_address(self) -> Mailbox | None:
        found = self._spec()
        if found is None:
            return None
        spec, end = found
        after = skip_cfws(self.text, end, self.header)
        if after < len(self.text) and self.text[after] not in ",;":
            return None
        self.at = after
        return Mailbox(name="", address=parse_address(spec, header=self.header))

    def _spec(self) -> tuple[str, int] | None:
        """An addr-spec at the cursor as RFC 5321 writes it, and the offset behind it."""
        match = _ADDR_SPEC.match(self.text, self.at)
        if match is not None:
            return match[0], match.end()
        return self._spaced_spec()

    def _spaced_spec(self) -> tuple[str, int] | None:
        """An addr-spec with comments and spaces round its dots and @ (RFC 5322 section 4.4)."""
        words: list[str] = []
        at = self.at
        while True:
            quoted = quoted_string(self.text, at)
            word = _PART.match(self.text, at) if quoted is None else None
            if quoted is not None:
                content, at = quoted
            elif word is not None:
                content, at = word[0], word.end()
            else:
                return None
            words.append(content)
            at = skip_cfws(self.text, at, self.header)
            joint = self.text[at : at + 1]
            if joint not in (".", "@"):
                return None
            at = skip_cfws(self.text, at + 1, self.header)
            if joint == "@":
                break
        labels: list[str] = []
        while True:
            label = _LITERAL.match(self.text, at) if not labels else None
            label = label or _PART.match(self.text, at)
            if label is None:
                return None
            labels.append(label[0])
            end = label.end()
            at = skip_cfws(self.text, end, self.header)
            if self.text[at : at + 1] != ".":
                return f"{quote_local('.'.join(words))}@{'.'.join(labels)}", end
            at = skip_cfws(self.text, at + 1, self.header)

    def _angle(self) -> Address:
        self._skip()
        if self.text[self.at : self.at + 1] == "@":
            raise self._refusal("has a source route, which is obsolete", "address-route")
        found = self._spec()
        if found is None:
            raise self._refusal("has no valid address between < and >", "address-syntax")
        spec, self.at = found
        self._skip()
        if not self._take(">"):
            raise self._refusal("has an address that does not end with >", "address-syntax")
        return parse_address(spec, header=self.header)

    def _phrase(self) -> str:
        """Words up to a special character, encoded-words decoded (RFC 5322 section 3.2.5)."""
        pieces: list[str] = []
        encoded: list[str] = []  # adjacent encoded-words are decoded together
        text = self.text
        most = self.at + _PHRASE_LIMIT
        while True:
            before = self.at
            if before > most:
                what = f"has a display name written in more than {_PHRASE_LIMIT:,} characters"
                raise self._refusal(what, "display-name-too-long")
            self._skip()
            spaced = self.at > before
            word = WORD.match(text, self.at)
            if word is not None:
                if not encoded and pieces and spaced:
                    pieces.append(" ")
                encoded.append(word[0])
                self.at = word.end()
                continue
            quoted = quoted_string(text, self.at)
            atom = _ATOM.match(text, self.at) if quoted is None else None
            if encoded:
                pieces.append(decode_words(" ".join(encoded)))
                encoded.clear()
            if quoted is not None:
                content, end = quoted
            elif atom is not None:
                content, end = atom[0], atom.end()
            else:
                return "".join(pieces)
            if pieces and spaced:
                pieces.append(" ")
            pieces.append(content)
            self.at = end

    def _skip(self) -> None:
        self.at = skip_cfws(self.text, self.at, self.header)

    def _take(self, char: str) -> bool:
        if self.text[self.at : self.at + 1] == char:
            self.at += 1
            return True
        return False

    def _refusal(self, what: str, rule: str) -> InvalidAddress:
        shown = repr(self.text[max(0, self.at - 20) : self.at + 60])
        return InvalidAddress(
            f"address list in {self.header} {what}, near {shown}; "
            "write 'Name <local@domain>' entries separated by commas, names with , or @ in quotes",
            header=self.header,
            value=self.text,
            rule=rule,
        )
