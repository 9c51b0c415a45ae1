"""What a message means, as 32 octets: the payload hash behind idempotency keys.

Covers the envelope, the header fields but Date and Message-ID (Resent-, too), MIME-Version,
transfer encodings and boundaries, and the decoded leaf parts, so that building the same mail twice
gives the same hash: what ``compose`` adds is never in it. Runs only where an idempotency key was
given. It reads ``Prepared.content`` leniently: what does not parse is hashed as it stands; two
different messages never collide by being malformed.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING

from mailstrom.errors import InvalidMessage
from mailstrom.message.body import DEPTH_LIMIT
from mailstrom.message.encoded_word import decode_words
from mailstrom.message.mime import split_parts
from mailstrom.message.parameters import Parameterised, parse_parameterised

if TYPE_CHECKING:
    from hashlib import blake2b

    from mailstrom.message.compose import Prepared
else:
    try:  # hashlib would load OpenSSL with it
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b


_FIELD = re.compile(rb"([^:\r\n]++):((?:[^\r\n]++|\r\n[ \t])*+)\r\n").match
_IGNORED = frozenset({"mime-version", "content-transfer-encoding"})
# What compose adds where it is missing: a second try of the same mail gets other values.
_IGNORED_AT_TOP = _IGNORED | {"date", "message-id", "resent-date", "resent-message-id"}


def fingerprint(prepared: Prepared) -> bytes:
    """Hash of what a prepared message means.

    Args:
        prepared: the result of ``compose``.

    Returns:
        BLAKE2b, 32 octets, over sender, sorted recipients, header values and decoded parts.
    """
    digest = blake2b(digest_size=32)
    _feed(digest, b"envelope", prepared.sender.encode("utf-8", "surrogatepass"))
    for recipient in sorted(prepared.recipients):
        _feed(digest, b"recipient", recipient.encode("utf-8", "surrogatepass"))
    _entity(digest, prepared.content, _IGNORED_AT_TOP, 0)
    return digest.digest()


def _feed(digest: blake2b, *pieces: bytes) -> None:
    """Length before content, so that moving an octet between pieces changes the hash."""
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)


def _entity(digest: blake2b, content: bytes, ignored: frozenset[str], depth: int) -> None:
    if content.startswith(b"\r\n"):
        head, body = b"", content[2:]
    else:
        head, _, body = content.partition(b"\r\n\r\n")
        head += b"\r\n"
    content_type = Parameterised(value="text/plain")
    encoding = ""
    values: list[tuple[str, bytes]] = []
    at = 0
    while at < len(head):
        match = _FIELD(head, at)
        if match is None:  # a part's header may hold anything: such a line counts as it stands
            end = head.find(b"\n", at) + 1 or len(head)
            _feed(digest, b"line", head[at:end])
            at = end
            continue
        at = match.end()
        key = match[1].decode("ascii", "replace").lower().strip()
        text = match[2].replace(b"\r\n", b"").decode("utf-8", "surrogateescape").strip(" \t")
        if key == "content-transfer-encoding":
            encoding = text.lower()
        if key == "content-type":
            try:
                content_type = parse_parameterised(text, header=key)
            except InvalidMessage:
                pass
            else:
                kept = [f"{n}={v}" for n, v in content_type.parameters if n != "boundary"]
                text = "; ".join([content_type.value.lower(), *sorted(kept)])
        if key not in ignored:
            values.append((key, decode_words(text).encode("utf-8", "surrogatepass")))
    for key, value in sorted(values):
        _feed(digest, b"field", key.encode("utf-8"), value)
    _body(digest, body, content_type, encoding, depth)


def _body(
    digest: blake2b, body: bytes, content_type: Parameterised, encoding: str, depth: int
) -> None:
    kind = content_type.value.lower()
    if kind.startswith("multipart/") and depth < DEPTH_LIMIT:
        parts, closed = split_parts(body, content_type.get("boundary"))
        if parts and closed:
            _feed(digest, b"multipart", len(parts).to_bytes(4, "big"))
            for part in parts:
                _entity(digest, part, _IGNORED, depth + 1)
            return
    if kind == "message/rfc822" and depth < DEPTH_LIMIT:
        _feed(digest, b"message")
        _entity(digest, body, _IGNORED, depth + 1)
        return
    _feed(digest, b"leaf", _decoded(body, encoding))


def _decoded(body: bytes, encoding: str) -> bytes:
    """Octets of a leaf; one final line end is the frame's, not the content's."""
    if encoding == "base64":
        try:
            return binascii.a2b_base64(b"".join(body.split()), strict_mode=True)
        except binascii.Error:
            return body
    if encoding == "quoted-printable":
        return binascii.a2b_qp(body).removesuffix(b"\r\n")
    return body.removesuffix(b"\r\n")
