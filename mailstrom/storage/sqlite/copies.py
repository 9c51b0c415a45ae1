"""The mark of a copy, and its end.

A copy of a spool (made by ``backups``) is marked until somebody adopts it; meanwhile no engine
delivers, expires or deletes what is in it. How long mail lay there is no age: when the copy is
adopted its expiry moves by that, as after a jump of the clock (``clocks``), in steps of one
transaction each, and the mark goes with the last of them.
"""

from __future__ import annotations

import apsw

from mailstrom.storage.sqlite import clocks
from mailstrom.storage.sqlite.sql import run

ADOPTED_MESSAGES = 2_000
"""Messages of one step of ``adopt``: some 6 ms; a million messages take three seconds."""


def marked(connection: apsw.Connection) -> bool:
    """Whether this spool is a copy that nobody adopted yet."""
    return bool(run(connection, "copied"))


def mark(connection: apsw.Connection, name: str, now_ms: int) -> None:
    """Say that this spool is a copy, of which one, and since when."""
    for key, value in (("copied_ms", now_ms), ("copied_from", name)):
        run(connection, "meta_set", {"key": key, "value": value})


def adopt(connection: apsw.Connection, now_ms: int) -> bool | None:
    """One step of adopting: None where there is no mark, True while there is more to do.

    Broken off, it is simply begun again: the time that was counted is not counted twice.
    """
    copied = run(connection, "copied")
    if not copied:
        return None
    if now_ms > copied[0][0]:
        run(connection, "jump_lain", {"copied_ms": copied[0][0], "now_ms": now_ms})
        run(connection, "meta_set", {"key": "copied_ms", "value": now_ms})
    if clocks.shift(connection, ADOPTED_MESSAGES):
        return True
    run(connection, "adopt")
    return False
