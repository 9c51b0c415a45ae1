"""One lane between a store and servers that only remember: order, window, ladder, and every end."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailstrom.errors import SpoolBusy, SpoolCorrupt
from mailstrom.policy.pace import MOST_OPENED
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import Dialect, Extension, Fault
from mailstrom.storage.base import Exchange, Work
from mailstrom.types import OnDoubt, Pipelining, Stage
from mailstrom_workers.context import Context
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.endpoint import SessionFacts, SessionFailure
from mailstrom_workers.feed import SILENT_S, Feed, SessionMute
from mailstrom_workers.ladder import LESSON_MS, SUSPICION_MS, Ladder
from mailstrom_workers.lane import LaneRun
from mailstrom_workers.ledger import UNREAD_MS, Ledger
from mailstrom_workers.settling import ContentDamaged
from mailstrom_workers.stock import YIELD_S, Stock, put
from mailstrom_workers.transactions import Again, Transaction
from tests.unit.lane_rig import LATER, NEVER, OK, Rig, cut, end, refused, row, until

NO_HOST = SessionFailure(
    stage=Stage.CONNECT, cause="refused", reply=None, text="nobody there",
    facts=SessionFacts(host="mx", address="192.0.2.1", port=25, tls_wanted="none"),
)  # fmt: skip
NOT_MAIL = end(mail=LATER, rcpts=(None,), data=None, dot=None, stage=Stage.MAIL, dot_written=False)


def rows(count: int, first: int = 1, **facts: Any) -> list[Any]:
    return [row(number, **facts) for number in range(first, first + count)]


# Order, window, claims


def test_a_backlog_goes_in_its_order_on_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(60))
    rig.run()
    assert rig.begun == list(range(1, 61))
    assert set(rig.store.states.values()) == {"delivered"}
    assert len(rig.opened) == 1
    assert rig.opened[0].quits
    assert rig.store.released == 1


def test_nothing_is_begun_that_the_store_did_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(5), row(6), row(7, message=6))
    rig.store.withdrawn = {2, 5, 7}
    rig.run()
    assert rig.begun == [1, 3, 4, 6]
    assert rig.envelopes[-1] == ("r6@example.org",), "one of its two was taken away"
    assert [rig.store.states[n] for n in (1, 2, 5, 7)] == [
        "delivered", "cancelled", "cancelled", "cancelled",
    ]  # fmt: skip


def test_the_window_grows_while_the_wire_waits_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Rig(monkeypatch, *rows(300))
    slow.store_s, slow.reply_s = 0.1, 0.001
    lane = slow.run()
    assert lane.supply.window.size == MOST_OPENED
    assert max(len(w.opens) for w in slow.store.work) > MOST_OPENED // 2
    asked = [len(w.opens) for w in slow.store.work if w.opens]
    assert len(asked) < 3 * 300 // MOST_OPENED, "by one for each wait it would be half as wide"
    quick = Rig(monkeypatch, *rows(300))
    quick.store_s, quick.reply_s = 0.001, 0.2
    lane = quick.run()
    assert lane.supply.window.size <= 3, "what is opened ahead is in doubt after a crash"


def test_a_site_that_took_mail_before_has_the_second_message_behind_the_first_dot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_with_the_first(canary: bool) -> set[int]:
        rig = Rig(monkeypatch, *rows(20))
        rig.store_s, rig.reply_s = 0.001, 0.05
        seen: set[int] = set()

        def says(outgoing: Any) -> Any:
            if not rig.store.settled and not seen:
                seen.update(n for n, state in rig.store.states.items() if state == "sending")
            return end(len(outgoing.envelope.recipients))

        rig.says = says  # type: ignore[method-assign]
        rig.run(canary=canary)
        return seen

    assert open_with_the_first(canary=False) >= {1, 2}
    assert open_with_the_first(canary=True) == {1}, "one message finds out for all"


def test_the_engine_looks_again_when_a_canarys_first_verdict_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(40))
    woken: list[int] = []
    wake = Context.wake

    def counting(ctx: Any) -> None:
        woken.append(len(rig.store.settled))
        wake(ctx)

    monkeypatch.setattr(Context, "wake", counting)
    rig.run(canary=True)
    assert woken[0] == 1, "as soon as the site is known to take mail, and not for each message"
    assert len(woken) <= 4


def test_a_claim_is_made_before_the_waiting_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(200))
    rig.store_s, rig.reply_s = 0.01, 0.005
    began = rig.loop.time()
    rig.run()
    took = rig.loop.time() - began
    assert took < 200 * 0.005 + 0.4, "the wire never waited for a claim, but at first"


def test_a_slow_lane_claims_with_nothing_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(40))
    rig.reply_s = 1.0
    lane = rig.run()
    assert lane.supply.pace.size == 1
    late = [w.claims[0].limit for w in rig.store.work if w.claims][3:]
    assert set(late) == {1}


def test_a_settlement_travels_with_the_next_openings(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(30))
    rig.store_s = 0.001
    rig.run()
    both = [w for w in rig.store.work if w.settlements and w.opens]
    assert len(both) >= 20
    assert len(rig.store.work) < 30 + 12, "no exchange for an opening alone, or a verdict alone"


def test_recipients_of_a_message_travel_together_within_the_servers_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def own() -> list[Any]:
        return [row(n, message=1, domain=f"d{n % 3}.test") for n in range(1, 8)]

    rig = Rig(monkeypatch, *own())
    rig.run()
    assert [len(one) for one in rig.envelopes] == [7]
    rig = Rig(monkeypatch, *own())
    rig.offers = Capabilities(name="mx", limits={"RCPTMAX": 3})
    rig.run()
    assert [len(one) for one in rig.envelopes] == [3, 3, 1]
    rig = Rig(monkeypatch, *own())
    rig.offers = Capabilities(name="mx", limits={"RCPTDOMAINMAX": 1, "RCPTMAX": 2})
    rig.run()
    assert [len(one) for one in rig.envelopes] == [2, 1, 2, 2]
    rig = Rig(monkeypatch, *own())
    rig.offers = Capabilities(name="mx", limits={"RCPTDOMAINMAX": 2})
    rig.run()
    assert [len(one) for one in rig.envelopes] == [5, 2], "two domains, and the third"
    assert set(rig.store.states.values()) == {"delivered"}


def test_domains_in_turn_do_not_part_a_message_into_single_recipients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *(row(n, message=1, domain=f"d{n % 7}.test") for n in range(1, 71)))
    rig.offers = Capabilities(name="mx", limits={"RCPTDOMAINMAX": 1})
    rig.script[2] = [end(10, rcpts=(OK,) * 9 + (NEVER,))]
    rig.run()
    assert [len(one) for one in rig.envelopes] == [10] * 7
    assert {n for n, state in rig.store.states.items() if state != "delivered"} == {65}
    assert rig.store.states[65] == "failed", "the last of its domain, and nobody else"


def test_who_was_refused_as_one_too_many_has_the_next_turn_and_is_not_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *(row(n, message=1) for n in range(1, 8)), *rows(2, first=8))
    held: list[int] = []
    says = rig.says

    def holding(outgoing: Any) -> Any:
        held.append(rig.lanes[0].ctx._held_bytes)
        return says(outgoing)

    rig.says = holding  # type: ignore[method-assign]
    many = Reply(452, "4.5.3", ("4.5.3 too many recipients",))
    rig.script[1] = [end(7, rcpts=(OK, NEVER, OK, LATER, many, many, many))]
    rig.script[5] = [end(2, rcpts=(LATER, OK))]
    rig.run()
    own = [one for one in rig.envelopes if one[0][:2] not in ("r8", "r9")]
    assert [len(one) for one in own] == [7, 2, 1, 1, 1], "two are taken at once"
    states = dict(rig.store.states)
    assert (states.pop(2), set(states.values())) == ("failed", {"delivered"})
    charged = [s.recipient for s in rig.store.settled if s.attempt and s.state != "delivered"]
    assert sorted(charged) == [2, 4, 5], "a host that took some has not answered for the others"
    assert [s.facts.host for s in rig.opened] == ["mx1.test", "mx2.test"]
    assert min(held) >= len(row(1).body or b""), "each part counts for the budget"


def test_one_too_many_is_no_blame_and_no_try() -> None:
    before = Transaction([row(1), row(2)], position=1, hosts_tried=1)
    left = Again(before, [row(2)], uncharged=True, follows=True).transaction(1)
    assert (left.position, left.hosts_tried) == (1, 1)
    assert (left.reconnected, left.unanswered) == (False, False)


def test_the_first_as_one_too_many_says_nothing_about_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), row(2, message=1))
    rig.script[1] = [end(2, rcpts=(Reply(452, "4.5.3", ("4.5.3 too many",)), OK))]
    lane = rig.run()
    assert rig.envelopes == [("r1@example.org", "r2@example.org"), ("r1@example.org",)]
    assert set(rig.store.states.values()) == {"delivered"}
    assert lane.walk.connector.trouble is None


FULL = Reply(452, None, ("mailbox is full",))


@pytest.mark.parametrize("most", [None, 10])
def test_two_full_mailboxes_of_one_message_cost_another_one_no_transactions(
    monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    """They refuse again in a transaction of their own; who was one too many does not."""
    first = [row(n, message=1) for n in (1, 2, 3)]
    second = [row(n, message=2) for n in range(11, 111)]
    rig = Rig(monkeypatch, *first, sites={"idle": "60s"})
    rig.hosts = rig.hosts[:1]

    def says(outgoing: Any) -> Any:
        numbers = [one.recipient for one in outgoing.of.recipients]
        taken = [n for n in numbers if n > 3 or n == 1][:most]
        rcpts = tuple(OK if n in taken else FULL for n in numbers)
        if taken:
            return end(rcpts=rcpts)
        return end(rcpts=rcpts, data=None, dot=None, stage=Stage.RCPT, dot_written=False)

    rig.says = says  # type: ignore[method-assign]

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(rig.envelopes) >= 2 and lane.idle)
        rig.store.add(*second)
        lane.call()
        await until(lambda: rig.store.states[110] == "delivered")
        lane.ctx.draining.set()
        lane.look()

    rig.run(beside)
    sizes = [len(envelope) for envelope in rig.envelopes]
    assert sizes == [3, 2, 100] if most is None else [3, 2, 100, 90, *[10] * 8]
    assert {r for r, state in rig.store.states.items() if state != "delivered"} == {2, 3}


def test_a_moments_trouble_makes_no_hour_of_short_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(1_000))
    rig.hosts = rig.hosts[:1]
    begun = itertools.count(1)
    rig.says = lambda outgoing: NOT_MAIL if next(begun) in (4, 5) else end()  # type: ignore[method-assign]
    rig.run()
    charged = [s for s in rig.store.settled if s.attempt and s.state != "delivered"]
    assert len(charged) == 1, "the first; the second shows that it was full"
    assert len(rig.opened) <= 8


@pytest.mark.parametrize("most", [1, 2])
def test_a_session_that_refuses_mail_again_and_again_is_renewed_for_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    rig = Rig(monkeypatch, *rows(12))
    began: dict[int, int] = {}

    def says(outgoing: Any) -> Any:
        session = len(rig.opened)
        began[session] = began.get(session, 0) + 1
        return end() if began[session] <= most else NOT_MAIL

    rig.says = says  # type: ignore[method-assign]
    rig.hosts = rig.hosts[:1]
    rig.run()
    assert list(rig.store.states.values()).count("delivered") == 11
    charged = [s for s in rig.store.settled if s.attempt and s.state != "delivered"]
    assert [s.state for s in charged] == ["deferred"], "one finds out, and none is charged further"
    assert rig.store.suspended == []
    assert began.pop(1) == most + 3, "one charged, one that shows it, one behind that"
    assert began.pop(2) <= most + 1, "what had left when the limit was proved"
    tried = [count for count in began.values() if count > most]
    assert tried in ([], [most + 1]), "from then on it is known, and one goes further"


def test_where_a_session_took_no_content_a_message_is_charged_and_the_site_not_suspended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(6))
    began: dict[int, int] = {}

    def says(outgoing: Any) -> Any:
        session = len(rig.opened)
        began[session] = began.get(session, 0) + 1
        return end(dot=LATER) if began[session] == 1 else NOT_MAIL

    rig.says = says  # type: ignore[method-assign]
    rig.hosts = rig.hosts[:1]
    rig.run()
    assert set(rig.store.states.values()) == {"deferred"}
    assert len(rig.store.settled) - sum(s.attempt is None for s in rig.store.settled) == 6
    assert rig.store.suspended == []


@pytest.mark.parametrize("limits", [{"MAILMAX": 3}, {}])
def test_a_session_takes_no_more_transactions_than_it_may(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    rig = Rig(monkeypatch, *rows(7), sites={"idle": "50ms", "messages_per_connection": 4})
    rig.offers = Capabilities(name="mx", pipelining=True, limits=limits)
    rig.run()
    assert rig.begun == list(range(1, 8))
    assert len(rig.opened) == (3 if limits else 2)
    assert set(rig.store.states.values()) == {"delivered"}


def test_a_small_site_costs_one_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, row(1))
    rig.run()
    assert sum(len(w.claims) for w in rig.store.work) == 1
    assert rig.store.states == {1: "delivered"}


@pytest.mark.parametrize("refused_claims", [{1, 2}, {2, 3, 5}])
def test_a_claim_that_found_no_room_in_its_exchange_is_made_again(
    monkeypatch: pytest.MonkeyPatch, refused_claims: set[int]
) -> None:
    """Nothing claimed, and more: the site did not run dry. The lane neither idles nor ends."""
    rig = Rig(monkeypatch, *rows(40))
    exchange, claims = rig.store.exchange, itertools.count(1)

    def crowded(work: Work) -> Exchange:
        if not work.claims or next(claims) not in refused_claims:
            return exchange(work)
        lanes, work.claims = frozenset(one.lane for one in work.claims), []
        return exchange(work)._replace(more=lanes)

    monkeypatch.setattr(rig.store, "exchange", crowded)
    rig.run()
    assert rig.begun == list(range(1, 41))
    assert next(claims) > max(refused_claims), "each of them was made again"
    assert len(rig.opened) == 1


def test_a_drain_ends_a_lane_whose_claims_find_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, row(1))
    exchange, claims = rig.store.exchange, list[int]()

    def full(work: Work) -> Exchange:
        lanes, work.claims = [one.lane for one in work.claims], []
        claims.extend(lanes)
        return exchange(work)._replace(more=frozenset(lanes))

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(claims) >= 3)
        lane.ctx.draining.set()
        claims.clear()

    monkeypatch.setattr(rig.store, "exchange", full)
    rig.run(beside)
    assert len(claims) <= 1, "one may have been under way"
    assert rig.begun == []


def test_an_idle_lane_takes_what_comes_on_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "10s"})

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        rig.store.add(*rows(3, first=2))
        lane.call()

    rig.run(beside)
    assert rig.begun == [1, 2, 3, 4]
    assert len(rig.opened) == 1


def test_what_an_idle_lane_is_called_for_is_opened_with_its_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "10s"})
    exchanges: list[int] = []

    async def beside(lane: LaneRun) -> None:
        for number in (2, 3):
            await until(lambda: lane.idle)
            exchanges.append(len(rig.store.work))
            rig.store.add(row(number))
            lane.call()
            await until(lambda: not lane.idle)
        await until(lambda: lane.idle)
        exchanges.append(len(rig.store.work))

    rig.run(beside)
    assert rig.begun == [1, 2, 3]
    assert set(rig.store.states.values()) == {"delivered"}
    assert [b - a for a, b in pairwise(exchanges)] == [2, 2]
    first = rig.store.work[exchanges[0]]
    assert (len(first.claims), first.opens) == (1, [])


def test_what_was_opened_with_its_claim_for_a_session_that_is_gone_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "10s"})

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        rig.store.add(*rows(2, first=2))
        lane.call()
        await until(lambda: not lane.idle)
        rig.opened[0].usable = False  # while the store is asked

    rig.store_s = 0.2
    rig.run(beside)
    assert rig.begun == [1, 2, 3]
    assert len(rig.opened) == 2
    assert set(rig.store.states.values()) == {"delivered"}
    assert [one.state for one in rig.store.settled if one.recipient == 2] == [
        "claimed",
        "delivered",
    ]


def test_where_doubt_means_hold_nothing_is_opened_with_its_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "10s"}, delivery={"on_doubt": "hold"})

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        rig.store.add(*rows(3, first=2))
        lane.call()

    rig.run(beside)
    assert rig.begun == [1, 2, 3, 4]
    assert all(claim.ahead is None for work in rig.store.work for claim in work.claims)


def test_no_session_is_kept_while_others_wait_for_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), sites={"idle": "10s"})
    rig.reply_s = 0.5
    parted: list[float] = []

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.idle)
        lane.ctx.crowded = True
        lane.look()
        await until(lambda: lane.parted)
        parted.append(rig.loop.time())

    rig.run(beside)
    assert rig.loop.time() - parted[0] > 0.4, "its slot was free before QUIT was answered"
    assert rig.opened[0].quits


# Priorities


def test_what_is_urgent_passes_bulk_that_is_not_on_the_wire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(120, priority=2))
    rig.store_s = rig.reply_s = 0.02

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(rig.begun) >= 30)
        high = row(1_000, priority=0)
        rig.store.due.appendleft(high)
        rig.store.states[1_000] = "queued"

    rig.run(beside)
    place = rig.begun.index(1_000)
    assert place < 30 + 25, f"it waited for {place - 30} others"
    assert sorted(rig.begun[:place] + rig.begun[place + 1 :]) == list(range(1, 121))


def test_what_was_passed_for_a_while_is_passed_no_more() -> None:
    queue: deque[Transaction] = deque()
    bulk = [Transaction([row(n, priority=2)], claimed_at=10.0) for n in (1, 2)]
    for one in bulk:
        put(queue, one, 10.0)
    soon = Transaction([row(3, priority=0)], claimed_at=10.5)
    put(queue, soon, 10.5)
    assert list(queue) == [soon, *bulk]
    normal = Transaction([row(4, priority=1)], claimed_at=10.6)
    put(queue, normal, 10.6)
    assert list(queue) == [soon, normal, *bulk]
    late = Transaction([row(5, priority=0)], claimed_at=10.0 + YIELD_S)
    put(queue, late, 10.0 + YIELD_S)
    assert list(queue) == [soon, normal, *bulk, late]


def test_what_waits_again_lets_pass_what_is_urgent_for_as_long_as_it_would_have() -> None:
    def late(held: int, waits: list[Transaction], now_s: float) -> list[int]:
        stock = Stock(cast(Context, SimpleNamespace(hold=lambda _: None)))
        for one in waits:
            put(stock.waiting, one, now_s)
        back = [Transaction([row(n, priority=2)], claimed_at=10.0) for n in range(held)]
        stock.put_back(back, now_s)
        return [one.recipients[0].recipient for one in stock.waiting]

    def urgent(**facts: Any) -> Transaction:
        return Transaction([row(9, priority=0)], **facts)

    same = Transaction([row(8, priority=2)], claimed_at=10.4)
    assert late(2, [urgent(claimed_at=10.5), same], 10.6) == [9, 0, 1, 8]
    assert late(2, [urgent(claimed_at=10.5), same], 10.0 + YIELD_S) == [0, 1, 9, 8]
    assert late(2, [urgent(claimed_at=10.0)], 10.6) == [0, 1, 9], "they were passed by nothing"
    left = Transaction([row(7, priority=2)], claimed_at=10.0, unanswered=True)
    for now_s in (10.6, 10.0 + YIELD_S):
        assert late(1, [left, same], now_s) == [7, 0, 8]
    assert late(1, [left, urgent(claimed_at=10.5), same], 10.6) == [9, 7, 0, 8]
    assert late(0, [same], 10.6) == [8]


def test_the_order_within_one_claim_is_the_stores() -> None:
    queue: deque[Transaction] = deque()
    claim = [Transaction([row(n, priority=p)], claimed_at=1.0) for n, p in ((1, 2), (2, 0))]
    for one in claim:
        put(queue, one, 1.0)
    assert list(queue) == claim, "a fifth of the claims begins with low mail"


# What must not be doubled


def test_hold_is_opened_alone_on_the_disk_and_never_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    own = rows(12)
    own[4] = row(5, on_doubt=OnDoubt.HOLD)
    own[5] = row(6, on_doubt=OnDoubt.HOLD)
    rig = Rig(monkeypatch, *own)
    rig.store_s, rig.reply_s = 0.05, 0.01
    begun: dict[int, set[str]] = {}
    says = rig.says

    def watch(outgoing: Any) -> Any:
        recipient = int(outgoing.envelope.recipients[0][1:].partition("@")[0])
        begun[recipient] = {s for r, s in rig.store.states.items() if r < recipient}
        return says(outgoing)

    monkeypatch.setattr(rig, "says", watch)
    rig.run()
    assert rig.begun == list(range(1, 13))
    for number, work in enumerate(rig.store.work):
        held = [one for one in work.opens if set(one.recipients) & {5, 6}]
        if held:
            assert len(work.opens) == 1
            assert rig.store.durable[number]
    assert begun[5] <= {"delivered", "sending"}
    assert rig.store.states[6] == "delivered"


def test_what_was_opened_long_ago_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(40))
    rig.store_s, rig.reply_s = 0.05, 0.01
    stalled = False
    says = rig.says

    def stall(outgoing: Any) -> Any:
        nonlocal stalled
        if len(rig.begun) > 20 and not stalled:
            stalled = True
            rig.loop.now_s += 30.0  # the process stood still
            for recipient, state in rig.store.states.items():
                if state == "sending" and recipient not in rig.begun:
                    rig.store.withdrawn.add(recipient)  # and lost them to somebody
        return says(outgoing)

    monkeypatch.setattr(rig, "says", stall)
    rig.run()
    assert stalled
    assert rig.store.withdrawn
    assert not rig.store.withdrawn & set(rig.begun)
    assert {s for r, s in rig.store.states.items() if r not in rig.store.withdrawn} == {"delivered"}


def test_a_silent_session_keeps_what_it_began_and_gives_back_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(60))
    rig.behind = 0
    rig.script[10] = [None]
    kept: list[dict[int, str]] = []

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(rig.begun) >= 10)
        await asyncio.sleep(2 * SILENT_S + 1)
        kept.append(dict(rig.store.states))
        rig.store.add(*rows(5, first=100))
        await asyncio.sleep(60)
        assert rig.begun[-1] == 10
        assert len(rig.store.due) >= 5, "it claims nothing meanwhile"
        rig.script[10] = [end()]
        rig.opened[0]._answering = True
        rig.opened[0]._reply()

    rig.run(beside)
    states = kept[0]
    assert states[10] == "sending"
    assert {s for r, s in states.items() if r > 10} == {"queued"}
    assert "in doubt" not in rig.store.states.values()
    assert rig.store.states[10] == "delivered"


# Ends


def test_a_drain_finishes_the_wire_and_gives_the_rest_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(60))

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(rig.begun) >= 10)
        lane.ctx.draining.set()
        lane.look()

    rig.run(beside)
    states = rig.store.states
    assert {states[r] for r in rig.begun} == {"delivered"}
    assert {s for r, s in states.items() if r not in rig.begun} == {"queued"}
    assert len(rig.begun) < 20


def test_a_drain_gives_back_what_is_opened_while_an_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(60))
    rig.behind = 0
    rig.script[10] = [None]

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(rig.begun) >= 10 and len(lane.stock.opened) >= 2)
        lane.ctx.draining.set()
        lane.look()
        told = asyncio.get_running_loop().time()
        await until(lambda: all(s == "queued" for r, s in rig.store.states.items() if r > 10))
        assert asyncio.get_running_loop().time() < told + SILENT_S, "not only since it is silent"
        assert rig.store.states[10] == "sending"
        rig.script[10] = [end()]
        rig.opened[0]._answering = True
        rig.opened[0]._reply()

    rig.run(beside)
    assert rig.begun[-1] == 10
    assert rig.store.states[10] == "delivered"


def test_a_drain_gives_back_what_an_exchange_under_way_opens_with_all_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(60))
    rig.behind, rig.store_s, rig.reply_s = 0, 0.05, 0.01
    rig.script[10] = [None]

    def giving() -> list[int]:
        return [sum(s.state == "queued" for s in work.settlements) for work in rig.store.work]

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(rig.begun) >= 10 and bool(lane.stock.opening))
        lane.ctx.draining.set()
        lane.look()
        await until(lambda: any(giving()))
        assert {s for r, s in rig.store.states.items() if r > 10} == {"queued"}
        rig.script[10] = [end()]
        rig.opened[0]._answering = True
        rig.opened[0]._reply()

    rig.run(beside)
    assert len([count for count in giving() if count]) == 1
    assert rig.store.states[10] == "delivered"


def test_the_next_host_has_its_turn_and_a_deferral_names_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(6))
    rig.script[2] = [refused(LATER)]
    rig.script[4] = [refused(LATER), refused(LATER)]
    rig.script[5] = [refused(NEVER)]
    rig.run()
    assert [s.facts.host for s in rig.opened] == ["mx1.test", "mx2.test"]
    assert rig.begun == [1, 2, 3, 4, 5, 6, 2, 4]
    assert [rig.store.states[n] for n in (2, 4, 5)] == ["delivered", "deferred", "failed"]
    first = next(s for s in rig.store.settled if s.recipient == 2 and s.attempt)
    assert (first.state, first.attempt and first.attempt.host) == ("claimed", "mx1.test")


def test_a_session_that_was_closed_under_us_is_renewed_and_nothing_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(6))
    rig.behind = 0
    rig.script[3] = [cut(answered=False, dotted=False)]
    rig.run()
    assert rig.begun == [1, 2, 3, 3, 4, 5, 6]
    assert len(rig.opened) == 2
    assert [s for s in rig.store.settled if s.attempt and s.state != "delivered"] == []


def test_what_stood_behind_a_lost_dot_is_not_charged_and_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(8))
    rig.script[3] = [cut(answered=True, dotted=True)]
    rig.run()
    assert rig.begun == [1, 2, 3, 4, 4, 5, 6, 7, 8]
    doubtful = [s for s in rig.store.settled if s.attempt and s.attempt.in_doubt]
    assert [s.recipient for s in doubtful] == [3]
    assert rig.store.states[4] == "delivered"


def test_no_host_at_all_suspends_the_site_and_writes_no_recipient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(20))
    rig.refuses = [NO_HOST, NO_HOST]
    rig.run()
    assert len(rig.store.suspended) == 1
    assert set(rig.store.states.values()) == {"queued"}
    assert [s for s in rig.store.settled if s.attempt] == []
    assert sum(len(w.claims) for w in rig.store.work) == 1
    assert len(rig.store.due) == 12, "a site that was not heard yet gets no more than a few"


def test_what_nobody_thought_of_costs_a_host_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(1))
    rig.refuses = [KeyError("what is this"), None]
    rig.run()
    assert rig.store.suspended == []
    assert rig.opened[0].facts.host == "mx2.test"
    assert [fields["where"] for word, fields in rig.lines if word == "engine.failed"] == [
        "session with mx1.test"
    ]

    rig = Rig(monkeypatch, *rows(1))
    rig.refuses = [KeyError("what is this"), KeyError("and this")]
    rig.run()
    assert [one.reason for one in rig.store.suspended] == ["remote"]
    assert set(rig.store.states.values()) == {"queued"}


def test_a_host_whose_wait_is_cut_short_is_left_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(3))
    rig.greet_s = [300.0]
    waits: list[float] = []

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.opening)
        await asyncio.sleep(12.0)
        waits.append(lane.waited_s(rig.loop.time()))
        assert lane.unproven
        lane.give_up()
        await until(lambda: lane.connected)
        assert not lane.opening
        lane.give_up()  # it has a session: nothing is cut

    rig.run(beside, canary=True)
    assert 11.9 < waits[0] < 12.2
    assert [one.facts.host for one in rig.opened] == ["mx2.test"]
    assert set(rig.store.states.values()) == {"delivered"}
    assert rig.store.suspended == []
    (failed,) = [fields for word, fields in rig.lines if word == "session.closed"][:1]
    assert (failed["stage"], failed["cause"]) == (Stage.GREETING, "timeout")
    assert not rig.lanes[0].unproven


def test_where_all_hosts_are_cut_short_the_site_rests_and_nobody_is_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(3))
    rig.greet_s = [300.0, 300.0]

    async def beside(lane: LaneRun) -> None:
        for _ in rig.hosts:
            await until(lambda: lane.waited_s(rig.loop.time()) > 10.0)
            lane.give_up()
            await until(lambda: lane.waited_s(rig.loop.time()) < 1.0)

    rig.run(beside)
    assert len(rig.store.suspended) == 1
    assert set(rig.store.states.values()) == {"queued"}
    assert [one for one in rig.store.settled if one.attempt] == []


def test_a_lane_waits_from_when_its_host_last_let_something_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(3))
    rig.script = {2: [None]}
    seen: list[float] = []

    async def beside(lane: LaneRun) -> None:
        await until(lambda: rig.store.states[1] == "delivered")
        ended = rig.store.told[1]
        await asyncio.sleep(3.0)
        seen.append(lane.waited_s(rig.loop.time()) - (rig.loop.time() - ended))
        rig.opened[0].wrote_s = rig.loop.time()  # a block of content was taken
        seen.append(lane.waited_s(rig.loop.time()))
        rig.opened[0].lose()

    rig.run(beside)
    assert -0.1 < seen[0] < 0.1
    assert seen[1] == 0.0


def test_this_machines_trouble_with_one_host_is_forgotten_when_another_fails_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(1))
    rig.refuses = [
        SessionFailure(
            stage=Stage.CONNECT, cause="local", reply=None, text="no descriptors",
            facts=SessionFacts(host="mx", address="192.0.2.1", port=25, tls_wanted="none"),
        )
    ]  # fmt: skip
    rig.script[1] = [cut(answered=False, dotted=False)]
    lane = rig.run()
    assert lane.ctx.paused_until == 0.0, "other sites must not wait for this one"
    assert not [word for word, _ in rig.lines if word == "engine.failed"]
    assert [one.text for one in rig.store.suspended] == [
        "connection closed by the server before it answered anything"
    ]


def test_what_this_machine_lacks_is_told_once_and_blames_no_site(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(1))
    facts = SessionFacts(host="mx", address="192.0.2.1", port=25, tls_wanted="none")
    rig.refuses = [
        SessionFailure(
            stage=Stage.CONNECT, cause="local", reply=None, facts=facts,
            text=f"connect at {host} [192.0.2.1]:25: [Errno 24] Too many open files",
        )
        for host in ("mx1.test", "mx2.test")
    ]  # fmt: skip

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.parted)
        lane.ctx.pause("[Errno 24] Too many open files")

    lane = rig.run(beside)
    assert lane.ctx.paused_until > 0.0
    assert rig.store.suspended == []
    assert rig.store.states[1] == "queued"
    (told,) = [fields for word, fields in rig.lines if word == "engine.failed"]
    assert told["where"] == "connect"
    assert "mx" not in str(told["error"])
    assert "Too many open files" in str(told["error"])


def test_what_this_host_lacks_is_refused_without_a_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), row(2, eightbit=True), row(3, size=10**9), row(4))
    rig.offers = Capabilities(name="mx", pipelining=True, size=1000)
    rig.run()
    assert rig.begun == [1, 4]
    assert [rig.store.states[n] for n in (1, 2, 3, 4)] == [
        "delivered", "failed", "failed", "delivered",
    ]  # fmt: skip


def test_the_budget_is_shared_and_free_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(50, body=b"x" * 100_000 + b"\r\n"))
    monkeypatch.setattr("mailstrom_workers.context.READ_AHEAD_BYTES", 1_000_000)
    most: list[int] = []
    says = rig.says

    def watch(outgoing: Any) -> Any:
        most.append(rig.lanes[0].ctx._held_bytes)
        return says(outgoing)

    monkeypatch.setattr(rig, "says", watch)
    rig.run()
    assert set(rig.store.states.values()) == {"delivered"}
    assert max(most) <= 1_000_000 + 3 * 100_002, "one is always claimed, or it would stand"


def test_beyond_the_budget_content_is_not_held_while_a_host_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(2, body=b"x" * 100_000 + b"\r\n"))
    rig.store.chunks = [b"A: b\r\n\r\nc\r\n"]
    monkeypatch.setattr("mailstrom_workers.context.READ_AHEAD_BYTES", 0)
    rig.greet_s = [60.0]
    held: list[int] = []

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.opening)
        await asyncio.sleep(1)
        held.append(lane.ctx._held_bytes)

    rig.run(beside)
    assert held == [0]
    assert set(rig.store.states.values()) == {"delivered"}


def test_a_piece_of_content_counts_until_the_next_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(1))
    rig.store.chunks = [b"x" * 10, b"y" * 20]
    seen: list[int] = []

    async def beside(lane: LaneRun) -> None:
        pieces = lane.feed._chunks(9, 2)
        async for _ in pieces:
            seen.append(lane.ctx._streamed_bytes)
        seen.append(lane.ctx._streamed_bytes)
        broken_off: Any = lane.feed._chunks(9, 2)
        await anext(broken_off)
        await broken_off.aclose()  # as where the session is cut

    rig.run(beside)
    assert seen == [10, 20, 0]


def test_what_could_not_be_read_is_given_back_and_what_is_damaged_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, row(1), row(2, unread=True), row(3, unread=True, damaged=True))
    rig.run()
    settled = {one.recipient: one for one in rig.store.settled}
    assert rig.begun == [1]
    assert settled[2].state == "queued"
    assert settled[2].due_ms is not None
    assert abs(settled[2].due_ms - 1_000_000 - UNREAD_MS) < 1_000
    assert settled[2].attempt is None, "nothing was tried"
    assert settled[3].state == "failed"


@pytest.mark.parametrize(
    ("error", "state"),
    [(ContentDamaged(), "failed"), (ValueError("a bare LF"), "failed"),
     (SpoolBusy("busy"), "queued")],
)  # fmt: skip
def test_content_that_cannot_be_sent_ends_its_message_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, state: str
) -> None:
    rig = Rig(monkeypatch, *rows(4))
    rig.script[2] = [error]
    rig.run()
    assert [rig.store.states[n] for n in (1, 2, 3, 4)] == [
        "delivered", state, "delivered", "delivered",
    ]  # fmt: skip


# Errors that nobody foresaw: the lane ends by them, nothing is wedged, nothing is sent twice unseen


def test_an_error_in_a_verdict_ends_the_lane_and_leaves_a_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(60))
    apply = Ledger.apply

    def broken(self: Ledger, transaction: Transaction, *args: Any) -> Any:
        if transaction.recipients[0].recipient == 5:
            raise ZeroDivisionError
        return apply(self, transaction, *args)

    monkeypatch.setattr(Ledger, "apply", broken)
    with pytest.raises(ZeroDivisionError):
        rig.run()
    assert rig.lanes[0].ctx._held_bytes == 0, "what the error took out of its queue is free, too"
    assert rig.store.released == 1
    states = rig.store.states
    assert states[5] == "in doubt"
    assert {states[n] for n in range(1, 5)} == {"delivered"}
    assert {s for r, s in states.items() if r not in rig.begun} == {"queued"}
    # what stood behind it was cut, and is told
    assert {states[r] for r in rig.begun if r > 5} <= {"queued", "deferred", "delivered"}


@pytest.mark.parametrize("place", ["_outgoing", "_chunks_of"])
def test_an_error_before_the_first_octet_ends_the_lane(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    rig = Rig(monkeypatch, *rows(20))

    def broken(self: Feed, *args: Any) -> Any:
        raise MemoryError

    if place == "_outgoing":
        monkeypatch.setattr(Feed, "_outgoing", broken)
    else:
        rig.script[1] = [MemoryError()]
    with pytest.raises(MemoryError):
        rig.run()
    assert rig.store.released == 1
    assert len(rig.begun) <= 2
    assert "delivered" not in {s for r, s in rig.store.states.items() if r > 2}
    assert not {"claimed", "sending"} & set(rig.store.states.values())


def test_a_message_that_cannot_even_be_prepared_is_charged_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(60))
    rig.store_s, rig.reply_s = 0.05, 0.005  # so that a window stands behind it
    outgoing = Feed._outgoing
    behind: list[int] = []

    def broken(self: Feed, transaction: Transaction) -> Any:
        if transaction.recipients[0].recipient == 30:
            behind.extend(one.recipients[0].recipient for one in self._stock.opened)
            raise MemoryError
        return outgoing(self, transaction)

    monkeypatch.setattr(Feed, "_outgoing", broken)
    with pytest.raises(MemoryError):
        rig.run()
    states = rig.store.states
    assert behind
    assert 30 not in rig.begun
    assert states[30] == "in doubt", "else it would be claimed again, and end every lane"
    assert {states[n] for n in range(1, 29)} == {"delivered"}
    assert states[29] in ("delivered", "queued"), "it was on the wire, and is cut before its dot"
    assert {states[n] for n in range(31, 61)} == {"queued"}
    assert rig.lanes[0].ctx._held_bytes == 0


def test_what_a_crash_leaves_in_doubt_is_one_window_and_what_is_on_the_wire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(400))
    rig.store_s, rig.reply_s = 0.05, 0.001
    most = 0
    exchange = rig.store.exchange

    def counted(work: Any) -> Any:
        nonlocal most
        done = exchange(work)
        most = max(most, list(rig.store.states.values()).count("sending"))
        return done

    monkeypatch.setattr(rig.store, "exchange", counted)
    rig.run()
    assert MOST_OPENED <= most <= MOST_OPENED + 2


def test_a_lane_hurries_only_when_its_wire_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Rig(monkeypatch, *rows(60))
    far.store_s, far.reply_s = 0.005, 0.05
    far.run()
    served = len(far.store.patient)
    assert far.store.patient.count(True) > served * 2 // 3, "a round trip is time enough"
    assert far.store.hurried <= 2
    assert not far.store.patient[0], "an idle engine's first message does not wait"
    slow = Rig(monkeypatch, *rows(60))
    slow.store_s, slow.reply_s = 0.05, 0.005
    slow.run()
    assert slow.store.hurried >= 3


@pytest.mark.parametrize("error", [SpoolCorrupt("x"), StoreEnded("over"), ZeroDivisionError()])
def test_an_exchange_that_fails_ends_the_lane_and_what_it_held_is_given_up(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    rig = Rig(monkeypatch, *rows(60))

    async def beside(lane: LaneRun) -> None:
        await until(lambda: len(rig.begun) >= 5)
        rig.db.error = error

    with pytest.raises(type(error)):
        rig.run(beside)
    assert rig.store.released == 1
    assert not {"claimed", "sending"} & set(rig.store.states.values())


def test_a_post_that_raises_at_once_ends_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(60))
    post = rig.db.post

    def dead(*args: Any, **kwargs: Any) -> None:
        if len(rig.begun) >= 5:
            raise StoreEnded("over")
        post(*args, **kwargs)

    monkeypatch.setattr(rig.db, "post", dead)
    with pytest.raises(StoreEnded):
        rig.run()
    assert rig.store.released == 1


def test_a_session_that_never_tells_an_end_does_not_wedge_its_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(10))
    rig.script[3] = [None]

    async def beside(lane: LaneRun) -> None:
        await until(lambda: not rig.script[3])
        rig.opened[0].usable = False  # closed, and nobody was told

    with pytest.raises(SessionMute):
        rig.run(beside)
    assert rig.store.released == 1


def test_nor_while_the_store_is_slow_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(1))
    rig.script[1] = [None]

    async def beside(lane: LaneRun) -> None:
        await until(lambda: not rig.script[1])
        await asyncio.sleep(1.0)
        rig.store_s = 10 * SILENT_S
        connected = lane.connected
        assert connected is not None
        lane.walk.connector.rows.append(connected.row(lane.lane, None))
        lane.feed._exchanges.stir()  # an exchange that outlasts the patience with the session
        await asyncio.sleep(1.0)
        rig.store_s = 0.004
        rig.opened[0].usable = False
        monkeypatch.setattr(rig.opened[0], "lose", lambda: None)

    with pytest.raises(SessionMute):
        rig.run(beside)
    assert rig.store.released == 1


def test_cut_off_by_the_host_of_the_engine_nothing_is_left_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(30))

    async def main() -> None:
        lane = rig.lane()
        run = asyncio.ensure_future(lane.run())
        await until(lambda: len(rig.begun) >= 7)
        assert lane.connected is not None
        lane.connected.session.abort()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    rig.loop.run_until_complete(main())
    rig.loop.close()
    assert rig.store.released == 1
    assert not {"claimed", "sending", "in doubt"} & set(rig.store.states.values())


# The ladder


def test_who_stumbles_over_what_is_behind_a_dot_is_spared_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(6))
    rig.script[2] = [cut(answered=False, dotted=False, behind=True, stumbled=Extension.PIPELINING)]
    rig.run()
    assert [s.policy.dialect.pipelining for s in rig.opened] == [
        Pipelining.FULL, Pipelining.TRANSACTION,
    ]  # fmt: skip
    lessons = [one for w in rig.store.work for one in w.lessons]
    assert [one.pipelining for one in lessons] == [Pipelining.TRANSACTION]
    assert abs(lessons[0].until_ms - 1_000_000 - SUSPICION_MS) < 5_000
    assert set(rig.store.states.values()) == {"delivered"}
    assert [s for s in rig.store.settled if s.attempt and s.state != "delivered"] == []


def test_who_stumbles_within_a_flight_gets_command_by_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(3))
    rig.script[1] = [
        end(fault=Fault.GARBAGE, stage=Stage.RCPT, dot=None, data=None, dot_written=False,
            usable=False, stumbled=Extension.PIPELINING)
    ]  # fmt: skip
    rig.run()
    assert rig.opened[1].policy.dialect.pipelining is Pipelining.NONE
    lessons = [one for w in rig.store.work for one in w.lessons]
    assert [one.pipelining for one in lessons] == [Pipelining.NONE]


@pytest.mark.parametrize(
    ("fault", "spared_ms"),
    [(Fault.GARBAGE, LESSON_MS), (Fault.TIMEOUT, SUSPICION_MS), (Fault.CLOSED, SUSPICION_MS)],
)
@pytest.mark.parametrize("over", list(Extension))
def test_silence_and_a_close_are_suspicions_and_what_was_said_is_a_lesson(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, spared_ms: int, over: Extension
) -> None:
    rig = Rig(monkeypatch)
    ladder = Ladder(rig.leased())
    told = end(fault=fault, stage=Stage.RCPT, dot=None, dot_written=False, stumbled=over)
    ladder.learn(told, Dialect(), 7)
    assert [one.until_ms for one in ladder.take()] == [7 + spared_ms]
    rig.loop.close()


def test_a_lane_begins_where_its_site_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(2))
    rig.run(pipelining=Pipelining.NONE, chunking=False)
    dialect = rig.opened[0].policy.dialect
    assert (dialect.pipelining, dialect.chunk_octets) == (Pipelining.NONE, 0)
    rig = Rig(monkeypatch, *rows(2), delivery={"pipelining": "transaction"})
    rig.run(chunking=True)
    dialect = rig.opened[0].policy.dialect
    assert (dialect.pipelining, dialect.chunks_proved) == (Pipelining.TRANSACTION, True)
    assert dialect.chunk_octets > 0


def test_the_first_bdat_that_worked_is_told_once_and_one_that_did_not_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, *rows(4))
    monkeypatch.setattr(rig, "says", lambda outgoing: end(chunked=True))
    rig.run()
    assert [one.chunking for w in rig.store.work for one in w.lessons] == [True]
    rig = Rig(monkeypatch, *rows(3))
    rig.script[1] = [
        end(fault=Fault.GARBAGE, stage=Stage.DATA, dot=None, dot_written=False, usable=False,
            chunked=True, stumbled=Extension.CHUNKING)
    ]  # fmt: skip
    rig.run()
    assert [one.chunking for w in rig.store.work for one in w.lessons] == [False]
    assert rig.opened[1].policy.dialect.chunk_octets == 0


def test_a_421_that_closes_a_used_session_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, *rows(5))
    closing = Reply(421, "4.3.2", ("4.3.2 enough",))
    rig.script[3] = [
        end(mail=closing, rcpts=(None,), data=None, dot=None, stage=Stage.MAIL, dot_written=False,
            usable=False, behind=True)
    ]  # fmt: skip
    rig.run()
    assert set(rig.store.states.values()) == {"delivered"}
    assert [s for s in rig.store.settled if s.attempt and s.state != "delivered"] == []
