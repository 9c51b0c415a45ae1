"""A spool in a file, and its stores; tests of other stores, or of other limits, make their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.files import SQLiteStores
from tests.storage.spool import Spool


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SQLiteStores]:
    """Both halves of a new spool's store."""
    found = SQLiteStores(tmp_path / "spool.db")
    with found.opened:
        yield found


@pytest.fixture
def spool(stores: SQLiteStores) -> Spool:
    """The verbs of ``stores``, made short."""
    return Spool(stores)
