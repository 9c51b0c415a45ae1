"""Conformance of doubt: losses on the wire are charged, wait, and end; and what is recorded."""

from __future__ import annotations

import pytest

from mailstrom.storage.base import Claimed, Lane
from mailstrom.types import OnDoubt, Reason
from tests.storage.spool import DAY, HOUR, T0, Spool, attempt, change, settlement

WAITS = (0, 60_000, 300_000, 900_000)


def lose(spool: Spool, lane: Lane, rows: list[Claimed], now: int) -> None:
    """The lane ends with these rows on the wire."""
    assert spool.open(lane, rows, now=now)
    spool.engine.release([lane.token], now)


class DoubtContract:
    """What losses without a verdict promise."""

    def test_each_loss_is_charged_and_waits_longer_and_the_fifth_is_held_as_poison(
        self, spool: Spool
    ) -> None:
        id = spool.send("a@example.org", expires_ms=T0 + 9 * DAY)
        spool.route(ttl=DAY)
        now = T0
        for losses, wait in enumerate(WAITS):
            lane = spool.lane(now=now)
            (row,) = spool.claim(lane, now=now)
            assert (row.attempts, row.deferrals) == (losses, losses)
            lose(spool, lane, [row], now)
            one = spool.only(id)
            assert (one.status, one.reason, one.in_doubt) == ("deferred", "in_doubt", True)
            if wait:
                assert spool.lease(now=now + wait - 1) == []
            now += wait
        lane = spool.lane(now=now)
        lose(spool, lane, spool.claim(lane, now=now), now)
        one = spool.only(id)
        assert (one.status, one.reason, one.attempts) == ("held", Reason.POISON, 5)
        assert spool.rows("SELECT verdict, reason, in_doubt FROM attempts ORDER BY id") == [
            *[("deferred", "in_doubt", 1)] * 4,
            ("held", "poison", 1),
        ]
        spool.sound()
        assert change(spool.client, "cancel", [id], None, now) == 1

    def test_poison_that_expires_says_that_it_may_have_been_delivered(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route(ttl=DAY)
        now = T0
        for wait in (*WAITS, 0):
            lane = spool.lane(now=now)
            lose(spool, lane, spool.claim(lane, now=now), now)
            now += wait
        assert spool.engine.expire(10, T0 + 5 * DAY) == 1
        assert (spool.only(id).status, spool.only(id).reason) == ("failed", Reason.IN_DOUBT)

    @pytest.mark.parametrize("answer", ["deferred", "claimed"])
    def test_an_answer_of_any_kind_starts_the_count_again(self, spool: Spool, answer: str) -> None:
        spool.send("a@example.org")
        spool.route(ttl=DAY)
        now = T0
        for _ in range(3):
            for wait in WAITS[:3]:
                lane = spool.lane(now=now)
                (row,) = spool.claim(lane, now=now)
                lose(spool, lane, [row], now)
                now += wait
            lane = spool.lane(now=now)
            (row,) = spool.claim(lane, now=now)
            spool.open(lane, [row], now=now)
            spool.settle(
                lane, row, answer, now=now, **({"due_ms": now} if answer[0] == "d" else {})
            )
            spool.engine.release([lane.token], now)
        assert spool.rows("SELECT status FROM recipients") == [("deferred",)]
        spool.sound()

    def test_a_verdict_in_doubt_is_no_answer(self, spool: Spool) -> None:
        """Held by a loss after the dot and sent again, it is not as good as new."""
        id = spool.send("a@example.org")
        spool.route(ttl=DAY)
        now = T0
        for wait in WAITS:
            lane = spool.lane(now=now)
            lose(spool, lane, spool.claim(lane, now=now), now)
            now += wait
        lane = spool.lane(now=now)
        (row,) = spool.claim(lane, now=now)
        spool.open(lane, [row], now=now)
        lost = attempt("deferred", in_doubt=True, reason=Reason.IN_DOUBT)
        spool.settle(lane, row, "deferred", now=now, due_ms=now, attempt=lost)
        lose(spool, lane, spool.claim(lane, now=now), now)
        assert spool.only(id).reason is Reason.POISON

    def test_reopening_starts_the_count_again(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route(ttl=DAY)
        now = T0
        for wait in WAITS:
            lane = spool.lane(now=now)
            lose(spool, lane, spool.claim(lane, now=now), now)
            now += wait
        assert spool.engine.expire(10, T0 + 5 * DAY) == 1
        now = T0 + 5 * DAY
        assert change(spool.client, "retry", [id], None, now) == 1
        spool.route(now=now)
        lane = spool.lane(now=now)
        lose(spool, lane, spool.claim(lane, now=now), now)
        assert spool.only(id).status == "deferred"

    @pytest.mark.parametrize("on_doubt", list(OnDoubt))
    @pytest.mark.parametrize("verb", ["lapse", "reboot", "retire"])
    def test_a_worker_with_thousands_in_its_hands_is_taken_back_whole(
        self, spool: Spool, verb: str, on_doubt: OnDoubt
    ) -> None:
        count = 2_300
        spool.send(*(f"r{n}@example.org" for n in range(count)))
        while spool.route():
            pass
        lane = spool.lane()
        rows = [row for _ in range(5) for row in spool.claim(lane)]
        assert len(rows) == count
        spool.open(lane, rows[:1_200])
        if verb == "retire":
            spool.engine.retire(spool.worker, state="stopped", now_ms=T0, on_doubt=on_doubt)
        else:
            boot = "boot-1" if verb == "lapse" else "boot-2"
            lapsed = spool.engine.lapse(spool.worker, boot=boot, now_ms=T0, on_doubt=on_doubt)
            doubtful = 1_200 if verb == "lapse" else count
            assert lapsed[1:] == (1, count - doubtful, doubtful)
            assert spool.rows(
                "SELECT detail ->> 'in_doubt' FROM events WHERE type = 'claim.lapsed'"
            ) == [(doubtful,)]
        assert spool.rows("SELECT count(*) FROM recipients WHERE status = 'sending'") == [(0,)]
        assert spool.engine.workers() == []
        spool.sound()

    def test_a_boot_without_a_name_is_another_boot(self, spool: Spool) -> None:
        worker = spool.register(boot="")
        id = spool.send("a@example.org")
        spool.route()
        spool.claim(spool.lane(worker=worker))
        assert spool.engine.lapse(worker, boot="", now_ms=T0).in_doubt == 1
        assert spool.only(id).in_doubt

    # --- the next host ---

    def test_an_answer_that_the_next_host_may_mend_is_an_attempt_and_no_event(
        self, spool: Spool
    ) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.settle(lane, row, "claimed", attempt=attempt("deferred", host="mx1"))
        assert spool.rows("SELECT verdict FROM attempts") == [("deferred",)]
        events = "SELECT type, detail ->> 'host', detail ->> 'stage', detail ->> 'code' FROM events"
        assert spool.rows(f"{events} WHERE recipient IS NOT NULL") == []
        assert (spool.only(id).status, spool.only(id).reason) == ("queued", None)
        spool.settle(lane, row, "deferred", attempt=None)
        assert spool.rows(f"{events} WHERE recipient IS NOT NULL") == [
            ("recipient.deferred", "mx1", "dot", 451)
        ]
        assert spool.only(id).reason is Reason.REMOTE

    def test_a_late_answer_of_that_kind_makes_no_event_either(self, spool: Spool) -> None:
        _, lane, (row,) = spool.sending("a@example.org")
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        before = spool.rows("SELECT count(*) FROM events")
        spool.exchange(settlements=[settlement(lane.token, row.recipient, "claimed")])
        assert spool.rows("SELECT count(*) FROM events") == before

    def test_what_waits_in_doubt_is_shown_deferred_while_it_is_claimed(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        lost = attempt("deferred", in_doubt=True, reason=Reason.IN_DOUBT)
        spool.settle(lane, row, "deferred", due_ms=T0, attempt=lost, charge=False)
        assert len(spool.claim(lane, now=T0 + HOUR // 2)) == 1
        assert (spool.only(id).status, spool.only(id).reason) == ("deferred", Reason.REMOTE)
