"""The second part of a delivery report: ``message/delivery-status`` (RFC 3464, 6533).

One block of fields for the message and one for each recipient. Every value is foreign text: what
is not printable, and where the part is ASCII what is not ASCII, becomes ``\\x{...}`` as RFC 6533
writes it, so that no value ends its field; values are bounded and folded. An address that is not
ASCII has the type ``utf-8``; in an ASCII part it takes the form of RFC 6533 that ASCII can hold.

**Status.** The enhanced code that was given, where its class is one that the action may have. A
recipient that was given up after too long keeps the class 4 of what kept it: the first example of
RFC 3464 has it so, RFC 3463 prefers the actual problem over x.4.7, Postfix does the same, and a
program that takes addresses off its list at a 5 must not do so because a host was down. What is
only delayed never has a 5. Where nothing fits, a table by reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from mailstrom.message.date import render_date
from mailstrom.message.header import FOLD_AT, fold
from mailstrom.message.leaf import CRLF
from mailstrom.message.report_facts import Fate, Original, Part, part
from mailstrom.types import Reason

MOST_WORDS = 1000
"""Characters of a reply that are repeated; where very many recipients are told of, fewer."""
ALL_WORDS = 200_000
"""Characters of all replies together, if the least for each one allows it."""
LEAST_WORDS = 200
_MOST_NAME = 600  # characters of an address, a host or an envelope id
_PIECE = 200  # characters without white space that stay in one piece

_WORDS = re.compile(r"[ \t]*[^ \t]+")
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}").fullmatch
_TYPED = re.compile(r"([A-Za-z0-9-]{1,40});(.+)", re.DOTALL).fullmatch
_HELO = re.compile(r"[A-Za-z0-9.:_-]{1,255}|\[[A-Za-z0-9.:]{1,255}\]").fullmatch

STATUSES: dict[str, str] = {
    "bounced": "5.0.0",
    "expired": "4.4.7",
    "null_mx": "5.1.10",
    "no_domain": "5.1.2",
    "loop": "5.4.6",
    "policy": "5.7.1",
    "too_large": "5.3.4",
    "unsupported": "5.6.3",
    "damaged": "5.3.0",
    "suppressed": "5.7.1",
    "in_doubt": "5.4.2",
    "dns": "4.4.3",
    "connect": "4.4.1",
    "tls": "4.7.10",
    "remote": "4.0.0",
    "rate": "4.3.2",
    "local": "4.3.0",
}
"""Status by the word of a reason, where no reply gave one (RFC 3463 and its registry)."""
_OTHERWISE = {"failed": "5.0.0", "delayed": "4.0.0", "relayed": "2.0.0", "delivered": "2.0.0"}


def status_of(fate: Fate) -> str:
    """The Status field: three numbers, the first one what the action allows."""
    given = fate.enhanced_code or ""
    known = _STATUS(given) is not None
    if fate.action == "failed":
        classes = "4" if fate.reason == Reason.EXPIRED else "5"
    else:
        classes = "4" if fate.action == "delayed" else "2"
    if known and given[0] == classes:
        return given
    if known and given[0] != "2" and classes == "4":
        return f"4{given[1:]}"  # refused for good by a host that is asked again all the same
    derived = STATUSES.get(fate.reason or "", "")
    return derived if derived[:1] == classes else _OTHERWISE[fate.action]


def delivery_status(
    original: Original, fates: Sequence[Fate], *, hostname: str, utf8: bool
) -> Part:
    """The part.

    Args:
        original: the message.
        fates: its recipients.
        hostname: who reports.
        utf8: the report needs SMTPUTF8 in any case: then this part may hold UTF-8.
    """
    writing = _Writing(utf8=utf8)
    writing.field("Reporting-MTA", f"dns; {hostname}")
    if original.envelope_id:
        writing.field("Original-Envelope-Id", original.envelope_id)
    if original.came_from and _HELO(original.came_from):
        writing.field("Received-From-MTA", f"dns; {original.came_from}")
    writing.field("Arrival-Date", _date(original.arrived_ms))
    writing.field("X-Mailstrom-Id", original.id)
    most = max(LEAST_WORDS, min(MOST_WORDS, ALL_WORDS // max(1, len(fates))))
    for fate in fates:
        writing.blank()
        _recipient(writing, fate, most)
    octets = b"".join(writing.lines)
    if octets.isascii():
        kind, encoding = "message/delivery-status", "7bit"
    else:
        kind, encoding = "message/global-delivery-status", "8bit"
    return part(kind, "Delivery report", encoding, octets)


def _recipient(writing: _Writing, fate: Fate, most: int) -> None:
    typed = _TYPED(fate.original or "")
    if typed is not None:
        kind, address = typed.groups()
        writing.address("Original-Recipient", address, kind)
    writing.address("Final-Recipient", fate.address)
    writing.field("Action", fate.action)
    writing.field("Status", status_of(fate))
    if fate.host and fate.reply_code is not None:
        writing.field("Remote-MTA", f"dns; {fate.host}")
    if fate.reply_code is not None:
        said = " ".join(
            str(one) for one in (fate.reply_code, fate.enhanced_code, fate.reply_text) if one
        )
        writing.field("Diagnostic-Code", f"smtp; {said}", most)
    elif fate.reply_text:
        writing.field("Diagnostic-Code", f"X-Mailstrom; {fate.reply_text}", most)
    if fate.tried_ms is not None:
        writing.field("Last-Attempt-Date", _date(fate.tried_ms))
    if fate.action == "delayed" and fate.until_ms is not None:
        writing.field("Will-Retry-Until", _date(fate.until_ms))


class _Writing:
    """Fields as they are written, one after another.

    Args:
        utf8: whether UTF-8 may stand in them.
    """

    __slots__ = ("_utf8", "lines")

    def __init__(self, *, utf8: bool) -> None:
        self._utf8 = utf8
        self.lines: list[bytes] = []

    def blank(self) -> None:
        """Begin another block."""
        self.lines.append(CRLF)

    def field(self, name: str, value: str, most: int = _MOST_NAME) -> None:
        """Write a value, whatever it holds, as one field."""
        text = self._printable(value, most)
        if not text:
            return
        if len(name) + len(text) + 2 <= FOLD_AT and text.isascii():  # nearly all
            self.lines.append(f"{name}: {text}\r\n".encode("ascii"))
            return
        pieces: list[str] = []
        for word in _WORDS.findall(text):
            pieces.append(word[:_PIECE])
            if len(word) > _PIECE:  # for a line: it is cut, and reads with blanks in between
                pieces += (" " + word[at : at + _PIECE] for at in range(_PIECE, len(word), _PIECE))
        self.lines.append(fold(name, pieces))

    def address(self, name: str, address: str, kind: str | None = None) -> None:
        """Write an address with its type; of another type than mail's as it was given."""
        if kind is None:
            kind = "rfc822" if address.isascii() else "utf-8"
        if kind.lower() == "utf-8" and not self._utf8:
            address = "".join(map(_xtext, address[:_MOST_NAME]))
            self.lines.append(fold(name, _cut(f"{kind}; ", address)))
            return
        self.field(name, f"{kind}; {address}")

    def _printable(self, text: str, most: int) -> str:
        cut = len(text) > most
        text = text[:most].strip(" \t")
        if not (text.isascii() and text.isprintable()):
            text = "".join(
                one
                if one.isprintable() and (self._utf8 or one.isascii())
                else f"\\x{{{ord(one):X}}}"
                for one in text
            )
        if "=?" in text and "?=" in text:
            # Readers may decode encoded-words here, with the line breaks that are inside of them.
            text = text.replace("=?", "= ?")
        return f"{text} ..." if cut else text


def _xtext(one: str) -> str:
    """A character as ``utf-8-addr-xtext`` has it (RFC 6533 section 3)."""
    return one if "!" <= one <= "~" and one not in "+=\\" else f"\\x{{{ord(one):X}}}"


def _cut(lead: str, text: str) -> list[str]:
    """A text without white space, laid out in pieces that a line holds."""
    first, rest = lead + text[:_PIECE], range(_PIECE, len(text), _PIECE)
    return [first, *(" " + text[at : at + _PIECE] for at in rest)]


def _date(ms: int) -> str:
    return render_date(datetime.fromtimestamp(ms / 1000, UTC))
