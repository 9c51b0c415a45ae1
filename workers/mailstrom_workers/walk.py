"""One lane's walk over the hosts of its site: whose turn it is, the session with it, what is left.

Rules: a batch walks the hosts in one order, drawn anew only where no session is held. A session is
used until the server, the configuration or a reload wants another, or the worker drains. At most
``MOST_HOSTS`` hosts answer for one message in one attempt. Where no host can be used at all the
site is suspended: one row, and no recipient is written.

Must not know: what is in hand, what a reply means for a recipient.
"""

from __future__ import annotations

import asyncio

from mailstrom import events
from mailstrom.policy.site import suspension_s
from mailstrom.storage.base import Lane, Suspension
from mailstrom.types import Reason, iso_ms
from mailstrom_workers.connector import Connected, Connector
from mailstrom_workers.context import Context
from mailstrom_workers.ladder import Ladder
from mailstrom_workers.transactions import Pass, Transaction

MOST_HOSTS = 2
"""Hosts that may answer for one message in one attempt."""


class Walk:
    """Where one lane stands among its site's hosts.

    Args:
        ctx: the worker's context.
        lane: whose hosts are meant.
        ladder: what of their extensions may be used.

    Attributes:
        connector: finds sessions, and keeps the rows about them until they are taken.
        connected: the session with the host whose turn it is, if there is one.
        index: that host's place in the order.
        detour: whether it was reached for REQUIRETLS mail past hosts that lack what such mail
            needs, and that other mail goes to.
        run: what the hosts before it said of this batch.
    """

    def __init__(self, ctx: Context, lane: Lane, ladder: Ladder) -> None:
        self._ctx = ctx
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self.connector = Connector(ctx, lane, ladder)
        self.connected: Connected | None = None
        self.index = 0
        self.detour = False
        self.run = Pass(started_ms=0)
        self._connecting: asyncio.Timeout | None = None
        self._left: Connected | None = None  # goodbye is being said

    def begin(self) -> None:
        """Start over, with another batch."""
        self.run = Pass(started_ms=self._ctx.now_ms())
        if self.connected is None:
            self.connector.reorder()

    async def reach(self, position: int, *, strict: bool = False) -> bool:
        """Have a usable session with the host at ``position``, or with the first one behind it.

        Args:
            strict: it is for REQUIRETLS mail; see ``suits``.

        Returns:
            False where none of them can be used, or a drain began.
        """
        connected = self.connected
        if connected is not None:
            index = self.connector.hosts.index(connected.host)
            suits = self.suits(connected) if strict else not self.detour
            if index >= position and self.serves() and suits:
                self.index = index
                return True
            await self.leave()
        found = await self._connect(position, strict)
        if found is None:
            return False
        self.index, self.connected = found
        passed = self.connector.hosts[: self.index]
        self.detour = strict and any(host in self.connector.lacks for host in passed)
        return True

    async def _connect(self, position: int, strict: bool) -> tuple[int, Connected] | None:
        """A session, unless a drain comes first: a host may greet after minutes, or never."""
        if self._ctx.draining.is_set():
            return None
        patience = asyncio.timeout(None)
        try:
            async with patience:
                self._connecting = patience
                return await self.connector.connect(position, strict=strict)
        except TimeoutError:
            if not patience.expired():
                raise
            return None
        finally:
            self._connecting = None

    def look(self) -> None:
        """Something changed for all lanes: no host is waited for once the worker drains."""
        if self._connecting is not None and self._ctx.draining.is_set():
            self._connecting.reschedule(self._loop.time())
            self._connecting = None

    def serves(self) -> bool:
        """Whether another transaction may go to the present session."""
        connected = self.connected
        return connected is not None and connected.session.usable and self.takes(connected)

    @staticmethod
    def suits(connected: Connected) -> bool:
        """Whether a session decides about REQUIRETLS mail.

        It does where it proved its host's name, and where that host was seen not to offer what such
        mail needs. Else the host may have it in another session, that asks for proof.
        """
        facts, offered = connected.session.facts, connected.session.capabilities
        if facts.tls_verified:
            return True
        return not (offered.starttls if facts.tls_reached == "none" else offered.requiretls)

    def takes(self, connected: Connected) -> bool:
        """Whether this lane may begin another transaction on a usable session."""
        return (
            connected.transactions < connected.most
            and self._loop.time() < connected.until
            and connected.settings is self._ctx.settings  # a reload may demand more of TLS
            and not self._ctx.draining.is_set()
        )

    def is_last(self, transaction: Transaction) -> bool:
        """Whether no other host is left for it in this attempt."""
        return (
            self.index + 1 >= len(self.connector.hosts) or transaction.hosts_tried + 1 >= MOST_HOSTS
        )

    def kept(self, transaction: Transaction) -> bool:
        """Whether a host before this one said something that stands, where no other is left."""
        retained = self.run.retained
        return any(row.recipient in retained for row in transaction.recipients)

    async def part(self) -> None:
        """Leave a session that is over."""
        if self.connected is not None and not self.connected.session.usable:
            await self.leave()

    async def leave(self) -> None:
        """Say goodbye to the server, where there is one."""
        if self.connected is not None:
            connected, self.connected = self.connected, None
            self._left = connected
            await self.connector.disconnect(connected)
            self._left = None

    def break_off(self) -> None:
        """Cut the connection, also where goodbye is being said."""
        for connected in (self.connected, self._left):
            if connected is not None:
                connected.session.break_off()

    def hang_up(self) -> None:
        """As ``break_off``, where nothing is written any more."""
        for connected in (self.connected, self._left):
            if connected is not None:
                connected.session.abort()

    async def suspend(self) -> None:
        """No host of the site can be used: one row, no recipient is written."""
        ctx, lane = self._ctx, self._lane
        trouble = self.connector.trouble
        if self.connector.local:
            text = "" if trouble is None else trouble.text
            ctx.pause(text.partition(": ")[2])  # the site is not to blame for what is lacking here
            return
        failures = await ctx.db.insist(lambda store: store.failures(lane.site))
        delay = suspension_s(failures + 1, ctx.settings.config.sites.suspend, ctx.random())
        now_ms = ctx.now_ms()
        text = trouble.text if trouble is not None else "no host could be used"
        reason = trouble.reason if trouble is not None else Reason.CONNECT
        suspension = Suspension(
            site=lane.site,
            until_ms=now_ms + int(delay * 1000),
            since_ms=self.run.started_ms,
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
