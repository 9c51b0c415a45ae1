"""Leaves of MIME trees: 7-bit lines that decode to the octets the caller gave (RFC 2045 section 6).

A leaf keeps its transfer encoding where its octets are legal as they stand; else text becomes
quoted-printable and the rest base64. Line ends may only be rewritten in text and message/ parts
(RFC 2046 sections 4.1.1 and 5.2): any other part, and text in a charset whose line ends are not
the octets CR LF (UTF-16, UTF-32, EBCDIC), stays as it is only if not one octet of it changes, and
is base64 otherwise. Under a signature the signer has settled the line ends, so that CRLF is written
there. Knows one leaf and no tree.
"""

from __future__ import annotations

import binascii
import re
from functools import lru_cache

from mailstrom.errors import InvalidMessage
from mailstrom.message.charset import codec_of
from mailstrom.message.header import LINE_LIMIT
from mailstrom.message.parameters import Parameterised

CRLF = b"\r\n"
LITERAL_ENCODINGS = frozenset({"", "7bit", "8bit", "binary"})

_BASE64_LINE = 57  # octets that make a line of 76
_LINED = ("text/", "message/")


def render_leaf(
    payload: object,
    content_type: Parameterised,
    encoding: str,
    *,
    signed: bool = False,
    framed: bool = False,
) -> tuple[bytes, str | None]:
    """Render the body of a part that holds no parts.

    Args:
        payload: text (surrogate-escaped octets allowed), octets or None, in the given encoding.
        content_type: the part's type.
        encoding: lower-case Content-Transfer-Encoding, ``""`` where there is none.
        signed: covered by a signature: line ends become CRLF, whatever the type.
        framed: a MIME delimiter follows; elsewhere the last line of the mail gets its end.

    Returns:
        The body in CRLF lines, and the transfer encoding to write, None to leave it as it is.

    Raises:
        InvalidMessage: rules ``"transfer-encoding"``, ``"body-charset"``, ``"payload-type"``.
    """
    octets = _octets(payload, content_type)
    lines = _lines(octets)
    text = content_type.value[:5].lower() == "text/"
    if not signed and not _may_rewrite_lines(content_type):
        if text:
            _check_text(octets, encoding, content_type)
            text = False
        if lines is not None and not _same(lines, octets, encoding, framed=framed):
            lines = None
    if lines is not None:
        # "8bit" or "binary" over 7-bit lines only asks servers for what the part does not need.
        return lines, "7bit" if encoding in ("8bit", "binary") else None
    if encoding == "base64":
        try:
            octets = binascii.a2b_base64(b"".join(octets.split()), strict_mode=True)
        except binascii.Error as error:
            raise _refusal(
                f"a part says base64 and is not ({error})",
                "encode it, or leave the encoding to Mailstrom",
                "transfer-encoding",
                "Content-Transfer-Encoding",
                encoding,
            ) from None
        return _base64(octets), "base64"
    if encoding not in LITERAL_ENCODINGS:
        if encoding != "quoted-printable" or not octets.isascii() or b"\0" in octets:
            raise _refusal(
                f"a part with Content-Transfer-Encoding {encoding!r} has octets it may not have",
                "encode the part, or leave the encoding to Mailstrom",
                "transfer-encoding",
                "Content-Transfer-Encoding",
                encoding,
            )
        octets = binascii.a2b_qp(octets)
    if text:
        return quoted_printable(octets), "quoted-printable"
    return _base64(octets), "base64"


def too_long_line(octets: bytes) -> int | None:
    """Start of the first CRLF line over 998 octets without its CRLF (RFC 5322 section 2.1.1).

    Looks at about one octet in 998: from each line start the last LF within reach is the next stop.
    """
    at, end = 0, len(octets)
    while end - at > LINE_LIMIT:
        last = octets.rfind(b"\n", at, at + LINE_LIMIT + 2)
        if last < 0:
            return at
        at = last + 1
    return None


def _octets(payload: object, content_type: Parameterised) -> bytes:
    """Payload of a leaf as the octets it stands for before any line-end conversion."""
    if payload is None:
        return b""
    if isinstance(payload, (bytes, bytearray)):
        return bytes(payload)
    if not isinstance(payload, str):
        raise _refusal(
            f"a part's payload is a {type(payload).__name__}",
            "set it to text or bytes",
            "payload-type",
        )
    try:
        return payload.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        charset = content_type.get("charset")
    try:
        if charset is not None:
            return payload.encode(codec_of(charset))
    except (LookupError, ValueError):
        pass
    raise _refusal(
        f"a part holds non-ASCII text that its charset ({charset}) cannot express",
        "use set_content(text), or set_payload(text, 'utf-8')",
        "body-charset",
        "Content-Type",
        charset,
    )


def _lines(octets: bytes) -> bytes | None:
    """The octets as CRLF lines if they are legal 7-bit mail as they stand, else None."""
    if not octets.isascii() or b"\0" in octets:
        return None
    if b"\r" in octets:
        octets = octets.replace(CRLF, b"\n")
        if b"\r" in octets:
            return None
    octets = octets.replace(b"\n", CRLF)
    return None if too_long_line(octets) is not None else octets


def _may_rewrite_lines(content_type: Parameterised) -> bool:
    """Whether a line end is a line end here, and no octets that mean something else."""
    if not content_type.value.lower().startswith(_LINED):
        return False
    charset = content_type.get("charset")
    return charset is None or _has_ascii_lines(charset.lower())


@lru_cache(maxsize=64)
def _has_ascii_lines(charset: str) -> bool:
    try:
        return "\r\n".encode(codec_of(charset)) == CRLF
    except (LookupError, ValueError):  # unknown: octets over ASCII lines, as nearly all are
        return True


def _same(lines: bytes, octets: bytes, encoding: str, *, framed: bool) -> bool:
    """Whether the lines as they arrive decode to what the octets decode to."""
    if encoding in LITERAL_ENCODINGS:
        same = lines == octets
    elif encoding == "quoted-printable":
        same = binascii.a2b_qp(lines) == binascii.a2b_qp(octets)
    else:
        return True  # base64 has no lines; what else there is is nobody's to judge
    return same and (framed or not lines or lines.endswith(CRLF))


def _check_text(octets: bytes, encoding: str, content_type: Parameterised) -> None:
    """Refuse text that was cut at its 0A octets before it came here, as ``set_content`` does."""
    charset = content_type.get("charset") or ""
    try:
        if encoding == "base64":
            octets = binascii.a2b_base64(octets)
        elif encoding == "quoted-printable":
            octets = binascii.a2b_qp(octets)
        octets.decode(codec_of(charset))
    except (binascii.Error, LookupError, ValueError) as error:
        reason = str(error)
    else:
        return
    raise _refusal(
        f"a part's octets are no text in its charset {charset} ({reason[:80]})",
        "use set_content(text), which takes utf-8",
        "body-charset",
        "Content-Type",
        charset,
    )


def quoted_printable(octets: bytes) -> bytes:
    """Quoted-printable of text: line ends stay line ends, everything else survives exactly."""
    lines = octets.replace(CRLF, b"\n").split(b"\n")
    encoded = CRLF.join(binascii.b2a_qp(line, istext=False) for line in lines)
    # Soft breaks come as a bare LF.
    return re.sub(rb"(?<!\r)\n", CRLF, encoded)


def _base64(octets: bytes) -> bytes:
    return b"".join(
        binascii.b2a_base64(octets[at : at + _BASE64_LINE], newline=False) + CRLF
        for at in range(0, len(octets), _BASE64_LINE)
    )


def _refusal(
    what: str, fix: str, rule: str, header: str | None = None, value: object = None
) -> InvalidMessage:
    return InvalidMessage(f"{what}; {fix}", header=header, value=value, rule=rule)
