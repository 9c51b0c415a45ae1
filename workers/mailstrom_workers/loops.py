"""The event loop of an engine: uvloop's where it is installed (extra ``speed``), else asyncio's.

One that is installed and cannot be imported (built for another Python, a folder of that name) is
warned of, and mail goes out without it.

Either can name the descriptors of its connections, which a forked child of an application must let
go of (``embedded``). Nothing else in the engine knows which loop it runs on; the log
tells it (``name_of``).
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailstrom_workers.fastloop import FastLoop


class PlainLoop(asyncio.SelectorEventLoop):
    """asyncio's."""

    NAME = "asyncio"

    def __init__(self) -> None:
        self._watching = selectors.DefaultSelector()
        super().__init__(self._watching)

    def descriptors(self) -> set[int]:
        """Every connection, and the loop's own: closing it would change the parent's selector."""
        with contextlib.suppress(ValueError):  # closed before the fork
            return {self._watching.fileno(), *(self._watching.get_map() or ())}
        return set()


def name_of(loop: asyncio.AbstractEventLoop) -> str:
    """What the log calls a loop: ``uvloop``, else ``asyncio``."""
    return str(getattr(loop, "NAME", PlainLoop.NAME))


def new_loop() -> PlainLoop | FastLoop:
    """A loop that does not run yet."""
    if find_spec("uvloop") is None:
        return PlainLoop()
    try:
        from mailstrom_workers.fastloop import FastLoop
    except Exception as error:  # whatever a broken package raises
        warnings.warn(
            f"uvloop is installed and cannot be used ({type(error).__name__}: {error}); mail goes"
            " out without it, more slowly: install mailstrom[speed] anew, or remove uvloop",
            RuntimeWarning,
            stacklevel=2,
        )
        return PlainLoop()
    return FastLoop()
