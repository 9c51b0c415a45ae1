"""Conformance of streams: what they give to messages that say nothing, and what they refuse."""

from __future__ import annotations

from mailstrom.errors import InvalidMessage
from mailstrom.storage.base import StreamPolicy
from mailstrom.storage.client import CHUNK_BYTES
from mailstrom.types import OnDoubt
from tests.storage.spool import DAY, HOUR, T0, Spool, submission

BULK = StreamPolicy(
    name="bulk", priority=2, max_age_ms=HOUR, on_doubt=OnDoubt.HOLD, require_tls=True
)


class StreamContract:
    """What ``WorkerStore.use_streams`` promises."""

    def test_a_stream_fills_in_what_a_message_leaves_open(self, spool: Spool) -> None:
        spool.engine.use_streams([BULK])
        id = spool.send("a@example.org", stream="bulk", priority=None, send_ms=T0 + 5)
        spool.route(now=T0 + 5)
        (row,) = spool.claim(spool.lane(now=T0 + 5), now=T0 + 5)
        assert (row.priority, row.on_doubt, row.require_tls) == (2, OnDoubt.HOLD, True)
        assert row.expires_ms == T0 + 5 + HOUR
        assert spool.rows("SELECT stream, priority FROM messages WHERE id = ?", id) == [
            ("bulk", "low")
        ]

    def test_what_a_message_says_holds_and_tls_is_never_taken_back(self, spool: Spool) -> None:
        spool.engine.use_streams([BULK])
        spool.send(
            "a@example.org",
            stream="bulk",
            priority=0,
            expires_ms=T0 + DAY,
            on_doubt=OnDoubt.RETRY,
            require_tls=False,
        )
        spool.route()
        (row,) = spool.claim(spool.lane())
        assert (row.priority, row.on_doubt) == (0, OnDoubt.RETRY)
        assert row.expires_ms == T0 + DAY
        assert row.require_tls

    def test_a_message_of_no_known_stream_gets_the_defaults(self, spool: Spool) -> None:
        spool.engine.use_streams([BULK])
        spool.send("a@example.org", priority=None, stream="unknown", require_tls=True)
        spool.route()
        (row,) = spool.claim(spool.lane())
        assert (row.priority, row.on_doubt, row.require_tls) == (1, None, True)
        assert row.expires_ms == T0 + 5 * DAY

    def test_priority_of_a_stream_orders_claims(self, spool: Spool) -> None:
        spool.engine.use_streams([BULK, StreamPolicy(name="vip", priority=0)])
        for stream in ("bulk", "default", "vip"):
            spool.send(f"{stream}@example.org", stream=stream, priority=None)
        spool.route()
        assert {row.address.partition("@")[0]: row.priority for row in spool.claim(
            spool.lane()
        )} == {"vip": 0, "default": 1, "bulk": 2}  # fmt: skip

    def test_limits_refuse_with_both_numbers_and_the_neighbours_stay(self, spool: Spool) -> None:
        limits = StreamPolicy(name="small", max_size=100, max_recipients=2)
        spool.engine.use_streams([limits])
        names = ("a@example.org", "b@example.org", "c@example.org")
        fits = submission(*names[:2], stream="small", content=b"x" * 100)
        large = submission(stream="small", content=b"x" * 101)
        long = submission(stream="small", content=b"x" * (CHUNK_BYTES + 1))
        many = submission(*names, stream="small")
        other = submission(*names, content=b"x" * 101)
        stored = spool.client.enqueue([large, fits, many, long, other], T0)
        assert [one for one in stored if isinstance(one, str)] == [fits.id, other.id]
        refused = [one for one in stored if isinstance(one, InvalidMessage)]
        assert [one.rule for one in refused] == [
            "stream-max-size", "stream-max-recipients", "stream-max-size"
        ]  # fmt: skip
        for error, actual, limit in zip(
            refused, ("101", "3", str(CHUNK_BYTES + 1)), ("100", "2", "100"), strict=True
        ):
            assert actual in str(error)
            assert limit in str(error)
            assert "'small'" in str(error)
        assert spool.send(), "nothing was left open"
        spool.sound()

    def test_what_was_taken_under_a_key_is_answered_whatever_the_limits_are_now(
        self, spool: Spool
    ) -> None:
        first = spool.send(stream="small", idempotency=("k", b"h"))
        spool.engine.use_streams([StreamPolicy(name="small", max_size=1)])
        again = submission(stream="small", idempotency=("k", b"h"))
        fresh = submission(stream="small", idempotency=("other", b"h"))
        assert spool.client.enqueue([again], T0) == [first]
        assert isinstance(spool.client.enqueue([fresh], T0)[0], InvalidMessage)
        spool.engine.use_streams([])
        assert spool.client.enqueue([fresh], T0) == [fresh.id], "the key was not used up"

    def test_the_streams_of_now_replace_those_before(self, spool: Spool) -> None:
        spool.engine.use_streams([BULK])
        before = spool.client.revision()
        spool.engine.use_streams([BULK])
        assert spool.client.revision() == before, "nothing was written"
        spool.engine.use_streams([StreamPolicy(name="bulk", priority=0)])
        first = spool.send("a@example.org", stream="bulk", priority=None)
        spool.engine.use_streams([])
        second = spool.send("b@example.org", stream="bulk", priority=None)
        found = dict(spool.rows("SELECT id, priority FROM messages"))
        assert found == {first: "high", second: "normal"}
