"""The message room, loaded at the first ``send()`` and never half.

Why in a thread of its own: a signal handler may interrupt an import and send. In the same thread it
would find the modules half made (ImportError); so another thread imports, and whoever needs the
room, handlers included, waits for that one.
"""

from __future__ import annotations

import _thread
from types import ModuleType
from typing import Any

from mailstrom.errors import SpoolBusy

_room: ModuleType | None = None


def message_room(timeout: float) -> Any:
    """The package ``mailstrom.message``.

    Args:
        timeout: seconds to wait for the import.

    Raises:
        SpoolBusy: the import does not come to an end, since the interrupted code is itself
            importing what the room needs; nothing was written.
    """
    if _room is not None:
        return _room
    failed: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()
    _thread.start_new_thread(_load, (done, failed))
    if not done.acquire(timeout=timeout + 5.0):
        raise SpoolBusy("the message room could not be loaded in time; nothing was written")
    if failed:
        raise failed[0]
    return _room


def _load(done: Any, failed: list[BaseException]) -> None:
    global _room
    try:
        import mailstrom.message

        _room = mailstrom.message
    except BaseException as error:  # belongs to the caller
        failed.append(error)
    done.release()
