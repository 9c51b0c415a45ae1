"""The SQLite store is a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.contract import StoreContract


class SQLiteStores:
    """Stores on one SQLite spool; all are closed with it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.opened = ExitStack()

    def client(self) -> SQLiteClientStore:
        """A new client store; it creates the spool."""
        store = SQLiteClientStore(self.path, sync=lambda fd: None)
        self.opened.callback(store.close)
        return store

    def worker(self) -> SQLiteWorkerStore:
        """A new worker store."""
        store = SQLiteWorkerStore(self.path, sync=lambda fd: None)
        self.opened.callback(store.close)
        return store


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SQLiteStores]:
    found = SQLiteStores(tmp_path / "spool.db")
    with found.opened:
        yield found


class TestSQLite(StoreContract):
    """Run the conformance suite."""
