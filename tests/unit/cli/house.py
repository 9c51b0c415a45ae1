"""A real spool that the engine's store verbs have put mail into, in every state; no engine runs.

Contract. ``House`` sends at the real time and lets ``Spool`` play the worker; whatever a command
asks of the spool it finds as an engine would have left it.
"""

from __future__ import annotations

import os
from typing import Any

from mailstrom.clock import wall_ms
from mailstrom.lockfile import LockFile
from mailstrom.storage import open_client_store, open_worker_store, run_directory
from tests.storage.spool import HOUR, Spool, attempt, session_row

SECOND = 1_000
ENDED = 60 * SECOND - 400  # from acceptance to the end of an attempt here


class OnDisk:
    """Stores on one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened: list[Any] = []

    def client(self) -> Any:
        self.opened.append(open_client_store(self.path))
        return self.opened[-1]

    def worker(self) -> Any:
        self.opened.append(open_worker_store(self.path))
        return self.opened[-1]


class House:
    """A spool and its ids by what became of the message."""

    def __init__(self, path: str) -> None:
        self.now = wall_ms()
        self.stores = OnDisk(path)
        self.spool = Spool(self.stores)
        self.ids: dict[str, str] = {}
        self.numbers = iter(range(1, 1000))
        self.lock = LockFile(os.path.join(run_directory(path), "delivery.lock"))

    def send(self, name: str, *recipients: str, **changes: Any) -> str:
        id = f"{self.now:012x}-0000-7000-8000-{next(self.numbers):011x}"
        values = {"created_ms": self.now - 60 * SECOND, "send_ms": self.now - 60 * SECOND}
        self.ids[name] = self.spool.send(*recipients, id=id, **{**values, **changes})
        return id

    def attempts(self, name: str, domain: str, state: str, **changes: Any) -> None:
        """One attempt over TLS for the only recipient of a fresh message."""
        spool, now = self.spool, self.now
        self.send(name, f"{name}@{domain}")
        spool.route(domain, now=now)
        lane = spool.lane(now=now)
        rows = spool.claim(lane, now=now)
        session = f"session-{name}"
        spool.exchange(sessions=[session_row(session, lane, started_ms=now - SECOND)], now=now)
        spool.open(lane, rows, session, now=now)
        of = {"session": session, "started_ms": now - 900, "ended_ms": now - 400}
        made = attempt(state, **of, host=f"mx.{domain}", **changes)
        due = {"due_ms": now + HOUR} if state == "deferred" else {}
        assert spool.settle(lane, rows[0], state, attempt=made, now=now, **due)
        ended = session_row(
            session, lane, started_ms=now - SECOND, ended_ms=now, messages=1, end_cause="quit"
        )
        spool.exchange(sessions=[ended], now=now)
        spool.engine.release([lane.token], now)

    def lives(self) -> None:
        """From now on the worker's process is there: its lock file is held, its beat is fresh."""
        assert self.lock.acquire()
        self.beats(self.now)

    def beats(self, at_ms: int, state: str = "ready") -> None:
        self.spool.engine.beat(self.spool.worker, state=state, sessions=0, now_ms=at_ms)

    def close(self) -> None:
        self.lock.release()
        for store in self.stores.opened:
            store.close()
