"""The third part of a delivery report: the original, its header, or nothing (RFC 6522, 6533).

A failure returns the message whole where it was handed over whole, anything else its header (RFC
3461 section 6.2). ``message/rfc822`` and ``text/rfc822-headers`` for what is ASCII. Those may not
be encoded (RFC 2046 section 5.2.1), ``message/global`` and ``message/global-headers`` may (RFC 6532
section 3.7): what holds UTF-8 in its header, or eight bits anywhere, goes in these, encoded, octet
by octet what was sent. So the part is ASCII, whatever the original was, and a host that knows
neither 8BITMIME nor SMTPUTF8 takes it. Only where the report needs SMTPUTF8 anyway, which includes
8BITMIME (RFC 6531 section 3.1), nothing is encoded. A content that no part can hold as it stands
(bare line ends, NUL, lines beyond 998 octets, a header that is not UTF-8) is not returned whole;
its header is, encoded.
"""

from __future__ import annotations

import base64

from mailstrom.message.leaf import CRLF, quoted_printable, too_long_line
from mailstrom.message.report_facts import Original, Part, end_of_header, part

MOST_HEADER = 64 * 1024
"""Octets of a header that is returned alone; of a longer one the first fields."""

_WHOLE = "Undelivered message"
_HEADER = "Header of the message"
_EIGHT = bytes(range(0x80, 0x100))


def returned(original: Original, *, failed: bool, utf8: bool) -> Part | None:
    """The part; None where nothing is left of the original, or nothing of it may be shown.

    Args:
        original: the message.
        failed: it could not be delivered to somebody.
        utf8: the report needs SMTPUTF8 in any case.
    """
    content = original.content
    if original.redacted or not content:
        return None
    header = content[: end_of_header(content)]
    international = not header.isascii() and _is_utf8(header)
    if original.whole and failed and (header.isascii() or international) and _holds(content):
        if international:
            return _global("message/global", _WHOLE, content, utf8=utf8)
        if content.isascii():
            return part("message/rfc822", _WHOLE, "7bit", content)
        if utf8:
            return part("message/rfc822", _WHOLE, "8bit", content)
        return _global("message/global", _WHOLE, content, utf8=False)
    header = _bounded(header)
    if not header:
        return None
    if international and _holds(header):
        return _global("message/global-headers", _HEADER, header, utf8=utf8)
    if header.isascii() and _holds(header):
        return part("text/rfc822-headers", _HEADER, "7bit", header)
    return part("text/rfc822-headers", _HEADER, "quoted-printable", quoted_printable(header))


def _global(kind: str, description: str, octets: bytes, *, utf8: bool) -> Part:
    if utf8:
        return part(kind, description, "8bit", octets)
    # Three octets for each of eight bits, or four for three of all: the shorter one.
    if 6 * (len(octets) - len(octets.translate(None, _EIGHT))) > len(octets):
        return part(kind, description, "base64", base64.encodebytes(octets).replace(b"\n", CRLF))
    return part(kind, description, "quoted-printable", quoted_printable(octets))


def _bounded(header: bytes) -> bytes:
    """The header, or its first whole lines."""
    if len(header) <= MOST_HEADER:
        return header
    cut = header.rfind(b"\n", 0, MOST_HEADER)
    return header[: cut + 1] if cut >= 0 else header[:MOST_HEADER]


def _holds(octets: bytes) -> bool:
    """Whether a part without an encoding may hold them (RFC 2045 section 2.7 and 2.8)."""
    pairs = octets.count(CRLF)
    clean = pairs == octets.count(b"\n") == octets.count(b"\r") and b"\0" not in octets
    return clean and too_long_line(octets) is None


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
