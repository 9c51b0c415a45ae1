"""From content that came in by SMTP, or from a program, to what the spool stores.

``submitted`` is for mail that begins its way here (RFC 6409): options are read and taken out,
missing fields added, what no later server has to take is mended, all else stays octet for octet.
``relayed`` is for mail that is on its way: Received comes on top and nothing else changes. What is
done in which case, and why, is told in docs/design/submission.md. Nothing is raised but
InvalidMessage. Pure: time, id and all that is known of the client come in as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailstrom.errors import InvalidMessage
from mailstrom.message.compose import Prepared
from mailstrom.message.fingerprint import fingerprint
from mailstrom.message.head import (
    ADDRESSES,
    HEAD_LIMIT,
    Head,
    bare_cr,
    behind_mailbox_line,
    is_utf8,
    nul,
    shown,
    text_of,
    too_large,
    too_long,
    unfolded,
)
from mailstrom.message.leaf import CRLF, too_long_line
from mailstrom.message.mending import FIELD
from mailstrom.message.mime import has_utf8_fields
from mailstrom.message.option_headers import NONE, Options, read_options
from mailstrom.message.trace import Trace, check_hops, is_own, own_name, protocol, received

__all__ = ["Options", "Submitted", "Trace", "enhanced_code", "protocol", "relayed", "submitted"]

_made = tuple.__new__


class Submitted(NamedTuple):
    """A message as the spool takes it; what the envelope says stays the caller's.

    Args:
        content: for the wire, our Received on top.
        message_id: value of the Message-ID field, "" where mail to be relayed has none.
        subject: decoded, for display.
        eightbit: ``content`` holds an octet over 127, whatever BODY= said.
        smtputf8: it can only travel with SMTPUTF8 (RFC 6531); the parameter alone makes no need.
        options: what its X-Mailstrom- headers ask for; none where it is relayed.
        idempotency: key and payload hash, or None.
        hops: Received fields that it came with.
    """

    content: bytes
    message_id: str
    subject: str
    eightbit: bool
    smtputf8: bool
    options: Options
    idempotency: tuple[str, bytes] | None
    hops: int


def enhanced_code(error: InvalidMessage) -> str:
    """The code of RFC 3463 that goes with 554 where a message is refused here."""
    return "5.4.6" if error.rule == "loop" else "5.6.0"


def submitted(
    content: bytes,
    sender: str,
    recipients: Sequence[str],
    trace: Trace,
    *,
    smtputf8: bool = False,
    send_ms: int | None = None,
    domain: str | None = None,
    name: str = "",
) -> Submitted:
    """Make a new message ready for the spool.

    Args:
        content: as it came, dots unstuffed, lines ending in CRLF.
        sender: envelope sender's key, "" for the null sender.
        recipients: envelope recipients' keys.
        trace: how it came.
        smtputf8: the client asked for SMTPUTF8, so that UTF-8 in headers stays.
        send_ms: not before this time, by a parameter of the envelope.
        domain: what completes an address without one; None: ``trace.hostname``.
        name: of the author, where there is no From.

    Raises:
        InvalidMessage: nothing that a server takes can be made of it, or an option is wrong;
            ``.rule`` says why, and ``enhanced_code`` how to answer.
    """
    content = _checked(content)
    head = Head(content, (domain or trace.hostname).encode("ascii", "ignore"), keep=smtputf8)
    head.read(own_name(trace.hostname))
    check_hops(head.hops, head.own)
    options = NONE
    if head.options or send_ms is not None:
        options = read_options(head.options, trace.now_ms, send_ms=send_ms)
    body = head.complete(sender, name, trace)
    if head.changed:
        rest = b"".join([*head.kept, CRLF])
        body_at = len(rest)
        rest += content[head.end :] if body is None else body
    else:
        rest, body_at = content, head.end
    added = b"".join(head.added)
    if too_long_line(rest[:body_at]) is not None:
        raise too_long(rest)
    eightbit = not (rest.isascii() and added.isascii())
    utf8 = not sender.isascii() or not "".join(recipients).isascii()
    if eightbit and not utf8:
        utf8 = _needs_utf8(head, rest[:body_at], rest[body_at:], asked=smtputf8)
    idempotency = None
    if options.idempotency_key is not None:
        whole = Prepared(added + rest, sender, tuple(recipients), head.id, "", eightbit, utf8)
        idempotency = options.idempotency_key, fingerprint(whole)
    # As ``Submitted(...)`` does it, in a third of the time.
    return _made(Submitted, (
        b"".join((received(trace, recipients), added, rest)), head.id,
        shown(head.values.get(b"subject", b""), decoded=True), eightbit, utf8, options,
        idempotency, head.hops,
    ))  # fmt: skip


def relayed(
    content: bytes,
    sender: str,
    recipients: Sequence[str],
    trace: Trace,
    *,
    smtputf8: bool = False,
) -> Submitted:
    """Make a message that is on its way ready for the spool: Received comes on top, no more.

    Args:
        content, sender, recipients, trace, smtputf8: as for ``submitted``.

    Raises:
        InvalidMessage: it runs in circles, or no session can carry it: a line of more than 998
            octets, NUL, a CR alone.
    """
    content = _checked(content)
    if content.count(b"\r") != content.count(CRLF):
        raise bare_cr()
    if b"\0" in content:
        raise nul(content)
    if too_long_line(content) is not None:
        raise too_long(content)
    own_by = own_name(trace.hostname)
    content = content[behind_mailbox_line(content) :]
    at = 0
    hops = own = 0
    id = subject = b""
    while (match := FIELD.match(content, at)) is not None:
        at = match.end()
        if at > HEAD_LIMIT:
            raise too_large()
        key = match[1].lower()
        if key == b"received":
            hops += 1
            own += is_own(match[2], own_by)
        elif key == b"message-id":
            id = id or match[2]
        elif key == b"subject":
            subject = subject or match[2]
    check_hops(hops, own)
    # What does not begin with a field is body: it would become a part of ours.
    joint = b"" if at or content.startswith(CRLF) else CRLF
    eightbit = not content.isascii()
    utf8 = not sender.isascii() or not "".join(recipients).isascii()
    if eightbit and smtputf8 and not utf8:
        utf8 = not content[:at].isascii() or _utf8_in_parts(content[:at], content[at + 2 :])
    return Submitted(
        received(trace, recipients) + joint + content,
        shown(id, decoded=False), shown(subject, decoded=True), eightbit, utf8, NONE, None, hops,
    )  # fmt: skip


def _checked(content: bytes) -> bytes:
    """The content with its last line ended; a CR alone is a matter of the body it stands in."""
    if content.count(CRLF) != content.count(b"\n"):
        raise InvalidMessage(
            "the content has a line feed without a carriage return; lines end in CRLF",
            rule="line-endings",
        )
    return content if content.endswith(CRLF) else content + CRLF


def _needs_utf8(head: Head, fields: bytes, body: bytes, *, asked: bool) -> bool:
    """Whether 8-bit octets make SMTPUTF8 necessary; what any server carries does not."""
    if asked:
        return not fields.isascii() or _utf8_in_parts(fields, body)
    if fields.isascii():
        return False
    return any(
        not match[2].isascii() and match[1].lower() in ADDRESSES and is_utf8(match[2])
        for match in FIELD.finditer(fields)
    )


def _utf8_in_parts(fields: bytes, body: bytes) -> bool:
    for match in FIELD.finditer(fields):
        if match[1].lower() == b"content-type":
            return has_utf8_fields(text_of(unfolded(match[2])), body)
    return False
