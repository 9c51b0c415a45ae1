"""An envelope as commands, in the groups in which they leave (RFC 2920 section 3.1).

Contract: pure. With PIPELINING a transaction's ``[RSET] MAIL RCPT* DATA`` is one group, and so is
``[RSET] MAIL RCPT* BDAT n LAST`` with its content where a BDAT is known to work (RFC 3030 section
2); a BDAT that is not waits for the replies before it. Else each command is a group of its own.
Each group says what the replies to it answer, in order.

Must not know: when a group is sent, what was answered.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

from msgspec import Struct

from mailstrom.smtp import commands
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.dsn import mail_parameters, rcpt_parameters
from mailstrom.smtp.states import Slot
from mailstrom.smtp.transaction import Envelope

Place = tuple[Slot, int]
"""What a reply answers, and the recipient's index where that is RCPT."""


class Group(Struct, frozen=True, gc=False):
    """Commands that leave together, and what their replies answer."""

    octets: bytes
    places: tuple[Place, ...]


CONSENT = Group(commands.DATA, ((Slot.DATA, 0),))
"""DATA alone, in the place of a BDAT that is not to leave."""


@lru_cache(maxsize=512)
def places(reset: bool, recipients: int, last: Slot | None) -> tuple[Place, ...]:
    """What the replies to a flight answer: ``[RSET] MAIL RCPT* [DATA or BDAT]``."""
    before = [(Slot.RSET, 0)] if reset else []
    after = [] if last is None else [(last, 0)]
    return (*before, (Slot.MAIL, 0), *[(Slot.RCPT, index) for index in range(recipients)], *after)


def _asked_of_mail(envelope: Envelope, offered: Capabilities) -> str:
    """Parameters of MAIL; without them the mail goes where the server does not know them.

    But for REQUIRETLS, without which only bounces go (``transaction.unmet``).
    """
    out = ""
    if offered.dsn and (envelope.ret or envelope.envid):
        out = mail_parameters(envelope.ret, envelope.envid)
    if envelope.mt_priority is not None and offered.mt_priority is not None:
        out += f" MT-PRIORITY={max(-9, min(9, envelope.mt_priority))}"
    if envelope.requiretls and offered.requiretls:
        out += " REQUIRETLS"
    return out


def flight(
    envelope: Envelope,
    offered: Capabilities,
    *,
    reset: bool,
    chunk: bytes | None,
    proved: bool,
    pipelined: bool,
) -> deque[Group]:
    """The commands of a transaction.

    Args:
        envelope: who to whom.
        offered: what the server announced.
        reset: RSET goes first.
        chunk: the content, where it goes by BDAT.
        proved: a BDAT is known to work here, and nothing before is unclear.
        pipelined: commands may leave ahead of replies.

    Returns:
        The groups, in order.

    Raises:
        ValueError: an address that is no path.
    """
    utf8, count = envelope.smtputf8, len(envelope.recipients)
    lines = [commands.RSET] if reset else []
    lines.append(
        commands.mail(
            envelope.sender,
            size=envelope.size if offered.size is not None else None,
            body="8BITMIME" if envelope.eightbit else None,
            smtputf8=utf8,
            more=_asked_of_mail(envelope, offered),
        )
    )
    if envelope.asked and offered.dsn:
        for one, asked in zip(envelope.recipients, envelope.asked, strict=True):
            more = rcpt_parameters(asked, one, smtputf8=utf8)
            lines.append(commands.rcpt(one, smtputf8=utf8, more=more))
    else:
        for one in envelope.recipients:
            lines.append(commands.rcpt(one, smtputf8=utf8))
    slot = Slot.DATA if chunk is None else Slot.BDAT
    last = commands.DATA if chunk is None else commands.bdat(len(chunk)) + chunk
    if not pipelined:
        lines.append(last)
        awaited = places(reset, count, slot)
        return deque(Group(line, (one,)) for line, one in zip(lines, awaited, strict=True))
    if chunk is not None and not proved:
        ahead = Group(b"".join(lines), places(reset, count, None))
        return deque((ahead, Group(last, ((slot, 0),))))
    lines.append(last)
    return deque((Group(b"".join(lines), places(reset, count, slot)),))
