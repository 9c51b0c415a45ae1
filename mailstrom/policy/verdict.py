"""The values a decision is made of: what to do, for whom, and whose fault it is.

A verdict is a value, never an exception. Only ``outcome`` and ``refusal`` make them; stores and
lanes read them. Must not know: replies, sessions, clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct

from mailstrom.types import Judgement, Reason, Stage


class Action(StrEnum):
    """What to do now."""

    DELIVER = "deliver"
    FAIL = "fail"
    DEFER = "defer"
    HOLD = "hold"
    NEXT_HOST = "next_host"  # not delivered here; the next host has its turn now
    AGAIN = "again"  # an idle session was closed under us: reconnect, charge nothing
    NEXT_TRANSACTION = "next_transaction"  # too many for this one: the next, charge nothing
    NEXT_SESSION = "next_session"  # closed on behind others' refusals: reconnect, charge nothing
    SUSPEND = "suspend"  # host trouble on the last host: rest the site, charge nothing


class Turn(StrEnum):
    """When a recipient is asked for again that a server did not judge, since it closed."""

    TAKEN = "taken"  # first, with such alone: nothing more is refused there
    UNASKED = "unasked"
    CLOSED_ON = "closed_on"  # last: the server closed in its place, and may do so again


class FaultOf(StrEnum):
    """Who is to blame; only ``recipient`` and ``domain`` may ever lead to suppression."""

    RECIPIENT = "recipient"
    DOMAIN = "domain"
    CONTENT = "content"
    SENDER = "sender"
    SOURCE = "source"
    RATE = "rate"
    REMOTE = "remote"
    LOCAL = "local"


class Verdict(Struct, frozen=True, kw_only=True, gc=False):
    """What is decided for one recipient.

    Args:
        action: what to do now.
        judgement: the attempt's word, or None where no attempt is charged.
        reason: the recipient's reason where it has one.
        stage: where it was decided.
        reply_code: the deciding reply's code, or None for losses and refusals of our own.
        enhanced_code: RFC 3463 code of the reply, or ours.
        reply_text: the server's own words, or our sentence.
        in_doubt: whether it may have been delivered.
        fault_of: who is to blame.
        retry_hint_s: seconds the server asked us to wait, bounded, or None.
        turn: of ``NEXT_SESSION``.
    """

    action: Action
    judgement: Judgement | None
    reason: Reason | None
    stage: Stage
    reply_code: int | None = None
    enhanced_code: str | None = None
    reply_text: str | None = None
    in_doubt: bool = False
    fault_of: FaultOf = FaultOf.REMOTE
    retry_hint_s: float | None = None
    turn: Turn = Turn.UNASKED


@dataclass(frozen=True, slots=True, kw_only=True)
class HostVerdict:
    """What is decided about a host whose session could not be used.

    Always: try the next host; after the last one suspend the site with ``reason``. No recipient is
    failed and no attempt charged.
    """

    reason: Reason
    fault_of: FaultOf
    text: str
    stage: Stage
    reply_code: int | None = None
    enhanced_code: str | None = None
