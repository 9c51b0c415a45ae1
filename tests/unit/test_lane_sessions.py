"""A lane between sessions: what it holds while it connects anew, and whom it blames for the end."""

from __future__ import annotations

import asyncio
from itertools import cycle
from typing import Any

import pytest

from mailstrom.errors import SpoolCorrupt
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import Fault
from mailstrom.types import Stage
from mailstrom_workers import connector as connector_module
from mailstrom_workers.context import Settings
from mailstrom_workers.lane import LaneRun
from mailstrom_workers.transactions import Transaction
from tests.unit.lane_rig import LATER, Rig, cut, end, refused, row, until

ENOUGH = Reply(421, "4.3.2", ("4.3.2 one message a connection",))


def one_a_connection(rig: Rig, how: str) -> list[int]:
    """Its servers take the first message of a session, and close by the second.

    Returns:
        Which those were.
    """
    closed_upon: list[int] = []

    def says(outgoing: Any) -> Any:
        server = next(one for one in reversed(rig.opened) if outgoing in one.wire)
        if server.messages == 0:
            return end(len(outgoing.envelope.recipients))
        closed_upon.append(outgoing.of.recipients[0].recipient)
        if how == "close":
            return cut(answered=False, dotted=False)
        return end(
            mail=ENOUGH, rcpts=(None,), data=None, dot=None, stage=Stage.MAIL, dot_written=False,
            usable=False, behind=True,
        )  # fmt: skip

    rig.says = says  # type: ignore[method-assign]
    return closed_upon


@pytest.mark.parametrize("how", ["421", "close"])
@pytest.mark.parametrize("store_s", [0.001, 0.05])
@pytest.mark.parametrize("behind", [0, 1])
def test_a_server_that_takes_one_message_a_connection_takes_them_all(
    monkeypatch: pytest.MonkeyPatch, how: str, store_s: float, behind: int
) -> None:
    rig = Rig(monkeypatch, *(row(n) for n in range(1, 61)))
    closed_upon = one_a_connection(rig, how)
    rig.store_s, rig.behind = store_s, behind
    rig.run()
    assert set(rig.store.states.values()) == {"delivered"}
    assert rig.store.suspended == []
    assert len(closed_upon) == len(set(closed_upon)), "who was closed upon goes first"
    assert len(rig.opened) == 60


@pytest.mark.parametrize("how", ["421", "close"])
@pytest.mark.parametrize("store_s", [0.001, 0.02, 0.05])
def test_who_is_passed_by_urgent_mail_is_closed_upon_again_and_its_site_goes_on(
    monkeypatch: pytest.MonkeyPatch, how: str, store_s: float
) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "60s"})
    one_a_connection(rig, how)
    rig.store_s = store_s

    async def beside(lane: LaneRun) -> None:
        for number, priority in zip(range(2, 120), cycle((2, 1, 0, 2, 0)), strict=False):
            rig.store.add(row(number, priority=priority))
            lane.call()
            await asyncio.sleep(0.03)
        while rig.store.due:
            lane.call()
            await asyncio.sleep(1.0)

    rig.run(beside, due=1_000)
    assert rig.store.suspended == []
    assert set(rig.store.states.values()) == {"delivered"}
    assert [one for one in rig.store.settled if one.attempt and one.state != "delivered"] == []


# What is opened and not begun


def late(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every server but the first one greets late."""
    opener: Any = connector_module.Session
    real, opened = opener.open, []

    async def open(target: Any, policy: Any, patience: Any) -> Any:
        opened.append(target)
        if len(opened) > 1:
            await asyncio.sleep(seconds)
        return await real(target, policy, patience)

    monkeypatch.setattr(opener, "open", staticmethod(open))


def told(rig: Rig, *states: str) -> set[int]:
    return {recipient for recipient, state in rig.store.states.items() if state in states}


async def hang_up_an_idle_session(rig: Rig, lane: LaneRun) -> None:
    await until(lambda: lane.idle)
    lane.supply.window.size, lane.supply.pace.size = 31, 64
    rig.store.add(*(row(n) for n in range(2, 40)))
    lane.call()
    await until(lambda: not lane.idle)
    rig.opened[0].usable = False  # while the store is asked


async def reload(rig: Rig, lane: LaneRun) -> None:
    await until(lambda: lane.idle)
    rig.store.add(*(row(n) for n in range(2, 400)))
    lane.supply.window.size, lane.supply.pace.size = 31, 64
    lane.call()
    await until(lambda: len(lane.stock.opened) > 10)
    lane.ctx.settings = Settings.of(rig.config)
    lane.look()


@pytest.mark.parametrize("parting", [hang_up_an_idle_session, reload])
def test_nothing_stays_opened_while_a_host_greets_late_and_a_drain_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, parting: Any
) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "60s"})
    rig.store_s, rig.reply_s = 0.05, 0.01
    late(monkeypatch, 200.0)
    ended: list[float] = []

    async def beside(lane: LaneRun) -> None:
        await parting(rig, lane)
        await until(lambda: lane.connected is None and not lane.stock.wire)
        await until(lambda: not lane.feed._exchanges.busy)
        assert told(rig, "sending") == set(), "cancel, hold and expiry may have them"
        assert len(told(rig, "claimed")) > 20
        lane.ctx.draining.set()
        lane.look()
        ended.append(rig.loop.time())

    lane = rig.run(beside)
    assert rig.loop.time() - ended[0] < 1.0
    assert told(rig, "claimed", "sending", "in doubt") == set()
    assert rig.store.suspended == [], "no host was found wanting"
    assert lane.feed.error is None


def test_a_drain_does_not_wait_for_the_first_greeting_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), row(2))
    rig.reply_s = 200.0

    async def beside(lane: LaneRun) -> None:
        await until(lambda: told(rig, "claimed") == {1, 2})
        await asyncio.sleep(1.0)
        lane.ctx.draining.set()
        lane.look()
        lane.look()  # others may look as well

    began = rig.loop.time()
    rig.run(beside)
    assert rig.loop.time() - began < 3.0
    assert told(rig, "queued") == {1, 2}
    assert rig.store.suspended == []


def test_a_drain_that_comes_while_goodbye_is_said_opens_no_other_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(
        monkeypatch, *(row(n) for n in range(1, 9)),
        sites={"idle": "1s", "messages_per_connection": 2},
    )  # fmt: skip
    rig.reply_s = 0.5

    async def beside(lane: LaneRun) -> None:
        await until(lambda: rig.opened and rig.opened[0].quits)
        lane.ctx.draining.set()
        lane.look()

    rig.run(beside)
    assert len(rig.opened) == 1
    assert len(told(rig, "delivered")) == 2
    assert told(rig, "claimed", "sending", "in doubt") == set()


def test_what_a_host_said_stands_when_a_drain_ends_the_wait_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), row(2))
    rig.script[1] = [refused(LATER)]
    late(monkeypatch, 200.0)

    async def beside(lane: LaneRun) -> None:
        await until(lambda: rig.opened and lane.connected is None and not lane.stock.wire)
        await asyncio.sleep(1.0)
        lane.ctx.draining.set()
        lane.look()

    rig.run(beside)
    assert rig.store.states == {1: "deferred", 2: "delivered"}
    assert rig.store.suspended == []


def test_a_claim_waits_for_the_exchange_that_told_what_was_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no host is left a lane is through sooner than the store answers."""
    rig = Rig(monkeypatch, row(1), row(2))

    async def main() -> None:
        lane = rig.lane()
        before = rig.store.due.popleft()
        rig.store.states[before.recipient] = "sending"
        lane.stock.opened.append(Transaction([before]))
        lane.feed.reclaim()
        assert await lane._claim_first()
        assert [len(work.claims) for work in rig.store.work] == [0, 1]
        assert rig.store.states == {1: "claimed", 2: "claimed"}
        assert not lane.supply.pace.exhausted, "the claim's answer was not taken for the other's"

    rig.loop.run_until_complete(main())
    rig.loop.close()


def test_an_error_of_the_store_meanwhile_ends_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "60s"})
    late(monkeypatch, 200.0)

    async def beside(lane: LaneRun) -> None:
        await hang_up_an_idle_session(rig, lane)
        rig.db.error = SpoolCorrupt("x")

    with pytest.raises(SpoolCorrupt):
        rig.run(beside)
    assert rig.store.released == 1
    assert told(rig, "claimed", "sending") == set()


def test_what_is_sent_again_without_any_progress_ends_with_the_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1))
    rig.script[1] = [
        end(mail=None, rcpts=(None,), fault=Fault.GARBAGE, stage=Stage.MAIL, dot=None, data=None,
            dot_written=False, answered=False, usable=False, stale=True)
    ] * 9  # fmt: skip
    rig.run()
    assert len(rig.begun) == 3, "once more at the first host, then once at the next one"
    assert len(rig.store.suspended) == 1
    assert rig.store.states == {1: "queued"}
