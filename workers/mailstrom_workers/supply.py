"""What a lane asks of the store so that its wire need not wait: claims, and openings ahead.

Crash points: before an opening is committed nothing was sent (claims are simply due again); after
it the recipient is ``sending`` and a crash leaves it in doubt. So what may not be sent twice
(``on_doubt = "hold"``) is opened by itself, on the disk, and never ahead; and nothing is opened
ahead at a site that nobody has seen take mail (a canary's), before a server has ended a transaction
of this lane. Of what was to be opened only what the store returned is ever sent.

How much is ``policy.pace``'s to say. A claim opens what goes on the wire as soon as it is told; a
message's recipients are opened in one transaction, as many as the server takes. Content in hand is
within the worker's budget: a claim reserves of it what it may read.

Must not know: when an exchange is made, what else travels in it, what becomes of what was sent.
"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from mailstrom.policy.pace import SLOW_CLAIM, ClaimPace, OpenWindow
from mailstrom.storage.base import Ahead, ClaimRequest, Exchange, Lane, Open
from mailstrom.types import OnDoubt
from mailstrom_workers.connector import MOST_RECIPIENTS, Connected
from mailstrom_workers.context import Context
from mailstrom_workers.settling import Settling
from mailstrom_workers.stock import Stock
from mailstrom_workers.transactions import Transaction
from mailstrom_workers.walk import Walk

CLAIM_BYTES = 8 * 1024 * 1024


class Supply:
    """Brings transactions from due to opened, for one lane.

    Args:
        ctx: the worker's context.
        lane: the lease that claims.
        lanes: how many lanes the site may have, to share what is due.
        stock: where they are.
        walk: whose session they are for.
        settling: takes what cannot be sent.

    Attributes:
        pace: how much is claimed.
        window: how much is opened ahead.
        heard: whether more than one transaction may be begun: the site was seen to take mail, or a
            server ended a transaction of this lane.
        halted: nothing is asked for: the session says nothing, and what it begun may never end.
        fenced: the spool gives this lane nothing more: too many since a reload.
    """

    def __init__(
        self, ctx: Context, lane: Lane, lanes: int, stock: Stock, walk: Walk, settling: Settling
    ) -> None:
        self._ctx = ctx
        self._lane = lane
        self.stock = stock
        self._walk = walk
        self._settling = settling
        self._loop = asyncio.get_running_loop()
        self.pace = ClaimPace(lane.due, lanes)
        self.window = OpenWindow()
        self.heard = not lane.canary
        self.halted = self.fenced = False
        self._reading = 0  # octets of the worker's budget that a claim under way may use

    # --- claims -----------------------------------------------------------------------------

    def wants_claim(self) -> bool:
        """Whether the next exchange is to claim."""
        if self.halted or self.fenced or self.stock.apart:
            return False  # more and more for this session, and what waits for another would starve
        ctx, stock = self._ctx, self.stock
        # What waits for another host counts: where this one defers everybody all would be claimed.
        in_hand = stock.ahead + len(stock.later)
        return (
            self.pace.wants(in_hand, self._loop.time(), wire=bool(stock.wire), spent=ctx.spent)
            and self._walk.serves()
            and ctx.has_room()
        )

    def claim_request(self) -> ClaimRequest:
        """The claim for the next exchange; its answer is for ``take``."""
        ctx, size = self._ctx, self.pace.size
        self._reading = ctx.reserve(size, CLAIM_BYTES)
        limit = size if self._reading else 1
        return ClaimRequest(
            lane=self._lane.token,
            limit=limit,
            max_bytes=max(self._reading, 1),
            limit_lanes=ctx.settings.config.sites.connections,
            share=ctx.share,
            even=self.pace.even(limit),
            ahead=self._ahead(),
        )

    def take(self, exchange: Exchange) -> int:
        """What a claim gave; returns how many messages of it can be sent."""
        unread = not self._reading
        self.free()
        token = self._lane.token
        self.fenced = token in exchange.ended
        if not exchange.claimed:
            if token in exchange.more:
                self.pace.called()  # the exchange had no room for it
            else:
                self.pace.dry(self._loop.time())
            return 0
        good = self._settling.sift(exchange.claimed)
        if unread and self._walk.connected is None:
            # Its host may let nobody in for minutes, and so may the hosts of many other lanes: what
            # is beyond the budget is read when it is sent.
            good = [replace(row, body=None) for row in good]
        now = self._loop.time()
        count = self.stock.take_in(
            good, now, MOST_RECIPIENTS, opened=exchange.opened, opened_at=exchange.locked_s
        )
        self.pace.found(count, now, more=token in exchange.more)
        return count

    def free(self) -> None:
        """No claim is under way: what it might have read is free."""
        self._ctx.free(self._reading)
        self._reading = 0

    def _ahead(self) -> Ahead | None:
        """What of a claim may be opened with it: what goes on the wire as soon as it is told."""
        stock, connected = self.stock, self._walk.connected
        if connected is None or stock.waiting or not self._walk.serves():
            return None
        if not self.heard and (stock.opened or stock.opening or stock.wire):
            return None
        room = self._room(connected) - len(stock.opened) - len(stock.opening)
        domains = connected.domains
        if domains.most:  # each message may be of another one
            room = min(room, domains.most - len(domains.taken(stock.bound)))
        if room < 1 or self._walk.detour or self._ctx.settings.on_doubt is OnDoubt.HOLD:
            return None
        offered = connected.session.capabilities
        return Ahead(
            session=connected.id,
            messages=int(room) if self.heard else 1,
            recipients=1 if domains.most else connected.recipients,
            octets=offered.size or 0,
            encrypted=connected.session.facts.tls_reached != "none",
            eightbit=offered.eightbitmime,
            smtputf8=offered.smtputf8,
            requiretls=offered.requiretls and connected.session.facts.tls_verified,
        )

    # --- openings ---------------------------------------------------------------------------

    def openings(self) -> tuple[list[Open], bool]:
        """Openings for the window; True with one that must be on the disk before it is sent."""
        opens: list[Open] = []
        stock, walk = self.stock, self._walk
        connected = walk.connected
        if not stock.waiting or self.halted or connected is None or not walk.serves():
            return opens, False
        room = self._room(connected)
        on_doubt = self._ctx.settings.on_doubt
        domains = connected.domains
        taken = domains.taken(stock.bound) if domains.most else set[str]()
        suiting: set[str] | None = None
        while stock.waiting:
            transaction = stock.waiting[0]
            ahead = len(stock.opened) + len(stock.opening)
            if not self.heard and (ahead or stock.wire):
                break
            if ahead >= room and not (
                ahead == room and stock.opened and transaction.priority < stock.opened[-1].priority
            ):
                break
            if transaction.position > walk.index:
                stock.later.append(stock.waiting.popleft())
                continue
            if not (walk.suits(connected) if transaction.strict else not walk.detour):
                stock.apart.append(stock.waiting.popleft())
                continue
            if domains.most:
                suiting = domains.suiting(transaction.recipients, taken)
                if not suiting:
                    stock.apart.append(stock.waiting.popleft())
                    continue
            hold = transaction.on_doubt(on_doubt) is OnDoubt.HOLD
            if hold and (stock.opened or stock.opening or stock.wire):
                break
            stock.waiting.popleft()
            if len(transaction.recipients) > 1:
                stock.split(transaction, connected.recipients, suiting)
            if self._settling.refused_here(transaction, connected):
                continue
            if domains.most:
                taken.update(row.domain for row in transaction.recipients)
            stock.opening.append(transaction)
            opens.append(self._opening(transaction, connected))
            if hold:
                return opens, True
        return opens, False

    def take_opened(self, exchange: Exchange) -> None:
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
            stock.open(transaction, now)

    def ran_dry(self) -> None:
        """The wire waits for an opening that only an exchange is missing for."""
        if self.heard and self.pace.size > SLOW_CLAIM:
            self.window.ran_dry()

    def _room(self, connected: Connected) -> float:
        """Messages that may be opened ahead on this session."""
        return min(self.window.size, connected.most - connected.transactions)

    def _opening(self, transaction: Transaction, connected: Connected) -> Open:
        rows = transaction.recipients
        return Open(
            lane=self._lane.token,
            recipients=(rows[0].recipient,)
            if len(rows) == 1
            else tuple([row.recipient for row in rows]),
            session=connected.id,
        )
