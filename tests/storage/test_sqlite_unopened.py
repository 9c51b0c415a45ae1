"""A claim that was doubted unopened tells nothing of the attempt before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield Spool(stores)


def test_a_claim_of_another_boot_is_not_told_as_the_session_of_an_earlier_attempt(
    spool: Spool,
) -> None:
    _, lane, (row,) = spool.sending("a@example.org")
    spool.settle(lane, row, "deferred", due_ms=T0 + 1_000)
    now = T0 + 2_000
    assert len(spool.claim(lane, now=now)) == 1
    assert spool.engine.lapse(spool.worker, boot="boot-2", now_ms=now).in_doubt == 1
    told = "SELECT session_id, host, started_ms, in_doubt FROM attempts ORDER BY id DESC LIMIT 1"
    assert spool.rows(told) == [(None, None, now, 1)]
    spool.sound()
