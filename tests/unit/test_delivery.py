"""The work of a delivery worker: what is over with it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mailstrom.config import from_tables
from mailstrom_workers import delivery
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.machine import THIS


class Engine:
    """Works until it is told to end."""

    sessions = 0
    ended: str | None = None

    def __init__(self, ctx: Any) -> None:
        Engine.ended = None

    def hang_up(self) -> None:
        raise AssertionError

    def break_off(self) -> None:
        raise AssertionError

    async def run(self) -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # it may have something to leave in order
            Engine.ended = "cancelled"
            raise


def test_where_a_worker_cannot_say_that_it_is_ready_nothing_of_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "Engine", Engine)
    closed: list[bool] = []

    class Resolver:
        async def close(self) -> None:
            closed.append(Engine.ended is not None)

    async def ready() -> None:
        await asyncio.sleep(0.01)
        raise StoreEnded("the store's service has ended")

    async def story() -> None:
        presence: Any = SimpleNamespace(
            worker=1, db=None, config=from_tables({"store": "/tmp/none.db"}), machine=THIS,
            draining=asyncio.Event(), reloaded=asyncio.Event(), leads=lambda: False, ready=ready,
        )  # fmt: skip
        with pytest.raises(StoreEnded):
            await delivery.deliver(presence, lambda config: Resolver())  # type: ignore[arg-type,return-value]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())
    assert Engine.ended == "cancelled"
    assert closed == [True], "behind all that may still ask it"
