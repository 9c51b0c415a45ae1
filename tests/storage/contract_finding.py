"""Conformance of asking: find, recent, events, stats, suppressions, revision."""

from __future__ import annotations

import threading

import pytest

from mailstrom.errors import MessageNotFound
from mailstrom.storage.base import Refusal
from mailstrom.storage.client import ClientStore, Selection
from mailstrom.types import Reason, RouteResult, Status
from tests.storage.spool import DAY, HOUR, T0, Spool, change


def _found(spool: Spool, limit: int = 100, **fields: object) -> list[str]:
    selection = Selection(**fields)  # type: ignore[arg-type]
    return [one.id for one in spool.client.find(selection, limit=limit)]


class FindingContract:
    """What is found, in which order, in which pages."""

    def test_find_gives_whole_messages_newest_first_in_stable_pages(self, spool: Spool) -> None:
        ids = [spool.send(f"a{n}@example.org", f"b{n}@example.org") for n in range(5)]
        first = spool.client.find(Selection(), limit=2)
        assert [one.id for one in first] == [ids[4], ids[3]]
        assert {one.id: one for one in first} == spool.client.statuses([ids[4], ids[3]])
        spool.send()
        rest = spool.client.find(Selection(), limit=9, after=ids[3])
        assert [one.id for one in rest] == [ids[2], ids[1], ids[0]]
        assert spool.client.find(Selection(), limit=9, after=ids[0]) == []
        assert spool.client.find(Selection(), limit=0) == []

    def test_find_after_an_unknown_message_says_so(self, spool: Spool) -> None:
        with pytest.raises(MessageNotFound, match="gone"):
            spool.client.find(Selection(), limit=9, after="gone")

    def test_each_field_restricts_and_its_values_widen(self, spool: Spool) -> None:
        one = spool.send("a@one.example", sender="x@example.com", tags=("t", "u"), stream="bulk")
        two = spool.send("b@two.example", sender="", tags=("u",), created_ms=T0 + HOUR)
        three = spool.send("a@one.example", "c@three.example", created_ms=T0 + 2 * HOUR)
        cases: list[tuple[dict[str, object], list[str]]] = [
            ({}, [three, two, one]),
            ({"ids": (one, three, "unknown")}, [three, one]),
            ({"domains": ("two.example", "three.example")}, [three, two]),
            ({"recipients": ("a@one.example",)}, [three, one]),
            ({"senders": ("",)}, [two]),
            ({"senders": ("", "x@example.com")}, [two, one]),
            ({"tags": ("t",)}, [one]),
            ({"tags": ("t", "u")}, [two, one]),
            ({"streams": ("bulk", "none")}, [one]),
            ({"since_ms": T0 + HOUR}, [three, two]),
            ({"until_ms": T0 + HOUR}, [one]),
            ({"since_ms": T0 + HOUR, "until_ms": T0 + 2 * HOUR}, [two]),
            ({"tags": ("u",), "senders": ("",)}, [two]),
            ({"domains": ("one.example",), "recipients": ("c@three.example",)}, []),
            ({"ids": ("unknown",)}, []),
        ]
        for fields, wanted in cases:
            assert _found(spool, **fields) == wanted, fields
            targets = spool.client.targets(
                Selection(**fields),  # type: ignore[arg-type]
                T0,
                change=None,
                limit=100,
            )
            assert {target.id for target in targets} == set(wanted), fields
        of_one = Selection(domains=("one.example",))
        found = spool.client.targets(of_one, T0, change=None, limit=9)
        assert [target.address for target in found] == ["a@one.example"] * 2

    def test_statuses_and_reasons_are_those_of_the_view_for_the_same_recipient(
        self, spool: Spool
    ) -> None:
        words = ("sending", "deferred", "held", "delivered", "failed")
        id, lane, rows = spool.sending(*(f"{word}@example.org" for word in words))
        for row in rows:
            word = row.address.partition("@")[0]
            if word != "sending":
                spool.settle(lane, row, word)
        queued = spool.send("queued@example.net")
        mixed, lane, rows = spool.sending("good@example.edu", "bad@example.edu")
        for row, word in zip(rows, ("delivered", "failed"), strict=True):
            spool.settle(lane, row, word)
        for status, reason, address in spool.rows("SELECT status, reason, address FROM recipients"):
            at = spool.client.targets(Selection(statuses=(str(status),)), T0, change=None, limit=9)
            assert address in {target.address for target in at}
            if reason is not None:
                by = spool.client.targets(
                    Selection(reasons=(str(reason),)), T0, change=None, limit=9
                )
                assert address in {target.address for target in by}
        assert _found(spool, statuses=("queued",)) == [queued]
        for word in ("sending", "deferred", "held"):
            assert _found(spool, statuses=(word,)) == [id]
        assert _found(spool, statuses=("delivered",)) == [mixed, id]
        assert _found(spool, statuses=("partial",)) == [mixed]
        assert _found(spool, statuses=("partial", "queued")) == [mixed, queued]
        assert _found(spool, statuses=("delivered",), reasons=("bounced",)) == []
        assert _found(spool, statuses=("failed",), reasons=("bounced",)) == [mixed, id]
        partial = spool.client.targets(Selection(statuses=("partial",)), T0, change=None, limit=9)
        assert {t.address for t in partial} == {"good@example.edu", "bad@example.edu"}

    def test_what_waits_at_a_suspended_site_is_found_as_deferred(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route()
        far = T0 * 2
        spool.suspend(spool.lane(), far)
        assert spool.status(id) == {"a@example.org": "deferred"}
        assert _found(spool, statuses=("deferred",)) == [id]
        assert _found(spool, reasons=("connect",)) == [id]
        assert _found(spool, statuses=("queued",)) == []

    # --- recent ---

    def test_recent_tells_completed_ones_once_and_open_ones_each_time(self, spool: Spool) -> None:
        done, lane, (row,) = spool.sending("a@example.org")
        first = spool.send("b@example.net")
        second = spool.send("c@example.net")
        assert [one.id for one in spool.client.recent(9)] == [done, first, second]
        assert spool.settle(lane, row, "delivered")
        change(spool.client, "cancel", [second], None, T0)
        told = spool.client.recent(9)
        assert [(one.id, one.completed) for one in told] == [
            (done, True), (second, True), (first, False)
        ]  # fmt: skip
        assert told[0] == spool.client.statuses([done])[done]
        other = spool.stores.client()
        assert [one.id for one in other.recent(9)] == [first]
        assert [one.id for one in spool.client.recent(9)] == [first]

    def test_recent_in_pages_tells_each_once(self, spool: Spool) -> None:
        ids = [spool.send("a@example.org", "b@example.org") for _ in range(4)]
        for address in ("a@example.org", "b@example.org"):
            change(spool.client, "cancel", ids, address, T0)
        assert spool.client.recent(0) == []
        told = [one.id for _ in range(5) for one in spool.client.recent(1)]
        assert told == ids

    def test_each_completion_is_told_to_one_of_several_clients(self, spool: Spool) -> None:
        ids = [spool.send("a@example.org") for _ in range(60)]
        change(spool.client, "cancel", ids, None, T0)
        told: list[str] = []
        errors: list[BaseException] = []

        def ask(client: ClientStore) -> None:
            try:
                while found := client.recent(3):
                    told.extend(one.id for one in found)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, args=(spool.stores.client(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sorted(told) == sorted(ids)

    def test_a_reopened_message_is_told_again_when_it_is_completed_again(
        self, spool: Spool
    ) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.settle(lane, row, "failed")
        assert [one.completed for one in spool.client.recent(9)] == [True]
        change(spool.client, "retry", [id], None, T0 + HOUR)
        assert [one.completed for one in spool.client.recent(9)] == [False]
        change(spool.client, "cancel", [id], None, T0 + HOUR)
        assert [one.completed for one in spool.client.recent(9)] == [True]
        assert spool.client.recent(9) == []

    def test_every_way_to_the_end_is_told(self, spool: Spool) -> None:
        """Delivered, failed, expired, refused by its route, cancelled, resolved, late."""
        ends: list[str] = []
        for word in ("delivered", "failed"):
            id, lane, (row,) = spool.sending("a@example.org")
            spool.settle(lane, row, word)
            ends.append(id)
            spool.engine.release([lane.token], T0)
        for word in ("resolve-delivered", "resolve-failed"):
            id, lane, (row,) = spool.sending("a@example.org")
            spool.settle(lane, row, "held")
            change(spool.client, word, [id], None, T0)
            ends.append(id)
            spool.engine.release([lane.token], T0)
        id, lane, (row,) = spool.sending("a@example.org")
        spool.engine.release([lane.token], T0)
        assert not spool.settle(lane, row, "delivered")
        ends.append(id)
        ends.append(spool.send("a@example.net", expires_ms=T0 + HOUR))
        assert spool.engine.expire(9, T0 + HOUR) == 1
        ends.append(spool.send("a@nobody.example"))
        refusal = Refusal(Reason.NULL_MX, "5.1.10", "takes no mail")
        spool.route("nobody.example", result=RouteResult.NULL_MX, refusal=refusal)
        told = spool.client.recent(99)
        assert [one.id for one in told] == ends
        assert all(one.completed for one in told)

    def test_a_late_verdict_on_what_is_over_is_no_new_completion(self, spool: Spool) -> None:
        id, lane, (row,) = spool.sending("a@example.org")
        spool.engine.release([lane.token], T0)
        change(spool.client, "cancel", [id], None, T0)
        assert [one.id for one in spool.client.recent(9)] == [id]
        for word in ("delivered", "failed"):
            assert not spool.settle(lane, row, word)
        assert spool.client.recent(9) == []
        assert [e.type for e in spool.client.events(0, ("recipient.delivered",), 9)] == [
            "recipient.delivered"
        ]

    # --- events ---

    def test_events_are_read_by_cursor_and_type_in_bounded_pages(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        change(spool.client, "hold", [id], None, T0 + 5)
        every = spool.client.events(0, (), 100)
        assert [e.type for e in every] == ["worker.started", "message.accepted", "message.held"]
        assert [e.id for e in every] == sorted({e.id for e in every})
        assert (every[2].message_id, every[2].recipient) == (id, "a@example.org")
        assert every[2].at.timestamp() * 1000 == T0 + 5
        assert (every[1].message_id, every[1].recipient, every[1].detail) == (id, None, {})
        assert spool.client.events(0, (), 2) == every[:2]
        assert spool.client.events(every[0].id, (), 100) == every[1:]
        assert spool.client.events(0, ("message.held", "worker.started"), 9) == [
            every[0], every[2]
        ]  # fmt: skip
        assert spool.client.events(every[2].id, (), 9) == []
        assert spool.client.events(0, (), 0) == []

    def test_a_reader_that_waits_for_a_rare_event_gets_it(self, spool: Spool) -> None:
        id = spool.send()
        for _ in range(2):
            assert spool.client.events(0, ("message.held",), 9) == []
        change(spool.client, "hold", [id], None, T0)
        (held,) = spool.client.events(0, ("message.held",), 9)
        for _ in range(2):
            assert spool.client.events(held.id, ("message.held",), 9) == []
        assert spool.client.events(0, ("message.held",), 9) == [held]
        change(spool.client, "release", [id], None, T0)
        change(spool.client, "hold", [id], None, T0)
        (again,) = spool.client.events(held.id, ("message.held",), 9)
        assert spool.client.events(0, ("message.held",), 9) == [held, again]

    # --- counters ---

    def test_stats_count_what_waits_by_the_words_of_the_view(self, spool: Spool) -> None:
        empty = spool.client.stats(T0)
        assert empty.waiting == {"queued": 0, "sending": 0, "deferred": 0, "held": 0}
        assert empty.finished == {"delivered": 0, "failed": 0, "cancelled": 0}
        assert (empty.oldest_due_at, empty.suspended_sites, empty.workers) == (None, 0, 1)
        words = ("sending", "claimed", "deferred", "held", "delivered", "failed")
        spool.send(*(f"{word}@example.org" for word in words))
        spool.route()
        lane = spool.lane()
        for row in spool.claim(lane):
            word = row.address.partition("@")[0]
            if word != "claimed":
                spool.open(lane, [row])
            if word not in ("claimed", "sending"):
                spool.settle(lane, row, word)
        spool.send("unrouted@example.net", created_ms=T0 - 5, send_ms=T0 - 5)
        user = spool.send("user@example.net")
        change(spool.client, "hold", [user], None, T0)
        over = spool.send("over@example.net")
        change(spool.client, "cancel", [over], None, T0)
        found = spool.client.stats(T0 + HOUR)
        shown = dict(
            spool.rows(
                "SELECT status, count(*) FROM recipients"
                " WHERE status IN ('queued', 'sending', 'deferred', 'held') GROUP BY 1"
            )
        )
        assert found.waiting == shown == {"queued": 2, "sending": 1, "deferred": 1, "held": 2}
        assert found.finished == {"delivered": 1, "failed": 1, "cancelled": 1}
        assert found.oldest_due_at is not None
        assert found.oldest_due_at.timestamp() * 1000 == T0 - 5
        assert not found.copied
        assert spool.client.stats(T0 + 3 * DAY).finished == {
            "delivered": 0, "failed": 0, "cancelled": 0
        }  # fmt: skip

    def test_stats_know_suspended_sites_and_what_is_not_due_yet(self, spool: Spool) -> None:
        spool.send("a@example.org")
        spool.route()
        spool.suspend(spool.lane(), T0 + HOUR)
        assert spool.client.stats(T0).suspended_sites == 1
        assert spool.client.stats(T0 + HOUR).suspended_sites == 0
        assert spool.client.stats(T0 - 1).oldest_due_at is None

    def test_nothing_is_suppressed_yet(self, spool: Spool) -> None:
        assert spool.client.suppressions((), 10) == []
        assert spool.client.suppressions(("a@example.org",), 10) == []

    # --- revision ---

    def test_the_revision_moves_with_every_commit_and_not_without(self, spool: Spool) -> None:
        seen = [spool.client.revision()]
        assert spool.client.revision() == seen[0]
        id = spool.send("a@example.org")
        seen.append(spool.client.revision())
        spool.route()
        seen.append(spool.client.revision())
        change(spool.client, "cancel", [id], None, T0)
        seen.append(spool.client.revision())
        spool.client.statuses([id])
        assert spool.client.revision() == seen[-1]
        assert len(set(seen)) == len(seen)

    def test_a_completed_message_is_still_asked_for_by_its_id(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        change(spool.client, "cancel", [id], None, T0)
        spool.client.recent(9)
        assert spool.client.statuses([id])[id].status is Status.CANCELLED
