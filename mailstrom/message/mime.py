"""Frames of multipart bodies in finished octets (RFC 2046 section 5.1.1), read leniently.

What rendering never needs and finished bytes do: where their parts are, and whether a part's own
header fields hold UTF-8. A boundary line counts wherever it stands; nothing is refused here.
"""

from __future__ import annotations

import re

from mailstrom.errors import InvalidMessage
from mailstrom.message.parameters import Parameterised, parse_parameterised

NESTED_LIMIT = 50  # multiparts inside each other that are looked into

# Behind a delimiter: whether it closes, and nothing but white space up to the line's end.
_DELIMITED = re.compile(rb"(--)?+[ \t]*+(?=\r\n|\Z)").match
_CONTENT_TYPE = re.compile(rb"^content-type:((?:[^\r\n]|\r\n[ \t])*+)\r\n", re.IGNORECASE | re.M)


def split_parts(body: bytes, boundary: str | None) -> tuple[list[bytes], bool]:
    """Parts between delimiter lines.

    Args:
        body: of a multipart, CRLF line ends.
        boundary: its parameter.

    Returns:
        The parts, header fields included, and whether a closing delimiter ends them.
    """
    if not boundary:
        return [], False
    delimiter = b"\r\n--" + boundary.encode("utf-8", "surrogatepass")
    whole = b"\r\n" + body
    parts: list[bytes] = []
    start = -1  # of the part that is open
    at = whole.find(delimiter)
    while at >= 0:
        found = _DELIMITED(whole, at + len(delimiter))
        if found is None:
            at = whole.find(delimiter, at + 1)
            continue
        if start >= 0:
            parts.append(whole[start:at])
        if found[1]:
            return parts, True
        start = found.end() + 2
        at = whole.find(delimiter, found.end())
    if start >= 0:
        parts.append(whole[start:])
    return parts, False


def has_utf8_fields(content_type: str, body: bytes) -> bool:
    """Whether a part's header holds UTF-8, which only SMTPUTF8 may carry (RFC 6532 section 3.7).

    Looks at the parts of multiparts, to a bounded depth; an attached message is a part whose inside
    is its own. Octets that are no UTF-8 are none that SMTPUTF8 allows.

    Args:
        content_type: the unfolded value of the field.
        body: what it describes.
    """
    waiting = [(content_type, body)]
    for _ in range(NESTED_LIMIT):
        inside: list[tuple[str, bytes]] = []
        for kind, octets in waiting:
            for part in split_parts(octets, _boundary(kind))[0]:
                if part.isascii() or part.startswith(b"\r\n"):
                    continue
                head, _, rest = part.partition(b"\r\n\r\n")
                if not head.isascii() and _is_utf8(head):
                    return True
                own = _CONTENT_TYPE.search(head + b"\r\n")
                if own is not None:
                    inside.append((own[1].replace(b"\r\n", b"").decode("utf-8", "replace"), rest))
        if not inside:
            return False
        waiting = inside
    return False


def _boundary(content_type: str) -> str | None:
    if not content_type.lstrip(" \t").lower().startswith("multipart/"):
        return None
    try:
        found: Parameterised = parse_parameterised(content_type, header="Content-Type")
    except InvalidMessage:
        return None
    return found.get("boundary")


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
