"""The tests of the wire run on each event loop that the engine may have.

Those of flights run on one: hundreds of cases of what the dialogue makes of replies, and the
dialogue knows no loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mailstrom_workers.loops import PlainLoop

LOOPS = ["asyncio", "uvloop"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which loops a module's tests run on."""
    flights = metafunc.module.__name__.endswith("flights")
    metafunc.parametrize(
        "loop_kind", LOOPS[:1] if flights else LOOPS, indirect=True, scope="module"
    )


@pytest.fixture(autouse=True, scope="module")
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
