"""Conformance of changes: hold, release, retry, resolve, and the targets that they would touch."""

from __future__ import annotations

import pytest

from mailstrom.storage.client import Selection, Target
from mailstrom.types import Change, OnDoubt, Reason, Status
from tests.storage.spool import DAY, HOUR, REASONS, T0, Spool, change

CHANGES = [str(word) for word in Change]


def _each(spool: Spool) -> str:
    """One message with a recipient in every state; the local part names it."""
    words = ("sending", "claimed", "deferred", "held", "delivered", "failed", "user", "cancelled")
    id = spool.send(*(f"{word}@example.org" for word in words))
    spool.route()
    lane = spool.lane()
    for row in spool.claim(lane):
        word = row.address.partition("@")[0]
        if word in REASONS or word == "sending":
            spool.open(lane, [row])
        if word in REASONS:
            assert spool.settle(lane, row, word)
    change(spool.client, "hold", [id], "user@example.org", T0)
    change(spool.client, "cancel", [id], "cancelled@example.org", T0)
    return id


def _events(spool: Spool, id: str, *types: str) -> list[tuple[str, str | None, object]]:
    found = spool.client.events(0, types, 1_000)
    return [(e.type, e.recipient, e.detail.get("by")) for e in found if e.message_id == id]


class ChangeContract:
    """What ``Change`` says, and that counting beforehand tells the truth."""

    @pytest.mark.parametrize(
        ("word", "touched", "becomes"),
        [
            ("cancel", {"claimed", "deferred", "held", "user"}, Status.CANCELLED),
            ("hold", {"claimed", "deferred"}, Status.HELD),
            ("release", {"user"}, Status.QUEUED),
            ("retry", {"deferred", "failed"}, Status.QUEUED),
            ("resolve-delivered", {"held"}, Status.DELIVERED),
            ("resolve-retry", {"held"}, Status.QUEUED),
            ("resolve-failed", {"held"}, Status.FAILED),
        ],
    )
    def test_a_change_touches_its_states_and_no_other(
        self, spool: Spool, word: str, touched: set[str], becomes: Status
    ) -> None:
        id = _each(spool)
        before = spool.client.statuses([id])[id].recipients
        wanted = {f"{name}@example.org" for name in touched}
        found = spool.client.targets(Selection(ids=(id,)), T0, change=Change(word), limit=100)
        assert {target.address for target in found} == wanted
        assert change(spool.client, word, [id], None, T0 + HOUR) == len(wanted)
        after = spool.client.statuses([id])[id].recipients
        assert {a for a, one in after.items() if one != before[a]} == wanted
        assert {after[a].status for a in wanted} == {becomes}
        assert before["sending@example.org"].status is Status.SENDING
        spool.sound()

    def test_each_change_tells_what_it_did(self, spool: Spool) -> None:
        id, lane, rows = spool.sending("a@example.org", "b@example.org", "c@example.org")
        for row in rows:
            spool.settle(lane, row, "held")
        since = spool.engine.last_event()
        for word, address in (
            ("resolve-delivered", "a@example.org"),
            ("resolve-retry", "b@example.org"),
            ("resolve-failed", "c@example.org"),
            ("hold", "b@example.org"),
            ("release", "b@example.org"),
            ("cancel", "b@example.org"),
        ):
            assert change(spool.client, word, [id], address, T0 + HOUR) == 1
        told = spool.client.events(since, (), 100)
        assert [(e.type, e.recipient, e.detail.get("by")) for e in told] == [
            ("recipient.delivered", "a@example.org", "resolve"),
            ("message.released", "b@example.org", "resolve"),
            ("recipient.failed", "c@example.org", "resolve"),
            ("message.held", "b@example.org", None),
            ("message.released", "b@example.org", None),
            ("message.cancelled", "b@example.org", None),
        ]
        assert {e.message_id for e in told} == {id}
        assert {e.at.timestamp() * 1000 for e in told} == {T0 + HOUR}
        assert spool.engine.failed_since(since) == [], "a person decided: nobody's time was over"

    def test_only_the_named_address_changes_and_unknown_ones_do_nothing(self, spool: Spool) -> None:
        id = spool.send("a@example.org", "b@example.org")
        other = spool.send("a@example.org")
        targets = [Target("unknown"), Target(id, "nobody@example.org"), Target(id, "a@example.org")]
        assert spool.client.change(Change.HOLD, [*targets, *targets], T0) == 1
        assert spool.status(id) == {"a@example.org": "held", "b@example.org": "queued"}
        assert spool.status(other) == {"a@example.org": "queued"}
        for word in Change:
            assert spool.client.change(word, [], T0) == 0
            assert spool.client.change(word, [Target("unknown")], T0) == 0
        spool.sound()

    def test_a_target_named_twice_over_is_changed_once(self, spool: Spool) -> None:
        id = spool.send("a@example.org", "b@example.org")
        twice = [Target(id), Target(id, "a@example.org"), Target(id)]
        assert spool.client.change(Change.HOLD, twice, T0) == 2
        assert len(_events(spool, id, "message.held")) == 2

    # --- hold and release ---

    def test_held_mail_is_not_given_out_and_released_mail_is(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        assert change(spool.client, "hold", [id], None, T0) == 1
        held = spool.only(id)
        assert (held.status, held.reason, held.next_attempt_at) == (Status.HELD, Reason.USER, None)
        for due in spool.engine.due_domains(spool.worker, 9, T0 + HOUR):
            spool.engine.put_routes(spool.worker, [spool.answer(due.name)], T0)
        assert [lane for lane in spool.lease(now=T0 + HOUR) if spool.claim(lane)] == []
        assert change(spool.client, "release", [id], None, T0 + HOUR) == 1
        released = spool.only(id)
        assert (released.status, released.reason) == (Status.QUEUED, None)
        spool.route(now=T0 + HOUR)
        assert len(spool.claim(spool.lane(now=T0 + HOUR), now=T0 + HOUR)) == 1
        spool.sound()

    def test_a_claimed_recipient_is_taken_from_its_lane_by_hold_and_by_cancel(
        self, spool: Spool
    ) -> None:
        id = spool.send("held@example.org", "cancelled@example.org", "sent@example.org")
        spool.route()
        lane = spool.lane()
        rows = spool.claim(lane)
        assert change(spool.client, "hold", [id], "held@example.org", T0) == 1
        assert change(spool.client, "cancel", [id], "cancelled@example.org", T0) == 1
        (sent,) = [row for row in rows if row.address == "sent@example.org"]
        assert spool.open(lane, rows) == {sent.recipient}
        assert change(spool.client, "hold", [id], None, T0) == 0, "it is on the wire"
        assert not any(spool.settle(lane, row, "queued") for row in rows if row is not sent)
        assert spool.settle(lane, sent, "delivered")
        assert spool.engine.release([lane.token], T0) == 0
        assert spool.status(id) == {
            "held@example.org": "held",
            "cancelled@example.org": "cancelled",
            "sent@example.org": "delivered",
        }
        spool.sound()

    def test_release_before_send_at_waits_for_it(self, spool: Spool) -> None:
        id = spool.send("a@example.org", send_ms=T0 + DAY)
        assert change(spool.client, "hold", [id], None, T0) == 1
        assert change(spool.client, "release", [id], None, T0 + HOUR) == 1
        due = spool.only(id).next_attempt_at
        assert due is not None
        assert due.timestamp() * 1000 == T0 + DAY
        assert spool.engine.next_due_ms(T0) == T0 + DAY
        assert change(spool.client, "retry", [id], None, T0 + HOUR) == 0
        spool.sound()

    def test_a_held_message_expires_and_is_then_over(self, spool: Spool) -> None:
        id = spool.send("a@example.org", expires_ms=T0 + HOUR)
        change(spool.client, "hold", [id], None, T0)
        assert spool.engine.expire(10, T0 + HOUR) == 1
        assert (spool.only(id).status, spool.only(id).reason) == (Status.FAILED, Reason.EXPIRED)
        assert change(spool.client, "release", [id], None, T0 + HOUR) == 0
        spool.sound()

    def test_held_mail_of_a_domain_that_moved_goes_where_it_is_now(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route(site="old.example")
        change(spool.client, "hold", [id], None, T0)
        later = T0 + 2 * HOUR
        change(spool.client, "release", [id], None, later)
        spool.route(site="new.example", now=later)
        lane = spool.lane(now=later)
        assert lane.site_key == "new.example"
        assert len(spool.claim(lane, now=later)) == 1
        spool.sound()

    # --- resolve ---

    @pytest.mark.parametrize("word", ["resolve-delivered", "resolve-failed"])
    def test_resolve_ends_what_is_in_doubt_and_keeps_its_history(
        self, spool: Spool, word: str
    ) -> None:
        id, lane, _ = spool.sending("a@example.org", on_doubt=OnDoubt.HOLD)
        spool.engine.release([lane.token], T0)
        assert (spool.only(id).status, spool.only(id).reason) == (Status.HELD, Reason.IN_DOUBT)
        assert change(spool.client, word, [id], None, T0 + HOUR) == 1
        done = spool.client.statuses([id])[id]
        one = spool.only(id)
        assert done.completed
        assert done.finished_at is not None
        assert done.finished_at.timestamp() * 1000 == T0 + HOUR
        assert one.in_doubt
        assert one.attempts == 1
        assert one.reason == (None if word == "resolve-delivered" else Reason.IN_DOUBT)
        ended = str(one.status)
        assert spool.rows(
            "SELECT sum(recipients) FROM hourly_stats WHERE status = ? AND hour_ms >= ?",
            ended,
            T0 // HOUR * HOUR,
        ) == [(1,)]
        assert change(spool.client, word, [id], None, T0 + HOUR) == 0
        spool.sound()

    def test_resolve_retry_sends_it_again(self, spool: Spool) -> None:
        id, lane, _ = spool.sending("a@example.org", on_doubt=OnDoubt.HOLD)
        spool.engine.release([lane.token], T0)
        assert change(spool.client, "resolve-retry", [id], None, T0 + HOUR) == 1
        spool.route(now=T0 + HOUR)
        again = spool.lane(now=T0 + HOUR)
        (row,) = spool.claim(again, now=T0 + HOUR)
        assert spool.open(again, [row], now=T0 + HOUR)
        assert spool.settle(again, row, "delivered", now=T0 + HOUR)
        assert spool.only(id).in_doubt
        spool.sound()

    def test_a_late_delivery_still_wins_while_a_resolved_retry_waits(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org", on_doubt=OnDoubt.HOLD)
        spool.engine.release([lane.token], T0)
        change(spool.client, "resolve-retry", [id], None, T0)
        assert not spool.settle(lane, row, "delivered")
        assert spool.only(id).status is Status.DELIVERED, "sending it again would be a duplicate"
        spool.sound()

    # --- targets ---

    def test_targets_come_in_pages_that_inserts_do_not_shift(self, spool: Spool) -> None:
        ids = [spool.send("a@example.org", "b@example.org") for _ in range(5)]
        pages: list[Target] = []
        after = 0
        while page := spool.client.targets(Selection(), T0, change=None, limit=3, after=after):
            assert len(page) <= 3
            after = page[-1].place
            pages += page
            if len(pages) == 3:
                ids.append(spool.send("a@example.org", "b@example.org"))
        assert [(t.id, t.address) for t in pages] == [
            (id, f"{name}@example.org") for id in ids for name in "ab"
        ]
        assert [t.place for t in pages] == sorted({t.place for t in pages})

    @pytest.mark.parametrize(
        "selection", [Selection(), Selection(tags=("t", "u")), Selection(domains=("example.org",))]
    )
    def test_a_change_in_pages_reaches_all_once(self, spool: Spool, selection: Selection) -> None:
        ids = [spool.send("a@example.org", "b@example.org", tags=("t", "u")) for _ in range(5)]
        for word, status in (("hold", "held"), ("release", "queued"), ("cancel", "cancelled")):
            changed, after = 0, 0
            while page := spool.client.targets(
                selection, T0, change=Change(word), limit=3, after=after
            ):
                changed += spool.client.change(Change(word), page, T0)
                after = page[-1].place
            assert changed == 10
            found = spool.client.statuses(ids).values()
            assert {str(one.status) for one in found} == {status}
        spool.sound()

    def test_a_scheduled_message_is_no_target_of_retry(self, spool: Spool) -> None:
        later = spool.send("a@example.org", send_ms=T0 + HOUR, expires_ms=T0 + DAY)
        now = spool.send("b@example.org")
        for at, wanted in ((T0, [now]), (T0 + HOUR - 1, [now]), (T0 + HOUR, [later, now])):
            found = spool.client.targets(Selection(), at, change=Change.RETRY, limit=9)
            assert [target.id for target in found] == wanted, "no clock but the caller's"
