"""The simulation's short form, that it repeats itself, and that it would have noticed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from mailstrom.errors import SpoolBusy
from mailstrom.storage.base import Lapsed, Settlement, Work
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom_workers.dbcore import DBCore
from mailstrom_workers.dbrequest import Request, Steps
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.ledger import Ledger
from mailstrom_workers.supply import Supply
from tests.support.engine import environment
from tests.support.trial import Plan
from tests.torture import simulation
from tests.torture.sim_fate import Fate
from tests.torture.sim_loop import Real, VirtualLoop, unreal
from tests.torture.simulation import spools, story

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_SEEDS = 400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with spools(tmp_path_factory.mktemp("simulation")) as found:
        yield found


@pytest.mark.timeout(600)
def test_five_hundred_stories_end_as_they_should(tmp_path: Path) -> None:
    first, *kinds = simulation.run(Plan(folder=tmp_path))
    assert first.tried >= 500
    assert [row for row in (first, *kinds) if not row.clean] == []
    assert first.messages >= 3_000
    assert first.marked >= 100
    scarce = {"lapsed although alive": 20, "power cut that takes commits along": 20}
    assert [row for row in kinds if row.tried < scarce.get(row.fault, 30)] == []


def test_a_story_is_the_same_in_another_process(place: Path, tmp_path: Path) -> None:
    seeds = (0, 3, 14, 15)
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"  # behind the product, as here
        "import os, socket\n"  # on another machine
        "os.getpid, socket.gethostname = lambda: 10**15, lambda: 'h' * 60\n"
        "from pathlib import Path\n"
        "from tests.torture.simulation import spools, story\n"
        "with spools(Path(sys.argv[2])) as place:\n"
        "    for seed in sys.argv[3:]: print(story(int(seed), place).trace)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, str(ROOT), str(tmp_path), *map(str, seeds)],
        env=environment() | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert ran.stdout.split() == [story(seed, place).trace for seed in seeds]


def test_the_product_cannot_look_at_this_machines_clock() -> None:
    loop = VirtualLoop()
    try:
        with unreal(loop):
            assert time.monotonic() > 0  # others may
            with pytest.raises(Real, match=r"mailstrom\.clock called time\.time_ns"):
                from_clock()
    finally:
        loop.close()


def from_clock() -> int:
    from mailstrom.clock import wall_ms

    return wall_ms()


# Planted faults: each is noticed, and by the rule that is there for it.


def until(place: Path, word: str, more: str = "") -> None:
    """Tell stories until one is found wrong by this rule, with that in its sentence."""
    for seed in range(1, MOST_SEEDS):
        findings = story(seed, place).judged.findings
        if any(text.startswith(word) and more in text for text in findings):
            return
    pytest.fail(f"{MOST_SEEDS} stories, and nobody noticed by the rule {word!r}")


def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill workers ten times more a story, while there is mail."""
    plan = Fate.plan

    def more(self: Fate) -> list[tuple[float, Callable[[], object]]]:
        draw, span = self.world.rng.random, self.world.horizon_s * 0.6
        kills = [(span * draw() ** 2, self.kill_one) for _ in range(10)]
        return sorted([*plan(self), *kills], key=lambda step: step[0])

    monkeypatch.setattr(Fate, "plan", more)


def test_stories_in_which_workers_are_killed_ten_times_more_are_clean(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal(monkeypatch)
    assert [text for seed in range(1, 30) for text in story(seed, place).judged.findings] == []


def test_a_verdict_that_is_dropped_is_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Ledger.take

    def forgetful(self: Ledger) -> list[Settlement]:
        return [s for s in take(self) if s.state != "delivered" or s.recipient % 3]

    monkeypatch.setattr(Ledger, "take", forgetful)
    until(place, "in doubt: ")


def test_a_transaction_begun_without_its_open_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Supply._opening

    def careless(self: Supply, transaction: Any, connected: Any) -> Any:
        return structs.replace(opening(self, transaction, connected), recipients=())

    monkeypatch.setattr(Supply, "_opening", careless)
    monkeypatch.setattr(Supply, "take_opened", _open_all(Supply.take_opened))
    until(place, "doubled_unmarked: ")


def test_a_claim_that_says_open_and_writes_claimed_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = "iif(j.key < :opened, 'sending', 'claimed')"
    own = STATEMENTS["claim"]
    assert before in own
    monkeypatch.setitem(STATEMENTS, "claim", own.replace(before, "'claimed'"))
    mortal(monkeypatch)
    until(place, "doubled_unmarked: ")


def test_a_lapse_that_leaves_no_mark_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lapse = SQLiteWorkerStore.lapse

    def quiet(self: SQLiteWorkerStore, worker: int, **options: Any) -> Lapsed:
        found = lapse(self, worker, **options)
        self._write("planting a fault", lambda c: c.execute("UPDATE attempt SET in_doubt = 0"))
        return found

    monkeypatch.setattr(SQLiteWorkerStore, "lapse", quiet)
    until(place, "doubled_unmarked: ")


def test_claims_that_are_answered_before_the_disk_has_them_are_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = DBCore._exchange

    def hasty(self: DBCore, store: Any, requests: list[Request]) -> Steps[None]:
        for request in requests:
            request.durable = False
        return exchange(self, store, requests)

    monkeypatch.setattr(DBCore, "_exchange", hasty)
    until(place, "unsynced: ", "claim")
    plan = Fate.plan

    def powerless(self: Fate) -> Any:
        steps = plan(self)
        return sorted([*steps, *((at_s, self.reboot) for at_s, _ in steps)], key=lambda one: one[0])

    monkeypatch.setattr(Fate, "plan", powerless)
    until(place, "doubled_unmarked: ")


def test_an_open_that_must_not_be_doubled_and_does_not_wait_for_the_disk_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = DBService.post

    def hasty(self: DBService, *asked: Any, durable: bool = False, **how: Any) -> None:
        post(self, *asked, **how)

    monkeypatch.setattr(DBService, "post", hasty)
    until(place, "unsynced: ", "open")


def test_a_release_that_takes_what_was_sent_for_unsent_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = "AND state = 'claimed'", "AND state IN ('claimed', 'sending')"
    own = STATEMENTS["release_claimed"]
    assert before in own
    monkeypatch.setitem(STATEMENTS, "release_claimed", own.replace(before, after))
    until(place, "doubled_unmarked: ")


def test_a_connection_too_many_is_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease, exchange = SQLiteWorkerStore.lease, SQLiteWorkerStore.exchange

    def generous(self: SQLiteWorkerStore, worker: int, **options: Any) -> Any:
        return lease(self, worker, **options | {"limit": options["limit"] + 4, "workers": 1})

    def lenient(self: SQLiteWorkerStore, work: Work, now_ms: int) -> Any:
        work.claims = [structs.replace(claim, limit_lanes=None) for claim in work.claims]
        return exchange(self, work, now_ms)

    monkeypatch.setattr(SQLiteWorkerStore, "lease", generous)
    monkeypatch.setattr(SQLiteWorkerStore, "exchange", lenient)
    until(place, "connections: ")


def test_a_message_that_is_acknowledged_and_dropped_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = SQLiteClientStore.enqueue

    def leaky(self: SQLiteClientStore, submissions: Any, now_ms: int) -> Any:
        found = enqueue(self, submissions, now_ms)
        sql = "DELETE FROM recipient WHERE seq % 20 = 7 AND state = 'queued'"
        self._write("planting a fault", lambda c: c.execute(sql))
        return found

    monkeypatch.setattr(SQLiteClientStore, "enqueue", leaky)
    until(place, "lost: ")


def test_a_cancelled_recipient_that_is_sent_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Supply, "take_opened", _open_all(Supply.take_opened))
    _busy(monkeypatch)
    until(place, "cancelled: ")


def test_a_lane_that_nobody_runs_is_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = SQLiteWorkerStore.lease

    def fails(self: SQLiteWorkerStore, *args: Any, **named: Any) -> Any:
        if lease(self, *args, **named):
            raise SpoolBusy("behind the lease, which is committed")
        return []

    monkeypatch.setattr(SQLiteWorkerStore, "lease", fails)
    until(place, "stuck: ")


def _open_all(opens: Any) -> Any:
    """A lane that sends what it wanted to open, whatever the store returned."""

    def stubborn(self: Supply, exchange: Any) -> Any:
        wanted = {row.recipient for one in self.stock.opening for row in one.recipients}
        return opens(self, exchange._replace(opened=frozenset(wanted)))

    return stubborn


def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many changes of few messages, so that one meets a claim."""
    plan = Fate.plan

    def often(self: Fate) -> Any:
        steps = plan(self)
        more = [(at_s + 0.1 * n, self.change) for at_s, _ in steps for n in range(1, 4)]
        return sorted(steps + more, key=lambda step: step[0])

    monkeypatch.setattr(Fate, "plan", often)
