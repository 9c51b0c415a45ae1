"""Who keeps a write-ahead log from being emptied: values that both halves of a store tell.

By themselves, since a client that meets such a log loads nothing of the engine's half.
"""

from __future__ import annotations

from mailstrom.value import value


@value
class LogHolder:
    """A process that keeps the write-ahead log from being emptied, and its command's name."""

    pid: int
    command: str


def mebibytes(size: int) -> str:
    """A length for a sentence: ``16 MiB``, ``4.7 MiB``."""
    return f"{round(size / (1 << 20), 1):g} MiB"


@value
class Pinned:
    """A log that has grown over its alarm and cannot be emptied.

    Args:
        holders: who keeps it; empty where the system does not tell.
        sure: these very processes; else they only have the spool open.
        limit_bytes: the length at which accepting and claiming stop.
    """

    holders: tuple[LogHolder, ...] = ()
    sure: bool = False
    limit_bytes: int = 0
