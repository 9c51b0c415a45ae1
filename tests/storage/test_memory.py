"""The memory store is a store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from mailstrom.storage import open_client_store, open_worker_store
from mailstrom.storage.base import WorkerStore
from mailstrom.storage.client import ClientStore
from mailstrom.storage.sqlite.memory import LIMIT_BYTES, existing
from tests.storage.contract import StoreContract
from tests.storage.contract_check import CheckContract

_numbers = itertools.count(1)


class MemoryStores:
    """Stores on one memory spool; with the last that closes it is gone."""

    def __init__(self) -> None:
        self.name = f"memory:contract-{next(_numbers)}"
        self.opened = ExitStack()

    def client(self) -> ClientStore:
        """A new client store; the first creates the spool."""
        store = open_client_store(self.name)
        self.opened.callback(store.close)
        return store

    def tamper(self, sql: str, *params: Any) -> int:
        """Change tables behind the stores' back; how many rows."""
        connection = existing(self.name).connect(
            read_only=False, busy_ms=1_000, limit_bytes=LIMIT_BYTES
        )
        try:
            connection.execute(sql, params).fetchall()
            return connection.changes()
        finally:
            connection.close()

    def worker(self) -> WorkerStore:
        """A new worker store."""
        store = open_worker_store(self.name)
        self.opened.callback(store.close)
        return store


@pytest.fixture
def stores() -> Iterator[MemoryStores]:
    found = MemoryStores()
    with found.opened:
        yield found


class TestMemory(StoreContract, CheckContract):
    """Run the conformance suite."""
