"""How much one client may take of a listener: connections at once, messages a minute.

A client is an address, of IPv6 the network of 64 bits that one owner has; or a user who logged in.
Counts are one process's. What is remembered is bounded, whoever knocks.

Must not know: SMTP, clocks (the time comes in).
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address

MINUTE_S = 60.0
MOST_KNOWN = 10_000
"""Clients whose pace is remembered; those that have waited longest are forgotten for it."""


@lru_cache(maxsize=1024)
def client_of(address: str) -> str:
    """The client whom an address belongs to; what is no address is itself."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return address


class Connections:
    """Open connections by client."""

    def __init__(self) -> None:
        self.all = 0
        self._of: dict[str, int] = {}

    def of(self, client: str) -> int:
        """How many a client has."""
        return self._of.get(client, 0)

    def add(self, client: str) -> None:
        """One begins."""
        self.all += 1
        self._of[client] = self._of.get(client, 0) + 1

    def remove(self, client: str) -> None:
        """One that was added is over."""
        self.all -= 1
        left = self._of[client] - 1
        if left:
            self._of[client] = left
        else:
            del self._of[client]


class Pace:
    """Messages a minute, by client: so many at once, then one whenever its share has passed."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[float, float]] = {}  # messages, and when that was so

    def take(self, client: str, most: int, now_s: float) -> bool:
        """Count a message if the client has room for it.

        Args:
            most: messages a minute; 0 is no limit.
        """
        if not most:
            return True
        used, then_s = self._used.pop(client, (0.0, now_s))
        used = max(0.0, used - (now_s - then_s) * most / MINUTE_S)
        fits = used + 1 <= most
        self._used[client] = (used + fits, now_s)
        while len(self._used) > MOST_KNOWN:
            del self._used[next(iter(self._used))]
        return fits
