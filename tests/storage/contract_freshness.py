"""Conformance of route freshness: what an expired, failing or moved route does to waiting mail."""

from __future__ import annotations

import pytest

from mailstrom.storage.base import Refusal
from mailstrom.types import Reason, RouteResult
from tests.storage.spool import DAY, HOUR, T0, Spool, change

MINUTE = 60_000
DOMAIN = "example.org"


def waiting(spool: Spool, count: int, domain: str = DOMAIN, *, ttl: int = HOUR) -> None:
    """Stamped recipients that are due."""
    spool.send(*(f"r{n}@{domain}" for n in range(count)))
    while spool.route(domain, ttl=ttl, site="mx.shared.example"):
        pass


def unrouted(spool: Spool) -> int:
    """How many recipients have lost their stamp."""
    ((count,),) = spool.rows("SELECT count(*) FROM recipients WHERE site IS NULL")
    assert isinstance(count, int)
    return count


class FreshnessContract:
    """What the age of routes promises."""

    def test_an_expired_route_serves_a_minute_more_while_the_router_looks_again(
        self, spool: Spool
    ) -> None:
        waiting(spool, 3)
        lane = spool.lane()
        late = T0 + HOUR + MINUTE - 1
        assert len(spool.claim(lane, limit=1, now=late)) == 3
        (due,) = spool.engine.due_domains(spool.worker, 9, late)
        assert (due.name, due.cached) == (DOMAIN, None)
        spool.sound()

    def test_then_its_mail_waits_untouched_and_the_answer_wakes_the_site(
        self, spool: Spool
    ) -> None:
        waiting(spool, 400)
        lane = spool.lane()
        late = T0 + HOUR + MINUTE
        assert spool.claim(lane, now=late) == []
        assert unrouted(spool) == 0, "not a row is written"
        spool.engine.release([lane.token], late)
        assert spool.lease(now=late) == [], "nobody looks again before there is an answer"
        spool.sound()
        spool.route(now=late, site="mx.shared.example")
        assert unrouted(spool) == 0
        assert len(spool.claim(spool.lane(now=late), now=late)) == 400
        spool.sound()

    def test_the_same_answer_again_restamps_nothing(self, spool: Spool) -> None:
        waiting(spool, 10)
        late = T0 + 2 * HOUR
        lane = spool.lane(now=late)
        assert spool.claim(lane, now=late) == []
        spool.route(now=late, site="mx.shared.example")
        assert unrouted(spool) == 0
        assert len(spool.claim(lane, now=late)) == 10
        spool.sound()

    def test_a_hiccup_of_the_dns_changes_nothing_within_the_minute(self, spool: Spool) -> None:
        waiting(spool, 5, ttl=HOUR)
        lane = spool.lane()
        late = T0 + HOUR
        assert len(spool.claim(lane, limit=1, now=late)) == 5
        spool.engine.release([lane.token], late)
        spool.route(now=late, result=RouteResult.TEMPORARY, ttl=10_000)
        lane = spool.lane(now=late + 1)
        assert len(spool.claim(lane, now=late + 1)) == 5
        spool.engine.release([lane.token], late + 1)
        spool.route(now=late + 10_000, site="mx.shared.example")
        assert unrouted(spool) == 0
        assert len(spool.claim(spool.lane(now=late + 10_000), now=late + 10_000)) == 5
        spool.sound()

    def test_new_mail_is_not_stamped_while_the_dns_fails(self, spool: Spool) -> None:
        waiting(spool, 1, ttl=HOUR)
        late = T0 + HOUR
        spool.claim(spool.lane(now=late), now=late)
        spool.route(now=late, result=RouteResult.TEMPORARY)
        id = spool.send("new@example.org", created_ms=late + 1, send_ms=late + 1)
        assert spool.rows("SELECT site FROM recipients WHERE message_id = ?", id) == [(None,)]
        spool.sound()

    def test_a_failing_domain_is_asked_again_as_long_as_its_site_has_mail(
        self, spool: Spool
    ) -> None:
        waiting(spool, 2)
        now = T0 + 2 * HOUR
        lane = spool.lane(now=now)
        assert spool.claim(lane, now=now) == []
        for _ in range(3):
            spool.route(now=now, result=RouteResult.TEMPORARY, ttl=HOUR)
            assert spool.engine.due_domains(spool.worker, 9, now + HOUR - 1) == []
            now += HOUR
        spool.sound()
        spool.route(now=now, site="mx.shared.example")
        assert len(spool.claim(lane, now=now)) == 2
        assert spool.engine.due_domains(spool.worker, 9, now) == []

    def test_it_is_not_asked_for_ever_when_nothing_waits_there(self, spool: Spool) -> None:
        waiting(spool, 1)
        now = T0 + 2 * HOUR
        spool.claim(spool.lane(now=now), now=now)
        change(
            spool.client, "cancel", [str(spool.rows("SELECT id FROM messages")[0][0])], None, now
        )
        spool.route(now=now, result=RouteResult.TEMPORARY)
        assert spool.engine.due_domains(spool.worker, 9, now + DAY) == []

    def test_a_retry_asks_the_dns_again_at_once(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route(result=RouteResult.TEMPORARY)
        assert spool.engine.due_domains(spool.worker, 9, T0 + 1) == []
        change(spool.client, "retry", [id], None, T0 + 1)
        (due,) = spool.engine.due_domains(spool.worker, 9, T0 + 1)
        assert due.cached is None

    def test_a_long_expired_queue_moves_in_small_pieces_and_hides_nobody(
        self, spool: Spool
    ) -> None:
        waiting(spool, 1_700)
        spool.send("other@example.net", created_ms=T0 + 1, send_ms=T0 + 1)
        spool.route("example.net", ttl=DAY, site="mx.shared.example", now=T0 + 1)
        now, seen, before = T0 + 2 * HOUR, 0, 0
        lane = spool.lane(now=now)
        for _ in range(10):
            seen = len(spool.claim(lane, now=now))
            after = unrouted(spool)
            assert after - before <= 500
            before = after
            spool.sound()
            if seen:
                break
            now += 1_000
        assert seen == 1
        assert before < 1_700, "no more than stands in the way"

    def test_a_moved_queue_goes_back_in_small_pieces_without_a_pause(self, spool: Spool) -> None:
        waiting(spool, 1_200)
        lane = spool.lane()
        now = T0 + HOUR
        spool.claim(lane, limit=1, now=now)
        spool.engine.release([lane.token], now)
        spool.route(now=now, site="mx.new.example")
        moved = []
        for _ in range(3):
            (lane,) = spool.lease(now=now)
            assert lane.site_key == "mx.shared.example"
            assert spool.claim(lane, now=now) == []
            moved.append(unrouted(spool))
            spool.engine.release([lane.token], now)
        assert moved == [500, 1_000, 1_200]
        spool.sound()

    @pytest.mark.parametrize("gone", [True, False])
    def test_mail_of_a_suspended_site_follows_its_domain(self, spool: Spool, gone: bool) -> None:
        waiting(spool, 2)
        lane = spool.lane()
        now = T0 + 2 * HOUR
        spool.claim(lane, now=now)
        spool.suspend(lane, now + DAY, now=now)
        spool.engine.release([lane.token], now)
        refusal = Refusal(Reason.NO_DOMAIN, "5.1.2", "no such domain")
        kind = {"result": RouteResult.NO_DOMAIN, "refusal": refusal} if gone else {"site": "new"}
        spool.route(now=now, **kind)
        assert spool.claim(spool.lane(now=now), now=now) == []
        spool.route(now=now, **kind)
        if gone:
            assert spool.rows("SELECT DISTINCT reason FROM recipients") == [("no_domain",)]
        else:
            assert len(spool.claim(spool.lane(now=now), now=now)) == 2
        spool.sound()

    def test_what_is_cached_is_applied_and_neither_prolonged_nor_told(self, spool: Spool) -> None:
        spool.send(*(f"r{n}@example.org" for n in range(1_001)))
        assert spool.route() is True
        before = spool.rows("SELECT resolved_ms, expires_ms FROM domains")
        (due,) = spool.engine.due_domains(spool.worker, 9, T0 + 500)
        assert due.cached is not None
        answer = spool.answer(DOMAIN, now=T0 + 500, cached=True)
        assert spool.engine.put_routes(spool.worker, [answer], T0 + 500) == [False]
        assert unrouted(spool) == 0
        assert spool.rows("SELECT resolved_ms, expires_ms FROM domains") == before
        assert spool.rows("SELECT count(*) FROM events WHERE type = 'mx.resolved'") == [(1,)]
        spool.sound()

    def test_a_cached_answer_that_was_called_off_meanwhile_is_not_applied(
        self, spool: Spool
    ) -> None:
        spool.send(*(f"r{n}@example.org" for n in range(1_001)))
        spool.route()
        (due,) = spool.engine.due_domains(spool.worker, 9, T0)
        assert due.cached is not None
        spool.engine.use_routes("another", T0)
        assert spool.engine.put_routes(spool.worker, [spool.answer(DOMAIN, cached=True)], T0) == [
            True
        ]
        assert unrouted(spool) == 1
        (due,) = spool.engine.due_domains(spool.worker, 9, T0)
        assert due.cached is None
        spool.sound()

    # --- expired mail ---

    def test_expired_mail_is_neither_claimed_nor_opened_nor_looked_at_for_ever(
        self, spool: Spool
    ) -> None:
        spool.send("old@example.org", expires_ms=T0 + HOUR)
        spool.send("new@example.org")
        spool.route(ttl=DAY)
        end = T0 + HOUR
        lane = spool.lane()
        rows = spool.claim(lane, now=end)
        assert [row.address for row in rows] == ["new@example.org"]
        assert spool.claim(lane, now=end) == []
        spool.engine.release([lane.token], end)
        assert spool.lease(now=end + 999) == [], "the janitor comes first"
        assert spool.engine.expire(10, end) == 1
        (row,) = spool.claim(spool.lane(now=end + 1_000), now=end + 1_000)
        assert row.address == "new@example.org"
        spool.sound()

    def test_what_expires_in_a_lanes_hands_is_not_opened(self, spool: Spool) -> None:
        id = spool.send("a@example.org", expires_ms=T0 + HOUR)
        spool.route()
        lane = spool.lane()
        rows = spool.claim(lane, now=T0 + HOUR - 1)
        assert spool.open(lane, rows, now=T0 + HOUR) == frozenset()
        assert spool.engine.expire(10, T0 + HOUR) == 1
        assert spool.only(id).reason is Reason.EXPIRED

    def test_while_a_jump_is_being_shifted_nothing_counts_as_expired(self, spool: Spool) -> None:
        for name in "ab":
            spool.send(f"{name}@example.org", expires_ms=T0 + HOUR)
        spool.route(ttl=DAY)
        clock = {"monotonic_ms": 0, "boot": "b", "limit": 1}
        spool.engine.keep_clock(wall_ms=T0, **clock)  # type: ignore[arg-type]
        late = T0 + 9 * DAY
        spool.engine.keep_clock(wall_ms=late, **clock)  # type: ignore[arg-type]
        lane = spool.lane(now=late)
        rows = spool.claim(lane, now=late)
        assert len(rows) == 2
        assert len(spool.open(lane, rows, now=late)) == 2
        spool.sound()

    def test_a_site_that_is_woken_late_stands_where_its_oldest_mail_is_due(
        self, spool: Spool
    ) -> None:
        spool.send("a@example.org")
        spool.route()
        assert spool.engine.use_routes("another policy", T0)
        lane = spool.lane()
        assert spool.claim(lane) == []
        spool.route(now=T0 + HOUR)
        spool.sound()
        assert spool.engine.next_due_ms(T0 + HOUR) == T0
        assert len(spool.claim(lane, now=T0 + HOUR)) == 1
