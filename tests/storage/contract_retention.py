"""Conformance of retention: what goes, when, and never more at once than asked for."""

from __future__ import annotations

from mailstrom.storage.base import Retention
from mailstrom.types import RouteResult
from tests.storage.spool import DAY, HOUR, T0, Spool, change, session_row

KEEP = Retention(bodies_ms=DAY, attempts_ms=2 * DAY, events_ms=3 * DAY)


class RetentionContract:
    """What ``purge`` promises."""

    def finished(self, spool: Spool, word: str = "delivered") -> str:
        id, lane, (row,) = spool.sending("a@example.org", tags=("x",))
        spool.settle(lane, row, word, now=T0)
        spool.engine.release([lane.token], T0)
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

    def test_a_message_of_many_recipients_goes_piece_by_piece(self, spool: Spool) -> None:
        id, lane, rows = spool.sending(*(f"{n}@example.org" for n in range(7)))
        for row in rows:
            spool.settle(lane, row, "delivered", now=T0)
        spool.engine.release([lane.token], T0)
        spool.engine.purge(KEEP, 100, T0 + DAY)
        left = [7]
        while spool.client.statuses([id]):
            assert spool.engine.purge(KEEP, 3, T0 + 2 * DAY) > 0
            left += [len(one.recipients) for one in spool.client.statuses([id]).values()]
            spool.sound()
        assert left == [7, 4, 1]
        for view in ("messages", "recipients", "attempts"):
            assert spool.rows(f"SELECT count(*) FROM {view}") == [(0,)]

    def test_what_was_purged_is_not_reopened(self, spool: Spool) -> None:
        id = self.finished(spool, "failed")
        spool.engine.purge(KEEP, 10, T0 + DAY)
        assert change(spool.client, "retry", [id], None, T0 + DAY) == 0
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

    def test_everything_goes_piece_by_piece(self, spool: Spool) -> None:
        spool.send(*(f"a@d{n}.example" for n in range(7)), idempotency=("k1", b"1"))
        spool.send("b@d1.example", idempotency=("k2", b"2"))
        for due in spool.engine.due_domains(spool.worker, 99, T0):
            spool.engine.put_routes(spool.worker, [spool.answer(due.name)], T0)
        for id in spool.client.query("SELECT id FROM messages", (), 10.0):
            change(spool.client, "cancel", [str(id[0])], None, T0)
        done = []
        while count := spool.engine.purge(KEEP, 2, T0 + 500 * DAY):
            done.append(count)
            assert len(done) < 500
        assert max(done) <= 2 * 9, "at most two of each kind, and one message whole"
        while spool.engine.purge(KEEP, 2, T0 + 531 * DAY):
            pass
        for view in ("messages", "recipients", "events", "hourly_stats", "domains", "destinations"):
            assert spool.rows(f"SELECT count(*) FROM {view}") == [(0,)], view
        spool.sound()

    def test_hourly_sums_stay_400_days(self, spool: Spool) -> None:
        self.finished(spool)
        hour = T0 // HOUR * HOUR
        while spool.engine.purge(KEEP, 100, hour + 400 * DAY - 1):
            pass
        assert spool.rows("SELECT recipients FROM hourly_stats") == [(1,)]
        assert spool.engine.purge(KEEP, 100, hour + 400 * DAY) == 1
        assert spool.rows("SELECT count(*) FROM hourly_stats") == [(0,)]

    def test_a_route_that_is_forgotten_is_asked_for_again(self, spool: Spool) -> None:
        """Mail with a far send time may outlive the route it was stamped with."""
        spool.send("a@example.org")
        spool.route(ttl=DAY)
        late = T0 + 60 * DAY
        id = spool.send("b@example.org", send_ms=late, created_ms=T0 + 1)
        lane = spool.lane()
        (row,) = spool.claim(lane)
        spool.open(lane, [row])
        spool.settle(lane, row, "delivered", now=T0)
        spool.engine.release([lane.token], T0)
        while spool.engine.purge(KEEP, 100, late - DAY):
            pass
        assert spool.rows("SELECT count(*) FROM domains") == [(0,)]
        assert spool.rows("SELECT count(*) FROM destinations") == [(1,)], "mail waits there"
        spool.sound()
        assert spool.claim(spool.lane(now=late), now=late) == []
        spool.route(now=late)
        assert [r.message_id for r in spool.claim(spool.lane(now=late), now=late)] == [id]
        spool.sound()

    def test_sites_are_forgotten_when_nothing_leads_there(self, spool: Spool) -> None:
        self.finished(spool)
        while spool.engine.purge(KEEP, 100, T0 + 29 * DAY):
            pass
        assert spool.rows("SELECT count(*) FROM domains") == [(1,)]
        while spool.engine.purge(KEEP, 100, T0 + 31 * DAY):
            pass
        assert spool.rows("SELECT count(*) FROM domains") == [(0,)]
        assert spool.rows("SELECT count(*) FROM destinations") == [(1,)], "it led there till now"
        while spool.engine.purge(KEEP, 100, T0 + 62 * DAY):
            pass
        assert spool.rows("SELECT count(*) FROM destinations") == [(0,)]

    def test_events_of_a_clock_ahead_do_not_stand_in_the_way(self, spool: Spool) -> None:
        spool.send("a@example.org", created_ms=T0 + 700 * DAY, send_ms=T0 + 700 * DAY)
        spool.send("b@example.org")
        for _ in range(3):
            spool.engine.purge(KEEP, 1, T0 + 4 * DAY)
        assert spool.rows("SELECT count(*) FROM events WHERE type = 'message.accepted'") == [(0,)]

    def test_a_refused_domain_is_forgotten_too(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route(result=RouteResult.TEMPORARY)
        spool.engine.purge(KEEP, 100, T0 + 31 * DAY)
        assert spool.rows("SELECT count(*) FROM domains") == [(1,)], "it is still asked for"
        spool.sound()
