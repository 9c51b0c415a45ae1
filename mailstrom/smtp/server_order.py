"""Which command may follow which, server side, as data.

Contract: RFC 5321 section 4.1.4 (order of commands), 3.1 (554 greeting), RFC 3207 section 4
(STARTTLS), RFC 4954 section 4 (AUTH), RFC 3030 section 2 (BDAT: not mixed with DATA). A pair that
is missing is out of order (503).

Must not know: how a command is read or answered.
"""

from __future__ import annotations

from enum import StrEnum

from mailstrom.smtp.reply import Reply


class Phase(StrEnum):
    """Where a session stands."""

    CONNECTED = "connected"  # greeting not yet sent
    REFUSED = "refused"  # greeted with 554: only QUIT is left (RFC 5321 section 3.1)
    GREETED = "greeted"  # before EHLO, or again after STARTTLS
    READY = "ready"
    MAIL = "mail"  # MAIL accepted, no recipient yet
    RCPT = "rcpt"  # at least one recipient accepted
    CONTENT = "content"
    CHUNK = "chunk"  # the octets of a BDAT
    CHUNKS = "chunks"  # behind a BDAT that was not the last
    AUTH = "auth"
    HANDSHAKE = "handshake"
    CLOSED = "closed"


_G, _R, _M, _C, _B = Phase.GREETED, Phase.READY, Phase.MAIL, Phase.RCPT, Phase.CHUNKS
_ANYWHERE = (_G, _R, _M, _C, _B)

# The next octets are no command line.
NO_LINES = frozenset({Phase.CONNECTED, Phase.CONTENT, Phase.CHUNK, Phase.HANDSHAKE, Phase.CLOSED})

# (phase, verb) -> phase once the command is accepted; what is missing is out of order.
ORDER: dict[tuple[Phase, str], Phase] = {
    (_R, "MAIL"): _M,
    (_M, "RCPT"): _C,
    (_C, "RCPT"): _C,
    (_C, "DATA"): Phase.CONTENT,
    **{(phase, "BDAT"): Phase.CHUNK for phase in (_C, _B)},
    (_R, "STARTTLS"): Phase.HANDSHAKE,
    (_R, "AUTH"): _R,
    (_G, "RSET"): _G,
    **{(phase, "RSET"): _R for phase in (_R, _M, _C, _B)},
    **{(phase, verb): _R for phase in _ANYWHERE for verb in ("EHLO", "HELO")},
    **{(phase, verb): phase for phase in _ANYWHERE for verb in ("NOOP", "VRFY", "HELP")},
    **{(phase, "QUIT"): Phase.CLOSED for phase in (*_ANYWHERE, Phase.REFUSED)},
}
VERBS = frozenset(verb for _, verb in ORDER)
# Commands of other documents: 502, not 500 (RFC 5321 section 4.2.4).
KNOWN_ELSEWHERE = frozenset({"EXPN", "TURN", "ETRN", "SEND", "SOML", "SAML"})

# A browser was made to speak to this port, and its form's fields are to be read as commands.
FOREIGN = frozenset(
    {"GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "CONNECT", "TRACE"}
)

# HELP, too; its reply says what is offered.
INQUIRIES = {
    "NOOP": Reply(250, "2.0.0", ("ok",)),
    "VRFY": Reply(252, "2.1.5", ("not verified here; send mail to find out",)),
}
BAD_SEQUENCE = {
    "MAIL": "MAIL is not possible here: greet first, one transaction at a time",
    "RCPT": "MAIL first",
    "DATA": "MAIL and RCPT first, and no BDAT",
    "BDAT": "MAIL and RCPT first",
    "STARTTLS": "STARTTLS belongs behind EHLO, outside a transaction",
    "AUTH": "AUTH belongs behind EHLO, outside a transaction, once",
}
