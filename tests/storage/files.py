"""Stores on one SQLite file, for every test that needs them; nothing waits for a disk."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw

from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore


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

    def tamper(self, sql: str, *params: Any) -> int:
        """Change tables behind the stores' back; how many rows."""
        connection = apsw.Connection(self.path)
        try:
            connection.execute(sql, params).fetchall()
            return connection.changes()
        finally:
            connection.close()

    def plan(self, sql: str, values: dict[str, Any]) -> list[str]:
        """How SQLite would find the rows, a line for each step."""
        connection = apsw.Connection(self.path)
        try:
            return [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        finally:
            connection.close()

    def worker(self) -> SQLiteWorkerStore:
        """A new worker store."""
        store = SQLiteWorkerStore(self.path, sync=lambda fd: None)
        self.opened.callback(store.close)
        return store
