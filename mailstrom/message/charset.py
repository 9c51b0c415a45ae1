"""Charsets of foreign text: which of the names that a message may give are ones.

Rules: a charset is what the table of Python's codecs lists as text in octets. Everything else that
can be looked up there is none: codecs of files and of source text, and those of domain names, whose
decoder takes time by the square of what it is given. An unknown name is never looked up: each look
would search the file system and be remembered for ever. Knows nothing of headers or bodies.
"""

from __future__ import annotations

from functools import cache, lru_cache

_LONGEST = 40  # of the names that IANA registers

_NO_CHARSETS = frozenset(
    {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem",
     "base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"}
)  # fmt: skip
# Charsets whose own name is no alias of anything there.
_WITHOUT_ALIAS = (
    "cp720", "cp737", "cp856", "cp874", "cp875", "cp1006", "koi8_t", "koi8_u", "mac_arabic",
    "mac_croatian", "mac_farsi", "mac_romanian", "palmos", "utf_8_sig",
)  # fmt: skip


@cache
def _names() -> frozenset[str]:
    from encodings.aliases import aliases  # the interpreter has loaded it

    known = {name for name, codec in aliases.items() if codec not in _NO_CHARSETS}
    return frozenset(known | set(aliases.values()) | set(_WITHOUT_ALIAS)) - _NO_CHARSETS


@lru_cache(maxsize=64)
def _is_known(charset: str) -> bool:
    from encodings import normalize_encoding

    return normalize_encoding(charset).lower() in _names()


def codec_of(charset: str) -> str:
    """The name as ``decode`` and ``encode`` take it.

    Args:
        charset: as a message has it, in any case.

    Raises:
        LookupError: it is no charset that is known here.
    """
    if charset.isascii() and len(charset) <= _LONGEST and _is_known(charset):
        return charset
    raise LookupError(f"unknown charset: {charset[:_LONGEST]!a}")
