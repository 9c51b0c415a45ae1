"""The one delivery engine that a client may run in its own process; loaded by name.

Kept apart from the client, so that a client that is dropped can end its engine: nothing here, and
nothing that the engine holds, refers to it.

No lock is held while an engine starts or ends: ``stop()`` comes through whoever starts it, and from
wherever it is called, a handler of the engine's own log lines included.

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
from typing import Any, Protocol

from mailstrom.client.rooms import load
from mailstrom.types import EngineState, WorkerStatus

EXIT_S = 5.0
"""How long what is on the wire may take to end when the interpreter exits."""
ENGINE = "mailstrom_workers.embedded"
LOAD_S = 60.0
"""How long its modules may take to load; seconds on the slowest machine."""

Config = str | os.PathLike[str] | Mapping[str, object] | None

_OVER = (EngineState.STOPPED, EngineState.FAILED)
_running: set[Embedding] = set()


class Engine(Protocol):
    """What ``mailstrom_workers.embedded.EmbeddedEngine`` does."""

    def start(self) -> None:
        """Return once it delivers, or raise; also when it was stopped before that."""
        ...

    def stop(self, timeout: float) -> bool:
        """End; whether what was on the wire was finished."""
        ...

    def status(self) -> WorkerStatus:
        """How it is; starting from when it was made."""
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
        # Guards the two words that say which engine is ours, never its start or its end.
        # Reentrant: a signal handler may stop what the interrupted code is starting.
        self._turn = threading.RLock()

    def start(self, workers: int, config: Config) -> None:
        """Start an engine; returns once it delivers.

        Raises:
            RuntimeError: one runs already, or this one was stopped before it was ready.
            ConfigError, SpoolError: it cannot run.
        """
        room: Any = load(ENGINE, LOAD_S)
        with self._turn:
            before = self._engine
            if before is not None and before.status().state not in _OVER:
                raise RuntimeError(
                    f"{self._store}: this Mailstrom delivers already; stop() it first, or say"
                    " workers=... at its start for more workers"
                )
            engine: Engine = room.EmbeddedEngine(
                self._store, workers=workers, config=self._config if config is None else config
            )
            if not _running:
                atexit.unregister(_exit)  # it stands there once, and behind what came since
                atexit.register(_exit)
            self._engine = engine
            _running.add(self)
        try:
            if before is not None:
                before.stop(0.0)
            engine.start()
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is raised
                engine.stop(0.0)
            self._forget(engine)
            raise

    def stop(self, timeout: float) -> bool:
        """End the engine; True if it finished what was on the wire, or there is none.

        Whoever calls meanwhile waits for the same end. One that could not be awaited is kept: it
        may not be told stopped while it is not.
        """
        engine = self._engine
        if engine is None:
            return True
        try:
            return engine.stop(timeout)
        finally:
            if engine.status().state in _OVER:
                self._forget(engine)

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

    def _forget(self, engine: Engine) -> None:
        with self._turn:
            if self._engine is engine:  # another may have been started since
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
