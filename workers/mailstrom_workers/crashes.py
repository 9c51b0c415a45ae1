"""Lanes that an error ended, and how long their sites are left alone for it.

A lane that raises has met a bug, or what nobody foresaw; leased again at once it would meet the
same mail, and raise again, without end. So its site rests, longer each time in a row, and no other
one does. The spool says so where no other lane of this worker is at the site: one row, for all
workers and for whoever asks why. Where others are, those go on, and only what is leased next rests
before it begins. What the spool itself refuses is its own trouble: it is short, and not written.

Counted in a row: lanes that crash together count once, and a lane that was begun since begins the
count anew if it ended well, or a host took a message of it: one message that ends its lane each
time is held in the end (``poison``), and must not keep the others for long. In this process's
memory; no recipient is touched.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mailstrom.errors import SpoolError
from mailstrom.policy.site import CRASHED, crash_s
from mailstrom.storage.base import Lane, Suspension
from mailstrom.types import Reason
from mailstrom_workers.context import Context
from mailstrom_workers.dbrequest import StoreEnded

MOST_SPOOL_S = 5.0
"""A spool that takes nothing is met by all sites; when it does again, none should wait long."""
MOST_SITES = 10_000


@dataclass(slots=True)
class _Rest:
    """What is known of a site whose lanes crash; times are loop times."""

    count: int
    last: float
    until: float
    written: bool = False


class Crashes:
    """The sites of one worker whose lanes crashed.

    Args:
        ctx: the worker's context.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._loop = asyncio.get_running_loop()
        self._sites: dict[int, _Rest] = {}

    def rest_s(self, lane: Lane) -> float:
        """How long a lane that is leased now rests before it begins.

        Where the spool has the pause and leases all the same, it is over, or a person ended it.
        """
        rest = self._sites.get(lane.site)
        if rest is None or (rest.written and lane.failing):
            return 0.0
        return max(rest.until - self._loop.time(), 0.0)

    def ended(self, lane: Lane, began: float) -> None:
        """A lane ended well.

        Args:
            began: loop time.
        """
        rest = self._sites.get(lane.site)
        if rest is not None and began > rest.last:
            del self._sites[lane.site]

    def crashed(
        self, lane: Lane, began: float, error: BaseException, *, took: bool = False
    ) -> float:
        """A lane raised; how many seconds its site rests.

        Args:
            began: loop time.
            took: whether a host took a message of it.
        """
        now = self._loop.time()
        rest = self._sites.pop(lane.site, None)
        if rest is None:
            rest = _Rest(0, 0.0, 0.0)
        if not rest.count or began > rest.last:  # else it crashed together with the one before
            rest.count = 1 if took else rest.count + 1
            rest.last, rest.written = now, False
            pause_s = crash_s(rest.count)
            if isinstance(error, SpoolError):
                pause_s = min(pause_s, MOST_SPOOL_S)
            rest.until = now + pause_s
        self._sites[lane.site] = rest
        if len(self._sites) > MOST_SITES:
            del self._sites[next(iter(self._sites))]
        return max(rest.until - now, 0.0)

    async def write(self, lane: Lane, began: float, error: BaseException) -> None:
        """Let the spool say that the site is left alone, and why."""
        rest = self._sites.get(lane.site)
        now, now_ms = self._loop.time(), self._ctx.now_ms()
        if rest is None or rest.until <= now or isinstance(error, SpoolError):
            return
        suspension = Suspension(
            site=lane.site,
            until_ms=now_ms + int((rest.until - now) * 1000),
            since_ms=now_ms - int((now - began) * 1000),
            by=f"worker {self._ctx.worker}",
            reason=Reason.LOCAL,
            text=f"{CRASHED}{type(error).__name__}: {error}"[:500],
        )
        try:
            await self._ctx.db.call(lambda store: store.suspend(suspension, now_ms))
        except (SpoolError, StoreEnded):
            return  # a lane that is leased rests
        rest.written = True
