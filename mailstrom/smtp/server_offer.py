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

_MOST_LIMIT = 999_999  # six digits (RFC 9422 section 4)
_LATEST = 253_402_300_799  # the last second of the year 9999


class Offer(Struct, frozen=True, gc=False):
    """What is offered, and what follows from it.

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
    held = told.capabilities.future_release
    if held is None or clock is None:
        return told.lines
    until = datetime.fromtimestamp(min(clock() + held, _LATEST), UTC)
    text = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    return replace(told.capabilities, future_release_until=text).render()


def _verbs(offered: Capabilities) -> str:
    words = "EHLO HELO MAIL RCPT DATA"
    words += " BDAT" if offered.chunking else ""
    words += " RSET NOOP VRFY HELP"
    words += " STARTTLS" if offered.starttls else ""
    words += " AUTH" if offered.auth else ""
    return words + " QUIT"
