"""Forking with SQLite open: every connection is closed before the fork and opened again after it.

Why not simply leave the parent's connections alone in the child: SQLite keeps the state of POSIX
locks per process and file, and a child inherits that state without the locks. A connection that
the child opens beside an inherited one then relies on locks that nobody holds (the -shm file's
included, so that another process may reset it under the child's feet), and where the parent was
inside a transaction the child is refused for ever. Both were reproduced with /proc/locks.

So a fork waits until no other thread is inside SQLite, closes every idle connection of this process
and goes on; parent and child open theirs again when they need them. Programs started by
``subprocess`` run none of this.

Contract: whoever calls SQLite does it within ``inside()``, short but for SQLite's own bounded
waits; whoever keeps connections implements ``Forkable`` and calls ``watch``. The client's import of
the message room runs inside, too: a child must not inherit it half done. Nothing here takes a lock
that a signal handler could find taken by the code it interrupted.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Protocol

LONGEST_WAIT_S = 30.0
"""A fork waits no longer for other threads than any busy timeout in use lets them stay inside."""
_LOOK_S = 0.0005


class Forkable(Protocol):
    """Something that keeps connections."""

    def let_go(self) -> None:
        """Close every connection that is not in use right now; they are opened again on demand."""
        ...

    def orphaned(self) -> None:
        """In the child of a fork that found connections in use: never touch them, nor the file."""
        ...


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_inside: dict[int, int] = {}  # thread -> depth; each thread writes its own entry only
_forking: set[int] = set()
_in_use = False


def watch(keeper: Forkable) -> None:
    """Have ``keeper`` let go of its connections before each fork of this process."""
    _watched.add(keeper)


def wanted() -> bool:
    """Whether somebody waits to fork: whoever is inside for long comes to an end, if it can."""
    return bool(_forking)


@contextmanager
def inside() -> Iterator[None]:
    """Around every use of a connection: no other thread forks meanwhile."""
    me = get_ident()
    while True:
        # Enter first, look second; the forking thread says so first and looks second. Whatever
        # the interleaving, one of the two sees the other.
        _inside[me] = _inside.get(me, 0) + 1
        if not _forking or me in _forking or _inside[me] > 1:
            break
        _leave(me)
        time.sleep(_LOOK_S)
    try:
        yield
    finally:
        _leave(me)


def _leave(me: int) -> None:
    depth = _inside[me] - 1
    if depth:
        _inside[me] = depth
    else:
        del _inside[me]


def _before() -> None:
    global _in_use
    me = get_ident()
    _forking.add(me)
    deadline = time.monotonic() + LONGEST_WAIT_S
    while any(thread != me for thread in list(_inside)) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    # Our own thread may be inside, too: a signal handler that forks in the middle of a read.
    _in_use = bool(_inside)
    for keeper in list(_watched):
        keeper.let_go()


def _after_in_parent() -> None:
    _forking.discard(get_ident())


def _after_in_child() -> None:
    global _in_use
    me = get_ident()
    _forking.clear()
    for thread in list(_inside):
        if thread != me:
            del _inside[thread]
    if _in_use:
        for keeper in list(_watched):
            keeper.orphaned()
    _in_use = False


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
