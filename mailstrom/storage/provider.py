"""What a kind of store brings: how its spools are named, made and opened.

A spool is named by a path (SQLite), or by ``scheme:rest``: ``memory:`` and ``sqlite:`` are ours,
any other scheme is looked for among the entry points of the group ``mailstrom.stores``. An entry
point's name is the scheme, and what it loads has the attributes of ``StoreProvider`` (a module will
do). Nothing is imported before a spool of that scheme is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from mailstrom.storage.base import WorkerStore
    from mailstrom.storage.client import ClientStore
    from mailstrom.storage.examined import Examined

ENTRY_POINTS = "mailstrom.stores"


class StoreProvider(Protocol):
    """Makes and opens the spools of one scheme; ``name`` is always the whole ``scheme:rest``."""

    shared: bool
    """Whether other processes can open the same spool; if not, only ``Mailstrom.start()`` serves
    it, and a supervisor refuses it."""

    def canonical(self, name: str) -> str:
        """The one name of a spool, whatever link or spelling led to it.

        Raises:
            ConfigError: the name cannot be one of this scheme.
        """
        ...

    def prepare(self, name: str, *, engine: bool) -> None:
        """Create the spool if it is missing and migrate it if it is older; nothing half done.

        Args:
            engine: a newer schema is refused even where its clients may still enqueue.

        Raises:
            SpoolError: or a subclass that says what is wrong.
        """
        ...

    def open_client(self, name: str, *, busy_ms: int) -> ClientStore:
        """The client's half, for several threads; the spool is created if it is missing."""
        ...

    def open_worker(
        self, name: str, *, busy_ms: int, doubt_delays_ms: Sequence[int] | None
    ) -> WorkerStore:
        """The engine's half, for one thread; the spool exists.

        Args:
            doubt_delays_ms: how long a recipient waits that was lost on the wire, by how often in a
                row; the last one repeats. None: the store's own.
        """
        ...

    def run_directory(self, name: str) -> str:
        """A local directory for the lock files of this machine's engine processes."""
        ...


@runtime_checkable
class ExaminedProvider(Protocol):
    """A ``StoreProvider`` may offer this, too: then ``mailstrom doctor`` can look at its spools."""

    def examine(self, name: str, *, check_s: float) -> Examined:
        """Look at a spool from outside: nothing is written or made, and nobody waits.

        Args:
            check_s: how long the check of its invariants may take; 0 leaves it out.

        Raises:
            ConfigError: the name cannot be one of this scheme. Whatever else is wrong is a fact.
        """
        ...
