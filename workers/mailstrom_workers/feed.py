"""Feeds one lane's sessions: what is opened goes on the wire, and its ends are heard.

The source of its transactions (``outgoing.Source``), called inside the transport's callbacks.
Whatever a turn of it wants recorded travels in one exchange (``exchanges``): settlements of what
ended, openings of what comes next, a claim before the waiting run out, lessons about the site.

Rules: nothing is sent that the store did not open, nor what was opened too long ago. What may not
be sent twice goes alone. At a drain nothing more is begun, and what is not begun goes back at once;
so it does while a session says nothing, which keeps what it began.

What the session or the store calls here never raises into them: an error nobody foresaw stops the
lane, and its release puts in doubt what has no verdict.

Must not know: hosts, replies, how much is claimed or opened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from functools import partial

from mailstrom.smtp.client import TransactionEnd
from mailstrom.storage.base import Exchange
from mailstrom.types import OnDoubt
from mailstrom_workers.connector import Connected
from mailstrom_workers.context import Context
from mailstrom_workers.exchanges import Exchanges, Wanted
from mailstrom_workers.outgoing import Outgoing
from mailstrom_workers.settling import ContentDamaged, Settling
from mailstrom_workers.stock import Stock
from mailstrom_workers.supply import Supply
from mailstrom_workers.transactions import Transaction
from mailstrom_workers.walk import Walk

FRESH_S = 5.0
"""What was opened longer ago is opened again before it is sent: this process may have stood still,
and the lane be somebody else's."""
OVERDUE_S = 0.25
"""What expired since it was opened is opened again when that is longer ago: whether it is too old,
the store says, which knows how the clock jumped."""
SILENT_S = 5.0
"""A session that says nothing for so long keeps no other message waiting."""


class SessionMute(Exception):
    """A session is closed, and did not tell the end of a transaction: a bug of ours."""


class Feed:
    """Sends what one lane has in hand, on one session after the other; the ``Source`` of each.

    Args:
        ctx: the worker's context.
        stock: what is in hand.
        walk: where the session comes from.
        settling: takes what ended, and what is given back.
        supply: brings what is sent next.

    Attributes:
        error: what stopped the lane.
    """

    def __init__(
        self, ctx: Context, stock: Stock, walk: Walk, settling: Settling, supply: Supply
    ) -> None:
        self._ctx = ctx
        self._stock = stock
        self._walk = walk
        self._settling = settling
        self._supply = supply
        self._loop = asyncio.get_running_loop()
        self._exchanges = Exchanges(ctx.db, self)
        self._changed = asyncio.Event()
        self._spoken_to: Connected | None = None  # whose transactions may still end
        self._claiming = False  # a claim is in the exchange under way
        self._verdicts: set[int] = set()  # recipients that the first ones are about
        self._spread = False  # they are recorded: the site may have more lanes now
        self._closed_s: float | None = None  # loop time when the session was found closed
        self._ending = False
        self.error: Exception | None = None

    # --- the time of one session ------------------------------------------------------------

    async def run(self, *, renewed: bool = False) -> None:
        """Send on the present session until it, or what suits it, comes to an end.

        Args:
            renewed: the one before did not suit what is in hand.

        Raises:
            Exception: what went wrong in a call of the session or the store.
        """
        connected = self._walk.connected
        assert connected is not None
        self._spoken_to = connected
        session = connected.session
        self._supply.pace.resume(self._loop.time(), renewed=renewed)
        self._supply.halted = False
        self._closed_s = None
        self._exchanges.turn()
        session.feed(self)
        try:
            while not self._finished():
                self._changed.clear()
                timer = self._loop.call_later(SILENT_S, self._changed.set)
                try:
                    await self._changed.wait()
                finally:
                    timer.cancel()
                self._spare()
        finally:
            self.reclaim()
        if session.idle:  # else it is cut, and its end under way
            session.feed(None)

    def put_down(self) -> None:
        """Hold no content of what is on the wire: its host lets it wait, and others need the room.

        What was written is not asked for again; what is asked for, or sent once more, is read anew.
        """
        connected = self._walk.connected
        if connected is not None and self._stock.wire and connected.session.put_down():
            self._stock.put_down()

    def look(self) -> None:
        """Something changed for all lanes: see whether it is time to end."""
        self._changed.set()

    def reclaim(self) -> None:
        """What is opened waits again; the store hears of it now, since to connect may take long."""
        if self._stock.opened:
            self._settling.reclaim(self._stock.opened)
            self._exchanges.stir()

    async def rest(self) -> None:
        """Until no exchange is under way.

        Raises:
            Exception: what went wrong in a call of the session or the store.
        """
        while self._exchanges.busy:
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None:
            raise self.error

    async def come_to_rest(self) -> None:
        """Until the exchange under way is answered, and what was cut has told its end."""
        self._ending = True
        patience = asyncio.timeout(SILENT_S)
        with contextlib.suppress(TimeoutError):
            async with patience:
                while self._stock.wire:
                    self._changed.clear()
                    await self._changed.wait()
        while self._exchanges.asking:
            self._changed.clear()
            await self._changed.wait()
        self._settling.reclaim(self._stock.opened)

    def _finished(self) -> bool:
        """Whether the present session has nothing more to do.

        Raises:
            Exception: what went wrong in a call of the session or the store.
        """
        if self.error is not None:
            raise self.error
        stock = self._stock
        if stock.wire or self._exchanges.busy:
            return False
        return not (stock.waiting or stock.opened) or not self._walk.serves()

    def _spare(self) -> None:
        """A session that says nothing, or a drain, keeps what is begun; the rest is for others."""
        if not self._stock.wire:
            return
        if self._ctx.draining.is_set():
            self._give_back()
        pace = self._supply.pace
        if self._loop.time() - pace.progress_s < SILENT_S:
            return
        connected = self._walk.connected
        if connected is not None and not connected.session.usable:
            # Cut by ourselves it tells its end some turns of the loop later (TLS: two).
            if self._closed_s is None:
                self._closed_s = self._loop.time()
            elif self._loop.time() - self._closed_s >= SILENT_S:
                self.fail(SessionMute("the session is closed and did not tell how it ended"))
            return
        self._supply.halted = True
        pace.silent()
        self._give_back()

    def _give_back(self) -> None:
        self._settling.give_back(*self._unbegun)
        self._exchanges.turn()

    @property
    def _unbegun(self) -> tuple[deque[Transaction], ...]:
        """What is in hand and not begun."""
        stock = self._stock
        return stock.opened, stock.waiting, stock.apart, stock.later

    # --- the owner of the exchanges ---------------------------------------------------------

    def wants(self) -> Wanted | None:
        """See ``Owner.wants``."""
        if self.error is not None:
            return None
        settling, supply, stock = self._settling, self._supply, self._stock
        opens, durable = supply.openings()
        claim = supply.wants_claim()
        if not (opens or claim or settling.pending):
            return None
        work = settling.work()
        work.opens = opens
        self._claiming = claim
        if claim:
            work.claims.append(supply.claim_request())
        return Wanted(work, durable, bool(stock.wire) and not stock.starved)

    def came(self, exchange: Exchange) -> None:
        """See ``Owner.came``."""
        supply = self._supply
        supply.take_opened(exchange)
        if self._verdicts and not self._verdicts.isdisjoint(exchange.settled):
            self._verdicts, self._spread = set(), True
            self._ctx.wake()
        if self._claiming:
            supply.take(exchange)
        if self._ctx.draining.is_set():  # what is opened by this is not begun any more
            self._changed.set()
            if self._stock.wire:
                self._settling.give_back(*self._unbegun)  # the turn behind this carries it along
        connected = self._walk.connected
        if connected is not None:
            connected.session.poke()

    def fail(self, error: Exception) -> None:
        """Nothing more is begun; ``run`` raises it, and the lane is given up."""
        if self.error is None:
            self.error = error
        self._changed.set()

    def turned(self) -> None:
        """Let ``run``, or who waits for the lane to come to rest, see whether it is over."""
        stock = self._stock
        busy = self._exchanges.busy or stock.wire
        if self._ending or not (busy or (stock.opened and self._walk.serves())):
            self._changed.set()

    # --- the source of the session; nothing escapes from here into the transport's callbacks --

    def next(self) -> Outgoing | None:
        """See ``Source.next``."""
        try:
            return None if self.error is not None else self._next()
        except Exception as error:
            self.fail(error)
            return None

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        """See ``Source.ended``."""
        try:
            self._ended(outgoing.of, end)
        except Exception as error:
            self.fail(error)

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        """See ``Source.failed``: cut before the dot, nothing was delivered."""
        try:
            self._failed(outgoing.of, error)
        except Exception as problem:
            self.fail(problem)

    def lost(self) -> None:
        """See ``Source.lost``."""
        self._changed.set()

    def _next(self) -> Outgoing | None:
        stock, walk = self._stock, self._walk
        if not stock.opened:
            stock.starved = True
            self._exchanges.hurry()
            if stock.waiting:
                self._supply.ran_dry()
                self._exchanges.stir()
            return None
        connected = walk.connected  # who asks is its session, which is usable
        if connected is None or not walk.takes(connected):
            return None
        transaction = stock.opened[0]
        now = self._loop.time()
        wall_ms = self._ctx.machine.wall_ms()
        age_s = now - transaction.opened_at
        overdue = age_s > OVERDUE_S and transaction.recipients[0].expires_ms <= wall_ms
        if overdue or age_s > FRESH_S:
            self._settling.reclaim(stock.opened)
            self._exchanges.stir()
            return None
        if stock.wire and (self._lonely(transaction) or self._lonely(stock.wire[-1])):
            return None
        stock.opened.popleft()  # what cannot even be prepared stays open: its loss is charged
        outgoing = self._outgoing(transaction)
        self._supply.window.left(len(stock.opened))
        if not stock.wire:
            self._supply.pace.begun(now)
        stock.wire.append(transaction)
        transaction.reused = connected.transactions > 0
        connected.transactions += 1
        connected.domains.begin(transaction.recipients)
        transaction.started_ms = wall_ms
        self._exchanges.stir()
        return outgoing

    def _lonely(self, transaction: Transaction) -> bool:
        """Whether it may not be sent twice: nothing may stand beside it on the wire."""
        return transaction.on_doubt(self._ctx.settings.on_doubt) is OnDoubt.HOLD

    def _outgoing(self, transaction: Transaction) -> Outgoing:
        first = transaction.recipients[0]
        body = first.body
        return Outgoing(
            envelope=transaction.address(),
            body=body,
            chunks=partial(self._chunks, first.content, first.chunks),  # not its body
            of=transaction,
        )

    def _ended(self, transaction: Transaction, end: TransactionEnd) -> None:
        wire, supply = self._stock.wire, self._supply
        if not wire or wire[0] is not transaction:
            raise RuntimeError("the session told an end out of order")
        wire.popleft()
        assert self._spoken_to is not None
        supply.pace.ended(self._loop.time())
        supply.halted = False
        supply.heard = supply.heard or end.answered
        if not self._spread and end.answered:
            self._verdicts.add(transaction.recipients[0].recipient)
        self._settling.ended(transaction, end, self._spoken_to)
        self._exchanges.stir()
        if self._ending or not wire:
            self.turned()

    def _failed(self, transaction: Transaction, error: Exception) -> None:
        self._stock.wire.remove(transaction)
        assert self._spoken_to is not None
        if not self._settling.unsent(transaction, error, self._spoken_to):
            self.fail(error)
        self._exchanges.stir()
        self.turned()

    async def _chunks(self, content: int, count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            data = await self._ctx.db.call(
                lambda store, number=number: store.chunk(content, number)  # type: ignore[misc]
            )
            if data is None:
                raise ContentDamaged
            self._ctx.stream(len(data))  # a peer that reads nothing has us hold it for minutes
            try:
                yield data
            finally:
                self._ctx.stream(-len(data))
