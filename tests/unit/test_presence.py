"""What of a reload concerns the store is taken over by it, or tried again."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from mailstrom.config import Config, from_tables
from mailstrom.errors import SpoolBusy
from mailstrom_workers.presence import Presence


class Service:
    """As ``DBService``: notes what it is asked for, and fails while ``busy``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.busy = False

    async def reopen(self, _: object) -> None:
        self._note("reopen")

    async def call(self, _: object) -> None:
        self._note("call")

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if self.busy:
            raise SpoolBusy("somebody writes")


def config(**tables: object) -> Config:
    return from_tables({"hostname": "a.example", **tables}, environ={"HOME": "/nowhere"})


def test_a_store_that_could_not_follow_a_reload_follows_the_next() -> None:
    async def story() -> list[str]:
        service: Any = Service()
        presence = Presence(
            kind="delivery", slot=0, store="spool.db", config=config(), leads=lambda: True,
            worker=1, db=service, lock=cast("Any", None), crash=cast("Any", None),
        )  # fmt: skip
        await presence.adopt(config())
        assert service.asked == []
        later = config(reports={"send": False})
        service.busy = True
        with pytest.raises(SpoolBusy):
            await presence.adopt(later)
        assert presence.config is later
        service.busy = False
        await presence.adopt(later)
        await presence.adopt(later)
        await presence.adopt(config(retry={"schedule": ["7m"]}, reports={"send": False}))
        return list(service.asked)

    assert asyncio.run(story()) == ["call", "call", "reopen"]
