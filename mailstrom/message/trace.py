"""Trace of a message that is handed in: the Received field we write, and loops told from others'.

Rules: RFC 5321 section 4.4 (the field) and 6.3 (loops), RFC 3848 and RFC 6531 section 4.3 (the word
behind ``with``). What a client says of itself is hostile text: of its HELO only a host name or an
address literal is repeated, of an envelope only one plain recipient. Who logged in is not told.
Pure: time and id come in as arguments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from mailstrom.errors import InvalidMessage
from mailstrom.message.date import render_date
from mailstrom.types import from_ms

HOPS_LIMIT = 100
"""Received fields of a message that comes in (RFC 5321 section 6.3: normally at least 100)."""
OWN_HOPS_LIMIT = 5
"""Those among them that we wrote ourselves: a filter hands mail back once or twice."""

LOCAL = "local"
"""The protocol of what a program on this machine handed in."""

_HOST = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*").fullmatch
_LITERAL = re.compile(r"\[[A-Za-z0-9:.]{2,60}\]").fullmatch
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}").fullmatch
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,80}").fullmatch
_CIPHER = re.compile(r"[A-Za-z0-9_. -]{1,100}").fullmatch
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_PATH = re.compile(
    rf"(?=.{{1,320}}\Z){_ATEXT}++(?:\.{_ATEXT}++)*+@(?:[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)*+|\[[A-Za-z0-9:.]+\])"
).fullmatch
_BY = re.compile(rb"(?:^|[ \t\n)])by[ \t\r\n]+([^ \t\r\n;()]+)", re.IGNORECASE)


class Trace(NamedTuple):
    """How a message came in.

    Args:
        hostname: what this server calls itself: a name or an address literal.
        id: of the message, as the reply tells it.
        now_ms: when, UTC.
        helo: what the client called itself, as it came; "" for none.
        peer: its address in text, without brackets or zone; "" for none.
        protocol: see ``protocol``.
        tls: version and cipher for a comment, ``"TLSv1.3 TLS_AES_256_GCM_SHA384"``, or "".
    """

    hostname: str
    id: str
    now_ms: int
    helo: str = ""
    peer: str = ""
    protocol: str = "ESMTP"
    tls: str = ""


def protocol(
    *, extended: bool, tls: bool = False, authenticated: bool = False, smtputf8: bool = False
) -> str:
    """The word behind ``with``: SMTP, ESMTP, ESMTPS, ESMTPA, ESMTPSA, or UTF8SMTP with the same.

    Args:
        extended: EHLO was said.
        tls: the session is encrypted.
        authenticated: its client logged in.
        smtputf8: MAIL had the parameter SMTPUTF8.
    """
    if not extended:
        return "SMTP"  # RFC 3848 names no other words for HELO
    base = "UTF8SMTP" if smtputf8 else "ESMTP"
    return f"{base}{'S' if tls else ''}{'A' if authenticated else ''}"


def received(trace: Trace, recipients: Sequence[str] = ()) -> bytes:
    """The field of RFC 5321 section 4.4, folded, with its last CRLF; always ASCII.

    Args:
        trace: how the message came.
        recipients: of its envelope; a single one is told, several are nobody's business.
    """
    source = _source(trace.helo, trace.peer)
    secured = f" ({trace.tls})" if trace.tls and _CIPHER(trace.tls) else ""
    id = f" id {trace.id}" if _TOKEN(trace.id) else ""
    target = ""
    if len(recipients) == 1 and _PATH(recipients[0]):
        target = f"\r\n\tfor <{recipients[0]}>"
    word = trace.protocol if _TOKEN(trace.protocol) else "SMTP"
    return (
        f"Received: {source}by {_name(trace.hostname)} with {word}{secured}{id}{target};"
        f"\r\n\t{_date(trace.now_ms // 1000)}\r\n"
    ).encode("ascii")


def own_name(hostname: str) -> bytes:
    """How a ``by`` of ours reads, for ``is_own``; b"" where others call themselves the same."""
    name = _name(hostname).lower()
    shared = name.startswith(("localhost", "[127.", "[ipv6:::1]")) or not {".", ":"} & {*name}
    return b"" if shared else name.encode("ascii")


def is_own(value: bytes, own: bytes) -> bool:
    """Whether a Received field is one that we wrote.

    Args:
        value: what stands behind its colon.
        own: ``own_name``.
    """
    if not own or own not in value.lower():
        return False
    found = _BY.search(value)
    return found is not None and found[1].lower() == own


def check_hops(hops: int, own: int) -> None:
    """Refuse what runs in circles.

    Args:
        hops: Received fields of the message.
        own: those that we wrote.

    Raises:
        InvalidMessage: rule ``"loop"``.
    """
    if hops < HOPS_LIMIT and own <= OWN_HOPS_LIMIT:
        return
    if own > OWN_HOPS_LIMIT:
        what = f"the message has passed here {own} times before"
    else:
        what = f"the message has passed {hops} servers (Received headers)"
    raise InvalidMessage(
        f"{what}: it runs in circles; look where its route leads back",
        header="Received",
        value=max(hops, own),
        rule="loop",
    )


@lru_cache(maxsize=256)
def _source(helo: str, peer: str) -> str:
    peer = peer.partition("%")[0]
    literal = ""
    if _ADDRESS(peer):
        literal = f"[IPv6:{peer}]" if ":" in peer else f"[{peer}]"
    if not helo and not literal:
        return ""
    named = helo if _HOST(helo) or _LITERAL(helo) else literal or "unknown"
    return f"from {named} ({literal or 'unknown'})\r\n\t"


@lru_cache(maxsize=8)
def _name(hostname: str) -> str:
    return hostname if _HOST(hostname) or _LITERAL(hostname) else "localhost"


@lru_cache(maxsize=8)
def _date(seconds: int) -> str:
    moment = from_ms(seconds * 1000)
    assert moment is not None
    return render_date(moment)
