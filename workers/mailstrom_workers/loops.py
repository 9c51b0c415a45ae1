"""The event loop of an engine: uvloop's where it is installed (extra ``speed``), else asyncio's.

Either can name the descriptors of its connections, which a forked child of an application must let
go of (``embedded``). Nothing else in the engine knows which loop it runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailstrom_workers.fastloop import FastLoop


class PlainLoop(asyncio.SelectorEventLoop):
    """asyncio's."""

    def __init__(self) -> None:
        self._watching = selectors.DefaultSelector()
        super().__init__(self._watching)

    def descriptors(self) -> set[int]:
        """Every connection, and the loop's own: closing it would change the parent's selector."""
        with contextlib.suppress(ValueError):  # closed before the fork
            return {self._watching.fileno(), *(self._watching.get_map() or ())}
        return set()


def new_loop() -> PlainLoop | FastLoop:
    """A loop that does not run yet."""
    if find_spec("uvloop") is None:
        return PlainLoop()
    from mailstrom_workers.fastloop import FastLoop

    return FastLoop()
