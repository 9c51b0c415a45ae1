"""Conformance of facts: what a store knows of recipients and of what may keep them."""

from __future__ import annotations

from mailstrom.storage.client import Target
from mailstrom.storage.facts import Facts, RecipientFacts
from mailstrom.types import RouteResult, Status
from tests.storage.spool import HOUR, T0, Spool, change, session_row


def _facts(spool: Spool, *ids: str, now: int = T0) -> Facts:
    return spool.client.facts([Target(id) for id in ids], now)


def _only(spool: Spool, id: str, *, now: int = T0) -> RecipientFacts:
    (fact,) = _facts(spool, id, now=now).recipients
    return fact


class FactsContract:
    """What the rows say; what follows from it is the client's."""

    def test_facts_come_in_the_order_of_the_targets_and_of_the_envelope(self, spool: Spool) -> None:
        first = spool.send("b@example.org", "a@example.org", "c@example.org")
        second = spool.send("x@example.net")
        targets = [Target(second), Target("unknown"), Target(first), Target(first, "c@example.org")]
        found = spool.client.facts([*targets, Target(first, "no@example.org")], T0).recipients
        assert [(one.message_id, one.address) for one in found] == [
            (second, "x@example.net"),
            (first, "b@example.org"), (first, "a@example.org"), (first, "c@example.org"),
            (first, "c@example.org"),
        ]  # fmt: skip
        assert spool.client.facts([], T0).recipients == ()

    def test_facts_follow_a_recipient_through_its_life(self, spool: Spool) -> None:
        id = spool.send("a@example.org", expires_ms=T0 + HOUR)
        fact = _only(spool, id)
        assert (fact.status, fact.due_ms, fact.send_ms, fact.expires_ms) == (
            Status.QUEUED, T0, T0, T0 + HOUR,
        )  # fmt: skip
        assert (fact.claimed, fact.lane, fact.site, fact.stale) == (False, None, None, False)
        assert fact.route is None or fact.route.result is None
        spool.route()
        fact = _only(spool, id)
        assert fact.site is not None
        assert fact.route is not None
        assert (fact.site.key, fact.site.lanes, fact.site.canary) == ("mx.example.org", 0, True)
        assert (fact.route.result, fact.route.router) == (RouteResult.MX, None)
        lane = spool.lane()
        rows = spool.claim(lane)
        fact = _only(spool, id)
        assert (fact.claimed, fact.status, fact.due_ms) == (True, Status.QUEUED, None)
        assert fact.lane is not None
        assert (fact.lane.worker, fact.lane.token, fact.lane.pid) == (
            spool.worker, lane.token, 4711,
        )  # fmt: skip
        assert (fact.lane.name, fact.lane.lock) == ("machine", "delivery.lock")
        assert fact.site is not None
        assert fact.site.lanes == 1
        spool.open(lane, rows)
        assert (_only(spool, id).claimed, _only(spool, id).status) == (True, Status.SENDING)
        spool.settle(lane, rows[0], "deferred")
        fact = _only(spool, id)
        assert (fact.status, fact.claimed, fact.due_ms) == (Status.DEFERRED, False, T0 + 1_000)
        assert (fact.attempts, fact.mx, fact.reply_code) == (1, "mx1.example.org", 451)
        assert (fact.reason, fact.enhanced_code) == ("remote", "4.7.1")
        change(spool.client, "cancel", [id], None, T0 + 300)
        fact = _only(spool, id)
        assert (fact.status, fact.due_ms) == (Status.CANCELLED, None)
        assert fact.finished_ms is not None

    def test_facts_of_the_wire_name_worker_lane_and_session(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route()
        lane = spool.lane()
        rows = spool.claim(lane)
        spool.exchange(sessions=[session_row("s", lane)])
        spool.open(lane, rows, "s", now=T0 + 5)
        fact = _only(spool, id)
        assert fact.lane is not None
        assert (fact.lane.host, fact.lane.address, fact.lane.opened_ms) == (
            "mx1.example.org", "192.0.2.1", T0 + 5,
        )  # fmt: skip
        spool.settle(lane, rows[0], "deferred")
        spool.claim(lane, now=T0 + 2_000)
        fact = _only(spool, id)
        assert fact.lane is not None
        assert (fact.lane.host, fact.lane.opened_ms) == (None, None), "of an earlier attempt"

    def test_facts_of_a_suspended_site_say_who_until_when_and_why(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route()
        spool.engine.tell("lanes_limit", 7)
        until = T0 * 2  # views look at the real clock
        spool.suspend(spool.lane(), until)
        site = _only(spool, id).site
        assert site is not None
        assert site.suspended_until_ms == until
        assert (site.suspended_by, site.suspended_reason) == ("worker 1", "connect")
        assert (site.last_reply, site.failures, site.limit) == ("connection refused", 1, 7)
        assert _only(spool, id).status is Status.DEFERRED

    def test_facts_of_dns_tell_its_trouble_and_who_asks(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        (due,) = spool.engine.due_domains(spool.worker, 10, T0)
        route = _only(spool, id).route
        assert route is not None
        assert route.router == spool.worker
        answer = spool.answer(due.name, result=RouteResult.TEMPORARY)
        spool.engine.put_routes(spool.worker, [answer], T0)
        fact = _only(spool, id)
        assert fact.site is None
        assert fact.route is not None
        assert (fact.route.result, fact.route.retry_ms, fact.route.router) == (
            RouteResult.TEMPORARY, T0 + HOUR, None,
        )  # fmt: skip
        assert fact.route.error == "no"

    def test_facts_tell_a_stamp_that_holds_no_more(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route(ttl=1_000)
        assert not _only(spool, id, now=T0 + 2_000).stale
        assert _only(spool, id, now=T0 + 61_000).stale

    def test_facts_count_who_is_due_before(self, spool: Spool) -> None:
        low = spool.send("a@example.org", priority=2)
        ids = [spool.send(f"a{n}@example.org") for n in range(3)]
        later = spool.send("z@example.org", send_ms=T0 + HOUR)
        spool.route()
        found = _facts(spool, low, *ids, later)
        assert [one.ahead for one in found.recipients] == [3, 0, 1, 2, None]
        assert _only(spool, later, now=T0 + HOUR).ahead == 3

    def test_facts_of_the_spool_tell_its_workers_and_what_they_may(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route()
        spool.lane()
        spool.engine.beat(spool.worker, state="ready", sessions=0, now_ms=T0 + 5)
        spool.register(kind="janitor")
        ended = spool.register()
        spool.engine.retire(ended, state="stopped", now_ms=T0)
        found = _facts(spool)
        (worker,) = found.workers
        assert (worker.worker, worker.pid, worker.host) == (spool.worker, 4711, "machine")
        assert (worker.state, worker.heartbeat_ms, worker.lanes) == ("ready", T0 + 5, 1)
        assert worker.lock == "delivery.lock"
        assert (found.copied_ms, found.log_full, found.trouble) == (None, False, None)
        assert found.max_connections is None
        spool.engine.tell("max_connections", 3)
        assert _facts(spool).max_connections == 3
