"""A cursor over one header value that knows the strict grammar of RFC 5322, 6532 and 6854.

Folding stays in the text, so that every refusal names its octet. No obsolete form is taken: the
reader that is lenient where all agree is ``address_list``. Beyond RFC 5322, an address has to be
one that RFC 5321 can carry, since it comes back as an ``Address``. Knows nothing of messages: which
field has which grammar is the part of ``parse``.
"""

from __future__ import annotations

import re
from datetime import datetime

from mailstrom.errors import InvalidAddress, InvalidMessage
from mailstrom.message.address import Address, parse_address
from mailstrom.message.address_list import Entries, Group, Mailbox
from mailstrom.message.date import FWS, strict_date
from mailstrom.message.encoded_word import WORD, decode_words
from mailstrom.message.grammar import COMMENT_DEPTH
from mailstrom.message.rules import RULES

_UTF8 = r"\u0080-\U0010ffff"
_ATEXT = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~\-{_UTF8}]"
_WHITE = re.compile(FWS)
_ATOM = re.compile(rf"{_ATEXT}++")
_DOT_ATOM = re.compile(rf"{_ATEXT}++(?:\.{_ATEXT}++)*+")
_QUOTED = re.compile(rf'"((?:{FWS}|[!#-\[\]-~{_UTF8}]|\\[ \t!-~{_UTF8}])*+)"')
_LITERAL = re.compile(rf"\[(?:{FWS}|[!-Z^-~{_UTF8}])*+\]")
_COMMENT_TEXT = re.compile(rf"(?:{FWS}|[!-'*-\[\]-~{_UTF8}]|\\[ \t!-~{_UTF8}])++")
_ID = re.compile(
    rf"<({_ATEXT}++(?:\.{_ATEXT}++)*+@(?:{_ATEXT}++(?:\.{_ATEXT}++)*+|\[[!-Z^-~{_UTF8}]*+\]))>"
)
_ESCAPED = re.compile(r"\\(.)")


class Cursor:
    """Reads one value from left to right; each method is a production of the grammar.

    Args:
        text: the value as it stands between the colon and the final CRLF, folds included.
        header: name of the field, for refusals.
        base: offset in octets of the value's start in the message.
    """

    __slots__ = ("at", "base", "header", "text")

    def __init__(self, text: str, *, header: str, base: int) -> None:
        self.text = text
        self.header = header
        self.base = base
        self.at = 0

    def refusal(self, rule: str, what: str, at: int | None = None) -> InvalidMessage:
        """InvalidMessage (of an address rule: InvalidAddress) that names the octet."""
        at = self.at if at is None else at
        position = self.base + len(self.text[:at].encode("utf-8", "surrogatepass"))
        kind = InvalidAddress if rule.startswith("address") else InvalidMessage
        near = repr(self.text[at : at + 40])
        return kind(
            f"header {self.header} {what} at octet {position}, near {near}; {RULES[rule].advice}",
            header=self.header,
            value=self.text,
            rule=rule,
            position=position,
        )

    def end(self, rule: str) -> None:
        """Nothing but comments and white space may follow."""
        self.cfws()
        if self.at < len(self.text):
            raise self.refusal(rule, "has text behind its end")

    def cfws(self) -> bool:
        """Skip comments and white space (3.2.2); whether there was any."""
        start = self.at
        while self.at < len(self.text):
            white = _WHITE.match(self.text, self.at)
            if white is not None:
                self.at = white.end()
            elif self.text[self.at] == "(":
                self._comment()
            else:
                break
        return self.at > start

    def address_list(self, *, groups: bool = True) -> Entries:
        """address-list (3.4, RFC 6854 section 2.1): at least one entry, none empty."""
        found: list[Mailbox | Group] = [self._address(groups)]
        while self._take(","):
            found.append(self._address(groups))
        self.end("address-syntax")
        return tuple(found)

    def optional_address_list(self) -> Entries:
        """What Bcc may hold: an address-list, or nothing (3.6.3)."""
        self.cfws()
        if self.at == len(self.text):
            return ()
        return self.address_list()

    def path(self) -> Address | None:
        """Return-Path (3.6.7): an address in angle brackets, or None for ``<>``."""
        self.cfws()
        if not self._take("<"):
            raise self.refusal("address-syntax", "is not an address in angle brackets")
        self.cfws()
        found = None if self.text[self.at : self.at + 1] == ">" else self._addr_spec()
        if not self._take(">"):
            raise self.refusal("address-syntax", "has an address that does not end with >")
        self.end("address-syntax")
        return found

    def date(self) -> datetime:
        """date-time (3.3), aware; the day's name has to fit."""
        found = strict_date(self.text, self.at)
        if found is None:
            white = _WHITE.match(self.text, self.at)
            self.at = self.at if white is None else white.end()
            raise self.refusal("date-syntax", "is not a date of RFC 5322 section 3.3")
        moment, self.at = found
        self.end("date-syntax")
        return moment

    def message_ids(self, *, several: bool) -> tuple[str, ...]:
        """1*msg-id or one msg-id (3.6.4), angle brackets kept."""
        found: list[str] = []
        while not found or (several and self.at < len(self.text)):
            self.cfws()
            match = _ID.match(self.text, self.at)
            if match is None:
                raise self.refusal("message-id", "has no <left@right>")
            found.append(match[0])
            self.at = match.end()
            self.cfws()
        self.end("message-id")
        return tuple(found)

    def phrases(self) -> tuple[str, ...]:
        """phrase *("," phrase), as Keywords has it (3.6.5), decoded."""
        found = [self._phrase()]
        while self._take(","):
            found.append(self._phrase())
        self.end("phrase")
        return tuple(found)

    def received(self) -> tuple[str, datetime]:
        """Received (3.6.7): the text before the semicolon, unfolded, and the date behind it."""
        start = self.at
        self.cfws()
        while not self.text.startswith(";", self.at):
            if self.text.startswith("<", self.at):
                self.at += 1
                self._word_or_domain(dotted=True)
                if not self._take(">"):
                    raise self.refusal("received", "has an angle bracket that does not close")
            else:
                self._word_or_domain(dotted=True)
            self.cfws()
        tokens = self.text[start : self.at].replace("\r\n", "").strip(" \t")
        self.at += 1
        return tokens, self.date()

    def _word_or_domain(self, *, dotted: bool) -> None:
        self.cfws()
        for pattern in (_DOT_ATOM, _QUOTED, _LITERAL):
            match = pattern.match(self.text, self.at)
            if match is not None:
                self.at = match.end()
                break
        else:
            raise self.refusal("received", "has no word, address, domain or ; date")
        if dotted and self._take("@"):
            self._word_or_domain(dotted=False)

    def _comment(self) -> None:
        start, depth = self.at, 0
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in "()":
                depth += 1 if char == "(" else -1
                self.at += 1
                if depth == 0:
                    return
                if depth > COMMENT_DEPTH:
                    break
                continue
            match = _COMMENT_TEXT.match(self.text, self.at)
            if match is None:
                break
            self.at = match.end()
        raise self.refusal("comment", "has a comment that does not close", start)

    def _address(self, groups: bool) -> Mailbox | Group:
        self.cfws()
        start = self.at
        local = _DOT_ATOM.match(self.text, start) or _QUOTED.match(self.text, start)
        if local is not None:
            self.at = local.end()
            self.cfws()
            if self.text.startswith("@", self.at):
                self.at = start
                return Mailbox(name="", address=self._addr_spec())
            self.at = start
        name = self._phrase("address-syntax")
        if self._take("<"):
            address = self._addr_spec()
            if not self._take(">"):
                raise self.refusal("address-syntax", "has an address that does not end with >")
            self.cfws()
            return Mailbox(name=name, address=address)
        if groups and name and self._take(":"):
            return Group(name=name, members=self._members())
        raise self.refusal("address-syntax", "is not an address")

    def _members(self) -> tuple[Mailbox, ...]:
        self.cfws()
        members: list[Mailbox] = []
        while not self._take(";"):
            if members and not self._take(","):
                raise self.refusal("address-group", "has a group that does not end with ;")
            member = self._address(groups=False)
            assert isinstance(member, Mailbox)
            members.append(member)
        self.cfws()
        return tuple(members)

    def _addr_spec(self) -> Address:
        """local-part "@" domain, each with comments around it (3.4.1)."""
        self.cfws()
        start = self.at
        local = _DOT_ATOM.match(self.text, start) or _QUOTED.match(self.text, start)
        if local is None:
            raise self.refusal("address-syntax", "has no local part")
        self.at = local.end()
        self.cfws()
        if not self._take("@"):
            raise self.refusal("address-syntax", "has no @ behind a local part")
        self.cfws()
        domain = _DOT_ATOM.match(self.text, self.at) or _LITERAL.match(self.text, self.at)
        if domain is None:
            raise self.refusal("address-syntax", "has no domain behind @")
        self.at = domain.end()
        self.cfws()
        literal = re.sub(r"[ \t\r\n]", "", domain[0])
        try:
            return parse_address(
                f"{local[0].replace(chr(13) + chr(10), '')}@{literal}", header=self.header
            )
        except InvalidAddress as error:
            whole = self.refusal(error.rule, "has an invalid address", start)
            error.position = whole.position
            raise

    def _phrase(self, rule: str = "phrase") -> str:
        """1*word, encoded-words decoded (3.2.5, RFC 2047 section 5); "" before an angle bracket."""
        pieces: list[str] = []
        encoded: list[str] = []
        self.cfws()
        spaced = False
        while True:
            atom = _ATOM.match(self.text, self.at)
            quoted = _QUOTED.match(self.text, self.at) if atom is None else None
            is_word = atom is not None and WORD.fullmatch(atom[0]) is not None
            if encoded and not is_word:
                pieces.append(decode_words(" ".join(encoded)))
                encoded.clear()
            if atom is None and quoted is None:
                break
            if pieces and spaced and not encoded:
                pieces.append(" ")
            if atom is not None and is_word:
                encoded.append(atom[0])
                self.at = atom.end()
            elif atom is not None:
                pieces.append(atom[0])
                self.at = atom.end()
            elif quoted is not None:
                pieces.append(_ESCAPED.sub(r"\1", quoted[1].replace("\r\n", "")))
                self.at = quoted.end()
            spaced = self.cfws()
        if not pieces and not (rule == "address-syntax" and self.text.startswith("<", self.at)):
            raise self.refusal(rule, "has no words where they belong")
        return "".join(pieces)

    def _take(self, char: str) -> bool:
        if self.text.startswith(char, self.at):
            self.at += 1
            return True
        return False
