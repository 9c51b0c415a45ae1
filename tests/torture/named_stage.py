"""An engine on which named points are played one after the other: fault, recovery, judgement.

Every process of the engine has the points in it (``torture_points``); a case writes which one is
wanted, brings its scene about, waits for the token that the dying process left, lets the engine
recover by itself, and judges what its own mail came to by three witnesses (``tests.support``). The
domains and hosts of a case are its own, so nothing of one case is counted in another. Long,
because a case is one walk: scene, fault, recovery and judgement share all that they know.

What must follow a death, by the point's ``doubt``: nothing marked; or exactly the recipients of one
transaction; or those of at most one for each process that died. A process that stood still before
its death leaves in doubt exactly what the disk then said it had open.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from mailstrom.errors import OutcomeUnknown, SpoolError
from mailstrom.storage.sqlite.poison import poison_path
from mailstrom.testing.script import Act, Per, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.support.checker import History, Sent, check, content_digest
from tests.support.engine import Engine, Tables, alive
from tests.support.network import HELD_S, Network, dots
from tests.support.sockets import eventually
from tests.support.witnesses import seen_by_server, spool_rows
from tests.torture.launch import with_faults
from tests.torture.named_exact import Pairs, inexact, open_on_disk, opened_by
from tests.torture.named_points import ENDING_SCENES, POINTS, Scene, settings

Do = Literal["kill", "raise", "stop", "stop_kill"]
Marks = Mapping[tuple[str, str], list[int]]

TOKEN_S = 30.0
RECOVERY_S = 60.0
STOPPED_S = 3.0
ROUNDS = 8
"""So often more mail is sent to a host until a point is reached."""
BURST = 6
"""Messages that come at once."""
LOOK_S = 0.05
YEAR_MS = 365 * 86_400_000
JUMP_MS = 3_600_000

_SETTINGS: Tables = {
    "delivery": {"drain_timeout": "10s"},
    "sites": {"idle": "50ms", "suspend": ["500ms"], "connections": 1},
    "retry": {"schedule": ["500ms"], "jitter": 0.0},
    "stream.bulk": {"priority": "low"},
    "reports": {"delays": ["1s"]},
    "log": {"format": "json", "level": "info"},
}
_SLOW = Rule(stage="dot", delay=1.5, last=1)
_HELD = Rule(stage="dot", delay=HELD_S, last=1)  # until the fault has happened
_LATE = Rule(stage="dot", delay=HELD_S, recipient="late*", per=Per.RECIPIENT, last=1)
_AHEAD = (Script(rules=(_LATE, Rule(stage="dot", delay=0.1))),)  # so that others come behind
_SCRIPTS: dict[Scene, tuple[Script, ...]] = {
    "many": (Script(rules=(Rule(stage="dot", delay=0.1),)),),
    "serial": (Script(pipelining=False),),
    "next_host": (Script(rules=(Rule(stage="mail", code=451, last=1),)), Script()),
    "hang_up": (Script(rules=(Rule(stage="mail", act=Act.CLOSE, last=1),)),),
    "no_host": (Script(rules=(Rule(stage="greeting", code=554, last=2),)),),
    "doubt": (Script(rules=(Rule(stage="dot", act=Act.SILENCE, last=1),)),),
    "ahead": _AHEAD,
    "spared": _AHEAD,
    "drain": (Script(rules=(_SLOW,)),),
    "give_back": (Script(rules=(replace(_LATE, per=Per.SERVER),)),),
    "running": (Script(rules=(_HELD,)),),
    "expire": (Script(rules=(Rule(stage="mail", code=451),)),),
    "bounce": (Script(rules=(Rule(stage="rcpt", code=550, enhanced="5.1.1"),)),),
    # late still when who was stopped before telling goes on: else there is nothing to tell
    "late": (Script(rules=(Rule(stage="mail", code=451, lasting=STOPPED_S + 5.0),)),),
}
_TOLD: dict[Scene, str] = {"bounce": "failure", "late": "delay"}
"""What the sender wants to hear of, of the mail of a scene."""
_FINAL = ("delivered", "failed", "cancelled", "held")
_OTHERS_DIE: frozenset[Scene] = frozenset(("start", "doubt", "supervisor", "running"))


@dataclass(slots=True)
class Result:
    """What a case on a stage showed.

    Args:
        hit: whether the fault happened.
        recovery_s: from the fault until the last recipient was final or held.
        marked: attempts in doubt.
    """

    hit: bool = False
    recipients: int = 0
    lost: int = 0
    silent: int = 0
    marked: int = 0
    recovery_s: float | None = None
    findings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Mail:
    """A case's own domains, hosts and messages.

    Args:
        late: the last message whose dot was not answered at once.
        rounds: how often more was sent to reach the point.
        ahead: what was open when the engine was told to end.
    """

    domains: tuple[str, ...]
    hosts: list[SMTPServer]
    sent: list[Sent] = field(default_factory=list)
    unanswered: list[Sent] = field(default_factory=list)
    late: str = ""
    rounds: int = 0
    ahead: Pairs = frozenset()


class Stage:
    """One engine over one spool with a network of its own; a context manager.

    Args:
        folder: an empty directory.
        scenes: whose points are armed.
    """

    def __init__(self, folder: Path, scenes: frozenset[Scene]) -> None:
        self.folder = folder
        self.control = folder / "control"
        self.offset = folder / "offset"
        self.control.mkdir(parents=True)
        self._faults = {
            "torture_points": settings(str(self.control), scenes),
            "torture_clock": {"file": str(self.offset)},
        }
        self._ahead_ms = 0
        self._numbers = 0
        self._name = folder.name

    def __enter__(self) -> Self:
        """Start network and engine."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            self.network = opening.enter_context(Network())
            place = self.folder / "engine"
            place.mkdir()
            self.engine = Engine(self.network, place, workers=2, settings=_SETTINGS)
            opening.callback(self.engine.close)
            self._stack = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End both."""
        if error is not None:
            error.add_note(self.engine.describe())
        self._stack.close()

    def start(self) -> None:
        """Start the engine, if it does not run."""
        process = self.engine.process
        if process is None or process.poll() is not None:
            self._orphans_end()
            self.engine.start(env=with_faults(self._faults))

    def _stop(self) -> None:
        process = self.engine.process
        if process is not None and process.poll() is None:
            self.engine.stop()
        self._orphans_end()

    def _orphans_end(self) -> None:
        pids = [*self.engine.live(), *self.engine.live("janitor")]
        eventually(lambda: not any(map(alive, pids)), RECOVERY_S, what="the end of the orphans")

    # One case

    def case(
        self, name: str, *, do: Do = "kill", size: int = 1, hit: int = 1, hold: bool = False
    ) -> Result:
        """Play one point.

        Args:
            do: kill; raise an error; stop and go on after three seconds; stop, then kill.
            size: recipients of a message, in two domains of one site.
            hit: at which visit the fault happens; so many messages are sent, and one more, and in
                the scene ``mail`` others behind them, one by one, where several came in one visit.
            hold: send with ``on_doubt="hold"``.
        """
        self._numbers += 1
        result = Result()
        scene = POINTS[name].scene
        number = 1 if hit == 1 and scene not in ("doubt", "next_host") else hit + 1
        if scene == "many":
            number = hit + 5
        if scene == "supervisor":
            self._stop()
        else:
            self.start()
            self._quiet()
            self._healed()
        hold = hold or scene == "spared"
        jumps = self._jumps() if scene == "clock" else 0
        mail = self._site(scene, size)
        token = self.control / f"token{self._numbers}"
        told = {"point": name, "hit": hit, "do": "stop" if do == "stop_kill" else do,
                "token": token.name}  # fmt: skip
        try:
            self._play(scene, mail, size, number, hold, told)
            found = self._token(token)
            if scene == "running":
                self.network.pass_time()
        finally:
            (self.control / "armed").unlink(missing_ok=True)
        if found is None:
            result.findings.append("the point was not reached")
            return result
        result.hit = True
        if mail.rounds or scene == "give_back":
            number = len(mail.sent) // size
        try:
            stood = self._go_on(do, found["pid"], mail)
        except ProcessLookupError:  # the watchdog was quicker: another case than was asked for
            result.findings.append("the stopped process ended before it was let go on")
            stood = None
        if scene in ENDING_SCENES:
            self._end(scene)
            self.start()
        self._judge(result, mail, name, do, number, hold, found)
        if do in ("kill", "stop_kill") and scene not in _OTHERS_DIE:
            first = hit == 1 and mail.rounds <= 1
            result.findings += self._inexact(mail, name, found.get("told"), stood, first=first)
        if scene == "clock":
            with contextlib.suppress(AssertionError):
                eventually(lambda: self._jumps() > jumps, RECOVERY_S, what="the jump")
            if self._jumps() != jumps + 1:
                result.findings.append(f"one jump was counted {self._jumps() - jumps} times")
        return result

    def _jumps(self) -> int:
        """Jumps of the clock that are wholly shifted.

        Mail of ours may be a stray to an engine whose clock is ahead; its row is none of these.
        """
        return len(
            self.engine.rows(
                "SELECT seq FROM clock_jump WHERE done >= last AND amount_ms NOT IN (-1, at_ms)"
            )
        )

    def _quiet(self) -> None:
        """No dead worker, no lane, nothing in flight, no repair: what happens next is the case's.

        One worker that is ready is enough: another may be starting, after the last case.
        """
        engine = self.engine

        def quiet() -> bool:
            rows = engine.rows(
                "SELECT kind, pid, state FROM workers WHERE state NOT IN ('stopped', 'lost')"
            )
            ready = {row.kind for row in rows if row.state == "ready"}
            return (
                ready == {"delivery", "janitor"}
                and not os.path.lexists(poison_path(str(engine.store)))
                and all(alive(row.pid) for row in rows)
                and not engine.rows("SELECT 1 AS n FROM destinations WHERE lanes > 0 LIMIT 1")
            )

        eventually(quiet, RECOVERY_S, what="a quiet engine", interval=LOOK_S)

    def _site(self, scene: Scene, size: int) -> _Mail:
        scripts = _SCRIPTS.get(scene, (Script(),))
        hosts = [self.network.host(script) for script in scripts]
        names = []
        for number in range(1 if size == 1 else 2):
            domain = self.network.new_domain()
            names.append(domain)
            exchanges = []
            for place, host in enumerate(hosts, 1):
                name = f"mx{place}.{names[0]}"
                if number == 0:
                    self.network.zone(name, {"A": [host.host]})
                exchanges.append(f"{10 * place} {name}.")
            self.network.zone(domain, {"MX": exchanges})
        return _Mail(tuple(names), hosts)

    def _send(
        self, mail: _Mail, scene: Scene, size: int, number: int, hold: bool, *, name: str = "u"
    ) -> None:
        options: dict[str, Any] = {"on_doubt": "hold"} if hold else {}
        if scene in _TOLD:
            options["notify"] = [_TOLD[scene]]
        if scene == "expire":
            options["expires_at"] = timedelta(seconds=0.5)
        length = 700_000 if scene == "large" else 0
        while len(mail.sent) < number * size:
            turn = len(mail.sent) + len(mail.unanswered)
            message_id, recipients, raw = self._message(mail, size, name, turn, length)
            try:
                id = self.engine.ms.send(raw, **options)
            except OutcomeUnknown:  # an error that was raised in a sync: the spool is poisoned
                mail.unanswered += [
                    Sent(
                        id="unknown",
                        message_id=message_id,
                        recipient=one,
                        digest=content_digest(raw),
                    )
                    for one in recipients
                ]
                continue
            except SpoolError:
                self._healed()
                continue
            mail.sent += [
                Sent(id=id, message_id=message_id, recipient=one, digest=content_digest(raw))
                for one in recipients
            ]

    def _message(
        self, mail: _Mail, size: int, name: str, turn: int, length: int = 0
    ) -> tuple[str, list[str], bytes]:
        """Message-ID, recipients and bytes of another message of this case."""
        recipients = [
            f"{name}{turn}.{each}@{mail.domains[each % len(mail.domains)]}" for each in range(size)
        ]
        message_id = f"<{self._name}.{self._numbers}.{turn}@torture.test>"
        return message_id, recipients, _composed(message_id, recipients, length)

    def _burst(self, mail: _Mail, size: int, hold: bool, *, first: str = "u") -> None:
        """Send several messages in one transaction; the first may have recipients of its own."""
        options: dict[str, Any] = {"on_doubt": "hold"} if hold else {}
        start = len(mail.sent)
        made = [
            self._message(mail, size, "u" if number else first, start + number * size)
            for number in range(BURST)
        ]
        ids = self.engine.ms.send_many([raw for _, _, raw in made], **options)
        mail.sent += [
            Sent(id=id, message_id=message_id, recipient=one, digest=content_digest(raw))
            for id, (message_id, recipients, raw) in zip(ids, made, strict=True)
            for one in recipients
        ]

    def _healed(self) -> None:
        flag = Path(poison_path(str(self.engine.store)))
        eventually(lambda: not flag.exists(), RECOVERY_S, what="the repair", interval=LOOK_S)

    def _arm(self, told: dict[str, Any]) -> None:
        fresh = self.control / "armed.new"
        fresh.write_text(json.dumps(told))
        fresh.replace(self.control / "armed")

    def _play(
        self, scene: Scene, mail: _Mail, size: int, number: int, hold: bool, told: dict[str, Any]
    ) -> None:
        """Bring the scene about, with the point armed before it can be reached."""
        if scene in ("ahead", "spared"):
            self._ahead(mail, scene, size, hold, told)
            return
        if scene == "give_back":
            self._give_back(mail, scene, size, told)
            return
        late = scene in ("doubt", "drain", "running", "purge")
        if not late:
            self._arm(told)
        self._send(mail, scene, size, number, hold)
        if scene == "mail" and told["hit"] > 1:
            self._more(mail, size, hold, self.control / told["token"])
        elif scene == "supervisor":
            self.engine.start(wait=False, env=with_faults(self._faults))
        elif scene == "start":
            self._kill("delivery")
        elif scene == "janitor":
            self._kill("janitor")
        elif scene == "poison":
            Path(poison_path(str(self.engine.store))).write_text("EIO\n")
        elif scene == "clock":
            self._ahead_ms = JUMP_MS - self._ahead_ms  # ahead, then back, then ahead
            self.offset.write_text(str(self._ahead_ms))
        elif scene == "purge":
            self._until_final(mail)
            self._age()
            self._arm(told)
            self._kill("janitor")
        elif late:
            eventually(lambda: dots(mail.hosts), TOKEN_S, what="mail on the wire")
            self._arm(told)
            if scene == "drain":
                self.engine.signal(signal.SIGTERM)
            elif scene == "doubt" or told["point"] == "supervisor.restarting":
                os.kill(self.engine.pid_at(f"mx1.{mail.domains[0]}"), signal.SIGKILL)

    def _more(self, mail: _Mail, size: int, hold: bool, token: Path) -> None:
        """Send one message more, and another, until the point is reached.

        What waits behind the first is opened together, or by a claim: then all of it is one visit,
        or none. A message that finds no lane is opened by itself once its lane has connected.
        Visits are those of one process, and either of two may have the lane.
        """

        def over() -> bool:
            lanes = "SELECT 1 AS n FROM destinations WHERE lanes > 0 LIMIT 1"
            return token.exists() or (self._are_final(mail) and not self.engine.rows(lanes))

        while True:
            eventually(over, RECOVERY_S, what="the point or the end of a lane", interval=LOOK_S)
            if token.exists() or mail.rounds == ROUNDS:
                return
            mail.rounds += 1
            self._send(mail, "mail", size, len(mail.sent) // size + 1, hold)

    def _ahead(
        self, mail: _Mail, scene: Scene, size: int, hold: bool, told: dict[str, Any]
    ) -> None:
        """Have a lane claim with its session waiting: more comes while it waits for an answer.

        Its host has taken mail before. A lane that had no session any more when it claimed opened
        nothing with its claim; then there is another round.
        """
        token = self.control / told["token"]
        self._send(mail, scene, size, 1, hold)
        self._until_final(mail)
        while mail.rounds < ROUNDS and not token.exists():
            mail.rounds += 1
            self._send(mail, scene, size, len(mail.sent) // size + 1, hold, name="late")
            late = mail.sent[-1]
            mail.late = late.id
            eventually(
                lambda late=late: (
                    token.exists()
                    or any(dot.message_id == late.message_id for dot in dots(mail.hosts))
                ),
                TOKEN_S,
                what="a dot that is not answered",
            )
            if mail.rounds == 1:  # visits are counted from then on
                self._arm(told)
            self._burst(mail, size, hold)
            self.network.pass_time()
            eventually(
                lambda: token.exists() or self._are_final(mail),
                RECOVERY_S,
                what="the point or the end",
            )

    def _give_back(self, mail: _Mail, scene: Scene, size: int, told: dict[str, Any]) -> None:
        """Tell the engine to end while a lane waits for an answer and has more opened."""
        self._send(mail, scene, size, 1, False)
        self._until_final(mail)
        self._burst(mail, size, False, first="late")
        mail.late = mail.sent[size].id

        def opened() -> bool:
            rows = self.engine.rows(
                "SELECT DISTINCT message_id FROM recipients WHERE status = 'sending'"
            )
            return bool(dots(mail.hosts)[1:]) and len(rows) > 2

        eventually(opened, TOKEN_S, what="messages opened ahead of the wire", interval=LOOK_S)
        mail.ahead = open_on_disk(self.engine.store, self.engine.pid_at(f"mx1.{mail.domains[0]}"))
        self._arm(told)
        self.engine.signal(signal.SIGTERM)

    def _kill(self, kind: str) -> None:
        found: list[int] = []

        def lives() -> bool:  # after the last case another may be starting
            found[:] = self.engine.live(kind)
            return bool(found)

        eventually(lives, RECOVERY_S, what=f"a {kind} that lives", interval=LOOK_S)
        os.kill(found[0], signal.SIGKILL)

    def _age(self) -> None:
        """Make what is finished a year older."""
        self.engine.tamper(
            f"UPDATE message SET created_ms = created_ms - {YEAR_MS},"
            f" send_ms = send_ms - {YEAR_MS}, expires_ms = expires_ms - {YEAR_MS},"
            f" finished_ms = finished_ms - {YEAR_MS}"
            " WHERE finished_ms IS NOT NULL AND purged_ms IS NULL"
        )

    def _token(self, token: Path) -> dict[str, Any] | None:
        """What the dying process wrote, or None if nobody died."""

        def read() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = json.loads(token.read_text())
            except (FileNotFoundError, ValueError):
                return None
            return found

        try:
            return eventually(read, TOKEN_S, what="the fault", interval=LOOK_S)
        except AssertionError:
            return read()

    def _go_on(self, do: Do, pid: int, mail: _Mail) -> Pairs | None:
        """What becomes of a stopped process; of this mail what it had open when it was killed."""
        stood: Pairs | None = None
        if do in ("stop", "stop_kill"):
            eventually(lambda: _stopped(pid), TOKEN_S, what="the stop")
        if do == "stop":
            time.sleep(STOPPED_S)  # for so long nothing of it moves
            os.kill(pid, signal.SIGCONT)
        elif do == "stop_kill":
            stood = open_on_disk(self.engine.store, pid) & _pairs(mail)
            os.kill(pid, signal.SIGKILL)
        return stood

    def _end(self, scene: Scene) -> None:
        """The supervisor's end: it died, drains, or (where it lives on) is told to."""
        process = self.engine.process
        assert process is not None
        if process.poll() is None and scene != "drain":
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        process.wait(RECOVERY_S)

    # Judgement

    def _statuses(self, mail: _Mail) -> list[str]:
        marks = ", ".join("?" * len(mail.domains))
        rows = self.engine.rows(
            f"SELECT status FROM recipients WHERE domain IN ({marks})", *mail.domains
        )
        return [row.status for row in rows]

    def _are_final(self, mail: _Mail) -> bool:
        return all(status in _FINAL for status in self._statuses(mail))

    def _until_final(self, mail: _Mail) -> None:
        what = f"{len(mail.sent)} final recipients"
        eventually(lambda: self._are_final(mail), RECOVERY_S, what=what, interval=LOOK_S)

    def _until_over(self, mail: _Mail) -> None:
        """All are final, also mail whose dot came to be held back only after the fault."""
        held = 0

        def over() -> bool:
            nonlocal held
            (late,) = {one.message_id for one in mail.sent if one.id == mail.late} or {""}
            held, before = sum(dot.message_id == late for dot in dots(mail.hosts)), held
            if held > before:
                self.network.pass_time()
            return self._are_final(mail)

        what = f"{len(mail.sent)} final recipients"
        eventually(over, RECOVERY_S, what=what, interval=LOOK_S)

    def _judge(
        self,
        result: Result,
        mail: _Mail,
        name: str,
        do: Do,
        number: int,
        hold: bool,
        found: dict[str, Any],
    ) -> None:
        point = POINTS[name]
        result.recipients = len(mail.sent)
        try:
            self._until_over(mail)
        except AssertionError:
            result.findings.append(f"stuck: {sorted(set(self._statuses(mail)))}")
        result.recovery_s = time.monotonic() - found["at"]
        try:
            self._quiet()
        except AssertionError:
            result.findings.append("a lane, a dead worker's row, or poison stays")
        result.findings += [f"store check: {line}" for line in self.engine.ms.check()]
        self._witnesses(result, mail, point.scene)
        if point.scene in _TOLD:
            result.findings += self._told(mail, do)
        marks = self._marks(mail)
        result.marked = sum(sum(group) for group in marks.values())
        result.findings += unexpected(
            marks, point.doubt, do=do, messages=number, scene=point.scene, hold=hold
        )
        if hold:
            held = self._statuses(mail).count("held")
            if held != result.marked:
                result.findings.append(f"{result.marked} in doubt, {held} held for a person")

    def _witnesses(self, result: Result, mail: _Mail, scene: Scene) -> None:
        ids = {sent.message_id for sent in (*mail.sent, *mail.unanswered)}
        rows = tuple(row for row in spool_rows(self.engine.rows) if row.message_id in ids)
        purged = scene == "purge" and not rows
        if purged:
            return  # delivered before (it was waited for), and history since
        history = History(
            acknowledged=tuple(mail.sent),
            unanswered=tuple(mail.unanswered),
            seen=seen_by_server(dots(mail.hosts)),
            spool=rows,
            finished=scene not in ("expire", "bounce"),
        )
        report = check(history)
        result.lost += len(report.lost)
        result.silent += len(report.doubled_unmarked)
        for kind in ("lost", "phantom", "wrong_bytes", "doubled_unmarked", "stuck"):
            result.findings += [
                f"{kind}: {one.message_id} to {one.recipient}: {one.text}"
                for one in getattr(report, kind)
            ]
        wanted = {"failed"} if scene in ("expire", "bounce") else {"delivered", "held"}
        states = {row.status for row in rows}
        if not states <= wanted:
            result.findings.append(f"ended as {sorted(states)}")

    def _told(self, mail: _Mail, do: Do) -> list[str]:
        """Of whom nobody was told, or more than once; an error may put the report off."""
        ids = {sent.id for sent in mail.sent}
        wanted = Counter(sent.recipient for sent in mail.sent)

        def told() -> Counter[str]:
            rows = self.engine.rows(
                "SELECT message_id, detail FROM events WHERE type = 'message.reported'"
            )
            details = [json.loads(row.detail) for row in rows if row.message_id in ids]
            return Counter(one for detail in details for one in detail["recipients"])

        with contextlib.suppress(AssertionError):
            eventually(lambda: told() >= wanted, RECOVERY_S / 2, what="reports", interval=LOOK_S)
        put_off = "SELECT message_id FROM events WHERE type = 'message.unreported'"
        if do == "raise" and any(row.message_id in ids for row in self.engine.rows(put_off)):
            return []
        return [] if told() == wanted else [f"told of {dict(told())}, to be told {dict(wanted)}"]

    def _inexact(
        self,
        mail: _Mail,
        name: str,
        told: dict[str, Any] | None,
        stood: Pairs | None,
        *,
        first: bool,
    ) -> list[str]:
        """What is in doubt and was not open, or the other way round; see ``named_exact``."""
        own = _pairs(mail)
        rows = self.engine.rows("SELECT message_id, recipient FROM attempts WHERE in_doubt")
        return inexact(
            POINTS[name],
            own & {(str(row.message_id), str(row.recipient)) for row in rows},
            sent=[(sent.id, sent.recipient) for sent in mail.sent],
            late=mail.late,
            opened=(mail.ahead or opened_by(self.engine.store, told)) & own,
            stood=None if POINTS[name].doubt == "any" else stood,
            first=first,
        )

    def _marks(self, mail: _Mail) -> Marks:
        """For each message and domain, how many attempts in doubt each of its recipients has."""
        counted: dict[tuple[str, str], int] = defaultdict(int)
        ids = {sent.id for sent in mail.sent}
        for row in self.engine.rows("SELECT message_id, recipient FROM attempts WHERE in_doubt"):
            if row.message_id in ids:
                counted[row.message_id, row.recipient] += 1
        marks: dict[tuple[str, str], list[int]] = defaultdict(list)
        for sent in mail.sent:
            domain = sent.recipient.rpartition("@")[2]
            marks[sent.id, domain].append(counted[sent.id, sent.recipient])
        return marks


def _composed(message_id: str, recipients: list[str], length: int) -> bytes:
    """A whole message of at least so many bytes: these must arrive, whatever the spool says."""
    lines = [
        "From: a@sender.test",
        f"To: {', '.join(recipients)}",
        "Subject: torture",
        f"Message-ID: {message_id}",
        "Date: Fri, 20 Nov 2026 12:00:00 +0000",
        "",
        ".dots",
        *("x" * 70 for _ in range(1 + length // 72)),
        "",
    ]
    return "\r\n".join(lines).encode()


def unexpected(
    marks: Marks, doubt: str, *, do: str, messages: int, scene: str, hold: bool = False
) -> list[str]:
    """What is wrong with the marks of a case.

    A message's recipients of one domain travel together, those of the other one with them unless
    its answer from the DNS came later. Ahead of the wire messages are opened, and a death leaves
    them in doubt with the one on it; what is held in doubt is opened by itself.

    Args:
        marks: message and domain -> number of marks of each recipient.
        doubt: of the point.
        do: the fault; only a death has a fixed outcome.
        messages: how many were sent: with several, another one may be opened.
        scene: of the point; in some a worker was killed as well.
        hold: whether they are held when in doubt.
    """
    findings = [
        f"some recipients of a transaction are in doubt and some are not: {group}"
        for group in marks.values()
        if len(set(group)) != 1
    ]
    marked = {message for (message, _), group in marks.items() if any(group)}
    most = 2 if doubt == "any" else 1
    deepest = max((count for group in marks.values() for count in group), default=0)
    if len(marked) > (most if hold else max(most, messages)) or deepest > most:
        findings.append(f"more in doubt than was on the wire: {dict(marks)}")
    if do in ("kill", "stop_kill"):
        if doubt == "open" and not marked:
            findings.append("a transaction was open, and nothing is in doubt")
        if doubt == "others" and messages == 1 and all(map(any, marks.values())):
            findings.append(f"a part was settled, and in doubt is all of {dict(marks)}")
        if doubt == "none" and marked and messages == 1:
            findings.append(f"nothing was on the wire, and in doubt is {dict(marks)}")
        if scene == "doubt" and not marked:
            findings.append("a worker was killed behind the dot, and nothing is in doubt")
    return findings


def _pairs(mail: _Mail) -> Pairs:
    return frozenset((sent.id, sent.recipient) for sent in mail.sent)


def _stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "TZ"
