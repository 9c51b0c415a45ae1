"""Rooms that a client loads when it first needs them, and never half: the message room, the engine.

Why in a thread of its own: a signal handler may interrupt an import, and send, or raise (^C). In
the same thread it would find the modules half made, or leave them so; so another thread imports,
and whoever needs the room, handlers included, waits for that one.

A fork waits for that import, too: the child would inherit the locks of half-made modules, and no
thread that ever frees them. Where it waited in vain the child says so at once.
"""

from __future__ import annotations

import _thread
from importlib import import_module
from types import ModuleType
from typing import Any

from mailstrom.errors import SpoolBusy, SpoolError
from mailstrom.storage.sqlite import forks

MESSAGE = "mailstrom.message"
GRACE_S = 5.0
"""How much longer than a call's timeout its first import may take."""

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
        SpoolBusy, SpoolError: as ``load`` does; nothing was written.
    """
    global _room
    if _room is None:
        _room = load(MESSAGE, timeout)
    return _room


def load(name: str, timeout: float) -> ModuleType:
    """A module, imported on a thread of its own; quick where it was imported before.

    Args:
        name: the module's full name.
        timeout: seconds to wait for the import.

    Raises:
        SpoolBusy: the import does not come to an end, since the interrupted code is itself
            importing what the room needs; nothing was written.
        SpoolError: no thread could be started, or this process was forked in the middle of a call.
    """
    if _loading.lost:
        raise SpoolError(
            "this process was forked while Mailstrom was loading; nothing was written: send once"
            " before forking, or start it with the multiprocessing method 'spawn'"
        )
    found: list[ModuleType] = []
    failed: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()
    try:
        _thread.start_new_thread(_load, (name, done, found, failed))
    except Exception as error:  # RuntimeError, or MemoryError: the process has its limit
        raise SpoolError(
            f"no thread could be started to load {name} with ({error}); nothing was"
            " written: try again with fewer threads, or raise the limit of processes (ulimit -u)"
        ) from error
    if not done.acquire(timeout=timeout + GRACE_S):
        raise SpoolBusy(f"{name} could not be loaded in time; nothing was written")
    if failed and isinstance(failed[0], OSError):
        cause = failed[0]
        raise SpoolError(
            f"{cause.filename or name}: Mailstrom cannot be loaded ({cause.strerror}); nothing was"
            " written: where files are meant, close some or raise their limit (ulimit -n)"
        ) from cause
    if failed:
        raise failed[0]
    return found[0]


def _load(name: str, done: Any, found: list[ModuleType], failed: list[BaseException]) -> None:
    global _room
    with forks.inside():  # to the end: a child never finds the room made and its waiter not told
        _loading.running.add(done)
        try:
            found.append(import_module(name))
            if name == MESSAGE:
                _room = found[0]
        except BaseException as error:  # belongs to the caller
            failed.append(error)
        _loading.running.discard(done)
        done.release()
