"""Options of ``send()``: which there are, and that they are read once.

What each may hold is told by ``mailstrom.options``, whose checks are named here, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mailstrom.client import arguments
from mailstrom.options import coming_ms, doubt, flag, flat, notices, rank, tag_list, word

__all__ = [
    "MANY", "NAMES", "coming_ms", "doubt", "flag", "flat", "notices", "rank", "require_defaults",
    "require_options", "settled", "tag_list", "word",
]  # fmt: skip

NAMES = (
    "sender", "recipients", "send_at", "expires_at", "priority", "stream", "tags", "metadata",
    "idempotency_key", "require_tls", "on_doubt", "notify",
)  # fmt: skip
"""Options of ``send()``, in its order."""
MANY = ("recipients", "tags", "metadata", "notify")
"""Those that hold as many values as one likes."""


def require_options(where: str, given: Iterable[str]) -> None:
    """Raise where a name is no option of ``send()``.

    Args:
        where: what the options were given to, for the error.

    Raises:
        TypeError: names the option, and one that is near it.
    """
    for name in given:
        if name not in NAMES:
            from difflib import get_close_matches

            near = get_close_matches(name, NAMES, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}"
            raise TypeError(f"{where}: unknown option {arguments.shown(name)}; {advice}")


def require_defaults(given: Iterable[str]) -> None:
    """Raise where a name cannot be an option of all messages of ``send_many()``.

    Raises:
        TypeError: an unknown option, or one that only a single message can have.
    """
    require_options("send_many()", given)
    if "idempotency_key" in given:
        raise TypeError(
            "send_many(): idempotency_key is one message's; give it in a pair,"
            " (message, {'idempotency_key': ...})"
        )


def settled(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose iterables were read, once, here: they may be looked at again, and elsewhere."""
    return {
        name: arguments.settled(value) if name in MANY else value for name, value in given.items()
    }
