"""How many connections a worker may open more, and to whom; whose wait is cut short for others.

A connection has a place (``max_connections`` of them) while it works: it finishes something, or
takes a block of content, at least every ``QUIET_S``. One whose host has kept it waiting for longer
is *quiet*: it costs a descriptor and some memory, and there may be many of them, up to the *room*.
So hosts that hang, at whatever stage, do not keep others from their mail, as long as the worker may
hold more content than what they keep: where it may not, what can be read again is put down.

Of the room a quarter is for sites that took mail last time; so is a quarter of the places, while
half as many connections as there are places are quiet. Where the room is used up, a host that was
waited for ``STRESS_S`` and let no mail begin is waited for no longer: nothing was sent, so nobody
is charged, and its site rests as one that timed out.

Must not know: the store, sockets, why somebody waits.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

QUIET_S = 0.5
"""Where a host let nothing end for so long its connection takes no place; far hosts need less."""
STRESS_S = 10.0
"""How long a host is waited for before the first MAIL where others need the room (Postfix has the
same)."""
WIDTH = 15
"""How many connections there may be, the quiet ones included, for each place."""
KEPT = 4
"""One of so many is kept for sites that took mail last time."""
OWN_FILES = 32
"""Descriptors for all that is no connection: spool, log, pipes, the loop."""
MOST_LOOKUPS = 1024
LOOKUP_FILES = 4
"""Descriptors for each domain that is looked up: it is asked about by two questions at once, and as
many are asked about hosts. Of all that are no use of our own, half at most are for lookups."""
_UNLIMITED = 1 << 20


class Waiting(Protocol):
    """A lane as seen here.

    Attributes:
        parted: it says goodbye to its server.
        unproven: nobody has seen its site take mail, or the last one that tried did not.
        opening: whether it has no session yet, and waits for a host to let it have one.
    """

    parted: bool

    @property
    def unproven(self) -> bool: ...  # noqa: D102

    @property
    def opening(self) -> bool: ...  # noqa: D102

    def waited_s(self, now_s: float) -> float:
        """How long its host has let nothing end."""

    def put_down(self) -> None:
        """Hold no content for its host; what is being written is held all the same."""


_Lane = TypeVar("_Lane", bound=Waiting)


class Bounds(NamedTuple):
    """What one worker may have at once.

    Attributes:
        places: connections that work.
        room: connections in all.
        lookups: domains that are looked up.
    """

    places: int
    room: int
    lookups: int


def bounds(places: int, files: int | None = None) -> Bounds:
    """The bounds of a worker.

    Args:
        places: connections that may work at a time.
        files: descriptors that the process may have; None: what the system says now.
    """
    if files is None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = max(files - OWN_FILES, 4) if files != resource.RLIM_INFINITY else _UNLIMITED
    for_lookups = min(free // 2, MOST_LOOKUPS * LOOKUP_FILES)
    room = min(places * WIDTH, free - for_lookups)
    return Bounds(min(places, room), room, max(for_lookups // LOOKUP_FILES, 1))


class Free(NamedTuple):
    """Lanes that may be leased now.

    Attributes:
        anywhere: at any site.
        proven: at sites that took mail last time.
        full: what is lacking is room, not places: to wait for hosts to fall quiet does not help.
    """

    anywhere: int
    proven: int
    full: bool

    def less(self, leased: int) -> Free:
        """What is left when some of them were leased."""
        left = max(self.anywhere - leased, 0), max(self.proven - leased, 0)
        return Free(*left, full=self.full)


def free(lanes: Iterable[Waiting], bounds: Bounds, now_s: float, *, laden: bool = False) -> Free:
    """How many lanes may be leased beside these.

    Args:
        laden: as much content is held as may be. Who waits in a session may hold some of it, and
            takes a place again; who waits for one holds none.
    """
    places, room, _ = bounds
    total = working = quiet = unproven = unproven_working = 0
    for lane in lanes:
        total += 1
        if lane.parted:
            continue  # it holds no other up, but not without limit
        waits = lane.waited_s(now_s) >= QUIET_S
        works = not waits or (laden and not lane.opening)
        working += works
        quiet += waits
        if lane.unproven:
            unproven += 1
            unproven_working += works
    proven = max(min(places - working, room - total), 0)
    anywhere = min(proven, room - room // KEPT - unproven)
    if quiet >= max(places // 2, 1):
        anywhere = min(anywhere, places - places // KEPT - unproven_working)
    full = room - total <= 0 or room - room // KEPT - unproven <= 0
    return Free(max(anywhere, 0), proven, full)


def lighten(lanes: Iterable[Waiting], now_s: float) -> None:
    """As much content is held as may be: whose host lets it wait in a session holds none."""
    for lane in lanes:
        if not lane.opening and lane.waited_s(now_s) >= QUIET_S:
            lane.put_down()


def longest(lanes: Iterable[_Lane], most: int, now_s: float) -> list[_Lane]:
    """Those to be waited for no longer, at most so many: the longest first."""
    if most < 1:
        return []
    waits = [
        (waited, number, lane)
        for number, lane in enumerate(lanes)
        if lane.opening and (waited := lane.waited_s(now_s)) >= STRESS_S
    ]
    waits.sort(key=lambda one: (-one[0], one[1]))
    return [lane for _, _, lane in waits[:most]]
