"""What a server's dialogue tells its shell: one frozen value per event.

Contract: every event but ``Content``, ``Closing`` carries ``default``, the reply that stands unless
the shell gives another. Addresses are as the client wrote them. Credentials never show in a repr.

Must not know: what a shell does with an event, how bytes became one.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from mailstrom.smtp.reply import Reply


class Opened(Struct, frozen=True, gc=False, kw_only=True):
    """A connection is there; the reply is the greeting (RFC 5321 section 3.1)."""

    default: Reply


class Hello(Struct, frozen=True, gc=False, kw_only=True):
    """EHLO (``extended``) or HELO; ``name`` is the client's claim, an atom without spaces."""

    name: str
    extended: bool
    default: Reply


class StartTls(Struct, frozen=True, gc=False, kw_only=True):
    """STARTTLS (RFC 3207): after a 220 the shell shakes hands, then calls ``tls_started``."""

    default: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A finished AUTH exchange (RFC 4954); the default refuses, 235 accepts.

    Args:
        identity: authorization identity, "" for "as the user".
        password: with XOAUTH2 the access token, with CRAM-MD5 the digest of the challenge.
        challenge: what CRAM-MD5 asked to be digested.
    """

    mechanism: str
    identity: str
    user: str
    password: str = field(repr=False)
    challenge: str = ""
    default: Reply

    def proves(self, secret: str) -> bool:
        """Whether the client knows this secret: the user's password or access token."""
        known = secret.encode()
        if self.mechanism == "CRAM-MD5":  # RFC 2195 section 2
            known = hmac.new(known, self.challenge.encode(), "md5").hexdigest().encode()
        return hmac.compare_digest(known, self.password.encode())


class MailFrom(Struct, frozen=True, gc=False, kw_only=True):
    """MAIL: a transaction may begin.

    Args:
        address: reverse-path, "" for the null sender.
        size: octets announced (RFC 1870), or None.
        eightbit: BODY=8BITMIME was given.
        smtputf8: SMTPUTF8 was given (RFC 6531).
        params: all parameters by upper-case keyword, as they were written.
        ret: ``"full"`` or ``"hdrs"`` (RFC 3461), or None.
        envid: the envelope's identifier, decoded, or None.
        hold_for: seconds for which the message is to be held (RFC 4865), or None.
        hold_until_ms: until when it is to be held, since 1970; it may be past. Or None.
        mt_priority: -9 to 9 (RFC 6710), or None.
        requiretls: REQUIRETLS was given (RFC 8689).
        auth: who submitted it, as the client says, ``"<>"`` for nobody known (RFC 4954 section 5).
    """

    address: str
    default: Reply
    size: int | None = None
    eightbit: bool = False
    smtputf8: bool = False
    params: Mapping[str, str | None] = {}
    ret: str | None = None
    envid: str | None = None
    hold_for: int | None = None
    hold_until_ms: int | None = None
    mt_priority: int | None = None
    requiretls: bool = False
    auth: str | None = None


class RcptTo(Struct, frozen=True, gc=False, kw_only=True):
    """RCPT: one recipient of the open transaction.

    Args:
        address: forward-path.
        params: all parameters by upper-case keyword, as they were written.
        notify: ``"never"`` or a list such as ``"failure,delay"`` (RFC 3461), or None.
        orcpt: who was addressed at first, decoded: ``"rfc822;a@b"``, or None.
    """

    address: str
    default: Reply
    params: Mapping[str, str | None] = {}
    notify: str | None = None
    orcpt: str | None = None


class DataBegin(Struct, frozen=True, gc=False, kw_only=True):
    """DATA with at least one accepted recipient; only a 354 opens the content."""

    default: Reply


class Content(Struct, frozen=True, gc=False, kw_only=True):
    """A piece of the content, dots unstuffed; takes no reply."""

    chunk: bytes


class ContentEnd(Struct, frozen=True, gc=False, kw_only=True):
    """All content was read; the reply decides who owns the message (RFC 5321 section 6.1).

    Args:
        octets: length of the content, including what was not handed out.
        violation: ``bare-cr`` or ``bare-lf``: the content must not be stored.
        oversize: longer than the SIZE offered; pieces beyond it were not handed out.
        chunked: it came by BDAT and ended with the octets of the last one, not with CRLF.CRLF.
        fixed: a CR or LF alone was made a CRLF; ``octets`` counts what came of it.
    """

    octets: int
    violation: str | None
    oversize: bool
    default: Reply
    chunked: bool = False
    fixed: bool = False


class ChunkEnd(Struct, frozen=True, gc=False, kw_only=True):
    """A BDAT that was not the last is whole (RFC 3030 section 2); a refusal ends the transaction.

    Args:
        octets: length of the content so far.
    """

    octets: int
    default: Reply


class Reset(Struct, frozen=True, gc=False, kw_only=True):
    """RSET: an open transaction is forgotten."""

    default: Reply


class Inquiry(Struct, frozen=True, gc=False, kw_only=True):
    """NOOP, VRFY or HELP: nothing changes."""

    verb: str
    argument: str
    default: Reply


class Quit(Struct, frozen=True, gc=False, kw_only=True):
    """QUIT: the connection closes behind the reply."""

    default: Reply


class Refused(Struct, frozen=True, gc=False, kw_only=True):
    """A line that the dialogue itself refuses: syntax, order, parameters, limits.

    Args:
        verb: the command where one could be read, else "".
        rule: short stable name of what was broken.
    """

    verb: str
    rule: str
    default: Reply


class Closing(Struct, frozen=True, gc=False, kw_only=True):
    """The last event: write what is left of the output, then close. ``cause`` says why."""

    cause: str


def refuse(verb: str, rule: str, code: int, enhanced: str, text: str) -> Refused:
    """A line that the server refuses, with its reply."""
    return Refused(verb=verb, rule=rule, default=Reply(code, enhanced, (text,)))


Question = (
    Opened
    | Hello
    | StartTls
    | Credentials
    | MailFrom
    | RcptTo
    | DataBegin
    | ChunkEnd
    | ContentEnd
    | Reset
    | Inquiry
    | Quit
    | Refused
)
Event = Question | Content | Closing
