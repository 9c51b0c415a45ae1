"""Waiting for something in the spool to change, by its revision: asking for that costs next to
nothing, reading statuses again and again would not.

The revision is asked before what is read, so that a commit in between is never missed: it is seen
as a change afterwards. Knows nothing of an event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

SHORTEST_S = 0.005
LONGEST_S = 0.1
"""Between two looks at the revision; it grows while nothing changes."""
DISTRUST_S = 5.0
"""So seldom things are read although the revision is the same: a connection that was opened anew
(after a fork, say) may begin to count where the old one stood."""

Found = TypeVar("Found")


def until(
    look: Callable[[], Found | None],
    revision: Callable[[], int],
    timeout: float | None,
) -> Found | None:
    """Call ``look`` now and after changes until it returns something.

    Args:
        revision: ``ClientStore.revision``.
        timeout: seconds; 0 or less looks once, None waits for ever.

    Returns:
        What ``look`` returned; None when the time is over.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = SHORTEST_S
    while True:
        seen = revision()
        found = look()
        if found is not None:
            return found
        read = time.monotonic()
        while True:
            now = time.monotonic()
            left = LONGEST_S if deadline is None else deadline - now
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            if revision() != seen or now - read >= DISTRUST_S:
                pause = SHORTEST_S
                break
            pause = min(pause * 1.5, LONGEST_S)
        # At the deadline what changed last is still looked at: see the loop's head.
