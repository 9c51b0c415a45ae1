"""The domains of one session's recipients, where the server takes only so many (RFC 9422, 4.3).

RCPTDOMAINMAX counts over all transactions of a session: such a server may bind itself to one way of
delivery at the first RCPT, and refuses what belongs to another. What was begun counts to the end of
the session; what is opened ahead of the wire counts as long as it is.

Must not know: the order of what waits, what becomes of what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable

from mailstrom.storage.base import Claimed


class SessionDomains:
    """Which domains one session may be given.

    Args:
        most: so many different ones; 0: any number.
    """

    __slots__ = ("_begun", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._begun: set[str] = set()

    def begin(self, rows: Iterable[Claimed]) -> None:
        """They go on the wire."""
        if self.most:
            self._begun.update(row.domain for row in rows)

    def taken(self, opened: Iterable[Claimed]) -> set[str]:
        """The domains that it has, with those of what is opened for it."""
        return self._begun.union(row.domain for row in opened)

    def suiting(self, rows: Iterable[Claimed], taken: set[str]) -> set[str]:
        """Of their domains those that it may be given; empty where none is.

        Args:
            taken: see there.
        """
        own = dict.fromkeys(row.domain for row in rows)
        suiting = {domain for domain in own if domain in taken}
        free = max(self.most - len(taken), 0)
        suiting.update([domain for domain in own if domain not in taken][:free])
        return suiting
