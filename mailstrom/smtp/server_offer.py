"""What a server offers at one moment of a session, and what follows from it, made once.

Contract: of what was configured only that is offered which can be kept: REQUIRETLS under TLS alone
(RFC 8689 section 4.2), FUTURERELEASE where there is a clock (RFC 4865), and LIMITS (RFC 9422)
with the numbers that the dialogue keeps. A command may be longer by what the offer adds to it.

Must not know: sessions, what a client has said.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

from msgspec import Struct

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_parameters import Clock, room

AUTH_LINE_LIMIT = 12288  # RFC 4954 section 4
_MOST_LIMIT = 999_999  # six digits (RFC 9422 section 4)
_LATEST = 253_402_300_799  # the last second of the year 9999


class Offer(Struct, frozen=True, gc=False, eq=False):
    """What is offered, and what follows from it; the same thing only if it is the same object.

    Args:
        capabilities: what EHLO tells.
        lines: the same as the lines of a reply.
        mail_room, rcpt_room: octets by which MAIL and RCPT may be longer than other commands.
        help: the reply to HELP: the commands there are.
    """

    capabilities: Capabilities
    lines: tuple[str, ...]
    mail_room: int
    rcpt_room: int
    help: Reply


@lru_cache(maxsize=64)  # a server has one or two, and a connection of its own for each message
def offer(
    capabilities: Capabilities, *, tls: bool, clocked: bool, announced: tuple[int, int] | None
) -> Offer:
    """What of the configured capabilities is offered.

    Args:
        capabilities: what was configured.
        tls: the connection is encrypted.
        clocked: somebody knows what time it is.
        announced: RCPTMAX and MAILMAX, 0 for none; None: what the capabilities say of limits.
    """
    kept = capabilities
    if tls and kept.starttls:
        kept = replace(kept, starttls=False)
    if kept.requiretls and not tls:
        kept = replace(kept, requiretls=False)
    if kept.future_release is not None and not clocked:
        kept = replace(kept, future_release=None)
    if announced is not None:
        named = {"RCPTMAX": announced[0], "MAILMAX": announced[1]}
        kept = replace(kept, limits={k: min(v, _MOST_LIMIT) for k, v in named.items() if v})
    mail_room, rcpt_room = room(kept)
    return Offer(kept, kept.render(), mail_room, rcpt_room, Reply(214, "2.0.0", (_verbs(kept),)))


def greeted(told: Offer, clock: Clock | None) -> tuple[str, ...]:
    """The lines of the reply to EHLO at this moment."""
    if told.capabilities.future_release is None or clock is None:
        return told.lines
    return _greeted(told, int(clock()))


@lru_cache(maxsize=8)  # clients greet many in a second
def _greeted(told: Offer, now: int) -> tuple[str, ...]:
    held = told.capabilities.future_release or 0
    until = datetime.fromtimestamp(min(now + held, _LATEST), UTC)
    text = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    return replace(told.capabilities, future_release_until=text).render()


@lru_cache(maxsize=64)
def longest(told: tuple[Offer, ...], line: int) -> int:
    """Octets of the longest line there may be in a session.

    Args:
        told: all offers of the session.
        line: octets of a line that has no room beyond.
    """
    return max(most(verb, told, line) for verb in (b"MAIL ", b"RCPT ", b"AUTH "))


def most(verb: bytes, told: tuple[Offer, ...], line: int) -> int:
    """Octets of the longest line of a command.

    Args:
        verb: the command, upper case, and the space behind it.
        told, line: as for ``longest``.
    """
    if verb == b"MAIL ":
        return line + max(one.mail_room for one in told)
    if verb == b"RCPT ":
        return line + max(one.rcpt_room for one in told)
    if verb == b"AUTH " and any(one.capabilities.auth for one in told):
        return max(line, AUTH_LINE_LIMIT)
    return line


def _verbs(offered: Capabilities) -> str:
    words = "EHLO HELO MAIL RCPT DATA"
    words += " BDAT" if offered.chunking else ""
    words += " RSET NOOP VRFY HELP"
    words += " STARTTLS" if offered.starttls else ""
    words += " AUTH" if offered.auth else ""
    return words + " QUIT"
