"""The machine over the memory store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.storage.machine import MACHINE_SETTINGS, SpoolMachine
from tests.storage.spool import Stores
from tests.storage.test_memory import MemoryStores


@contextmanager
def _spool() -> Iterator[Stores]:
    found = MemoryStores()
    with found.opened:
        yield found


class MemoryMachine(SpoolMachine):
    """Clients and engines on one spool in memory."""

    stores = staticmethod(_spool)


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = MACHINE_SETTINGS
