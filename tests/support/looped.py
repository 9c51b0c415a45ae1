"""Tests that are coroutines: each runs in an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")


def looped(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test as pytest calls it; its fixtures are those of the coroutine."""

    @wraps(story)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(story(*args, **kwargs))

    return test
