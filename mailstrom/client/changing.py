"""Changing: verbs by which a person steps in, and those about the spool as a whole.

What each change does, and to which recipients, is told by ``mailstrom.types.Change``. What is on
the wire right now is never touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Unpack

from mailstrom.client import arguments, selecting
from mailstrom.client.asking import Asking
from mailstrom.clock import wall_ms
from mailstrom.storage.client import Selection, Target
from mailstrom.types import Change
from mailstrom.value import replace

if TYPE_CHECKING:
    from mailstrom.client.choosing import Chosen

PAGE = 500
"""Recipients of one transaction."""
PAUSE_S = 0.002
"""Between two transactions, so that whoever waits for the lock gets it."""

_OUTCOMES = {
    "delivered": Change.RESOLVE_DELIVERED,
    "retry": Change.RESOLVE_RETRY,
    "failed": Change.RESOLVE_FAILED,
}


class Changing(Asking):
    """The verbs that change what waits."""

    def cancel(self, id: str, *, recipient: str | None = None) -> int:
        """Cancel recipients that are neither final nor on the wire.

        Args:
            recipient: only this address.

        Returns:
            How many were cancelled.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: ``recipient`` is no address.
        """
        return self._change(Change.CANCEL, id, recipient)

    def hold(self, id: str, *, recipient: str | None = None) -> int:
        """Keep queued and deferred recipients back until ``release()``.

        Held mail still expires.

        Args:
            recipient: only this address.

        Returns:
            How many are held now and were not.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: ``recipient`` is no address.
        """
        return self._change(Change.HOLD, id, recipient)

    def release(self, id: str, *, recipient: str | None = None) -> int:
        """Let held recipients go, not before their ``send_at``.

        Those that are held because they may have been delivered need a decision: ``resolve()``.

        Args:
            recipient: only this address.

        Returns:
            How many were released.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: ``recipient`` is no address.
        """
        return self._change(Change.RELEASE, id, recipient)

    def retry(self, id: str, *, recipient: str | None = None) -> int:
        """Make waiting recipients due now, not before their ``send_at``; reopen failed ones.

        A message with a reopened recipient lives for another day at least.

        Args:
            recipient: only this address.

        Returns:
            How many changed.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: ``recipient`` is no address.
        """
        return self._change(Change.RETRY, id, recipient)

    def resolve(self, id: str, outcome: str, *, recipient: str | None = None) -> int:
        """Decide recipients held with the reason ``in_doubt``: nobody can know but a person.

        Args:
            outcome: ``delivered`` (they have it), ``retry`` (send it again) or ``failed``.
            recipient: only this address.

        Returns:
            How many were decided.

        Raises:
            MessageNotFound: no such id here.
            InvalidAddress: ``recipient`` is no address.
            ValueError: another word.
        """
        return self._change(resolving(outcome), id, recipient)

    def _change(self, change: Change, id: str, recipient: str | None) -> int:
        target = self._target(id, recipient)
        changed = self._changed(change, [target], id) if id.isascii() else 0
        if changed == 0:
            self.status(id)  # raises where there is no such message
        return changed

    def _target(self, id: str, recipient: str | None) -> Target:
        """What a verb for one message means; no store has an id that is not ASCII."""
        arguments.text("id", id)
        if recipient is None:
            return Target(id)
        return Target(id, selecting.address_key("recipient", recipient, self._timeout))

    def _changed(self, change: Change, targets: list[Target], key: str) -> int:
        return self._committer.call(self._changing(change, targets), key)

    def _changing(self, change: Change, targets: list[Target]) -> Callable[[], int]:
        return lambda: self._store.change(change, targets, wall_ms())

    def change_all(
        self,
        change: str,
        *,
        dry_run: bool = False,
        everything: bool = False,
        ids: str | Iterable[str] | None = None,
        status: str | Iterable[str] | None = None,
        reason: str | Iterable[str] | None = None,
        recipient: str | Iterable[str] | None = None,
        domain: str | Iterable[str] | None = None,
        sender: str | Iterable[str] | None = None,
        tag: str | Iterable[str] | None = None,
        stream: str | Iterable[str] | None = None,
        since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None,
    ) -> int:
        """Change all recipients that the filters of ``find()`` mean, in short transactions.

        Unlike there, only the recipients that match themselves are meant, not others of the same
        message. What begins to match while it runs may be left out. An empty list matches nothing.

        Args:
            change: a word of ``Change``: ``cancel``, ``hold``, ``release``, ``retry``,
                ``resolve-delivered``, ``resolve-retry`` or ``resolve-failed``.
            dry_run: change nothing, only count.
            everything: required where no filter is given.
            ids: message ids; unknown ones are passed over.
            status, reason, recipient, domain, sender, tag, stream, since, until: as in ``find()``.

        Returns:
            How many changed, or would.

        Raises:
            ValueError: an unknown word, no filter, or a filter beside ``everything``.
            InvalidAddress: ``recipient``, ``domain`` or ``sender`` is none.
            SpoolError: or OutcomeUnknown; ``.changed`` tells how many were changed before.
        """
        only_count = arguments.flag("dry_run", dry_run)
        filters: selecting.Filters = {
            "status": status, "reason": reason, "recipient": recipient, "domain": domain,
            "sender": sender, "tag": tag, "stream": stream, "since": since, "until": until,
        }  # fmt: skip
        word, parts = self._meant(change, everything, ids, filters)
        pages = (page for part in parts for page in self._pages(part, word))
        return sum(map(len, pages)) if only_count else self._change_pages(word, pages)

    def _chosen(
        self,
        change: str,
        *,
        shown: int = 0,
        everything: bool = False,
        ids: Iterable[str] | None = None,
        **filters: Unpack[selecting.Filters],
    ) -> Chosen:
        """What ``change_all()`` would change now, to be shown first and then changed."""
        from mailstrom.client.choosing import Chosen  # an application never asks anybody

        return Chosen(self, *self._meant(change, everything, ids, filters), shown)

    def _meant(
        self, change: str, everything: bool, ids: object, filters: selecting.Filters
    ) -> tuple[Change, list[Selection]]:
        """A bulk change and what it goes over, in pieces."""
        arguments.text("change", change)
        arguments.known("change", change, tuple(Change))
        wanted = None
        if ids is not None:
            wanted = (ids,) if isinstance(ids, str) else arguments.texts("ids", ids)
        restricted = wanted is not None or any(value is not None for value in filters.values())
        if restricted == arguments.flag("everything", everything):
            raise ValueError(
                "change_all: everything=True goes without filters"
                if restricted
                else "change_all: no filter is given; say everything=True to change all recipients"
            )
        meant = selecting.selection(filters, wall_ms(), self._timeout)
        return Change(change), list(_parts(meant, wanted))

    def _change_pages(self, change: Change, pages: Iterable[list[Target]]) -> int:
        count = 0
        try:
            for page in pages:
                if count:
                    time.sleep(PAUSE_S)
                count += self._changed(change, page, page[0].id)
        except BaseException as error:
            error.changed = count  # type: ignore[attr-defined]
            raise
        return count

    def _pages(self, selection: Selection, change: Change) -> Iterable[list[Target]]:
        after = 0
        while True:
            page = self._store.targets(selection, wall_ms(), change=change, limit=PAGE, after=after)
            if page:
                yield page
                after = page[-1].place
            if len(page) < PAGE:
                return

    # --- the spool --------------------------------------------------------------------------

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the spool, consistent, while it is in use.

        The copy is marked: an engine leaves what waits in it alone until ``adopt()``, since the
        original may deliver it, too.

        Args:
            target: path of a file that does not exist yet.

        A fork of this process does not wait for it: the copy begins anew, up to ten times.

        Raises:
            SpoolBusy: this process forked so often that no copy could be finished.
            SpoolError: it exists, or cannot be written; nothing is left of it.
        """
        self._store.backup(os.path.abspath(arguments.path("target", target)), wall_ms())

    def adopt(self) -> bool:
        """Let an engine deliver what waits in this copy of a spool (see ``backup()``).

        Be sure that the original delivers no more: what it delivered after the copy was made would
        be delivered again. What lay in the copy expires later by the time it lay there.

        Returns:
            Whether it was a copy.
        """
        return self._committer.call(self._adopting())

    def _adopting(self) -> Callable[[], bool]:
        return lambda: self._store.adopt(wall_ms())


def resolving(outcome: str) -> Change:
    """The change that a word of ``resolve()`` stands for.

    Raises:
        ValueError: another word.
    """
    arguments.text("outcome", outcome)
    arguments.known("outcome", outcome, _OUTCOMES)
    return _OUTCOMES[outcome]


def _parts(meant: Selection | None, ids: tuple[str, ...] | None) -> Iterable[Selection]:
    """The selection, cut into pieces of its ids."""
    if meant is None:
        return
    if ids is None:
        yield meant
        return
    known = [id for id in ids if id.isascii()]
    for start in range(0, len(known), PAGE):
        yield replace(meant, ids=tuple(known[start : start + PAGE]))
