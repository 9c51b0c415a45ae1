"""What a worker stores about a domain whose DNS is in trouble."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailstrom.config import from_tables
from mailstrom.policy.answers import nowhere
from mailstrom.storage.base import DueDomain, RouteAnswer
from mailstrom.types import RouteResult
from mailstrom_workers import router
from mailstrom_workers.context import Settings


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 15), (1, 30), (2, 60), (3, 120), (4, 240), (5, 300), (99, 300)]
)
def test_dns_trouble_is_looked_at_again_soon_and_then_ever_later(
    failures: int, seconds: int
) -> None:
    kept: list[RouteAnswer] = []

    async def found(domain: str) -> Any:
        return nowhere(domain, RouteResult.TEMPORARY, 60, "MX lookup of d.test failed: silence")

    async def ask(answer: RouteAnswer) -> tuple[()]:
        kept.append(answer)
        return ()

    ctx = SimpleNamespace(
        settings=Settings.of(from_tables({"store": "s.db"})),
        resolver=SimpleNamespace(route=found),
        answers=SimpleNamespace(ask=ask),
        now_ms=lambda: 1_000,
        wake=lambda: None,
    )
    due = DueDomain(name="d.test", cached=None, failures=failures)

    async def go() -> None:
        patience = router.Patience(asyncio.get_running_loop())
        await router.route(cast(Any, ctx), due, patience)

    asyncio.run(go())
    (answer,) = kept
    assert answer.expires_ms == 1_000 + seconds * 1000
    assert (answer.site_key, answer.refusal) == (None, None)
