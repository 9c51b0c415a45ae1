"""One leased lane: claims, opens, one session, settlements, until nothing is due or it drains.

A lane owns at most one session and is the source of its transactions (``session.Source``). Messages
pass through it (``stock``): *waiting* (claimed) -> *opened* (on disk as ``sending``; a window of
them, ahead of the wire) -> on the wire -> settled. Whatever a turn of it wants recorded travels in
one exchange: settlements of what ended, openings of what comes next, a claim before the waiting run
out, lessons about the site. One exchange of a lane is under way at a time; what ends meanwhile
travels with the next one, which leaves as soon as this one is answered.

A message's recipients travel in one transaction. Recipients that the next host may still take stay
claimed; what no host took is deferred, and a site where no host could be used at all is suspended
with no recipient written.

Crash points: before ``open`` is committed nothing was sent (claims are simply due again); after it
the recipient is ``sending`` and a crash leaves it in doubt; the settlement ends that. So what may
not be sent twice (``on_doubt = "hold"``) is opened by itself, on the disk, and never ahead; and
nothing is opened ahead at a site that nobody has seen take mail (a canary's), before a server has
ended a transaction of this lane.

What the session or the store calls here never raises into them: an error nobody foresaw stops the
lane, and its release puts in doubt what has no verdict.

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
from mailstrom.smtp.client import TransactionEnd
from mailstrom.storage.base import (
    Ahead,
    Claimed,
    ClaimRequest,
    Exchange,
    Lane,
    Open,
    Suspension,
    Work,
)
from mailstrom.types import Judgement, OnDoubt, Reason, iso_ms
from mailstrom_workers.connector import MOST_RECIPIENTS, Connected, Connector
from mailstrom_workers.context import Context
from mailstrom_workers.ladder import Ladder
from mailstrom_workers.ledger import UNREADABLE_MS, Again, Ledger, Pass, Transaction
from mailstrom_workers.session import Outgoing
from mailstrom_workers.stock import Stock, put

CLAIM_MESSAGES = 200
CLAIM_BYTES = 8 * 1024 * 1024
CLAIM_S = 0.5
"""A lane claims about what it delivers in this time, so that a slow one hoards nothing."""
HASTE_S = 0.1
"""What a lane delivers in this time it takes at once, though other lanes find less: where messages
trickle in, each lane would take one, and every message cost a claim."""
FIRST_CLAIM = 8
"""Messages claimed before the site was heard at all; twice as many each time, until the pace of
the lane is known. A dead site must not keep much, nor much of the worker's memory."""
SLOW_CLAIM = 2
"""A lane so slow claims when it has nothing in hand: what is more urgent may come meanwhile."""
DRY_S = 0.25
"""A claim that found nothing is not repeated for so long while messages are under way."""
MOST_HOSTS = 2
"""Hosts that may answer for one message in one attempt."""
MOST_OPENED = 31
"""Messages opened ahead of the wire, at most: a crash leaves them in doubt, though nothing left. An
urgent one may come on top. Half of them, on average, leave while one exchange is under way."""
AMPLE = 64
"""A window that was full so often is made smaller, by one; one that ran dry grows by half, or a
lane to which messages trickle would take each handful of them in many exchanges."""
FRESH_S = 5.0
"""What was opened longer ago is opened again before it is sent: this process may have stood still,
and the lane be somebody else's."""
SILENT_S = 5.0
"""A session that says nothing for so long keeps no other message waiting."""


class ContentDamaged(Exception):
    """Content on disk does not match its digest; not a byte after this point is sent."""


class SessionMute(Exception):
    """A session is closed, and did not tell the end of a transaction: a bug of ours."""


class LaneRun:
    """Runs a lane to its end; the ``Source`` of its session.

    Args:
        ctx: the worker's context.
        lane: the lease.
        lanes: how many lanes the site may have, to share what is due.

    Attributes:
        idle: it keeps a session for work that may come; see ``call``.
        parted: its work is done; it says goodbye to the server, and counts as no connection.
    """

    def __init__(self, ctx: Context, lane: Lane, lanes: int) -> None:
        self.ctx = ctx
        self.lane = lane
        self.ladder = Ladder(lane)
        self.connector = Connector(ctx, lane, self.ladder)
        self.connected: Connected | None = None
        self.ledger = Ledger(ctx, lane)
        self.stock = Stock(ctx)
        self.idle = self.parted = False
        self._stirred = asyncio.Event()  # ends an idle time
        self._called = False
        self._failing = lane.failing  # this lane then finds out for all
        self._fenced = False  # the spool gives this lane nothing more: too many since a reload
        self._claim = min(claim_size(lane.due, lanes, CLAIM_MESSAGES), FIRST_CLAIM)
        self._paced = False  # whether that comes from what was measured
        self._unclaimed = lane.due  # of what was due at the lease, as far as this lane knows
        self._dry_s = float("-inf")  # loop time when a claim found nothing
        self._heard = not lane.canary  # a server ended a transaction: until then it has one
        self._window = 1
        self._starved = False  # the wire waits for the store
        self._patient = False  # the exchange under way may wait for others
        self._ample = 0  # how often the window was still full when its next message left
        self._spoken_to: Connected | None = None  # whose transactions may still end
        self._asking = self._claiming = self._turning = False
        self._silent = False
        self._spread = False  # the first verdicts are recorded: the site may have more lanes now
        self._index = 0
        self._run = Pass(started_ms=0)
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._progress_s = 0.0
        self._pace_from_s = 0.0
        self._took_s = CLAIM_S  # a message on the wire, the last ones counting most
        self._ends = 0
        self._reading = 0  # octets of the worker's budget that a claim under way may use

    async def run(self) -> None:
        """Work until nothing is due for a while, the site fails, or the worker drains."""
        try:
            while not self.ctx.draining.is_set() and self.ctx.has_room():
                if not await self._claim_first():
                    if not self._fenced and await self._idle():
                        continue
                    break
                if not await self._deliver():
                    break
        finally:
            await asyncio.shield(self._end())

    def call(self) -> None:
        """Work is due at the site of this idle lane."""
        self._called = True
        self._stirred.set()

    def look(self) -> None:
        """Something changed for all lanes: see whether it is time to end."""
        self._stirred.set()
        self._changed.set()

    async def _end(self) -> None:
        """Say goodbye, record what is known, give the rest back."""
        self.parted = True
        self.ctx.wake()
        try:
            said = await asyncio.gather(self._disconnect(), self._record(), return_exceptions=True)
            await self._come_to_rest()
            await self._record()
            for error in (self._error, *said):
                if isinstance(error, BaseException):
                    raise error
        finally:
            try:
                await self.ctx.releases.ask(self.lane.token)
            finally:
                self.stock.clear()
                self._free_reading()
                self.ctx.wake()

    async def _come_to_rest(self) -> None:
        """Until the exchange under way is answered, and what was cut has told its end."""
        patience = asyncio.timeout(SILENT_S)
        with contextlib.suppress(TimeoutError):
            async with patience:
                while self.stock.wire:
                    self._changed.clear()
                    await self._changed.wait()
        while self._asking:
            self._changed.clear()
            await self._changed.wait()
        self._reclaim(self.stock.opened)

    async def _record(self) -> None:
        """Hand over what waits to be recorded, and wait for it."""
        await self.ctx.db.exchange(self._work())

    # --- claims -----------------------------------------------------------------------------

    async def _claim_first(self) -> bool:
        """Claim with nothing in hand; False where nothing is due."""
        if self._unclaimed <= 0 and self.lane.site not in self.ctx.unserved:
            return False  # the engine sees what else becomes due, and wakes this lane
        while True:
            work = self._work()
            work.claims.append(self._claim_request())
            exchange = await self.ctx.db.exchange(work)
            self._take(exchange)
            in_hand = bool(self.stock.waiting or self.stock.opened)
            if in_hand or not exchange.claimed:
                return in_hand

    def _claim_request(self) -> ClaimRequest:
        self._claiming = True
        self._reading = self.ctx.reserve(self._claim, CLAIM_BYTES)
        limit = self._claim if self._reading else 1
        return ClaimRequest(
            lane=self.lane.token,
            limit=limit,
            max_bytes=max(self._reading, 1),
            limit_lanes=self.ctx.settings.config.sites.connections,
            share=self.ctx.share,
            even=max(min(int(HASTE_S / max(self._took_s, 0.001)), limit), 1),
            ahead=self._ahead(),
        )

    def _ahead(self) -> Ahead | None:
        """What of a claim may be opened with it: what goes on the wire as soon as it is told."""
        stock, connected = self.stock, self.connected
        if connected is None or stock.waiting or self._silent or not self._feeding():
            return None
        room = min(self._window, connected.most - connected.transactions)
        room -= len(stock.opened) + len(stock.opening)
        if not self._heard and (stock.opened or stock.opening or stock.wire):
            return None
        if room < 1 or self.ctx.settings.on_doubt is OnDoubt.HOLD:
            return None
        offered = connected.session.capabilities
        return Ahead(
            session=connected.id,
            messages=int(room) if self._heard else 1,
            recipients=1 if connected.domains else connected.recipients,
            octets=offered.size or 0,
            encrypted=connected.session.facts.tls_reached != "none",
            eightbit=offered.eightbitmime,
            smtputf8=offered.smtputf8,
        )

    def _take(self, exchange: Exchange) -> int:
        """What a claim gave: damaged messages are failed on the way, unread ones given back."""
        self._claiming = False
        self._free_reading()
        self._fenced = self.lane.token in exchange.ended
        if not exchange.claimed:
            self._dry_s = self._loop.time()
            self._unclaimed = 0
            return 0
        good = [row for row in exchange.claimed if not (row.damaged or row.unread)]
        if len(good) < len(exchange.claimed):
            for row in exchange.claimed:
                if row.damaged:
                    self.ledger.damaged(row)
                elif row.unread:
                    self.ledger.unread(row)
        now = self._loop.time()
        count = self.stock.take_in(
            good, now, MOST_RECIPIENTS, opened=exchange.opened, opened_at=exchange.locked_s
        )
        if self.stock.opened:
            self._starved = False
        self._unclaimed -= count
        if self.lane.token not in exchange.more:  # the site was looked through
            self._dry_s = now
        elif self._claim > 1:
            self._unclaimed = max(self._unclaimed, 1)
        if not self._paced:
            self._claim = min(self._claim * 2, CLAIM_MESSAGES)
        return count

    def _free_reading(self) -> None:
        self.ctx.free(self._reading)
        self._reading = 0

    async def _idle(self) -> bool:
        """Keep the session a little for work that may come; True when some came."""
        if self.connected is None or not self.connected.session.usable or self.ctx.crowded:
            return False
        await self._record()
        self._called = False
        self._stirred.clear()
        if self.ctx.draining.is_set() or self.ctx.crowded:
            return False
        return await self._linger()

    async def _linger(self) -> bool:
        self.idle = True
        try:
            async with asyncio.timeout(self.ctx.settings.config.sites.idle):
                await self._stirred.wait()
        except TimeoutError:
            return False
        finally:
            self.idle = False
        self._unclaimed = 1
        return self._called

    # --- what is in hand, host by host ------------------------------------------------------

    async def _deliver(self) -> bool:
        """Bring each transaction to a host that settles it; False when the lane should end.

        A transaction that the next host may still take waits for the others, with a higher
        ``position``; each round raises a position or uses up a reconnect, so this ends.
        """
        stock = self.stock
        self._run = run = Pass(started_ms=self.ctx.now_ms())
        if self.connected is None:
            self.connector.reorder()
        while True:
            if stock.opened and self._feeding():  # with their claim, for the present session
                await self._feed()
                await self._part()
                continue
            self._reclaim(stock.opened)
            if not stock.waiting:
                stock.waiting, stock.later = stock.later, stock.waiting
            if not stock.waiting:
                return True
            if self.ctx.draining.is_set():
                self._give_back(stock.waiting, stock.later)
                return False
            first = stock.waiting[0]
            index = await self._session_at(first.position)
            if index is None:
                if any(row.recipient in run.retained for row in first.recipients):
                    stock.waiting.popleft()
                    self._give_back(deque((first,)))
                    continue
                if first.unanswered:
                    self.ctx.excuse(first.recipients[0].message)
                await self._suspend(run)
                self._give_back(stock.waiting, stock.later)
                return False
            self._index = index
            await self._feed()
            await self._part()

    async def _part(self) -> None:
        """Leave a session that is over."""
        if self.connected is not None and not self.connected.session.usable:
            await self._disconnect()

    async def _feed(self) -> None:
        """Send on the present session until it, or what suits it, comes to an end."""
        assert self.connected is not None
        self._spoken_to = self.connected
        session = self.connected.session
        self._progress_s = self._pace_from_s = self._loop.time()
        self._ends = 0
        self._silent = False
        self._turn()
        session.feed(self)
        try:
            while not self._finished():
                self._changed.clear()
                timer = self._loop.call_later(SILENT_S, self._changed.set)
                try:
                    await self._changed.wait()
                finally:
                    timer.cancel()
                self._look_at_silence()
        finally:
            self._reclaim(self.stock.opened)
        if session.idle:  # else it is cut, and its end under way
            session.feed(None)

    def _finished(self) -> bool:
        """Whether the present session has nothing more to do.

        Raises:
            Exception: what went wrong in a call of the session or the store.
        """
        if self._error is not None:
            raise self._error
        if self.stock.wire or self._asking or self._turning:
            return False
        return not (self.stock.waiting or self.stock.opened) or not self._feeding()

    def _feeding(self) -> bool:
        """Whether another transaction may go to the present session."""
        connected = self.connected
        return connected is not None and connected.session.usable and self._serves(connected)

    def _serves(self, connected: Connected) -> bool:
        """Whether this lane may begin another transaction on a usable session."""
        return (
            connected.transactions < connected.most
            and self._loop.time() < connected.until
            and connected.settings is self.ctx.settings  # a reload may demand more of TLS
            and not self.ctx.draining.is_set()
        )

    def _look_at_silence(self) -> None:
        """A session that says nothing, or a drain, keeps what is begun; the rest is for others."""
        if not self.stock.wire:
            return
        if self.ctx.draining.is_set():
            self._give_back(self.stock.opened, self.stock.waiting, self.stock.later)
            self._turn()
        if self._loop.time() - self._progress_s < SILENT_S:
            return
        connected = self.connected
        if connected is not None and not connected.session.usable:
            self._fail(SessionMute("the session is closed and did not tell how it ended"))
            return
        self._silent = True
        self._give_back(self.stock.opened, self.stock.waiting, self.stock.later)
        self._claim, self._paced = 1, True
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

    def _stir(self) -> None:
        """A turn, once all that is told together has been heard."""
        if not (self._turning or self._asking):
            self._turning = True
            self._loop.call_soon(self._turned)

    def _turned(self) -> None:
        self._turning = False
        try:
            self._turn()
        except Exception as error:
            self._fail(error)
        self._look()

    def _turn(self) -> None:
        """Ask the store for what this lane wants now; one exchange at a time."""
        if self._asking or self._error is not None:
            return
        opens, durable = self._next_opens()
        claim = self._wants_more()
        if not (opens or claim or self.ledger.settlements or self.connector.rows):
            return
        work = self._work()
        work.opens = opens
        if claim:
            work.claims.append(self._claim_request())
        self._patient = bool(self.stock.wire) and not self._starved
        self.ctx.db.post(work, self._came, durable=durable, patient=self._patient)
        self._asking = True

    def _came(self, exchange: Exchange | None, error: BaseException | None) -> None:
        """The answer to ``_turn``; called by the store's service, on the loop."""
        self._asking = self._patient = False
        try:
            if exchange is None:
                assert error is not None
                raise error
            self._open(exchange)
            if self._heard and not self._spread and exchange.settled:
                self._spread = True
                self.ctx.wake()
            if self._claiming:
                self._take(exchange)
            if self.connected is not None:
                self.connected.session.poke()
            self._turn()
        except Exception as problem:
            self._fail(problem)
        self._look()
        if self.ctx.draining.is_set():
            self._changed.set()  # what was opened meanwhile is not begun any more

    def _open(self, exchange: Exchange) -> None:
        """Of what was to be opened only what the store returned is sent."""
        stock = self.stock
        if not stock.opening:
            return
        now, opened = self._loop.time(), exchange.opened
        opening, stock.opening = stock.opening, []
        for transaction in opening:
            rows = transaction.recipients
            if len(rows) > 1 or rows[0].recipient not in opened:
                rows = [row for row in rows if row.recipient in opened]
                if not rows:
                    stock.over(transaction)
                    continue
                transaction.narrow(rows)
            transaction.opened_at = exchange.locked_s
            put(stock.opened, transaction, now)
            self._starved = False

    def _next_opens(self) -> tuple[list[Open], bool]:
        """Openings for the window; True with one that must be on the disk before it is sent."""
        opens: list[Open] = []
        stock, connected = self.stock, self.connected
        if not stock.waiting or self._silent or connected is None or not self._feeding():
            return opens, False
        room = min(self._window, connected.most - connected.transactions)
        on_doubt = self.ctx.settings.on_doubt
        while stock.waiting:
            transaction = stock.waiting[0]
            ahead = len(stock.opened) + len(stock.opening)
            if not self._heard and (ahead or stock.wire):
                break
            if ahead >= room and not (
                ahead == room and stock.opened and transaction.priority < stock.opened[-1].priority
            ):
                break
            if transaction.position > self._index:
                stock.later.append(stock.waiting.popleft())
                continue
            hold = (transaction.recipients[0].on_doubt or on_doubt) is OnDoubt.HOLD
            if hold and (stock.opened or stock.opening or stock.wire):
                break
            stock.waiting.popleft()
            if len(transaction.recipients) > 1:
                stock.split(transaction, connected.recipients, connected.domains)
            if self._demanding(transaction, connected) and self._refused_here(
                transaction, connected
            ):
                continue
            stock.opening.append(transaction)
            opens.append(self._opening(transaction, connected))
            if hold:
                return opens, True
        return opens, False

    def _opening(self, transaction: Transaction, connected: Connected) -> Open:
        rows = transaction.recipients
        return Open(
            lane=self.lane.token,
            recipients=(rows[0].recipient,)
            if len(rows) == 1
            else tuple([row.recipient for row in rows]),
            session=connected.id,
        )

    def _wants_more(self) -> bool:
        """Whether to claim ahead: by half of what the lane delivers in ``CLAIM_S``."""
        ahead = self.stock.ahead
        if ahead > self._claim // 2 or self._silent or self._fenced:
            return False
        if ahead or self.stock.wire:
            if self._claim <= SLOW_CLAIM or self.ctx.spent:
                return False
            if self._unclaimed <= 0 and self._loop.time() - self._dry_s < DRY_S:
                return False
        elif self._unclaimed <= 0:
            return False
        return self._feeding() and self.ctx.has_room()

    def _work(self) -> Work:
        """What waits to be recorded, for the next exchange."""
        work = Work(
            sessions=self.connector.rows,
            settlements=self.ledger.take(),
            lessons=self.ladder.take(),
        )
        self.connector.rows = []
        return work

    def _give_back(self, *queues: deque[Transaction]) -> None:
        for transactions in queues:
            self.ledger.give_back(transactions, self._run)
            for transaction in transactions:
                self.stock.over(transaction)
            transactions.clear()

    def _reclaim(self, transactions: deque[Transaction]) -> None:
        """Opened and not sent: they wait again, before the others, and are opened anew."""
        while transactions:
            transaction = transactions.pop()
            self.ledger.reclaim(transaction)
            self.stock.waiting.appendleft(transaction)

    def _look(self) -> None:
        """Let ``_feed``, or who waits for the lane to come to rest, see whether it is over."""
        busy = self._asking or self._turning or self.stock.wire
        if self.parted or not (busy or (self.stock.opened and self._feeding())):
            self._changed.set()

    def _fail(self, error: Exception) -> None:
        """Nothing more is begun; ``run`` raises it and gives the lane up."""
        if self._error is None:
            self._error = error
        self._changed.set()

    # --- the source of the session; nothing escapes from here into the transport's callbacks --

    def next(self) -> Outgoing | None:
        """See ``Source.next``."""
        try:
            return None if self._error is not None else self._next()
        except Exception as error:
            self._fail(error)
            return None

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        """See ``Source.ended``."""
        try:
            self._ended(outgoing.of, end)
        except Exception as error:
            self._fail(error)

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        """See ``Source.failed``: cut before the dot, nothing was delivered."""
        try:
            self._failed(outgoing.of, error)
        except Exception as problem:
            self._fail(problem)

    def lost(self) -> None:
        """See ``Source.lost``."""
        self._changed.set()

    def _next(self) -> Outgoing | None:
        stock = self.stock
        if not stock.opened:
            self._starved = True
            if self._patient:
                self._patient = False
                self.ctx.db.hurry()
            if stock.waiting:
                if self._heard and self._claim > SLOW_CLAIM:
                    self._window += max(self._window // 2, 1)
                    self._window, self._ample = min(self._window, MOST_OPENED), 0
                self._stir()
            return None
        connected = self.connected  # who asks is its session, which is usable
        if connected is None or not self._serves(connected):
            return None
        transaction = stock.opened[0]
        if self._loop.time() - transaction.opened_at > FRESH_S:
            self._reclaim(stock.opened)
            self._stir()
            return None
        if stock.wire and self._on_doubt(transaction) is OnDoubt.HOLD:
            return None
        stock.opened.popleft()  # what cannot even be prepared stays open: its loss is charged
        outgoing = self._outgoing(transaction)
        if self._window > 1 and len(stock.opened) >= self._window - 1:
            self._ample += 1
            if self._ample >= AMPLE:
                self._window, self._ample = self._window - 1, 0
        if not stock.wire:
            self._progress_s = self._loop.time()
        stock.wire.append(transaction)
        transaction.reused = connected.transactions > 0
        connected.transactions += 1
        transaction.started_ms = self.ctx.machine.wall_ms()
        if not self._asking:
            self._stir()
        return outgoing

    def _outgoing(self, transaction: Transaction) -> Outgoing:
        first = transaction.recipients[0]
        body = first.body
        return Outgoing(
            envelope=transaction.address(),
            body=body,
            chunks=None if body is not None else lambda: self._chunks(first),
            of=transaction,
        )

    def _ended(self, transaction: Transaction, end: TransactionEnd) -> None:
        wire = self.stock.wire
        if not wire or wire[0] is not transaction:
            raise RuntimeError("the session told an end out of order")
        wire.popleft()
        now = self._loop.time()
        self._took_s = (self._took_s + now - self._progress_s) / 2
        self._progress_s = now
        self._silent = False
        assert self._spoken_to is not None
        self._heard = self._heard or end.answered
        if not end.usable:
            self._reclaim(self.stock.opened)  # so that what is left of this one stands before them
        if end.stumbled is not None or end.chunked:
            self.ladder.learn(end, self._spoken_to.dialect, self.ctx.now_ms())
        if end.behind and not end.answered and not end.dot_written:
            # The server read none of it: what became of the one before says nothing about this.
            self._reclaim(deque((transaction,)))
        else:
            again = self._judge(transaction, end)
            if again is None:
                self.stock.over(transaction)
            else:
                self._again(transaction, again)
        self._measure()
        if not self._asking:
            self._stir()
        if self.parted or not wire:
            self._look()

    def _failed(self, transaction: Transaction, error: Exception) -> None:
        self.stock.wire.remove(transaction)
        if isinstance(error, ContentDamaged | ValueError):
            for row in transaction.recipients:
                self.ledger.damaged(row)
        elif isinstance(error, SpoolError):  # content could not be read on
            self.ledger.give_back([transaction], self._run, pause_ms=UNREADABLE_MS)
        else:
            # Sending stays its state: the release of this lane puts it in doubt.
            self._fail(error)
        self.stock.over(transaction)
        self._stir()
        self._look()

    def _measure(self) -> None:
        """Claim what the pace of this lane makes of ``CLAIM_S``."""
        self._ends += 1
        seconds = self._progress_s - self._pace_from_s
        if seconds >= CLAIM_S / 2:
            self._claim = min(max(int(self._ends / seconds * CLAIM_S), 1), CLAIM_MESSAGES)
            self._paced = True
            self._pace_from_s, self._ends = self._progress_s, 0

    # --- verdicts ---------------------------------------------------------------------------

    def _on_doubt(self, transaction: Transaction) -> OnDoubt:
        return transaction.recipients[0].on_doubt or self.ctx.settings.on_doubt

    def _last_host(self, transaction: Transaction) -> bool:
        return (
            self._index + 1 >= len(self.connector.hosts)
            or transaction.hosts_tried + 1 >= MOST_HOSTS
        )

    def _demanding(self, transaction: Transaction, connected: Connected) -> bool:
        """Whether a message needs anything that a server, or this session, may lack."""
        first, size = transaction.recipients[0], connected.session.capabilities.size
        return (
            first.require_tls
            or first.eightbit
            or first.smtputf8
            or (size is not None and 0 < size < first.size)
        )

    def _refused_here(self, transaction: Transaction, connected: Connected) -> bool:
        """Whether this host lacks what the message needs; then that is its verdict."""
        first = transaction.recipients[0]
        refusal = local_refusal(
            transaction.address(),
            connected.session.capabilities,
            require_tls=first.require_tls,
            encrypted=connected.session.facts.tls_reached != "none",
            last_host=self._last_host(transaction),
        )
        if refusal is None:
            return False
        verdicts = [refusal] * len(transaction.recipients)
        transaction.started_ms = self.ctx.now_ms()
        self._again(transaction, self.ledger.apply(transaction, verdicts, connected, self._run))
        return True

    def _judge(self, transaction: Transaction, end: TransactionEnd) -> Again | None:
        connected = self._spoken_to
        assert connected is not None
        rows = transaction.recipients
        excused = rows[0].message not in self.ctx.unanswered
        last_host, on_doubt = self._last_host(transaction), self._on_doubt(transaction)
        verdicts = []
        for number in range(len(rows)):
            verdict = judge(
                end,
                number,
                last_host=last_host,
                reused=transaction.reused,
                on_doubt=on_doubt,
                excused=excused,
            )
            verdicts.append(verdict)
        if verdicts[0].judgement is None:  # nothing was answered, so to nobody
            self.connector.blame(verdicts[0])
        if self._failing and any(v.judgement is Judgement.DELIVERED for v in verdicts):
            self._failing = False  # as the store will find with these verdicts
            events.site_resumed(site=self.lane.site_key, host=connected.host.name)
        return self.ledger.apply(transaction, verdicts, connected, self._run)

    def _again(self, transaction: Transaction, again: Again | None) -> None:
        """What is left of a transaction waits for another host, or for a new session."""
        if again is None:
            self.stock.over(transaction)
            return
        left = again.transaction(self._index)
        (self.stock.waiting.appendleft if again.uncharged else self.stock.later.append)(left)

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
