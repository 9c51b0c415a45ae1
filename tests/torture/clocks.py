"""Clocks that jump under a running engine, in both directions, for all its processes or for one.

Each case sends mail that waits for a retry, is on the wire, is held, is to be sent later, is far
from due, or expires in half an hour; then the clock moves, the janitor sees it (``clock_jump`` says
so, else the case fails), and the clock is put right. Judged: everything arrives once, nothing is
failed, expired, released or sent before its time by the jump, no process is lost, no claim lapses,
no attempt is in doubt, ``check`` is clean (its sums, too), and no retry waits longer than its
schedule allows once the clock is right.

The cases of one engine run one after the other, engines side by side: most of it is waiting.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from mailstrom import clock
from mailstrom.errors import MailstromError
from mailstrom.testing.script import Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.support.checker import History, Sent, check, content_digest
from tests.support.engine import DEADLINE_S, Engine
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.support.witnesses import seen_by_server, spool_rows
from tests.torture import copied
from tests.torture.launch import with_faults
from tests.torture.table import Row

HOUR = 3_600_000
DAY = 24 * HOUR
DECADE = 3_653 * DAY
RETRY_S = 1.0
SIDE_BY_SIDE = 5
SETTINGS = {
    "retry": {"schedule": [f"{RETRY_S:g}s"], "jitter": 0.0},
    "supervisor": {"restart_backoff": ["0ms"], "watchdog": "10s"},
}

_CLIENT = """
import sys
from mailstrom import Mailstrom
with Mailstrom(sys.argv[1]) as ms:
    for text in sys.argv[2:]:
        print(ms.send(text.encode()), flush=True)
"""


class Clock:
    """The shift that processes armed with ``torture_clock`` read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, wall_ms: int, monotonic_ms: int = 0) -> None:
        """Both offsets, for every reader at once."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{wall_ms} {monotonic_ms}")
        fresh.replace(self.path)

    def environment(self) -> dict[str, str]:
        """Of a process whose clock this is."""
        return with_faults({"torture_clock": {"file": str(self.path)}})


@dataclass
class Mail:
    """The mail of a case: ids by what becomes of it."""

    arrives: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    held: str = ""
    far: str = ""


class Bench:
    """An engine with clocks of its own, and what was sent through it.

    Args:
        folder: an empty directory.
        seed: of the order of its cases.
    """

    def __init__(self, network: Network, folder: Path, *, seed: int | None = None) -> None:
        self.seed = seed
        self.clock = Clock(folder / "clock")
        self.beside = Clock(folder / "clock-of-one")
        self.engine = Engine(network, folder, workers=2, settings=SETTINGS)
        self.engine.ms.stats()
        rules = (Rule(stage="dot", delay=1.0, recipient="wire+*"),)
        self.host: SMTPServer
        self.domain, (self.host,) = network.site(Script(rules=rules))
        self.number = 0
        self.tried: dict[str, int] = {}
        self.worst_s: dict[str, float] = {}
        self.findings: list[str] = []
        self.sent: dict[str, Sent] = {}

    def start(self) -> None:
        """Start the engine with this bench's clock."""
        self.engine.start(env=self.clock.environment())

    def kept_log(self) -> None:
        """Put the log of an ended supervisor aside, so that the next one is waited for."""
        self._trouble()
        self.engine.log_file.rename(self.engine.log_file.with_suffix(f".{self.number}"))

    def _trouble(self) -> None:
        for event in ("worker.lost", "watchdog.killed", "claim.lapsed", "engine.failed"):
            self.findings += [f"{line}" for line in self.engine.log(event)]

    def jumps(self) -> int:
        """How many jumps the janitor has seen, forgotten ones included."""
        return self._number("SELECT coalesce((SELECT seq FROM sqlite_sequence"
                            " WHERE name = 'clock_jump'), 0)")  # fmt: skip

    def _number(self, sql: str) -> int:
        import apsw

        connection = apsw.Connection(str(self.engine.store), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(10_000)
            return int(next(iter(connection.execute(sql)))[0])
        finally:
            connection.close()

    def beats(self) -> int:
        """The oldest last beat of a living process."""
        return self._number(
            "SELECT min(heartbeat_ms) FROM worker WHERE state IN ('starting', 'ready', 'draining')"
        )

    def address(self, kind: str) -> str:
        """A fresh address whose server does this."""
        self.number += 1
        return f"{kind}+{self.number}@{self.domain}"

    def send(self, kind: str, **options: Any) -> str:
        """Send a message to a fresh address, whose bytes are known here alone; its id."""
        sent, raw = self._composed(kind)
        id = self.engine.ms.send(raw, **options)
        self.sent[id] = replace(sent, id=id)
        return id

    def _composed(self, kind: str) -> tuple[Sent, bytes]:
        to = self.address(kind)
        message_id = f"<{self.number}.{self.domain}@clocks.test>"
        raw = (
            f"From: a@sender.test\r\nTo: {to}\r\nSubject: news\r\nMessage-ID: {message_id}\r\n"
            "Date: Fri, 20 Nov 2026 12:00:00 +0000\r\n\r\nGood morning.\r\n"
        ).encode()
        digest = content_digest(raw)
        return Sent(id="", message_id=message_id, recipient=to, digest=digest), raw

    def finished(self) -> str:
        """Mail that is delivered, with all its history."""
        id = self.send("plain")
        if not self.engine.final(id).succeeded:
            self.findings.append(f"{id} was not delivered with the clock right")
        return id

    def mix(self) -> Mail:
        """Mail of every kind, each where it should be when the clock moves."""
        engine, mail = self.engine, Mail()
        soon = timedelta(seconds=1)
        mail.done = [self.finished()]
        mail.held = self.send("defer", expires_at=timedelta(minutes=30))
        retried = self.send("defer-once", expires_at=timedelta(minutes=30))
        wire = self.send("wire", expires_at=timedelta(minutes=30))
        mail.arrives = [retried, wire, self.send("later", send_at=soon)]
        mail.far = self.send("far", send_at=timedelta(days=2))
        eventually(
            lambda: engine.ms.hold(mail.held) == 1 and engine.ms.status(mail.held).status == "held",
            DEADLINE_S, what="held mail",
        )  # fmt: skip
        eventually(
            lambda: engine.attempts(retried) and self._at_the_dot(wire), DEADLINE_S,
            what="mail that waits for its retry, and mail on the wire",
        )  # fmt: skip
        return mail

    def _at_the_dot(self, id: str) -> bool:
        (recipient,) = self.engine.ms.status(id).recipients
        return any(recipient in dot.recipients for dot in list(self.host.dots))

    def client(self, count: int) -> list[str]:
        """Mail of a process whose clock is ``beside``."""
        argv = [sys.executable, "-P", "-c", _CLIENT, str(self.engine.store)]
        composed = [self._composed("client") for _ in range(count)]
        argv += [raw.decode() for _, raw in composed]
        ran = subprocess.run(
            argv, env=self.beside.environment(), capture_output=True, text=True, check=True,
            timeout=DEADLINE_S,
        )  # fmt: skip
        ids = ran.stdout.split()
        assert len(ids) == count, ran.stderr
        self.sent |= {id: replace(one, id=id) for id, (one, _) in zip(ids, composed, strict=True)}
        return ids

    def seen(self, before: int, name: str) -> None:
        """Wait until the janitor has seen a jump: else nothing was tried."""
        eventually(lambda: self.jumps() > before, DEADLINE_S, what=f"{name}: a jump was seen")

    def settled(self, name: str) -> None:
        """Wait until the janitor has looked at the right clock: no jump is left to be seen."""

        def right() -> bool:
            told = self._number("SELECT wall_ms - monotonic_ms FROM clock")
            return abs(told - (clock.wall_ms() - clock.monotonic_ms())) < 10_000

        eventually(right, DEADLINE_S, what=f"{name}: the right clock was seen")

    def arrived(self, name: str, mail: Mail, *, far: bool = True, last: bool = True) -> None:
        """Everything that should arrive does, soon; what should wait has waited.

        Args:
            far: whether mail of the day after tomorrow must still wait.
            last: whether the case ends here.
        """
        for id in mail.done:
            self._is_there(name, id)
        begun = time.monotonic()
        for id in mail.arrives:
            status = self.engine.final(id)
            if not status.succeeded:
                self.findings.append(f"{name}: {id} was not delivered: {status}")
        recovery = time.monotonic() - begun
        self.worst_s[name] = max(self.worst_s.get(name, 0.0), recovery)
        if mail.held:
            if (word := self.engine.ms.status(mail.held).status) != "held":
                self.findings.append(f"{name}: held mail is {word}")
            self.engine.ms.cancel(mail.held)
        if mail.far:
            word = self.engine.ms.status(mail.far).status
            if far and word != "queued":
                self.findings.append(f"{name}: mail for the day after tomorrow is {word}")
            self.engine.ms.cancel(mail.far)
        self.tried[name] = self.tried.get(name, 0) + last

    def _is_there(self, name: str, id: str) -> None:
        """Finished mail and its history, which no jump makes old."""
        engine = self.engine
        try:
            whole = content_digest(engine.ms.raw(id)) == self.sent[id].digest
        except MailstromError as error:
            self.findings.append(f"{name}: the content of finished mail is gone: {error}")
            return
        events = engine.rows("SELECT 1 FROM events WHERE message_id = ?", id)
        if not (whole and engine.attempts(id) and events):
            self.findings.append(f"{name}: the history of finished mail {id} is gone")

    def judge(self) -> Row:
        """After the last case: the engine ended, its spool and history looked at."""
        engine, findings = self.engine, self.findings
        for id in self.sent:
            eventually(
                lambda id=id: engine.ms.status(id).completed, DEADLINE_S, what=f"end of {id}"
            )
        if (code := engine.stop()) != 0:
            findings.append(f"the supervisor ended with {code}")
        self._trouble()
        findings += engine.ms.check()
        sent = tuple(self.sent.values())
        rows = spool_rows(engine.ms.query)
        report = check(History(acknowledged=sent, seen=seen_by_server(self.host.dots),
                               spool=rows))  # fmt: skip
        marked = sum(sum(row.attempts) for row in rows)
        findings += [f"in doubt by a clock: {row}" for row in rows if any(row.attempts)]
        findings += [f"failed by a clock: {row}" for row in rows if row.status == "failed"]
        findings += [one.text for one in (*report.phantom, *report.wrong_bytes, *report.stuck)]
        counted = engine.rows("SELECT sum(recipients) FROM hourly_stats WHERE status = 'delivered'")
        delivered = sum(row.status == "delivered" for row in rows)
        if (counted[0][0] or 0) != delivered:
            findings.append(f"the hourly sums count {counted[0][0]} delivered, not {delivered}")
        return Row(
            part="contention",
            fault="clocks: " + ", ".join(self.tried),
            tried=sum(self.tried.values()),
            messages=len(sent),
            lost=len(report.lost),
            silent=len(report.doubled_unmarked),
            marked=marked,
            worst_recovery_s=max(self.worst_s.values(), default=None),
            findings=tuple(findings),
            seed=self.seed,
        )


Case = Callable[[Bench], None]


def jump(name: str, amount_ms: int) -> Case:
    """The clock of all processes of the engine moves, and is put right a little later."""

    def run(bench: Bench) -> None:
        mail, before = bench.mix(), bench.jumps()
        bench.clock.set(amount_ms)
        bench.seen(before, name)
        mail.arrives.append(bench.send("between"))
        bench.clock.set(0)
        bench.seen(before + 1, name)
        bench.arrived(name, mail, far=amount_ms < 2 * DAY)

    return run


def stays(name: str, amount_ms: int) -> Case:
    """As ``jump``, and all arrives by the new clock; put right when it has."""

    def run(bench: Bench) -> None:
        mail, before = bench.mix(), bench.jumps()
        bench.clock.set(amount_ms)
        bench.seen(before, name)
        later = mail.arrives.pop()  # its time is by the right clock
        bench.arrived(name, mail, far=amount_ms < 2 * DAY, last=False)
        bench.clock.set(0)
        bench.seen(before + 1, name)
        bench.arrived(name, Mail(arrives=[later]))

    return run


def steps(name: str, amount_ms: int, count: int, pause_s: float) -> Case:
    """The clock goes back and forth, faster than anybody can follow."""

    def run(bench: Bench) -> None:
        mail, before = bench.mix(), bench.jumps()
        for step in range(count):
            bench.clock.set(amount_ms if step % 2 == 0 else -amount_ms)
            time.sleep(pause_s)  # the fault itself: so long each clock holds
        bench.clock.set(0)
        bench.seen(before, name)
        bench.settled(name)
        bench.arrived(name, mail)

    return run


def suspend(name: str, amount_ms: int) -> Case:
    """The machine slept: both clocks went on, and nothing else did. The last case of an engine.

    Time that a machine sleeps is age, so it sleeps for less than the half hour that mail may wait.
    """

    def run(bench: Bench) -> None:
        mail, before = bench.mix(), bench.jumps()
        assert bench.engine.process is not None
        group = bench.engine.process.pid  # it leads a session and a group of its own
        woken_ms = time.time_ns() // 1_000_000 + amount_ms
        os.killpg(group, signal.SIGSTOP)
        bench.clock.set(amount_ms, amount_ms)
        os.killpg(group, signal.SIGCONT)
        eventually(lambda: bench.beats() >= woken_ms, DEADLINE_S,
                   what=f"{name}: beats by the new clock")  # fmt: skip
        bench.arrived(name, mail)
        if bench.jumps() != before:
            bench.findings.append(f"{name}: sleep was taken for a jump")

    return run


def one_process(name: str, amount_ms: int) -> Case:
    """A client alone has a wrong clock."""

    def run(bench: Bench) -> None:
        bench.beside.set(amount_ms)
        bench.arrived(name, Mail(arrives=bench.client(3)))

    return run


def at_start(name: str, amount_ms: int) -> Case:
    """Engine and client start with a wrong clock, which is put right under them."""

    def run(bench: Bench) -> None:
        done = bench.finished()
        assert bench.engine.stop() == 0
        bench.clock.set(amount_ms)
        bench.beside.set(amount_ms)
        ids = bench.client(2)  # while nobody delivers
        bench.kept_log()
        before = bench.jumps()
        bench.start()
        bench.seen(before, name)
        ids += bench.client(2)
        bench.clock.set(0)
        bench.seen(before + 1, name)
        bench.arrived(name, Mail(arrives=ids, done=[done]))

    return run


GROUPS: tuple[tuple[Case, ...], ...] = (
    (
        jump("an hour ahead", HOUR), jump("an hour back", -HOUR), jump("a day ahead", DAY),
        jump("a day back", -DAY), at_start("ten years ahead at the start", DECADE),
    ),
    (
        jump("ten years ahead", DECADE), jump("ten years back", -DECADE),
        steps("an hour back and forth, eight times", HOUR, 8, 0.3),
        at_start("ten years back at the start", -DECADE),
    ),
    (
        one_process("a client a day ahead", DAY), one_process("a client a day back", -DAY),
        one_process("a client ten years back", -DECADE),
        stays("a day back, and stays", -DAY), stays("an hour ahead, and stays", HOUR),
        at_start("a day ahead at the start", DAY), suspend("twenty minutes of sleep", HOUR // 3),
    ),
)  # fmt: skip


def _group(network: Network, folder: Path, cases: tuple[Case, ...], plan: Plan) -> Row:
    folder.mkdir()
    bench = Bench(network, folder, seed=plan.seed)
    # The last case stays: nothing comes after a sleep.
    first = random.Random(f"{plan.seed} {folder.name}").sample(cases[:-1], len(cases) - 1)
    try:
        bench.start()
        for case in (*first, cases[-1]):
            case(bench)
        return bench.judge()
    except BaseException as error:
        error.add_note(bench.engine.describe())
        error.add_note(f"cases done: {bench.tried}; findings: {bench.findings}; seed {plan.seed}")
        raise
    finally:
        bench.engine.close()


def _drawn(seed: int, count: int) -> tuple[Case, ...]:
    """Cases by chance: any amount between two minutes and ten years, either way."""
    draw = random.Random(seed)
    found: list[Case] = []
    for _ in range(count):
        amount = int(120_000 * (DECADE / 120_000) ** draw.random()) * draw.choice((1, -1))
        kind = draw.randrange(4)
        if kind < 2:
            found.append(jump(f"jump by {amount:,} ms", amount))
        elif kind == 2:
            found.append(stays(f"jump by {amount:,} ms that stays", amount))
        else:
            found.append(steps("back and forth", max(abs(amount) % DAY, 120_000), 6, 0.5))
    return tuple(found)


def run(plan: Plan) -> Iterator[Row]:
    """All cases; the long form repeats them with amounts by chance."""
    groups = [*GROUPS, *(_drawn(plan.seed * 1_000 + n, 8) for n in range(plan.pick(0, 45)))]
    with Network() as network, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        rows = [
            pool.submit(_group, network, plan.folder / f"clocks-{n}", cases, plan)
            for n, cases in enumerate(groups)
        ]
        rows += [pool.submit(one, plan) for one in (copied.held_until_adopted, copied.moved_away)]
        for row in rows:
            yield row.result()
