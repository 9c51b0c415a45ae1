"""The domains that a worker looks up at once: places, and who gives way where all are taken.

Contract. Nobody waits long for the silence of other domains' DNS. There are as many places as
descriptors allow, 1,024 at most:

* Domains whose last lookup failed hold at most a part of them, ``FAILING``, and have all their time
  there. What finds that part full is given back unasked until an appointment: these lie apart by
  what one such lookup took lately, so that the part can serve them, be it silence or an answer.
  However many they are, others wait for the work of giving them back and for nothing else.
* Where all places are taken, a first try that is ``Resolver.first_s`` old is cut short, the oldest
  first: every nameserver had its turn, and keeps the answer that comes later for the next try. The
  domain is one that failed from then on.

Each domain is one task; whatever goes wrong with it is the caller's to tell. Must not know: what an
answer means, lanes, sites.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mailstrom.storage.base import DueDomain
from mailstrom_workers import router
from mailstrom_workers.context import Context
from mailstrom_workers.places import bounds
from mailstrom_workers.router import Patience

FAILING = 4
"""One of so many places may be held by a domain that failed before."""
PUT_OFF_S, MOST_PUT_OFF_S = 1.0, 60.0
"""An appointment is no sooner, and no later: what the DNS is when it comes, nobody knows."""
_LATELY = 16
"""Lookups by which the mean of what they took moves most of the way."""

Ended = Callable[[asyncio.Task[None]], None]


class Lookups:
    """Lookups of one worker.

    Args:
        ctx: the worker's context.
        ended: told of each task that ended.
    """

    def __init__(self, ctx: Context, ended: Ended) -> None:
        self._ctx = ctx
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._open: dict[asyncio.Task[None], Patience] = {}  # oldest first
        self._failing: set[asyncio.Task[None]] = set()
        self._giving: set[asyncio.Task[None]] = set()
        self._took_s: float | None = None  # None: as long as one may take
        self._appointment = 0.0  # the last one, loop time

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """All that is under way."""
        return [*self._open, *self._giving]

    @property
    def places(self) -> int:
        """How many domains may be looked up at once."""
        most = bounds(self._ctx.settings.config.delivery.max_connections)
        return min(most.lookups, self._ctx.resolver.places)

    @property
    def part(self) -> int:
        """How many of them may have failed before; and how many a look takes, so that most suit."""
        return max(self.places // FAILING, 1)

    def room(self) -> int:
        """How many domains a look may take; makes room where there is none."""
        free = self.places - len(self._open)
        if free <= 0:
            self._cut()
        return max(min(free, self.part), 0)

    def take(self, domains: Sequence[DueDomain]) -> None:
        """Look these up, or give them back until there is a place for them."""
        later: dict[str, int] = {}
        for due in domains:
            failed = due.failures > 0 and due.cached is None
            if failed and len(self._failing) >= self.part:
                later[due.name] = self._appoint()
            else:
                self._begin(due, failed=failed)
        if later:
            giving = self._loop.create_task(self._give_back(later), name="putting domains off")
            self._giving.add(giving)
            giving.add_done_callback(self._given)

    def cancel(self) -> None:
        """Give all up."""
        for task in self.tasks:
            task.cancel()

    def _begin(self, due: DueDomain, *, failed: bool) -> None:
        patience = Patience(self._loop)
        name = f"route {due.name}"
        task = self._loop.create_task(router.route(self._ctx, due, patience), name=name)
        self._open[task] = patience
        if failed:
            self._failing.add(task)
        task.add_done_callback(self._looked_up)

    def _looked_up(self, task: asyncio.Task[None]) -> None:
        patience = self._open.pop(task)
        if task in self._failing:
            self._failing.discard(task)
            if patience.took_s is not None:
                before = self._longest_s if self._took_s is None else self._took_s
                self._took_s = before + (patience.took_s - before) / _LATELY
        self._ended(task)

    def _cut(self) -> None:
        """Cut first tries short that had their first turn: as many as a look takes."""
        until = self._loop.time() - self._ctx.resolver.first_s
        left = self.part
        for task, patience in self._open.items():
            if not left or patience.began > until:
                return
            if task not in self._failing and patience.cut():
                left -= 1

    @property
    def _longest_s(self) -> float:
        return self._ctx.settings.config.dns.timeout

    def _appoint(self) -> int:
        """When the next domain that is put off is due again, milliseconds since the epoch."""
        now = self._loop.time()
        took_s = self._longest_s if self._took_s is None else self._took_s
        next_s = self._appointment + took_s / self.part
        self._appointment = min(max(next_s, now + PUT_OFF_S), now + MOST_PUT_OFF_S)
        return self._ctx.now_ms() + int((self._appointment - now) * 1000)

    async def _give_back(self, later: dict[str, int]) -> None:
        worker = self._ctx.worker
        await self._ctx.db.insist(lambda store: store.give_back(worker, later))

    def _given(self, task: asyncio.Task[None]) -> None:
        self._giving.discard(task)
        self._ended(task)
