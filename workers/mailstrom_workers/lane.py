"""One leased lane: claim, open, transact, settle, until nothing is due or the worker drains.

A lane owns at most one session. A message's recipients travel in one transaction; the settlement of
one transaction and the opening of the next share an exchange. Recipients that the next host may
still take stay claimed; what no host took is deferred, and a site where no host could be used at
all is suspended with no recipient written.

Crash points: before ``open`` is committed nothing was sent (claims are simply due again); after it
the recipient is ``sending`` and a crash leaves it in doubt; the settlement ends that.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from mailstrom import events
from mailstrom.policy.outcome import judge
from mailstrom.policy.refusal import local_refusal
from mailstrom.policy.retry import next_attempt_ms
from mailstrom.policy.site import claim_size, suspension_s
from mailstrom.policy.verdict import Action, Verdict
from mailstrom.smtp.client import Envelope
from mailstrom.smtp.framing import BareLineEnd
from mailstrom.storage.base import (
    Attempt,
    Claimed,
    ClaimRequest,
    Lane,
    Open,
    Settlement,
    Suspension,
    Work,
)
from mailstrom.types import Judgement, OnDoubt, Reason, Stage, iso_ms
from mailstrom_workers.connector import Connected, Connector
from mailstrom_workers.context import Context

CLAIM_MESSAGES = 50
CLAIM_BYTES = 8 * 1024 * 1024
MOST_RECIPIENTS = 100
"""Recipients of one transaction (RFC 5321 section 4.5.3.1.8: servers must take 100)."""
SESSION_S = 300.0
"""A session is used for so long, then renewed: a count would gather lanes at the slowest host."""
MOST_HOSTS = 2
"""Hosts that may answer for one message in one attempt."""


class ContentDamaged(Exception):
    """Content on disk does not match its digest; not a byte after this point is sent."""


@dataclass(slots=True)
class Transaction:
    """Recipients of one message that travel together.

    Args:
        position: index of the first host that may still take them.
        hosts_tried: hosts that have answered for them in this attempt.
        reconnected: whether a closed session was already renewed for them.
    """

    recipients: list[Claimed]
    position: int = 0
    hosts_tried: int = 0
    reconnected: bool = False


@dataclass(slots=True)
class Again:
    """What is left of a transaction for another host, or for a new session to this one."""

    before: Transaction
    recipients: list[Claimed]
    uncharged: bool = False
    same_host: bool = False

    def transaction(self, index: int) -> Transaction:
        """The next transaction, after one on the host with this index."""
        return Transaction(
            self.recipients,
            position=index if self.same_host else index + 1,
            hosts_tried=self.before.hosts_tried + (not self.uncharged),
            reconnected=self.before.reconnected or self.same_host,
        )


@dataclass(slots=True)
class Pass:
    """One walk of a batch over the site's hosts.

    Args:
        retained: recipient -> what the last host said, where the next host has its turn.
    """

    started_ms: int
    retained: dict[int, Verdict] = field(default_factory=dict)


class LaneRun:
    """Runs a lane to its end.

    Args:
        ctx: the worker's context.
        lane: the lease.
        lanes_there: lanes leased at the site together with this one, to share what is due.
    """

    def __init__(self, ctx: Context, lane: Lane, lanes_there: int) -> None:
        self.ctx = ctx
        self.lane = lane
        self.connector = Connector(ctx, lane)
        self.connected: Connected | None = None
        self.settlements: list[Settlement] = []
        self.work_came = asyncio.Event()
        self.idle = False
        self._claim = claim_size(lane.due, lanes_there, CLAIM_MESSAGES)

    async def run(self) -> None:
        """Work until nothing is due for a while, the site fails, or the worker drains."""
        try:
            while not self.ctx.draining.is_set():
                batch = await self._claim_batch()
                if not batch:
                    if await self._idle():
                        continue
                    break
                if not await self._deliver(batch):
                    break
        finally:
            await asyncio.shield(self._end())

    async def _end(self) -> None:
        await self._disconnect()
        await self.ctx.db.exchange(self._work())
        token, now_ms = self.lane.token, self.ctx.now_ms()
        await self.ctx.db.call(lambda store: store.release(token, now_ms))
        self.ctx.wake()

    async def _claim_batch(self) -> list[Transaction]:
        work = self._work()
        work.claims.append(
            ClaimRequest(lane=self.lane.token, limit=self._claim, max_bytes=CLAIM_BYTES)
        )
        self._claim = CLAIM_MESSAGES
        claimed = (await self.ctx.db.exchange(work)).claimed
        transactions: list[Transaction] = []
        for row in claimed:
            if row.damaged:
                self._settle_damaged(row)
                continue
            last = transactions[-1] if transactions else None
            if (
                last is not None
                and last.recipients[0].message == row.message
                and len(last.recipients) < MOST_RECIPIENTS
            ):
                last.recipients.append(row)
            else:
                transactions.append(Transaction([row]))
        if claimed and not transactions:
            await self.ctx.db.exchange(self._work())
            return await self._claim_batch()
        return transactions

    async def _idle(self) -> bool:
        """Keep the session a little for work that may come; True when some came."""
        await self.ctx.db.exchange(self._work())
        if self.connected is None or not self.connected.session.usable:
            return False
        self.work_came.clear()
        self.idle = True
        try:
            async with asyncio.timeout(self.ctx.settings.config.sites.idle):
                await self.work_came.wait()
        except TimeoutError:
            return False
        finally:
            self.idle = False
        return True

    # --- one batch --------------------------------------------------------------------------

    async def _deliver(self, batch: list[Transaction]) -> bool:
        """Bring each transaction to a host that settles it; False when the lane should end.

        A transaction that the next host may still take goes to the end of the queue with a higher
        ``position``; each round raises a position or uses up a reconnect, so this ends.
        """
        run = Pass(started_ms=self.ctx.now_ms())
        if self.connected is None:
            self.connector.reorder()
        queue = deque(batch)
        while queue:
            if self.ctx.draining.is_set():
                self._give_back(queue, run)
                return False
            transaction = queue.popleft()
            index = await self._session_at(transaction.position)
            if index is None:
                if any(row.recipient in run.retained for row in transaction.recipients):
                    self._give_back([transaction], run)
                    continue
                await self._suspend(run)
                self._give_back([transaction, *queue], run)
                return False
            again = await self._transact(transaction, index, run)
            if again.recipients:
                (queue.appendleft if again.uncharged else queue.append)(again.transaction(index))
            if self.connected is not None and not self.connected.session.usable:
                await self._disconnect()
        return True

    async def _session_at(self, position: int) -> int | None:
        """The index of the host a usable session leads to, at ``position`` or later; or None."""
        connected = self.connected
        if connected is not None:
            index = self.connector.hosts.index(connected.host)
            most = self.ctx.settings.config.sites.messages_per_connection
            if (
                index >= position
                and connected.session.usable
                and time.monotonic() - connected.opened_at < SESSION_S
                and (most == 0 or connected.session.messages < most)
            ):
                return index
            await self._disconnect()
        found = await self.connector.connect(position)
        if found is None:
            return None
        index, self.connected = found
        return index

    async def _suspend(self, run: Pass) -> None:
        """No host of the site can be used: one row, no recipient is written."""
        ctx, lane = self.ctx, self.lane
        trouble = self.connector.trouble
        failures = await ctx.db.call(lambda store: store.failures(lane.site))
        delay = suspension_s(failures + 1, ctx.settings.config.sites.suspend, ctx.random())
        now_ms = ctx.now_ms()
        text = trouble.text if trouble is not None else "no host could be used"
        reason = trouble.reason if trouble is not None else Reason.CONNECT
        suspension = Suspension(
            site=lane.site,
            until_ms=now_ms + int(delay * 1000),
            since_ms=run.started_ms,
            by=f"worker {ctx.worker}",
            reason=reason,
            text=text[:500],
        )
        count = await ctx.db.call(lambda store: store.suspend(suspension, now_ms))
        if count:
            events.site_suspended(
                site=lane.site_key,
                reason=reason,
                until=iso_ms(suspension.until_ms),
                delay_s=round(delay, 1),
                failures=count,
                error=text,
            )

    async def _transact(self, transaction: Transaction, index: int, run: Pass) -> Again:
        """One transaction on the present session; what is left of it for another one."""
        connected = self.connected
        assert connected is not None
        session = connected.session
        first = transaction.recipients[0]
        last_host = (
            index + 1 >= len(self.connector.hosts) or transaction.hosts_tried + 1 >= MOST_HOSTS
        )
        refusal = local_refusal(
            self._envelope(transaction.recipients),
            session.capabilities,
            require_tls=first.require_tls,
            encrypted=session.facts.tls_reached != "none",
            last_host=last_host,
        )
        started_ms = self.ctx.now_ms()
        if refusal is not None:
            verdicts = [refusal] * len(transaction.recipients)
            return self._apply(transaction, verdicts, connected, started_ms, run)
        on_doubt = first.on_doubt or self.ctx.settings.on_doubt
        transaction.recipients = await self._open(transaction.recipients, connected, on_doubt)
        if not transaction.recipients:
            return Again(transaction, [])
        reused = session.messages > 0
        started_ms = self.ctx.now_ms()
        try:
            end = await session.transact(
                self._envelope(transaction.recipients), self._content(first)
            )
        except (ContentDamaged, BareLineEnd):  # cut before the dot: nothing was delivered
            for row in transaction.recipients:
                self._settle_damaged(row)
            return Again(transaction, [])
        verdicts = [
            judge(end, number, last_host=last_host, reused=reused, on_doubt=on_doubt)
            for number in range(len(transaction.recipients))
        ]
        return self._apply(transaction, verdicts, connected, started_ms, run)

    async def _open(
        self, recipients: list[Claimed], connected: Connected, on_doubt: OnDoubt
    ) -> list[Claimed]:
        """Mark them ``sending``, in the exchange that settles what came before."""
        work = self._work()
        work.opens.append(
            Open(
                lane=self.lane.token,
                recipients=tuple(row.recipient for row in recipients),
                session=connected.id,
            )
        )
        exchange = await self.ctx.db.exchange(work, durable=on_doubt is OnDoubt.HOLD)
        opened = exchange.opened
        return [row for row in recipients if row.recipient in opened]

    def _envelope(self, recipients: list[Claimed]) -> Envelope:
        first = recipients[0]
        return Envelope(
            sender=first.sender,
            recipients=tuple(row.address for row in recipients),
            size=first.size,
            eightbit=first.eightbit,
            smtputf8=first.smtputf8,
        )

    def _content(self, first: Claimed) -> AsyncIterator[bytes] | bytes:
        return first.body if first.body is not None else self._chunks(first)

    async def _chunks(self, first: Claimed) -> AsyncIterator[bytes]:
        for number in range(first.chunks):
            data = await self.ctx.db.call(
                lambda store, number=number: store.chunk(first.content, number)  # type: ignore[misc]
            )
            if data is None:
                raise ContentDamaged
            yield data

    # --- verdicts to settlements ------------------------------------------------------------

    def _apply(
        self,
        transaction: Transaction,
        verdicts: list[Verdict],
        connected: Connected,
        started_ms: int,
        run: Pass,
    ) -> Again:
        again = Again(transaction, [])
        ended_ms = self.ctx.now_ms()
        for row, verdict in zip(transaction.recipients, verdicts, strict=True):
            action = verdict.action
            attempt = self._attempt(row, verdict, connected, started_ms, ended_ms)
            if action in (Action.AGAIN, Action.SUSPEND) or verdict.judgement is None:
                # Nothing was answered, nothing is charged: the claim goes on to a new session.
                self._settle(row, "claimed", None, None, None)
                again.recipients.append(row)
                again.uncharged = True
                again.same_host = action is Action.AGAIN and not transaction.reconnected
            elif action is Action.NEXT_HOST:
                run.retained[row.recipient] = verdict
                self._settle(row, "claimed", verdict.reason, None, attempt)
                again.recipients.append(row)
            elif action is Action.DEFER:
                due_ms = self._due_ms(row, verdict)
                self._settle(row, "deferred", verdict.reason, due_ms, attempt)
                self._log(row, verdict, connected, attempt, due_ms)
            else:
                self._settle(row, _FINAL[action], verdict.reason, None, attempt)
                self._log(row, verdict, connected, attempt, None)
        return again

    def _due_ms(self, row: Claimed, verdict: Verdict) -> int:
        return next_attempt_ms(
            self.ctx.now_ms(),
            row.deferrals,
            self.ctx.settings.retry,
            self.ctx.random(),
            verdict.retry_hint_s,
        )

    def _give_back(self, transactions: Iterable[Transaction], run: Pass) -> None:
        """End claims without another transaction: what a host said stands, the rest is due."""
        for transaction in transactions:
            for row in transaction.recipients:
                verdict = run.retained.get(row.recipient)
                if verdict is None:
                    self._settle(row, "queued", None, self.ctx.now_ms(), None)
                else:
                    due_ms = self._due_ms(row, verdict)
                    self._settle(row, "deferred", verdict.reason, due_ms, None)

    def _settle_damaged(self, row: Claimed) -> None:
        now_ms = self.ctx.now_ms()
        text = "the stored content or address does not match its digest; nothing was sent"
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

    def _settle(
        self,
        row: Claimed,
        state: str,
        reason: Reason | None,
        due_ms: int | None,
        attempt: Attempt | None,
    ) -> None:
        self.settlements.append(
            Settlement(
                lane=self.lane.token,
                recipient=row.recipient,
                state=state,
                reason=reason,
                due_ms=due_ms,
                attempt=attempt,
            )
        )

    def _attempt(
        self, row: Claimed, verdict: Verdict, connected: Connected, started_ms: int, ended_ms: int
    ) -> Attempt:
        facts = connected.session.facts
        return Attempt(
            session=connected.id,
            started_ms=started_ms,
            ended_ms=ended_ms,
            stage=verdict.stage,
            host=facts.host,
            address=facts.address,
            reply_code=verdict.reply_code,
            enhanced_code=verdict.enhanced_code,
            reply_text=None if verdict.reply_text is None else verdict.reply_text[:500],
            verdict=verdict.judgement or Judgement.DEFERRED,
            reason=verdict.reason,
            in_doubt=verdict.in_doubt,
            tls=facts.tls_version or "none",
        )

    def _log(
        self,
        row: Claimed,
        verdict: Verdict,
        connected: Connected,
        attempt: Attempt,
        due_ms: int | None,
    ) -> None:
        message_id, recipient = row.message_id, row.address
        number, stage, site = row.attempts + 1, str(attempt.stage), self.lane.site_key
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
                    session_id=connected.id,
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
                    session_id=connected.id,
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

    # --- bookkeeping ------------------------------------------------------------------------

    def _work(self) -> Work:
        """What waits to be recorded, for the next exchange."""
        work = Work(sessions=self.connector.rows, settlements=self.settlements)
        self.connector.rows, self.settlements = [], []
        return work

    async def _disconnect(self) -> None:
        if self.connected is not None:
            connected, self.connected = self.connected, None
            await self.connector.disconnect(connected)


_FINAL = {Action.DELIVER: "delivered", Action.FAIL: "failed", Action.HOLD: "held"}
