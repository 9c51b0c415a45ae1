"""Every test of the wire runs on each event loop that the engine may have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mailstrom_workers.loops import PlainLoop


@pytest.fixture(autouse=True, scope="module", params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """What ``asyncio.run`` makes its loop of."""
    make: type[asyncio.AbstractEventLoop] = PlainLoop
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="extra speed is not installed")
        from mailstrom_workers.fastloop import FastLoop

        make = FastLoop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.events, "new_event_loop", make)
        yield request.param
