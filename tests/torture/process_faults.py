"""Stories of processes that are stopped, orphaned, told to end twice, poisoned, or die at start.

Contract. Each story has an engine and mail hosts of its own, brings its fault about a stated number
of times, and returns a row; the checker judges what is left, and the story adds what must hold
besides. Several run at once: they wait more than they work. Hosts hold back the answers to final
dots where a story needs sessions that are open.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from mailstrom.testing.script import Act, Rule, Script
from tests.support.engine import DEADLINE_S
from tests.support.network import HELD_S, Network
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.torture.launch import with_faults
from tests.torture.processes import (
    Process,
    descriptors,
    freeze,
    strike,
)
from tests.torture.storm import DRAIN_S
from tests.torture.story import LANES, SLACK_S, Story
from tests.torture.table import Row

AT_ONCE = 4
BEYOND_A_CLAIM = 220
"""More messages than one lane claims at once: several sessions are needed for them."""
WATCHDOG_S = 8
"""Longer than a living process may stand still on a machine that does much else besides."""
_LOSSES = 5
"""So often a recipient may be lost on the wire in a row, then it is held."""
_PACE = threading.Event()  # never set: how long a stop lasts


def _held_back(act: Act = Act.REPLY, delay: float = 0.0) -> Script:
    """All contents but the first are answered when time has passed, or never."""
    return Script(rules=(Rule(stage="dot", act=act, delay=delay, first=2),))


def orphans(plan: Plan, network: Network) -> Row:
    """The supervisor is killed between final dots and their answers."""
    script = _held_back(delay=HELD_S)
    with Story(plan, network, "orphans", script) as story:
        story.warm()
        story.send(BEYOND_A_CLAIM)
        tried = story.await_held_back()
        story.engine.signal(signal.SIGKILL)
        killed = time.monotonic()
        story.engine.wait_exit()

        def answered() -> bool:
            network.pass_time()
            return not story.processes()

        eventually(answered, DEADLINE_S, what="the end of the orphans", interval=0.1)
        took_s = time.monotonic() - killed
        story.must(took_s <= DRAIN_S + SLACK_S, f"orphans lived for {took_s:.1f} s")
        found = story.engine.rows("SELECT count(*) AS n FROM recipients WHERE status='delivered'")
        seen = len(story.host.dots)
        story.must(found[0].n == seen, f"orphans had {seen} answers, {found[0].n} are recorded")
        # On each session a content whose dot was out, and the envelope that stood behind it.
        begun = 2 * LANES + 1
        story.must(seen <= begun, f"orphans began {seen - begun} more transactions")
        story.calm()
        story.start()
        story.await_end()
        story.drain()
        return story.row(
            "supervisor killed between dot and reply: orphans record it and end", tried
        )


def _stopped_at_work(story: Story) -> Process:
    """A worker that has a session open and stands still; one that closed it meanwhile goes on."""

    def stopped() -> Process | None:
        worker = story.busy()
        freeze(worker)
        if story.sessions([worker]):
            return worker
        strike(worker, signal.SIGCONT)
        return None

    return eventually(stopped, DEADLINE_S, what="a worker stopped at its work")


def worker_stopped(plan: Plan, network: Network) -> Row:
    """SIGSTOP of a delivering worker for seconds, then SIGCONT."""
    stops, lasting_s, tried = plan.pick(1, 5), plan.pick(2, 10), 0
    with Story(plan, network, "stopped") as story:
        story.warm()
        for _ in range(stops):
            story.send(60)
            worker = _stopped_at_work(story)
            tried += story.sessions([worker]) > 0
            _PACE.wait(lasting_s)
            strike(worker, signal.SIGCONT)
            story.await_end()
            alive = {one.pid for one in story.processes("delivery")}
            story.must(worker.pid in alive, "the worker did not survive its stop")
        lapsed = story.engine.log("claim.lapsed")
        story.must(not lapsed, f"lapsed although it lived: {lapsed[:1]}")
        story.drain()
        return story.row(f"SIGSTOP of a worker for {lasting_s} s, then SIGCONT", tried)


def worker_stopped_for_good(plan: Plan, network: Network) -> Row:
    """SIGSTOP of a worker until the watchdog kills it."""
    watchdog = {"supervisor": {"watchdog": f"{WATCHDOG_S}s"}}
    stops, tried, open_ones = plan.pick(1, 5), 0, 0
    with Story(plan, network, "hung", settings=watchdog) as story:
        story.warm()
        for number in range(1, stops + 1):
            story.send(60)
            worker = _stopped_at_work(story)
            tried += 1
            open_ones += story.sessions([worker])
            lost = story.engine.wait_log("worker.lost", count=number, kind="delivery")
            story.must(
                lost[-1]["pid"] == worker.pid and "no heartbeat" in str(lost[-1]["cause"]),
                f"lost was {lost[-1]}",
            )
            story.await_end()
        story.drain()
        return story.row(
            "SIGSTOP of a worker until the watchdog kills it", tried, killed_sessions=open_ones
        )


def janitor_stopped(plan: Plan, network: Network) -> Row:
    """SIGSTOP of the janitor: for a while; then until the watchdog kills it, as a worker dies."""
    watchdog = {"supervisor": {"watchdog": f"{WATCHDOG_S}s"}}
    with Story(plan, network, "janitor", settings=watchdog) as story:
        story.warm()
        janitor = story.one("janitor")
        story.send(40)
        tried = int(freeze(janitor))
        _PACE.wait(WATCHDOG_S / 4)
        strike(janitor, signal.SIGCONT)
        story.await_end()
        story.must(janitor.pid == story.one("janitor").pid, "the janitor did not survive a stop")
        story.send(60)
        worker = story.busy()
        tried += freeze(janitor)
        freeze(worker)
        open_ones = story.sessions([worker])
        strike(worker, signal.SIGKILL)
        (lost,) = story.engine.wait_log("worker.lost", kind="janitor")
        story.must("no heartbeat" in str(lost["cause"]), f"lost was {lost}")
        story.await_end()
        story.drain()
        return story.row(
            "SIGSTOP of the janitor: a while, and until it is killed", tried,
            killed_sessions=open_ones,
        )  # fmt: skip


def supervisor_stopped(plan: Plan, network: Network) -> Row:
    """SIGSTOP of the supervisor for longer than its watchdog; a worker dies meanwhile."""
    watchdog = {"supervisor": {"watchdog": f"{WATCHDOG_S}s"}}
    with Story(plan, network, "supervisor", settings=watchdog) as story:
        story.warm()
        supervisor = story.one("supervisor")
        story.send(60)
        worker = story.busy()
        others = {one.pid for one in story.processes()} - {worker.pid}
        tried = int(freeze(supervisor))
        freeze(worker)
        open_ones = story.sessions([worker])
        strike(worker, signal.SIGKILL)
        _PACE.wait(WATCHDOG_S + 1)
        strike(supervisor, signal.SIGCONT)
        story.engine.wait_log("worker.lost", pid=worker.pid)
        story.await_end()
        story.must(not story.engine.log("watchdog.killed"), "the watchdog blamed the living")
        left = others - {one.pid for one in story.processes()}
        story.must(not left, f"processes {sorted(left)} did not survive it")
        story.drain()
        return story.row(
            "SIGSTOP of the supervisor, a worker killed meanwhile, SIGCONT", tried,
            killed_sessions=open_ones,
        )  # fmt: skip


def second_term(plan: Plan, network: Network) -> Row:
    """TERM twice while hosts hold their answers back."""
    with Story(plan, network, "twice", _held_back(Act.SILENCE)) as story:
        story.warm()
        story.send(BEYOND_A_CLAIM)
        story.await_held_back()
        story.engine.signal(signal.SIGTERM)
        story.engine.wait_log("supervisor.draining")
        _PACE.wait(1.2)  # within a second it would be the same one
        open_ones = story.await_held_back()  # a drain opens no more
        told = time.monotonic()
        story.engine.signal(signal.SIGTERM)
        story.left(story.engine.wait_exit(), time.monotonic() - told, wanted=1)
        story.calm()
        story.start()
        story.await_end()
        story.drain()
        again = Counter(address for dot in story.host.dots for address in dot.recipients)
        doubles = sum(count - 1 for count in again.values())
        story.must(doubles == open_ones, f"{doubles} doubles for {open_ones} sessions")
        # A drain keeps what is on the wire: a content, and the envelope behind its dot.
        return story.row("a second TERM: all end at once", 1, most_marked=2 * open_ones)


def interrupted(plan: Plan, network: Network) -> Row:
    """Ctrl-C: INT to the whole process group under load."""
    rounds, tried = plan.pick(1, 20), 0
    with Story(plan, network, "interrupted") as story:
        story.warm()
        for _ in range(rounds):
            before = len(story.host.dots)
            story.send(60)
            story.await_dots(before + 5)
            tried += bool(story.busy())
            assert story.engine.process is not None
            told = time.monotonic()
            os.killpg(story.engine.process.pid, signal.SIGINT)
            story.left(story.engine.wait_exit(), time.monotonic() - told)
            story.start()
        story.await_end()
        story.drain()
        return story.row("INT to the process group under load", tried)


def reloaded(plan: Plan, network: Network) -> Row:
    """HUP again and again under load, each time with another limit."""
    rounds = plan.pick(5, 100)
    with Story(plan, network, "reloaded") as story:
        story.warm()
        before = {one.pid for one in story.processes()}
        tried = 0
        for number in range(rounds):
            seen = len(story.host.dots)
            story.send(20)
            story.await_dots(seen + 1)
            tried += bool(story.busy())
            story.engine.configure(
                {**story.engine.settings, "sites": {"connections": 2 + number % LANES}}
            )
            story.engine.signal(signal.SIGHUP)
            story.engine.wait_log("config.reloaded", count=number + 1)
        story.await_end()
        story.must({one.pid for one in story.processes()} == before, "a reload cost a process")
        story.drain()
        return story.row("HUP under load, with another connection limit", tried)


def poison(plan: Plan, network: Network) -> Row:
    """One message ends its worker each time, another one its lane; the others flow."""
    marks = {"exit": "the end of a worker", "memory": "too large for any memory"}
    environment = with_faults({"torture_poison": marks})
    with Story(plan, network, "poison", environment=environment) as story:
        story.warm()
        bad = [*story.send(1, mark=marks["exit"]), *story.send(1, mark=marks["memory"])]
        story.send(200)
        story.await_end(held=2)
        exits = [line for line in story.engine.log("worker.lost") if "exit 71" in line["cause"]]
        raised = [line for line in story.engine.log("engine.failed") if "MemoryError" in str(line)]
        story.must(len(exits) == _LOSSES, f"{len(exits)} workers ended by one message")
        # The other one is lost, too, where it is open in a worker that the first one ends.
        story.must(1 <= len(raised) <= _LOSSES, f"{len(raised)} lanes ended by one message")
        for id in bad:
            losses = sum(row.in_doubt for row in story.engine.attempts(id))
            story.must(losses == _LOSSES, f"{id} is held after {losses} losses")
        rows = story.engine.rows(
            "SELECT message_id, reason FROM recipients WHERE status = 'held' ORDER BY message_id"
        )
        story.must(
            [tuple(row) for row in rows] == [(id, "poison") for id in sorted(bad)],
            f"held are {rows}",
        )
        story.drain()
        # Both are marked at each loss; a worker's death costs what else it had open.
        tried = len(exits) + len(raised)
        return story.row(
            "poison: a message that kills its worker, or its lane, each time", tried,
            most_marked=2 * _LOSSES, killed_sessions=_LOSSES * (LANES - 1),
        )  # fmt: skip


def stillborn(plan: Plan, network: Network) -> Row:
    """Workers that die at import: starts are counted; afterwards all is well without a restart."""
    spare = plan.folder / "stillborn-no-more"
    fault = {"module": "mailstrom_workers.engine", "spare": str(spare)}
    environment = with_faults({"torture_stillborn": fault})
    settings = {"supervisor": {"restart_backoff": ["1s", "2s"]}}
    started = time.monotonic()
    story = Story(
        plan, network, "stillborn", settings=settings, environment=environment, wait=False
    )
    with story:
        story.send(10)
        lost = []
        for count in range(1, plan.pick(6, 20) + 1):  # each in its own time
            lost = story.engine.wait_log("worker.lost", count=count, kind="delivery")
        starts = len(story.engine.log("worker.started", kind="delivery"))
        passed_s = time.monotonic() - started
        most = 2 * (1 + passed_s)  # two places, a start a second at most in each
        story.must(starts <= most, f"{starts} starts in {passed_s:.1f} s")
        causes = {line["cause"] for line in lost}
        story.must(causes == {"exit 72"}, f"workers ended by {sorted(causes)}")
        spare.touch()
        mended = time.monotonic()
        story.await_end()
        recovery_s = time.monotonic() - mended
        story.drain()
        return story.row(
            "a worker that dies at import, then mended", len(lost), recovery_s=recovery_s
        )


def survivors(plan: Plan, network: Network) -> Row:
    """Others die beside a worker and a supervisor: they keep no descriptor of it."""
    rounds, tried, open_ones = plan.pick(3, 50), 0, 0
    with Story(plan, network, "survivors") as story:
        story.warm()
        keeper = story.one("delivery")
        watched = [keeper, story.one("supervisor")]

        def idle() -> bool:
            ready = story.engine.rows("SELECT pid FROM workers WHERE state = 'ready'")
            living = {one.pid for one in story.processes()}
            whole = len({row.pid for row in ready} & living) == 3
            return whole and not story.sessions(story.processes("delivery"))

        def held() -> dict[int, int]:
            return {one.pid: len(descriptors(one.pid)) for one in watched}

        story.send(100)
        story.await_end()
        eventually(idle, DEADLINE_S, what="a quiet engine")
        before = held()
        for number in range(rounds):
            story.send(60)
            story.await_dots(len(story.host.dots) + 3)
            kind = "janitor" if number % 3 == 2 else "delivery"
            victim = next(one for one in story.processes(kind) if one.pid != keeper.pid)
            freeze(victim)
            open_ones += story.sessions([victim])
            tried += strike(victim, signal.SIGKILL)
            story.await_end()
            eventually(idle, DEADLINE_S, what="a quiet engine")
        try:
            eventually(lambda: _no_more(held(), before), DEADLINE_S, what="as many descriptors")
        except AssertionError:
            story.findings.append(f"descriptors by process: {before} before, {held()} after")
        story.drain()
        return story.row(
            "kill -9 beside survivors: their descriptors stay as many", tried,
            killed_sessions=open_ones,
        )  # fmt: skip


def _no_more(now: dict[int, int], before: dict[int, int]) -> bool:
    return all(now[pid] <= count for pid, count in before.items())


STORIES: Collection[Callable[[Plan, Network], Row]] = (
    orphans, worker_stopped, worker_stopped_for_good, janitor_stopped, supervisor_stopped,
    second_term, interrupted, reloaded, poison, stillborn, survivors,
)  # fmt: skip


def together(
    stories: Collection[Callable[[Plan, Network], Row]], plan: Plan, network: Network
) -> Iterator[Row]:
    """Each of these once, several at a time; rows in their order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(story, plan, network) for story in stories]
        for one in running:
            yield one.result()
