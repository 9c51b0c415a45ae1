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
from collections import deque
from collections.abc import AsyncIterator

from mailstrom import events
from mailstrom.errors import SpoolError
from mailstrom.policy.outcome import judge
from mailstrom.policy.refusal import local_refusal
from mailstrom.policy.site import claim_size, suspension_s
from mailstrom.smtp.client import Envelope
from mailstrom.smtp.framing import BareLineEnd
from mailstrom.storage.base import (
    Claimed,
    ClaimRequest,
    Lane,
    Open,
    Suspension,
    Work,
)
from mailstrom.types import Judgement, OnDoubt, Reason, iso_ms
from mailstrom_workers.connector import Connected, Connector
from mailstrom_workers.context import Context
from mailstrom_workers.ledger import Again, Ledger, Pass, Transaction

CLAIM_MESSAGES = 50
CLAIM_BYTES = 8 * 1024 * 1024
CLAIM_S = 1.0
"""A lane claims about what it delivers in this time, so that a slow one hoards nothing."""
MOST_RECIPIENTS = 100
"""Recipients of one transaction (RFC 5321 section 4.5.3.1.8: servers must take 100)."""
SESSION_S = 300.0
"""A session is used for so long, then renewed: a count would gather lanes at the slowest host."""
MOST_HOSTS = 2
"""Hosts that may answer for one message in one attempt."""


class ContentDamaged(Exception):
    """Content on disk does not match its digest; not a byte after this point is sent."""


class LaneRun:
    """Runs a lane to its end.

    Args:
        ctx: the worker's context.
        lane: the lease.
        lanes: how many lanes the site may have, to share what is due.
        failing: whether the site's last pass failed; this lane then finds out for all.
    """

    def __init__(self, ctx: Context, lane: Lane, lanes: int, *, failing: bool = False) -> None:
        self.ctx = ctx
        self.lane = lane
        self.connector = Connector(ctx, lane)
        self.connected: Connected | None = None
        self.ledger = Ledger(ctx, lane)
        self.work_came = asyncio.Event()
        self.idle = False
        self._failing = failing
        self._ended = False  # the spool gives this lane nothing more: too many since a reload
        self._claim = claim_size(lane.due, lanes, CLAIM_MESSAGES)

    async def run(self) -> None:
        """Work until nothing is due for a while, the site fails, or the worker drains."""
        loop = asyncio.get_running_loop()
        try:
            while not self.ctx.draining.is_set() and self.ctx.has_room():
                batch = await self._claim_batch()
                if not batch:
                    if not self._ended and await self._idle():
                        continue
                    break
                started = loop.time()
                if not await self._deliver(batch):
                    break
                pace = len(batch) / max(loop.time() - started, 0.001)
                self._claim = min(max(int(pace * CLAIM_S), 1), CLAIM_MESSAGES)
        finally:
            await asyncio.shield(self._end())

    async def _end(self) -> None:
        try:
            await self._disconnect()
            await self.ctx.db.exchange(self._work())
        finally:
            token, now_ms = self.lane.token, self.ctx.now_ms()
            on_doubt = self.ctx.settings.on_doubt
            await self.ctx.db.insist(lambda store: store.release(token, now_ms, on_doubt=on_doubt))
            self.ctx.wake()

    async def _claim_batch(self) -> list[Transaction]:
        """The next transactions; damaged messages are failed on the way, unread ones given back."""
        while True:
            claimed = await self._claim_rows()
            transactions = self._group(claimed)
            if transactions or not claimed:
                return transactions

    async def _claim_rows(self) -> list[Claimed]:
        work = self._work()
        work.claims.append(
            ClaimRequest(
                lane=self.lane.token,
                limit=self._claim,
                max_bytes=CLAIM_BYTES,
                limit_lanes=self.ctx.settings.config.sites.connections,
            )
        )
        exchange = await self.ctx.db.exchange(work)
        self._ended = self.lane.token in exchange.ended
        return exchange.claimed

    def _group(self, claimed: list[Claimed]) -> list[Transaction]:
        """Recipients of one message together, at most as many as every server must take."""
        transactions: list[Transaction] = []
        for row in claimed:
            if row.damaged:
                self.ledger.damaged(row)
                continue
            if row.unread:
                self.ledger.unread(row)
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
                self.ledger.give_back(queue, run)
                return False
            transaction = queue.popleft()
            index = await self._session_at(transaction.position)
            if index is None:
                if any(row.recipient in run.retained for row in transaction.recipients):
                    self.ledger.give_back([transaction], run)
                    continue
                if transaction.unanswered:
                    self.ctx.excuse(transaction.recipients[0].message)
                await self._suspend(run)
                self.ledger.give_back([transaction, *queue], run)
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
                and connected.settings is self.ctx.settings  # a reload may demand more of TLS
                and asyncio.get_running_loop().time() - connected.opened_at < SESSION_S
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
        if self.connector.local:
            ctx.pause()  # the site is not to blame for what this machine lacks
            return
        failures = await ctx.db.insist(lambda store: store.failures(lane.site))
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
            crowded=self.connector.crowded,
        )
        count = await ctx.db.insist(lambda store: store.suspend(suspension, now_ms))
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
            return self.ledger.apply(transaction, verdicts, connected, started_ms, run)
        on_doubt = first.on_doubt or self.ctx.settings.on_doubt
        transaction.recipients = await self._open(transaction.recipients, connected, on_doubt)
        if not transaction.recipients:
            return Again(transaction, [])
        reused = connected.transactions > 0
        connected.transactions += 1
        started_ms = self.ctx.now_ms()
        try:
            end = await session.transact(
                self._envelope(transaction.recipients), self._content(first)
            )
        except (ContentDamaged, BareLineEnd):  # cut before the dot: nothing was delivered
            for row in transaction.recipients:
                self.ledger.damaged(row)
            return Again(transaction, [])
        except SpoolError:  # content could not be read on; also cut before the dot
            self.ledger.give_back([transaction], run)
            return Again(transaction, [])
        verdicts = [
            judge(
                end,
                number,
                last_host=last_host,
                reused=reused,
                on_doubt=on_doubt,
                excused=first.message not in self.ctx.unanswered,
            )
            for number in range(len(transaction.recipients))
        ]
        if verdicts[0].judgement is None:  # nothing was answered, so to nobody
            self.connector.blame(verdicts[0])
        if self._failing and any(v.judgement is Judgement.DELIVERED for v in verdicts):
            self._failing = False  # as the store will find with these verdicts
            events.site_resumed(site=self.lane.site_key, host=connected.host.name)
        return self.ledger.apply(transaction, verdicts, connected, started_ms, run)

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

    # --- bookkeeping ------------------------------------------------------------------------

    def _work(self) -> Work:
        """What waits to be recorded, for the next exchange."""
        work = Work(sessions=self.connector.rows, settlements=self.ledger.take())
        self.connector.rows = []
        return work

    async def _disconnect(self) -> None:
        if self.connected is not None:
            connected, self.connected = self.connected, None
            await self.connector.disconnect(connected)
