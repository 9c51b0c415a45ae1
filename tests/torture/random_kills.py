"""Kill -9 at random, all at once, and drains: under load, over the spool's whole life.

Contract. Each row is a storm (``storm``), or one of the stories of ``process_faults``. Who is
killed when comes from the plan's seed; what a kill hits is chance all the same, so that a seed
repeats the order of events, not their instants. A fault counts in ``tried`` only where it
happened: a kill, where the process was alive; a drain, where a session was open.
"""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

from tests.support.engine import DEADLINE_S
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.torture.process_faults import STORIES, together
from tests.torture.processes import Process, freeze, look, strike
from tests.torture.storm import DRAIN_S, KILL, SESSIONS, TERM, Storm, now
from tests.torture.story import SLACK_S
from tests.torture.table import Row

SHARES = (("delivery", 0.7), ("janitor", 0.1), ("supervisor", 0.1), ("client", 0.1))
MOMENT_S = 0.12
"""A kill comes within so long after the load was seen to move."""
CLIENT_MOMENT_S = 0.03
"""A client sends what it is allowed within moments."""
_PACE = threading.Event()  # never set: the storm's pace, not a wait for anything


def run(plan: Plan) -> Iterator[Row]:
    """Every row of this part."""
    with Network() as network:
        yield random_kills(plan, network)
        yield all_at_once(plan, network)
        yield replaced(plan, network)
        yield from together((drains, *STORIES), plan, network)


def _deck(dice: random.Random, kills: int) -> list[str]:
    """Kinds of victims in the stated shares, shuffled."""
    deck = [kind for kind, share in SHARES for _ in range(round(kills * share))]
    dice.shuffle(deck)
    return deck


def random_kills(plan: Plan, network: Network) -> Row:
    """Kill -9 of workers, janitor, supervisor and clients while mail flows."""
    kills, messages = plan.pick(60, 1_000), plan.pick(3_000, 100_000)
    dice = random.Random(f"{plan.seed} kills")
    done = dict.fromkeys(dict(SHARES), 0)
    storm = Storm(
        network=network, folder=plan.folder / "kills", name=f"k{plan.seed}", messages=messages
    )
    with storm:
        storm.release(messages // 10)
        storm.await_contents(0)
        each = math.ceil(0.8 * messages / kills)  # the rest is for whoever finds nobody busy
        for kind in _deck(dice, kills):
            before = storm.sink.look()
            storm.release(each)
            if kind == "client":
                _PACE.wait(dice.uniform(0.0, CLIENT_MOMENT_S))
            else:  # kills must not outrun the mail: half of what was released comes first
                storm.await_contents(before + each // 2)
                _PACE.wait(dice.uniform(0.0, MOMENT_S))
            done[kind] += _kill(storm, kind, dice)
            if sum(done.values()) % 100 == 0:
                plan.say(
                    f"{sum(done.values())} kills, {len(storm.sink.stamps)} contents at the sink"
                )
        findings = storm.finish(sweep=True)
        verdict = storm.verdict()
    a_kill = verdict.doubles / max(done["delivery"], 1)
    plan.say(f"kills {done}, {verdict.doubles} doubles, {a_kill:.2f} for each killed worker;"
             f" {verdict.unanswered} recipients of unanswered sends,"
             f" {storm.held} were held after five losses and released")  # fmt: skip
    return storm.row(
        "kill -9 at random: workers, janitor, supervisor, clients"
        f" ({a_kill:.1f} copies too many for each killed worker)",
        sum(done.values()), verdict, seed=plan.seed, findings=findings,
    )  # fmt: skip


def _kill(storm: Storm, kind: str, dice: random.Random) -> bool:
    """End one process of this kind; whether one was ended."""
    if kind == "client":
        dice.choice(storm.clients).kill()
        return True
    if kind == "supervisor":
        process = storm.engine.process
        assert process is not None
        process.kill()
        process.wait(DEADLINE_S)
        if dice.random() < 0.5:  # else the next one starts while orphans still work
            storm.await_empty()
        storm.start()
        return True
    if kind == "delivery":
        # Most often one that delivers; else any, as it starts or drains.
        found = storm.await_busy() if dice.random() < 0.85 else _any(storm, kind)
    else:
        found = _any(storm, kind)
    victim = dice.choice(found)
    return kill_counted(storm, victim, still=dice.random() < 0.5)


def _any(storm: Storm, kind: str) -> list[Process]:
    return eventually(lambda: storm.processes(kind), DEADLINE_S, what=f"a living {kind}")


def kill_counted(storm: Storm, victim: Process, *, still: bool) -> bool:
    """Kill a process and note how many sessions it had.

    Args:
        still: stop it first, so that they can be counted exactly; a stop lets a system call
            finish that a kill may cut, so it is not always done. Otherwise it is as many as a
            worker may have.
    """
    sessions = SESSIONS
    # An orphan drains: it closes its sessions before their last verdicts are written.
    exact = still and victim.parent == victim.session
    if still:
        freeze(victim)
        if exact:
            sessions = storm.connections(victim.pid)
    if not strike(victim, KILL):
        return False
    storm.struck(victim.pid, sessions, exact=exact)
    eventually(lambda: look(victim.pid) is None, DEADLINE_S, what=f"the end of {victim.pid}")
    return True


def drains(plan: Plan, network: Network) -> Row:
    """TERM under load and a new start, again and again: nothing is in doubt."""
    rounds = plan.pick(5, 200)
    dice = random.Random(f"{plan.seed} drains")
    each, findings, tried, slowest = 150, [], 0, 0.0
    storm = Storm(
        network=network, folder=plan.folder / "drains", name=f"d{plan.seed}",
        messages=each * (2 * rounds + 1), workers=2, senders=2,
    )  # fmt: skip
    with storm:
        for _ in range(2 * rounds):  # who had nothing to drain is no try
            if tried == rounds:
                break
            before = storm.sink.look()
            storm.release(each)
            storm.await_contents(before)
            _PACE.wait(dice.uniform(0.0, MOMENT_S))
            busy = sum(storm.connections(one.pid) for one in storm.processes("delivery"))
            code, took_s = _drain(storm)
            slowest = max(slowest, took_s)
            tried += busy > 0
            if code != 0:
                findings.append(f"exit {code} after TERM")
            if took_s > DRAIN_S + SLACK_S:
                findings.append(f"a drain took {took_s:.1f} s, its time-out is {DRAIN_S} s")
            findings += [f"{one.kind} {one.pid} outlived a drain" for one in storm.processes()]
            storm.start()
        findings += storm.finish()
        verdict = storm.verdict()
    if verdict.doubles:
        findings.append(f"{verdict.doubles} doubles after drains")
    plan.say(f"{tried} drains, the slowest {slowest:.2f} s")
    return storm.row(
        "drain (TERM) under load, and start again", tried, verdict, seed=plan.seed,
        findings=tuple(findings),
    )  # fmt: skip


def _drain(storm: Storm) -> tuple[int, float]:
    """Exit status of the supervisor after TERM, and seconds until then."""
    started = time.monotonic()
    storm.engine.signal(TERM)
    return storm.engine.wait_exit(), time.monotonic() - started


def all_at_once(plan: Plan, network: Network) -> Row:
    """Every process of the engine killed at one instant, a deep queue left; start again."""
    rounds, each = plan.pick(2, 50), plan.pick(400, 1_000)
    dice = random.Random(f"{plan.seed} all")
    worst, tried, findings = 0.0, 0, []
    ended: set[int] = set()
    storm = Storm(
        network=network, folder=plan.folder / "all", name=f"a{plan.seed}",
        messages=each * rounds + each, workers=2, senders=2,
    )  # fmt: skip
    with storm:
        for _ in range(rounds):
            before = storm.sink.look()
            storm.release(each)
            storm.await_contents(before)
            _PACE.wait(dice.uniform(0.0, MOMENT_S))
            assert storm.engine.process is not None
            os.killpg(storm.engine.process.pid, signal.SIGKILL)
            storm.engine.wait_exit()
            storm.await_empty()
            tried += 1
            _struck_by_rows(storm, ended)
            for text in storm.engine.ms.check():
                findings.append(f"store check after a kill of all: {text}")
                plan.say(findings[-1])
            before = storm.sink.look()
            storm.release(each // rounds)
            started = now()
            storm.start()
            storm.await_contents(before)
            worst = max(worst, storm.sink.stamps[before] - started)
        findings += storm.finish(sweep=True)
        verdict = storm.verdict()
    return storm.row(
        "kill -9 of all engine processes at once, and start again", tried, verdict,
        seed=plan.seed, findings=tuple(findings), recovery_s=worst,
    )  # fmt: skip


def _struck_by_rows(storm: Storm, ended: set[int]) -> None:
    """Note the workers that died with all others.

    By their rows, afterwards: one that was about to start when the kill came is on no list of
    processes made before it, and may have had a session all the same.
    """
    rows = storm.engine.rows(
        "SELECT id, pid FROM workers WHERE kind = 'delivery' AND state NOT IN ('stopped', 'lost')"
    )
    for row in rows:
        if row.id not in ended:  # of an earlier round, and nobody took back what it had
            ended.add(row.id)
            storm.struck(row.pid, SESSIONS, exact=False)


def replaced(plan: Plan, network: Network) -> Row:
    """The only worker killed beside a deep queue: how long until its replacement delivers."""
    rounds, each = plan.pick(3, 30), 400
    worst, tried = 0.0, 0
    storm = Storm(
        network=network, folder=plan.folder / "replaced", name=f"r{plan.seed}",
        messages=each * (rounds + 1), workers=1, senders=2,
    )  # fmt: skip
    with storm:
        for _ in range(rounds):
            (victim,) = _any(storm, "delivery")
            _wait_old(victim)
            before = storm.sink.look()
            storm.release(each)
            storm.await_contents(before)
            killed = now()
            tried += kill_counted(storm, victim, still=True)
            worst = max(worst, _first_by_another(storm, killed) - killed)
        findings = storm.finish(sweep=True)
        verdict = storm.verdict()
    return storm.row(
        "kill -9 of the only worker, until its replacement delivers", tried, verdict,
        seed=plan.seed, findings=findings, recovery_s=worst,
    )  # fmt: skip


def _wait_old(process: Process) -> None:
    """A place gets one start a second at most: wait until that does not count."""
    ticks = os.sysconf("SC_CLK_TCK")
    eventually(
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - process.started / ticks > 1.1,
        DEADLINE_S,
        what=f"process {process.pid} of some age",
    )


def _first_by_another(storm: Storm, since: float) -> float:
    """When a worker that was started since then had its first delivery answered."""
    sql = (
        "SELECT min(a.ended_ms) AS ms FROM attempts AS a JOIN workers AS w ON w.id = a.worker"
        " WHERE w.started_ms >= ? AND a.verdict = 'delivered'"
    )
    (row,) = storm.engine.until(f"{sql} HAVING ms IS NOT NULL", int(since * 1000))
    return float(row.ms) / 1000
