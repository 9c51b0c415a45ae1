"""The delivery loop of one worker: look for due work, lease lanes, route domains, drain.

It looks when the store's service tells that something is due (``DBService.watch``), and when a lane
or route ended. Lanes and routes are asyncio tasks; the store is a thread away, so that a look is
one visit there: a free connection waits for all that is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from mailstrom import events
from mailstrom.errors import SpoolError
from mailstrom.storage.base import DueDomain, Lane, WorkerStore
from mailstrom_workers import router
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.context import Context
from mailstrom_workers.crashes import Crashes
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.lane import LaneRun
from mailstrom_workers.lookups import Lookups
from mailstrom_workers.places import Bounds, Free, bounds, free, lighten, longest

AGAIN_S = 0.05
"""So soon it looks again after a look that found more due than one look serves."""
QUIET_S = 1.0
"""So often where nothing is due: for room on the disk, and in case a word was lost."""
COUNT_S = 20e-6
"""So long, for each of them, a count of lanes holds: there may be thousands, and a look when one of
them ends."""
AT_ONCE = 64
"""So many hosts that hang a look waits for no longer, at most, where others need their room."""
SATURATED_S = 0.25
"""How often due sites are tried that gave no lane last time, for want of free ones."""


@dataclass(slots=True, kw_only=True)
class Look:
    """What a look wants, and what it found as far as it came.

    Args:
        routes: domains to take, at most.
        free: lanes to lease, at most; None: none is wanted, whatever is due.
        idle: sites that have a lane of ours without work.
        due: whether anything is due.
        domains: taken, to be routed; nobody else will.
        sites: with due work.
        crowded: whether one of them has room for a lane, and we have no connection left for it.
        shut_out: how many such there are, counted no further than ``AT_ONCE``, where what is
            lacking is room for hosts that hang.
    """

    routes: int
    free: Free | None
    idle: frozenset[int]
    due: bool = False
    domains: Sequence[DueDomain] = ()
    sites: frozenset[int] = frozenset()
    leased: Sequence[Lane] = ()
    crowded: bool = False
    shut_out: int = 0


class Engine:
    """Delivers until told to drain.

    Args:
        ctx: the worker's context.
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._lanes: dict[asyncio.Task[None], LaneRun] = {}
        self._lookups = Lookups(ctx, self._route_ended)
        self._crashes = Crashes(ctx)
        self._writing: set[asyncio.Task[None]] = set()  # that a site is left alone
        self._due = False
        self._barren = False
        self._counted = Free(0, 0, full=False)
        self._counted_anew = True
        self._count_at = float("-inf")  # loop time from which lanes are counted anew
        self._told_at = 0.0  # loop time from which it is heeded that something is due
        self._heeding: asyncio.TimerHandle | None = None

    @property
    def sessions(self) -> int:
        """Open lanes, for the worker's row."""
        return len(self._lanes)

    async def run(self) -> None:
        """Deliver until ``ctx.draining`` is set, then finish what is on the wire."""
        ctx = self.ctx
        trouble = Complaint("look", asyncio.get_running_loop().time)
        await router.use_routes(ctx)
        ctx.db.watch(self._told)
        while not ctx.draining.is_set():
            try:
                await ctx.look_for_room()
                await self._look()
                await self._wait()
                trouble.over()
            except SpoolError as error:  # busy, full or damaged: look again later
                trouble.say(str(error))
                await asyncio.sleep(SATURATED_S)
        ctx.db.watch(None)
        await self._drain()

    async def _wait(self) -> None:
        """Until something may have become due."""
        seconds = QUIET_S
        if self._due:
            seconds = SATURATED_S if self._barren else AGAIN_S
            if not self._counted_anew:
                left = self._count_at - asyncio.get_running_loop().time()
                seconds = min(seconds, max(left, 0.0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ctx.woken.wait()
        self.ctx.woken.clear()

    def _told(self) -> None:
        """Something is due, or a drain began; what found no lane just now is not tried at once."""
        loop = asyncio.get_running_loop()
        if not self._barren or self.ctx.draining.is_set() or loop.time() >= self._told_at:
            self.ctx.wake()
        elif self._heeding is None:
            self._heeding = loop.call_at(self._told_at, self._heed)

    def _heed(self) -> None:
        self._heeding = None
        self.ctx.wake()

    async def _look(self) -> None:
        """Route what waits for a route, lease where work is due."""
        most = bounds(self.ctx.settings.config.delivery.max_connections)
        look = Look(
            routes=self._lookups.room(),
            free=self._free(most),
            idle=frozenset(run.lane.site for run in self._lanes.values() if run.idle),
        )
        try:
            await self.ctx.db.call(lambda store: self._ask(store, look))
        finally:  # what was taken is ours, whatever came behind it
            self._lookups.take(look.domains)
            for lane in look.leased:
                self._start_lane(lane)
            if look.leased:
                self._counted = self._counted.less(len(look.leased))
        served = self._serve(look)
        self._due = look.due
        full = 0 < look.routes == len(look.domains)  # more domains may wait
        self._barren = look.due and not served and not full
        self._told_at = asyncio.get_running_loop().time() + AGAIN_S

    def _free(self, most: Bounds) -> Free | None:
        """How many lanes may be leased now; None: it is no time for it."""
        ctx, now = self.ctx, asyncio.get_running_loop().time()
        self._counted_anew = True
        if now < ctx.paused_until or ctx.draining.is_set() or not ctx.has_room():
            return None
        self._counted_anew = now >= self._count_at
        if self._counted_anew:
            if ctx.laden:
                lighten(self._lanes.values(), now)
            self._counted = free(self._lanes.values(), most, now, laden=ctx.laden)
            self._count_at = now + COUNT_S * len(self._lanes)
        return self._counted

    def _ask(self, store: WorkerStore, look: Look) -> None:
        """The visit to the store."""
        ctx, now_ms = self.ctx, self.ctx.now_ms()
        due_ms = store.next_due_ms(now_ms)
        look.due = due_ms is not None and due_ms <= now_ms
        if not look.due:
            return
        if look.routes:
            look.domains = store.due_domains(ctx.worker, look.routes, now_ms)
        look.sites = frozenset(store.due_sites(now_ms))
        wanted = look.free
        if wanted is None or look.idle.issuperset(look.sites):
            return
        limit = ctx.settings.config.sites.connections
        ctx.workers = workers = store.live_workers()
        most = len(look.idle) + 1  # one of so many is without an idle lane
        if wanted.full:
            most += AT_ONCE - 1
        room = store.open_sites(ctx.worker, limit=limit, workers=workers, most=most, now_ms=now_ms)
        if look.idle.issuperset(room):
            return  # as most looks beside a busy site end: nothing was written
        look.sites = look.sites.union(room)  # what is due is cut at 1,000, whoever has room or not
        if wanted.proven:
            look.leased = store.lease(
                ctx.worker,
                want=wanted.anywhere or wanted.proven,
                limit=limit,
                workers=workers,
                now_ms=now_ms,
                proven=not wanted.anywhere,
            )
        else:
            look.crowded = True
        if wanted.full:
            look.shut_out = min(len(set(room) - look.idle), AT_ONCE)

    def _serve(self, look: Look) -> bool:
        """Wake idle lanes at due sites; False when neither that nor a lease came of the look."""
        ctx = self.ctx
        if not ctx.has_room():
            ctx.unserved, ctx.crowded = frozenset(), False
            return False
        unserved = set(look.sites)
        woken = False
        for run in self._lanes.values():
            if run.idle and run.lane.site in unserved:
                run.call()
                unserved.discard(run.lane.site)
                woken = True
        ctx.unserved = frozenset(unserved.difference(lane.site for lane in look.leased))
        ctx.crowded = look.crowded
        if look.shut_out and self._counted_anew:
            now = asyncio.get_running_loop().time()
            for run in longest(self._lanes.values(), look.shut_out, now):
                run.give_up()
        if ctx.crowded:
            for run in self._lanes.values():
                if run.idle:
                    run.look()
        return woken or bool(look.leased)

    def _start_lane(self, lane: Lane) -> None:
        rest_s = self._crashes.rest_s(lane)
        run = LaneRun(self.ctx, lane, self.ctx.settings.config.sites.connections, rest_s)
        task = asyncio.create_task(run.run(), name=f"lane {lane.token}")
        self._lanes[task] = run
        task.add_done_callback(self._lane_ended)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        run = self._lanes.pop(task)
        self.ctx.wake()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._crashes.ended(run.lane, run.began)
        elif not isinstance(error, StoreEnded):
            self._crashed(run, task.get_name(), error)

    def _crashed(self, run: LaneRun, name: str, error: BaseException) -> None:
        """Leave its site alone for a while: the next lane would meet the same mail."""
        lane = run.lane
        rest_s = self._crashes.crashed(lane, run.began, error, took=run.settling.took)
        events.engine_failed(where=name, error=error, site=lane.site_key, pause_s=round(rest_s, 1))
        others = any(other.lane.site == lane.site for other in self._lanes.values())
        if others or self.ctx.draining.is_set():
            return
        writing = asyncio.create_task(
            self._crashes.write(lane, run.began, error), name=f"leaving {lane.site_key} alone"
        )
        self._writing.add(writing)
        writing.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        self._report(task)

    def _route_ended(self, task: asyncio.Task[None]) -> None:
        self._report(task)
        self.ctx.wake()

    def _report(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, StoreEnded):
            events.engine_failed(where=task.get_name(), error=error)

    def hang_up(self) -> None:
        """Cut every connection at once and give up every lane and lookup: the worker is over."""
        for task, run in list(self._lanes.items()):
            run.hang_up()
            task.cancel()
        for writing in self._writing:
            writing.cancel()
        self._lookups.cancel()

    def break_off(self) -> None:
        """A drain took too long: cut every connection, and write down what is known then."""
        for run in self._lanes.values():
            run.break_off()

    async def _drain(self) -> None:
        """Lanes finish their transaction and release the rest; lookups are given up."""
        for run in self._lanes.values():
            run.look()
        waiting = [*self._lanes, *self._lookups.tasks, *self._writing]
        self._lookups.cancel()
        if waiting:
            await asyncio.gather(*waiting, return_exceptions=True)
