"""What a worker asks the machine it runs on: clocks, chance, its boot, its own address.

One value, handed down from where a worker begins; nothing else in the worker core looks at a clock
or draws a number. Waiting is the event loop's, and so are its connections.
"""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from mailstrom import clock


def local_address(address: str, port: int) -> str:
    """Our own end of a connection to an address; asks the routing table, sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"  # no route, or no descriptor: the connection will say so


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine, as a worker sees it.

    Args:
        wall_ms: milliseconds since the epoch, UTC.
        monotonic_ms: milliseconds since boot.
        boot_id: a name for this boot; empty where nobody knows.
        random: numbers from 0 to below 1.
        token: so many random bytes, in hex digits.
        own_address: our own end of a connection to an address and port.
    """

    wall_ms: Callable[[], int] = clock.wall_ms
    monotonic_ms: Callable[[], int] = clock.monotonic_ms
    boot_id: Callable[[], str] = clock.boot_id
    random: Callable[[], float] = random.random
    token: Callable[[int], str] = secrets.token_hex
    own_address: Callable[[str, int], str] = local_address


THIS = Machine()
"""The one that this process runs on."""
