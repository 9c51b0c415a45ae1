"""From verdicts to settlements: what a lane writes about its recipients.

A ledger gathers settlements until the lane's next exchange takes them, and has each verdict said
aloud (``outcome_events``). It decides nothing about replies (``policy.outcome`` does) and writes
nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from mailstrom import events
from mailstrom.policy.retry import next_attempt_ms
from mailstrom.policy.verdict import Action, Turn, Verdict
from mailstrom.storage.base import Attempt, Claimed, Lane, Settlement
from mailstrom.types import Judgement, Reason, Stage
from mailstrom_workers.connector import Connected
from mailstrom_workers.context import Context
from mailstrom_workers.outcome_events import tell
from mailstrom_workers.transactions import Again, Pass, Transaction

UNREAD_MS = 60_000
"""A disk that does not answer is not asked for the same message at once again."""
UNREADABLE_MS = 1_000
"""So long a message waits whose content could not be read on while it was sent."""
_FINAL = {Action.DELIVER: "delivered", Action.FAIL: "failed", Action.HOLD: "held"}


class Ledger:
    """The settlements of one lane.

    Args:
        ctx: the worker's context.
        lane: the lease that guards them.
    """

    def __init__(self, ctx: Context, lane: Lane) -> None:
        self.ctx = ctx
        self.lane = lane
        self.settlements: list[Settlement] = []

    def take(self) -> list[Settlement]:
        """What waits to be written; the ledger is empty afterwards."""
        taken, self.settlements = self.settlements, []
        return taken

    def apply(
        self,
        transaction: Transaction,
        verdicts: list[Verdict],
        connected: Connected,
        run: Pass,
    ) -> list[Again]:
        """Settle each recipient by its verdict; returns those that are left, the first last."""
        again: Again | None = None
        behind: Again | None = None
        left: dict[Turn, list[Claimed]] = {}
        ended_ms = self.ctx.machine.wall_ms()
        for row, verdict in zip(transaction.recipients, verdicts, strict=True):
            action = verdict.action
            number = row.attempts + 1 + (row.recipient in run.retained)
            attempt = _attempt(verdict, connected, transaction.started_ms, ended_ms)
            if action is Action.DELIVER:
                told = row.notify is not None and connected.session.capabilities.dsn
                self._settle(row, "delivered", None, None, attempt, confirmed=told)
                tell(self.lane.site_key, row, verdict, attempt, number, None)
                continue
            if action is Action.NEXT_TRANSACTION:
                self._settle(row, "claimed", None, None, None)
                behind = behind or Again(transaction, [], uncharged=True, follows=True)
                behind.recipients.append(row)
                continue
            if action is Action.NEXT_SESSION:
                self._settle(row, "claimed", None, None, None)
                left.setdefault(verdict.turn, []).append(row)
                continue
            again = again or Again(transaction, [])
            if action in (Action.AGAIN, Action.SUSPEND) or verdict.judgement is None:
                # Nothing was answered, nothing is charged: the claim goes on to a new session.
                self._settle(row, "claimed", None, None, None)
                again.recipients.append(row)
                again.uncharged = True
                # A session that took a message is progress: the next one may take this.
                again.same_host = action is Action.AGAIN and (
                    not transaction.reconnected or connected.session.messages > 0
                )
            elif action is Action.NEXT_HOST:
                run.retained[row.recipient] = (verdict, attempt, number)
                self._settle(row, "claimed", verdict.reason, None, attempt)
                again.recipients.append(row)
            elif action is Action.DEFER:
                due_ms = self._due_ms(row, verdict)
                self._settle(row, "deferred", verdict.reason, due_ms, attempt)
                tell(self.lane.site_key, row, verdict, attempt, number, due_ms)
            else:
                self._settle(row, _FINAL[action], verdict.reason, None, attempt)
                tell(self.lane.site_key, row, verdict, attempt, number, None)
        parts = [behind, again]
        if left:
            rest = left.get(Turn.UNASKED, []) + left.get(Turn.CLOSED_ON, [])
            # By a transaction of their own those who were taken have it, whoever else is refused.
            for rows in (rest, left.get(Turn.TAKEN, [])):
                parts.append(Again(transaction, rows, uncharged=True, left=True))
        return [part for part in parts if part is not None and part.recipients]

    def _due_ms(self, row: Claimed, verdict: Verdict) -> int:
        return next_attempt_ms(
            self.ctx.now_ms(),
            row.deferrals,
            self.ctx.settings.retry,
            self.ctx.random(),
            verdict.retry_hint_s,
        )

    def give_back(
        self, transactions: Iterable[Transaction], run: Pass, *, pause_ms: int = 0
    ) -> None:
        """End claims without another transaction: what a host said stands, the rest is due.

        Args:
            pause_ms: when it is due, from now on.
        """
        for transaction in transactions:
            for row in transaction.recipients:
                said = run.retained.get(row.recipient)
                if said is None:
                    self._settle(row, "queued", None, self.ctx.now_ms() + pause_ms, None)
                else:
                    verdict, attempt, number = said
                    due_ms = self._due_ms(row, verdict)
                    self._settle(row, "deferred", verdict.reason, due_ms, None)
                    tell(self.lane.site_key, row, verdict, attempt, number, due_ms)

    def unreached(self, transaction: Transaction, verdict: Verdict, host: str, run: Pass) -> None:
        """No session may carry it: deferred, or failed, without one.

        Args:
            host: who was asked last.
        """
        ended_ms = self.ctx.machine.wall_ms()
        attempt = Attempt(
            session=None,
            started_ms=min(run.started_ms, ended_ms),
            ended_ms=ended_ms,
            stage=verdict.stage,
            host=host,
            address=None,
            reply_code=None,
            enhanced_code=verdict.enhanced_code,
            reply_text=(verdict.reply_text or "")[:500],
            verdict=verdict.judgement or Judgement.DEFERRED,
            reason=verdict.reason,
            in_doubt=False,
        )
        fails = verdict.action is Action.FAIL
        for row in transaction.recipients:
            number = row.attempts + 1 + (row.recipient in run.retained)
            due_ms = None if fails else self._due_ms(row, verdict)
            self._settle(row, "failed" if fails else "deferred", verdict.reason, due_ms, attempt)
            tell(self.lane.site_key, row, verdict, attempt, number, due_ms)

    def reclaim(self, transaction: Transaction) -> None:
        """Opened, and not sent after all: claimed as before, to be opened anew."""
        for row in transaction.recipients:
            self._settle(row, "claimed", None, None, None)

    def damaged(self, row: Claimed) -> None:
        """Fail a recipient whose content or address is not what was stored."""
        now_ms = self.ctx.now_ms()
        text = "the stored content or address is not what was accepted; it is not delivered"
        attempt = Attempt(
            session=None,
            started_ms=now_ms,
            ended_ms=now_ms,
            stage=Stage.BODY,
            host=None,
            address=None,
            reply_code=None,
            enhanced_code="5.3.0",
            reply_text=text,
            verdict=Judgement.FAILED,
            reason=Reason.DAMAGED,
            in_doubt=False,
        )
        self._settle(row, "failed", Reason.DAMAGED, None, attempt)
        events.recipient_failed(
            message_id=row.message_id, recipient=row.address, reason=Reason.DAMAGED, reply=text
        )

    def unread(self, row: Claimed) -> None:
        """Give back a recipient whose content could not be read: unproved it is not sent."""
        events.engine_failed(
            where="content",
            error=f"the content of message {row.message_id} cannot be read now; it is tried again"
            f" in {UNREAD_MS // 1000} s: look at the disk and the kernel's log",
        )
        self._settle(row, "queued", None, self.ctx.now_ms() + UNREAD_MS, None)

    def _settle(
        self,
        row: Claimed,
        state: str,
        reason: Reason | None,
        due_ms: int | None,
        attempt: Attempt | None,
        *,
        confirmed: bool = False,
    ) -> None:
        self.settlements.append(
            Settlement(
                lane=self.lane.token,
                recipient=row.recipient,
                state=state,
                reason=reason,
                due_ms=due_ms,
                attempt=attempt,
                confirmed=confirmed,
            )
        )


def _attempt(verdict: Verdict, connected: Connected, started_ms: int, ended_ms: int) -> Attempt:
    text, facts = verdict.reply_text, connected.facts
    return Attempt(
        session=connected.id,
        started_ms=started_ms,
        ended_ms=ended_ms,
        stage=verdict.stage,
        host=facts.host,
        address=facts.address,
        reply_code=verdict.reply_code,
        enhanced_code=verdict.enhanced_code,
        reply_text=None if text is None else text[:500],
        verdict=verdict.judgement or Judgement.DEFERRED,
        reason=verdict.reason,
        in_doubt=verdict.in_doubt,
        tls=facts.tls_version or "none",
    )
