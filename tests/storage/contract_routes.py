"""Conformance of routing: the shared MX cache and the stamps on waiting recipients."""

from __future__ import annotations

from typing import Any

from mailstrom.storage.base import Refusal
from mailstrom.types import Reason, RouteResult
from tests.storage.spool import DAY, HOUR, T0, Spool


class RouteContract:
    """What routes promise."""

    def test_a_domain_is_taken_by_one_worker_only(self, spool: Spool) -> None:
        spool.send("a@example.org", "b@example.net")
        other = spool.register()
        first = spool.engine.due_domains(spool.worker, 1, T0)
        second = spool.engine.due_domains(other, 10, T0)
        assert sorted(d.name for d in [*first, *second]) == ["example.net", "example.org"]
        assert len(first) == 1
        assert spool.engine.due_domains(other, 10, T0) == []
        assert all(d.cached is None and d.failures == 0 for d in [*first, *second])

    def test_an_answer_of_who_did_not_take_the_domain_changes_nothing(self, spool: Spool) -> None:
        spool.send("a@example.org")
        other = spool.register()
        assert spool.engine.due_domains(spool.worker, 10, T0)
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "takes no mail")
        answer = spool.answer("example.org", result=RouteResult.NULL_MX, refusal=refusal)
        assert spool.engine.put_routes(other, [answer], T0) == [False]
        assert spool.rows("SELECT status FROM recipients") == [("queued",)]
        spool.engine.give_back(other, {"example.org": T0 + DAY})
        assert spool.engine.put_routes(spool.worker, [answer], T0) == [False]
        assert spool.rows("SELECT status, reason FROM recipients") == [("failed", "null_mx")]
        spool.sound()

    def test_a_positive_answer_serves_later_mail_until_it_expires(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route(ttl=HOUR)
        lane = spool.lane()
        later = {"created_ms": T0 + HOUR - 1, "send_ms": T0 + HOUR - 1}
        spool.send("b@example.org", **later)
        assert spool.engine.due_domains(spool.worker, 10, T0 + HOUR - 1) == []
        assert len(spool.claim(lane, now=T0 + HOUR - 1)) == 2
        spool.send("c@example.org", created_ms=T0 + HOUR, send_ms=T0 + HOUR)
        (due,) = spool.engine.due_domains(spool.worker, 10, T0 + HOUR)
        assert (due.name, due.cached) == ("example.org", None)
        spool.sound()

    def test_a_lane_carries_the_hosts_of_its_site(self, spool: Spool) -> None:
        spool.send("a@example.org", "b@example.net")
        spool.route("example.org", site="mx.shared.example")
        spool.route("example.net", site="mx.shared.example")
        lane = spool.lane()
        assert lane.site_key == "mx.shared.example"
        assert [h.name for h in lane.hosts] == ["mx.shared.example"]
        assert len(spool.claim(lane)) == 2, "one site for both domains"
        assert spool.rows("SELECT site, hosts FROM destinations") == [
            ("mx.shared.example", '[[10, "mx.shared.example", null]]')
        ]

    def test_a_refusing_route_fails_all_that_waits_and_is_recorded(self, spool: Spool) -> None:
        id = spool.send("a@example.org", "b@example.org")
        refusal = Refusal(Reason.NO_DOMAIN, "5.1.2", "no such domain")
        assert not spool.route(result=RouteResult.NO_DOMAIN, refusal=refusal)
        found = spool.client.statuses([id])[id]
        assert found.completed
        assert found.finished_at is not None
        for one in found.recipients.values():
            assert (one.status, one.reason, one.enhanced_code, one.reply_text, one.attempts) == (
                "failed", Reason.NO_DOMAIN, "5.1.2", "no such domain", 1
            )  # fmt: skip
        assert (
            spool.rows("SELECT stage, verdict, reason, number FROM attempts")
            == [("route", "failed", "no_domain", 1)] * 2
        )
        again = spool.send("c@example.org")
        (due,) = spool.engine.due_domains(spool.worker, 10, T0)
        assert due.cached is not None
        assert due.cached.result is RouteResult.NO_DOMAIN
        assert spool.status(again) == {"c@example.org": "queued"}
        spool.sound()

    def test_a_temporary_answer_waits_and_counts_failures(self, spool: Spool) -> None:
        spool.send("a@example.org")
        for failures in range(3):
            now = T0 + failures * HOUR
            (due,) = spool.engine.due_domains(spool.worker, 10, now)
            assert (due.failures, due.cached) == (failures, None)
            answer = spool.answer("example.org", result=RouteResult.TEMPORARY, now=now, ttl=HOUR)
            assert spool.engine.put_routes(spool.worker, [answer], now) == [False]
            assert spool.engine.due_domains(spool.worker, 10, now + HOUR - 1) == []
            assert spool.engine.next_due_ms(now) == now + HOUR
        now = T0 + 3 * HOUR
        spool.route(now=now)
        lane = spool.lane(now=now)
        assert len(spool.claim(lane, now=now)) == 1
        spool.engine.release([lane.token], now)
        spool.sound()

    def test_a_domain_given_back_is_due_again_later(self, spool: Spool) -> None:
        spool.send("a@example.org")
        assert spool.engine.due_domains(spool.worker, 10, T0)
        spool.engine.give_back(spool.worker, {"example.org": T0 + 500})
        assert spool.engine.due_domains(spool.worker, 10, T0 + 499) == []
        assert spool.engine.due_domains(spool.worker, 10, T0 + 500)

    def test_domains_given_back_together_have_a_time_each(self, spool: Spool) -> None:
        other = spool.register()
        spool.send("c@c.test")
        assert spool.engine.due_domains(other, 10, T0)
        spool.send("a@a.test", "b@b.test")
        assert len(spool.engine.due_domains(spool.worker, 10, T0)) == 2
        spool.engine.give_back(
            spool.worker,
            {"a.test": T0 + 500, "b.test": T0 + 900, "c.test": T0, "unknown.test": T0},
        )
        due = [spool.engine.due_domains(other, 10, T0 + at) for at in (499, 500, 899, 900)]
        assert [[one.name for one in found] for found in due] == [[], ["a.test"], [], ["b.test"]]

    def test_mail_moves_with_its_domain_to_another_site(self, spool: Spool) -> None:
        spool.send("a@example.org", send_ms=T0)
        spool.route(site="old", ttl=HOUR)
        old = spool.lane()
        late = T0 + HOUR
        spool.send("b@example.org", created_ms=late, send_ms=late)
        spool.route(site="new", now=late)
        assert spool.claim(old, now=late) == [], "stamped with the generation before"
        spool.route(site="new", now=late)
        new = spool.lane(now=late)
        assert new.site_key == "new"
        assert sorted(r.address for r in spool.claim(new, now=late)) == [
            "a@example.org", "b@example.org"
        ]  # fmt: skip
        spool.sound()

    def test_another_routing_policy_expires_what_is_cached(self, spool: Spool) -> None:
        assert spool.engine.use_routes("mx", T0) is True
        assert spool.engine.use_routes("mx", T0) is False
        spool.send("a@example.org")
        spool.route(ttl=DAY)
        lane = spool.lane()
        assert spool.engine.use_routes("relay", T0) is True
        assert spool.claim(lane) == []
        (due,) = spool.engine.due_domains(spool.worker, 10, T0)
        assert due.cached is None
        spool.sound()

    def test_another_routing_policy_lets_no_suspension_hold_what_waits(self, spool: Spool) -> None:
        """Who changes a dead relay wants its mail at the new one now."""
        spool.send("a@example.org")
        spool.route(ttl=DAY)
        lane = spool.lane()
        spool.suspend(lane, T0 + DAY)
        spool.engine.release([lane.token], T0)
        assert spool.engine.due_sites(T0) == []
        assert spool.engine.use_routes("relay", T0)
        assert spool.engine.due_sites(T0) == [lane.site]
        spool.sound()

    def test_stamping_is_bounded_and_goes_on_from_the_cache(self, spool: Spool) -> None:
        spool.send(*(f"r{n}@example.org" for n in range(1_001)))
        assert spool.route() is True, "some are left"
        (due,) = spool.engine.due_domains(spool.worker, 10, T0)
        assert due.cached is not None
        answer = spool.answer("example.org")
        assert spool.engine.put_routes(spool.worker, [answer], T0) == [False]
        assert spool.rows("SELECT count(*) FROM recipients WHERE site IS NULL") == [(0,)]
        spool.sound()

    def test_failing_by_route_is_bounded_and_goes_on(self, spool: Spool) -> None:
        id = spool.send(*(f"r{n}@example.org" for n in range(1_001)))
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "takes no mail")
        kind: dict[str, Any] = {"result": RouteResult.NULL_MX, "refusal": refusal}
        assert spool.route(**kind) is True
        assert spool.client.statuses([id])[id].status == "queued"
        assert spool.route(**kind) is False
        assert spool.client.statuses([id])[id].completed
        spool.sound()

    def test_answers_stored_together_share_the_bound(self, spool: Spool) -> None:
        first = spool.send(*(f"r{n}@a.example" for n in range(600)))
        second = spool.send(*(f"r{n}@b.example" for n in range(600)))
        spool.send("a@c.example")
        domains = sorted(due.name for due in spool.engine.due_domains(spool.worker, 10, T0))
        assert domains == ["a.example", "b.example", "c.example"]
        answers = [spool.answer(name) for name in domains]
        left = spool.engine.put_routes(spool.worker, answers, T0)
        assert left == [False, True, True], "a thousand rows in one transaction, and no more"
        again = spool.engine.due_domains(spool.worker, 10, T0)
        assert {due.name for due in again} == {"b.example", "c.example"}
        assert all(due.cached is not None for due in again), "nobody is asked twice"
        answers = [spool.answer(due.name, cached=True) for due in again]
        assert spool.engine.put_routes(spool.worker, answers, T0) == [False, False]
        assert spool.rows("SELECT count(*) FROM recipients WHERE site IS NULL") == [(0,)]
        for id in (first, second):
            assert spool.client.statuses([id])[id].status == "queued"
        spool.sound()

    def test_answers_of_all_kinds_are_stored_together(self, spool: Spool) -> None:
        ids = {name: spool.send(f"a@{name}.example") for name in ("good", "null", "dns", "taken")}
        spool.engine.due_domains(spool.worker, 10, T0)
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "takes no mail")
        answers = [
            spool.answer("good.example"),
            spool.answer("null.example", result=RouteResult.NULL_MX, refusal=refusal),
            spool.answer("nobody.example"),
            spool.answer("dns.example", result=RouteResult.TEMPORARY),
        ]
        assert spool.engine.put_routes(spool.worker, answers, T0) == [False] * 4
        assert spool.only(ids["good"]).status == "queued"
        assert spool.only(ids["null"]).status == "failed"
        (lane,) = spool.lease(want=9)
        assert lane.site_key == "mx.good.example"
        assert spool.engine.due_domains(spool.worker, 10, T0) == [], "the others are still taken"
        (due,) = spool.engine.due_domains(spool.worker, 10, T0 + HOUR)
        assert (due.name, due.failures) == ("dns.example", 1)
        spool.sound()

    def test_a_dead_workers_domain_is_routed_by_another(self, spool: Spool) -> None:
        spool.send("a@example.org")
        dead = spool.register()
        assert spool.engine.due_domains(dead, 10, T0)
        spool.engine.lapse(dead, boot="boot-1", now_ms=T0)
        assert spool.engine.due_domains(dead, 10, T0) == [], "it would never be taken back"
        assert spool.engine.due_domains(spool.worker, 10, T0)
        spool.sound()
