"""One small engine with one mail host, and the judgement of what is left of its mail.

Contract. A ``Story`` starts an engine with faults in it or none, sends small messages whose bytes
it knows, waits for what processes and host show, and turns the three witnesses into a row. What a
story finds wrong besides, it says with ``must``. Must not know: which fault is told of.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from mailstrom.testing.script import Director, Rule, Script
from tests.support.checker import History, Sent, check, content_digest
from tests.support.engine import DEADLINE_S, Engine, Tables
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.support.witnesses import seen_by_server, spool_rows
from tests.torture.processes import Process, members, open_connections
from tests.torture.storm import BEGUN, DRAIN_S, FEED, FEED_S, UNFINISHED
from tests.torture.table import Row

LANES = 4
"""Most connections to the host."""
SLACK_S = 30.0
"""What an end may take beyond the drain's time-out, on a machine that does much else besides."""
_FLOW = Script(rules=(Rule(stage="dot", delay=0.03),))


class Story:
    """An engine, one domain with one host, and what was sent; a context manager.

    Args:
        name: of its folder.
        script: of the host.
        settings: tables over the story's own.
        environment: the engine's, with faults in it; None for a plain one.
        wait: whether to wait until the engine is ready.
    """

    def __init__(
        self, plan: Plan, network: Network, name: str, script: Script = _FLOW, *,
        settings: Tables | None = None, environment: dict[str, str] | None = None,
        workers: int = 2, wait: bool = True,
    ) -> None:  # fmt: skip
        tables: dict[str, dict[str, object]] = {
            "delivery": {"drain_timeout": f"{DRAIN_S}s"}, "sites": {"connections": LANES},
        }  # fmt: skip
        for table, values in (settings or {}).items():
            tables.setdefault(table, {}).update(values)
        folder = plan.folder / name
        folder.mkdir(parents=True)
        self.plan, self.name, self.network = plan, name, network
        self.engine = Engine(network, folder, workers=workers, settings=tables)
        self.domain, (self.host,) = network.site(script)
        self.findings: list[str] = []
        self.sent: list[Sent] = []
        self.environment = environment
        self._wait = wait
        self._supervisors: set[int] = set()

    def __enter__(self) -> Story:
        """Start the engine."""
        try:
            self.start(wait=self._wait)
        except BaseException:
            self.engine.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        """End it; an error learns what the spool and the log said."""
        if isinstance(error[1], BaseException):
            error[1].add_note(self.engine.describe())
        self.engine.close()

    def start(self, *, wait: bool = True, environment: dict[str, str] | None = None) -> None:
        """Start a supervisor."""
        self.engine.start(wait=wait, env=environment or self.environment)
        assert self.engine.process is not None
        self._supervisors.add(self.engine.process.pid)

    def processes(self, kind: str | None = None) -> list[Process]:
        """Living processes of the engine."""
        return members(self._supervisors, kind)

    def one(self, kind: str) -> Process:
        """Its living process of a kind, once there is one."""
        return eventually(lambda: self.processes(kind), DEADLINE_S, what=f"a living {kind}")[0]

    def send(self, count: int, *, mark: str = "") -> list[str]:
        """Send so many small messages; their ids."""
        ids = []
        for _ in range(count):
            number = len(self.sent)
            message_id, to = f"<{self.name}.{number}@story.test>", f"u{number}@{self.domain}"
            raw = (
                f"From: a@sender.test\r\nTo: {to}\r\nSubject: {self.name} {number}\r\n"
                f"Message-ID: {message_id}\r\nDate: Fri, 20 Nov 2026 12:00:00 +0000\r\n\r\n"
                f".{mark}\r\n"
            ).encode()
            id = self.engine.ms.send(raw)
            digest = content_digest(raw)
            self.sent.append(Sent(id=id, message_id=message_id, recipient=to, digest=digest))
            ids.append(id)
        return ids

    def warm(self) -> None:
        """Make the site known: the next mail gets all its lanes."""
        (id,) = self.send(1)
        self.engine.final(id)

    def await_dots(self, count: int) -> None:
        """Wait until the host saw so many contents."""
        eventually(
            lambda: len(self.host.dots) >= count, DEADLINE_S, what=f"{count} contents",
            interval=0.002,
        )  # fmt: skip

    def await_held_back(self) -> int:
        """Wait until all sessions, more than one, wait for an answer to a dot; how many."""

        def waiting() -> int | None:
            held = len(self.host.dots) - 1
            return held if held > 1 and held == self.sessions(self.processes()) else None

        return eventually(waiting, DEADLINE_S, what="sessions that wait for an answer")

    def calm(self) -> None:
        """Have the host behave well from now on."""

        def change() -> None:
            self.host.director = Director(Script())

        self.network.on_loop(change)

    def busy(self) -> Process:
        """A worker with a session open, once there is one.

        Where this process stood still until all that was sent had arrived, more is sent.
        """
        since = time.monotonic()

        def found() -> list[Process]:
            nonlocal since
            workers = [one for one in self.processes("delivery") if self.sessions([one])]
            if not workers and time.monotonic() - since > FEED_S:
                if not self.engine.rows(UNFINISHED):
                    self.send(FEED)
                since = time.monotonic()
            return workers

        return eventually(
            found, DEADLINE_S, what="a worker with a session", interval=0.002
        )[0]  # fmt: skip

    def sessions(self, processes: Iterable[Process]) -> int:
        """How many connections to the host they hold."""
        return sum(open_connections(one.pid, self.network.port) for one in processes)

    def must(self, holds: bool, otherwise: str) -> None:
        """A finding, if this does not hold."""
        if not holds:
            self.findings.append(otherwise)

    def await_end(self, *, held: int = 0) -> None:
        """Wait until all but those that are to be held are final."""
        sql = (
            "SELECT count(*) AS n FROM recipients"
            " WHERE finished_ms IS NULL AND status IS NOT 'held'"
        )
        try:
            eventually(lambda: not self.engine.rows(sql)[0].n, DEADLINE_S, what="the end")
        except AssertionError:
            self.findings.append(f"not all final after {DEADLINE_S:g} s")
        rows = self.engine.rows("SELECT status, count(*) AS n FROM recipients GROUP BY status")
        found = {row.status: row.n for row in rows}
        wanted = {"delivered": len(self.sent) - held, "held": held}
        self.must(found == {k: n for k, n in wanted.items() if n}, f"at the end: {found}")

    def drain(self) -> None:
        """TERM: it must end in time, with 0, and leave nobody behind."""
        started = time.monotonic()
        self.left(self.engine.stop(), time.monotonic() - started)

    def left(self, code: int, took_s: float, *, wanted: int = 0) -> None:
        """Judge an end of the engine."""
        self.must(code == wanted, f"the supervisor ended with {code}, not {wanted}")
        self.must(took_s <= DRAIN_S + SLACK_S, f"the end took {took_s:.1f} s")
        for one in self.processes():
            self.findings.append(f"{one.kind} {one.pid} outlived the supervisor")

    def row(
        self,
        fault: str,
        tried: int,
        *,
        most_marked: int = 0,
        killed_sessions: int = 0,
        recovery_s: float | None = None,
    ) -> Row:
        """Judge the witnesses; more marks than the fault explains are a finding.

        Args:
            most_marked: attempts in doubt that are allowed.
            killed_sessions: sessions of workers that were killed, which explain ``BEGUN`` each.
        """
        most_marked += killed_sessions * BEGUN
        report = check(
            History(
                acknowledged=tuple(self.sent),
                seen=seen_by_server(list(self.host.dots)),
                spool=spool_rows(self.engine.ms.query),
            )
        )
        (doubt,) = self.engine.rows("SELECT count(*) AS n FROM attempts WHERE in_doubt")
        self.must(
            doubt.n <= most_marked, f"{doubt.n} attempts in doubt, explained are {most_marked}"
        )
        for rule in ("phantom", "wrong_bytes", "stuck"):
            self.findings += [f"{rule}: {one.text}" for one in getattr(report, rule)]
        self.findings += [f"store check: {text}" for text in self.engine.ms.check()]
        return Row(
            part="kill", fault=fault, tried=tried, messages=len(self.sent),
            lost=len(report.lost), silent=len(report.doubled_unmarked), marked=doubt.n,
            worst_recovery_s=recovery_s, findings=tuple(self.findings), seed=self.plan.seed,
        )  # fmt: skip
