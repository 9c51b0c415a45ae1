"""Raw header values of message objects: names checked, values turned into text or mailboxes.

Objects hold a value as ``str`` (set by hand or parsed, perhaps folded, perhaps with escaped
octets), as a legacy ``Header`` or as a ``headerregistry`` object. All become one line of text, or
are refused: CR, LF and NUL wherever they are not legal folding, octets that are not UTF-8,
addresses that two readers would read differently. Rendering is the part of ``header``.
"""

from __future__ import annotations

import re
from typing import Any

from mailstrom.errors import InvalidAddress, InvalidMessage
from mailstrom.message.address import Address, parse_address, quote_local
from mailstrom.message.address_list import Entries, Group, Mailbox, parse_address_list
from mailstrom.message.charset import codec_of
from mailstrom.message.encoded_word import encode_words
from mailstrom.message.grammar import LINE_BREAK, refusal
from mailstrom.message.parameters import Parameterised, parse_parameterised

_NAME = re.compile(r"[!-9;-~]+").fullmatch
_UNFOLD = re.compile(r"\r?\n(?=[ \t]+[^ \t\r\n])")
SURROGATE = re.compile("[\ud800-\udfff]").search


# What an address cannot be in; walking them all was a tenth of the time to compose an object.
_NO_ADDRESS = frozenset({"display-name", "cfws", "fws", "comment", "list-separator", "atext"})


def check_name(name: object) -> str:
    """Lower-case field name.

    Raises:
        InvalidMessage: rule ``"header-injection"`` (line break, NUL) or ``"header-name"``.
    """
    if isinstance(name, str) and _NAME(name) is not None and len(name) <= 200:
        return name.lower()
    shown = str(name)[:60]
    if LINE_BREAK.search(str(name)):
        raise refusal(
            repr(shown),
            "has a line break or NUL in its name",
            "remove it",
            name,
            "header-injection",
        )
    raise refusal(
        repr(shown),
        "has an invalid name",
        "use printable ASCII without spaces and colons (RFC 5322 section 2.2)",
        name,
        "header-name",
    )


def is_decoded(value: object) -> bool:
    """Whether a value is a ``headerregistry`` object: its text is what a person reads."""
    return isinstance(value, str) and hasattr(value, "defects")


def wire_text(name: str, value: object) -> str:
    """A raw header value as unfolded text, encoded-words still encoded.

    Args:
        name: field name, for the error.
        value: ``str`` (surrogate-escaped UTF-8 allowed), ``headerregistry`` object or ``Header``.

    Returns:
        One line of text: no CR, LF, NUL or surrogates.

    Raises:
        InvalidMessage: rules ``"header-injection"``, ``"header-undecodable"``, ``"header-type"``.
    """
    if isinstance(value, str):
        text = str(value)
        decoded = is_decoded(value)
    elif hasattr(value, "_chunks"):
        text = _from_header(name, value)
        decoded = False
    else:
        raise refusal(
            name,
            f"has a value of type {type(value).__name__}",
            "set it to a str",
            value,
            "header-type",
        )
    if not text.isascii() and SURROGATE(text):
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeError:
            raise refusal_undecodable(name, value) from None
    if LINE_BREAK.search(text):
        if not decoded:
            text = _UNFOLD.sub("", text)
        if LINE_BREAK.search(text):
            raise refusal(
                name,
                "has a line break or NUL in its value",
                "remove it; a header is one line, Mailstrom folds it",
                value,
                "header-injection",
            )
    return text


def parameters_of(name: str, value: object) -> Parameterised:
    """Value and decoded parameters of a Content-Type or Content-Disposition field."""
    return parse_parameterised(wire_text(name, value), header=name)


def entries_of(name: str, value: Any, text: str) -> Entries:
    """Mailboxes of an address field, from the parsed object where the caller built one.

    Args:
        name: field name, for the error.
        value: the raw value.
        text: its ``wire_text``.

    Raises:
        InvalidAddress: the value reads more than one way, or an address is invalid.
    """
    if not hasattr(value, "groups"):
        return parse_address_list(text, header=name)
    for defect in value.defects:
        # Obsolete forms all readers agree on pass; "invalid" means that readers disagree.
        if type(defect).__name__ == "InvalidHeaderDefect":
            raise InvalidAddress(
                f"address list in {name} is malformed ({defect}): {text[:120]!r}; "
                "write 'Name <local@domain>' entries separated by commas",
                header=name,
                value=text,
                rule="address-syntax",
            )
    _refuse_encoded_address(name, getattr(value, "_parse_tree", None), text)
    found: list[Mailbox | Group] = []
    for group in value.groups:
        members = tuple(
            Mailbox(name=member.display_name, address=_address(name, member))
            for member in group.addresses
        )
        if group.display_name is None:
            found.extend(members)
        else:
            found.append(Group(name=group.display_name, members=members))
    return tuple(found)


def _address(name: str, member: Any) -> Address:
    if not member.domain and not member.username:
        return parse_address("", header=name)
    if not member.domain:
        return parse_address(member.username, header=name)
    return parse_address(f"{quote_local(member.username)}@{member.domain}", header=name)


def _refuse_encoded_address(name: str, tree: Any, text: str, inside: bool = False) -> None:
    """The standard library decodes encoded-words inside addresses; nobody else has to."""
    if not isinstance(tree, list):
        return
    for token in tree:
        kind = getattr(token, "token_type", "")
        if kind in _NO_ADDRESS:
            continue
        if inside and kind == "encoded-word":
            raise InvalidAddress(
                f"address in {name} holds an encoded-word: {text[:120]!r}; "
                "RFC 2047 section 5 allows none in an address, write it decoded",
                header=name,
                value=text,
                rule="local-encoded-word",
            )
        _refuse_encoded_address(name, token, text, inside or kind in ("addr-spec", "domain"))


def _from_header(name: str, value: Any) -> str:
    """Wire text of a legacy ``Header``: ASCII chunks as they are, others as encoded-words."""
    from email.header import decode_header

    pieces: list[str] = []
    try:
        for octets, charset in decode_header(value):
            if isinstance(octets, str):
                pieces.append(octets)
            elif charset in (None, "us-ascii"):
                pieces.append(str(octets.decode("ascii")))
            else:
                codec = "utf-8" if charset == "unknown-8bit" else charset
                text = str(octets.decode(codec_of(codec)))
                if LINE_BREAK.search(text):
                    return text
                pieces.extend(encode_words(text))
    except (LookupError, ValueError, AttributeError, TypeError):
        raise refusal_undecodable(name, value) from None
    return " ".join(pieces)


def refusal_undecodable(name: str, value: object) -> InvalidMessage:
    """InvalidMessage for a value that is no text: rule ``"header-undecodable"``."""
    return refusal(
        name,
        "has octets that are not UTF-8",
        "decode it to text first",
        value,
        "header-undecodable",
    )
