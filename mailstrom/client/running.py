"""Running: the delivery loop inside the application's own process.

The engine is loaded by name when it is started, and never before: a client that only sends needs
neither an event loop nor DNS.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mailstrom.client import arguments
from mailstrom.client.embedding import Config
from mailstrom.client.handle import Handle
from mailstrom.errors import SpoolError
from mailstrom.types import WorkerStatus


class Running(Handle):
    """The verbs of the embedded engine."""

    def start(
        self,
        workers: int = 1,
        config: str | os.PathLike[str] | Mapping[str, object] | None = None,
    ) -> None:
        """Deliver from this process, in a background thread; returns once that is ready.

        It works beside a supervisor on the same spool or without one, and ends with ``stop()``,
        ``close()``, or the process. After a fork it is the parent's; the child may start its own.

        Args:
            workers: delivery workers to run.
            config: configuration file, or its tables as a dict
                (``{"relay": {"hosts": ["mail.example.com"]}, "delivery": {"mode": "relay"}}``).
                Default: the file that this Mailstrom was opened with, else the one in force.

        Raises:
            RuntimeError: it runs already, or was stopped before it was ready.
            ConfigError: the configuration is unusable; nothing was started.
            SpoolError: the spool cannot be used.
        """
        arguments.count("workers", workers)
        chosen: Config = config
        if config is not None and not isinstance(config, Mapping):
            chosen = arguments.path("config", config)
        if not self._finalizer.alive:
            raise SpoolError("this client is closed; open a new one")
        self._embedding.start(workers, chosen)
        if not self._finalizer.alive:  # closed since, by another thread that saw no engine yet
            self._embedding.stop(0.0)
            raise SpoolError("this client is closed; open a new one")

    def stop(self, timeout: float = 30) -> bool:
        """End the delivery that ``start()`` began; what is on the wire is finished first.

        Args:
            timeout: seconds for that. What is still on the wire then is cut off: in doubt, and
                told so, where all of it was sent; else it is in the queue again.

        Returns:
            Whether all that was on the wire was finished; True where nothing runs.
        """
        return self._embedding.stop(max(0.0, arguments.number("timeout", timeout)))

    def worker_status(self) -> WorkerStatus:
        """How the delivery in this process is; a supervisor's is in the view ``workers``."""
        return self._embedding.status()
