"""Conformance of lanes and claims: who may connect where, and who sends what next."""

from __future__ import annotations

from typing import Any

import pytest

from mailstrom.storage.base import ClaimRequest, Lesson, Work
from mailstrom.types import Pipelining
from tests.storage.spool import DAY, HOUR, T0, Spool, change


def busy_site(spool: Spool, messages: int = 30, domain: str = "example.org") -> None:
    """A site that has taken a message before, with messages due."""
    spool.send(f"canary@{domain}")
    spool.route(domain, ttl=2 * DAY)
    lane = spool.lane()
    (row,) = spool.claim(lane)
    spool.open(lane, [row])
    assert spool.settle(lane, row, "delivered", now=T0)
    spool.engine.release([lane.token], T0)
    for number in range(messages):
        spool.send(f"r{number}@{domain}")


class LaneContract:
    """What lease, claim, release and suspend promise."""

    def test_nothing_due_gives_no_lane_and_an_idle_spool_waits_for_ever(self, spool: Spool) -> None:
        assert spool.lease() == []
        assert spool.engine.due_sites(T0) == []
        assert spool.engine.next_due_ms(T0) is None
        busy_site(spool, 0)
        assert spool.lease() == []
        assert spool.engine.next_due_ms(T0) is None

    def test_the_limit_is_exact_over_all_workers(self, spool: Spool) -> None:
        busy_site(spool)
        workers = [spool.worker, spool.register(), spool.register()]
        lanes = [
            lane
            for _ in range(3)
            for worker in workers
            for lane in spool.lease(worker=worker, want=2, limit=7, workers=3)
        ]
        assert len(lanes) == 7
        assert len({lane.token for lane in lanes}) == 7
        spool.engine.release([lanes[0].token], T0)
        again = [lane for w in workers for lane in spool.lease(worker=w, limit=7, workers=3)]
        assert len(again) == 1
        assert again[0].token not in {lane.token for lane in lanes}, "never given out twice"
        spool.sound()

    @pytest.mark.parametrize(("limit", "workers", "share"), [(20, 2, 10), (3, 2, 2), (1, 4, 1)])
    def test_a_worker_gets_at_most_its_fair_share(
        self, spool: Spool, limit: int, workers: int, share: int
    ) -> None:
        busy_site(spool)
        assert len(spool.lease(want=100, limit=limit, workers=workers)) == share

    def test_no_more_lanes_than_messages_due(self, spool: Spool) -> None:
        busy_site(spool, 2)
        spool.send("a@example.org", "b@example.org", "c@example.org")
        lanes = spool.lease(want=100)
        assert len(lanes) == 3
        assert {lane.due for lane in lanes} == {3}

    def test_an_unknown_site_gets_one_canary_until_it_took_a_message(self, spool: Spool) -> None:
        for number in range(5):
            spool.send(f"r{number}@example.org")
        spool.route()
        (canary,) = spool.lease(want=10)
        assert canary.canary
        assert spool.lease(want=10) == []
        (row,) = spool.claim(canary, limit=1)
        spool.open(canary, [row])
        spool.settle(canary, row, "delivered", now=T0)
        assert [lane.canary for lane in spool.lease(want=10)] == [False] * 4

    def test_sites_full_of_lanes_do_not_hide_the_others(self, spool: Spool) -> None:
        names = [f"d{number:03}.example" for number in range(210)]
        spool.client.enqueue([], T0)
        spool.send(*(f"a@{name}" for name in names))
        for due in spool.engine.due_domains(spool.worker, 300, T0):
            spool.engine.put_routes(spool.worker, [spool.answer(due.name)], T0)
        lanes = [lane for _ in range(3) for lane in spool.lease(want=100)]
        assert len({lane.site for lane in lanes}) == 210

    def test_the_open_site_that_is_due_longest_is_told_first(self, spool: Spool) -> None:
        for number, name in enumerate(("c.example", "a.example", "b.example")):
            spool.send(f"u@{name}", send_ms=T0 - 9 + number)
            spool.route(name)

        def first(most: int) -> list[int]:
            return spool.engine.open_sites(spool.worker, limit=2, workers=1, most=most, now_ms=T0)

        every = first(9)
        assert len(every) == 3
        assert [first(1), first(2)] == [every[:1], every[:2]]
        (lane,) = spool.engine.lease(spool.worker, want=1, limit=2, workers=1, now_ms=T0)
        assert (lane.site, first(1)) == (every[0], every[1:2])

    def test_a_site_is_open_where_a_lease_would_give_a_lane(self, spool: Spool) -> None:
        other = spool.register()

        def sites(worker: int, limit: int = 2) -> int:
            found = spool.engine.open_sites(worker, limit=limit, workers=2, most=9, now_ms=T0)
            assert set(found) <= set(spool.engine.due_sites(T0))
            return len(found)

        assert sites(spool.worker) == 0
        spool.send("a@example.org")
        spool.send("b@example.org")
        spool.route()
        assert (sites(spool.worker), sites(other)) == (1, 1)
        canary = spool.lane()
        assert spool.engine.due_sites(T0)
        assert (sites(spool.worker), sites(other)) == (0, 0)  # one lane finds out for all
        (row, *_) = spool.claim(canary, limit=1)
        spool.open(canary, [row])
        spool.settle(canary, row, "delivered", now=T0)
        assert (sites(spool.worker), sites(other)) == (0, 1)  # we have our share
        assert (sites(spool.worker, limit=4), sites(other, limit=1)) == (1, 0)

    def test_a_worker_that_lapsed_or_retired_gets_no_lane(self, spool: Spool) -> None:
        busy_site(spool)
        lost, stopped = spool.register(), spool.register()
        spool.engine.lapse(lost, boot="boot-1", now_ms=T0)
        spool.engine.retire(stopped, state="stopped", now_ms=T0)
        assert spool.lease(worker=lost) == []
        assert spool.lease(worker=stopped) == []
        assert spool.lease(worker=999) == []
        spool.sound()

    def test_the_longest_due_site_comes_first(self, spool: Spool) -> None:
        for number, domain in enumerate(("late.example", "early.example", "middle.example")):
            at = T0 - (0, 2, 1)[number] * HOUR
            spool.send(f"a@{domain}", created_ms=at, send_ms=at)
        for domain in ("late.example", "early.example", "middle.example"):
            spool.route(domain)
        assert [lane.site_key for lane in spool.lease(want=3)] == [
            "mx.early.example", "mx.middle.example", "mx.late.example"
        ]  # fmt: skip

    def test_proven_sites_get_lanes_ahead_of_others_that_are_due_longer(self, spool: Spool) -> None:
        for domain in ("failing.example", "fine.example"):
            busy_site(spool, 0, domain)
        for number, domain in enumerate(("new.example", "failing.example", "fine.example")):
            at = T0 - HOUR + number
            spool.send(f"a@{domain}", created_ms=at, send_ms=at)
            spool.send(f"b@{domain}", created_ms=at, send_ms=at)
        spool.route("new.example")
        keys = {lane.site_key: lane for lane in spool.lease(want=9, limit=1)}
        assert len(keys) == 3
        assert spool.suspend(keys["mx.failing.example"], T0 + 1, since=T0 - 1) == 1
        spool.engine.release([lane.token for lane in keys.values()], T0)

        def proven(**facts: int) -> list[str]:
            lanes = spool.lease(proven=True, now=T0 + 1, **facts)
            assert not any(lane.canary or lane.failing for lane in lanes)
            return [lane.site_key for lane in lanes]

        assert proven(want=9, limit=1) == ["mx.fine.example"]
        assert proven(want=9, limit=1) == [], "all lanes that it may have are in use"
        assert proven(want=9, limit=4, workers=2) == ["mx.fine.example"], "a share of it is ours"
        assert len(spool.lease(want=9, now=T0 + 1, limit=1)) == 2
        spool.sound()

    def test_where_no_site_is_proven_nothing_is_leased_or_written(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route()
        before = spool.engine.version()
        assert spool.lease(want=9, proven=True) == []
        assert spool.engine.version() == before
        assert len(spool.lease(want=9)) == 1

    # --- suspension ---

    def test_a_suspended_site_is_not_leased_before_its_time(self, spool: Spool) -> None:
        busy_site(spool)
        lane = spool.lane()
        assert spool.suspend(lane, T0 + HOUR) == 1
        assert spool.suspend(lane, T0 + DAY) == 0, "it is suspended already"
        assert spool.engine.failures(lane.site) == 1
        spool.engine.release([lane.token], T0)
        assert spool.engine.due_sites(T0 + HOUR - 1) == []
        assert spool.lease(now=T0 + HOUR - 1) == []
        assert spool.engine.next_due_ms(T0) == T0 + HOUR
        assert len(spool.lease(want=10, now=T0 + HOUR)) == 1, "a canary: it failed last time"
        spool.sound()

    def test_failures_count_until_a_success_and_resume_says_so(self, spool: Spool) -> None:
        busy_site(spool)
        now = T0 + 10
        for failures in (1, 2, 3):
            lane = spool.lane(now=now)
            assert spool.suspend(lane, now + HOUR, since=now, now=now) == failures
            spool.engine.release([lane.token], now)
            now += HOUR
        lane = spool.lane(now=now)
        (row,) = spool.claim(lane, limit=1, now=now)
        spool.open(lane, [row], now=now)
        spool.settle(lane, row, "delivered", now=now)
        assert spool.engine.failures(lane.site) == 0
        assert len(spool.lease(want=10, now=now)) == 10
        assert spool.rows(
            "SELECT type, count(*) FROM events WHERE type LIKE 'site.%' GROUP BY type ORDER BY type"
        ) == [("site.resumed", 1), ("site.suspended", 3)]

    def test_a_success_since_the_failing_pass_began_starts_the_count_again(
        self, spool: Spool
    ) -> None:
        busy_site(spool)
        lane = spool.lane()
        assert spool.suspend(lane, T0 + 10, since=T0 + 1, now=T0 + 1) == 1
        assert spool.suspend(lane, T0 + 99, since=T0 - 1, now=T0 + 11) == 1
        assert spool.suspend(lane, T0 + 999, since=T0 + 100, now=T0 + 100) == 2

    def test_a_suspension_is_written_on_no_recipient(self, spool: Spool) -> None:
        busy_site(spool, 3)
        before = spool.rows("SELECT * FROM attempts ORDER BY id")
        lane = spool.lane()
        spool.claim(lane)
        spool.suspend(lane, T0 + HOUR)
        spool.engine.release([lane.token], T0)
        assert spool.rows("SELECT * FROM attempts ORDER BY id") == before
        assert spool.rows("SELECT attempts, count(*) FROM recipients GROUP BY 1") == [
            (0, 3), (1, 1)
        ]  # fmt: skip

    # --- claims ---

    def test_claims_come_by_priority_then_due_time_with_recipients_together(
        self, spool: Spool
    ) -> None:
        low = spool.send("low@example.org", priority=2, send_ms=T0 - 9, created_ms=T0 - 9)
        late = spool.send("n1@example.org", "n2@example.org", send_ms=T0 - 1, created_ms=T0 - 1)
        early = spool.send("early@example.org", send_ms=T0 - 5, created_ms=T0 - 5)
        high = spool.send("high@example.org", priority=0)
        spool.route()
        rows = spool.claim(spool.lane())
        assert [row.message_id for row in rows] == [high, early, late, late, low]
        assert [row.address for row in rows[2:4]] == ["n1@example.org", "n2@example.org"]

    def test_a_claim_is_bounded_by_messages(self, spool: Spool) -> None:
        for _ in range(4):
            spool.send("a@example.org", "b@example.org")
        spool.route()
        lane = spool.lane()
        sizes = [len(spool.claim(lane, limit=3)) for _ in range(3)]
        assert sizes == [6, 2, 0]

    def test_a_claim_is_bounded_by_bytes_but_never_empty(self, spool: Spool) -> None:
        for size in (1_000, 200, 200, 200, 5_000):
            spool.send("a@example.org", content=b"x" * size)
        spool.route()
        lane = spool.lane()
        taken = [[row.size for row in spool.claim(lane, max_bytes=500)] for _ in range(5)]
        assert taken == [[1_000], [200, 200], [200], [5_000], []]

    def test_two_lanes_never_claim_the_same_recipient(self, spool: Spool) -> None:
        busy_site(spool, 10)
        lanes = spool.lease(want=2)
        requests = [ClaimRequest(lane=lane.token, limit=7, max_bytes=1 << 20) for lane in lanes]
        rows = spool.exchange(claims=requests).claimed
        assert len({row.recipient for row in rows}) == len(rows) == 10
        assert {row.lane for row in rows} == {lane.token for lane in lanes}

    def test_near_the_end_a_lane_takes_its_part_only(self, spool: Spool) -> None:
        busy_site(spool, 14)
        lanes = spool.lease(want=4)

        def claims(*lanes: Any, limit: int) -> tuple[list[int], int]:
            """How many each was given, and how many of them heard that more is due."""
            requests = [
                ClaimRequest(lane=lane.token, limit=limit, max_bytes=1 << 20, even=True)
                for lane in lanes
            ]
            done = spool.exchange(claims=requests)
            given = [sum(row.lane == lane.token for row in done.claimed) for lane in lanes]
            return given, len(done.more)

        assert claims(lanes[0], limit=2) == ([2], 1), "there is enough for all"
        assert claims(*lanes, limit=10) == ([3, 3, 2, 1], 4)
        assert claims(*lanes, limit=10) == ([1, 1, 1, 0], 2)
        assert claims(lanes[0], limit=10) == ([0], 0)

    def test_a_lane_alone_takes_all_that_it_may(self, spool: Spool) -> None:
        busy_site(spool, 5)
        request = ClaimRequest(lane=spool.lane().token, limit=9, max_bytes=1 << 20, even=True)
        done = spool.exchange(claims=[request])
        assert (len(done.claimed), done.more) == (5, frozenset())

    def test_a_lane_that_ended_claims_and_opens_nothing(self, spool: Spool) -> None:
        busy_site(spool, 3)
        lane = spool.lane()
        rows = spool.claim(lane, limit=1)
        spool.engine.release([lane.token], T0)
        assert spool.claim(lane) == []
        assert spool.open(lane, rows) == frozenset()
        spool.sound()

    def test_only_returned_rows_may_be_sent(self, spool: Spool) -> None:
        spool.send("a@example.org", "b@example.org", "c@example.org")
        spool.route()
        lane = spool.lane()
        rows = spool.claim(lane)
        change(spool.client, "cancel", [rows[1].message_id], rows[1].address, T0)
        assert spool.open(lane, rows) == {rows[0].recipient, rows[2].recipient}
        assert spool.open(lane, rows, "another") == frozenset(), "one session has it already"
        spool.sound()

    def test_what_sessions_learnt_of_a_site_holds_for_its_time_and_the_worse_of_two_stands(
        self, spool: Spool
    ) -> None:
        busy_site(spool)
        site = spool.lane().site

        def learn(now: int, **what: Any) -> None:
            spool.engine.exchange(Work(lessons=[Lesson(site=site, **what)]), now)

        def known(now: int) -> tuple[Pipelining, bool | None]:
            lane = spool.lane(now=now)
            spool.engine.release([lane.token], now)
            return lane.pipelining, lane.chunking

        assert known(T0) == (Pipelining.FULL, None)
        learn(T0, chunking=True)
        learn(T0, pipelining=Pipelining.TRANSACTION, until_ms=T0 + HOUR)
        assert known(T0 + HOUR - 1) == (Pipelining.TRANSACTION, True)
        assert known(T0 + HOUR) == (Pipelining.FULL, True)
        learn(T0, pipelining=Pipelining.NONE, until_ms=T0 + DAY)
        learn(T0, pipelining=Pipelining.TRANSACTION, until_ms=T0 + HOUR)
        learn(T0, pipelining=Pipelining.NONE, until_ms=T0 + HOUR)
        learn(T0, chunking=False, until_ms=T0 + DAY)
        learn(T0, chunking=False, until_ms=T0 + HOUR)
        learn(T0, chunking=True)  # another host of it, whose BDAT was under way
        assert known(T0 + DAY - 1) == (Pipelining.NONE, False)
        assert known(T0 + DAY) == (Pipelining.FULL, None), "everything is tried again"
        learn(T0 + DAY, chunking=True)
        learn(T0 + DAY, pipelining=Pipelining.TRANSACTION, until_ms=T0 + 2 * DAY)
        assert known(T0 + DAY) == (Pipelining.TRANSACTION, True)

    def test_release_gives_back_what_was_claimed_uncharged(self, spool: Spool) -> None:
        id = spool.send("a@example.org", "b@example.org")
        spool.route()
        lane = spool.lane()
        assert len(spool.claim(lane)) == 2
        assert spool.engine.release([lane.token], T0 + 5) == 2
        found = spool.client.statuses([id])[id]
        assert {(r.status, r.attempts, r.in_doubt) for r in found.recipients.values()} == {
            ("queued", 0, False)
        }
        assert spool.engine.next_due_ms(T0) is not None
        assert spool.engine.release([lane.token], T0 + 5) == 0
        assert len(spool.claim(spool.lane(now=T0 + 5), now=T0 + 5)) == 2
        spool.sound()

    def test_lanes_given_back_together_end_each_by_what_it_holds(self, spool: Spool) -> None:
        sent = {word: spool.send(f"a@{word}.example") for word in ("done", "claimed", "wire")}
        for word in sent:
            spool.route(f"{word}.example")
        lanes = {lane.site_key.split(".")[1]: lane for lane in spool.lease(want=9)}
        rows = {word: spool.claim(lane) for word, lane in lanes.items()}
        for word in ("done", "wire"):
            spool.open(lanes[word], rows[word])
        assert spool.settle(lanes["done"], rows["done"][0], "delivered")
        tokens = [lane.token for lane in lanes.values()]
        assert spool.engine.release(tokens, T0 + 300) == 2
        found = {word: spool.only(id) for word, id in sent.items()}
        assert {word: (one.status, one.in_doubt) for word, one in found.items()} == {
            "done": ("delivered", False),
            "claimed": ("queued", False),
            "wire": ("deferred", True),
        }
        assert spool.engine.release(tokens, T0 + 300) == 0
        assert {lane.token for lane in spool.lease(want=9, now=T0 + 300)}.isdisjoint(tokens)
        spool.sound()

    def test_a_lane_says_whether_its_site_failed_last_time(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        assert not lane.failing
        spool.settle(lane, row, "deferred")
        spool.suspend(lane, T0 + 500)
        spool.engine.release([lane.token], T0 + 400)
        canary = spool.lane(now=T0 + 1_000)
        assert canary.failing
        assert canary.canary
        (row,) = spool.claim(canary, now=T0 + 1_000)
        spool.open(canary, [row], now=T0 + 1_000)
        spool.settle(canary, row, "delivered", now=T0 + 2_000)
        spool.engine.release([canary.token], T0 + 2_000)
        spool.send("b@example.org")
        assert not spool.lane(now=T0 + 2_000).failing
        assert spool.only(id).status == "delivered"

    def test_a_deferred_recipient_given_back_is_still_deferred(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.settle(lane, row, "deferred")
        assert len(spool.claim(lane, now=T0 + 1_000)) == 1
        assert spool.only(id).status == "deferred", "claimed is no word of its own"
        spool.engine.release([lane.token], T0 + 1_000)
        assert spool.only(id).status == "deferred"
        spool.sound()
