"""Storage: the seam (``client``, ``base``, ``provider``) and the stores behind it, by name.

A name is a path or ``scheme:rest``; see ``schemes``. Whoever opens a spool does it here, so that
nobody else needs to know which kind of store it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mailstrom.errors import ConfigError
from mailstrom.storage.schemes import provider_of

if TYPE_CHECKING:
    from mailstrom.storage.base import WorkerStore
    from mailstrom.storage.client import ClientStore
    from mailstrom.storage.examined import Examined
    from mailstrom.storage.reporting import Reporter

__all__ = [
    "canonical",
    "examine",
    "open_client_store",
    "open_worker_store",
    "prepare",
    "provider_of",
    "require_shared",
    "run_directory",
]


def canonical(name: str) -> str:
    """The one name of a spool: a link to it is the same spool, with the same -wal and locks.

    Raises:
        ConfigError: no store has names like this one.
    """
    return provider_of(name).canonical(name)


def require_shared(name: str) -> None:
    """Raise unless other processes can open this spool, as those of a supervisor must.

    Raises:
        ConfigError: only the process that made it could see it; or no store has such names.
    """
    if not provider_of(name).shared:
        raise ConfigError(
            f"{name}: only this process could see it, so no other can deliver its mail; use"
            " Mailstrom.start() in the application, or a spool in a file"
        )


def prepare(path: str, *, engine: bool = False) -> None:
    """Create the spool if it is missing and migrate it if it is older.

    ``engine``: a newer schema is refused even where its clients may still enqueue.

    Raises:
        SpoolError: or a subclass that says what is wrong; nothing is half done.
        ConfigError: no store has names like this one.
    """
    provider_of(path).prepare(canonical(path), engine=engine)


def open_client_store(path: str, *, busy_ms: int = 5_000) -> ClientStore:
    """The client's half of a store, created if it is missing.

    Raises:
        SpoolError: or a subclass that says what is wrong with the spool.
        ConfigError: no store has names like this one.
    """
    return provider_of(path).open_client(canonical(path), busy_ms=busy_ms)


def open_worker_store(
    path: str,
    *,
    busy_ms: int = 8_000,
    doubt_delays_ms: Sequence[int] | None = None,
    reporter: Reporter | None = None,
) -> WorkerStore:
    """The engine's half of a store; the spool must exist.

    Args:
        path: the spool.
        busy_ms: how long to wait for another writer; one that stands still is named then.
        doubt_delays_ms: how long a recipient waits that was lost on the wire, by how often it was
            lost in a row before; the last one repeats. None: the store's own.
        reporter: see ``WorkerStore.use_reporter``.

    Raises:
        SpoolError: or a subclass that says what is wrong with the spool.
        ConfigError: no store has names like this one.
    """
    store = provider_of(path).open_worker(
        canonical(path), busy_ms=busy_ms, doubt_delays_ms=doubt_delays_ms
    )
    if reporter is not None:
        store.use_reporter(reporter)
    return store


def run_directory(path: str) -> str:
    """The directory that holds a spool's lock files and flags; on this machine.

    Raises:
        SpoolError: the spool is one that must be open for this, and is not.
        ConfigError: no store has names like this one.
    """
    return provider_of(path).run_directory(canonical(path))


def examine(path: str, *, check_s: float) -> Examined | None:
    """Look at a spool from outside, whatever state it is in; None where its store cannot.

    Args:
        path: the spool.
        check_s: how long the check of its invariants may take; 0 leaves it out.

    Raises:
        ConfigError: no store has names like this one.
    """
    from mailstrom.storage.provider import ExaminedProvider

    provider = provider_of(path)
    if not isinstance(provider, ExaminedProvider):
        return None
    return provider.examine(path, check_s=check_s)
