"""Conformance of the clock: no jump loses mail, keeps it for ever, or moves a user's own times."""

from __future__ import annotations

import pytest

from mailstrom.types import Reason, from_ms
from tests.storage.contract_retention import KEEP
from tests.storage.spool import DAY, HOUR, T0, Spool

YEAR = 365 * DAY


def times(spool: Spool, id: str) -> tuple[int, int | None, int]:
    """Send time, next attempt, expiry of a message with one recipient."""
    ((send, due, expires),) = spool.rows(
        "SELECT m.send_ms, r.next_attempt_ms, m.expires_ms FROM messages m"
        " JOIN recipients r ON r.message_id = m.id WHERE m.id = ?", id
    )  # fmt: skip
    assert isinstance(send, int)
    assert isinstance(expires, int)
    assert due is None or isinstance(due, int)
    return send, due, expires


class ClockContract:
    """What ``keep_clock`` promises."""

    def keep(self, spool: Spool, wall: int, monotonic: int, boot: str = "b", most: int = 99) -> int:
        return spool.engine.keep_clock(wall_ms=wall, monotonic_ms=monotonic, boot=boot, limit=most)

    def test_an_even_clock_shifts_nothing(self, spool: Spool) -> None:
        spool.send()
        assert self.keep(spool, T0, 0) == 0
        for step in range(1, 5):
            assert self.keep(spool, T0 + step * HOUR + step * 900, step * HOUR) == 0

    def test_a_forward_jump_expires_nothing_early(self, spool: Spool) -> None:
        id = spool.send(expires_ms=T0 + HOUR)
        self.keep(spool, T0, 0)
        jumped = T0 + 10 * DAY
        assert self.keep(spool, jumped, 1_000) == 1
        assert spool.engine.expire(10, jumped) == 0
        assert spool.only(id).status == "queued"
        late = jumped + HOUR
        assert self.keep(spool, late, HOUR + 1_000) == 0
        assert spool.engine.expire(10, late) == 1
        spool.sound()

    def test_nothing_expires_while_a_jump_is_half_shifted(self, spool: Spool) -> None:
        ids = [spool.send(f"a@d{n}.example", expires_ms=T0 + HOUR) for n in range(5)]
        self.keep(spool, T0, 0)
        jumped = T0 + DAY
        assert self.keep(spool, jumped, 0, most=2) == 2
        assert spool.engine.expire(10, jumped) == 0
        assert self.keep(spool, jumped, 0, most=2) == 2
        assert spool.engine.expire(10, jumped) == 0
        assert self.keep(spool, jumped, 0, most=2) == 1
        assert self.keep(spool, jumped, 0, most=2) == 0
        assert spool.engine.expire(10, jumped) == 0
        assert spool.engine.expire(10, jumped + HOUR) == 5
        assert all(s.completed for s in spool.client.statuses(ids).values())
        spool.sound()

    @pytest.mark.parametrize("piece", [1, 99])
    def test_after_a_jump_back_retries_do_not_wait_for_the_old_time(
        self, spool: Spool, piece: int
    ) -> None:
        self.keep(spool, T0, 0)
        ids = []
        for number in range(3):
            id, lane, (row,) = spool.sending(f"a@d{number}.example", expires_ms=T0 + 9 * DAY)
            spool.settle(lane, row, "deferred", due_ms=T0 + HOUR)
            spool.engine.release([lane.token], T0)
            ids.append(id)
        back = T0 - 2 * DAY
        while self.keep(spool, back, 1_000, most=piece):
            spool.lease(now=back, want=9)  # a look that finds nothing must not hide what follows
        spool.sound()
        for id in ids:
            due = spool.only(id).next_attempt_at
            assert due is not None
            assert back <= due.timestamp() * 1000 <= back + HOUR
        soon = back + HOUR
        for one in spool.engine.due_domains(spool.worker, 9, soon):
            spool.engine.put_routes(spool.worker, [spool.answer(one.name, now=soon)], soon)
        assert len(spool.lease(now=soon, want=9)) == 3
        assert spool.engine.expire(10, T0 + 7 * DAY + 1_000) == 3, "ages are monotonic"
        spool.sound()

    def test_after_a_jump_back_the_router_does_not_wait_for_the_old_time_either(
        self, spool: Spool
    ) -> None:
        self.keep(spool, T0, 0)
        id, lane, (row,) = spool.sending("a@example.org", expires_ms=T0 + 9 * DAY)
        spool.settle(lane, row, "deferred", due_ms=T0 + HOUR)
        assert spool.claim(lane, now=T0 + 2 * HOUR) == [], "its route is too old"
        self.keep(spool, T0 - DAY, 0)
        spool.sound()
        spool.route(now=T0 - DAY + HOUR)
        assert len(spool.claim(lane, now=T0 - DAY + HOUR)) == 1
        assert spool.only(id).status == "deferred"

    def test_after_a_long_night_late_mail_gets_one_more_attempt(self, spool: Spool) -> None:
        self.keep(spool, T0, 0)
        id, lane, (row,) = spool.sending("a@example.org", expires_ms=T0 + HOUR)
        spool.settle(lane, row, "deferred", due_ms=T0 + 20 * DAY)
        spool.engine.release([lane.token], T0)
        morning = T0 + 3 * DAY
        assert self.keep(spool, morning, 50, boot="next") == 1
        assert spool.engine.expire(10, morning) == 0
        lanes = spool.lease(now=morning)
        assert len(lanes) == 1
        assert spool.claim(lanes[0], now=morning) == [], "its route is old, too"
        spool.route(now=morning)
        assert len(spool.claim(lanes[0], now=morning)) == 1
        spool.engine.release([lanes[0].token], morning)
        assert spool.engine.expire(10, morning + HOUR) == 1
        assert spool.only(id).reason is Reason.EXPIRED
        spool.sound()

    # --- mail that came by another clock ---

    @pytest.mark.parametrize("boot", ["b", "next", ""])
    @pytest.mark.parametrize("looked", [True, False])
    def test_mail_taken_by_a_clock_ahead_is_due_when_the_clock_is_put_right(
        self, spool: Spool, boot: str, looked: bool
    ) -> None:
        ahead = T0 + 10 * DAY
        if looked:
            self.keep(spool, ahead - HOUR, 0)
        id = spool.send("a@example.org", created_ms=ahead, send_ms=ahead)
        while self.keep(spool, T0, HOUR, boot=boot):
            pass
        assert times(spool, id) == (T0, T0, T0 + 5 * DAY), "as if it had come now"
        spool.route(now=T0)
        assert len(spool.claim(spool.lane(now=T0), now=T0)) == 1
        assert spool.engine.expire(10, T0) == 0
        spool.sound()

    @pytest.mark.parametrize("boot", ["b", "next", ""])
    def test_mail_taken_after_the_step_back_and_before_the_look_is_not_shifted(
        self, spool: Spool, boot: str
    ) -> None:
        self.keep(spool, T0 + 10 * DAY, 0)
        id = spool.send("a@example.org", created_ms=T0 - 100, send_ms=T0 - 100)
        self.keep(spool, T0, 1_000, boot=boot)
        assert times(spool, id) == (T0 - 100, T0 - 100, T0 - 100 + 5 * DAY)

    def test_mail_taken_after_a_step_forward_and_before_the_look_lives_no_year(
        self, spool: Spool
    ) -> None:
        self.keep(spool, T0, 0)
        old = spool.send("a@example.org", created_ms=T0 + 5, send_ms=T0 + 5)
        late = T0 + YEAR
        new = spool.send("b@example.org", created_ms=late - 200, send_ms=late - 200)
        self.keep(spool, late, 1_000)
        assert times(spool, new)[2] == late - 200 + 5 * DAY
        left = times(spool, old)[2] - late
        assert 5 * DAY - 2_000 < left <= 5 * DAY

    def test_what_went_forward_with_the_clock_goes_back_with_it(self, spool: Spool) -> None:
        self.keep(spool, T0, 0)
        id = spool.send("a@example.org", expires_ms=T0 + DAY)
        self.keep(spool, T0 + YEAR, 1_000)
        assert times(spool, id)[2] == T0 + DAY + YEAR - 1_000
        self.keep(spool, T0 + 2_000, 2_000)
        assert times(spool, id)[2] == T0 + DAY

    @pytest.mark.parametrize("jump", [10 * DAY, -10 * DAY, 40 * DAY, -40 * DAY])
    @pytest.mark.parametrize("boot", ["b", "next"])
    def test_a_send_time_of_the_users_own_stays_and_expiry_stays_behind_it(
        self, spool: Spool, jump: int, boot: str
    ) -> None:
        send = T0 + 30 * DAY
        id = spool.send("a@example.org", send_ms=send)
        self.keep(spool, T0, 0)
        self.keep(spool, T0 + jump, 1_000, boot=boot)
        sent, due, expires = times(spool, id)
        assert (sent, due) == (send, send)
        assert expires >= send + 5 * DAY if boot == "b" else expires > send
        assert spool.engine.expire(10, max(send, T0 + jump)) == 0
        spool.sound()

    def test_a_send_time_that_the_jump_passed_over_leaves_the_whole_life_after_it(
        self, spool: Spool
    ) -> None:
        id = spool.send("a@example.org", send_ms=T0 + 2 * DAY)
        self.keep(spool, T0, 0)
        self.keep(spool, T0 + YEAR, 0)
        assert times(spool, id)[2] == T0 + YEAR + 5 * DAY

    def test_a_step_back_ends_no_route_and_leaves_no_success_in_the_future(
        self, spool: Spool
    ) -> None:
        ahead = T0 + 10 * DAY
        self.keep(spool, ahead, 0)
        spool.send("a@example.org", created_ms=ahead, send_ms=ahead)
        spool.route(now=ahead, ttl=2 * HOUR)
        lane = spool.lane(now=ahead)
        (row,) = spool.claim(lane, now=ahead)
        spool.open(lane, [row], now=ahead)
        spool.settle(lane, row, "delivered", now=ahead)
        self.keep(spool, T0, 1_000)
        assert spool.rows("SELECT expires_ms FROM domains") == [(T0 + 2 * HOUR - 1_000,)]
        for failures in (1, 2):
            now = T0 + failures * HOUR
            assert spool.suspend(lane, now + 10, since=now, now=now) == failures

    def test_an_even_clock_is_written_twice_a_minute_and_no_more(self, spool: Spool) -> None:
        """A step is measured against the last look that was written."""
        self.keep(spool, T0, 0)
        revision = spool.client.revision()
        for step in range(1, 100):
            self.keep(spool, T0 + step * 250, step * 250)
        assert spool.client.revision() == revision
        self.keep(spool, T0 + 30_000, 30_000)
        assert spool.client.revision() != revision

    def test_history_is_not_purged_within_an_hour_of_a_jump(self, spool: Spool) -> None:
        spool.send("a@example.org", idempotency=("key", b"1"))
        self.keep(spool, T0, 0)
        late = T0 + YEAR
        self.keep(spool, late, 1_000)
        assert spool.engine.purge(KEEP, 100, late + HOUR - 1) == 0
        assert spool.engine.purge(KEEP, 100, late + HOUR) > 0

    def test_what_is_written_by_the_old_clock_after_a_jump_back_does_not_wait_for_it(
        self, spool: Spool
    ) -> None:
        """A worker read the clock, the clock went back, and only then the lock was free."""
        self.keep(spool, T0, 0)
        late, still = spool.send("a@example.org"), spool.send("b@example.org")
        far = spool.send("c@example.org", send_ms=T0 + DAY)
        spool.route()
        lane = spool.lane()
        rows = {row.message_id: row for row in spool.claim(lane)}
        spool.open(lane, list(rows.values()))
        back = T0 - 10 * HOUR
        self.keep(spool, back, 1_000)
        spool.settle(lane, rows[late], "deferred", due_ms=T0 + 60_000)
        spool.settle(lane, rows[still], "queued", due_ms=T0)
        spool.engine.give_back(spool.worker, {"example.org": T0 + 60_000})
        assert spool.only(late).next_attempt_at == from_ms(T0 + 60_000)
        now = back + 16_000
        self.keep(spool, now, 17_000)
        assert spool.only(late).next_attempt_at == from_ms(back - 1_000 + 60_000), "its own wait"
        assert spool.only(still).next_attempt_at == from_ms(now)
        assert spool.only(far).next_attempt_at == from_ms(T0 + DAY)
        assert (spool.engine.next_due_ms(now) or now + 1) <= now
        spool.sound()
        revision = spool.client.revision()
        self.keep(spool, now + 250, 17_250)
        assert spool.client.revision() == revision, "once is enough"

    # --- a client with a clock of its own ---

    @pytest.mark.parametrize("off", [-2 * HOUR, -YEAR, -20 * YEAR, 2 * HOUR, YEAR, 20 * YEAR])
    @pytest.mark.parametrize("boot", ["b", "next", ""])
    def test_mail_of_a_client_whose_clock_is_wrong_counts_from_the_next_look(
        self, spool: Spool, off: int, boot: str
    ) -> None:
        self.keep(spool, T0, 0)
        old = spool.send("old@example.org", created_ms=T0 - 5 * DAY, send_ms=T0 - 5 * DAY)
        self.keep(spool, T0, 0)
        stamp = T0 + off
        id = spool.send("a@example.org", created_ms=stamp, send_ms=stamp)
        right = spool.send("b@example.org")
        assert spool.engine.expire(10, T0 + 1) == 0, "before any look"
        assert self.keep(spool, T0 + 10, 10, boot=boot) > 0
        assert times(spool, id)[2] == T0 + 10 + 5 * DAY
        assert times(spool, right) == (T0, T0, T0 + 5 * DAY)
        if off > 0:
            assert times(spool, id)[:2] == (T0 + 10, T0 + 10)
        spool.route(now=T0 + 10)
        assert {row.message_id for row in spool.claim(spool.lane(now=T0 + 10), now=T0 + 10)} == {
            old, id, right
        }  # fmt: skip
        spool.sound()

    def test_strays_stop_no_purge_and_leave_no_row_behind(self, spool: Spool) -> None:
        self.keep(spool, T0, 0)
        for step in range(1, 6):
            spool.send(created_ms=T0 + YEAR, send_ms=T0 + YEAR)
            assert self.keep(spool, T0 + step, step) == 1
            assert self.keep(spool, T0 + step, step) == 0
        spool.send("a@example.org", idempotency=("key", b"1"))
        assert spool.engine.purge(KEEP, 100, T0 + DAY) > 0

    def test_a_send_time_named_by_a_client_with_a_wrong_clock_stays(self, spool: Spool) -> None:
        self.keep(spool, T0, 0)
        send = T0 + 3 * DAY
        for off in (-YEAR, DAY):
            id = spool.send("a@example.org", created_ms=T0 + off, send_ms=send)
            self.keep(spool, T0 + 10, 10)
            assert times(spool, id)[:2] == (send, send)
            assert times(spool, id)[2] >= send + 5 * DAY
        spool.sound()
