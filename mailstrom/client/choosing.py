"""Recipients chosen for a bulk change at one moment, and changed at a later one.

Whoever confirms a change has seen a number. So those that were counted are kept, by their places in
the spool's order (eight bytes each), and only they are changed: neither what was accepted since nor
what came into a state that the change touches (it was on the wire, and is deferred now). A clock
plays no part in that.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mailstrom.storage.client import Selection, Target
from mailstrom.types import Change

if TYPE_CHECKING:
    from mailstrom.client.changing import Changing


class Chosen:
    """What a change would touch right now.

    Args:
        client: whose spool it is; it walks and changes.
        parts: selections that have no message in common.
        shown: how many to keep whole.

    Attributes:
        count: recipients.
        first: the first of them.
        others: how many would have been touched by ``apply()`` too and were not: nobody saw them.
    """

    def __init__(
        self, client: Changing, change: Change, parts: Sequence[Selection], shown: int
    ) -> None:
        self._client = client
        self._change = change
        self._parts = [(part, array("q")) for part in parts]
        self.first: list[Target] = []
        self.others = 0
        for part, places in self._parts:
            for page in client._pages(part, change):
                places.extend(target.place for target in page)
                self.first += page[: shown - len(self.first)]
        self.count = sum(len(places) for _, places in self._parts)

    def apply(self) -> int:
        """Change them, in short transactions; what ended meanwhile is left as it is.

        Returns:
            How many changed.

        Raises:
            SpoolError: or OutcomeUnknown; ``.changed`` tells how many were changed before.
        """
        return self._client._change_pages(self._change, self._kept())

    def _kept(self) -> Iterator[list[Target]]:
        for part, places in self._parts:
            for page in self._client._pages(part, self._change):
                kept = [target for target in page if _holds(places, target.place)]
                self.others += len(page) - len(kept)
                if kept:
                    yield kept


def _holds(places: array[int], place: int) -> bool:
    found = bisect_left(places, place)
    return found < len(places) and places[found] == place
