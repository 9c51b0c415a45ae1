"""What the parts of a worker share."""

from __future__ import annotations

import asyncio
from typing import cast

from mailstrom.config import from_tables
from mailstrom_workers.context import HOST_REST_S, Context, Settings
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.resolver import Resolver
from tests.torture.sim_loop import VirtualLoop


def test_hosts_that_rested_are_forgotten_asked_about_or_not() -> None:
    loop = VirtualLoop()

    async def main() -> None:
        ctx = Context(
            worker=1, db=cast(DBService, None),
            settings=Settings.of(from_tables({"store": "/tmp/none.db"})),
            resolver=Resolver([("192.0.2.53", 53)], 5.0),
        )  # fmt: skip
        for number in range(1_000):
            ctx.rest(f"mx{number}.test")
        ctx.rest("mx0.test")  # anew
        assert ctx.rests("mx0.test")
        await asyncio.sleep(HOST_REST_S - 1)
        ctx.rest("again.test")
        assert len(ctx.resting) == 1_001
        await asyncio.sleep(1)
        ctx.rest("last.test")
        assert sorted(ctx.resting) == ["again.test", "last.test"]
        assert not ctx.rests("mx0.test")

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
