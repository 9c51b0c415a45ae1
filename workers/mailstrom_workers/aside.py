"""What met damage in the spool (``SpoolCorrupt``), put aside to be tried again.

Contract. Damage is often in one place: a request that meets it waits here, and is tried again each
``ASIDE_S``, while the others have their turn; it is said, and not at each try. In a drain all of it
is tried at once, a last time: who serves it tells whoever asked. Must not know: the store.
"""

from __future__ import annotations

from collections.abc import Callable

from mailstrom.errors import SpoolCorrupt
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.dbrequest import Request

ASIDE_S = 1.0
"""What met damage is tried again after this time."""


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
        """Have it tried again later, and what is here already, too."""
        self._requests.append(request)
        self._until = self._monotonic() + ASIDE_S

    def wait_s(self) -> float | None:
        """At most so long nobody looks whether it is due; None: there is nothing."""
        return ASIDE_S if self._requests else None

    def due(self) -> bool:
        """Whether there is something to be tried again by now."""
        return bool(self._requests) and self._monotonic() >= self._until

    def take(self) -> list[Request]:
        """All of it; nothing is left here."""
        taken, self._requests = self._requests, []
        return taken
