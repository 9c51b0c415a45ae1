"""The one delivery engine that a client may run in its own process; loaded by name.

Kept apart from the client, so that a client that is dropped can end its engine: nothing here, and
nothing that the engine holds, refers to it.

Ends: ``stop()``; the client is closed or dropped; the interpreter exits (all engines share
``EXIT_S`` then). A fork leaves the engine to the parent: the child has none.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

from mailstrom.types import EngineState, WorkerStatus

EXIT_S = 5.0
"""How long what is on the wire may take to end when the interpreter exits."""
ENGINE = "mailstrom_workers.embedded"

Config = str | os.PathLike[str] | Mapping[str, object] | None

_OVER = (EngineState.STOPPED, EngineState.FAILED)
_running: set[Embedding] = set()


class Engine(Protocol):
    """What ``mailstrom_workers.embedded.EmbeddedEngine`` does."""

    def start(self) -> None:
        """Return once it delivers, or raise."""
        ...

    def stop(self, timeout: float) -> bool:
        """End; whether what was on the wire was finished."""
        ...

    def status(self) -> WorkerStatus:
        """How it is."""
        ...

    def forked(self) -> None:
        """In a forked child: let go of what it inherited."""
        ...


class Embedding:
    """Starts and ends the engine of one client.

    Args:
        store: name of the spool.
        config: the configuration that holds unless ``start`` names another.
    """

    def __init__(self, store: str, config: Config) -> None:
        self._store = store
        self._config = config
        self._engine: Engine | None = None
        # Reentrant: a signal handler may stop what the interrupted code is starting.
        self._turn = threading.RLock()

    def start(self, workers: int, config: Config) -> None:
        """Start an engine; returns once it delivers.

        Raises:
            RuntimeError: one runs already.
            ConfigError, SpoolError: it cannot run.
        """
        with self._turn:
            if self._engine is not None:
                if self._engine.status().state not in _OVER:
                    raise RuntimeError(
                        f"{self._store}: this Mailstrom delivers already; stop() it first, or say"
                        " workers=... at its start for more workers"
                    )
                self._engine.stop(0.0)
            engine: Engine = import_module(ENGINE).EmbeddedEngine(
                self._store, workers=workers, config=self._config if config is None else config
            )
            if not _running:
                atexit.unregister(_exit)  # it stands there once, and behind what came since
                atexit.register(_exit)
            self._engine = engine
            _running.add(self)
            try:
                engine.start()
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong first is raised
                    engine.stop(0.0)
                self._forget()
                raise

    def stop(self, timeout: float) -> bool:
        """End the engine; True if it finished what was on the wire, or there is none."""
        with self._turn:
            engine = self._engine
            if engine is None:
                return True
            try:
                return engine.stop(timeout)
            finally:
                self._forget()

    def status(self) -> WorkerStatus:
        """How the engine is; stopped where there is none."""
        engine = self._engine
        return WorkerStatus(state=EngineState.STOPPED) if engine is None else engine.status()

    def dropped(self) -> None:
        """The client is gone: end the engine without making anybody wait.

        This may be any thread, the engine's own included, in the midst of anything.
        """
        if self._engine is None:
            return
        try:
            _thread.start_new_thread(self._end, ())
        except Exception:  # no more threads, or the interpreter exits: then it may take a moment
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(Exception):  # nobody is left to be told
            self.stop(EXIT_S)

    def forked(self) -> None:
        """In a forked child: the engine is the parent's."""
        self._turn = threading.RLock()  # the other may be held by a thread that is not here
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.forked()

    def _forget(self) -> None:
        self._engine = None
        _running.discard(self)


def _exit() -> None:
    """At the interpreter's exit, while daemon threads still run."""
    deadline = time.monotonic() + EXIT_S
    for embedding in list(_running):
        with contextlib.suppress(Exception):  # the others are to be ended, too
            embedding.stop(max(0.0, deadline - time.monotonic()))


def _after_fork_in_child() -> None:
    for embedding in list(_running):
        embedding.forked()
    _running.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
