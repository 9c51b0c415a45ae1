"""Conformance of upkeep: workers, lapse, expiry, checkpoints."""

from __future__ import annotations

import pytest

from mailstrom.storage.base import Lapsed
from mailstrom.types import OnDoubt, Reason
from tests.storage.spool import DAY, HOUR, T0, Spool, session_row


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
