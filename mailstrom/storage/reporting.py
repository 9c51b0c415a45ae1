"""What a store hands over for a report (RFC 3464), and what it gets back: a message to store.

Contract. A store knows when a report is owed, whoever opens it knows how a report reads. A failure,
and at least the note that a report of it is owed, are written in one transaction; the report, made
by the ``Reporter``, is written in that one or in a later one. So a reporter is called while a store
has its lock: it only computes, in well under a millisecond where it can, and asks no store, file or
network. What it raises keeps nothing from being settled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mailstrom.storage.client import Submission

ORIGINAL_BYTES = 256 * 1024
"""Largest content that is handed over whole, where nothing else is asked for."""


class ReportedRecipient(NamedTuple):
    """One recipient that a report tells of.

    Args:
        address: where it was to go.
        orcpt: the original recipient as the sender gave it, ``type;address``, decoded.
        action: ``failed``, ``delayed``, or ``relayed``: delivered to a host that reports nothing
            itself (RFC 3461 section 5.2.2). ``delivered`` is left for what delivers itself.
        reason: the word of ``mailstrom.types.Reason``; None where it has none.
        mx: the host that gave the last reply.
        reply_code, enhanced_code, reply_text: the last reply, or our own sentence.
        last_ms: when the last attempt ended; None before the first.
        expires_ms: when it is given up.
    """

    address: str
    orcpt: str | None
    action: str
    reason: str | None
    mx: str | None
    reply_code: int | None
    enhanced_code: str | None
    reply_text: str | None
    last_ms: int | None
    expires_ms: int


class ReportFacts(NamedTuple):
    """All of one report: a message, and those of its recipients that share an action.

    Args:
        id: the message's.
        sender: whom the report goes to; never empty.
        message_id: the header field, angle brackets included.
        envid, ret: as in ``Submission``.
        created_ms: when it was accepted.
        client: as in ``Submission``; None where nothing is known.
        smtputf8: whether it needed SMTPUTF8.
        require_tls: whether it may not travel in clear.
        requiretls: as in ``Submission``; what returns of it must be sent so, too (RFC 8689).
        size: bytes of the whole content.
        content: all of it where it failed, ``ret`` is not ``hdrs``, it may travel in clear and is
            no larger than was asked for, else the header section with the empty line behind it.
            Empty where it is gone or damaged.
        recipients: at least one; all with the same action.
    """

    id: str
    sender: str
    message_id: str
    envid: str | None
    ret: str | None
    created_ms: int
    client: Mapping[str, object] | None
    smtputf8: bool
    require_tls: bool
    size: int
    content: bytes
    recipients: tuple[ReportedRecipient, ...]
    requiretls: bool = False


Reporter = Callable[[ReportFacts, int], Submission | None]
"""Makes the report of some facts at a wall time in milliseconds; None: there is to be none.

The store sees to it that a report owes none itself (``origin`` "report", ``reports`` False)."""
