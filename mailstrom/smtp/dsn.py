"""Delivery status parameters: xtext and ORCPT in and out, NOTIFY, RET and ENVID as values.

Contract: RFC 3461 section 4 (xtext; ENVID of at most 100 characters, ORCPT of at most 500, both
printable ASCII once decoded, since they go into the fields of a report) and RFC 6533 section 3
(``utf-8`` addresses, as 7-bit text or, under SMTPUTF8, as UTF-8). Decoded values are what is stored
and shown. What is read is either whole or ``BadValue``; what cannot be said within these bounds is
left out of a command, since the mail counts more than its label.

Must not know: commands, who asks for a report, when one is made.
"""

from __future__ import annotations

import re

Asked = tuple[str | None, str | None]
"""What is asked for one recipient: NOTIFY as ``"never"`` or a list such as ``"failure,delay"``, and
ORCPT decoded, ``"rfc822;a@b"``; each None where it was not said."""

MOST_ENVID = 100
MOST_ORCPT = 500
NEVER = "never"
RETURNS = ("full", "hdrs")
EVENTS = ("success", "failure", "delay")  # in the order in which they are written

_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*/?^_`{|}~-]+")  # an atom of RFC 5322, less + and =
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-Fa-f]{2})*")
_HEX = re.compile(r"\+([0-9A-Fa-f]{2})")
_PLAIN = re.compile(r"[\x21-\x2a\x2c-\x3c\x3e-\x7e]*")
_TO_ENCODE = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x7e]")

_UTF8_TYPE = "utf-8"
_UNICODE = re.compile(r"\\x\{([0-9A-F]{2,6})\}")
# RFC 6533: no backslash, plus or equals sign stands for itself; embedded they may
_QUOTED_UTF8 = re.compile(r"(?:[^\x00-\x20\x7f-\x9f\\+=]|\\x\{[0-9A-F]{2,6}\})+")
_TO_EMBED = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e]")
_TO_EMBED_IN_UTF8 = re.compile(r"[\x00-\x20\x7f-\x9f\\+=]")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class BadValue(ValueError):
    """A parameter's value is not what its document allows; the text may be sent back."""


def encode_xtext(text: str) -> str:
    """Printable ASCII as xtext (RFC 3461 section 4).

    Raises:
        BadValue: a character that xtext cannot carry.
    """
    if _PLAIN.fullmatch(text):
        return text
    if not _PRINTABLE.fullmatch(text):
        raise BadValue("xtext carries printable ASCII only")
    return _TO_ENCODE.sub(lambda found: f"+{ord(found[0]):02X}", text)


def decode_xtext(text: str) -> str:
    """What xtext stands for.

    Raises:
        BadValue: no xtext, or one of anything but printable ASCII.
    """
    if _PLAIN.fullmatch(text):
        return text
    if not _XTEXT.fullmatch(text):
        raise BadValue("not xtext")
    plain = _HEX.sub(lambda found: chr(int(found[1], 16)), text)
    if not _PRINTABLE.fullmatch(plain):
        raise BadValue("xtext of what is not printable ASCII")
    return plain


def decode_envid(text: str) -> str:
    """The envelope identifier of an ENVID parameter.

    Raises:
        BadValue: empty, too long, or no xtext.
    """
    if not 0 < len(text) <= MOST_ENVID:
        raise BadValue(f"ENVID has 1 to {MOST_ENVID} characters")
    return decode_xtext(text)


def decode_orcpt(text: str) -> str:
    """Type and decoded address of an ORCPT parameter, ``"rfc822;a@b"``.

    Raises:
        BadValue: too long, without a type or an address, or of characters that may not stand there.
    """
    if len(text) > MOST_ORCPT:
        raise BadValue(f"ORCPT has at most {MOST_ORCPT} characters")
    kind, found, encoded = text.partition(";")
    if not (found and encoded and _TYPE.fullmatch(kind)):
        raise BadValue("ORCPT has a type, a semicolon and an address")
    known = kind.lower() in ("rfc822", _UTF8_TYPE)
    if known and (utf8 := _utf8_in_xtext(encoded)) is not None:
        return f"{_UTF8_TYPE};{utf8}"
    if kind.lower() != _UTF8_TYPE:
        return f"{kind};{decode_xtext(encoded)}"
    if "+" in encoded:  # some encode the 7-bit form once more
        encoded = decode_xtext(encoded)
    elif not _QUOTED_UTF8.fullmatch(encoded):
        raise BadValue("not an address of type utf-8")
    try:
        address = _UNICODE.sub(lambda found: chr(int(found[1], 16)), encoded)
    except (ValueError, OverflowError):
        raise BadValue("not a character of Unicode") from None
    if _UNSAFE.search(address):
        raise BadValue("an address of characters that belong in none")
    return f"{kind};{address}"


def _utf8_in_xtext(encoded: str) -> str | None:
    """What Postfix makes of a UTF-8 address, before RFC 6533: its octets as xtext; None: no such.

    Raises:
        BadValue: octets that are no address, nor UTF-8.
    """
    if "+" not in encoded or not _XTEXT.fullmatch(encoded):
        return None
    octets = _HEX.sub(lambda found: chr(int(found[1], 16)), encoded).encode("latin-1")
    if octets.isascii():
        return None
    try:
        address = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise BadValue("xtext of what is neither ASCII nor UTF-8") from None
    if _UNSAFE.search(address) or " " in address:
        raise BadValue("an address of characters that belong in none")
    return address


def encode_orcpt(orcpt: str, *, smtputf8: bool = False) -> str:
    """A decoded ``type;address`` as the value of ORCPT.

    Args:
        orcpt: as ``decode_orcpt`` gives it; UTF-8 of type rfc822 goes as type utf-8.
        smtputf8: the transaction is one of RFC 6531: UTF-8 may stand as it is.

    Raises:
        BadValue: no type, no address, or too long.
    """
    kind, _, address = orcpt.partition(";")
    if not address or not _TYPE.fullmatch(kind) or _UNSAFE.search(address):
        raise BadValue("ORCPT has a type, a semicolon and an address")
    if not address.isascii():
        kind = _UTF8_TYPE
    if kind.lower() == _UTF8_TYPE:
        embedded = _TO_EMBED_IN_UTF8 if smtputf8 else _TO_EMBED
        encoded = embedded.sub(lambda found: f"\\x{{{ord(found[0]):02X}}}", address)
    else:
        encoded = encode_xtext(address)
    value = f"{kind};{encoded}"
    if len(value.encode()) > MOST_ORCPT:
        raise BadValue(f"ORCPT has at most {MOST_ORCPT} characters")
    return value


def read_notify(text: str) -> str:
    """The value of NOTIFY in its one form: ``"never"``, or a list in lower case without repeats.

    Raises:
        BadValue: an unknown word, a word twice, or NEVER beside others (RFC 3461 section 4.1).
    """
    words = text.lower().split(",")
    if words == [NEVER]:
        return NEVER
    if len(set(words)) != len(words) or not set(words) <= set(EVENTS):
        raise BadValue("NOTIFY is NEVER, or a list of SUCCESS, FAILURE, DELAY")
    return ",".join(word for word in EVENTS if word in words)


def mail_parameters(ret: str | None, envid: str | None) -> str:
    """``RET`` and ``ENVID`` for MAIL, a space before each; an ENVID beyond its bounds is left out.

    Args:
        ret: ``"full"``, ``"hdrs"`` or None.
        envid: decoded, or None.
    """
    out = f" RET={ret.upper()}" if ret in RETURNS else ""
    if envid:
        try:
            value = encode_xtext(envid)
        except BadValue:
            return out
        if len(value) <= MOST_ENVID:
            out += f" ENVID={value}"
    return out


def rcpt_parameters(asked: Asked, recipient: str, *, smtputf8: bool = False) -> str:
    """``NOTIFY`` and ``ORCPT`` for RCPT, a space before each.

    Where reports are asked for and nobody said who was addressed at first, it is this recipient
    (RFC 3461 section 5.2.1). What is beyond its bounds is left out.

    Args:
        asked: NOTIFY and ORCPT.
        recipient: the address of this RCPT.
        smtputf8: the transaction is one of RFC 6531.
    """
    notify, orcpt = asked
    out = ""
    if notify is not None:
        try:
            out = f" NOTIFY={read_notify(notify).upper()}"
        except BadValue:
            return out
        if orcpt is None and notify != NEVER:
            orcpt = f"rfc822;{recipient}"
    if orcpt is not None:
        try:
            out += f" ORCPT={encode_orcpt(orcpt, smtputf8=smtputf8)}"
        except BadValue:
            return out
    return out
