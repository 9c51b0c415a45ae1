"""One leased lane: claims, opens, one session, settlements, until nothing is due or it drains.

A lane owns at most one session and is the source of its transactions. Messages pass through it so:
*waiting* (claimed) -> *opened* (on disk as ``sending``; a window of them, ahead of the wire) -> on
the wire -> settled. Whatever a turn of it wants recorded travels in one exchange: settlements of
what ended, openings of what comes next, a claim before the waiting run out. A verdict is on its way
to the store before a further transaction begins on that session.

A message's recipients travel in one transaction. Recipients that the next host may still take stay
claimed; what no host took is deferred, and a site where no host could be used at all is suspended
with no recipient written.

Crash points: before ``open`` is committed nothing was sent (claims are simply due again); after it
the recipient is ``sending`` and a crash leaves it in doubt; the settlement ends that. So what may
not be sent twice (``on_doubt = "hold"``) is opened by itself, on the disk, and never ahead.

Longer than a file should be: what a message passes through is one machine, safe only as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from mailstrom import events
from mailstrom.errors import SpoolError
from mailstrom.policy.outcome import judge
from mailstrom.policy.refusal import local_refusal
from mailstrom.policy.site import claim_size, suspension_s
from mailstrom.smtp.client import Envelope, TransactionEnd
from mailstrom.storage.base import (
    Claimed,
    ClaimRequest,
    Exchange,
    Lane,
    Open,
    Suspension,
    Work,
)
from mailstrom.types import Judgement, OnDoubt, Reason, iso_ms
from mailstrom_workers.connector import Connected, Connector
from mailstrom_workers.context import Context
from mailstrom_workers.ledger import Again, Ledger, Pass, Transaction
from mailstrom_workers.session import Outgoing

CLAIM_MESSAGES = 200
CLAIM_BYTES = 8 * 1024 * 1024
CLAIM_S = 0.5
"""A lane claims about what it delivers in this time, so that a slow one hoards nothing."""
MOST_RECIPIENTS = 100
"""Recipients of one transaction (RFC 5321 section 4.5.3.1.8: servers must take 100)."""
SESSION_S = 300.0
"""A session is used for so long, then renewed: a count would gather lanes at the slowest host."""
MOST_HOSTS = 2
"""Hosts that may answer for one message in one attempt."""
MOST_OPENED = 16
"""Messages opened ahead of the wire, at most: a crash leaves them in doubt, though nothing left."""
FRESH_S = 5.0
"""What was opened longer ago is opened again before it is sent: this process may have stood still,
and the lane be somebody else's."""
SILENT_S = 5.0
"""A session that says nothing for so long keeps no other message waiting."""


class ContentDamaged(Exception):
    """Content on disk does not match its digest; not a byte after this point is sent."""


class LaneRun:
    """Runs a lane to its end; the ``Source`` of its session.

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
        self._waiting: deque[Transaction] = deque()
        self._later: deque[Transaction] = deque()  # for another host than the present one
        self._opening: list[Transaction] = []
        self._opened: deque[Transaction] = deque()
        self._wire: deque[Transaction] = deque()
        self._window = 1
        self._asking = False
        self._dry = False  # the last claim found nothing
        self._index = 0
        self._run = Pass(started_ms=0)
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._progress_s = 0.0
        self._pace_from_s = 0.0
        self._paced = 0
        self._reading = 0  # octets of the worker's budget that a claim under way may use

    async def run(self) -> None:
        """Work until nothing is due for a while, the site fails, or the worker drains."""
        try:
            while not self.ctx.draining.is_set() and self.ctx.has_room():
                if not await self._claim_first():
                    if not self._ended and await self._idle():
                        continue
                    break
                if not await self._deliver():
                    break
        finally:
            await asyncio.shield(self._end())

    async def _end(self) -> None:
        try:
            await self._disconnect()
            await self.ctx.db.exchange(self._work())
        finally:
            self._let_go()
            token, now_ms = self.lane.token, self.ctx.now_ms()
            on_doubt = self.ctx.settings.on_doubt
            await self.ctx.db.insist(lambda store: store.release(token, now_ms, on_doubt=on_doubt))
            self.ctx.wake()

    # --- claims -----------------------------------------------------------------------------

    async def _claim_first(self) -> bool:
        """Claim with nothing in hand; False where nothing is due."""
        while True:
            work = self._work()
            work.claims.append(self._claim_request())
            exchange = await self.ctx.db.exchange(work)
            self._take(exchange)
            if self._waiting or not exchange.claimed:
                return bool(self._waiting)

    def _claim_request(self) -> ClaimRequest:
        self._reading = self.ctx.reserve(CLAIM_BYTES)
        return ClaimRequest(
            lane=self.lane.token,
            limit=self._claim if self._reading else 1,
            max_bytes=max(self._reading, 1),
            limit_lanes=self.ctx.settings.config.sites.connections,
        )

    def _take(self, exchange: Exchange) -> None:
        """What a claim gave: damaged messages are failed on the way, unread ones given back."""
        self._ended = self.lane.token in exchange.ended
        self._dry = not exchange.claimed
        self.ctx.free(self._reading)
        self._reading = 0
        for row in exchange.claimed:
            if row.damaged:
                self.ledger.damaged(row)
                continue
            if row.unread:
                self.ledger.unread(row)
                continue
            last = self._waiting[-1] if self._waiting else None
            if (
                last is not None
                and last.recipients[0].message == row.message
                and len(last.recipients) < self._most_recipients()
            ):
                last.recipients.append(row)
            else:
                self._waiting.append(Transaction([row]))
                self.ctx.hold(self._waiting[-1].octets)

    def _most_recipients(self) -> int:
        if self.connected is None:
            return MOST_RECIPIENTS
        limit = self.connected.session.capabilities.limits.get("RCPTMAX", MOST_RECIPIENTS)
        return max(1, min(limit, MOST_RECIPIENTS))

    def _over(self, transaction: Transaction) -> None:
        """Nothing of it is in hand any more."""
        self.ctx.free(transaction.octets)

    def _let_go(self) -> None:
        for transaction in (
            *self._waiting,
            *self._later,
            *self._opening,
            *self._opened,
            *self._wire,
        ):
            self._over(transaction)
        self.ctx.free(self._reading)
        self._reading = 0

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

    # --- what is in hand, host by host ------------------------------------------------------

    async def _deliver(self) -> bool:
        """Bring each transaction to a host that settles it; False when the lane should end.

        A transaction that the next host may still take waits for the others, with a higher
        ``position``; each round raises a position or uses up a reconnect, so this ends.
        """
        self._run = run = Pass(started_ms=self.ctx.now_ms())
        if self.connected is None:
            self.connector.reorder()
        while True:
            if not self._waiting:
                self._waiting, self._later = self._later, deque()
            if not self._waiting:
                return True
            if self.ctx.draining.is_set():
                self._give_back(self._waiting)
                self._give_back(self._later)
                return False
            first = self._waiting[0]
            index = await self._session_at(first.position)
            if index is None:
                self._waiting.popleft()
                if any(row.recipient in run.retained for row in first.recipients):
                    self._give_back(deque([first]))
                    continue
                if first.unanswered:
                    self.ctx.excuse(first.recipients[0].message)
                await self._suspend(run)
                self._waiting.appendleft(first)
                self._give_back(self._waiting)
                self._give_back(self._later)
                return False
            self._index = index
            await self._feed()
            if self.connected is not None and not self.connected.session.usable:
                await self._disconnect()

    async def _feed(self) -> None:
        """Send on the present session until it, or what suits it, comes to an end."""
        assert self.connected is not None
        session = self.connected.session
        self._progress_s = self._pace_from_s = self._loop.time()
        self._paced = 0
        self._turn()
        session.feed(self)
        try:
            while not self._finished():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SILENT_S):
                        await self._changed.wait()
                self._look_at_silence()
        finally:
            self._reclaim(self._opened)
        session.feed(None)

    def _finished(self) -> bool:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._wire or self._asking:
            return False
        return not self._feeding() or not (self._waiting or self._opened)

    def _feeding(self) -> bool:
        """Whether another transaction may go to the present session."""
        connected = self.connected
        if connected is None or not connected.session.usable or self.ctx.draining.is_set():
            return False
        most = self.ctx.settings.config.sites.messages_per_connection
        offered = connected.session.capabilities.limits.get("MAILMAX", 0)
        if offered and (not most or offered < most):
            most = offered
        return (
            connected.settings is self.ctx.settings  # a reload may demand more of TLS
            and self._loop.time() - connected.opened_at < SESSION_S
            and (most == 0 or connected.transactions < most)
        )

    def _look_at_silence(self) -> None:
        """A session that says nothing keeps what it has begun; the rest is for others."""
        if self._loop.time() - self._progress_s < SILENT_S or not self._wire:
            return
        self._give_back(self._waiting)
        self._give_back(self._opened)
        self._claim = 1
        self._turn()

    async def _session_at(self, position: int) -> int | None:
        """The index of the host a usable session leads to, at ``position`` or later; or None."""
        if self.connected is not None:
            index = self.connector.hosts.index(self.connected.host)
            if index >= position and self._feeding():
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

    # --- the exchange with the store --------------------------------------------------------

    def _turn(self) -> None:
        """Ask the store for what this lane wants now; one exchange at a time."""
        if self._asking or self._error is not None:
            return
        opens, hold = self._next_opens()
        claim = self._wants_more()
        work = self._work()
        work.opens += opens
        if claim:
            work.claims.append(self._claim_request())
        if work.empty:
            return
        self._asking = True
        self.ctx.db.post(
            work, lambda exchange, error: self._came(claim, exchange, error), durable=hold
        )

    def _came(self, claim: bool, exchange: Exchange | None, error: BaseException | None) -> None:
        self._asking = False
        opening, self._opening = self._opening, []
        if exchange is None:
            self._error = error
            self._waiting.extendleft(reversed(opening))
            self._changed.set()
            return
        now = self._loop.time()
        for transaction in opening:
            kept = [row for row in transaction.recipients if row.recipient in exchange.opened]
            if kept:
                transaction.recipients = kept
                transaction.opened_at = now
                self._opened.append(transaction)
            else:
                self._over(transaction)
        if claim:
            self._take(exchange)
        self._turn()
        if self.connected is not None:
            self.connected.session.poke()
        self._look()

    def _next_opens(self) -> tuple[list[Open], bool]:
        """Openings for the window; True with one that must be on the disk before it is sent."""
        opens: list[Open] = []
        connected = self.connected
        if connected is None or not self._feeding():
            return opens, False
        while self._waiting and len(self._opened) + len(self._opening) < self._window:
            transaction = self._waiting[0]
            if transaction.position > self._index:
                self._later.append(self._waiting.popleft())
                continue
            hold = self._on_doubt(transaction) is OnDoubt.HOLD
            if hold and (self._opened or self._opening or self._wire):
                break
            self._waiting.popleft()
            if self._refused_here(transaction, connected):
                continue
            self._opening.append(transaction)
            opens.append(
                Open(
                    lane=self.lane.token,
                    recipients=tuple(row.recipient for row in transaction.recipients),
                    session=connected.id,
                )
            )
            if hold:
                return opens, True
        return opens, False

    def _wants_more(self) -> bool:
        if self._dry or self._ended or not self._feeding() or not self.ctx.has_room():
            return False
        return len(self._waiting) + len(self._opened) + len(self._opening) <= self._claim // 2

    def _work(self) -> Work:
        """What waits to be recorded, for the next exchange."""
        work = Work(sessions=self.connector.rows, settlements=self.ledger.take())
        self.connector.rows = []
        return work

    def _give_back(self, transactions: deque[Transaction]) -> None:
        self.ledger.give_back(transactions, self._run)
        for transaction in transactions:
            self._over(transaction)
        transactions.clear()

    def _reclaim(self, transactions: deque[Transaction]) -> None:
        """Opened and not sent: they wait again, before the others, and are opened anew."""
        while transactions:
            transaction = transactions.pop()
            self.ledger.reclaim(transaction)
            self._waiting.appendleft(transaction)

    def _look(self) -> None:
        """Let ``_feed`` see whether it is over."""
        if not self._wire and not self._asking:
            self._changed.set()

    # --- the source of the session ----------------------------------------------------------

    def next(self) -> Outgoing | None:
        """See ``Source.next``."""
        if not self._opened:
            if self._waiting:  # the wire waits for the store
                self._window = min(self._window + 1, MOST_OPENED)
                self._turn()
            return None
        if not self._feeding():
            return None
        transaction = self._opened[0]
        now = self._loop.time()
        if now - transaction.opened_at > FRESH_S:
            self._reclaim(self._opened)
            self._turn()
            return None
        if self._wire and self._on_doubt(transaction) is OnDoubt.HOLD:
            return None
        self._opened.popleft()
        self._wire.append(transaction)
        connected = self.connected
        assert connected is not None
        transaction.reused = connected.transactions > 0
        connected.transactions += 1
        transaction.started_ms = self.ctx.now_ms()
        first = transaction.recipients[0]
        self._turn()
        return Outgoing(
            envelope=self._envelope(transaction.recipients),
            body=first.body,
            chunks=None if first.body is not None else lambda: self._chunks(first),
            of=transaction,
        )

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        """See ``Source.ended``."""
        self._progress_s = self._loop.time()
        transaction: Transaction = outgoing.of
        self._wire.popleft()
        if end.behind and not end.answered and not end.dot_written:
            # The server read none of it: what became of the one before says nothing about this.
            self._reclaim(deque([transaction]))
        else:
            self._again(self._judge(transaction, end))
        self._measure()
        self._turn()
        self._look()

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        """See ``Source.failed``: cut before the dot, nothing was delivered."""
        transaction: Transaction = outgoing.of
        if transaction in self._wire:
            self._wire.remove(transaction)
        if isinstance(error, ContentDamaged | ValueError):
            for row in transaction.recipients:
                self.ledger.damaged(row)
        elif isinstance(error, SpoolError):  # content could not be read on
            self.ledger.give_back([transaction], self._run)
        else:
            self._error = error
        self._over(transaction)
        self._turn()
        self._look()

    def lost(self) -> None:
        """See ``Source.lost``."""
        self._look()

    def _measure(self) -> None:
        """Claim what the pace of this lane makes of ``CLAIM_S``."""
        self._paced += 1
        seconds = self._loop.time() - self._pace_from_s
        if seconds >= CLAIM_S / 2:
            self._claim = min(max(int(self._paced / seconds * CLAIM_S), 1), CLAIM_MESSAGES)
            self._pace_from_s, self._paced = self._loop.time(), 0

    # --- verdicts ---------------------------------------------------------------------------

    def _on_doubt(self, transaction: Transaction) -> OnDoubt:
        return transaction.recipients[0].on_doubt or self.ctx.settings.on_doubt

    def _last_host(self, transaction: Transaction) -> bool:
        return (
            self._index + 1 >= len(self.connector.hosts)
            or transaction.hosts_tried + 1 >= MOST_HOSTS
        )

    def _refused_here(self, transaction: Transaction, connected: Connected) -> bool:
        """Whether this host lacks what the message needs; then that is its verdict."""
        first = transaction.recipients[0]
        refusal = local_refusal(
            self._envelope(transaction.recipients),
            connected.session.capabilities,
            require_tls=first.require_tls,
            encrypted=connected.session.facts.tls_reached != "none",
            last_host=self._last_host(transaction),
        )
        if refusal is None:
            return False
        verdicts = [refusal] * len(transaction.recipients)
        started_ms = self.ctx.now_ms()
        self._again(self.ledger.apply(transaction, verdicts, connected, started_ms, self._run))
        return True

    def _judge(self, transaction: Transaction, end: TransactionEnd) -> Again:
        connected = self.connected
        assert connected is not None
        excused = transaction.recipients[0].message not in self.ctx.unanswered
        last_host, on_doubt = self._last_host(transaction), self._on_doubt(transaction)
        verdicts = [
            judge(
                end,
                number,
                last_host=last_host,
                reused=transaction.reused,
                on_doubt=on_doubt,
                excused=excused,
            )
            for number in range(len(transaction.recipients))
        ]
        if verdicts[0].judgement is None:  # nothing was answered, so to nobody
            self.connector.blame(verdicts[0])
        if self._failing and any(v.judgement is Judgement.DELIVERED for v in verdicts):
            self._failing = False  # as the store will find with these verdicts
            events.site_resumed(site=self.lane.site_key, host=connected.host.name)
        return self.ledger.apply(
            transaction, verdicts, connected, transaction.started_ms, self._run
        )

    def _again(self, again: Again) -> None:
        """What is left of a transaction waits for another host, or for a new session."""
        if not again.recipients:
            self._over(again.before)
            return
        left = again.transaction(self._index)
        (self._waiting.appendleft if again.uncharged else self._later.append)(left)

    def _envelope(self, recipients: list[Claimed]) -> Envelope:
        first = recipients[0]
        return Envelope(
            sender=first.sender,
            recipients=tuple(row.address for row in recipients),
            size=first.size,
            eightbit=first.eightbit,
            smtputf8=first.smtputf8,
        )

    async def _chunks(self, first: Claimed) -> AsyncIterator[bytes]:
        for number in range(first.chunks):
            data = await self.ctx.db.call(
                lambda store, number=number: store.chunk(first.content, number)  # type: ignore[misc]
            )
            if data is None:
                raise ContentDamaged
            yield data

    async def _disconnect(self) -> None:
        if self.connected is not None:
            connected, self.connected = self.connected, None
            await self.connector.disconnect(connected)
