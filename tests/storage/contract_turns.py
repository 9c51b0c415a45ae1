"""Conformance of turns: shares of priorities, and lanes beyond a limit that was lowered."""

from __future__ import annotations

from collections import Counter

from mailstrom.storage.base import ClaimRequest
from tests.storage.spool import DAY, Spool


class TurnContract:
    """What claims promise to those who would be starved, and to a lowered limit."""

    def flood(self, spool: Spool, count: int) -> None:
        for priority in (0, 1, 2):
            spool.send(*(f"p{priority}-{n}@example.org" for n in range(count)), priority=priority)
            for n in range(count):
                spool.send(f"one-{n}@example.org", priority=priority)
        while spool.route(ttl=DAY):
            pass

    def test_low_mail_keeps_a_fifth_of_the_claims_and_normal_mail_is_not_starved(
        self, spool: Spool
    ) -> None:
        self.flood(spool, 50)
        lane = spool.lane()
        taken: Counter[int] = Counter()
        for _ in range(40):
            taken.update({row.priority for row in spool.claim(lane, limit=1)})
        assert taken[2] >= 8
        assert taken[1] >= 4
        assert taken[0] >= 24

    def test_short_lived_lanes_share_the_turns(self, spool: Spool) -> None:
        self.flood(spool, 30)
        taken: Counter[int] = Counter()
        for _ in range(20):
            lane = spool.lane()
            taken.update({row.priority for row in spool.claim(lane, limit=1)})
            for row in spool.claim(lane, limit=0):
                spool.settle(lane, row, "failed")
            spool.engine.release([lane.token], 1 << 50)
        assert taken[2] >= 4

    def test_a_lane_beyond_the_limit_gets_nothing_and_is_told_to_end(self, spool: Spool) -> None:
        self.flood(spool, 30)
        canary = spool.lane()
        (row, *_) = spool.claim(canary, limit=1)
        spool.open(canary, [row])
        spool.settle(canary, row, "delivered")
        lanes = [canary, *spool.lease(want=5)]
        assert len(lanes) == 6
        requests = [
            ClaimRequest(lane=lane.token, limit=1, max_bytes=1 << 20, limit_lanes=4)
            for lane in lanes
        ]
        done = spool.exchange(claims=requests)
        assert done.ended == {lane.token for lane in lanes[4:]}
        assert {row.lane for row in done.claimed} == {lane.token for lane in lanes[:4]}
        spool.engine.release([lanes[0].token], 0)
        again = spool.exchange(claims=[requests[4]])
        assert again.ended == frozenset(), "one older lane ended: it is within the limit now"
        assert again.claimed

    def test_a_lane_beyond_its_worker_s_share_is_told_to_end(self, spool: Spool) -> None:
        self.flood(spool, 30)
        canary = spool.lane()
        (row, *_) = spool.claim(canary, limit=1)
        spool.open(canary, [row])
        spool.settle(canary, row, "delivered")
        lanes = [canary, *spool.lease(want=3)]
        stranger = spool.lane(worker=spool.register(lock="another.lock"))
        requests = [
            ClaimRequest(lane=lane.token, limit=1, max_bytes=1 << 20, limit_lanes=9, share=2)
            for lane in (*lanes, stranger)
        ]
        done = spool.exchange(claims=requests)
        assert done.ended == {lane.token for lane in lanes[2:]}, "others' lanes do not count"
        assert {row.lane for row in done.claimed} == {lane.token for lane in (*lanes[:2], stranger)}

    def test_a_lane_that_is_gone_is_told_to_end_too(self, spool: Spool) -> None:
        self.flood(spool, 2)
        lane = spool.lane()
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=0)
        request = ClaimRequest(lane=lane.token, limit=1, max_bytes=1 << 20)
        assert spool.exchange(claims=[request]).ended == {lane.token}
