"""The delivery loop of one worker: look for due work, lease lanes, route domains, drain.

It looks when the store's service tells that something is due (``DBService.watch``), and when a lane
or route ended. Lanes and routes are asyncio tasks; the store is a thread away.
"""

from __future__ import annotations

import asyncio
import contextlib

from mailstrom import events
from mailstrom.errors import SpoolError
from mailstrom.storage.base import DueDomain, Lane, WorkerStore
from mailstrom_workers import router
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.context import Context
from mailstrom_workers.dbservice import StoreEnded
from mailstrom_workers.lane import LaneRun

AGAIN_S = 0.05
"""So soon it looks again after a look that found more due than one look serves."""
QUIET_S = 1.0
"""So often where nothing is due: for room on the disk, and in case a word was lost."""
SATURATED_S = 0.25
"""How often due sites are tried that gave no lane last time, for want of free ones."""
MOST_ROUTES = 256


class Engine:
    """Delivers until told to drain.

    Args:
        ctx: the worker's context.
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._lanes: dict[asyncio.Task[None], LaneRun] = {}
        self._routes: dict[asyncio.Task[None], None] = {}  # in order
        self._due = False
        self._barren = False
        self._next_lease = 0.0

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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ctx.woken.wait()
        self.ctx.woken.clear()

    def _told(self) -> None:
        """Something is due, or a drain began; what found no lane just now is not tried at once."""
        if (
            not self._barren
            or self.ctx.draining.is_set()
            or asyncio.get_running_loop().time() >= self._next_lease
        ):
            self.ctx.wake()

    async def _is_due(self) -> bool:
        now_ms = self.ctx.now_ms()
        due_ms = await self.ctx.db.call(lambda store: store.next_due_ms(now_ms))
        return due_ms is not None and due_ms <= now_ms

    async def _look(self) -> None:
        """Route what waits for a route, lease where work is due."""
        ctx = self.ctx
        room = MOST_ROUTES - len(self._routes)
        self._due = await self._is_due()
        if not self._due:
            self._barren = False
            return
        now_ms = ctx.now_ms()
        if room > 0:
            domains = await ctx.db.call(lambda store: store.due_domains(ctx.worker, room, now_ms))
            for domain in domains:
                self._start_route(domain)
        self._barren = not await self._lease()
        self._next_lease = asyncio.get_running_loop().time() + SATURATED_S

    async def _lease(self) -> bool:
        """Wake idle lanes at due sites and lease new ones; False when nothing came of it."""
        ctx = self.ctx
        ctx.unserved, ctx.crowded = frozenset(), False
        if not ctx.has_room():
            return False
        now_ms = ctx.now_ms()
        due = set(await ctx.db.call(lambda store: store.due_sites(now_ms)))
        woken = False
        for run in self._lanes.values():
            if run.idle and run.lane.site in due:
                run.call()
                due.discard(run.lane.site)
                woken = True
        ctx.unserved = frozenset(due)
        most = ctx.settings.config.delivery.max_connections
        # A lane that takes its leave of a server holds no other up, but not without limit.
        want = min(most - sum(not run.parted for run in self._lanes.values()),
                   2 * most - len(self._lanes))  # fmt: skip
        paused = asyncio.get_running_loop().time() < ctx.paused_until
        if not due or paused or ctx.draining.is_set():
            return woken
        if want <= 0:
            ctx.crowded = True
            for run in self._lanes.values():
                if run.idle:
                    run.look()
            return woken
        limit = ctx.settings.config.sites.connections

        def lease(store: WorkerStore) -> list[Lane]:
            ctx.workers = workers = store.live_workers()
            return store.lease(ctx.worker, want=want, limit=limit, workers=workers, now_ms=now_ms)

        leased = await ctx.db.call(lease)
        for lane in leased:
            self._start_lane(lane, limit)
        ctx.unserved -= {lane.site for lane in leased}
        return woken or bool(leased)

    def _start_lane(self, lane: Lane, limit: int) -> None:
        run = LaneRun(self.ctx, lane, limit)
        task = asyncio.create_task(run.run(), name=f"lane {lane.token}")
        self._lanes[task] = run
        task.add_done_callback(self._lane_ended)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        del self._lanes[task]
        self._report(task)
        self.ctx.wake()

    def _start_route(self, domain: DueDomain) -> None:
        task = asyncio.create_task(router.route(self.ctx, domain), name=f"route {domain.name}")
        self._routes[task] = None
        task.add_done_callback(self._route_ended)

    def _route_ended(self, task: asyncio.Task[None]) -> None:
        self._routes.pop(task, None)
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
            if run.connected is not None:
                run.connected.session.abort()
            task.cancel()
        for route in list(self._routes):
            route.cancel()

    async def _drain(self) -> None:
        """Lanes finish their transaction and release the rest; lookups are given up."""
        for run in self._lanes.values():
            run.look()
        for task in list(self._routes):
            task.cancel()
        waiting = [*self._lanes, *self._routes]
        if waiting:
            await asyncio.gather(*waiting, return_exceptions=True)
