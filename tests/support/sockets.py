"""Loopback addresses, free ports and waiting for a condition.

Fake mail hosts are told apart by address in 127.0.0.0/8 on one unprivileged port, as real ones are
on port 25, so a test needs an address that is free on *that* port, or a port that is free on
*several* addresses. A port counts as free when it can be bound; the probe is closed again, so a
foreign process may still take it: bind port 0 where the server under test can say its port.

``eventually`` waits for a condition with a deadline; it never asserts that something was fast.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal, TypeVar

T = TypeVar("T")


def loopback_addresses(count: int = 1) -> list[str]:
    """Return ``count`` loopback addresses that this process has not handed out before.

    Returns:
        texts such as ``127.83.4.1``; never 127.0.0.x, which other programs use.
    """
    return [next(_ADDRESSES) for _ in range(count)]


def _addresses() -> Iterator[str]:
    second = 1 + os.getpid() % 254
    for number in itertools.cycle(range(254 * 254)):
        yield f"127.{second}.{number // 254}.{number % 254 + 1}"


_ADDRESSES = _addresses()


def free_port(*addresses: str) -> int:
    """Return a TCP port above 1023 that can be bound on every one of ``addresses``.

    Args:
        addresses: IPv4 texts; none means 127.0.0.1.

    Raises:
        RuntimeError: no such port after 64 tries.
    """
    wanted = addresses or ("127.0.0.1",)
    for _ in range(64):
        with socket.socket() as first:
            first.bind((wanted[0], 0))
            port = int(first.getsockname()[1])
            if all(_bindable(address, port) for address in wanted[1:]):
                return port
    raise RuntimeError(f"no port is free on all of {', '.join(wanted)}; close what listens there")


def _bindable(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def eventually(
    probe: Callable[[], T | Literal[False] | None],
    timeout: float = 30.0,
    *,
    what: str = "the condition",
    interval: float = 0.01,
) -> T:
    """Call ``probe`` until it returns something true and return that.

    Args:
        probe: cheap, without side effects; None and False mean "not yet".
        timeout: seconds after which waiting is given up; generous, as machines differ.
        what: named in the error.
        interval: seconds between two calls.

    Raises:
        AssertionError: the time is over.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} did not come true within {timeout:g} s")
        time.sleep(interval)


async def eventually_async(
    probe: Callable[[], Awaitable[T | Literal[False] | None] | T | Literal[False] | None],
    timeout: float = 30.0,
    *,
    what: str = "the condition",
    interval: float = 0.005,
) -> T:
    """Do as :func:`eventually` inside a running loop; ``probe`` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        value = await found if isinstance(found, Awaitable) else found
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} did not come true within {timeout:g} s")
        await asyncio.sleep(interval)


def accepts(address: str, port: int) -> bool:
    """Whether a TCP connection to ``address``:``port`` succeeds now."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0


def wait_listening(servers: Sequence[tuple[str, int]], timeout: float = 30.0) -> None:
    """Wait until every (address, port) accepts connections.

    Raises:
        AssertionError: one still refuses after ``timeout`` seconds.
    """
    for address, port in servers:
        eventually(
            lambda address=address, port=port: accepts(address, port),  # type: ignore[misc]
            timeout,
            what=f"{address}:{port} listening",
        )
