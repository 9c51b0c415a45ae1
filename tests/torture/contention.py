"""Many processes at one spool: writers, reports, copies, forks, engines, checkpointers, pins.

Judged in every case: nothing acknowledged is lost, nothing is delivered twice without a mark, what
was refused is nowhere, no caller sees a busy error before its time-out, ``store check`` is clean,
and the -wal file stays bounded. What a case claims to have brought about is counted where it was
seen to happen. The readers that pin the log are in ``contention_pins``.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from mailstrom.storage import run_directory
from tests.support.embedded import application, tables
from tests.support.engine import DEADLINE_S, Engine, environment
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.torture import contention_pins
from tests.torture.contention_stage import Crowd
from tests.torture.launch import with_faults
from tests.torture.table import Row

PROCESSES = 32
BUSY_TIMEOUT_S = 0.5
EXIT_ALREADY = 75
_POINTS = {
    "frames": {"io": "write", "file": "wal", "when": "before"},
    "frames half written": {"io": "write", "file": "wal", "when": "after"},
    "frames of many": {"io": "write", "file": "wal", "when": "before"},
}
"""Where a writer is stopped inside its transaction, which is one statement."""


def run(plan: Plan) -> Iterator[Row]:
    """Every case, one after the other."""
    with Network() as network:
        yield writers(network, plan.folder / "writers", plan)
        yield stopped(network, plan.folder / "stopped", plan)
        yield forks(network, plan.folder / "forks", plan)
        yield supervisors(network, plan.folder / "supervisors", plan)
        yield embedded(network, plan.folder / "embedded", plan)
        yield checkpointers(network, plan.folder / "checkpointers", plan)
        yield one_key(network, plan.folder / "one-key", plan)
    yield from contention_pins.cases(plan)


def writers(network: Network, folder: Path, plan: Plan) -> Row:
    """32 writers, one message a call, beside an engine, a report, a foreign snapshot and copies."""
    each, copies = plan.pick(20, 1_000), 0
    with Crowd(network, folder, seed=plan.seed) as crowd:
        engine = crowd.engine.start()
        beside = [crowd.start("query"), crowd.start("read", hold=plan.pick(60, 3))]
        sending = [
            crowd.start("send", count=each, go=str(crowd.go), busy=2 if number % 8 == 0 else 0)
            for number in range(PROCESSES)
        ]
        crowd.ready(*beside, *sending)
        crowd.go.touch()
        while any(process.poll() is None for process in sending):
            engine.ms.backup(folder / f"copy{copies}.db")
            (folder / f"copy{copies}.db").unlink()
            copies += 1
            time.sleep(0.2)
        crowd.ended(*sending)
        crowd.stop.touch()
        (reports,) = crowd.ended(beside[0])
        if beside[1].poll() is not None:
            crowd.findings.append("the foreign reader ended by itself")
        beside[1].kill()
        beside[1].wait(DEADLINE_S)
        told = crowd.told()
        # Readers that overlap without a gap, each of seconds, take the log to its limit in the end.
        over = [text for error, _, text in told.refused.values() if _at_the_limit(error, text)]
        for error, seconds, text in told.refused.values():
            if not _at_the_limit(error, text):
                crowd.findings.append(f"{error} after {seconds:.1f} s: {text}")
        if not copies or not int(reports):
            crowd.findings.append(f"{copies} copies and {reports} reports were made beside them")
        crowd.settle()
        assert engine.stop() == 0
        plan.say(f"{PROCESSES} writers: {told.figures()}; {copies} copies, {reports} reports")
        what = f"{PROCESSES} writers beside an engine, reports, {copies} copies and busy threads"
        if over:
            what += f", {len(over)} refused at the log's limit"
        return crowd.verdict(
            f"{what}: {told.figures()}", tried=len(told.accepted), finished=True, unit="send"
        )


def _at_the_limit(error: str, text: str) -> bool:
    """Whether a refusal says that the log is full, and by whom."""
    named = "keeps it from being emptied" in text or "nobody any more" in text
    return error == "SpoolFull" and "[spool] wal_limit" in text and named


def stopped(network: Network, folder: Path, plan: Plan) -> Row:
    """A writer stands still inside its transaction; the others are told so, then all goes on."""
    happened, worst = 0, 0.0
    dice = random.Random(plan.seed)
    with Crowd(network, folder, seed=plan.seed) as crowd:
        others = [crowd.start("serve", timeout=BUSY_TIMEOUT_S) for _ in range(3)]
        crowd.ready(*others)
        for case in range(plan.pick(6, 120)):
            point, kill = [*_POINTS][case % len(_POINTS)], dice.random() < 0.5
            victim = _stopped_at(crowd, folder / f"victim{case}", point)
            where = f"case {case} of seed {plan.seed}, stopped at {point}"
            if victim is None:
                crowd.findings.append(f"{where}: never got there")
                continue
            answers = _all(others, f"while-{case}")
            happened += answers == ["refused"] * len(others)
            if "accepted" in answers:
                crowd.findings.append(f"{where}: another writer got in: {answers}")
            freed = time.monotonic()
            victim.send_signal(signal.SIGKILL if kill else signal.SIGCONT)
            left = _until_accepted(others, f"after-{case}")
            worst = max(worst, time.monotonic() - freed)
            if left:
                crowd.findings.append(f"{where}: afterwards {left} others were not let in")
            if kill:
                victim.wait(DEADLINE_S)
            else:
                crowd.ended(victim)
        crowd.ended(*others)
        for error, seconds, text in crowd.told().refused.values():
            if error != "SpoolBusy" or seconds > BUSY_TIMEOUT_S + 10:
                crowd.findings.append(f"{error} after {seconds:.1f} s: {text}")
        return crowd.verdict(
            "a writer stopped inside its transaction, then continued or killed",
            tried=happened, finished=False, recovery_s=worst,
        )  # fmt: skip


def _stopped_at(crowd: Crowd, folder: Path, point: str) -> subprocess.Popen[str] | None:
    """A writer that was stopped there; None if it ended without having been."""
    folder.mkdir()
    fault = {"folder": str(folder), "points": _POINTS}
    # One message is one statement; two of them are a transaction with a COMMIT.
    victim = crowd.start(
        "send", count=1, many=20 if point == "frames of many" else 1, go=str(folder / "go"),
        env=with_faults({"torture_points": fault}),
    )  # fmt: skip
    crowd.ready(victim)
    armed = {"point": point, "hit": 1, "do": "stop", "token": "token"}
    (folder / "armed").write_text(json.dumps(armed))
    (folder / "go").touch()
    stands = f"/proc/{victim.pid}/stat"

    def there() -> bool:
        if victim.poll() is not None:
            return True
        state = Path(stands).read_text().rpartition(")")[2].split()[0]
        return (folder / "token").exists() and state == "T"

    eventually(there, DEADLINE_S, what=f"a writer that stands at {point}")
    return None if victim.poll() is not None else victim


def _all(processes: list[subprocess.Popen[str]], name: str) -> list[str]:
    """One message of each, at once; what became of them."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
    return [_line(process) for process in processes]


def _until_accepted(processes: list[subprocess.Popen[str]], name: str) -> int:
    """A message of each, tried again where it is refused; how many were never accepted.

    The one who stood still may need longer for its end than the others' patience lasts.
    """
    left, until_s, number = processes, time.monotonic() + DEADLINE_S, 0
    while left and time.monotonic() < until_s:
        answers = _all(left, f"{name}.{number}")
        left = [one for one, answer in zip(left, answers, strict=True) if answer != "accepted"]
        number += 1
    return len(left)


def _more(processes: list[subprocess.Popen[str]], lines: int) -> list[list[str]]:
    return [[_line(process) for process in processes] for _ in range(lines)]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def forks(network: Network, folder: Path, plan: Plan) -> Row:
    """Applications that fork with the spool open: each child sends, the parent goes on."""
    kinds = ({"kind": "multiprocessing", "threads": 1}, {"kind": "fork", "threads": 0},
             {"kind": "fork", "threads": 3})  # fmt: skip
    forked = 0
    with Crowd(network, folder, seed=plan.seed) as crowd:
        for _ in range(plan.pick(1, 30)):
            started = [crowd.start("fork", children=6, each=4, **kind) for kind in kinds]
            for text in crowd.ended(*started):
                forked += len(json.loads(text)) if text else 0
        told = crowd.told()
        crowd.findings += [f"a send was refused: {one}" for one in list(told.refused.values())[:3]]
        return crowd.verdict(
            "a process that forks with the spool open, under load", tried=forked, finished=False
        )


def supervisors(network: Network, folder: Path, plan: Plan) -> Row:
    """20 supervisors at once: one works, the others say who; more come while it works."""
    at_once, later = 20, 3
    refused = 0
    with Crowd(network, folder, seed=plan.seed) as crowd:
        engine = crowd.engine
        for _ in range(plan.pick(1, 15)):
            started = [_supervisor(crowd) for _ in range(at_once)]
            first = _survivor(engine, started, crowd.findings)
            if first is None:
                break
            crowd.ready(sender := crowd.start("send", count=20))
            started += [_supervisor(crowd) for _ in range(later)]
            for process in started:
                if process is not first:
                    _, text = process.communicate(timeout=DEADLINE_S)
                    named = f"pid {first.pid} " in text.decode()
                    refused += process.returncode == EXIT_ALREADY and named
                    if process.returncode != EXIT_ALREADY or not named:
                        crowd.findings.append(
                            f"a second supervisor ended with {process.returncode}: {text!r}"
                        )
            crowd.ended(sender)
            crowd.settle()
            first.terminate()
            first.communicate(timeout=DEADLINE_S)
            if first.returncode != 0:
                crowd.findings.append(f"the first supervisor ended with {first.returncode}")
        return crowd.verdict("a second supervisor, 20 at once", tried=refused, finished=True)


def _supervisor(crowd: Crowd) -> subprocess.Popen[bytes]:
    engine = crowd.engine
    with engine.log_file.open("ab") as log:
        process = subprocess.Popen(
            engine.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.PIPE,
            cwd=engine.folder, env=environment(), start_new_session=True,
        )  # fmt: skip
    crowd.started(process)
    return process


def _survivor(
    engine: Engine, started: list[subprocess.Popen[bytes]], findings: list[str]
) -> subprocess.Popen[bytes] | None:
    """The one that is left of many; None, and a finding, if it is not one."""
    eventually(
        lambda: sum(process.poll() is None for process in started) <= 1, DEADLINE_S,
        what="all supervisors but one ended",
    )  # fmt: skip
    left = [process for process in started if process.poll() is None]
    if len(left) == 1:
        lock = json.loads((Path(run_directory(str(engine.store))) / "supervisor.lock").read_text())
        if lock["pid"] == left[0].pid:
            return left[0]
    findings.append(f"{len(left)} supervisors are left of {len(started)}")
    for process in left:
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    return None


def embedded(network: Network, folder: Path, plan: Plan) -> Row:
    """Three applications with the engine inside, beside a supervisor: nothing twice."""
    sessions = 0
    with Crowd(network, folder, seed=plan.seed) as crowd, ExitStack() as stack:
        engine = crowd.engine.start()
        for _ in range(3):
            stack.enter_context(application(engine.store, tables(network)))
        # One worker may be quick enough for all of a round: then there is another.
        for number in range(plan.pick(30, 50)):
            senders = [crowd.start("send", count=40) for _ in range(2)]
            crowd.ready(*senders)
            crowd.ended(*senders)
            crowd.settle()
            plan.say(f"embedded: round {number} done")
            (row,) = engine.rows("SELECT count(DISTINCT worker) AS n FROM sessions")
            sessions = int(row.n)
            if sessions > 1 and number + 1 >= plan.pick(1, 20):
                break
        stack.close()
        crowd.settle()
        assert engine.stop() == 0
        eventually(
            lambda: not engine.ms.check(), DEADLINE_S, what="what the killed applications left"
        )
        return crowd.verdict(
            f"3 applications with an engine inside beside a supervisor, {sessions} delivered",
            tried=len(crowd.told().accepted) if sessions > 1 else 0, finished=True, unit="send",
        )  # fmt: skip


def checkpointers(network: Network, folder: Path, plan: Plan) -> Row:
    """Two processes that checkpoint in every mode against eight writers, all without a pause."""
    with Crowd(network, folder, seed=plan.seed) as crowd:
        least = plan.pick(50, 1_000)  # of each, however slow the disk is
        told = [folder / f"enough{number}" for number in range(2)]
        working = [crowd.start("checkpoint", least=least, enough=str(path)) for path in told]
        crowd.ready(*working)
        sending = [crowd.start("send", size=4_000) for _ in range(8)]
        crowd.ready(*sending)
        until, looks = time.monotonic() + plan.pick(6, 300), 0
        last = until + 2 * DEADLINE_S
        while not crowd.findings and (now := time.monotonic()) < last:
            if now >= until and all(path.exists() for path in told):
                break
            crowd.findings += [f"under way: {text}" for text in crowd.engine.ms.check()]
            looks += 1
            time.sleep(plan.pick(1, 10))
        crowd.stop.touch()
        crowd.ended(*sending)
        done = sum(int(text or 0) for text in crowd.ended(*working))
        refused = crowd.told().refused.values()
        crowd.findings += [f"a send was refused: {one}" for one in list(refused)[:3]]
        return crowd.verdict(
            f"a checkpoint of any kind against 8 writers, {looks} checks meanwhile",
            tried=done, finished=False, unit="checkpoint",
        )  # fmt: skip


def one_key(network: Network, folder: Path, plan: Plan) -> Row:
    """The same idempotency key from 32 processes at once: one message, one id."""
    rounds = plan.pick(50, 1_000)
    with Crowd(network, folder, seed=plan.seed) as crowd:
        processes = [crowd.start("same") for _ in range(PROCESSES)]
        crowd.ready(*processes)
        whole = 0
        for number in range(0, rounds, 10):  # ten at a time: nobody waits for the slowest of each
            keys = [f"{plan.seed}.{number + one}" for one in range(10)]
            answers = [_all(processes, "\n".join(keys)), *_more(processes, 9)]
            for key, ids in zip(keys, map(set, answers), strict=True):
                whole += len(ids) == 1 and ids != {""}
                if len(ids) != 1:
                    crowd.findings.append(f"key {key} got {len(ids)} ids: {sorted(ids)}")
        crowd.ended(*processes)
        stored = int(crowd.engine.rows("SELECT count(*) FROM messages")[0][0])
        if stored != whole:
            crowd.findings.append(f"{stored} messages of {whole} keys")
        return crowd.verdict(
            f"one idempotency key from {PROCESSES} processes at once", tried=whole, finished=False,
            unit="send",
        )  # fmt: skip
