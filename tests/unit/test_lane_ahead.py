"""What a lane lets the store open with its claim: what its session and its site may have, no more.

The rig's store heeds each bound that it is told, and its servers note whatever they must not get.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.transaction import Unmet
from mailstrom.types import OnDoubt
from mailstrom_workers.feed import FRESH_S, OVERDUE_S
from mailstrom_workers.lane import LaneRun
from tests.unit.lane_rig import Rig, row, until


def called_for(rig: Rig, *rows: Any, window: int = 31, **lease: Any) -> set[int]:
    """What an idle lane of the rig opens with the claim of the rows that it is called for."""
    opened: list[set[int]] = []

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        lane.supply.window.size, lane.supply.pace.size = window, 64
        rig.store.add(*rows)
        claims = len(rig.store.ahead)
        lane.call()
        await until(lambda: len(rig.store.ahead) > claims)
        opened.append(rig.store.ahead[claims])

    rig.run(beside, **lease)
    return opened[0]


def idle_rig(monkeypatch: pytest.MonkeyPatch, offers: dict[str, Any], **tables: Any) -> Rig:
    rig = Rig(monkeypatch, row(1), **({"sites": {"idle": "10s"}} | tables))
    rig.offers = Capabilities(name="mx", **({"pipelining": True} | offers))
    return rig


BIG = {"size": 2_000}


@pytest.mark.parametrize(
    ("facts", "without", "state", "given"),
    [
        (BIG, {"size": 1_999}, "failed", {"size": 2_000}),
        (BIG, {"size": 1_999}, "failed", {"size": 0}),
        ({"eightbit": True}, {}, "failed", {"eightbitmime": True}),
        ({"smtputf8": True}, {}, "failed", {"smtputf8": True}),
    ],
)
def test_only_what_the_server_takes(
    monkeypatch: pytest.MonkeyPatch,
    facts: dict[str, Any],
    without: dict[str, Any],
    state: str,
    given: dict[str, Any],
) -> None:
    rows = row(2), row(3, **facts), row(4)
    rig = idle_rig(monkeypatch, without)
    assert called_for(rig, *rows) == {2}
    assert rig.lacking == []
    assert [rig.store.states[n] for n in (2, 3, 4)] == ["delivered", state, "delivered"]
    rig = idle_rig(monkeypatch, given)
    assert called_for(rig, *rows) == {2, 3, 4}
    assert [rig.store.states[n] for n in (2, 3, 4)] == ["delivered"] * 3


def test_only_in_clear_what_may_travel_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = row(2), row(3, require_tls=True), row(4)
    rig = idle_rig(monkeypatch, {})
    assert called_for(rig, *rows) == {2}
    assert [rig.store.states[n] for n in (2, 3, 4)] == ["delivered", "deferred", "delivered"]
    rig = idle_rig(monkeypatch, {})
    rig.tls = "encrypted"
    assert called_for(rig, *rows) == {2, 3, 4}


def test_only_as_many_recipients_as_the_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(count: int) -> list[Any]:
        return [row(2), *(row(n, message=3) for n in range(3, 3 + count)), row(900)]

    rig = idle_rig(monkeypatch, {"limits": {"RCPTMAX": 2}})
    assert called_for(rig, *many(2)) == {2, 3, 4, 900}
    rig = idle_rig(monkeypatch, {"limits": {"RCPTMAX": 2}})
    assert called_for(rig, *many(3)) == {2}
    assert set(rig.store.states.values()) == {"delivered"}
    rig = idle_rig(monkeypatch, {})
    assert called_for(rig, *many(100)) == {2, *range(3, 103), 900}
    rig = idle_rig(monkeypatch, {})
    assert called_for(rig, *many(101)) == {2}


def test_only_as_many_domains_as_the_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = row(2), row(3, message=3, domain="a.test"), row(4, message=3, domain="b.test")
    for most, opened in ((1, set()), (2, {2}), (3, {2})):
        rig = idle_rig(monkeypatch, {"limits": {"RCPTDOMAINMAX": most}})
        assert called_for(rig, *rows) == opened, "each may be of a domain that the session lacks"
        assert set(rig.store.states.values()) == {"delivered"}
    each = [row(n, domain=f"d{n}.test") for n in range(2, 8)]
    rig = idle_rig(monkeypatch, {"limits": {"RCPTDOMAINMAX": 4}})
    assert called_for(rig, *each) == {2, 3, 4}
    assert set(rig.store.states.values()) == {"delivered"}
    rig = idle_rig(monkeypatch, {})
    assert called_for(rig, *rows) == {2, 3, 4}


def test_only_as_many_as_the_session_still_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = idle_rig(monkeypatch, {"limits": {"MAILMAX": 3}})
    assert called_for(rig, *(row(n) for n in range(2, 8))) == {2, 3}
    assert set(rig.store.states.values()) == {"delivered"}
    rig = idle_rig(monkeypatch, {}, sites={"idle": "10s", "messages_per_connection": 4})
    assert called_for(rig, *(row(n) for n in range(2, 8))) == {2, 3, 4}


def test_only_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = idle_rig(monkeypatch, {})
    assert called_for(rig, *(row(n) for n in range(2, 20)), window=5) == {2, 3, 4, 5, 6}


def test_never_what_may_not_be_sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = idle_rig(monkeypatch, {})
    assert called_for(rig, row(2), row(3, on_doubt=OnDoubt.HOLD), row(4)) == {2}


# A site that nobody saw take mail


def test_one_message_where_no_server_ended_one_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, row(1, size=10**9), sites={"idle": "10s"})
    rig.offers = Capabilities(name="mx", pipelining=True, size=1_000)
    most: list[int] = []
    says = rig.says

    def watched(outgoing: Any) -> Any:
        if not rig.store.settled or rig.store.settled[-1].recipient == 1:
            most.append(list(rig.store.states.values()).count("sending"))
        return says(outgoing)

    monkeypatch.setattr(rig, "says", watched)
    rows = [row(n) for n in range(2, 10)]
    assert called_for(rig, *rows, canary=True) == {2}
    assert most == [1], "one message finds out for all"
    assert {rig.store.states[one.recipient] for one in rows} == {"delivered"}


def test_nothing_behind_the_one_that_finds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = [row(n, damaged=True) for n in range(2, 10)]  # so that claims give nothing to wait
    rig = Rig(monkeypatch, row(1), *damaged, row(10), row(11))
    rig.reply_s = 0.5
    early: list[set[int]] = []
    says = rig.says

    def watched(outgoing: Any) -> Any:
        if not early:
            early.append({n for n, state in rig.store.states.items() if state == "sending"})
            early.append({n for n, state in rig.store.states.items() if state == "claimed"})
        return says(outgoing)

    monkeypatch.setattr(rig, "says", watched)
    rig.run(canary=True, due=3)
    assert early[0] == {1}
    assert early[1] == {10, 11}, "they were claimed meanwhile, as it is to be"
    assert [rig.store.states[n] for n in (1, 10, 11)] == ["delivered"] * 3


def test_the_engine_looks_again_by_the_lanes_own_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange carries many lanes' settlements; those of another site say nothing of this."""
    rig = Rig(monkeypatch, *(row(n) for n in range(1, 20)))
    rig.settled_beside = frozenset({7_000})
    # an exchange that left before the first verdict, and comes back behind it
    rig.store_s, rig.reply_s = 0.2, 0.05
    known: list[bool] = []

    async def beside(run: LaneRun) -> None:
        await until(lambda: rig.begun)
        run.feed._exchanges.stir()
        run.walk.connector.rows.append(run.walk.connected.row(run.lane, None))  # type: ignore[union-attr]
        wake = run.ctx.wake
        monkeypatch.setattr(
            type(run.ctx),
            "wake",
            lambda ctx: (known.append(bool(rig.store.settled)), wake())[1],
        )

    rig.run(beside, canary=True)
    assert known[0], "nothing is known of the site until its own verdict is recorded"


# How fresh it is


@pytest.mark.parametrize("with_the_claim", [True, False])
def test_what_was_told_long_after_the_lock_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, with_the_claim: bool
) -> None:
    """Between the lock and the answer a process may stand still, and another take the lane."""
    rig = Rig(monkeypatch, row(1), sites={"idle": "10s"})

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        lane.supply.window.size = 31 if with_the_claim else 1
        rows = [row(n, on_doubt=None if with_the_claim else OnDoubt.HOLD) for n in (2, 3)]
        rig.store.add(*rows)
        rig.late_s = FRESH_S + 1
        lane.call()
        await until(lambda: rig.store.states[2] == "sending")
        begun = len(rig.begun)
        rig.late_s = 0.0
        rig.store.withdrawn = {2}  # somebody took it meanwhile
        await until(lambda: len(rig.begun) > begun)

    rig.run(beside)
    assert rig.begun == [1, 3]
    assert rig.store.states[2] == "cancelled"


def test_what_expires_while_it_waits_for_the_wire_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store says what is too old: it knows how the clock jumped."""
    rig = Rig(monkeypatch, row(1), sites={"idle": "10s"})

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        lane.supply.window.size = 31
        rig.reply_s = OVERDUE_S * 2
        soon = int((rig.loop.time() + OVERDUE_S) * 1000)
        rig.store.add(row(2), row(3), *(row(n, expires_ms=soon) for n in (4, 5)), row(6))
        lane.call()
        await until(lambda: rig.store.states[5] == "sending")
        rig.store.withdrawn = {4}
        await until(lambda: 6 in rig.begun)

    rig.run(beside)
    assert rig.begun == [1, 2, 3, 5, 6]


# How much of a claim is taken though other lanes find less


def test_a_slow_lane_leaves_other_lanes_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *(row(n) for n in range(1, 200)))
    rig.reply_s = 0.025
    rig.run()
    even = [(c.even, c.limit) for work in rig.store.work for c in work.claims]
    assert even[0][0] == 1, "its pace is not known yet"
    assert {one for one, limit in even[4:] if limit > 5} == {4}, "what it delivers in 100 ms"


# What the store opened, and the session cannot take


def test_a_need_that_is_found_unmet_on_the_session_is_no_damage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = idle_rig(monkeypatch, {})

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        lane.supply.window.size = 31
        ahead = lane.supply._ahead

        def careless() -> Any:
            found = ahead()
            assert found is not None
            return type(found)(
                session=found.session, messages=9, recipients=9, octets=0, encrypted=True,
                eightbit=True, smtputf8=True,
            )  # fmt: skip

        monkeypatch.setattr(lane.supply, "_ahead", careless)
        rig.store.add(row(2, eightbit=True), row(3))
        lane.call()
        await until(lambda: not lane.idle)
        await asyncio.sleep(0.1)
        monkeypatch.setattr(lane.supply, "_ahead", ahead)

    rig.run(beside)
    assert rig.lacking[0] is Unmet.EIGHTBITMIME
    settled = [one for one in rig.store.settled if one.recipient == 2 and one.attempt]
    assert [(one.state, str(one.reason)) for one in settled] == [
        ("claimed", "unsupported"), ("failed", "unsupported"),
    ]  # fmt: skip
    assert rig.store.states[3] == "delivered"
