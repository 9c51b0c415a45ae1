"""Encoded-words of RFC 2047: text to ASCII words and back.

Rules: UTF-8 only on the way out, B or Q whichever is shorter, each word at most 75 characters and
cut between characters, Q restricted to what a phrase allows (RFC 2047 section 5 rule 3): one
encoder serves every place. On the way in: white space between adjacent words vanishes, octets of
adjacent words of one charset are joined before decoding (others cut inside characters), a word that
cannot be decoded stays as it is. Knows nothing of headers, lines or addresses.
"""

from __future__ import annotations

import binascii
import re

from mailstrom.message.charset import codec_of

WORD_LIMIT = 75

_PREFIX_Q, _PREFIX_B, _SUFFIX = "=?utf-8?q?", "=?utf-8?b?", "?="
_OVERHEAD = len(_PREFIX_Q) + len(_SUFFIX)
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!*+-/")
_Q = {
    octet: chr(octet) if octet in _SAFE else "_" if octet == 0x20 else f"={octet:02X}"
    for octet in range(256)
}

WORD = re.compile(r"=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=")


def encode_words(text: str, *, first: int = WORD_LIMIT) -> list[str]:
    """Render text as encoded-words.

    Args:
        text: any text without lone surrogates.
        first: characters available for the first word, where a header name shares its line; at
            least 24, so that one character always fits.

    Returns:
        The words in order; to be joined by a space or a fold (RFC 2047 section 2).
    """
    octets = text.encode("utf-8")
    q_form = sum(len(_Q[octet]) for octet in octets) <= (len(octets) + 2) // 3 * 4
    words: list[str] = []
    room = _room(first, q_form)
    used = 0
    chunk = bytearray()
    for char in text:
        encoded = char.encode("utf-8")
        cost = sum(len(_Q[octet]) for octet in encoded) if q_form else len(encoded)
        if used + cost > room and chunk:
            words.append(_word(chunk, q_form))
            chunk.clear()
            used = 0
            room = _room(WORD_LIMIT, q_form)
        chunk += encoded
        used += cost
    if chunk:
        words.append(_word(chunk, q_form))
    return words


def decode_words(text: str) -> str:
    """Text with its encoded-words decoded, for display and for hashing.

    Args:
        text: an unfolded header value.

    Returns:
        The decoded text; may contain any character, line breaks included, so check before use.
    """
    if "=?" not in text:
        return text
    parts: list[str] = []
    # Joined once: thousands of adjacent words would copy each other's octets again and again.
    pending: list[bytes] = []
    pending_charset = ""
    sources: list[str] = []
    end = 0
    for match in WORD.finditer(text):
        between = text[end : match.start()]
        charset = match[1].lower()
        adjacent = bool(pending_charset) and not between.strip(" \t")
        if not (adjacent and charset == pending_charset):
            parts.append(_decoded(pending, pending_charset, sources))
            pending, sources = [], []
        if not adjacent:
            parts.append(between)
        pending.append(_octets(match[2], match[3]))
        sources.append(match[0])
        pending_charset = charset
        end = match.end()
    parts.append(_decoded(pending, pending_charset, sources))
    parts.append(text[end:])
    return "".join(parts)


def _room(limit: int, q_form: bool) -> int:
    """Payload of a word: characters for Q, octets for B."""
    free = min(limit, WORD_LIMIT) - _OVERHEAD
    return free if q_form else free // 4 * 3


def _word(octets: bytes | bytearray, q_form: bool) -> str:
    if q_form:
        return _PREFIX_Q + "".join(_Q[octet] for octet in octets) + _SUFFIX
    return _PREFIX_B + binascii.b2a_base64(octets, newline=False).decode("ascii") + _SUFFIX


def _octets(encoding: str, payload: str) -> bytes:
    raw = payload.encode("utf-8", "surrogateescape" if payload.isascii() else "replace")
    if encoding in "qQ":
        return binascii.a2b_qp(raw, header=True)
    try:
        return binascii.a2b_base64(raw + b"==")
    except binascii.Error:
        return raw


def _decoded(pieces: list[bytes], charset: str, sources: list[str]) -> str:
    if not charset:
        return ""
    try:
        return b"".join(pieces).decode(codec_of(charset), "replace")
    except (LookupError, ValueError):
        return "".join(sources)
