"""Parts of a submitted message that no server has to take, written so that every server takes them.

What RFC 6409 section 8 leaves to a submission server: encoded-words for raw 8-bit text in headers
(RFC 2047), folds for header lines that are too long, a transfer encoding for bodies with lines over
998 octets, NUL or a CR alone (8.4), a domain for addresses without one (section 6.2). The meaning
stays; what cannot be written otherwise with certainty is given back as None, and a signature is
never broken. Knows fields and bodies, not which of them a submission looks at.
"""

from __future__ import annotations

import re

from mailstrom.errors import InvalidMessage
from mailstrom.message.charset import codec_of
from mailstrom.message.grammar import COMMENT_DEPTH
from mailstrom.message.header import Kind, kind_of, render_field
from mailstrom.message.leaf import CRLF, render_leaf, too_long_line
from mailstrom.message.parameters import Parameterised, parse_parameterised

FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:([^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+)\r\n")
"""A field with its folds; obsolete white space before the colon is taken (RFC 5322 4.5)."""

_BLANK_FOLD = re.compile(rb"\r\n[ \t]++(?=\r\n)")
_TOKEN = re.compile(
    rb'"(?:[^"\\]|\\[\s\S])*+"|<[^<>]*+>|[,:;]|[ \t\r\n]++|[^\x00-\x20"(),:;<>\x7f]++|[\s\S]'
)
_ATEXT = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_BARE = re.compile(rb"%s++(?:\.%s++)*+" % (_ATEXT, _ATEXT)).fullmatch
_COMMENTED = re.compile(r'[ \t]*([^\s()<>,;:"\\]+)[ \t]*\(([^()"\\]*)\)[ \t]*').fullmatch
_COMMENT = re.compile(rb"[()]|\\[\s\S]")
_WORD_OCTETS = 19  # of unknown-8bit in an encoded-word of at most 75: three characters each
_Q = [
    b"%c" % octet if chr(octet).isalnum() and octet < 128 else b"=%02X" % octet
    for octet in range(256)
]
_OPAQUE = ("multipart/signed", "multipart/encrypted")
_DEPTH = 50
_MENDED_LIMIT = 262_144  # characters of a field; some thousand addresses take a tenth of a second


def broken(octets: bytes) -> bool:
    """Whether there is NUL, a CR alone, or a line of more than 998 octets."""
    return (
        b"\0" in octets
        or too_long_line(octets) is not None
        or octets.count(b"\r") != octets.count(CRLF)
    )


def without_blank_folds(wire: bytes) -> bytes:
    """A field without continuation lines of mere white space, which some take for the body."""
    return _BLANK_FOLD.sub(b"", wire) if CRLF in wire[:-2] else wire


def ascii_field(name: str, value: bytes, charset: str) -> bytes | None:
    """A field with raw 8-bit text, in ASCII; None: it has no such form.

    Args:
        name: as it is written.
        value: behind the colon, unfolded.
        charset: of the message's text, for octets that are not UTF-8; "" where none is told.
    """
    text = _decoded(value, charset)
    if text is not None:
        if kind_of(name.lower()) is Kind.ADDRESSES and "(" in text:
            # A comment would go, and in the older form of a mailbox it is the name.
            match = _COMMENTED(text)
            if match is None:
                return None
            text = f'"{match[2]}" <{match[1]}>'
        wire = _rendered(name, text)
        return wire if wire is not None and wire.isascii() else None
    if kind_of(name.lower()) is not Kind.TEXT:
        return None
    words = [
        b"=?unknown-8bit?q?%s?=" % b"".join(map(_Q.__getitem__, value[at : at + _WORD_OCTETS]))
        for at in range(0, len(value), _WORD_OCTETS)
    ]  # RFC 1428 section 3: what is not known is called so
    return name.encode("ascii") + b":\r\n " + b"\r\n ".join(words) + CRLF


def folded_field(name: str, value: bytes) -> bytes | None:
    """A field with lines of at most 998 octets; None: it cannot be folded, or has 8-bit text."""
    return _rendered(name, value.decode("ascii")) if value.isascii() else None


def qualified(value: bytes, domain: bytes) -> bytes:
    """Addresses without a domain get one: ``root`` becomes ``root@domain``.

    Args:
        value: of an address field, folds and comments included; they stay.
        domain: what follows the @.
    """
    pieces: list[bytes] = []
    words: list[int] = []  # places in ``pieces``, of the entry that is open
    angle = False
    at = 0
    while at < len(value):
        if value[at] == 0x28:
            end = _comment_end(value, at)
            pieces.append(value[at:end])
            at = end
            continue
        match = _TOKEN.match(value, at)
        assert match is not None
        token = match[0]
        at = match.end()
        pieces.append(token)
        if token in (b",", b";"):
            _complete(pieces, words, angle, domain)
            words, angle = [], False
        elif token == b":":
            words, angle = [], False
        elif token[:1] == b"<" and len(token) > 1:
            angle = True
            inner = token[1:-1].rstrip(b" \t\r\n")
            if _BARE(inner.lstrip(b" \t\r\n")):
                pieces[-1] = b"<%s@%s%s" % (inner, domain, token[len(inner) + 1 :])
        elif not token.isspace():
            words.append(len(pieces) - 1)
    _complete(pieces, words, angle, domain)
    return b"".join(pieces)


def lined_body(kind: str, encoding: str, body: bytes, depth: int = 0) -> tuple[bytes, str | None]:
    """A body of lines that every server takes, and its transfer encoding where that changed.

    Args:
        kind: value of Content-Type, unfolded; "" for none.
        encoding: value of Content-Transfer-Encoding; "" for none.
        body: in CRLF lines.
        depth: of MIME parts round it.

    Raises:
        InvalidMessage: it is signed, or is not what it says.
    """
    if not broken(body):
        return body, None
    try:
        parsed = parse_parameterised(kind, header="Content-Type") if kind else None
    except InvalidMessage:
        parsed = None
    content_type = parsed or Parameterised(value="text/plain")
    value = content_type.value.lower()
    if value in _OPAQUE or depth > _DEPTH:
        raise _refusal("stands under a signature, or too deep")
    if value.startswith("multipart/"):
        return _multipart(content_type.get("boundary") or "", body, depth), None
    if value in ("message/rfc822", "message/global"):
        return _entity(body, depth + 1), None
    try:
        return render_leaf(body, content_type, encoding.lower(), framed=depth > 0)
    except InvalidMessage:
        raise _refusal("is not what its transfer encoding says") from None


def _multipart(boundary: str, body: bytes, depth: int) -> bytes:
    """Each part that needs it anew; delimiters, preamble and epilogue as they are."""
    if not boundary:
        raise _refusal("has no boundary")
    escaped = re.escape(boundary.encode("utf-8", "surrogatepass"))
    delimiter = re.compile(rb"(?:\A|\r\n)--" + escaped + rb"(--)?[ \t]*+(?=\r\n|\Z)")
    pieces: list[bytes] = []
    at, inside = 0, False
    for match in delimiter.finditer(body):
        part = body[at : match.start()]
        if inside and part.startswith(CRLF) and broken(part):
            part = CRLF + _entity(part[2:], depth + 1)
        pieces += [part, match[0]]
        at, inside = match.end(), match[1] is None
        if match[1]:
            break
    pieces.append(body[at:])
    whole = b"".join(pieces)
    if broken(whole):
        raise _refusal("stands between the parts")
    return whole


def _entity(content: bytes, depth: int) -> bytes:
    """A part: header fields, blank line, body."""
    fields: list[tuple[bytes, bytes]] = []
    kind = encoding = ""
    at = 0
    while (match := FIELD.match(content, at)) is not None:
        key = match[1].lower()
        fields.append((key, match[0]))
        value = match[2].replace(CRLF, b"").decode("utf-8", "replace").strip(" \t")
        if key == b"content-type":
            kind = kind or value
        elif key == b"content-transfer-encoding":
            encoding = encoding or value
        at = match.end()
    if not content.startswith(CRLF, at):
        raise _refusal("has no blank line behind the headers of a part")
    body, changed = lined_body(kind, encoding, content[at + 2 :], depth)
    head = [wire for _, wire in fields]
    if changed is not None:
        head = [wire for key, wire in fields if key != b"content-transfer-encoding"]
        head.append(b"Content-Transfer-Encoding: " + changed.encode("ascii") + CRLF)
    whole = b"".join([*head, CRLF])
    if broken(whole):
        raise _refusal("stands in the headers of a part")
    return whole + body


def _decoded(value: bytes, charset: str) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        text = value.decode(codec_of(charset))
    except (LookupError, ValueError):
        return None
    return text if text.isprintable() else None


def _rendered(name: str, text: str) -> bytes | None:
    if len(text) > _MENDED_LIMIT:
        return None
    try:
        wire = render_field(name, text.strip(" \t")).wire
    except InvalidMessage:
        return None
    return None if too_long_line(wire) is not None else wire


def _comment_end(value: bytes, at: int) -> int:
    depth = 0
    for match in _COMMENT.finditer(value, at):
        if match[0] == b"(":
            depth += 1
        elif match[0] == b")":
            depth -= 1
        if depth == 0:
            return match.end()
        if depth > COMMENT_DEPTH:
            break
    return len(value)


def _complete(pieces: list[bytes], words: list[int], angle: bool, domain: bytes) -> None:
    """The entry ends: its only word is a local part."""
    if not angle and len(words) == 1 and _BARE(pieces[words[0]]):
        pieces[words[0]] += b"@" + domain


def _refusal(where: str) -> InvalidMessage:
    return InvalidMessage(
        f"the message has a line of more than 998 octets, NUL or a CR alone that {where}; encode"
        " the part as quoted-printable or base64",
        rule="line-too-long",
    )
