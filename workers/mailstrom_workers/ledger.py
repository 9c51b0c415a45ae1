"""From verdicts to settlements: what a lane writes about its recipients, and what it says aloud.

A ledger gathers settlements until the lane's next exchange takes them. It decides nothing about
replies (``policy.outcome`` does) and writes nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from mailstrom import events
from mailstrom.policy.retry import next_attempt_ms
from mailstrom.policy.verdict import Action, Turn, Verdict
from mailstrom.smtp.dsn import Asked
from mailstrom.smtp.transaction import Envelope
from mailstrom.storage.base import Attempt, Claimed, Lane, Settlement
from mailstrom.types import Judgement, OnDoubt, Reason, Stage, iso_ms
from mailstrom_workers.connector import Connected
from mailstrom_workers.context import Context

UNREAD_MS = 60_000
"""A disk that does not answer is not asked for the same message at once again."""
UNREADABLE_MS = 1_000
"""So long a message waits whose content could not be read on while it was sent."""
_FINAL = {Action.DELIVER: "delivered", Action.FAIL: "failed", Action.HOLD: "held"}


def _asked(rows: list[Claimed]) -> tuple[Asked, ...]:
    """What is asked for each of them, or nothing where nothing is."""
    for row in rows:
        if row.notify is not None or row.orcpt is not None:
            return tuple([(one.notify, one.orcpt) for one in rows])
    return ()


class Transaction(Struct, eq=False):
    """Recipients of one message that travel together.

    Args:
        claimed_at: loop time when they were claimed.
        position: index of the first host that may still take them.
        hosts_tried: hosts that have answered for them in this attempt.
        reconnected: whether a closed session was already renewed for them.
        unanswered: whether a host ended the session without a word on them.
        envelope: what MAIL and RCPT say for all of them; None: to be made.
        opened_at: loop time when the store looked whether they may be sent.
        started_ms: when they went to the session.
        reused: whether that had begun a transaction before.
        octets: content held in memory.
        priority: rank of its message; 0 is the highest.
    """

    recipients: list[Claimed]
    claimed_at: float = 0.0
    position: int = 0
    hosts_tried: int = 0
    reconnected: bool = False
    unanswered: bool = False
    envelope: Envelope | None = None
    opened_at: float = 0.0
    started_ms: int = 0
    reused: bool = False
    octets: int = 0
    priority: int = 0

    def __post_init__(self) -> None:
        first = self.recipients[0]  # all have one message
        self.octets = 0 if first.body is None else len(first.body)
        self.priority = first.priority

    @property
    def strict(self) -> bool:
        """Whether it goes only to a host that proves its name and offers REQUIRETLS (RFC 8689).

        Not a bounce: section 5 has it sent all the same.
        """
        first = self.recipients[0]
        return first.requiretls and bool(first.sender)

    def address(self) -> Envelope:
        """The envelope for its recipients, as they are now."""
        if self.envelope is None:
            first = self.recipients[0]
            self.envelope = Envelope(
                sender=first.sender,
                recipients=(first.address,)
                if len(self.recipients) == 1
                else tuple([row.address for row in self.recipients]),
                size=first.size,
                eightbit=first.eightbit,
                smtputf8=first.smtputf8,
                ret=first.ret,
                envid=first.envid,
                asked=_asked(self.recipients),
                mt_priority=first.priority_wire,
                requiretls=first.requiretls,
            )
        return self.envelope

    def on_doubt(self, default: OnDoubt) -> OnDoubt:
        """What to do in doubt; all of its recipients have one message.

        Args:
            default: where the message does not say.
        """
        return self.recipients[0].on_doubt or default

    def narrow(self, rows: list[Claimed]) -> None:
        """Only these travel."""
        self.recipients, self.envelope = rows, None

    def put_down(self) -> None:
        """Its content is held no longer: it is read again where it is wanted."""
        self.recipients = [replace(row, body=None) for row in self.recipients]
        self.octets = 0

    def rest(self, most: int) -> Transaction:
        """Cut off what is beyond so many recipients, as another one."""
        left = self.recipients[most:]
        self.narrow(self.recipients[:most])
        return replace(self, recipients=left)


@dataclass(slots=True, eq=False)
class Again:
    """What is left of a transaction for another host, or for this one: once more, or at last.

    Args:
        before: the transaction.
        recipients: who is left.
        uncharged: nothing was answered that counts.
        same_host: in a new session to the same host.
        follows: they were too many for the transaction: in the next one, of any session.
        left: the host closed behind others that it refused, which is progress: in a new session.
    """

    before: Transaction
    recipients: list[Claimed]
    uncharged: bool = False
    same_host: bool = False
    follows: bool = False
    left: bool = False

    def transaction(self, index: int) -> Transaction:
        """The next transaction, after one on the host with this index."""
        return Transaction(
            self.recipients,
            claimed_at=self.before.claimed_at,
            position=index if self.same_host or self.follows or self.left else index + 1,
            hosts_tried=self.before.hosts_tried + (not self.uncharged),
            reconnected=self.before.reconnected or self.same_host,
            unanswered=self.before.unanswered
            or (self.uncharged and not self.follows and not self.left),
        )


@dataclass(slots=True)
class Pass:
    """One walk of a batch over the site's hosts.

    Args:
        retained: recipient -> what the last host said, where the next host has its turn.
    """

    started_ms: int
    retained: dict[int, tuple[Verdict, Attempt, int]] = field(default_factory=dict)


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
                self._log(row, verdict, attempt, number, None)
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
                self._log(row, verdict, attempt, number, due_ms)
            else:
                self._settle(row, _FINAL[action], verdict.reason, None, attempt)
                self._log(row, verdict, attempt, number, None)
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
                    self._log(row, verdict, attempt, number, due_ms)

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
            self._log(row, verdict, attempt, number, due_ms)

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

    def _log(
        self,
        row: Claimed,
        verdict: Verdict,
        attempt: Attempt,
        number: int,
        due_ms: int | None,
    ) -> None:
        message_id, recipient = row.message_id, row.address
        stage, site = str(attempt.stage), self.lane.site_key
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
