"""The message room, loaded at the first ``send()`` and never half.

Why in a thread of its own: a signal handler may interrupt an import and send. In the same thread it
would find the modules half made (ImportError); so another thread imports, and whoever needs the
room, handlers included, waits for that one.

A fork waits for that import, too: the child would inherit the locks of half-made modules, and no
thread that ever frees them. Where it waited in vain the child says so at once.
"""

from __future__ import annotations

import _thread
from types import ModuleType
from typing import Any

from mailstrom.errors import SpoolBusy, SpoolError
from mailstrom.storage.sqlite import forks

_room: ModuleType | None = None


class _Loading:
    """What a fork must know of the import (``forks.Forkable``)."""

    def __init__(self) -> None:
        self.running: set[Any] = set()
        self.lost = False

    def let_go(self) -> None:
        """Nothing: a fork begins when the import has ended, since it runs ``inside()``."""

    def orphaned(self) -> None:
        """In the child of a fork that waited in vain: a running import stays half done for ever."""
        self.lost = bool(self.running)


_loading = _Loading()
forks.watch(_loading)


def loaded() -> bool:
    """Whether the message room is there already, so that nobody waits for it."""
    return _room is not None


def message_room(timeout: float) -> Any:
    """The package ``mailstrom.message``.

    Args:
        timeout: seconds to wait for the import.

    Raises:
        SpoolBusy: the import does not come to an end, since the interrupted code is itself
            importing what the room needs; nothing was written.
        SpoolError: no thread could be started, or this process was forked in the middle of a call.
    """
    if _room is not None:
        return _room
    if _loading.lost:
        raise SpoolError(
            "this process was forked while Mailstrom was loading; nothing was written: send once"
            " before forking, or start it with the multiprocessing method 'spawn'"
        )
    failed: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()
    try:
        _thread.start_new_thread(_load, (done, failed))
    except Exception as error:  # RuntimeError, or MemoryError: the process has its limit
        raise SpoolError(
            f"no thread could be started to load the message room with ({error}); nothing was"
            " written: try again with fewer threads, or raise the limit of processes (ulimit -u)"
        ) from error
    if not done.acquire(timeout=timeout + 5.0):
        raise SpoolBusy("the message room could not be loaded in time; nothing was written")
    if failed:
        raise failed[0]
    return _room


def _load(done: Any, failed: list[BaseException]) -> None:
    global _room
    with forks.inside():  # to the end: a child never finds the room made and its waiter not told
        _loading.running.add(done)
        try:
            import mailstrom.message

            _room = mailstrom.message
        except BaseException as error:  # belongs to the caller
            failed.append(error)
        _loading.running.discard(done)
        done.release()
