"""In which order several processes take the tests: the long ones first, and not all by one process.

Pure. Each process begins with an equal part of one list and helps others when its own is done, from
the end of theirs (``--dist worksteal``). A long test that is begun last is waited for by all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def dealt(items: Sequence[T], long: Callable[[T], bool], processes: int) -> list[T]:
    """The same items, the long ones spread over the beginnings of all equal parts.

    Args:
        items: in any order, which is kept otherwise.
        processes: how many take them; one keeps the order.
    """
    if processes <= 1:
        return list(items)
    first = [item for item in items if long(item)]
    rest = [item for item in items if not long(item)]
    found: list[T] = []
    for process in range(processes):
        share = (len(items) - len(found)) // (processes - process)
        own = first[process::processes]
        more = max(0, share - len(own))
        found += own + rest[:more]
        del rest[:more]
    return found + rest
