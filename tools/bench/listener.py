"""Mail that comes in by SMTP: what the listener takes, what it keeps idle, and what goes through.

Contract. Postfix's ``smtp-source`` hands in messages of 1 KiB over 20 sessions, to one listener
process of ours and to Postfix's smtpd (as many processes as it wants) in turns, both with their
queue on this disk and synced before each 250; once with a connection for each message, once with
connections kept. Delivery is held meanwhile: of Postfix no queue manager runs, ours has a relay
that refuses connections, whose site therefore rests. Both have taken mail before the clock starts,
and all that was answered with 250 is counted in their queues afterwards. End to end is by
``smtp-source`` over kept connections, and out to ``smtp-sink``. Idle connections have said EHLO;
memory is that of the processes that hold them, ours one; what each adds is ``pss_kib_each``.
Postfix has one smtpd for each, of which it starts 100 and lets the others wait unless its
``default_process_limit`` is raised: it was, and it is asked for fewer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import apsw

from tests.support.sockets import accepts, eventually, free_port
from tools.bench.drain import SIZES, contenders, through
from tools.bench.engine import READY_S, Engine, relay_to
from tools.bench.figures import Figure
from tools.bench.peers.contender import Ours
from tools.bench.peers.postfix import Postfix
from tools.bench.plan import Plan, attempt, folder
from tools.bench.processes import Meter, family, pss_mib, rss_mib
from tools.bench.stations import Idlers, source

KEPT = {"20 sessions, connections kept": True, "20 sessions, a connection a message": False}
ACCEPTED = {"mailstrom": 20_000, "postfix": 8_000}
"""Messages of a run, as many as a few seconds need."""
WARM = 200
IDLE = {"mailstrom": 5_000, "postfix": 500}
SETTLE_S = 1.0
CLOSED_PORT = 9


def _tables(port: int, *, most: int) -> dict[str, dict[str, object]]:
    """One listener process, with no limit that a benchmark would meet."""
    return {
        "listener": {
            "bind": [f"127.0.0.1:{port}"], "workers": 1, "max_connections": most,
            "max_connections_per_client": most,
        },
    }  # fmt: skip


class Held:
    """Our engine with a listener, and with delivery that rests; a context manager.

    Args:
        home: directory of the run.
        uvloop: see ``tools.bench.engine.environ``.
        most: connections at a time.
    """

    def __init__(self, home: Path, *, uvloop: bool | None, most: int = 1_000) -> None:
        self.port = free_port()
        self._store = home / "spool.db"
        settings = relay_to(CLOSED_PORT) | _tables(self.port, most=most)
        settings["sites"]["suspend"] = ["1h"]
        self._engine = Engine(home, self._store, settings, workers=1, uvloop=uvloop)

    def start(self) -> None:
        """Starts it and waits until it listens."""
        self._engine.start()
        self._engine.ready()
        eventually(lambda: accepts("127.0.0.1", self.port), READY_S, what="our listener")

    def resting(self) -> None:
        """Waits until its delivery has given up for an hour, as it does behind a first message."""
        eventually(
            lambda: self._number("SELECT count(suspended_until_ms) FROM destinations"),
            READY_S,
            what="a site that rests",
        )

    def taken(self) -> int:
        """Messages in its spool."""
        return self._number("SELECT sum(messages) FROM queue_counts")

    def listeners(self) -> list[int]:
        """Ids of its listener processes."""
        with self._spool() as spool:
            return [
                pid for (pid,) in spool.execute(
                    "SELECT pid FROM workers"
                    " WHERE kind = 'listener' AND state NOT IN ('stopped', 'lost')"
                )
            ]  # fmt: skip

    def _number(self, sql: str) -> int:
        with self._spool() as spool:
            ((found,),) = spool.execute(sql)
        return int(found or 0)

    def _spool(self) -> _Reading:
        return _Reading(self._store)

    def roots(self) -> list[int]:
        """The supervisor."""
        return self._engine.roots()

    def words(self) -> str:
        """The end of its log."""
        return self._engine.words()

    def stop(self) -> None:
        """Ends it."""
        self._engine.stop()


class _Reading:
    """A connection that reads the spool; a context manager that closes it."""

    def __init__(self, store: Path) -> None:
        self._connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
        self._connection.set_busy_timeout(10_000)

    def __enter__(self) -> apsw.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class Listening(Ours):
    """Mailstrom that takes its mail by SMTP, and delivers it to the port it was made for."""

    def __init__(
        self, home: Path, port: int, *, workers: int = 2, uvloop: bool | None = None
    ) -> None:
        self.port = free_port()
        super().__init__(
            home, port, workers=workers, uvloop=uvloop, settings=_tables(self.port, most=1_000)
        )

    def serve(self) -> None:
        """Starts the engine and waits until it listens, too."""
        super().serve()
        eventually(lambda: accepts("127.0.0.1", self.port), READY_S, what="our listener")

    def offer(self, messages: int) -> tuple[float, float]:
        """By SMTP over 20 connections that are kept."""
        return source(self.port, messages)


def _measured(
    port: int, roots: Callable[[], list[int]], taken: Callable[[], int], blank: Figure, *,
    kept: bool,
) -> Figure:  # fmt: skip
    before = taken()
    meter = Meter(roots)
    begin, end = source(port, blank.n, kept=kept)
    used = meter.stop()
    found = taken() - before
    if found != blank.n:
        raise RuntimeError(f"{blank.n} messages were accepted and {found} are there")
    values = {
        "rate": blank.n / (end - begin),
        "cpu_s_per_1000": 1000 * used.cpu_s / blank.n,
        "busy_cores": used.busy_cores,
    }
    return replace(blank, values=values, foreign_cores=used.foreign_cores)


def _ours(blank: Figure, *, kept: bool) -> Figure:
    with folder() as home:
        held = Held(home, uvloop=blank.uvloop)
        try:
            held.start()
            source(held.port, WARM, kept=kept)
            held.resting()
            return _measured(held.port, held.roots, held.taken, blank, kept=kept)
        finally:
            held.stop()


def _postfix(blank: Figure, *, kept: bool) -> Figure:
    with folder() as home:
        queue = Postfix(home, CLOSED_PORT)
        try:
            queue.hold()
            source(queue.port, WARM, kept=kept)
            return _measured(queue.port, lambda: list(queue.roots()), queue.left, blank, kept=kept)
        finally:
            queue.close()


def _memory(port: int, pids: Callable[[], set[int]], blank: Figure) -> Figure:
    before = pss_mib(pids())
    idlers = Idlers(port, blank.n)
    try:
        time.sleep(SETTLE_S)
        found = pids()
        pss = pss_mib(found)
        values = {
            "pss_mib": pss,
            "rss_mib": rss_mib(found),
            "pss_kib_each": 1024 * (pss - before) / blank.n,
        }
        return replace(blank, values=values)
    finally:
        idlers.close()


def _ours_idle(blank: Figure) -> Figure:
    with folder() as home:
        held = Held(home, uvloop=blank.uvloop, most=blank.n + 1_000)
        try:
            held.start()
            source(held.port, WARM)
            return _memory(held.port, lambda: set(held.listeners()), blank)
        finally:
            held.stop()


def _postfix_idle(blank: Figure) -> Figure:
    with folder() as home:
        raised = {
            "default_process_limit": blank.n + 100, "smtpd_client_connection_count_limit": 0,
        }  # fmt: skip
        queue = Postfix(home, CLOSED_PORT, settings=raised)
        try:
            queue.hold()
            source(queue.port, WARM)
            return _memory(queue.port, lambda: family(queue.roots()), blank)
        finally:
            queue.close()


def _forms(plan: Plan) -> Iterator[tuple[str, bool | None]]:
    for uvloop in plan.loops:
        yield "mailstrom", uvloop
    if "postfix" in plan.peers:
        yield "postfix", None


def listener(plan: Plan) -> Iterator[Figure]:
    """Taking, both ways; idle connections; from SMTP to SMTP."""
    beside = replace(plan, peers=tuple(peer for peer in plan.peers if peer == "postfix"))
    for run in range(1, plan.runs + 1):
        for case, kept in KEPT.items():
            for who, uvloop in _forms(plan):
                blank = Figure(
                    bench="listener", case=f"accept, {case}", who=who, uvloop=uvloop, run=run,
                    n=plan.many(ACCEPTED[who]),
                )  # fmt: skip
                take = _ours if who == "mailstrom" else _postfix
                yield attempt(blank, lambda blank, take=take, kept=kept: take(blank, kept=kept))  # type: ignore[misc]
        for name, uvloop, make in contenders(beside):
            made = make
            if name == "mailstrom":
                made = lambda home, port, uvloop=uvloop: Listening(  # noqa: E731
                    home, port, workers=plan.workers, uvloop=uvloop
                )
            n = plan.many(SIZES[name][1])
            blank = Figure(
                bench="listener", case="in and out by SMTP", who=name, uvloop=uvloop, run=run, n=n
            )
            yield attempt(blank, lambda blank, made=made, n=n: through(made, n, blank))  # type: ignore[misc]
        for who, uvloop in _forms(plan):
            blank = Figure(
                bench="listener", case="idle connections", who=who, uvloop=uvloop, run=run,
                n=plan.many(IDLE[who]),
            )  # fmt: skip
            yield attempt(blank, _ours_idle if who == "mailstrom" else _postfix_idle)
