"""The SQLite store is a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.contract import StoreContract
from tests.storage.contract_check import CheckContract
from tests.storage.files import SQLiteStores


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SQLiteStores]:
    found = SQLiteStores(tmp_path / "spool.db")
    with found.opened:
        yield found


class TestSQLite(StoreContract, CheckContract):
    """Run the conformance suite."""
