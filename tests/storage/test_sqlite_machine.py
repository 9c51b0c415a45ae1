"""The machine over the SQLite store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.storage.files import SQLiteStores
from tests.storage.machine import MACHINE_SETTINGS, SpoolMachine
from tests.storage.spool import Stores


@contextmanager
def _spool() -> Iterator[Stores]:
    folder = Path(tempfile.mkdtemp(prefix="machine-"))
    found = SQLiteStores(folder / "spool.db")
    try:
        with found.opened:
            yield found
    finally:
        shutil.rmtree(folder)


class SQLiteMachine(SpoolMachine):
    """Clients and engines on one spool file."""

    stores = staticmethod(_spool)


TestSQLiteMachine = SQLiteMachine.TestCase
TestSQLiteMachine.settings = MACHINE_SETTINGS
