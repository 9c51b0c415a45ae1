"""An engine under load: client processes, a sink process, and the judgement of what is left.

Contract. Client processes send to four domains at three sites, as far as they are allowed; one sink
process answers each final dot after 0 to 5 ms, by the last digit of a recipient's number. Whoever
uses a storm ends processes of it, says so with ``struck``, and calls ``finish`` and ``verdict``:
everything must then be delivered, each copy too many must be marked, each mark must belong to a
process that was ended, and none of those may have more marks than it had sessions.

The harness keeps digests and ids, never contents; the sink's record is read as it grows.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from mailstrom.policy.pace import MOST_OPENED
from mailstrom.storage import run_directory
from tests.support.checker import History, Report, Sent, check
from tests.support.engine import DEADLINE_S, Engine, Tables
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.witnesses import spool_rows
from tests.torture.processes import Process, members, open_connections
from tests.torture.storm_load import CLIENT, END_S, Client, Sink
from tests.torture.table import Row

SESSIONS = 8
"""Most connections of one worker at once."""
DRAIN_S = 5
SETTINGS: Tables = {
    "delivery": {"max_connections": SESSIONS, "drain_timeout": f"{DRAIN_S}s"},
    "sites": {"connections": SESSIONS, "idle": "500ms", "suspend": ["1s"]},
    "log": {"format": "json", "level": "warning"},
}

FEED_S, FEED = 1.0, 15
"""Nobody was busy for so long and nothing waits: so many messages more."""
UNFINISHED = "SELECT 1 FROM recipients WHERE finished_ms IS NULL AND status IS NOT 'held' LIMIT 1"

BEGUN = MOST_OPENED + 1 + 2
"""What one session may leave in doubt: a window of messages opened ahead, an urgent one on top, one
content on the wire and the envelope behind it. What an exchange opens takes the place of what it
settles, in one transaction."""


@dataclass(slots=True, kw_only=True)
class Doubt:
    """What may be in doubt of the attempts of one process.

    Args:
        sessions: how many sessions it had at most when it was ended.
        exact: whether they were counted while it stood still.
    """

    sessions: int
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a storm came to.

    Args:
        doubles: copies at the sink beyond the first, all marked unless ``report`` says otherwise.
        marked: attempts in doubt.
    """

    recipients: int
    unanswered: int
    doubles: int
    marked: int
    report: Report
    findings: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Storm:
    """An engine, a sink and clients; a context manager that ends them all.

    Args:
        folder: an empty directory.
        name: part of every Message-ID, with the seed.
        messages: how many are sent in all.
        doubts: process id -> what may be in doubt of it.
        held: recipients that were held after five losses in a row, and released at the end.
    """

    network: Network
    folder: Path
    name: str
    messages: int
    workers: int = 3
    senders: int = 3
    settings: Tables = field(default_factory=dict)
    doubts: dict[int, Doubt] = field(default_factory=dict)
    released: int = 0
    held: int = 0
    engine: Engine = field(init=False)
    sink: Sink = field(init=False)
    clients: list[Client] = field(init=False, default_factory=list)
    sessions: set[int] = field(init=False, default_factory=set)
    _ending: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Start the sink, the clients (allowed nothing yet) and the engine."""
        with contextlib.ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            settings = {name: dict(table) for name, table in SETTINGS.items()}
            for name, table in self.settings.items():
                settings.setdefault(name, {}).update(table)
            self.engine = Engine(self.network, self.folder, workers=self.workers, settings=settings)
            stack.callback(self.engine.close)
            self.sink = Sink(self.network, self.folder / "seen.jsonl")
            stack.callback(self.sink.close)
            domains = self._domains()
            share = math.ceil(self.messages / self.senders)
            for number in range(self.senders):
                record = self.folder / f"sent{number}.jsonl"
                argv = [sys.executable, "-P", str(CLIENT), str(self.engine.store), str(record)]
                count = min(share, self.messages - number * share)
                client = Client([*argv, f"{self.name}-{number}", str(count), *domains], record)
                self.clients.append(client)
                stack.callback(client.close)
            self.start()
            self._ending = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """End every process."""
        if isinstance(error[1], BaseException):
            error[1].add_note(self.engine.describe())
        self._ending.close()

    def _domains(self) -> list[str]:
        """Four domains at three sites."""
        network, (first, second) = self.network, self.sink.addresses
        domains = [network.new_domain() for _ in range(4)]
        network.route(domains[0], [first, second])
        network.route(domains[1], [first])
        network.route(domains[2], [second])
        network.zone(domains[3], {"MX": [f"10 mx1.{domains[2]}."]})
        return domains

    # Load

    def release(self, messages: int) -> None:
        """Let the clients send so many more."""
        self.released = min(self.released + messages, self.messages)
        for client in self.clients:
            client.allow(math.ceil(self.released / self.senders))

    def await_contents(self, beyond: int, patience_s: float = DEADLINE_S) -> int:
        """Wait until the sink saw more contents than that; how many they are."""
        return eventually(
            lambda: (seen := self.sink.look()) > beyond and seen,
            patience_s,
            what=f"more than {beyond} contents at the sink",
            interval=0.002,
        )

    # Engine

    def start(self) -> None:
        """Start a supervisor; it need not be ready yet."""
        self.engine.start(wait=False)
        assert self.engine.process is not None
        self.sessions.add(self.engine.process.pid)

    def processes(self, kind: str | None = None) -> list[Process]:
        """Living processes of the engine, orphans among them."""
        return members(self.sessions, kind)

    def connections(self, pid: int) -> int:
        """Connections to the sink that a process holds now."""
        return open_connections(pid, self.network.port)

    def await_busy(self) -> list[Process]:
        """Wait until a worker has a session open; all that have.

        Where this process stood still until all that was released had arrived, more is released.
        """
        since = time.monotonic()

        def busy() -> list[Process]:
            nonlocal since
            found = [one for one in self.processes("delivery") if self.connections(one.pid)]
            if not found and time.monotonic() - since > FEED_S:
                if not self.engine.rows(UNFINISHED):
                    self.release(FEED)
                since = time.monotonic()
            return found

        return eventually(busy, DEADLINE_S, what="a worker with a session", interval=0.002)

    def await_empty(self) -> None:
        """Wait until no process of the engine is left."""
        eventually(
            lambda: not self.processes(), DEADLINE_S, what="the end of every process of the engine"
        )

    def struck(self, pid: int, sessions: int, *, exact: bool) -> None:
        """Note that a process was ended with so many sessions open."""
        before = self.doubts.get(pid)
        own = Doubt(sessions=sessions, exact=exact)
        if before is not None:  # its number was used again
            own = Doubt(sessions=before.sessions + sessions, exact=before.exact and exact)
        self.doubts[pid] = own

    # Judgement

    def finish(self, *, sweep: bool = False) -> tuple[str, ...]:
        """Let the clients send the rest, wait until all is final, drain.

        Args:
            sweep: processes were killed: the next janitor may sweep up what they left.

        Returns:
            what was wrong.
        """
        self.release(self.messages)
        codes = [client.finish() for client in self.clients]
        self._await_end()
        self._release_held()
        findings = [f"a client ended with {code}" for code in codes if code]
        findings += self._drained()
        if sweep:
            self.start()
            with contextlib.suppress(AssertionError):  # it is a finding
                eventually(lambda: not self._strange_locks(), DEADLINE_S, what="the sweeping")
            findings += self._drained()
        findings += self._left_over()
        return tuple(findings)

    def _await_end(self) -> None:
        with contextlib.suppress(AssertionError):  # the checker says what is stuck
            eventually(
                lambda: not self.engine.rows(UNFINISHED), END_S, what="the end", interval=0.1
            )

    def _release_held(self) -> None:
        """Chance may end five workers with the same recipient: held as it must be, and sent now."""
        rows = self.engine.rows(
            "SELECT r.message_id, r.address FROM recipients AS r JOIN attempts AS a"
            " ON a.message_id = r.message_id AND a.recipient = r.address"
            " WHERE r.status = 'held' AND r.reason = 'poison' AND a.in_doubt"
            " GROUP BY 1, 2 HAVING count(*) >= 5"
        )
        self.held = len(rows)
        for row in rows:
            self.engine.ms.release(row.message_id, recipient=row.address)
        if rows:
            self._await_end()

    def _ready(self) -> bool:
        rows = self.engine.rows("SELECT pid FROM workers WHERE state = 'ready'")
        living = {process.pid for process in self.processes()}
        return len([row for row in rows if row.pid in living]) == self.workers + 1

    def _strange_locks(self) -> list[str]:
        """Lock files of processes that are not there."""
        living = {process.pid for process in self.processes()}
        own = [name for name in os.listdir(run_directory(str(self.engine.store)))
               if name.count("-") == 2 and name.endswith(".lock")]  # fmt: skip
        return [name for name in own if int(name.split("-")[1]) not in living]

    def _drained(self) -> list[str]:
        eventually(self._ready, DEADLINE_S, what="a whole engine")
        code = self.engine.stop()
        left = self.processes()
        findings = [] if code == 0 else [f"the supervisor ended with {code} after TERM"]
        return findings + [f"process {one.pid} ({one.kind}) outlived it" for one in left]

    def _left_over(self) -> list[str]:
        findings = [f"lock file left: {name}" for name in self._strange_locks()]
        return findings + [f"store check: {text}" for text in self.engine.ms.check()]

    def sent(self) -> tuple[list[Sent], list[Sent]]:
        """What the clients wrote down: acknowledged, unanswered."""
        acknowledged: list[Sent] = []
        unanswered: list[Sent] = []
        for client in self.clients:
            begun: dict[int, list[Sent]] = {}
            for what, number, *facts in client.lines():
                if what == "begun":
                    message_id, recipients, digest = facts
                    begun[number] = [
                        Sent(id="", message_id=message_id, recipient=one, digest=digest)
                        for one in recipients
                    ]
                else:
                    acknowledged += [replace(one, id=facts[0]) for one in begun.pop(number)]
            unanswered += [one for group in begun.values() for one in group]
        return acknowledged, unanswered

    def verdict(self) -> Verdict:
        """Hold the three witnesses against each other, and the doubts against the kills."""
        self.sink.look()
        acknowledged, unanswered = self.sent()
        report = check(
            History(
                acknowledged=tuple(acknowledged),
                seen=tuple(self.sink.seen),
                spool=spool_rows(self.engine.ms.query),
                unanswered=tuple(unanswered),
            )
        )
        rows = self.engine.rows("SELECT status, count(*) AS n FROM recipients GROUP BY status")
        findings = [f"{r.n} recipients are {r.status}" for r in rows if r.status != "delivered"]
        twice = self.engine.rows(
            "SELECT message_id FROM messages GROUP BY message_id HAVING count(*) > 1"
        )
        findings += [f"{row.message_id} was accepted twice" for row in twice]
        findings += [*self._undue(), *_told(report)]
        (marked,) = self.engine.rows("SELECT count(*) AS n FROM attempts WHERE in_doubt")
        pairs = {one.pair for one in self.sink.seen}
        return Verdict(
            recipients=len(acknowledged),
            unanswered=len(unanswered),
            doubles=sum(one.kept for one in self.sink.seen) - len(pairs),
            marked=marked.n,
            report=report,
            findings=tuple(findings),
        )

    def _undue(self) -> Iterator[str]:
        """Marks that no kill explains, and more of them than its sessions may have begun."""
        rows = self.engine.rows(
            "SELECT w.pid, count(DISTINCT a.message_id) AS n FROM attempts AS a"
            " LEFT JOIN workers AS w ON w.id = a.worker WHERE a.in_doubt GROUP BY w.pid"
        )
        for row in rows:
            doubt = self.doubts.get(row.pid)
            if doubt is None:
                yield f"{row.n} messages in doubt by process {row.pid}, which nobody ended"
            elif row.n > doubt.sessions * BEGUN:
                counted = "counted" if doubt.exact else "at most"
                yield (
                    f"{row.n} messages in doubt by process {row.pid}: {counted} {doubt.sessions}"
                    f" sessions, {BEGUN} messages each"
                )

    def row(
        self,
        fault: str,
        tried: int,
        verdict: Verdict,
        *,
        seed: int,
        findings: tuple[str, ...] = (),
        recovery_s: float | None = None,
    ) -> Row:  # fmt: skip
        """This storm as a row of the table."""
        return Row(
            part="kill", fault=fault, tried=tried, messages=verdict.recipients,
            lost=len(verdict.report.lost), silent=len(verdict.report.doubled_unmarked),
            marked=verdict.marked, worst_recovery_s=recovery_s,
            findings=(*findings, *verdict.findings), seed=seed,
        )  # fmt: skip


def _told(report: Report) -> Iterator[str]:
    """What the checker found beyond the two counts that a row has."""
    found = {"phantom": report.phantom, "wrong bytes": report.wrong_bytes, "stuck": report.stuck}
    for what, findings in found.items():
        for one in findings[:5]:
            yield f"{what}: {one.message_id} to {one.recipient}: {one.text}"
        if len(findings) > 5:
            yield f"{what}: {len(findings) - 5} more"


def now() -> float:
    """Seconds since the epoch, as the sink stamps contents."""
    return time.time()


TERM, KILL = signal.SIGTERM, signal.SIGKILL
