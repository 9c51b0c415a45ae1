"""Disk errors in one process while others of the same spool go on: the rule of the poisoned spool.

A client process (``errors_client``) has the fault; a clean client sends beside it, in this process;
a janitor's store repairs when it is told to. After a failed sync in the one, the other must be
refused until then, though its own syncs work. Unknown outcomes are asked for afterwards. The engine
cases put the fault into one worker, janitor or supervisor of a real engine that delivers to a sink:
all that was sent ends delivered, nothing twice without a mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.policy import SMTP
from pathlib import Path

from mailstrom import Mailstrom
from mailstrom.errors import MessageNotFound, OutcomeUnknown, SpoolError
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.support.checker import History, Sent, check, content_digest
from tests.support.engine import Engine, mail
from tests.support.network import Network
from tests.support.trial import Plan
from tests.support.witnesses import seen_by_server, spool_rows
from tests.torture.launch import with_faults
from tests.torture.table import Row

CLIENT = Path(__file__).with_name("errors_client.py")
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A client process in trouble.

    Args:
        fault: settings of ``torture_errors``; empty where ``short`` is the trouble.
        short: what it runs out of; see ``errors_client``.
        poisons: whether the clean client must be refused afterwards.
        blind: whether the flag cannot be written, either.
        must_fail: whether one of its sends must have failed (a read error may pass unseen).
    """

    name: str
    fault: dict[str, object] | None = None
    short: str = ""
    poisons: bool = False
    blind: bool = False
    must_fail: bool = True


def _fault(op: str, file: str = "", **more: object) -> dict[str, object]:
    return {"op": op, "file": file, **more}


CASES = (
    *(Case(name=f"sync {n}", fault=_fault("sync", "wal", n=n), poisons=True) for n in range(1, 6)),
    Case(name="sync for ever", fault=_fault("sync", "wal", forever=True), poisons=True),
    Case(name="no room at the sync", fault=_fault("sync", "wal", error="ENOSPC"), poisons=True),
    Case(name="directory", fault=_fault("os:fsync", "folder"), poisons=True),
    *(Case(name=f"sync {n}, no flag", fault=_fault("sync", "wal", n=n), poisons=True, blind=True)
      for n in (2, 3)),
    *(Case(name=f"write {n}", fault=_fault("write", "wal", n=n)) for n in (3, 9, 15)),
    Case(name="half a write", fault=_fault("write", "wal", n=7, style="half")),
    Case(name="write and fail", fault=_fault("write", "wal", n=8, style="after")),
    Case(name="full", fault=_fault("write", "wal", n=5, error="ENOSPC")),
    Case(name="write for ever", fault=_fault("write", "wal", n=5, forever=True)),
    Case(name="read", fault=_fault("call:pread64", "db", n=2), must_fail=False),
    Case(name="files", fault=_fault("call:open", "", error="EMFILE", n=3), must_fail=False),
    Case(name="shared memory", fault=_fault("call:mmap", "shm", error="ENOMEM"), must_fail=False),
    Case(name="lock", fault=_fault("call:fcntl", "db", n=2), must_fail=False),
    Case(name="stat before a commit", fault=_fault("os:stat", "wal", n=4, forever=True)),
    Case(name="stat behind one", fault=_fault("os:stat", "wal", n=3, forever=True), poisons=True),
    Case(name="descriptors", short="descriptors", must_fail=False),
    Case(name="file size", short="file size"),
)  # fmt: skip


class _Child:
    """The client process with the fault."""

    def __init__(self, spool: Path, case: Case, token: Path) -> None:
        faults: dict[str, dict[str, object]] = {}
        if case.fault is not None:
            settings = {"token": str(token), "folder": str(spool.parent), **case.fault}
            faults = {"torture_errors": settings}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(CLIENT), str(spool), case.short],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=with_faults(faults), cwd=spool.parent,
        )  # fmt: skip

    def answer(self) -> dict[str, str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"crossed": "it died without an answer"}

    def tell(self, word: str) -> dict[str, str]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"crossed": "it died"}
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def run(plan: Plan) -> Iterator[Row]:
    """The client cases, then the engine cases."""
    found: list[str] = []
    tried = messages = 0
    worst = 0.0
    for turn in range(plan.pick(1, 8)):
        cases = random.Random(f"{plan.seed}:{turn}").sample(CASES, len(CASES))
        for number, case in enumerate(cases):
            folder = plan.folder / f"client-{turn}-{number}"
            folder.mkdir()
            outcome = client_case(folder, case)
            tried += outcome.fired
            messages += outcome.messages
            worst = max(worst, outcome.recovery_s)
            found += [f"client, {case.name}: {text}" for text in outcome.findings]
            if not outcome.fired:
                found.append(f"client, {case.name}: the fault did not happen")
        plan.say(f"{tried} client processes")
    lost = sum("acknowledged, not in" in text for text in found)
    yield Row(part="errors", fault="one client of several fails", tried=tried, messages=messages,
              lost=lost, worst_recovery_s=worst, findings=tuple(found), seed=plan.seed)  # fmt: skip
    yield from engine_cases(plan)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a case came to."""

    fired: int = 0
    messages: int = 0
    recovery_s: float = 0.0
    findings: list[str]
    unknown: list[str] = field(default_factory=list)


def client_case(folder: Path, case: Case) -> Outcome:
    """One client in trouble beside a clean one."""
    outcome = Outcome(findings=[])
    spool, token = folder / "spool.db", folder / "token"
    with contextlib.ExitStack() as opened:
        ms = opened.enter_context(contextlib.closing(Mailstrom(spool)))
        stored = {ms.send(mail("b@errors.test"))}
        janitor = SQLiteWorkerStore(str(spool))
        opened.callback(janitor.close)
        child = _Child(spool, case, token)
        opened.callback(child.end)
        first = child.answer()
        run = folder / "spool.db-run"
        if case.blind:
            run.rename(folder / "moved")
            run.symlink_to("/proc/self/fdinfo", target_is_directory=True)
        answers = [first] if "opened" not in first else []
        for number in range(6):
            if "opened" not in first:
                break
            answers.append(child.tell(f"{case.name.replace(' ', '-')}-{number}"))
            if "stored" not in answers[-1]:
                break
        bad = [one for one in answers if "stored" not in one]
        outcome.findings += [f"crosses the seam: {a['crossed']}" for a in bad if "crossed" in a]
        outcome.findings += [
            f"does not name the file: {a['refused']}"
            for a in bad
            if "refused" in a and "spool.db" not in a["refused"] and ".py" not in a["refused"]
        ]  # fmt: skip
        outcome.fired = int(token.exists() or bool(case.short))
        if case.must_fail and not bad:
            outcome.findings.append("nothing failed")
        failed_at = time.monotonic()
        _beside(ms, case, stored, outcome)
        if case.blind:
            run.unlink()
            (folder / "moved").rename(run)
        if case.short:
            child.tell("relieve")
        _recover(ms, janitor, stored, outcome)
        outcome.recovery_s = time.monotonic() - failed_at
        stored |= {one["stored"] for one in answers if "stored" in one}
        _resolve(ms, outcome.unknown + [a["unknown"] for a in bad if "unknown" in a], stored)
        outcome.messages = len(stored)
        found = {str(row[0]) for row in ms.query("SELECT id FROM messages")}
        outcome.findings += [f"{id}: acknowledged, not in the spool" for id in stored - found]
        if found - stored:
            outcome.findings.append(f"stored, though it was refused: {sorted(found - stored)}")
        outcome.findings += ms.check()
    return outcome


def _beside(ms: Mailstrom, case: Case, stored: set[str], outcome: Outcome) -> None:
    """The clean client sends while the other one is in trouble."""
    try:
        stored.add(ms.send(mail("b@errors.test")))
    except OutcomeUnknown as error:
        outcome.unknown.append(error.key)
    except SpoolError as error:
        if not case.poisons:
            outcome.findings.append(f"a clean client is refused: {error}")
    else:
        if case.poisons:
            outcome.findings.append("acknowledged between a failed sync and the repair")


def _recover(ms: Mailstrom, janitor: SQLiteWorkerStore, stored: set[str], outcome: Outcome) -> None:
    """As the janitor's rounds do, until the clean client is served."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if not janitor.poisoned or janitor.repair():
            try:
                stored.add(ms.send(mail("b@errors.test")))
            except OutcomeUnknown as error:
                outcome.unknown.append(error.key)
            except SpoolError:
                pass
            else:
                return
        time.sleep(0.02)
    outcome.findings.append("no repair succeeded")


def _resolve(ms: Mailstrom, keys: Sequence[str], stored: set[str]) -> None:
    """What was unknown is answered by its key."""
    for key in keys:
        with contextlib.suppress(MessageNotFound):
            stored.add(ms.status(key).id)


# --- engines --------------------------------------------------------------------------------------

_DELIVERY, _JANITOR = "mailstrom_workers.delivery", "mailstrom_workers.janitor"
ENGINES: tuple[tuple[str, dict[str, object]], ...] = (
    ("a worker's sync", _fault("sync", "wal", n=3, module=_DELIVERY)),
    ("a janitor's write", _fault("write", "wal", n=5, module=_JANITOR)),
    ("a worker's write", _fault("write", "wal", n=25, module=_DELIVERY)),
    ("a janitor's checkpoint", _fault("sync", "db", module=_JANITOR)),
    ("a janitor's read", _fault("call:pread64", "db", n=30, module=_JANITOR)),
    ("a worker's read", _fault("call:pread64", "wal", n=40, module=_DELIVERY)),
    ("a worker's full disk", _fault("write", "wal", n=30, error="ENOSPC", module=_DELIVERY)),
    ("a worker's second sync", _fault("sync", "wal", n=6, module=_DELIVERY)),
    ("a worker's lock", _fault("call:fcntl", "shm", n=60, module=_DELIVERY)),
    ("a supervisor's read at its start", _fault("read", n=1, module="mailstrom.supervisor")),
)


def engine_cases(plan: Plan) -> Iterator[Row]:
    """One process of a real engine in trouble, once."""
    tried = messages = lost = silent = marked = 0
    found: list[str] = []
    worst = 0.0
    for number, (name, fault) in enumerate(ENGINES[: plan.pick(2, len(ENGINES))]):
        folder = plan.folder / f"engine-{number}"
        folder.mkdir()
        with Network() as network:
            outcome = _engine_case(network, folder, fault, plan.pick(40, 400), plan.seed)
        tried += outcome.fired
        messages += outcome.messages
        worst = max(worst, outcome.recovery_s)
        lost += outcome.lost
        silent += outcome.silent
        marked += outcome.marked
        found += [f"{name}: {text}" for text in outcome.findings]
        plan.say(f"engine, {name}: {outcome.fired} fired")
    yield Row(part="errors", fault="one process of an engine fails", tried=tried, messages=messages,
              lost=lost, silent=silent, marked=marked, worst_recovery_s=worst,
              findings=tuple(found), seed=plan.seed)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _EngineOutcome(Outcome):
    lost: int = 0
    silent: int = 0
    marked: int = 0


def _engine_case(
    network: Network, folder: Path, fault: dict[str, object], count: int, seed: int
) -> _EngineOutcome:
    chance = random.Random(f"{seed}:{fault}")
    outcome = _EngineOutcome(findings=[])
    token = folder / "token"
    domain, servers = network.site(None)
    told = {"token": str(token), "folder": str(folder), **fault}
    engine = Engine(network, folder, workers=2)
    sent: list[Sent] = []
    unanswered: list[Sent] = []
    try:
        engine.start(wait=False, env=with_faults({"torture_errors": told}))
        deadline = time.monotonic() + DEADLINE_S
        number = 0
        while number < count or (not token.exists() and number < 10 * count):
            if time.monotonic() > deadline or engine.process is None:
                break
            number += 1
            if engine.process.poll() is not None:  # at its start: as a service manager does
                engine.start(wait=False)
            address = f"u{number}@{domain}"
            raw = _raw(number, address, chance.choice((1, 50, 2_000)))
            try:
                id = engine.ms.send(raw)
            except OutcomeUnknown as error:
                _wait_served(engine, deadline)
                if engine.rows("SELECT 1 FROM messages WHERE id = ?", error.key):
                    unanswered.append(_one(error.key, number, address, raw))
                continue
            except SpoolError:
                time.sleep(0.05)
                continue
            sent.append(_one(id, number, address, raw))
        begun = time.monotonic()
        for one in sent:
            engine.final(one.id)
        outcome.recovery_s = time.monotonic() - begun
        outcome.fired = int(token.exists())
        outcome.messages = len(sent)
        if not outcome.fired:
            outcome.findings.append("the fault did not happen")
        engine.stop()
        dots = [dot for server in servers for dot in server.dots]
        report = check(
            History(
                acknowledged=tuple(sent),
                unanswered=tuple(unanswered),
                seen=seen_by_server(dots),
                spool=spool_rows(engine.rows),
                finished=not unanswered,
            )
        )
        outcome.lost, outcome.silent = len(report.lost), len(report.doubled_unmarked)
        outcome.marked = sum(sum(row.attempts) for row in spool_rows(engine.rows))
        if not report.clean:
            outcome.findings.append(report.describe(3))
        failed = engine.rows("SELECT message_id, reason FROM recipients WHERE status = 'failed'")
        outcome.findings += [f"{row[0]}: falsely failed ({row[1]})" for row in failed]
        outcome.findings += engine.ms.check()
    except AssertionError as error:
        outcome.findings.append(f"{error} {engine.describe()[-1500:]}")
    finally:
        engine.close()
    return outcome


def _wait_served(engine: Engine, deadline: float) -> None:
    """Until the spool is repaired; it is looked at by the next send anyway."""
    flag = f"{engine.store}-run/poisoned"
    while os.path.lexists(flag) and time.monotonic() < deadline:
        time.sleep(0.02)


def _raw(number: int, recipient: str, lines: int) -> bytes:
    """A message that leaves no header to the client."""
    message = mail(recipient, text="Good morning.\n" * lines)
    message["Message-ID"] = f"<{number}@sender.test>"
    message["Date"] = "Fri, 1 Aug 2025 12:00:00 +0000"
    return message.as_bytes(policy=SMTP)


def _one(id: str, number: int, recipient: str, raw: bytes) -> Sent:
    """What was handed over, by our own bytes and not by what the store has."""
    return Sent(
        id=id, message_id=f"<{number}@sender.test>", recipient=recipient, digest=content_digest(raw)
    )
