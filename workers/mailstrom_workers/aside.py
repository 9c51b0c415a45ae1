"""What met damage in the spool (``SpoolCorrupt``), put aside to be tried again.

Contract. Damage is often in one place: a request that meets it waits here while the others have
their turn. All that is here is tried again ``ASIDE_S`` after the first of it came, whoever else
came since: one that comes puts nobody off. It is said, and not at each try. In a drain who serves
it takes all of it at once, for a last try, and tells whoever asked. Must not know: the store.
"""

from __future__ import annotations

from collections.abc import Callable

from mailstrom.errors import SpoolCorrupt
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.dbrequest import Request

ASIDE_S = 1.0
"""What met damage is tried again after this time, at the latest."""


class Aside:
    """Requests that met damage.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._requests: list[Request] = []
        self._until = 0.0
        self._damage = Complaint("store", monotonic)

    def say(self, error: SpoolCorrupt) -> None:
        """Somebody met damage."""
        self._damage.say(str(error))

    def put(self, request: Request) -> None:
        """Have it tried again later, with what is here already: that waits no longer for it."""
        if not self._requests:
            self._until = self._monotonic() + ASIDE_S
        self._requests.append(request)

    def wait_s(self) -> float | None:
        """What is left until it is due; None: there is nothing."""
        return max(0.0, self._until - self._monotonic()) if self._requests else None

    def due(self) -> bool:
        """Whether there is something to be tried again by now."""
        return bool(self._requests) and self._monotonic() >= self._until

    def take(self) -> list[Request]:
        """All of it; nothing is left here."""
        taken, self._requests = self._requests, []
        return taken
