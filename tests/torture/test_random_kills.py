"""The short form of random kills, drains and stories of processes; and that they can object.

The planted faults break a witness or the spool after a storm: a judgement that did not notice them
would have noticed nothing in the storm either.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.network import Network
from tests.support.trial import Plan
from tests.torture import random_kills
from tests.torture.process_faults import STORIES, together
from tests.torture.processes import freeze, strike
from tests.torture.storm import SESSIONS, Storm
from tests.torture.story import Story
from tests.torture.table import Row

SEED = 1047  # the RFC of duplicates


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(folder=tmp_path, seed=SEED, say=print)


def _sound(row: Row, *, tried: int) -> None:
    assert row.clean, row
    assert row.tried >= tried, row


def _storm(plan: Plan, network: Network, messages: int) -> Storm:
    return Storm(network=network, folder=plan.folder / "storm", name="storm", messages=messages)


def test_in_peace_everything_arrives_exactly_once(plan: Plan, network: Network) -> None:
    with _storm(plan, network, 600) as storm:
        findings = storm.finish()
        verdict = storm.verdict()

        assert (findings, verdict.findings) == ((), ())
        assert verdict.report.clean, verdict.report.describe()
        assert (verdict.doubles, verdict.marked, verdict.unanswered) == (0, 0, 0)
        assert verdict.recipients == len(storm.sink.seen) >= 600
        rows = storm.engine.rows("SELECT DISTINCT status, attempts, in_doubt FROM recipients")
        assert [tuple(row) for row in rows] == [("delivered", 1, 0)]


@pytest.mark.timeout(300)
def test_under_kill_nothing_is_lost_and_every_double_is_marked(
    plan: Plan, network: Network
) -> None:
    row = random_kills.random_kills(plan, network)
    _sound(row, tried=60)
    assert row.messages >= 3_000
    assert row.marked, "no kill hit a transaction"


@pytest.mark.timeout(300)
def test_all_killed_at_once_and_a_replaced_worker_go_on(plan: Plan, network: Network) -> None:
    both = (random_kills.all_at_once, random_kills.replaced)
    killed, replaced = together(both, plan, network)
    _sound(killed, tried=2)
    _sound(replaced, tried=3)


@pytest.mark.timeout(300)
def test_drains_and_stories_of_processes(plan: Plan, network: Network) -> None:
    rows = list(together((random_kills.drains, *STORIES), plan, network))
    for row in rows:
        _sound(row, tried=1)
    assert rows[0].tried == 5
    assert len(rows) == 1 + len(STORIES)


# Planted


def _killed_once(plan: Plan, network: Network) -> Storm:
    """A storm in which all died at once with transactions open, ended and clean; still open."""
    storm = _storm(plan, network, 200).__enter__()
    try:
        storm.release(150)
        storm.await_contents(0)
        for one in storm.await_busy():
            storm.struck(one.pid, SESSIONS, exact=False)
        for one in storm.processes("delivery"):
            storm.struck(one.pid, SESSIONS, exact=False)
        assert storm.engine.process is not None
        os.killpg(storm.engine.process.pid, signal.SIGKILL)
        storm.engine.wait_exit()
        storm.await_empty()
        storm.start()
        assert storm.finish(sweep=True) == ()
        assert storm.verdict().findings == ()
    except BaseException:
        storm.__exit__(None, None, None)
        raise
    return storm


def test_what_is_broken_on_purpose_is_noticed(plan: Plan, network: Network) -> None:
    storm = _killed_once(plan, network)
    try:
        clean = storm.verdict()
        assert clean.report.clean, clean.report.describe()

        # A content that the sink never had, though the spool says delivered. One without a mark,
        # which would explain a second copy of it.
        marked = {
            row.message_id
            for row in storm.engine.rows(
                "SELECT m.message_id FROM messages AS m JOIN attempts AS a ON a.message_id = m.id"
                " WHERE a.in_doubt = 1"
            )
        }
        place = max(n for n, one in enumerate(storm.sink.seen) if one.message_id not in marked)
        dropped = storm.sink.seen.pop(place)
        assert len(storm.verdict().report.lost) == 1
        storm.sink.seen.append(dropped)

        # A second copy that nothing explains.
        storm.sink.seen.append(dropped)
        assert len(storm.verdict().report.doubled_unmarked) == 1
        storm.sink.seen.pop()

        # A mark that no kill explains; and more of them than there were sessions.
        assert storm.engine.tamper("UPDATE attempt SET in_doubt = 1 WHERE seq = 1") == 1
        doubts, storm.doubts = storm.doubts, {}
        assert any("nobody ended" in text for text in storm.verdict().findings)
        for pid in doubts:
            storm.struck(pid, 0, exact=True)
        assert any("counted 0" in text for text in storm.verdict().findings)
        storm.doubts = doubts

        # A verdict unrecorded: the row waits for ever, the answer is the sink's alone.
        sql = "UPDATE recipient SET state = 'held', reason = 'user', finished_ms = NULL"
        assert storm.engine.tamper(f"{sql} WHERE seq = 1") == 1
        assert "1 recipients are held" in storm.verdict().findings

        # A row dropped, and with it what is known of a message.
        one = storm.sink.seen[-1].message_id
        storm.sink.seen = [seen for seen in storm.sink.seen if seen.message_id != one]
        sql = "DELETE FROM recipient WHERE message = (SELECT seq FROM message WHERE message_id = ?)"
        assert storm.engine.tamper(sql, one) >= 1
        row = storm.row("planted", 1, storm.verdict(), seed=plan.seed)
        assert row.lost
        assert not row.clean
    finally:
        storm.__exit__(None, None, None)


def test_marks_taken_away_make_doubles_silent(plan: Plan, network: Network) -> None:
    with Story(plan, network, "unmarked") as story:
        story.warm()
        story.send(40)
        worker = story.busy()
        freeze(worker)
        killed = story.sessions([worker])
        strike(worker, signal.SIGKILL)
        story.await_end()
        assert story.row("one kill", 1, killed_sessions=killed).clean
        # What was kept twice, or as good as: the same dot once more, without a mark.
        story.network.on_loop(lambda: story.host.dots.append(story.host.dots[0]))
        row = story.row("one kill", 1, killed_sessions=killed)
        assert (row.silent, row.clean) == (1, False)
        assert not story.row("one kill", 1, most_marked=-1).clean


def test_a_fault_that_hits_nothing_does_not_count(plan: Plan, network: Network) -> None:
    with Story(plan, network, "nothing") as story:
        worker = story.one("delivery")
        assert story.sessions([worker]) == 0
        story.drain()
        assert not strike(worker, signal.SIGKILL)
