"""MIME trees: every leaf 7-bit with legal lines, every boundary unique (RFC 2045 to 2049).

Leaves are rendered in ``leaf``. Nested messages are rendered without adding anything. Parts under
multipart/signed and multipart/encrypted are copied or the message is refused: a signature that
breaks on the way is worse than an error. Depth and number of parts are bounded. The caller's tree
is only read. Knows nothing of envelopes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mailstrom.errors import InvalidMessage
from mailstrom.message.header import (
    Field,
    render_field,
    render_parameters,
    render_verbatim,
)
from mailstrom.message.header_value import check_name, parameters_of, wire_text
from mailstrom.message.leaf import CRLF, LITERAL_ENCODINGS, render_leaf, too_long_line
from mailstrom.message.parameters import Parameterised

if TYPE_CHECKING:
    from email.message import Message

DEPTH_LIMIT = 50
PARTS_LIMIT = 10_000

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]").fullmatch
_ONCE = frozenset(
    {"content-type", "content-transfer-encoding", "content-disposition", "content-id",
     "mime-version"}
)  # fmt: skip
_EXACT = frozenset({"multipart/signed", "multipart/encrypted"})


class Budget:
    """Parts rendered so far, over the whole tree."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts = 0

    def take(self, depth: int) -> None:
        """Count one part; refuse a tree too deep or too wide."""
        self.parts += 1
        if depth > DEPTH_LIMIT:
            raise _refusal(
                f"MIME parts nest deeper than {DEPTH_LIMIT}",
                "flatten the message, or attach it as one file",
                "mime-too-deep",
            )
        if self.parts > PARTS_LIMIT:
            raise _refusal(
                f"the message has more than {PARTS_LIMIT} MIME parts",
                "attach an archive instead",
                "mime-too-many-parts",
            )


class Entity(NamedTuple):
    """A rendered message or part: its fields in order and its body."""

    fields: tuple[Field, ...]
    body: bytes

    def wire(self) -> bytes:
        """The whole entity: fields, blank line, body."""
        return b"".join([*(one.wire for one in self.fields), CRLF, self.body])


class _Change:
    """What rendering the body asks of the fields; None leaves a field as it is."""

    __slots__ = ("body", "content_type", "encoding")

    def __init__(self, *, encoding: str | None, body: bytes = b"") -> None:
        self.content_type: Parameterised | None = None
        self.encoding = encoding  # "" removes the field
        self.body = body


def render_entity(
    message: Message[Any, Any],
    *,
    budget: Budget | None = None,
    depth: int = 0,
    nested: bool = False,
    signed: bool = False,
    framed: bool = False,
    default_type: str = "text/plain",
) -> Entity:
    """Render a message object or one of its parts.

    Args:
        message: the object; read only.
        budget: counter of the tree, made at its root.
        depth: distance from the root.
        nested: inside message/rfc822: fields are copied where they are legal.
        signed: covered by a signature or encryption: copied or refused.
        framed: directly inside a multipart, where a delimiter follows the body.
        default_type: type of a part without Content-Type (RFC 2046 section 5.1.5).

    Returns:
        Fields and body, CRLF only, at most 998 octets a line, 7-bit except for addresses that need
        SMTPUTF8.

    Raises:
        InvalidMessage: by a named rule, where something cannot be rendered with certainty.
    """
    budget = Budget() if budget is None else budget
    budget.take(depth)
    items = [(check_name(name), name, value) for name, value in message.raw_items()]
    first: dict[str, tuple[str, object]] = {}
    for key, name, value in items:
        if key in first and key in _ONCE:
            raise _refusal(
                f"header {name} is given twice in one part",
                "keep one",
                "duplicate-header",
                name,
                [first[key][1], value],
            )
        first.setdefault(key, (name, value))
    content_type = Parameterised(value=default_type)
    if "content-type" in first:
        content_type = parameters_of(*first["content-type"])
    encoding = ""
    if "content-transfer-encoding" in first:
        encoding = wire_text(*first["content-transfer-encoding"]).split("(")[0].strip().lower()
    # The public accessor decodes lossily where a payload holds raw octets.
    payload: object = vars(message).get("_payload")

    kind = content_type.value.lower()
    if kind.startswith("multipart/"):
        change = _multipart(message, payload, content_type, encoding, budget, depth, nested, signed)
    elif kind.startswith("message/") and isinstance(payload, list):
        change = _message(payload, kind, encoding, budget, depth, signed)
    else:
        body, kept = render_leaf(payload, content_type, encoding, signed=signed, framed=framed)
        change = _Change(body=body, encoding=kept)
    if signed and (change.content_type is not None or change.encoding is not None):
        raise _refusal(
            "a part under multipart/signed or multipart/encrypted is not 7-bit with legal lines",
            "encode the part before signing it, or pass the finished message as bytes",
            "signed-part-would-change",
        )
    fields = _fields(items, change, nested=nested, signed=signed)
    return Entity(fields=fields, body=change.body)


def _fields(
    items: Sequence[tuple[str, str, object]], change: _Change, *, nested: bool, signed: bool
) -> tuple[Field, ...]:
    fields: list[Field] = []
    encoding = change.encoding
    for key, name, value in items:
        if key == "content-type" and change.content_type is not None:
            fields.append(render_parameters(name, change.content_type))
        elif key == "content-transfer-encoding" and encoding is not None:
            if encoding:
                fields.append(render_field(name, encoding))
            encoding = ""
        elif nested or signed:
            fields.append(render_verbatim(name, value, signed=signed))
        else:
            fields.append(render_field(name, value))
    if encoding:
        fields.append(render_field("Content-Transfer-Encoding", encoding))
    return tuple(fields)


def _multipart(
    message: Message[Any, Any],
    payload: object,
    content_type: Parameterised,
    encoding: str,
    budget: Budget,
    depth: int,
    nested: bool,
    signed: bool,
) -> _Change:
    kind = content_type.value.lower()
    parts = [] if payload is None else payload
    if not isinstance(parts, list) or not all(hasattr(part, "raw_items") for part in parts):
        raise _refusal(
            f"{kind} holds {type(payload).__name__} instead of parts",
            "attach message objects, or pass the finished message as bytes",
            "multipart-payload",
        )
    if not parts:
        raise _refusal(f"{kind} has no parts", "attach at least one part", "multipart-empty")
    change = _Change(encoding=_container_encoding(kind, encoding))
    default_type = "message/rfc822" if kind == "multipart/digest" else "text/plain"
    children = [
        render_entity(
            part,
            budget=budget,
            depth=depth + 1,
            nested=nested,
            signed=signed or kind in _EXACT,
            framed=True,
            default_type=default_type,
        ).wire()
        for part in parts
    ]
    preamble = _flat_text(message.preamble)
    epilogue = _flat_text(message.epilogue)
    boundary = content_type.get("boundary")
    if boundary is None or _BOUNDARY(boundary) is None or _collides(boundary, children, preamble):
        boundary = "=_" + os.urandom(16).hex()
        change.content_type = content_type.having("boundary", boundary)
    delimiter = b"--" + boundary.encode("ascii")
    chunks: list[bytes] = []
    if preamble is not None:
        chunks += [preamble, CRLF]
    for child in children:
        chunks += [delimiter, CRLF, child, CRLF]
    chunks += [delimiter, b"--", CRLF]
    if epilogue is not None:
        chunks.append(epilogue)
    change.body = b"".join(chunks)
    return change


def _message(
    payload: list[Any], kind: str, encoding: str, budget: Budget, depth: int, signed: bool
) -> _Change:
    if not payload or not all(hasattr(part, "raw_items") for part in payload):
        raise _refusal(f"{kind} holds no message", "attach a message object", "message-payload")
    rendered = [
        render_entity(part, budget=budget, depth=depth + 1, nested=True, signed=signed)
        for part in payload
    ]
    if kind == "message/delivery-status":
        # Blocks of fields separated by blank lines (RFC 3464 section 2.1).
        if any(part.body.strip() for part in rendered):
            raise _refusal(
                f"{kind} holds a block with a body",
                "such a block has fields alone (RFC 3464 section 2.1)",
                "message-payload",
            )
        body = CRLF.join(b"".join(one.wire for one in part.fields) for part in rendered)
    elif len(rendered) == 1:
        body = rendered[0].wire()
    else:
        raise _refusal(
            f"{kind} holds several messages", "attach one message a part", "message-payload"
        )
    if not body.isascii():
        raise _refusal(
            "a nested message has an address that needs SMTPUTF8",
            "pass the finished message as bytes",
            "nested-smtputf8",
        )
    return _Change(encoding=_container_encoding(kind, encoding), body=body)


def _container_encoding(kind: str, encoding: str) -> str | None:
    """Containers of 7-bit parts need no transfer encoding (RFC 2045 section 6.4)."""
    if encoding not in LITERAL_ENCODINGS:
        raise _refusal(
            f"{kind} has Content-Transfer-Encoding {encoding!r}",
            "containers may only be 7bit, 8bit or binary (RFC 2045 section 6.4)",
            "transfer-encoding",
            "Content-Transfer-Encoding",
            encoding,
        )
    return "" if encoding in ("8bit", "binary") else None


def _flat_text(text: object) -> bytes | None:
    """Preamble or epilogue as 7-bit lines; nobody reads it, so other octets become ``?``."""
    if not isinstance(text, str):
        return None
    octets = text.encode("ascii", "replace").replace(b"\0", b"?")
    octets = octets.replace(CRLF, b"\n").replace(b"\r", b"\n").replace(b"\n", CRLF)
    if too_long_line(octets) is not None:
        raise _refusal(
            "a MIME preamble or epilogue has a line over 998 octets", "remove it", "line-too-long"
        )
    return octets


def _collides(boundary: str, children: Sequence[bytes], preamble: bytes | None) -> bool:
    """Whether a line of the content starts like the delimiter (RFC 2046 section 5.1.1)."""
    delimiter = b"--" + boundary.encode("ascii")
    inside = CRLF + delimiter
    texts = [*children, preamble] if preamble is not None else children
    return any(inside in text or text.startswith(delimiter) for text in texts)


def _refusal(
    what: str, fix: str, rule: str, header: str | None = None, value: object = None
) -> InvalidMessage:
    return InvalidMessage(f"{what}; {fix}", header=header, value=value, rule=rule)
