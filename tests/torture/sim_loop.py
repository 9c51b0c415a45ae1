"""An event loop whose time is a number, and simulated processes that run on it.

Contract: nothing waits. When nothing is ready the clock jumps to the next timer; order is that of
the calls, so that one seed is one run. There is no selector and no socket: connecting is handed to
the network given. A ``Group`` is a process: every task begun in its context belongs to it, a
stopped one's callbacks are parked until it goes on, as by SIGSTOP.

``unreal`` makes the product's own code fail where it asks this machine for time, chance or sleep;
the SQLite store, which measures how long it waits for locks, is told the virtual time. The worker
core is told one process id and host name, wherever it runs: they are in rows of the spool, and
longer ones fill its pages sooner.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol

MOST_STEPS = 3_000_000
_OWN = {"os.getpid": 1, "socket.gethostname": "simulated"}
"""What the worker core takes for its own; that process exists on every machine."""
GROUP: ContextVar[Group | None] = ContextVar("simulated_process", default=None)


class Stalled(AssertionError):
    """Nothing is ready and nothing will be."""


class Net(Protocol):
    """What stands behind the loop's connections."""

    async def connect(self, sock: Any, address: tuple[str, int]) -> None:
        """Connect, or raise what a system raises."""

    def attach(self, sock: Any, protocol: asyncio.Protocol) -> asyncio.Transport:
        """The transport of a connected socket."""


class Group:
    """A simulated process.

    Args:
        name: for the trace.
    """

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.stopped = False
        self.dead = False
        self.parked: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = copy_context()
        self.context.run(GROUP.set, self)

    def begin(self, story: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task of this process."""
        return self.loop.create_task(story, name=name, context=self.context)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def go_on(self) -> None:
        """SIGCONT: what came meanwhile is there at once."""
        self.stopped = False
        self.loop.resume(self.parked)
        self.parked = []

    def bury(self) -> None:
        """It is dead: its tasks unwind. What they could still reach must be cut off before."""
        self.dead = True
        self.go_on()
        for task in self.tasks:
            task.cancel()


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop.

    Args:
        start_s: what its clock says at first.

    Attributes:
        strays: errors that nobody awaited.
        steps: callbacks that were run.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, start_s: float = 1_000.0) -> None:
        super().__init__()
        self.now_s = start_s
        self.net: Net | None = None
        self.steps = 0
        self.strays: list[str] = []
        self.tasks: list[tuple[asyncio.Task[Any], Group | None]] = []
        self.set_exception_handler(self._stray)
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def resume(self, handles: list[asyncio.Handle]) -> None:
        """Have parked callbacks run."""
        self._ready.extend(handles)

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        """There is one thread."""
        return self.call_soon(*args, **kwargs)

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, story: Any, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(story, loop=loop, context=context)
        group = (context or copy_context()).get(GROUP)
        if group is not None:
            group.tasks.append(task)
            if group.dead:
                task.cancel()
        self.tasks.append((task, group))
        return task

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            while scheduled and scheduled[0]._cancelled:  # type: ignore[attr-defined]
                heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
            if not scheduled:
                raise Stalled("nothing is ready, no timer is set, and the story has not ended")
            self.now_s = max(self.now_s, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self.now_s:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:  # type: ignore[attr-defined]
                continue
            group = handle._context.get(GROUP)  # type: ignore[attr-defined]
            if group is not None and group.stopped:
                group.parked.append(handle)
                continue
            self.steps += 1
            handle._run()  # type: ignore[attr-defined]
        if self.steps > MOST_STEPS:
            raise Stalled(f"more than {MOST_STEPS} steps by {self.now_s:.3f} s: it is a circle")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their time comes."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _stray(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.strays.append(f"{context.get('message')}: {error!r}")

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """By the simulated network."""
        assert self.net is not None
        await self.net.connect(sock, address)

    async def create_connection(self, factory: Any, *args: Any, **options: Any) -> Any:
        """Of a socket that was connected."""
        assert self.net is not None
        assert options["ssl"] is None
        protocol = factory()
        return self.net.attach(options["sock"], protocol), protocol

    async def run_in_executor(self, *args: Any) -> Any:  # type: ignore[override]
        """There is no other thread."""
        raise AssertionError("the worker core asked for a thread")


class Real(AssertionError):
    """The product asked this machine instead of the one it was given."""


_STORE = "mailstrom.storage.sqlite."


def _refuse(loop: VirtualLoop, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if not caller.startswith("mailstrom"):
            return original(*args, **kwargs)
        if name in _OWN:  # the store asks only whether it was forked
            return _OWN[name] if caller.startswith("mailstrom_workers") else original()
        if caller.startswith(_STORE) and name == "time.monotonic":
            return loop.now_s
        if caller.startswith(_STORE) and name == "time.sleep":
            return None
        if caller == f"{_STORE}unchanged" and name == "time.time_ns":
            return 0  # files bear this machine's times: no folder is old enough to be relied on
        raise Real(f"{caller} called {name}: time and chance are the machine's that it is given")

    return asked


@contextmanager
def unreal(loop: VirtualLoop) -> Iterator[None]:
    """No product code reaches this machine's clocks, sleep or random numbers meanwhile."""
    refused: list[tuple[Any, str]] = [
        (time, name)
        for name in (
            "time", "time_ns", "monotonic", "monotonic_ns", "clock_gettime", "clock_gettime_ns",
            "sleep",
        )
    ]  # fmt: skip
    refused += [
        (os, "urandom"),
        (os, "getpid"),
        (socket, "gethostname"),
        (random, "random"),
        (random, "SystemRandom"),
    ]
    kept = [(module, name, getattr(module, name)) for module, name in refused]
    try:
        for module, name, original in kept:
            setattr(module, name, _refuse(loop, f"{module.__name__}.{name}", original))
        yield
    finally:
        for module, name, original in kept:
            setattr(module, name, original)
