"""Where the cases of DNS are tried: an engine, a name server that lies, hosts that wait for mail.

Contract. A ``Case`` says what the DNS tells of a domain and what is wanted; ``World.tried`` sends a
message there and makes the row. Beside the outcome each row is judged by what holds for all: no
connection to the host that only lies name, no question asked more often than the retries of a
lookup and once a second, no lookup above 30 s, no raw control character in the log, and bounds of
memory and processor. Must not know: any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mailstrom.errors import InvalidAddress
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.dns_peer import KINDS, Act, Peer, Question, Say, host
from tests.hostile.stand import Stand, standing
from tests.hostile.table import MIB, Row
from tests.support.engine import DEADLINE_S, Tables
from tests.support.sockets import eventually
from tests.support.trial import Plan

LOOKUP_S = 2.0
"""``[dns] timeout`` of the stand."""
MOST_LOOKUP_S = 30.0
RETRIES = 6
"""Of one lookup at one server: three datagrams, and a stream behind each."""
MOST_MEMORY = 10 * MIB
MOST_CPU_S = {"short": 0.5, "long": 0.1}
"""Of a worker that also delivers, stores and logs; the short form runs beside other tests."""
LIFE_CPU_S = 0.02
"""What a second of it costs in any case: heartbeats, looks, rows."""

SETTINGS: Tables = {
    "delivery": {"connect_timeout": "1s"},
    "sites": {"suspend": ["60s"], "idle": "0s"},
    "dns": {"timeout": f"{LOOKUP_S}s"},
}
BEFORE_END = "SELECT status, reason FROM recipients WHERE message_id = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One lie.

    Args:
        name: in a few words.
        wanted: by the documented policy.
        says: what the name server says of the domain; may prepare hosts.
        short: whether it belongs to the short form.
        also: looked up in the domain's row, and told behind the outcome: an SQL expression.
        address: of the recipient, where it is not at the domain; ``{}`` is the domain.
    """

    name: str
    wanted: str
    says: Callable[[World, str], Say]
    short: bool = True
    also: str = ""
    address: str = "a@{}"


def flat(say: Say) -> Callable[[World, str], Say]:
    """What is said depends on the question alone."""
    return lambda world, domain: say


class World:
    """A stand whose names come from a ``Peer``.

    Args:
        stand: running.
        peer: whom its engine asks.
        form: how much processor a case may cost.

    Attributes:
        good: a host that takes mail; ``well`` makes names for it.
        evil: a host that nobody may connect to: ``evil.test`` and all names below it lead there.
    """

    def __init__(self, stand: Stand, peer: Peer, form: str) -> None:
        self.stand, self.peer = stand, peer
        self._most_cpu_s = MOST_CPU_S[form]
        self.good = stand.network.host()
        self.evil = stand.network.host()
        peer.says("evil.test", host(self.evil.host))
        self._numbers = 0

    def domain(self) -> str:
        """A name that nobody used; NXDOMAIN, until something is said of it."""
        self._numbers += 1
        return f"d{self._numbers}.zone.test"

    def well(self, name: str, *, server: SMTPServer | None = None) -> str:
        """Have a name lead to a host that takes mail."""
        self.peer.says(name, host((server or self.good).host))
        return name

    def server(self, script: Script | None = None) -> SMTPServer:
        """A host of its own."""
        return self.stand.network.host(script)

    def tried(self, case: Case) -> Row:
        """Send to the domain of a case, and see."""
        domain = self.domain()
        self.peer.says(domain, case.says(self, domain))
        told: list[str] = []

        def outcome() -> str:
            seen = self.sent(case.address.format(domain))
            if case.also:
                rows = self.stand.engine.rows(
                    f"SELECT {case.also} AS told FROM domains WHERE name = ?", domain
                )
                told.extend(str(row.told) for row in rows)
                seen = f"{seen}; {', '.join(told)}"
            return seen

        return self.judged(case.name, case.wanted, outcome)

    def sent(self, address: str) -> str:
        """Where one message stands when it first comes to something; it is cancelled then."""
        engine = self.stand.engine
        try:
            id = engine.send(address)
        except InvalidAddress:
            return "refused by send()"
        eventually(
            lambda: any(
                row.reason is not None or row.status == "delivered"
                for row in engine.rows(BEFORE_END, id)
            ),
            DEADLINE_S,
            what=f"an outcome for {address}",
        )
        (row,) = engine.rows("SELECT address FROM recipients WHERE message_id = ?", id)
        seen = self.stand.outcome(id, row.address)
        if not engine.ms.status(id).completed:
            engine.ms.cancel(id)
        return seen

    def judged(self, name: str, wanted: str, outcome: Callable[[], str]) -> Row:
        """A row of the stand, judged by what holds for every case."""
        before, log = len(self.peer.asked), self.stand.engine.log_file
        read, met = log.stat().st_size, len(self.evil.connections)
        looked_up = len(self.stand.engine.log("mx.resolved"))
        row = self.stand.measured(name, wanted, outcome)
        found = [
            *self.storm(self.peer.asked[before:], row.seconds or 0.0),
            *raw(log.read_bytes()[read:]),
        ]
        found += [f"the name server itself: {mistake}" for mistake in self.peer.mistakes]
        self.peer.mistakes.clear()
        if len(self.evil.connections) > met:
            found.append("a host was contacted that no right answer names")
        for line in self.stand.engine.log("mx.resolved")[looked_up:]:
            if line["elapsed_ms"] > MOST_LOOKUP_S * 1000:
                found.append(f"a lookup took {line['elapsed_ms'] / 1000:.0f} s")
        if (row.memory or 0) > MOST_MEMORY:
            found.append("the worker grew by more than 10 MiB")
        if (row.cpu_s or 0.0) > self._most_cpu_s + LIFE_CPU_S * (row.seconds or 0.0):
            found.append(f"it took the worker {row.cpu_s:.2f} s of processor")
        return replace(row, findings=(*row.findings, *found))

    def many(self, name: str, wanted: str, outcome: Callable[[], str], most_memory: int) -> Row:
        """A row of many messages: no bound of processor, another of memory."""
        before = len(self.peer.asked)
        row = self.stand.measured(name, wanted, outcome)
        found = [*self.storm(self.peer.asked[before:], row.seconds or 0.0)]
        if (row.memory or 0) > most_memory:
            found.append(f"the worker grew by {(row.memory or 0) / MIB:.0f} MiB")
        return replace(row, findings=(*row.findings, *found))

    @staticmethod
    def storm(asked: list[Question], seconds: float) -> Iterator[str]:
        """Names that were asked for too often."""
        times = Counter((question.name, question.kind) for question in asked)
        for (name, kind), count in times.items():
            if count > RETRIES + seconds:
                of = f"{KINDS.get(kind, kind)} of {name}"
                yield f"{of} was asked {count} times in {seconds:.0f} s"


def raw(log: bytes) -> Iterator[str]:
    """Control characters in lines of a log."""
    strange = {octet for octet in log if (octet < 32 and octet != 10) or octet == 127}
    if strange:
        yield f"raw control characters in the log: {sorted(strange)}"


def both(first: Act, *more: Act) -> Say:
    """These, whatever is asked."""
    return lambda question: (first, *more)


@contextmanager
def world(plan: Plan, name: str, settings: Tables | None = None) -> Iterator[World]:
    """A world of its own; ended afterwards.

    Args:
        plan: gives the folder, and the form.
        name: of a folder in it.
        settings: tables over ``SETTINGS``.
    """
    folder = plan.folder / name
    folder.mkdir()
    with Peer() as peer:
        tables = {name: dict(table) for name, table in SETTINGS.items()}
        tables["dns"]["nameservers"] = [peer.at]
        for name, table in (settings or {}).items():
            tables.setdefault(name, {}).update(table)
        with standing(folder, tables) as stand:
            yield World(stand, peer, "long" if plan.long else "short")
