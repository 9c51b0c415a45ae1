"""Loopback addresses, free ports and waiting for a condition.

Fake mail hosts are told apart by address in 127.0.0.0/8 on one unprivileged port, as real ones are
on port 25, so a test needs an address that is free on *that* port, or a port that is free on
*several* addresses. Tests run in several processes at once, so each process holds a place of its
own, with addresses and ports that no other one is given; the kernel frees it when the process ends.
The ports lie below those that the kernel gives to whoever binds port 0 or connects, so that between
looking and binding only a program that names this very port could take it. Linux.

``eventually`` waits for a condition with a deadline; it never asserts that something was fast.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cache
from typing import Literal, TypeVar

T = TypeVar("T")

PLACES = 80
FIRST_PORT, PLACE_PORTS = 10240, 256


@cache
def place() -> int:
    """The number, below ``PLACES``, that this process holds until it ends.

    Raises:
        RuntimeError: all are held.
    """
    for tried in range(PLACES):
        number = (os.getpid() + tried) % PLACES
        with socket.socket(socket.AF_UNIX) as name:
            try:
                name.bind(f"\0mailstrom-tests-{number}")  # no file; free when nobody has it open
            except OSError:
                continue
            name.detach()
            return number
    raise RuntimeError(f"{PLACES} processes of tests hold loopback addresses; end some")


def loopback_addresses(count: int = 1) -> list[str]:
    """Return ``count`` loopback addresses that no process has been given before.

    Returns:
        texts such as ``127.83.4.1``; never 127.0.0.x, which other programs use.
    """
    with _TURN:
        return [next(_ADDRESSES) for _ in range(count)]


def _addresses() -> Iterator[str]:
    for number in itertools.cycle(range(254 * 254)):
        yield f"127.{1 + place()}.{number // 254}.{number % 254 + 1}"


def _ports() -> Iterator[int]:
    for number in itertools.cycle(range(PLACE_PORTS)):
        yield FIRST_PORT + place() * PLACE_PORTS + number


_ADDRESSES = _addresses()
_PORTS = _ports()
_TURN = threading.Lock()
"""Engines may be started beside each other by threads of one test."""


def free_port(*addresses: str) -> int:
    """Return a port above 1023 that can be bound on every one of ``addresses``, TCP and UDP.

    Args:
        addresses: IPv4 texts; none means 127.0.0.1.

    Raises:
        RuntimeError: none of this process's ports is free.
    """
    wanted = addresses or ("127.0.0.1",)
    for _ in range(PLACE_PORTS):
        with _TURN:
            port = next(_PORTS)
        if all(_bindable(address, port) for address in wanted):
            return port
    raise RuntimeError(f"no port is free on all of {', '.join(wanted)}; close what listens there")


def _bindable(address: str, port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
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
