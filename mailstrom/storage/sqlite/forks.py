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
that a signal handler could find taken by the code it interrupted; and what a handler raises at any
bytecode leaves nobody inside for ever: entries are made and taken away in one step each.

A call that finds its connection closed by a fork, and knows how to go on, stands in ``yielding``
instead: other threads' forks wait for it, one by a signal handler that interrupted it does not mind
it. What it works with is closed before the fork as if it were idle.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
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


yielding: dict[object, int] = {}
"""Calls that can do without their connection, by a token of their own -> thread."""

_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_inside: dict[object, int] = {}  # token of a call -> thread
_forking: set[int] = set()
_in_use = False


def watch(keeper: Forkable) -> None:
    """Have ``keeper`` let go of its connections before each fork of this process."""
    _watched.add(keeper)


def wanted() -> bool:
    """Whether somebody waits to fork: whoever is inside for long comes to an end, if it can."""
    return bool(_forking)


def keep() -> None:
    """Said in ``let_go`` of a connection that could not be closed: the child is an orphan."""
    global _in_use
    _in_use = True


class inside:
    """Around every use of a connection: no other thread forks meanwhile."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token = object()

    def __enter__(self) -> None:
        me, token = get_ident(), self._token
        while True:
            # Enter first, look second; the forking thread says so first and looks second. Whatever
            # the interleaving, one of the two sees the other.
            _inside[token] = me
            if not _forking or me in _forking or _deeper(me):
                return
            _inside.pop(token, None)
            time.sleep(_LOOK_S)

    def __exit__(self, *_: object) -> None:
        _inside.pop(self._token, None)

    def __del__(self, leave: Callable[[object, None], object] = _inside.pop) -> None:
        # Where a signal handler raised in the midst of entering or leaving.
        leave(self._token, None)


def _deeper(me: int) -> bool:
    """Whether this thread was inside before: then who forks waits for it, and it cannot wait."""
    return list(_inside.values()).count(me) > 1 or me in yielding.values()


def _before() -> None:
    global _in_use
    me = get_ident()
    _forking.add(me)
    deadline = time.monotonic() + LONGEST_WAIT_S
    while _others(me) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    # Our own thread may be inside, too: a signal handler that forks in the middle of a read.
    _in_use = bool(_inside) or _others(me)
    for keeper in list(_watched):
        keeper.let_go()


def _others(me: int) -> bool:
    """Whether another thread uses a connection."""
    return any(thread != me for thread in (*_inside.values(), *yielding.values()))


def _after_in_parent() -> None:
    _forking.discard(get_ident())


def _after_in_child() -> None:
    global _in_use
    me = get_ident()
    _forking.clear()
    for calls in (_inside, yielding):
        for token, thread in list(calls.items()):
            if thread != me:
                del calls[token]
    if _in_use:
        for keeper in list(_watched):
            keeper.orphaned()
    _in_use = False


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
