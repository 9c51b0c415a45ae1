"""Conformance of settling: guards, late truths, what is recorded, and the sums of it."""

from __future__ import annotations

from typing import Any

import pytest

from mailstrom.storage.base import Ahead, ClaimRequest, Lane, Open
from mailstrom.types import OnDoubt, Reason
from tests.storage.spool import (
    HOUR,
    NO_ROWS,
    T0,
    Spool,
    at_once,
    attempt,
    change,
    session_row,
    settlement,
)


class SettlingContract:
    """What settling promises."""

    def test_a_delivery_tells_everything(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        assert spool.settle(lane, row, "delivered", now=T0 + 200)
        one = spool.only(id)
        assert (one.status, one.reason, one.attempts, one.in_doubt) == ("delivered", None, 1, False)
        assert (one.mx, one.reply_code, one.enhanced_code, one.reply_text, one.tls) == (
            "mx1.example.org", 250, "2.0.0", "Ok: queued as 4711", "TLSv1.3"
        )  # fmt: skip
        assert one.last_attempt_at is not None
        assert one.last_attempt_at.timestamp() * 1000 == T0 + 200
        assert one.next_attempt_at is None
        found = spool.client.statuses([id])[id]
        assert found.completed
        assert found.succeeded
        assert found.finished_at is not None
        assert spool.rows(
            "SELECT message_id, recipient, number, worker, stage, host, address, reply_code,"
            " verdict, in_doubt, late, started_ms, ended_ms FROM attempts"
        ) == [
            (id, "a@example.org", 1, spool.worker, "dot", "mx1.example.org", "192.0.2.1", 250,
             "delivered", 0, 0, T0 + 100, T0 + 200)
        ]  # fmt: skip
        spool.sound()

    def test_each_recipient_of_a_transaction_has_its_own_verdict(self, spool: Spool) -> None:
        words = ("delivered", "deferred", "failed", "held")
        id, lane, rows = spool.sending(*(f"{word}@example.org" for word in words))
        batch = [
            settlement(lane.token, row.recipient, row.address.partition("@")[0]) for row in rows
        ]
        done = spool.exchange(settlements=batch, now=T0 + 300)
        assert done.settled == {row.recipient for row in rows}
        assert spool.status(id) == {f"{word}@example.org": word for word in words}
        spool.sound()

    def test_a_charged_deferral_advances_the_schedule_an_uncharged_does_not(
        self, spool: Spool
    ) -> None:
        _, lane, (row,) = spool.sending("a@example.org")
        spool.settle(lane, row, "deferred", due_ms=T0 + 10, charge=False)
        (row,) = spool.claim(lane, now=T0 + 10)
        assert (row.attempts, row.deferrals) == (1, 0)
        spool.open(lane, [row])
        spool.settle(lane, row, "deferred", due_ms=T0 + 20)
        (row,) = spool.claim(lane, now=T0 + 20)
        assert (row.attempts, row.deferrals) == (2, 1)

    def test_a_deferred_recipient_is_claimed_when_due_and_not_before(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.settle(lane, row, "deferred", due_ms=T0 + HOUR)
        assert spool.only(id).reason is Reason.REMOTE
        assert spool.claim(lane, now=T0 + HOUR - 1) == []
        spool.engine.release([lane.token], T0)
        assert spool.lease(now=T0 + HOUR - 1) == []
        assert spool.engine.next_due_ms(T0) == T0 + HOUR
        spool.sound()

    def test_claimed_then_deferred_in_one_exchange_records_both_hosts(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        first = settlement(
            lane.token, row.recipient, "claimed", attempt=attempt("deferred", host="mx1")
        )
        second = settlement(
            lane.token, row.recipient, "deferred", attempt=attempt("deferred", host="mx2")
        )
        done = spool.exchange(settlements=[first, second])
        assert done.settled == {row.recipient}
        assert spool.rows("SELECT number, host FROM attempts ORDER BY id") == [
            (1, "mx1"), (2, "mx2")
        ]  # fmt: skip
        assert spool.only(id).attempts == 2
        assert spool.only(id).status == "deferred"
        spool.sound()

    def test_a_claim_kept_for_the_next_host_is_opened_again_by_its_lane_alone(
        self, spool: Spool
    ) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        assert spool.settle(lane, row, "claimed")
        assert spool.only(id).status == "queued"
        assert spool.claim(lane) == []
        assert spool.open(lane, [row]) == {row.recipient}
        assert spool.settle(lane, row, "delivered")
        spool.sound()

    def test_given_back_without_an_attempt_leaves_no_trace(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        assert spool.settle(lane, row, "queued", due_ms=T0 + 50)
        one = spool.only(id)
        assert (one.status, one.attempts, one.in_doubt) == ("queued", 0, False)
        assert spool.rows("SELECT count(*) FROM attempts") == [(0,)]
        assert spool.claim(lane, now=T0 + 49) == []
        assert len(spool.claim(lane, now=T0 + 50)) == 1

    def test_settle_open_and_claim_share_an_exchange_in_that_order(self, spool: Spool) -> None:
        for name in ("a", "b", "c"):
            spool.send(f"{name}@example.org")
        spool.route()
        lane = spool.lane()
        one, two = spool.claim(lane, limit=2)
        spool.open(lane, [one])
        done = spool.exchange(
            settlements=[settlement(lane.token, one.recipient, "delivered")],
            opens=[Open(lane=lane.token, recipients=(two.recipient,), session="s")],
            claims=[ClaimRequest(lane=lane.token, limit=5, max_bytes=1 << 20)],
        )
        assert done.settled == {one.recipient}
        assert done.opened == {two.recipient}
        assert [row.address for row in done.claimed] == ["c@example.org"]

    # --- opened with its claim ---

    def ahead(self, spool: Spool, lane: Lane, ahead: Ahead) -> tuple[list[str], list[str]]:
        """Who was claimed, and who of them is open."""
        request = ClaimRequest(lane=lane.token, limit=9, max_bytes=1 << 20, ahead=ahead)
        done = spool.exchange(claims=[request])
        by = {row.recipient: row.address for row in done.claimed}
        return list(by.values()), [by[one] for one in by if one in done.opened]

    def test_a_claim_opens_its_first_messages_where_it_is_asked_to(self, spool: Spool) -> None:
        ids = [spool.send(f"{name}@example.org") for name in "abc"]
        spool.route()
        lane = spool.lane()
        claimed, opened = self.ahead(spool, lane, at_once(2))
        assert claimed == ["a@example.org", "b@example.org", "c@example.org"]
        assert opened == claimed[:2]
        assert [spool.only(id).status for id in ids] == ["sending", "sending", "queued"]
        assert spool.engine.release([lane.token], T0) == 3
        assert [spool.only(id).in_doubt for id in ids] == [True, True, False]
        spool.sound()

    def test_what_was_opened_with_its_claim_is_settled_and_opened_again_as_any_other(
        self, spool: Spool
    ) -> None:
        spool.send("a@example.org")
        spool.route()
        lane = spool.lane()
        request = ClaimRequest(lane=lane.token, limit=9, max_bytes=1 << 20, ahead=at_once(1))
        (row,) = spool.exchange(claims=[request]).claimed
        assert spool.open(lane, [row], "another") == frozenset()
        assert spool.open(lane, [row], "s") == {row.recipient}
        assert spool.settle(lane, row, "delivered")
        spool.sound()

    @pytest.mark.parametrize(
        ("changes", "takes"),
        [
            ({"on_doubt": OnDoubt.HOLD}, {}),
            ({"require_tls": True}, {"encrypted": False}),
            ({"requiretls": True}, {"requiretls": False}),
            ({"eightbit": True}, {"eightbit": False}),
            ({"smtputf8": True}, {"smtputf8": False}),
            ({}, {"octets": 10}),
        ],
    )
    def test_from_what_the_session_does_not_take_on_nothing_is_opened(
        self, spool: Spool, changes: dict[str, Any], takes: dict[str, Any]
    ) -> None:
        content = b"Subject: one\r\n\r\nhello\r\n"
        for at, more in enumerate(
            ({"content": b"A:\r\n\r\n"}, {"content": content, **changes}, {})
        ):
            spool.send(f"{at}@example.org", **more)
        spool.route()
        claimed, opened = self.ahead(spool, spool.lane(), at_once(9, **takes))
        assert len(claimed) == 3
        assert opened == claimed[:1]

    def test_a_message_is_opened_with_all_its_recipients_or_not_at_all(self, spool: Spool) -> None:
        spool.send("a@example.org", "b@example.org")
        spool.send("c@example.org", "d@example.org", "e@example.org")
        spool.send("f@example.org")
        spool.route()
        claimed, opened = self.ahead(spool, spool.lane(), at_once(9, recipients=2))
        assert len(claimed) == 6
        assert opened == ["a@example.org", "b@example.org"]

    def test_an_empty_exchange_is_nothing(self, spool: Spool) -> None:
        assert spool.exchange() == NO_ROWS

    # --- guards ---

    @pytest.mark.parametrize("word", ["deferred", "failed", "held", "claimed", "queued"])
    def test_a_stale_token_changes_nothing(self, spool: Spool, word: str) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        before = spool.only(id)
        assert not spool.settle(lane, row, word)
        after = spool.only(id)
        late = 0 if word == "queued" else 1
        assert (after.status, after.reason, after.next_attempt_at) == (
            before.status, before.reason, before.next_attempt_at
        )  # fmt: skip
        assert after.attempts == before.attempts + late, "recorded all the same"
        assert spool.rows("SELECT count(*) FROM attempts WHERE late") == [(late,)]
        spool.sound()

    def test_another_lanes_token_changes_nothing(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.send("b@example.net")
        spool.route("example.net")
        other = spool.lane()
        assert other.token != lane.token
        assert not spool.settle(other, row, "failed")
        assert spool.open(other, [row]) == frozenset()
        assert spool.only(id).status == "sending"

    def test_what_was_never_opened_is_neither_held_nor_simply_delivered(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route()
        lane = spool.lane()
        (row,) = spool.claim(lane)
        assert not spool.settle(lane, row, "held")
        assert spool.only(id).status == "queued"
        assert not spool.settle(lane, row, "delivered"), "taken as a late truth"
        assert spool.only(id).status == "delivered"
        assert spool.rows("SELECT late, verdict FROM attempts ORDER BY id") == [
            (1, "held"), (1, "delivered")
        ]  # fmt: skip
        spool.sound()

    def test_a_late_delivery_wins_over_waiting(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        assert spool.only(id).in_doubt
        assert not spool.settle(lane, row, "delivered")
        one = spool.only(id)
        assert (one.status, one.reply_code, one.attempts) == ("delivered", 250, 2)
        assert spool.client.statuses([id])[id].completed
        assert spool.rows("SELECT late, worker FROM attempts ORDER BY id") == [
            (0, spool.worker), (1, None)
        ]  # fmt: skip
        spool.sound()

    def test_a_late_delivery_wins_over_another_lanes_claim_which_then_opens_nothing(
        self, spool: Spool
    ) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        other = spool.register()
        again = spool.lane(worker=other)
        (claimed,) = spool.claim(again)
        spool.settle(lane, row, "delivered")
        assert spool.only(id).status == "delivered"
        assert spool.open(again, [claimed]) == frozenset()
        spool.sound()

    def test_a_late_delivery_loses_to_a_final_row_a_reopened_one_and_one_on_the_wire(
        self, spool: Spool
    ) -> None:
        words = ("cancelled", "reopened", "sending")
        id, lane, rows = spool.sending(*(f"{word}@example.org" for word in words))
        by_word = {row.address.partition("@")[0]: row for row in rows}
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        other = spool.register()
        change(spool.client, "cancel", [id], "cancelled@example.org", T0)
        again = spool.lane(worker=other)
        claims = {row.address: row for row in spool.claim(again)}
        wire, reopened = claims["sending@example.org"], claims["reopened@example.org"]
        spool.open(again, [wire, reopened])
        spool.settle(again, reopened, "failed", now=T0 + 400)
        change(spool.client, "retry", [id], "reopened@example.org", T0 + 500)
        for row in by_word.values():
            assert not spool.settle(lane, row, "delivered")
        assert spool.status(id) == {
            "cancelled@example.org": "cancelled",
            "reopened@example.org": "queued",
            "sending@example.org": "sending",
        }
        assert spool.rows("SELECT count(*) FROM attempts WHERE late") == [(3,)]
        spool.sound()

    # --- doubt ---

    @pytest.mark.parametrize(
        ("own", "given", "status"),
        [
            (None, OnDoubt.RETRY, "deferred"),
            (None, OnDoubt.HOLD, "held"),
            (OnDoubt.HOLD, OnDoubt.RETRY, "held"),
            (OnDoubt.RETRY, OnDoubt.HOLD, "deferred"),
        ],
    )
    @pytest.mark.parametrize("verb", ["release", "lapse", "retire"])
    def test_what_was_on_the_wire_is_in_doubt_and_its_message_decides(
        self, spool: Spool, verb: str, own: OnDoubt | None, given: OnDoubt, status: str
    ) -> None:
        id, lane, (row,) = spool.sending("a@example.org", on_doubt=own)
        now = T0 + 700
        if verb == "release":
            assert spool.engine.release([lane.token], now, on_doubt=given) == 1
        elif verb == "lapse":
            lapsed = spool.engine.lapse(spool.worker, boot="boot-1", now_ms=now, on_doubt=given)
            assert (lapsed.lanes, lapsed.released, lapsed.in_doubt) == (1, 0, 1)
        else:
            spool.engine.retire(spool.worker, state="stopped", now_ms=now, on_doubt=given)
        one = spool.only(id)
        assert (one.status, one.reason, one.in_doubt, one.attempts) == (
            status, Reason.IN_DOUBT, True, 1
        )  # fmt: skip
        assert spool.rows("SELECT stage, verdict, reason, in_doubt, worker FROM attempts") == [
            ("dot", status, "in_doubt", 1, spool.worker)
        ]
        assert row.recipient
        spool.sound()

    # --- sums and records ---

    def test_hourly_sums_count_every_end_once(self, spool: Spool) -> None:
        words = ("delivered", "deferred", "failed", "held", "late", "cancelled", "expired")
        names = [f"{word}@example.org" for word in words]
        id, lane, rows = spool.sending(*names, expires_ms=T0 + HOUR)
        by_word = {row.address.partition("@")[0]: row for row in rows}
        for word in ("delivered", "deferred", "failed", "held"):
            spool.settle(lane, by_word[word], word)
        for word in ("cancelled", "expired"):
            spool.settle(lane, by_word[word], "queued", due_ms=T0)
        change(spool.client, "cancel", [id], "cancelled@example.org", T0 + 300)
        change(spool.client, "cancel", [id], "deferred@example.org", T0 + 300)
        change(spool.client, "cancel", [id], "held@example.org", T0 + 300)
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0 + 300)
        spool.settle(lane, by_word["late"], "delivered", now=T0 + 400)
        assert spool.engine.expire(10, T0 + HOUR) == 1
        sums = spool.rows(
            "SELECT status, sum(recipients), sum(bytes) FROM hourly_stats"
            " WHERE status IN ('delivered', 'failed', 'cancelled') GROUP BY 1 ORDER BY 1"
        )
        ends = spool.rows(
            "SELECT r.status, count(*), sum(m.size) FROM recipients r"
            " JOIN messages m ON m.id = r.message_id GROUP BY 1 ORDER BY 1"
        )
        assert sums == ends == [
            ("cancelled", 3, sums[0][2]), ("delivered", 2, sums[1][2]), ("failed", 2, sums[2][2])
        ]  # fmt: skip
        assert spool.rows("SELECT reason, recipients FROM hourly_stats WHERE status='failed'"
                          " ORDER BY 1") == [("bounced", 1), ("expired", 1)]  # fmt: skip
        assert spool.rows("SELECT count(DISTINCT hour_ms % 3600000) FROM hourly_stats") == [(1,)]

    def test_a_deferral_is_counted_whether_its_reply_came_with_it_or_before(
        self, spool: Spool
    ) -> None:
        _, lane, (one, two) = spool.sending("a@example.org", "b@example.org")
        spool.settle(lane, one, "deferred")
        spool.settle(lane, two, "claimed")
        spool.settle(lane, two, "deferred", attempt=None)
        assert spool.rows(
            "SELECT status, reason, recipients FROM hourly_stats WHERE status = 'deferred'"
        ) == [("deferred", "remote", 2)]

    def test_the_time_to_delivery_is_summed(self, spool: Spool) -> None:
        _, lane, rows = spool.sending("a@example.org", "b@example.org")
        for row in rows:
            spool.settle(lane, row, "delivered", attempt=attempt("delivered", ended_ms=T0 + 1_500))
        assert spool.rows("SELECT recipients, ms_sum FROM hourly_stats") == [(2, 3_000)]

    def test_sessions_are_written_when_opened_and_again_at_their_end(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route()
        lane = spool.lane()
        spool.exchange(sessions=[session_row("session-1", lane)])
        assert spool.rows("SELECT id, worker, ended_ms, messages, tls_reached FROM sessions") == [
            ("session-1", spool.worker, None, 0, "encrypted")
        ]
        end = session_row("session-1", lane, ended_ms=T0 + 9, messages=3, end_cause="quit")
        spool.exchange(sessions=[end])
        assert spool.rows("SELECT ended_ms, messages, end_cause, site FROM sessions") == [
            (T0 + 9, 3, "quit", "mx.example.org")
        ]

    def test_every_turn_leaves_its_event(self, spool: Spool) -> None:
        words = ("delivered", "deferred", "failed", "held")
        id, lane, rows = spool.sending(*(f"{word}@example.org" for word in words))
        for row in rows:
            spool.settle(lane, row, row.address.partition("@")[0])
        change(spool.client, "cancel", [id], "deferred@example.org", T0)
        assert spool.rows(
            "SELECT type, recipient FROM events WHERE message_id = ? ORDER BY id", id
        ) == [
            ("message.accepted", None),
            *((f"recipient.{word}", f"{word}@example.org") for word in words),
            ("message.cancelled", "deferred@example.org"),
        ]
        kinds = {row[0] for row in spool.rows("SELECT DISTINCT type FROM events")}
        assert kinds >= {"worker.started", "mx.resolved"}

    def test_attempts_at_several_hosts_keep_each_its_own(self, spool: Spool) -> None:
        hosts = [("mx1.example.org", "192.0.2.1"), ('mx"2.example.org', "192.0.2.2"), (None, None)]
        ids = [spool.send(f"{at}@example.org") for at in range(len(hosts))]
        spool.route()
        lane = spool.lane()
        rows = spool.claim(lane)
        spool.open(lane, rows)
        done = spool.exchange(
            settlements=[
                settlement(
                    lane.token, row.recipient, "delivered",
                    attempt=attempt("delivered", host=host, address=address),
                )
                for row, (host, address) in zip(rows, hosts, strict=True)
            ]
        )  # fmt: skip
        assert len(done.settled) == 3
        assert [spool.only(id).mx for id in ids] == [host for host, _ in hosts]
        for id, where in zip(ids, hosts, strict=True):
            assert spool.rows("SELECT host, address FROM attempts WHERE message_id = ?", id) == [
                where
            ]
            assert spool.rows(
                "SELECT detail ->> 'host', detail ->> 'stage', detail ->> 'number' FROM events"
                " WHERE message_id = ? AND type = 'recipient.delivered'", id,
            ) == [(where[0], "dot", 1)]  # fmt: skip
        spool.sound()
