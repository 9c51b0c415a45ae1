"""What a measurement asks of a queue, ours or a peer's, and ours behind it.

Contract. A contender is filled with delivery held, then delivers to the port it was made for; or
takes mail while it delivers. Messages have 1 KiB bodies and one recipient, all for one destination.
Each does as well as its own settings allow without giving up what it promises by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from tools.bench.engine import Applications, Engine, fill, relay_to, together, undelivered

APPLICATIONS = 4
CALLERS = 5
"""Threads of each that hand over: 20 in all, as Postfix is given 20 sessions."""
"""Processes that hand over mail where delivery goes on meanwhile."""


class Contender(Protocol):
    """A queue with delivery behind it; made for one run, ended by :meth:`close`."""

    def fill(self, messages: int) -> float:
        """Takes messages with delivery held; seconds that took."""

    def deliver(self) -> None:
        """Lets delivery begin."""

    def serve(self) -> None:
        """Delivers, and takes mail: all that :meth:`offer` needs is ready after this."""

    def offer(self, messages: int) -> tuple[float, float]:
        """Takes messages while it delivers; monotonic begin and end of handing over."""

    def roots(self) -> Iterable[int]:
        """Ids of the processes that its own work descends from."""

    def left(self) -> int:
        """Messages that it still holds, by its own account; 0 where it cannot say."""

    def words(self) -> str:
        """The end of what it logged, for an error's text."""

    def close(self) -> None:
        """Ends it."""


class Ours:
    """Mailstrom: ``send_many`` to fill, then a supervisor with two workers; ``send`` to offer.

    Args:
        home: directory of the run.
        port: where all mail goes.
        connections: at most so many to there.
        verb: what applications do in :meth:`offer`, see ``programs/sender.py``.
        callers: threads of each of them that do it.
        settings: more sections of the configuration.
    """

    def __init__(
        self,
        home: Path,
        port: int,
        *,
        connections: int = 20,
        workers: int = 2,
        uvloop: bool | None = None,
        verb: str = "send",
        callers: int = CALLERS,
        settings: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self._home = home
        self._store = home / "spool.db"
        self._verb = verb
        self._callers = callers
        self._engine = Engine(
            home, self._store, {**relay_to(port, connections), **(settings or {})},
            workers=workers, uvloop=uvloop,
        )  # fmt: skip

    def fill(self, messages: int) -> float:
        """``send_many`` of ready bytes, one process."""
        handed = fill(self._home, self._store, messages)
        return handed.end - handed.begin

    def deliver(self) -> None:
        """Starts the engine."""
        self._engine.start()

    def serve(self) -> None:
        """Starts the engine and waits until it is ready."""
        self._engine.start()
        self._engine.ready()

    def offer(self, messages: int) -> tuple[float, float]:
        """Four processes of several threads, one message a call."""
        share = messages // APPLICATIONS
        plans = [
            {"store": str(self._store), "number": number, "verb": self._verb,
             "callers": self._callers,
             "messages": share + (messages % APPLICATIONS if number == 0 else 0)}
            for number in range(APPLICATIONS)
        ]  # fmt: skip
        applications = Applications(self._home, plans)
        applications.go()
        handed = together(applications.join())
        return handed.begin, handed.end

    def roots(self) -> Iterable[int]:
        """The supervisor."""
        return self._engine.roots()

    def left(self) -> int:
        """What the spool does not call delivered."""
        return undelivered(self._store)

    def words(self) -> str:
        """The end of the engine's log."""
        return self._engine.words()

    def close(self) -> None:
        """Ends the engine."""
        self._engine.stop()
