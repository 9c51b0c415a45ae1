"""One leased lane: claims, delivers host by host, idles, until nothing is due or it drains.

A lane owns at most one session. Messages pass through it (``stock``): *waiting* (claimed) ->
*opened* (on disk as ``sending``; a window of them, ahead of the wire) -> on the wire -> settled.
``supply`` brings them as far as opened, ``feed`` sends them and hears their ends, ``settling``
writes what became of them, ``walk`` knows the hosts. Here is what binds them: the order of a lane's
life, and that whatever it held is given up in the end.

A message's recipients travel in one transaction. Recipients that the next host may still take stay
claimed; what no host took is deferred, and a site where no host could be used at all is suspended
with no recipient written.

Must not know: replies, what an exchange carries, how much is claimed or opened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from mailstrom.storage.base import Lane
from mailstrom_workers.connector import Connected
from mailstrom_workers.context import Context
from mailstrom_workers.feed import Feed
from mailstrom_workers.ladder import Ladder
from mailstrom_workers.settling import Settling
from mailstrom_workers.stock import Stock
from mailstrom_workers.supply import Supply
from mailstrom_workers.walk import Walk


class LaneRun:
    """Runs a lane to its end.

    Args:
        ctx: the worker's context.
        lane: the lease.
        lanes: how many lanes the site may have, to share what is due.
        rest_s: before it begins it waits so long; see ``Crashes``.

    Attributes:
        began: loop time.
        idle: it keeps a session for work that may come; see ``call``.
        parted: it has no work yet, or none any more, and says goodbye to the server: it counts as
            no connection.
    """

    def __init__(self, ctx: Context, lane: Lane, lanes: int, rest_s: float = 0.0) -> None:
        self.ctx = ctx
        self.lane = lane
        self.began = asyncio.get_running_loop().time() + rest_s
        self._rest_s = rest_s
        self.stock = stock = Stock(ctx)
        ladder = Ladder(lane)
        self.walk = walk = Walk(ctx, lane, ladder)
        self.settling = settling = Settling(ctx, lane, ladder, stock, walk)
        self.supply = supply = Supply(ctx, lane, lanes, stock, walk, settling)
        self.feed = Feed(ctx, stock, walk, settling, supply)
        self.idle = self.parted = False
        self._stirred = asyncio.Event()  # ends an idle time
        self._called = False

    @property
    def connected(self) -> Connected | None:
        """The session that it has now."""
        return self.walk.connected

    @property
    def unproven(self) -> bool:
        """See ``places.Waiting``."""
        return not self.supply.heard

    @property
    def opening(self) -> bool:
        """See ``places.Waiting``."""
        return self.walk.connector.since is not None

    def waited_s(self, now_s: float) -> float:
        """See ``places.Waiting``; 0 where it is at work itself."""
        since = self.walk.connector.since
        if since is not None:
            return now_s - since
        connected = self.walk.connected
        if connected is None or not self.stock.wire:
            return 0.0
        return now_s - max(self.supply.pace.progress_s, connected.session.wrote_s)

    def put_down(self) -> None:
        """The host in session lets it wait, and content is held without use: others need it."""
        self.feed.put_down()

    def give_up(self) -> None:
        """The host that is waited for, and let no mail begin, had its time: others need room."""
        self.walk.connector.give_up()

    async def run(self) -> None:
        """Work until nothing is due for a while, the site fails, or the worker drains."""
        try:
            if self._rest_s:
                await self._rest()
            while not self.ctx.draining.is_set() and self.ctx.has_room():
                if not await self._claim_first():
                    if not self.supply.fenced and await self._idle():
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
        self.walk.look()
        self.feed.look()

    def break_off(self) -> None:
        """A drain took too long: cut the connection. What was not sent goes back to the queue."""
        self.walk.break_off()

    def hang_up(self) -> None:
        """The worker is over: cut the connection, and nothing is written."""
        self.walk.hang_up()

    # --- the end ----------------------------------------------------------------------------

    async def _end(self) -> None:
        """Say goodbye, record what is known, give the rest back."""
        self.parted = True
        self.ctx.wake()
        try:
            said = await asyncio.gather(self.walk.leave(), self._record(), return_exceptions=True)
            await self.feed.come_to_rest()
            await self._record()
            for error in (self.feed.error, *said):
                if isinstance(error, BaseException):
                    raise error
        finally:
            try:
                await self.ctx.releases.ask(self.lane.token)
            finally:
                self.stock.clear()
                self.supply.free()
                self.ctx.wake()

    async def _record(self) -> None:
        """Hand over what waits to be recorded, and wait for it."""
        await self.ctx.db.exchange(self.settling.work())

    # --- without work in hand ---------------------------------------------------------------

    async def _rest(self) -> None:
        """Wait until it is time to begin, or the worker drains."""
        loop = asyncio.get_running_loop()
        self.parted = True
        while not self.ctx.draining.is_set() and (left := self.began - loop.time()) > 0:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._stirred.wait()
        self.parted = False

    async def _claim_first(self) -> bool:
        """Claim with nothing in hand; False where nothing is due."""
        stock, supply = self.stock, self.supply
        if supply.pace.exhausted and self.lane.site not in self.ctx.unserved:
            return False  # the engine sees what else becomes due, and wakes this lane
        await self.feed.rest()
        while True:
            work = self.settling.work()
            work.claims.append(supply.claim_request())
            exchange = await self.ctx.db.exchange(work)
            supply.take(exchange)
            in_hand = bool(stock.waiting or stock.opened)
            again = self.lane.token in exchange.more and not self.ctx.draining.is_set()
            if in_hand or not (exchange.claimed or again):
                return in_hand

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
        self.supply.pace.called()
        return self._called

    # --- what is in hand, host by host ------------------------------------------------------

    async def _deliver(self) -> bool:
        """Bring each transaction to a host that settles it; False when the lane should end.

        A transaction that the next host may still take waits for the others, with a higher
        ``position``; each round raises a position, uses up a reconnect, or settles a
        recipient, so this ends.
        """
        stock, walk, settling = self.stock, self.walk, self.settling
        walk.begin()
        renewed = False
        while True:
            if stock.opened and walk.serves():  # with their claim, for the present session
                await self.feed.run()
                await walk.part()
                continue
            self.feed.reclaim()
            if stock.rejoin(asyncio.get_running_loop().time()):
                await walk.leave()  # nothing else in hand suits the session
                renewed = True
            if not stock.waiting:
                stock.waiting, stock.later = stock.later, stock.waiting
            if not stock.waiting:
                return True
            if self.ctx.draining.is_set():
                settling.give_back(stock.waiting, stock.later)
                return False
            first = stock.waiting[0]
            if await walk.reach(first.position, strict=first.strict):
                await self.feed.run(renewed=renewed)
                renewed = False
                await walk.part()
                continue
            if self.ctx.draining.is_set():
                continue  # no host was found wanting
            if settling.unreached(first):
                stock.waiting.popleft()
                continue
            if walk.kept(first):
                stock.waiting.popleft()
                settling.give_back(deque((first,)))
                continue
            if first.unanswered:
                self.ctx.excuse(first.recipients[0].message)
            await walk.suspend()
            settling.give_back(stock.waiting, stock.later)
            return False
