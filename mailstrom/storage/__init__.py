"""Storage: the seam (``base``) and the stores behind it, opened by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailstrom.storage.sqlite.client import SQLiteClientStore
    from mailstrom.storage.sqlite.worker import SQLiteWorkerStore


def real(path: str) -> str:
    """The one name of a spool: a link to it is the same spool, with the same -wal and locks."""
    return os.path.realpath(path)


def prepare(path: str, *, engine: bool = False) -> None:
    """Create the spool if it is missing and migrate it if it is older.

    ``engine``: a newer schema is refused even where its clients may still enqueue.

    Raises:
        SpoolError: or a subclass that says what is wrong; nothing is half done.
    """
    from mailstrom.storage.sqlite.schema import prepare as prepare_sqlite

    prepare_sqlite(real(path), engine=engine)


def open_client_store(path: str, *, busy_ms: int = 5_000) -> SQLiteClientStore:
    """The client's half of a store, created if it is missing."""
    from mailstrom.storage.sqlite.client import SQLiteClientStore

    return SQLiteClientStore(real(path), busy_ms=busy_ms)


def open_worker_store(
    path: str, *, busy_ms: int = 10_000, doubt_delays_ms: Sequence[int] | None = None
) -> SQLiteWorkerStore:
    """The engine's half of a store; the spool must exist.

    Args:
        path: the spool.
        busy_ms: how long to wait for another writer.
        doubt_delays_ms: how long a recipient waits that was lost on the wire, by how often it was
            lost in a row before; the last one repeats. None: the store's own.
    """
    from mailstrom.storage.sqlite.worker import SQLiteWorkerStore

    if doubt_delays_ms is None:
        return SQLiteWorkerStore(real(path), busy_ms=busy_ms)
    return SQLiteWorkerStore(real(path), busy_ms=busy_ms, doubt_delays_ms=doubt_delays_ms)


def run_directory(path: str) -> str:
    """The directory beside a spool that holds lock files and flags."""
    from mailstrom.storage.sqlite.durable import run_directory as directory

    return directory(real(path))
