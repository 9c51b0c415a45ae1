"""What a delivery report is made of: the message, the fate of its recipients, and finished parts.

Values only. Whatever is text here was chosen by somebody else, and holds anything.
"""

from __future__ import annotations

from typing import NamedTuple

ACTIONS = ("failed", "delayed", "relayed", "delivered")
"""What may have become of a recipient, the worst first (RFC 3464 section 2.3.3)."""


class Original(NamedTuple):
    """The message that is reported on.

    Args:
        id: what ``send()`` returned, or the listener said behind "queued as".
        sender: its envelope sender, to whom the report goes; never empty.
        message_id: its Message-ID field, or what stood there.
        envelope_id: the sender's own name for it (ENVID of RFC 3461), decoded.
        arrived_ms: when it was accepted.
        content: its octets, or its header alone.
        whole: whether ``content`` is all of it.
        came_from: the name that whoever handed it in gave in EHLO.
        redacted: it had to travel encrypted, and the report may not: nothing is returned of it, and
            its subject is not repeated (RFC 8689 section 5).
    """

    id: str
    sender: str
    message_id: str = ""
    envelope_id: str | None = None
    arrived_ms: int = 0
    content: bytes = b""
    whole: bool = False
    came_from: str | None = None
    redacted: bool = False


class Fate(NamedTuple):
    """What became of one recipient.

    Args:
        address: where it was to go.
        action: one of ``ACTIONS``.
        original: the recipient as the sender first had it (ORCPT of RFC 3461): ``type;address``,
            decoded.
        reason: why: a word of ``mailstrom.types.Reason``.
        host: who gave the last reply.
        reply_code: that of the last reply; None where a sentence of ours stands in its place.
        enhanced_code: RFC 3463's.
        reply_text: the reply's words, or our sentence.
        tried_ms: when it was tried last.
        until_ms: when it is given up.
    """

    address: str
    action: str
    original: str | None = None
    reason: str | None = None
    host: str | None = None
    reply_code: int | None = None
    enhanced_code: str | None = None
    reply_text: str | None = None
    tried_ms: int | None = None
    until_ms: int | None = None


class Part(NamedTuple):
    """A body part: its media type, its header fields, each ended, and its octets."""

    kind: str
    head: bytes
    body: bytes


def part(kind: str, description: str, encoding: str, octets: bytes) -> Part:
    """A body part with the fields that every one has."""
    head = (
        f"Content-Type: {kind}\r\nContent-Description: {description}\r\n"
        f"Content-Transfer-Encoding: {encoding}\r\n"
    )
    return Part(kind, head.encode("ascii"), octets)


def end_of_header(content: bytes) -> int:
    """Offset behind the last line of a message's header."""
    if content.startswith(b"\r\n"):
        return 0
    end = content.find(b"\r\n\r\n")
    return len(content) if end < 0 else end + 2
