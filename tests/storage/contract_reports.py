"""Reports to senders: owed with the failure, made once, by whoever can, and never in its way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mailstrom.storage.base import Claimed, Lane, Refusal, Settlement, StreamPolicy
from mailstrom.storage.client import CHUNK_BYTES, Notice, Submission
from mailstrom.storage.reporting import ReportFacts
from mailstrom.types import OnDoubt, Reason, RouteResult
from tests.storage.spool import BODY, DAY, HOUR, T0, Spool, change, settlement, submission

HEADER = BODY[: BODY.index(b"\r\n\r\n") + 4]
DELAYS = (4 * HOUR, DAY)
FAR = T0 + 30 * DAY


class Reports:
    """A reporter that keeps what it was told; ``spool`` uses it from the beginning.

    Args:
        raising: what it raises, while it is set.
        declining: whether there is to be no report.
    """

    def __init__(self, spool: Spool | None = None, **original: int) -> None:
        self.facts: list[ReportFacts] = []
        self.raising: Exception | None = None
        self.declining = False
        self.content = b"Subject: report\r\n\r\nreport\r\n"
        if spool is not None:
            spool.engine.use_reporter(self, **original)

    def __call__(self, facts: ReportFacts, now_ms: int) -> Submission | None:
        self.facts.append(facts)
        if self.raising is not None:
            raise self.raising
        if self.declining:
            return None
        return submission(
            "mailer@report.test",
            sender="",
            content=self.content,
            reports=True,
            origin="smtp",
            created_ms=now_ms,
            send_ms=now_ms,
        )


def kept(spool: Spool) -> list[tuple[object, ...]]:
    """Reports in the spool: status, sender, origin."""
    return spool.rows(
        "SELECT status, sender, origin FROM messages WHERE origin = 'report' ORDER BY id"
    )


def told(spool: Spool, word: str = "message.reported") -> list[dict[str, Any]]:
    """Details of events of this word."""
    rows = spool.rows("SELECT detail FROM events WHERE type = ? ORDER BY id", word)
    return [json.loads(str(row[0])) for row in rows]


def reported(spool: Spool, id: str) -> dict[object, object]:
    """What was reported last, by address."""
    rows = spool.rows("SELECT address, reported FROM recipients WHERE message_id = ?", id)
    return {row[0]: row[1] for row in rows}


SMTP: dict[str, Any] = {"reports": True, "origin": "smtp"}


def settled(lane: Lane, row: Claimed, state: str, **changes: Any) -> Settlement:
    """A verdict on a claimed row."""
    return settlement(lane.token, row.recipient, state, **changes)


class ReportContract:
    """``use_reporter``, ``report``, and what each verb that ends a recipient leaves."""

    def test_a_failure_and_its_report_are_one_step(self, spool: Spool) -> None:
        reports = Reports(spool)
        id, lane, rows = spool.sending(
            "a@example.org", **SMTP, envid="E=1", ret="hdrs", notices=(Notice(None, "rfc822;o@x"),)
        )
        spool.settle(lane, rows[0], "failed")
        (facts,) = reports.facts
        assert (facts.id, facts.sender, facts.envid, facts.ret) == (
            id, "sender@example.com", "E=1", "hdrs",
        )  # fmt: skip
        assert (facts.content, facts.size, facts.created_ms) == (HEADER, len(BODY), T0)
        assert (facts.client, facts.require_tls, facts.smtputf8) == (None, False, False)
        (one,) = facts.recipients
        assert (one.address, one.orcpt, one.action) == ("a@example.org", "rfc822;o@x", "failed")
        assert (one.reason, one.mx) == ("bounced", "mx1.example.org")
        assert (one.reply_code, one.enhanced_code, one.reply_text) == (550, "5.1.1", "no such user")
        assert (one.last_ms, one.expires_ms) == (T0 + 200, T0 + 5 * DAY)
        assert kept(spool) == [("queued", "", "report")]
        assert reported(spool, id) == {"a@example.org": "failed"}
        (detail,) = told(spool)
        assert (detail["kind"], detail["count"]) == ("failed", 1)
        assert detail["recipients"] == ["a@example.org"]
        assert spool.client.content(detail["report"]) == reports.content
        assert spool.engine.report(DELAYS, 100, FAR) == 0
        assert len(reports.facts) == 1
        spool.sound()

    def test_who_fails_together_shares_a_report_and_who_is_delivered_is_in_none(
        self, spool: Spool
    ) -> None:
        reports = Reports(spool)
        _, lane, rows = spool.sending("a@example.org", "b@example.org", "c@example.org", **SMTP)
        done = spool.exchange(
            settlements=[
                settled(lane, row, state)
                for row, state in zip(rows, ("failed", "delivered", "failed"), strict=True)
            ],
            now=T0 + 200,
        )
        assert len(done.settled) == 3
        (facts,) = reports.facts
        assert [one.address for one in facts.recipients] == ["a@example.org", "c@example.org"]
        spool.sound()

    def test_what_fails_within_a_minute_of_each_other_shares_a_report(self, spool: Spool) -> None:
        reports = Reports(spool)
        id = spool.send("a@a.example", "b@b.example", "c@c.example", **SMTP)
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "accepts no mail")
        for after, domain in ((1_000, "a.example"), (30_000, "b.example")):
            spool.route(domain, result=RouteResult.NULL_MX, refusal=refusal, now=T0 + after)
            assert spool.engine.report((), 100, T0 + after) == 0
        spool.sound()
        assert spool.engine.report((), 100, T0 + 60_999) == 0
        assert spool.engine.report((), 100, T0 + 61_000) == 1
        (facts,) = reports.facts
        assert [one.address for one in facts.recipients] == ["a@a.example", "b@b.example"]
        spool.route("c.example", result=RouteResult.NULL_MX, refusal=refusal, now=T0 + HOUR)
        assert [len(facts.recipients) for facts in reports.facts] == [2, 1], "nobody else is left"
        assert set(reported(spool, id).values()) == {"failed"}
        spool.sound()

    def test_with_the_last_recipient_of_a_message_its_failures_are_told(self, spool: Spool) -> None:
        reports = Reports(spool)
        spool.send("a@a.example", "b@example.org", **SMTP)
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "accepts no mail")
        spool.route("a.example", result=RouteResult.NULL_MX, refusal=refusal)
        spool.route()
        lane = spool.lane()
        (row,) = spool.claim(lane)
        spool.open(lane, [row])
        assert spool.engine.report((), 100, T0 + 200) == 0
        spool.settle(lane, row, "delivered")
        assert spool.engine.report((), 100, T0 + 200) == 1
        (facts,) = reports.facts
        assert [one.address for one in facts.recipients] == ["a@a.example"]

    def test_a_clock_that_was_set_back_keeps_no_report_waiting(self, spool: Spool) -> None:
        reports = Reports(spool)
        spool.send("a@a.example", "b@b.example", **SMTP)
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "accepts no mail")
        spool.route("a.example", result=RouteResult.NULL_MX, refusal=refusal, now=T0 + DAY)
        assert spool.engine.report((), 100, T0) == 1
        assert len(reports.facts) == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"reports": True, "sender": ""},
            {"reports": True, "notices": (Notice("never"),)},
            {"reports": True, "notices": (Notice("success"),)},
            {"reports": True, "notices": (Notice("delay"),)},
        ],
        ids=["library", "null sender", "never", "success alone", "delay alone"],
    )
    def test_whose_sender_wants_no_word_of_a_failure_gets_none(
        self, spool: Spool, changes: dict[str, Any]
    ) -> None:
        reports = Reports(spool)
        id, lane, rows = spool.sending("a@example.org", **changes)
        spool.settle(lane, rows[0], "failed")
        assert spool.engine.report((), 100, FAR) == 0
        assert (reports.facts, kept(spool)) == ([], [])
        assert reported(spool, id) == {"a@example.org": None}
        spool.sound()

    def test_a_report_that_fails_is_reported_to_nobody(self, spool: Spool) -> None:
        reports = Reports(spool)
        _, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        spool.engine.release([lane.token], T0 + 300)
        spool.route("report.test", now=T0 + 300)
        lane = spool.lane(now=T0 + 300)
        (row,) = spool.claim(lane, now=T0 + 300)
        spool.open(lane, [row])
        spool.settle(lane, row, "failed")
        assert spool.status(row.message_id) == {"mailer@report.test": "failed"}
        assert spool.engine.report(DELAYS, 100, FAR) == 0
        assert len(reports.facts) == 1
        spool.sound()

    def test_each_way_to_fail_is_reported(self, spool: Spool) -> None:
        reports = Reports(spool)
        spool.send("null@null.example", **SMTP)
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "accepts no mail")
        spool.route("null.example", result=RouteResult.NULL_MX, refusal=refusal)
        spool.send("old@old.example", expires_ms=T0 + 10, **SMTP)
        assert spool.engine.expire(100, T0 + 11) == 1
        doubtful, lane, _ = spool.sending("doubt@example.org", on_doubt=OnDoubt.HOLD, **SMTP)
        spool.engine.release([lane.token], T0 + 20)
        assert [f.recipients[0].reason for f in reports.facts] == ["null_mx", "expired"]
        assert change(spool.client, "resolve-failed", [doubtful], None, T0 + 30) == 1
        assert len(reports.facts) == 2
        assert spool.engine.report((), 100, T0 + 40) == 1
        assert [f.recipients[0].reason for f in reports.facts] == ["null_mx", "expired", "in_doubt"]
        assert [one["kind"] for one in told(spool)] == ["failed"] * 3
        spool.sound()

    def test_what_is_held_or_cancelled_is_not_reported(self, spool: Spool) -> None:
        reports = Reports(spool)
        held, cancelled = spool.send(**SMTP), spool.send(**SMTP)
        change(spool.client, "hold", [held], None, T0)
        change(spool.client, "cancel", [cancelled], None, T0)
        spool.engine.report(DELAYS, 100, T0 + 2 * DAY)
        assert reports.facts == []
        spool.sound()

    @pytest.mark.parametrize("confirmed", [False, True])
    def test_a_delivery_is_reported_as_relayed_unless_the_host_reports_it(
        self, spool: Spool, confirmed: bool
    ) -> None:
        reports = Reports(spool)
        notices = (Notice("success"), Notice("failure"))
        _, lane, rows = spool.sending("a@example.org", "b@example.org", **SMTP, notices=notices)
        spool.exchange(
            settlements=[settled(lane, row, "delivered", confirmed=confirmed) for row in rows],
            now=T0 + 200,
        )
        found = [(one.address, one.action) for f in reports.facts for one in f.recipients]
        assert found == ([] if confirmed else [("a@example.org", "relayed")])
        assert spool.engine.report((), 100, FAR) == 0
        spool.sound()

    def test_without_a_reporter_what_is_owed_waits_for_one(self, spool: Spool) -> None:
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        assert spool.engine.report((), 100, FAR) == 0
        spool.sound()
        other = spool.stores.worker()
        reports = Reports()
        other.use_reporter(reports)
        assert other.report((), 100, FAR) == 1
        assert [facts.id for facts in reports.facts] == [id]
        assert other.report((), 100, FAR) == 0
        spool.sound()

    def test_a_failure_that_was_undone_before_its_report_is_none(self, spool: Spool) -> None:
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        assert change(spool.client, "retry", [id], None, T0 + 300) == 1
        spool.sound()
        reports = Reports(spool)
        assert spool.engine.report((), 100, FAR) == 0
        assert reports.facts == []

    def test_a_second_failure_is_reported_again(self, spool: Spool) -> None:
        reports = Reports(spool)
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        change(spool.client, "retry", [id], None, T0 + 300)
        assert reported(spool, id) == {"a@example.org": None}
        spool.engine.expire(100, FAR)
        assert [facts.id for facts in reports.facts] == [id, id]
        spool.sound()

    @pytest.mark.parametrize(
        ("content", "most", "full"),
        [
            (BODY, 1 << 20, True),
            (BODY, len(BODY), True),
            (BODY, len(BODY) - 1, False),
            (HEADER + b"y" * (3 * CHUNK_BYTES), 1 << 20, True),
            (HEADER + b"y" * (3 * CHUNK_BYTES), 1 << 19, False),
        ],
        ids=["small", "just so", "too large", "long", "long and too large"],
    )
    @pytest.mark.parametrize("ret", ["full", None])
    def test_the_whole_original_is_handed_over_up_to_a_size(
        self, spool: Spool, content: bytes, most: int, full: bool, ret: str | None
    ) -> None:
        reports = Reports(spool, original_bytes=most)
        _, lane, rows = spool.sending("a@example.org", content=content, ret=ret, **SMTP)
        spool.settle(lane, rows[0], "failed")
        (facts,) = reports.facts
        assert facts.content == (content if full else HEADER)
        assert facts.size == len(content)

    def test_of_what_did_not_fail_the_header_alone_is_handed_over(self, spool: Spool) -> None:
        reports = Reports(spool)
        spool.sending("a@example.org", ret="full", **SMTP)
        assert spool.engine.report((1,), 100, T0 + DAY) > 0
        (facts,) = reports.facts
        assert (facts.recipients[0].action, facts.content) == ("delayed", HEADER)

    def test_what_may_not_travel_in_clear_is_known_and_not_handed_over(self, spool: Spool) -> None:
        reports = Reports(spool)
        _, lane, rows = spool.sending("a@example.org", ret="full", require_tls=True, **SMTP)
        spool.settle(lane, rows[0], "failed")
        (facts,) = reports.facts
        assert (facts.require_tls, facts.content) == (True, HEADER)

    def test_requiretls_is_known_to_whoever_reports(self, spool: Spool) -> None:
        reports = Reports(spool)
        _, lane, rows = spool.sending("a@example.org", ret="full", requiretls=True, **SMTP)
        spool.settle(lane, rows[0], "failed")
        (facts,) = reports.facts
        assert (facts.require_tls, facts.requiretls, facts.content) == (True, True, HEADER)

    @pytest.mark.parametrize(
        ("content", "header"),
        [
            (b"Subject: only\r\n", b"Subject: only\r\n"),
            (b"\r\nno header\r\n\r\nx", b"\r\n"),
            (b"no line", b""),
            (b"", b""),
            (b"A: b\r\n" * CHUNK_BYTES, b"A: b\r\n" * (CHUNK_BYTES // 6)),
        ],
        ids=["no body", "no header", "no line", "empty", "longer than a chunk"],
    )
    def test_a_header_section_without_an_end_is_cut_behind_a_line(
        self, spool: Spool, content: bytes, header: bytes
    ) -> None:
        reports = Reports(spool)
        _, lane, rows = spool.sending("a@example.org", content=content, ret="hdrs", **SMTP)
        spool.settle(lane, rows[0], "failed")
        assert reports.facts[0].content == header

    def test_a_report_longer_than_a_chunk_is_stored_whole(self, spool: Spool) -> None:
        reports = Reports(spool)
        reports.content = b"z" * (2 * CHUNK_BYTES + 1)
        _, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        (detail,) = told(spool)
        assert spool.client.content(detail["report"]) == reports.content
        spool.sound()

    def test_what_a_reporter_raises_settles_all_the_same_and_is_tried_again(
        self, spool: Spool
    ) -> None:
        reports = Reports(spool)
        reports.raising = RecursionError("too deep")
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        assert spool.settle(lane, rows[0], "failed")
        assert spool.status(id) == {"a@example.org": "failed"}
        (detail,) = told(spool, "message.unreported")
        assert (detail["error"], detail["tries"], detail["given_up"]) == (
            "RecursionError: too deep", 1, False,
        )  # fmt: skip
        (untold,) = spool.engine.unreported_since(0)
        assert untold == (id, "failed", 1, "RecursionError: too deep", 1, False)
        assert spool.engine.unreported_since(spool.engine.last_event()) == []
        other, lane, rows = spool.sending("b@b.example", **SMTP)
        assert spool.settle(lane, rows[0], "failed")
        assert [facts.id for facts in reports.facts] == [id, other], "the first one waits"
        reports.raising = None
        assert spool.engine.report((), 100, T0 + 10 * 60_000) == 2
        assert reported(spool, id) == {"a@example.org": "failed"}
        spool.sound()

    def test_a_report_that_nobody_can_make_is_given_up(self, spool: Spool) -> None:
        reports = Reports(spool)
        reports.raising = ValueError("never")
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        now = T0
        for _ in range(9):
            now += DAY
            spool.engine.report((), 100, now)
        assert len(reports.facts) == 5
        given_up = [one["given_up"] for one in told(spool, "message.unreported")]
        assert given_up == [False] * 4 + [True]
        assert reported(spool, id) == {"a@example.org": "none"}
        spool.sound()

    def test_a_report_that_the_spool_refuses_is_no_reason_to_settle_nothing(
        self, spool: Spool
    ) -> None:
        reports = Reports(spool)
        reports.content = b""
        spool.engine.use_streams([StreamPolicy(name="default", max_size=len(BODY))])
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        reports.content = BODY + b"."
        assert spool.settle(lane, rows[0], "failed")
        assert spool.status(id) == {"a@example.org": "failed"}
        (detail,) = told(spool, "message.unreported")
        assert "max_size" in detail["error"]
        assert kept(spool) == []
        spool.sound()

    def test_a_reporter_that_makes_none_is_not_asked_again(self, spool: Spool) -> None:
        reports = Reports(spool)
        reports.declining = True
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        spool.engine.report((), 100, FAR)
        assert len(reports.facts) == 1
        assert (kept(spool), told(spool)) == ([], [])
        assert reported(spool, id) == {"a@example.org": "none"}
        spool.sound()

    def test_many_failures_at_once_are_all_reported(self, spool: Spool) -> None:
        reports = Reports(spool)
        ids = [spool.send(f"r{n}@none.example", **SMTP) for n in range(100)]
        refusal = Refusal(Reason.NO_DOMAIN, "5.1.2", "does not exist")
        spool.route("none.example", result=RouteResult.NO_DOMAIN, refusal=refusal)
        at_once = len(reports.facts)
        assert 0 < at_once < 50, "the lock is not held for all of them"
        assert spool.engine.report((), 100, T0) == 100 - at_once
        assert sorted(facts.id for facts in reports.facts) == sorted(ids)
        assert len(kept(spool)) == 100
        spool.sound()

    def test_a_message_of_many_recipients_is_reported_whole(self, spool: Spool) -> None:
        reports = Reports(spool)
        addresses = [f"r{n}@none.example" for n in range(2_300)]
        spool.send(*addresses, **SMTP)
        refusal = Refusal(Reason.NO_DOMAIN, "5.1.2", "does not exist")
        while spool.route("none.example", result=RouteResult.NO_DOMAIN, refusal=refusal):
            pass
        spool.engine.report((), 100, T0)
        found = [one.address for facts in reports.facts for one in facts.recipients]
        assert sorted(found) == sorted(addresses)
        assert all(len(facts.recipients) <= 1_000 for facts in reports.facts)
        spool.sound()

    # --- delays ---

    def test_a_delay_is_told_once_for_each_threshold(self, spool: Spool) -> None:
        reports = Reports(spool)
        id = spool.send("a@example.org", "b@b.example", **SMTP)
        made = []
        for age in (0, 4 * HOUR - 1, 4 * HOUR, 5 * HOUR, DAY - 1, DAY, 4 * DAY):
            spool.engine.report(DELAYS, 100, T0 + age)
            made.append(len(reports.facts))
        assert made == [0, 0, 1, 1, 1, 2, 2]
        for facts in reports.facts:
            assert [one.action for one in facts.recipients] == ["delayed", "delayed"]
        assert [one["kind"] for one in told(spool)] == ["delayed", "delayed"]
        assert reported(spool, id) == {"a@example.org": "delayed", "b@b.example": "delayed"}
        spool.sound()

    def test_nothing_that_happens_in_between_makes_one_delay_two(self, spool: Spool) -> None:
        """Of each recipient once for each threshold, whatever engines, people and hosts do."""
        reports = Reports(spool)
        id = spool.send("a@example.org", "b@b.example", **SMTP)
        spool.route("b.example")
        spool.engine.report(DELAYS, 100, T0 + 4 * HOUR)
        other = spool.stores.worker()
        other.use_reporter(reports)
        now = T0 + 4 * HOUR
        for thresholds in (DELAYS, (HOUR, DAY), (HOUR, 2 * HOUR), DELAYS):
            now += HOUR
            change(spool.client, "hold", [id], None, now)
            change(spool.client, "release", [id], None, now)
            change(spool.client, "retry", [id], None, now)
            for engine in (spool.engine, other):
                engine.report(thresholds, 100, now)
        other.report(DELAYS, 100, T0 + DAY)
        told_of = [one.address for facts in reports.facts for one in facts.recipients]
        assert sorted(told_of) == ["a@example.org"] * 2 + ["b@b.example"] * 2
        spool.sound()

    def test_who_was_away_for_long_tells_of_a_delay_once(self, spool: Spool) -> None:
        reports = Reports(spool)
        spool.send(**SMTP)
        spool.engine.report(DELAYS, 100, T0 + 2 * DAY)
        spool.engine.report(DELAYS, 100, T0 + 3 * DAY)
        assert len(reports.facts) == 1

    def test_a_delay_counts_from_when_the_mail_was_to_be_sent(self, spool: Spool) -> None:
        reports = Reports(spool)
        spool.send(send_ms=T0 + 7 * DAY, expires_ms=T0 + 20 * DAY, **SMTP)
        spool.engine.report(DELAYS, 100, T0 + 7 * DAY + HOUR)
        assert reports.facts == []
        spool.engine.report(DELAYS, 100, T0 + 7 * DAY + 4 * HOUR)
        assert len(reports.facts) == 1

    def test_of_a_delay_hears_who_wants_to_and_still_waits(self, spool: Spool) -> None:
        reports = Reports(spool)
        addresses = [f"{name}@example.org" for name in ("sent", "plain", "never", "fail", "delay")]
        notices = tuple(map(Notice, (None, None, "never", "failure", "delay")))
        _, lane, rows = spool.sending(*addresses, **SMTP, notices=notices)
        spool.settle(lane, rows[0], "delivered")
        for row in rows[1:]:
            spool.settle(lane, row, "deferred", due_ms=T0 + HOUR)
        spool.engine.report(DELAYS, 100, T0 + 4 * HOUR)
        (facts,) = reports.facts
        assert [one.address for one in facts.recipients] == [
            "plain@example.org", "delay@example.org",
        ]  # fmt: skip
        assert facts.recipients[0].reply_text == "try again later"
        assert facts.recipients[0].reason == "remote"

    def test_what_keeps_a_whole_site_is_told_of_who_was_never_tried(self, spool: Spool) -> None:
        reports = Reports(spool)
        _, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.send("b@example.org", **SMTP)
        spool.settle(lane, rows[0], "deferred", due_ms=T0 + HOUR)
        spool.suspend(lane, 4_000_000_000_000)
        spool.engine.report(DELAYS, 100, T0 + 4 * HOUR)
        (one,) = reports.facts[1].recipients
        assert (one.reason, one.reply_text) == ("connect", "connection refused")

    def test_a_delay_that_could_not_be_told_in_time_is_none(self, spool: Spool) -> None:
        reports = Reports(spool)
        reports.raising = ValueError("not now")
        _, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.engine.report(DELAYS, 100, T0 + 4 * HOUR)
        reports.raising = None
        spool.settle(lane, rows[0], "delivered", now=T0 + 5 * HOUR)
        spool.engine.report(DELAYS, 100, T0 + DAY)
        assert len(reports.facts) == 1
        assert kept(spool) == []
        spool.sound()

    def test_a_reopened_message_is_late_from_then_on(self, spool: Spool) -> None:
        reports = Reports(spool)
        id, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        change(spool.client, "retry", [id], None, T0 + 3 * DAY)
        spool.engine.report(DELAYS, 100, T0 + 3 * DAY + HOUR)
        assert [facts.recipients[0].action for facts in reports.facts] == ["failed"]
        spool.engine.report(DELAYS, 100, T0 + 3 * DAY + 4 * HOUR)
        assert [facts.recipients[0].action for facts in reports.facts] == ["failed", "delayed"]

    def test_a_jump_of_the_clock_makes_no_mail_late(self, spool: Spool) -> None:
        reports = Reports(spool)
        spool.send(**SMTP)
        clock = {"boot": "boot-1", "limit": 100}
        spool.engine.keep_clock(wall_ms=T0, monotonic_ms=0, **clock)
        ahead = T0 + 2 * DAY
        while spool.engine.keep_clock(wall_ms=ahead, monotonic_ms=1_000, **clock):
            pass
        spool.engine.report(DELAYS, 100, ahead)
        assert reports.facts == []
        spool.engine.report(DELAYS, 100, ahead + 4 * HOUR)
        assert len(reports.facts) == 1
        spool.sound()

    def test_purging_a_message_leaves_nothing_owed(self, spool: Spool) -> None:
        ids, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        retention = spool.engine.retention()
        while spool.engine.purge(retention, 100, T0 + 400 * DAY):
            pass
        assert spool.client.statuses([ids]) == {}
        reports = Reports(spool)
        assert spool.engine.report(DELAYS, 100, T0 + 400 * DAY) == 0
        assert reports.facts == []
        spool.sound()

    def test_a_failure_whose_content_is_gone_is_reported_without(self, spool: Spool) -> None:
        _, lane, rows = spool.sending("a@example.org", **SMTP)
        spool.settle(lane, rows[0], "failed")
        spool.engine.purge(spool.engine.retention(), 100, T0 + 8 * DAY)
        reports = Reports(spool)
        assert spool.engine.report(DELAYS, 100, T0 + 8 * DAY) == 1
        assert reports.facts[0].content == b""
        spool.sound()
