"""What became of a recipient in an attempt, as an event of the log.

One event for each verdict that ends an attempt; what the next host may still take has none. Knows
no ledger and no session: the facts of the attempt are all there is to tell.
"""

from __future__ import annotations

from mailstrom import events
from mailstrom.policy.verdict import Action, Verdict
from mailstrom.storage.base import Attempt, Claimed
from mailstrom.types import iso_ms


def tell(
    site: str,
    row: Claimed,
    verdict: Verdict,
    attempt: Attempt,
    number: int,
    due_ms: int | None,
) -> None:
    """Say one verdict aloud.

    Args:
        site: key of the site.
        number: of the attempt.
        due_ms: when the recipient is due again; None where it is final or held.
    """
    message_id, recipient = row.message_id, row.address
    stage = str(attempt.stage)
    host, address = attempt.host, attempt.address
    code, enhanced, reply = attempt.reply_code, attempt.enhanced_code, attempt.reply_text
    match verdict.action:
        case Action.DELIVER:
            events.recipient_delivered(
                message_id=message_id,
                recipient=recipient,
                attempt=number,
                stage=stage,
                site=site,
                host=host,
                address=address,
                code=code,
                enhanced=enhanced,
                reply=reply,
                tls=attempt.tls,
                session_id=attempt.session,
                elapsed_ms=attempt.ended_ms - attempt.started_ms,
            )
        case Action.FAIL:
            events.recipient_failed(
                message_id=message_id,
                recipient=recipient,
                reason=verdict.reason,
                attempt=number,
                stage=stage,
                site=site,
                host=host,
                address=address,
                code=code,
                enhanced=enhanced,
                reply=reply,
                session_id=attempt.session,
            )
        case Action.HOLD:
            events.recipient_held(
                message_id=message_id,
                recipient=recipient,
                reason=verdict.reason,
                attempt=number,
                stage=stage,
                site=site,
                host=host,
                reply=reply,
                in_doubt=verdict.in_doubt,
            )
        case _:
            events.recipient_deferred(
                message_id=message_id,
                recipient=recipient,
                reason=verdict.reason,
                attempt=number,
                stage=stage,
                site=site,
                host=host,
                address=address,
                code=code,
                enhanced=enhanced,
                reply=reply,
                next_attempt_at=iso_ms(due_ms),
                in_doubt=verdict.in_doubt,
            )
