"""``Mailstrom``: what an application uses.

``send()`` returns when the message is on disk; it never touches the network. All methods may be
called from any thread, in forked children, and from signal handlers. Errors are those of
``mailstrom.errors``; an error from ``send()`` means that nothing was stored, except
``OutcomeUnknown``, which says so. An argument of a wrong kind is a TypeError or ValueError (for
what belongs to a message: InvalidMessage) that names it, raised before anything happens.
"""

from __future__ import annotations

import os
import weakref
from types import TracebackType

from mailstrom.client import arguments
from mailstrom.client.changing import Changing
from mailstrom.client.commit import Committer
from mailstrom.client.embedding import Embedding
from mailstrom.client.locate import locate_store
from mailstrom.client.running import Running
from mailstrom.client.sending import Pace, Sending, SendOptions
from mailstrom.clock import wall_ms
from mailstrom.errors import SpoolError
from mailstrom.storage import open_client_store

__all__ = ["Mailstrom", "SendOptions"]

STOP_S = 30.0
"""How long ``close()`` lets what is on the wire take to end."""

_living: weakref.WeakSet[Mailstrom] = weakref.WeakSet()


class Mailstrom(Sending, Changing, Running):
    """A handle on a spool.

    Args:
        store: path of the spool (or ``sqlite:///path``), or ``memory:`` for one that lives as long
            as this object; found by MAILSTROM_STORE, configuration file or default when None. A
            file is created if it is missing in an existing directory.
        config: configuration file to look for ``store`` in; ``start()`` uses it, too.
        timeout: seconds, at most a day, to wait for other writers before ``SpoolBusy``.

    Raises:
        SpoolError: or a subclass, when the spool cannot be used.
        ConfigError: when the configuration file is unusable.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._timeout = arguments.seconds("timeout", timeout, arguments.LONGEST_TIMEOUT_S)
        self.path = locate_store(store, config, os.environ)
        self._store = open_client_store(self.path, busy_ms=int(self._timeout * 1000))
        self._committer = Committer(self._store, self._timeout, wall_ms)
        self._pace = Pace()
        self._embedding = Embedding(self.path, config)
        self._finalizer = weakref.finalize(self, _dropped, self._embedding, self._committer)
        _living.add(self)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Mailstrom:
        """Create the spool at ``path`` if it is missing, and open it.

        The same as ``Mailstrom(path)``, but never one found elsewhere.

        Raises:
            TypeError: no path.
            SpoolError: or a subclass, when the spool cannot be used.
        """
        arguments.path("path", path)
        return cls(path)

    def close(self) -> None:
        """Close this process's connections; idempotent. Every later call raises SpoolError.

        What ``start()`` began is stopped first, what other threads are sending is stored first.
        """
        if self._finalizer.detach() is not None:
            try:
                self._embedding.stop(STOP_S)
            finally:
                self._committer.close()

    def __enter__(self) -> Mailstrom:
        if not self._finalizer.alive:
            raise SpoolError("this client is closed; open a new one")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _forked(self) -> None:
        self._committer.forked()


def _dropped(embedding: Embedding, committer: Committer) -> None:
    embedding.dropped()
    committer.stop()


def _after_fork_in_child() -> None:
    for client in list(_living):
        client._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
