"""The two providers that SQLite serves: ``files`` (paths, ``sqlite:``) and ``memory``.

See ``mailstrom.storage.provider.StoreProvider`` for what each verb promises. Each verb imports what
it needs: a client loads neither the engine's half nor the other kind of place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mailstrom.clock import boot_id
from mailstrom.errors import ConfigError
from mailstrom.storage.schemes import path_of
from mailstrom.storage.sqlite.place import FilePlace, Place

if TYPE_CHECKING:
    from mailstrom.storage.base import WorkerStore
    from mailstrom.storage.client import ClientStore
    from mailstrom.storage.examined import Examined


class Files:
    """Spools in files."""

    shared = True

    def canonical(self, name: str) -> str:
        """The file's real path, absolute."""
        path = path_of(name)
        if not path:
            raise ConfigError(f"{name!r} is no path; write a path or sqlite:///path")
        return os.path.realpath(path)

    def prepare(self, name: str, *, engine: bool) -> None:
        """See ``StoreProvider.prepare``."""
        from mailstrom.storage.sqlite import schema

        schema.prepare(self.canonical(name), engine=engine)

    def open_client(self, name: str, *, busy_ms: int) -> ClientStore:
        """See ``StoreProvider.open_client``."""
        return _client(FilePlace(self.canonical(name)), busy_ms, boot_id())

    def open_worker(
        self, name: str, *, busy_ms: int, doubt_delays_ms: Sequence[int] | None
    ) -> WorkerStore:
        """See ``StoreProvider.open_worker``."""
        return _worker(FilePlace(self.canonical(name)), busy_ms, doubt_delays_ms)

    def run_directory(self, name: str) -> str:
        """Beside the file; made with the spool."""
        return FilePlace(self.canonical(name)).run_directory()

    def examine(self, name: str, *, check_s: float) -> Examined:
        """See ``ExaminedProvider.examine``."""
        from mailstrom.storage.sqlite import examining

        return examining.examine(self.canonical(name), check_s=check_s)


class InMemory:
    """Spools in this process's memory; see ``memory``."""

    shared = False

    def canonical(self, name: str) -> str:
        """See ``memory.canonical``."""
        from mailstrom.storage.sqlite import memory

        return memory.canonical(name)

    def prepare(self, name: str, *, engine: bool) -> None:
        """Nothing stays where nobody has it open, so there is nothing to make."""
        self.canonical(name)

    def open_client(self, name: str, *, busy_ms: int) -> ClientStore:
        """See ``StoreProvider.open_client``."""
        from mailstrom.storage.sqlite import memory

        return _client(memory.MemoryPlace(memory.opened(self.canonical(name))), busy_ms, None)

    def open_worker(
        self, name: str, *, busy_ms: int, doubt_delays_ms: Sequence[int] | None
    ) -> WorkerStore:
        """See ``StoreProvider.open_worker``."""
        from mailstrom.storage.sqlite import memory

        place = memory.MemoryPlace(memory.existing(self.canonical(name)))
        return _worker(place, busy_ms, doubt_delays_ms)

    def run_directory(self, name: str) -> str:
        """See ``memory.Memory.run_directory``."""
        from mailstrom.storage.sqlite import memory

        return memory.existing(self.canonical(name)).run_directory()


def _client(place: Place, busy_ms: int, boot: str | None) -> ClientStore:
    from mailstrom.storage.sqlite.client import SQLiteClientStore

    return SQLiteClientStore(place.name, busy_ms=busy_ms, place=place, boot=boot)


def _worker(place: Place, busy_ms: int, doubt_delays_ms: Sequence[int] | None) -> WorkerStore:
    from mailstrom.storage.sqlite.worker import SQLiteWorkerStore

    if doubt_delays_ms is None:
        return SQLiteWorkerStore(place.name, busy_ms=busy_ms, place=place)
    return SQLiteWorkerStore(
        place.name, busy_ms=busy_ms, doubt_delays_ms=doubt_delays_ms, place=place
    )


files = Files()
memory = InMemory()
