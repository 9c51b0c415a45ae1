"""How long each stage of a session may take, in seconds.

The defaults are the minimum values of RFC 5321 section 4.5.3.2 wherever it names one; shorter ones
turn slow but correct servers into duplicates (RFC 1047). Knows no clock: the wire measures.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds per stage; every value is a total for that stage unless said otherwise.

    Args:
        connect: one TCP connect to one address. RFC 5321 names none; 30 s lets another address
            have its turn.
        greeting: the initial 220 (section 4.5.3.2.1: 5 minutes).
        ehlo: reply to EHLO or HELO (no own value in the RFC; as for MAIL).
        starttls: reply to STARTTLS, and again the handshake (RFC 3207 names none).
        auth: the whole AUTH exchange (RFC 4954 names none).
        mail: reply to MAIL (section 4.5.3.2.2: 5 minutes).
        rcpt: reply to one RCPT (section 4.5.3.2.3: 5 minutes).
        data: the 354 after DATA (section 4.5.3.2.4: 2 minutes).
        body: each block of content to be taken by the peer (section 4.5.3.2.5: 3 minutes).
        dot: reply to the final dot (section 4.5.3.2.6: 10 minutes; shorter makes duplicates).
        behind: the first reply to commands that left behind a content, counted from the content's
            own: where it takes longer the server does not read ahead (our choice, no RFC's).
        rset: reply to RSET between transactions; nothing is at stake.
        quit: reply to QUIT; best effort, the mail is settled already.

    Raises:
        ValueError: a value is not a positive finite number.
    """

    connect: float = 30.0
    greeting: float = 300.0
    ehlo: float = 300.0
    starttls: float = 300.0
    auth: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    body: float = 180.0
    dot: float = 600.0
    behind: float = 30.0
    rset: float = 20.0
    quit: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if not (isfinite(seconds) and seconds > 0):
                raise ValueError(
                    f"timeout {field.name!r} is {seconds!r}: give a positive number of seconds"
                )
