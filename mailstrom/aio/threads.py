"""The few threads on which an ``AsyncMailstrom`` waits for the disk.

Reading, composing and the watch have pools of their own: slow reports must not keep ``send()``
waiting, nor those who wait for a change. Nothing here waits for its turn to write: the committer
calls back. Threads start when they are needed. What takes very long (starting and ending an engine,
a backup, a bulk change) goes to the loop's own pool.

A forked child begins with new pools: the parent's threads do not exist there.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from mailstrom.errors import SpoolError

_SIZES = {"read": 4, "compose": 2, "watch": 1}

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Pools by purpose; closed they refuse, as a closed client does."""

    def __init__(self) -> None:
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._pid = os.getpid()
        self._closed = False

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb that reads; its exception is raised here."""
        return await self._run("read", functools.partial(function, *args, **kwargs))

    async def compose(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what only computes: a message made ready, an address normalised."""
        return await self._run("compose", functools.partial(function, *args, **kwargs))

    async def watch(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short look at what changed."""
        return await self._run("watch", functools.partial(function, *args, **kwargs))

    async def alone(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what may take as long as it likes."""
        self.require_open()
        return await asyncio.to_thread(function, *args, **kwargs)

    async def _run(self, purpose: str, function: Callable[[], T]) -> T:
        pool = self._pool(purpose)
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    def _pool(self, purpose: str) -> ThreadPoolExecutor:
        self.require_open()
        if self._pid != os.getpid():
            self._pools, self._pid = {}, os.getpid()
        pool = self._pools.get(purpose)
        if pool is None:
            pool = self._pools[purpose] = ThreadPoolExecutor(
                _SIZES[purpose], thread_name_prefix=f"mailstrom-{purpose}"
            )
        return pool

    def require_open(self) -> None:
        """Raise once these are closed.

        Raises:
            SpoolError: as every call of a closed client.
        """
        if self._closed:
            raise SpoolError("this client is closed; open a new one")

    def close(self) -> None:
        """Let the threads end after what they do now; idempotent."""
        self._closed = True
        if self._pid == os.getpid():
            for pool in self._pools.values():
                pool.shutdown(wait=False)
        self._pools = {}
