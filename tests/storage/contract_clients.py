"""Conformance of the client's half: enqueue, statuses, content, cancel, retry, query."""

from __future__ import annotations

import pytest

from mailstrom.errors import IdempotencyConflict, InvalidMessage, SpoolError
from mailstrom.storage.client import CHUNK_BYTES
from mailstrom.types import OnDoubt, Reason, Status
from tests.storage.spool import BODY, DAY, HOUR, T0, Spool, change, submission


class ClientContract:
    """What ``ClientStore`` promises."""

    def test_a_message_comes_back_as_it_was_stored(self, spool: Spool) -> None:
        id = spool.send(
            "first@example.org",
            "Second@example.net",
            tags=("a", "b"),
            metadata={"order": 17, "vip": True},
            subject="Grüße ✓",
            send_ms=T0 + HOUR,
            expires_ms=T0 + DAY,
            stream="bulk",
            priority=2,
        )
        found = spool.client.statuses([id, "unknown"])
        assert set(found) == {id}
        one = found[id]
        assert (one.id, one.status, one.sender, one.subject, one.size) == (
            id, Status.QUEUED, "sender@example.com", "Grüße ✓", len(BODY)
        )  # fmt: skip
        assert set(one.tags) == {"a", "b"}
        assert one.metadata == {"order": 17, "vip": True}
        assert one.created_at.timestamp() * 1000 == T0
        assert one.send_at.timestamp() * 1000 == T0 + HOUR
        assert one.expires_at.timestamp() * 1000 == T0 + DAY
        assert one.finished_at is None
        assert list(one.recipients) == ["first@example.org", "Second@example.net"]
        assert {r.status for r in one.recipients.values()} == {Status.QUEUED}
        assert {r.attempts for r in one.recipients.values()} == {0}
        assert not one.completed
        assert spool.rows("SELECT stream, priority FROM messages") == [("bulk", "low")]
        assert spool.rows("SELECT tag FROM tags ORDER BY tag") == [("a",), ("b",)]
        spool.sound()

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5])
    def test_content_of_any_size_is_read_back_whole(self, spool: Spool, size: int) -> None:
        content = bytes(range(256)) * (size // 256) + bytes(size % 256)
        id = spool.send(content=content)
        assert spool.client.content(id) == content
        spool.sound()

    def test_content_of_an_unknown_id_is_none(self, spool: Spool) -> None:
        assert spool.client.content("unknown") is None

    def test_the_default_expiry_counts_from_when_it_may_be_sent(self, spool: Spool) -> None:
        id = spool.send(send_ms=T0 + HOUR)
        lives = spool.client.statuses([id])[id].expires_at.timestamp() * 1000 - (T0 + HOUR)
        assert lives == 5 * DAY

    def test_a_batch_stores_every_good_row_and_names_every_bad_one(self, spool: Spool) -> None:
        good = [submission() for _ in range(3)]
        doubled = submission(id=good[0].id)
        alone = submission(recipients=())
        twice = submission("a@example.org", "a@example.org")
        unfit = submission(metadata={"x": object()})
        nan = submission(metadata={"x": float("nan")})
        lone = submission(subject="\ud800")
        batch = [good[0], alone, good[1], doubled, twice, unfit, nan, lone, good[2]]
        results = spool.client.enqueue(batch, T0)
        assert [r for r in results if isinstance(r, str)] == [g.id for g in good]
        bad = [r for r in results if not isinstance(r, str)]
        assert [type(r) for r in bad] == [InvalidMessage] * 6
        assert set(spool.client.statuses([s.id for s in batch])) == {g.id for g in good}
        assert spool.send()  # nothing was left open
        spool.sound()

    def test_an_atomic_batch_is_all_or_nothing(self, spool: Spool) -> None:
        good = [submission(), submission()]
        for bad in (submission(recipients=()), submission("a@b.example", "a@b.example")):
            with pytest.raises(InvalidMessage):
                spool.client.enqueue([good[0], bad, good[1]], T0, atomic=True)
        assert spool.client.statuses([g.id for g in good]) == {}
        assert spool.client.enqueue(good, T0, atomic=True) == [g.id for g in good]
        spool.sound()

    def test_an_empty_batch_is_nothing(self, spool: Spool) -> None:
        assert spool.client.enqueue([], T0) == []
        assert spool.client.statuses([]) == {}

    def test_an_idempotency_key_answers_with_the_first_id_while_its_window_lasts(
        self, spool: Spool
    ) -> None:
        first = spool.send(idempotency=("order-1", b"hash"))
        again = submission(idempotency=("order-1", b"hash"))
        other = submission(idempotency=("order-1", b"another hash"))
        neighbour = submission()
        same, conflict, fine = spool.client.enqueue([again, other, neighbour], T0)
        assert same == first
        assert isinstance(conflict, IdempotencyConflict)
        assert fine == neighbour.id
        later = spool.send(
            idempotency=("order-1", b"another hash"), created_ms=T0 + DAY, send_ms=T0 + DAY
        )
        assert later != first
        assert spool.rows("SELECT count(*) FROM messages") == [(3,)]
        spool.sound()

    def test_a_key_twice_in_one_batch_stores_one_message(self, spool: Spool) -> None:
        pair = [submission(idempotency=("k", b"h")) for _ in range(2)]
        assert spool.client.enqueue(pair, T0) == [pair[0].id, pair[0].id]
        assert spool.rows("SELECT count(*) FROM messages") == [(1,)]

    def test_a_key_is_not_used_up_by_a_refused_message(self, spool: Spool) -> None:
        bad = submission("a@b.example", "a@b.example", idempotency=("k", b"h"))
        assert isinstance(spool.client.enqueue([bad], T0)[0], InvalidMessage)
        assert spool.send(idempotency=("k", b"other"))

    def test_hundreds_of_recipients_of_one_message(self, spool: Spool) -> None:
        names = tuple(f"r{n}@d{n % 7}.example" for n in range(1_500))
        id = spool.send(*names)
        assert tuple(spool.client.statuses([id])[id].recipients) == names
        assert change(spool.client, "cancel", [id], None, T0) == 1_500
        assert spool.client.statuses([id])[id].status is Status.CANCELLED
        spool.sound()

    def test_what_the_application_wrote_is_what_the_engine_gets(self, spool: Spool) -> None:
        id = spool.send(
            "пётр@example.org",
            sender="",
            on_doubt=OnDoubt.HOLD,
            require_tls=True,
            eightbit=True,
            smtputf8=True,
            priority=0,
            stream="vip",
            expires_ms=T0 + DAY,
        )
        spool.route()
        (row,) = spool.claim(spool.lane())
        assert (row.message_id, row.address, row.domain, row.sender, row.body) == (
            id, "пётр@example.org", "example.org", "", BODY
        )  # fmt: skip
        assert (row.on_doubt, row.require_tls, row.eightbit, row.smtputf8) == (
            OnDoubt.HOLD, True, True, True
        )  # fmt: skip
        assert (row.priority, row.stream, row.expires_ms, row.created_ms) == (
            0, "vip", T0 + DAY, T0
        )  # fmt: skip
        assert (row.size, row.chunks, row.damaged, row.attempts) == (len(BODY), 1, False, 0)

    def test_long_content_is_read_by_chunk(self, spool: Spool) -> None:
        content = b"x" * CHUNK_BYTES + b"y" * 10
        spool.send(content=content)
        spool.route()
        (row,) = spool.claim(spool.lane())
        assert row.body is None
        assert not row.damaged
        chunks = [spool.engine.chunk(row.content, n) for n in range(row.chunks)]
        assert chunks == [b"x" * CHUNK_BYTES, b"y" * 10]
        assert spool.engine.chunk(row.content, row.chunks) is None

    def test_a_scheduled_message_is_queued_and_nobody_gets_it_before(self, spool: Spool) -> None:
        id = spool.send(send_ms=T0 + HOUR)
        assert spool.status(id) == {next(iter(spool.status(id))): "queued"}
        assert spool.engine.due_domains(spool.worker, 10, T0 + HOUR - 1) == []
        assert spool.engine.next_due_ms(T0) == T0 + HOUR
        spool.route(now=T0 + HOUR)
        assert spool.lease(now=T0 + HOUR - 1) == []
        assert change(spool.client, "retry", [id], None, T0) == 0, (
            "retry is not a way round send_at"
        )
        assert spool.claim(spool.lane(now=T0 + HOUR), now=T0 + HOUR)

    # --- cancel and retry ---

    def test_cancel_takes_one_address_or_all_and_never_what_is_on_the_wire(
        self, spool: Spool
    ) -> None:
        id, lane, (row,) = spool.sending("wire@example.org")
        other = spool.send("a@example.org", "b@example.org", "c@example.org")
        assert change(spool.client, "cancel", [other], "a@example.org", T0) == 1
        assert spool.status(other)["a@example.org"] == "cancelled"
        assert change(spool.client, "cancel", [other], "nobody@example.org", T0) == 0
        assert change(spool.client, "cancel", [id, other], None, T0 + 5) == 2
        assert spool.status(id) == {"wire@example.org": "sending"}
        done = spool.client.statuses([other])[other]
        assert done.completed
        assert not done.succeeded
        assert done.finished_at is not None
        assert {r.reason for r in done.recipients.values()} == {Reason.USER}
        assert spool.settle(lane, row, "delivered")
        assert change(spool.client, "cancel", [id, other], None, T0 + 6) == 0
        spool.sound()

    def test_retry_makes_deferred_due_now_and_reopens_failed_only(self, spool: Spool) -> None:
        names = [f"{word}@example.org" for word in ("deferred", "failed", "delivered", "held")]
        id, lane, rows = spool.sending(*names)
        for row in rows:
            word = row.address.partition("@")[0]
            later = {"due_ms": T0 + DAY} if word == "deferred" else {}
            assert spool.settle(lane, row, word, **later)
        before = spool.client.statuses([id])[id]
        assert before.status is Status.DEFERRED
        assert change(spool.client, "retry", [id], None, T0 + HOUR) == 2
        after = spool.client.statuses([id])[id]
        assert {a: str(r.status) for a, r in after.recipients.items()} == {
            "deferred@example.org": "queued",
            "failed@example.org": "queued",
            "delivered@example.org": "delivered",
            "held@example.org": "held",
        }
        due = after.recipients["deferred@example.org"].next_attempt_at
        assert due is not None
        assert due.timestamp() * 1000 == T0 + HOUR
        spool.route(now=T0 + HOUR)
        assert len(spool.claim(lane, now=T0 + HOUR)) == 2
        spool.sound()

    def test_a_reopened_message_lives_another_day_and_others_live_no_longer(
        self, spool: Spool
    ) -> None:
        end = T0 + HOUR
        id, lane, (row,) = spool.sending("a@example.org", expires_ms=end)
        spool.settle(lane, row, "failed")
        other = spool.send("b@example.org", expires_ms=end)
        assert spool.client.statuses([id])[id].finished_at is not None
        assert change(spool.client, "retry", [id], None, end - 10) == 1
        assert change(spool.client, "retry", [other], None, end - 10) == 1
        lives = {
            i: s.expires_at.timestamp() * 1000
            for i, s in spool.client.statuses([id, other]).items()
        }
        assert lives == {id: end - 10 + DAY, other: end}
        assert spool.client.statuses([id])[id].finished_at is None
        assert spool.engine.expire(10, end) == 1
        assert spool.only(id).status is Status.QUEUED
        spool.sound()

    def test_retry_ends_the_pause_of_a_suspended_site_and_of_a_domain(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        spool.route()
        lane = spool.lane()
        spool.suspend(lane, T0 + HOUR)
        spool.engine.release([lane.token], T0)
        assert spool.lease(now=T0 + 5) == []
        assert change(spool.client, "retry", [id], None, T0 + 5) == 1
        spool.route(now=T0 + 5)
        assert len(spool.lease(now=T0 + 5)) == 1
        dns = spool.send("a@example.net")
        (domain,) = spool.engine.due_domains(spool.worker, 10, T0 + 5)
        spool.engine.give_back(spool.worker, {domain.name: T0 + HOUR})
        assert spool.engine.due_domains(spool.worker, 10, T0 + 5) == []
        assert change(spool.client, "retry", [dns], None, T0 + 5) == 1
        assert [d.name for d in spool.engine.due_domains(spool.worker, 10, T0 + 5)] == [
            "example.net"
        ]
        spool.sound()

    def test_verbs_on_unknown_ids_change_nothing(self, spool: Spool) -> None:
        assert change(spool.client, "cancel", ["unknown"], None, T0) == 0
        assert change(spool.client, "retry", ["unknown"], None, T0) == 0

    # --- asking ---

    def test_query_gives_named_rows_and_only_reads(self, spool: Spool) -> None:
        id = spool.send("a@example.org")
        (row,) = spool.client.query("SELECT id, status AS word FROM messages", (), 5)
        assert row._asdict() == {"id": id, "word": "queued"}  # type: ignore[attr-defined]
        (row,) = spool.client.query("SELECT :a AS x, :b AS y", {"a": 1, "b": "ü"}, 5)
        assert tuple(row) == (1, "ü")
        assert spool.client.query("SELECT id FROM messages WHERE false", (), 5) == []
        with pytest.raises(SpoolError):
            spool.client.query("SELECT nonsense", (), 5)

    def test_closing_twice_is_fine_and_a_closed_store_says_so(self, spool: Spool) -> None:
        spool.client.close()
        spool.client.close()
        with pytest.raises(SpoolError, match="closed"):
            spool.client.statuses(["x"])
        with pytest.raises(SpoolError, match="closed"):
            spool.client.enqueue([submission()], T0)
        spool.engine.close()
        spool.engine.close()
        with pytest.raises(SpoolError, match="closed"):
            spool.engine.workers()
