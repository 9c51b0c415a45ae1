"""Conformance of upkeep: workers, lapse, expiry, the clock, retention, checkpoints."""

from __future__ import annotations

import pytest

from mailstrom.storage.base import Lapsed, Retention
from mailstrom.types import OnDoubt, Reason
from tests.storage.spool import DAY, HOUR, T0, Spool, session_row

KEEP = Retention(bodies_ms=DAY, attempts_ms=2 * DAY, events_ms=3 * DAY)


class UpkeepContract:
    """What the janitor's verbs promise."""

    # --- workers ---

    def test_workers_live_until_they_retire_or_lapse(self, spool: Spool) -> None:
        janitor = spool.register(kind="janitor", lock="j.lock", pid=5, boot="b", restarts=2)
        lost = spool.register()
        assert [w.seq for w in spool.engine.workers()] == [spool.worker, janitor, lost]
        row = spool.engine.workers()[1]
        assert (row.kind, row.pid, row.host, row.state, row.boot, row.lock) == (
            "janitor", 5, "machine", "starting", "b", "j.lock"
        )  # fmt: skip
        assert spool.engine.live_workers() == 2, "delivery workers only"
        spool.engine.beat(janitor, state="ready", sessions=3, now_ms=T0 + 50)
        assert spool.rows("SELECT state, sessions, heartbeat_ms, restarts FROM workers"
                          " WHERE kind = 'janitor'") == [("ready", 3, T0 + 50, 2)]  # fmt: skip
        spool.engine.lapse(lost, boot="boot-1", now_ms=T0)
        spool.engine.retire(janitor, state="stopped", now_ms=T0)
        spool.engine.beat(lost, state="ready", sessions=1, now_ms=T0 + 60)
        assert [w.seq for w in spool.engine.workers()] == [spool.worker]
        assert [w.state for w in spool.engine.workers(live=False)] == [
            "starting", "stopped", "lost"
        ]  # fmt: skip
        spool.engine.retire(spool.worker, state="stopped", now_ms=T0)
        assert spool.engine.live_workers() == 1, "never a division by nobody"

    def test_what_the_engine_tells_is_there_for_views(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route()
        for limit in (5, 7):
            spool.engine.tell("lanes_limit", limit)
            assert spool.rows("SELECT lanes_limit FROM destinations") == [(limit,)]

    # --- lapse ---

    def test_a_dead_workers_claims_are_due_and_its_open_mail_is_in_doubt(
        self, spool: Spool
    ) -> None:
        id, lane, rows = spool.sending("a@example.org", "b@example.org")
        waiting = spool.send("c@example.org")
        assert len(spool.claim(lane)) == 1
        spool.exchange(sessions=[session_row("s-1", lane)])
        assert spool.settle(lane, rows[0], "delivered")
        lapsed = spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0 + 5)
        assert lapsed == Lapsed(spool.worker, 1, 1, 1)
        assert spool.status(id) == {"a@example.org": "delivered", "b@example.org": "deferred"}
        assert (spool.only(waiting).status, spool.only(waiting).in_doubt) == ("queued", False)
        assert spool.rows("SELECT ended_ms FROM sessions") == [(T0 + 5,)]
        other = spool.register()
        again = spool.lane(now=T0 + 5, worker=other)
        assert len(spool.claim(again, now=T0 + 5)) == 2, "at once, by whoever lives"
        spool.sound()

    def test_lapsing_twice_or_a_stranger_takes_nothing(self, spool: Spool) -> None:
        spool.sending("a@example.org")
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        count = spool.rows("SELECT count(*) FROM events")
        assert spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)[1:] == (0, 0, 0)
        assert spool.engine.lapse(999, boot="boot-1", now_ms=T0)[1:] == (0, 0, 0)
        assert spool.rows("SELECT count(*) FROM events") == count

    @pytest.mark.parametrize(
        ("on_doubt", "status"), [(OnDoubt.RETRY, "deferred"), (OnDoubt.HOLD, "held")]
    )
    def test_after_a_reboot_even_unopened_claims_are_in_doubt(
        self, spool: Spool, on_doubt: OnDoubt, status: str
    ) -> None:
        id = spool.send("a@example.org")
        spool.route()
        spool.claim(spool.lane())
        lapsed = spool.engine.lapse(spool.worker, boot="boot-2", now_ms=T0, on_doubt=on_doubt)
        assert lapsed == Lapsed(spool.worker, 1, 0, 1)
        one = spool.only(id)
        assert (one.status, one.reason, one.in_doubt) == (status, Reason.IN_DOUBT, True)
        spool.sound()

    def test_retiring_with_lanes_leased_leaves_no_row_behind(self, spool: Spool) -> None:
        _, lane, _ = spool.sending("a@example.org")
        spool.send("b@example.org")
        assert len(spool.claim(lane)) == 1
        spool.engine.retire(spool.worker, state="stopped", now_ms=T0)
        spool.sound()
        other = spool.register()
        assert spool.lease(worker=other)

    # --- expiry ---

    def test_expiry_holds_in_every_state_off_the_wire(self, spool: Spool) -> None:
        end = T0 + HOUR
        words = ("queued", "claimed", "deferred", "held", "sending", "delivered", "failed")
        id, lane, rows = spool.sending(*(f"{w}@example.org" for w in words), expires_ms=end)
        for row in rows:
            word = row.address.partition("@")[0]
            if word == "claimed":
                spool.settle(lane, row, "claimed", attempt=None)
            elif word != "sending":
                spool.settle(lane, row, word)
        unrouted = spool.send("x@unrouted.example", expires_ms=end)
        assert spool.engine.expire(100, end - 1) == 0
        assert spool.engine.expire(3, end) + spool.engine.expire(100, end) == 5
        found = spool.client.statuses([id, unrouted])
        status = {
            address.partition("@")[0]: (str(r.status), r.reason)
            for one in found.values()
            for address, r in one.recipients.items()
        }
        assert status == {
            "queued": ("failed", Reason.EXPIRED),
            "claimed": ("failed", Reason.EXPIRED),
            "deferred": ("failed", Reason.EXPIRED),
            "held": ("failed", Reason.IN_DOUBT),
            "sending": ("sending", None),
            "delivered": ("delivered", None),
            "failed": ("failed", Reason.BOUNCED),
            "x": ("failed", Reason.EXPIRED),
        }
        one = found[id].recipients["deferred@example.org"]
        assert one.reply_text == "try again later", "the last reply stays"
        sending = next(row for row in rows if row.address.startswith("sending"))
        spool.settle(lane, sending, "deferred", due_ms=end + DAY)
        assert spool.engine.expire(100, end) == 1
        assert spool.client.statuses([id])[id].completed
        assert spool.engine.expire(100, end) == 0
        spool.sound()

    # --- clock ---

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
            spool.engine.release(lane.token, T0)
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
            spool.engine.put_route(spool.worker, spool.answer(one.name, now=soon), soon)
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
        spool.engine.release(lane.token, T0)
        morning = T0 + 3 * DAY
        assert self.keep(spool, morning, 50, boot="next") == 1
        assert spool.engine.expire(10, morning) == 0
        lanes = spool.lease(now=morning)
        assert len(lanes) == 1
        assert spool.claim(lanes[0], now=morning) == [], "its route is old, too"
        spool.route(now=morning)
        assert len(spool.claim(lanes[0], now=morning)) == 1
        spool.engine.release(lanes[0].token, morning)
        assert spool.engine.expire(10, morning + HOUR) == 1
        assert spool.only(id).reason is Reason.EXPIRED
        spool.sound()

    # --- retention ---

    def finished(self, spool: Spool, word: str = "delivered") -> str:
        id, lane, (row,) = spool.sending("a@example.org", tags=("x",))
        spool.settle(lane, row, word, now=T0)
        spool.engine.release(lane.token, T0)
        return id

    def test_retention_is_the_spools_own(self, spool: Spool) -> None:
        assert spool.engine.retention() == Retention()
        for kind, days in (("bodies", 1), ("attempts", 2), ("events", 3)):
            spool.engine.tell(f"retention_{kind}_ms", days * DAY)
        assert spool.engine.retention() == KEEP

    def test_bodies_go_first_then_the_message_with_everything_about_it(self, spool: Spool) -> None:
        id = self.finished(spool)
        assert spool.engine.purge(KEEP, 10, T0 + DAY - 1) == 0
        assert spool.client.content(id) is not None
        assert spool.engine.purge(KEEP, 10, T0 + DAY) > 0
        assert spool.client.content(id) is None
        assert spool.status(id) == {"a@example.org": "delivered"}
        spool.sound()
        assert spool.engine.purge(KEEP, 10, T0 + 2 * DAY) > 0
        assert spool.client.statuses([id]) == {}
        for view in ("messages", "recipients", "attempts", "tags"):
            assert spool.rows(f"SELECT count(*) FROM {view}") == [(0,)]
        spool.engine.purge(KEEP, 100, T0 + 3 * DAY)
        assert spool.rows("SELECT count(*) FROM events") == [(0,)]
        assert spool.engine.purge(KEEP, 100, T0 + 3 * DAY) == 0
        spool.sound()

    def test_unfinished_mail_is_never_purged(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org", content=b"x" * 700_000)
        spool.settle(lane, row, "held")
        spool.engine.purge(KEEP, 100, T0 + 100 * DAY)
        assert spool.client.content(id) == b"x" * 700_000
        spool.sound()

    def test_purge_is_bounded(self, spool: Spool) -> None:
        ids = [self.finished(spool) for _ in range(3)]
        assert spool.engine.purge(KEEP, 2, T0 + DAY) == 2
        assert sum(spool.client.content(id) is None for id in ids) == 2

    def test_what_was_purged_is_not_reopened(self, spool: Spool) -> None:
        id = self.finished(spool, "failed")
        spool.engine.purge(KEEP, 10, T0 + DAY)
        assert spool.client.retry([id], None, T0 + DAY) == 0
        assert spool.only(id).status == "failed"

    def test_closed_sessions_and_ended_workers_go_with_time(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route()
        lane = spool.lane()
        gone = spool.register()
        spool.engine.retire(gone, state="stopped", now_ms=T0)
        ended = session_row("s-1", lane, ended_ms=T0 + 1, end_cause="quit")
        spool.exchange(sessions=[ended, session_row("s-2", lane)])
        spool.engine.purge(KEEP, 100, T0 + 4 * DAY)
        assert spool.rows("SELECT id FROM sessions") == [("s-2",)]
        assert spool.rows("SELECT id FROM workers") == [(spool.worker,)]

    # --- the store itself ---

    def test_a_checkpoint_moves_what_was_written(self, spool: Spool) -> None:
        spool.send(content=b"x" * 200_000)
        found = spool.engine.checkpoint()
        assert found.moved == found.frames
        spool.sound()

    def test_sync_on_a_healthy_spool_just_works(self, spool: Spool) -> None:
        spool.send()
        spool.engine.sync()
        assert not spool.engine.poisoned
        assert spool.engine.repair() is True
        assert not spool.engine.poisoned
        spool.sound()
