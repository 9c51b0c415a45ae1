"""How many descriptors a process of the engine may have: each connection costs one.

A worker raises its limit as far as it may when it starts; whoever asks from outside what a worker
will have asks here, too.
"""

from __future__ import annotations

import contextlib
import resource

MOST_FILES = 65_536
"""As far a process raises its limit of descriptors, where it may."""


def reachable() -> int | None:
    """The limit that a worker started like this process has once it raised its own.

    Returns:
        a number of descriptors; None: there is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    return max(soft, most)


def raise_limit() -> None:
    """As far as we may: each host that hangs costs a descriptor, and many may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = reachable()
    if most is not None and soft < most:
        with contextlib.suppress(ValueError, OSError):  # some systems know a lower bound
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
