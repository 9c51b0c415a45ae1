"""Values with parameters: Content-Type, Content-Disposition (RFC 2045 section 5.1, RFC 2183).

Reading joins the continuations and charsets of RFC 2231; a repeated name or a fragment that cannot
be read is refused, since two readers would see two files or two boundaries. Writing gives tokens,
quoted strings, or RFC 2231 UTF-8 in pieces that fit a line, up to a bound: readers that join the
pieces have bounds of their own. Never encoded-words: RFC 2047 section 5 forbids them in parameters.
"""

from __future__ import annotations

import re

from mailstrom.errors import InvalidMessage
from mailstrom.message.charset import codec_of
from mailstrom.message.grammar import (
    LINE_BREAK,
    TEXT_LIMIT,
    longer_than,
    quote,
    quoted_string,
    refusal,
    skip_cfws,
)
from mailstrom.value import value

# Narrower than RFC 2045's token by * ' %: readers that know RFC 2231 stumble over them unquoted.
_TOKEN = re.compile(r"[!#$&+\-.0-9A-Z^_`a-z{|}~]+").fullmatch
_MAIN = re.compile(r"[^\s;\"()]+")
_NAME = re.compile(r"[!#$&+\-.0-9A-Z^_`a-z{|}~]+(?:\*[0-9]{1,4})?\*?(?=[ \t]*=)")
_BARE = re.compile(r'[^\s;"]+')
_SPLIT_NAME = re.compile(r"([^*]+)(?:\*([0-9]+))?(\*)?")

QUOTED_LIMIT = 200  # longer values are cut into RFC 2231 pieces
_PIECE = 50  # characters of a piece, escaped

# Percent form of RFC 2231 section 7, by octet: attribute characters stay, but for the tilde.
_UNESCAPED = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-!#$&+^`{|}"
)
_ESCAPED = tuple(chr(one) if one in _UNESCAPED else f"%{one:02X}" for one in range(256))
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")


@value
class Parameterised:
    """A value such as ``text/plain`` with its parameters.

    Args:
        value: the text before the first semicolon.
        parameters: (lower-case name, decoded value) in order.
    """

    value: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str | None:
        """Value of a parameter, None if absent."""
        for key, text in self.parameters:
            if key == name:
                return text
        return None

    def having(self, name: str, value: str) -> Parameterised:
        """The same with one parameter set."""
        kept = tuple(pair for pair in self.parameters if pair[0] != name)
        return Parameterised(value=self.value, parameters=(*kept, (name, value)))


def parse_parameterised(text: str, *, header: str) -> Parameterised:
    """Read a value with parameters.

    Args:
        text: the unfolded header value.
        header: header name for the error.

    Returns:
        Value and decoded parameters.

    Raises:
        InvalidMessage: rule ``"parameter"``: not readable with certainty.
    """
    at = skip_cfws(text, 0, header)
    match = _MAIN.match(text, at)
    if match is None:
        raise refusal(header, "has no value", "write for example 'text/plain'", text, "parameter")
    value = match[0]
    at = skip_cfws(text, match.end(), header)
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    while at < len(text):
        if text[at] != ";":
            raise _refusal_syntax(header, text)
        at = skip_cfws(text, at + 1, header)
        if at >= len(text) or text[at] == ";":
            continue
        name_match = _NAME.match(text, at)
        if name_match is None:
            raise _refusal_syntax(header, text)
        at = skip_cfws(text, text.index("=", name_match.end()) + 1, header)
        quoted = quoted_string(text, at)
        if quoted is not None:
            piece, at = quoted
        else:
            bare = _BARE.match(text, at)
            if bare is None:
                raise _refusal_syntax(header, text)
            piece, at = bare[0], bare.end()
        at = skip_cfws(text, at, header)
        _add(pieces, name_match[0], piece, header, text)
    parameters = [(name, _join(parts, header, text)) for name, parts in pieces.items()]
    return Parameterised(value=value, parameters=tuple(parameters))


def render_parameterised(value: Parameterised, *, header: str) -> list[str]:
    """Render as pieces that may be folded between each other.

    Args:
        value: what to render; parameter values may hold any text but CR, LF and NUL.
        header: header name for the error.

    Returns:
        ``["text/plain;", "charset=utf-8;", "format=flowed"]``: to be joined by a space or a fold.

    Raises:
        InvalidMessage: rule ``"header-injection"``: a parameter holds a line break or NUL;
            ``"parameter-too-long"``: it is longer than any reader takes.
    """
    pieces = [value.value]
    for name, text in value.parameters:
        if LINE_BREAK.search(text):
            raise refusal(
                header,
                f"has a line break or NUL in parameter {name}",
                "remove it",
                text,
                "header-injection",
            )
        if longer_than(text, TEXT_LIMIT):
            raise refusal(
                header,
                f"has more than {TEXT_LIMIT:,} octets in parameter {name[:40]}",
                "shorten it",
                text[:200],
                "parameter-too-long",
            )
        pieces.extend(_render(name, text))
    return [piece + ";" for piece in pieces[:-1]] + pieces[-1:]


def _render(name: str, text: str) -> list[str]:
    if _TOKEN(text) is not None and len(text) <= QUOTED_LIMIT:
        return [f"{name}={text}"]
    if text.isascii() and text.isprintable() and len(text) <= QUOTED_LIMIT and "=?" not in text:
        return [f"{name}={quote(text)}"]
    escaped = "".join(map(_ESCAPED.__getitem__, text.encode("utf-8")))
    whole = f"{name}*=utf-8''{escaped}"
    if len(whole) <= 76:
        return [whole]
    pieces: list[str] = []
    lead, at = "utf-8''", 0
    while at < len(escaped):
        end = _cut(escaped, at + _PIECE)
        pieces.append(f"{name}*{len(pieces)}*={lead}{escaped[at:end]}")
        lead, at = "", end
    return pieces


def _cut(escaped: str, at: int) -> int:
    """Where to cut, there or before: between characters, each of one escape or more."""
    if at >= len(escaped):
        return len(escaped)
    for before in (1, 2):
        if escaped[at - before] == "%":
            at -= before
            break
    while escaped[at] == "%" and escaped[at + 1] in "89AB":  # not the first octet of a character
        at -= 3
    return at


def _add(
    pieces: dict[str, dict[int, tuple[str, bool]]], name: str, piece: str, header: str, text: str
) -> None:
    match = _SPLIT_NAME.fullmatch(name)
    if match is None:
        raise _refusal_syntax(header, text)
    key, number, extended = match[1].lower(), match[2], match[3] is not None
    # -2: plain, -1: name*=; both may stand side by side for old readers, each only once.
    index = int(number) if number is not None else -1 if extended else -2
    parts = pieces.setdefault(key, {})
    if index in parts:
        raise refusal(header, f"repeats parameter {key}", "give it once", text, "parameter")
    parts[index] = (piece, extended)


def _unescaped(piece: str) -> bytes:
    octets = piece.encode("utf-8", "surrogatepass")
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), octets)


def _join(parts: dict[int, tuple[str, bool]], header: str, text: str) -> str:
    if -1 in parts:
        return _decode([parts[-1]], header, text)
    numbered = [parts[index] for index in sorted(parts) if index >= 0]
    if numbered:
        if any(index not in parts for index in range(len(numbered))):
            raise _refusal_syntax(header, text)
        return _decode(numbered, header, text)
    return parts[-2][0]


def _decode(parts: list[tuple[str, bool]], header: str, text: str) -> str:
    first, extended = parts[0]
    charset = "ascii"
    if extended:
        charset, _, rest = first.partition("'")
        _, mark, first = rest.partition("'")
        if not mark:
            raise _refusal_syntax(header, text)
    octets = b"".join(
        _unescaped(piece) if escaped else piece.encode("utf-8", "surrogatepass")
        for piece, escaped in [(first, extended), *parts[1:]]
    )
    try:
        return octets.decode(codec_of(charset or "utf-8"))
    except (LookupError, ValueError):
        raise _refusal_syntax(header, text) from None


def _refusal_syntax(header: str, text: str) -> InvalidMessage:
    return refusal(
        header,
        "has parameters that cannot be read",
        'write value; name=token; name="quoted"',
        text,
        "parameter",
    )
