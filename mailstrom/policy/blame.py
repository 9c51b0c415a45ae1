"""Whom a reply blames: by its enhanced code, and without one by the stage it came at.

RFC 3463, with the codes of RFC 7372, 7505. It decides nothing. Must not know: what came before
the reply, or what becomes of it.
"""

from __future__ import annotations

from mailstrom.policy.verdict import FaultOf
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.states import CLOSING
from mailstrom.types import Stage

# Subject and detail of an enhanced code (RFC 3463, 7372, 7505) -> who is to blame. The longest
# match counts: "1.2" before "1.".
_FAULTS: dict[str, FaultOf] = {
    "1.": FaultOf.RECIPIENT,
    "1.2": FaultOf.DOMAIN,
    "1.7": FaultOf.SENDER,
    "1.8": FaultOf.SENDER,
    "1.10": FaultOf.DOMAIN,
    "2.": FaultOf.RECIPIENT,
    "2.3": FaultOf.CONTENT,
    "3.": FaultOf.REMOTE,
    "3.4": FaultOf.CONTENT,
    "4.": FaultOf.REMOTE,
    "4.5": FaultOf.RATE,
    "5.": FaultOf.REMOTE,
    "5.3": FaultOf.LOCAL,
    "6.": FaultOf.CONTENT,
    "7.": FaultOf.SOURCE,
    "7.2": FaultOf.SENDER,
    "7.20": FaultOf.SENDER,
    "7.21": FaultOf.SENDER,
    "7.22": FaultOf.SENDER,
    "7.23": FaultOf.SENDER,
    "7.24": FaultOf.SENDER,
    "7.26": FaultOf.SENDER,
    "7.27": FaultOf.SENDER,
    "7.28": FaultOf.RATE,
}

# Without an enhanced code the stage says whom the reply was about: (stage, permanent) -> fault.
_STAGE_FAULTS: dict[tuple[Stage, bool], FaultOf] = {
    (Stage.MAIL, True): FaultOf.SENDER,
    (Stage.RCPT, True): FaultOf.RECIPIENT,
    (Stage.DATA, True): FaultOf.CONTENT,
    (Stage.BODY, True): FaultOf.CONTENT,
    (Stage.DOT, True): FaultOf.CONTENT,
}


def fault_of(reply: Reply, stage: Stage, *, permanent: bool) -> FaultOf:
    """Whom a reply that refuses is about.

    Args:
        stage: what it answered.
        permanent: whether it is taken to be final.
    """
    if reply.code == CLOSING:
        return FaultOf.REMOTE
    if reply.enhanced is not None:
        detail = reply.enhanced.partition(".")[2]
        subject = detail.partition(".")[0] + "."
        fault = _FAULTS.get(detail) or _FAULTS.get(subject)
        if fault is not None:
            return fault
    return _STAGE_FAULTS.get((stage, permanent), FaultOf.REMOTE)
