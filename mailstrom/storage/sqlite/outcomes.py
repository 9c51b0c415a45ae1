"""What a client may say of a commit that failed, or that the disk did not confirm.

Contract. An error that says "nothing was written" is a promise: the change is not there, and no
crash brings it back. The log's index gets its new end last, so a commit that SQLite calls failed is
seen by nobody; but its frames may lie whole behind the end, and whoever recovers the log finds
them: the next one after a crash, or the first to open a spool that nobody has open. So something
else is committed in their place first, durably (``take_its_place``); where even that fails the
outcome is unknown, and the error is ``OutcomeUnknown``. The same holds for every verb that writes:
``enqueue`` (which asks by id what is there, on a new connection), ``change``, ``recent`` and
``adopt`` (on the one that failed). Where SQLite itself found no room (SQLITE_FULL) the end of that
commit is missing for sure; an I/O error may come after it, as where the log's index cannot grow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import apsw

from mailstrom.errors import OutcomeUnknown, SpoolError, SpoolFull
from mailstrom.storage.sqlite.sql import run


def may_come_back(error: SpoolError) -> bool:
    """Whether the frames of a commit that failed so may lie whole in the log.

    Not where it was refused before it wrote (busy, read-only, damaged).
    """
    return type(error) in (SpoolError, SpoolFull)


def take_its_place(
    connection: apsw.Connection, error: SpoolError, sync: Callable[[], None]
) -> None:
    """Commit something else, durably, where the frames of the failed commit may lie.

    Raises:
        apsw.Error, SpoolError: it could not be done; the failed commit may come back.
    """
    values = {"key": "commit_failed", "value": f"{time.time_ns()} {os.getpid()}"}
    try:
        run(connection, "meta_set", values)
    except apsw.Error:
        if isinstance(error.__cause__, apsw.FullError):
            return
        raise
    sync()


def unknown(path: str, error: SpoolError, trouble: Exception, key: str) -> OutcomeUnknown:
    """The error where a commit failed and nobody can see to it now.

    Args:
        error: of the commit.
        trouble: of the attempt to look, or to take its place.
        key: the id to ask for; empty where it is no message's.
    """
    return OutcomeUnknown(
        f"{path}: a commit failed ({error}) and the spool cannot be looked after now ({trouble});"
        f" {_ask(key)} later",
        key=key,
    )


def unconfirmed(path: str, error: Exception, done: str, key: str) -> OutcomeUnknown:
    """The error where a commit took place and its sync failed.

    Args:
        done: what was committed, as a sentence.
        key: as in ``unknown``.
    """
    return OutcomeUnknown(
        f"{path}: {done}, but the disk did not confirm it ({error});"
        f" {_ask(key)} once the spool works again",
        key=key,
    )


def half_way(path: str, change: str, changed: int, error: Exception, key: str) -> OutcomeUnknown:
    """The error where a change of many recipients did some of them, durably, and then failed.

    Args:
        changed: how many recipients were changed.
        error: what the rest failed with; of that rest nothing may have been written.
        key: as in ``unknown``.
    """
    return OutcomeUnknown(
        f"{path}: {change}: {changed} recipients were changed, and then it failed for the others"
        f" ({error}); the same call made again does the rest",
        key=key,
    )


def overwritten(error: Exception, key: str) -> OutcomeUnknown:
    """The error where others who share no lock with us may have written over a commit."""
    return OutcomeUnknown(f"{error}; {_ask(key)}", key=key)


def _ask(key: str) -> str:
    return f"ask status({key!r})" if key else "repeat it"
