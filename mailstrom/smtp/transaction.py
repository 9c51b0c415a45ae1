"""The values of a client transaction: what goes in, what comes out.

Contract: frozen values only. ``Envelope`` goes into the dialogue, events come out of it; one
``TransactionEnd`` says all that is known about a transaction (RFC 5321 section 3.3). ``unmet`` is
the one place that compares an envelope's needs with a server's extensions.

Must not know: how a transaction is run, what its end means for the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.dsn import Asked
from mailstrom.smtp.reply import Reply
from mailstrom.types import Pipelining, Stage


class Envelope(Struct, frozen=True, kw_only=True, gc=False):
    """What MAIL and RCPT say.

    Args:
        sender: reverse-path, ``""`` for the null sender.
        recipients: at least one address, each gets its own reply.
        size: octets of the content before dot stuffing.
        eightbit: the content has octets above 127.
        smtputf8: an address or header needs RFC 6531.
        ret, envid, asked: RET, ENVID (decoded) and what is asked for each recipient, in their
            order or empty (RFC 3461); sent where the server offers DSN, else left away.
        mt_priority: -9 to 9 (RFC 6710), or None; sent where the server offers MT-PRIORITY.
        requiretls: REQUIRETLS is said (RFC 8689). A bounce's, which has the null sender, is left
            away where the server does not offer it (section 5).
    """

    sender: str
    recipients: tuple[str, ...]
    size: int
    eightbit: bool = False
    smtputf8: bool = False
    ret: str | None = None
    envid: str | None = None
    asked: tuple[Asked, ...] = ()
    mt_priority: int | None = None
    requiretls: bool = False


class Fault(StrEnum):
    """How a session can end without a reply: by the peer's fault, or by ourselves.

    ``CUT`` is the shell's doing; ``ENDED`` the dialogue's, to those in flight behind a transaction
    whose replies leave none to be told behind it.
    """

    CLOSED = "closed"
    TIMEOUT = "timeout"
    GARBAGE = "garbage"
    CUT = "cut"
    ENDED = "ended"


class Extension(StrEnum):
    """What a server offers, and was seen to mishandle."""

    PIPELINING = "pipelining"
    CHUNKING = "chunking"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What of a server's extensions may be used with it.

    Args:
        pipelining: how much is sent ahead, where PIPELINING is offered.
        chunk_octets: content up to so many octets goes by BDAT where CHUNKING is offered; 0: none.
        chunks_proved: a BDAT worked at this site before: it may join a flight. Else the first one
            waits until a recipient was accepted.
        depth: transactions of one session whose content is out and unanswered, at most; behind the
            last of them one further envelope by DATA may stand. More than one needs BDAT in
            flights: behind a DATA, content cannot follow before its 354.
    """

    pipelining: Pipelining = Pipelining.FULL
    chunk_octets: int = 0
    chunks_proved: bool = False
    depth: int = 1


class Unmet(StrEnum):
    """What an envelope needs and a server does not offer."""

    SIZE = "size"
    EIGHTBITMIME = "8bitmime"
    SMTPUTF8 = "smtputf8"
    REQUIRETLS = "requiretls"


def unmet(envelope: Envelope, capabilities: Capabilities) -> Unmet | None:
    """The first need the server cannot meet, or None; to be asked before ``begin``.

    Source: RFC 1870 section 6.1, RFC 6152 section 3, RFC 6531 section 3.2, RFC 8689 sections 4.2.1
    and 5.
    """
    if envelope.requiretls and envelope.sender and not capabilities.requiretls:
        return Unmet.REQUIRETLS
    if envelope.smtputf8 and not capabilities.smtputf8:
        return Unmet.SMTPUTF8
    if envelope.eightbit and not capabilities.eightbitmime:
        return Unmet.EIGHTBITMIME
    if capabilities.size and envelope.size > capabilities.size:
        return Unmet.SIZE
    return None


class UnmetNeed(ValueError):
    """A transaction that cannot be begun on this session; nothing is wrong with its content.

    Args:
        need: what the envelope needs and the server does not offer.
    """

    def __init__(self, need: Unmet) -> None:
        super().__init__(f"the server does not offer what the envelope needs: {need}")
        self.need = need


class ContentWanted(Struct, frozen=True, kw_only=True, gc=False):
    """354 came, a recipient was accepted: ``content()`` now, then ``end_content()``."""


class TransactionEnd(Struct, frozen=True, kw_only=True, gc=False):
    """All that is known about one transaction, once.

    Args:
        mail, data, dot: the reply to each, or None if none came (or it was not sent); ``dot`` is
            that to the content, however it went.
        rcpts: one entry per recipient, in the envelope's order.
        stage: where it was decided; ``BODY`` while content was being written.
        fault: None if replies decided everything, else how the peer failed.
        dot_written: the content's final dot left, or the last octet of its BDAT, before any reply
            to it, and nothing answered proves that it was not taken: without ``dot`` it may or may
            not have been.
        answered: any reply of this transaction arrived.
        usable: another transaction may follow on this session.
        behind: its commands left behind content that was not answered yet.
        chunked: its content went by BDAT.
        stale: the session failed it for what came before: RSET was not answered as it must, MAIL
            with 503 only, or its replies were out of step behind a transaction of the session;
            without ``answered``, nothing of it was heard.
        stumbled: the extension that the server offers and mishandled here, or None.
        disbelieved: what each recipient was refused with, where that may be another's; or empty.
        reset: what refused RSET behind a refusal, or None.
    """

    mail: Reply | None
    rcpts: tuple[Reply | None, ...]
    data: Reply | None
    dot: Reply | None
    stage: Stage
    fault: Fault | None
    dot_written: bool
    answered: bool
    usable: bool
    behind: bool = False
    chunked: bool = False
    stale: bool = False
    stumbled: Extension | None = None
    disbelieved: tuple[Reply | None, ...] = ()
    reset: Reply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerClosing:
    """The peer ended the session between transactions.

    Args:
        reply: its unasked reply (421, RFC 5321 section 3.8), or None for a close or garbage.
        fault: None with a 421, else what happened.
    """

    reply: Reply | None
    fault: Fault | None = None


Event = ContentWanted | TransactionEnd | PeerClosing
