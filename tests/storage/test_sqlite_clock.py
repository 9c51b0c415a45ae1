"""Any jumps of the clock, sends before and after each: a life is as long as it should be.

The model knows the true time. A message lives five days of it, whatever the wall clock said when it
came or was looked at, is due when it came, and a send time of the user's own is a wall time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.files import SQLiteStores
from tests.storage.spool import DAY, HOUR, T0, Spool, submission

YEAR = 365 * DAY
MINUTE = 60_000
LIFE = 5 * DAY

jumps = st.one_of(
    st.integers(2 * 60_000, YEAR), st.integers(-YEAR, -2 * 60_000), st.sampled_from([DAY, -DAY])
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.just(0)),
        st.tuples(st.just("later"), st.integers(HOUR, 3 * YEAR)),
        st.tuples(st.just("jump"), jumps),
        st.tuples(st.just("look"), st.just(0)),
    ),
    max_size=14,
)


def _no_disk(fd: int) -> None:
    """Power cuts are tested elsewhere."""


@settings(max_examples=60, deadline=None, database=None)
@given(steps, st.integers(1, 3))
def test_no_jump_takes_or_gives_a_day_of_life(script: list[tuple[str, int]], piece: int) -> None:
    with tempfile.TemporaryDirectory(prefix="clock-") as folder:
        path = str(Path(folder) / "spool.db")
        client = SQLiteClientStore(path, sync=_no_disk)
        engine = SQLiteWorkerStore(path, sync=_no_disk)
        true, wall = 0, T0
        sent: dict[str, int] = {}
        later: dict[str, int] = {}

        def look() -> None:
            while engine.keep_clock(wall_ms=wall, monotonic_ms=true, boot="b", limit=piece):
                pass
            assert engine.expire(1_000, wall) == 0
            assert client.check() == []

        look()
        jumped = False
        for word, amount in script:
            if word == "look" or (word == "jump" and jumped):
                look()  # two jumps between two looks are one
                jumped = False
            if word == "jump":
                wall, jumped = wall + amount, True
            elif word in {"send", "later"}:
                one = submission(created_ms=wall, send_ms=wall + amount)
                assert client.enqueue([one], wall) == [one.id]
                sent[one.id] = true
                if amount:
                    later[one.id] = wall + amount
            true, wall = true + 7, wall + 7
        look()
        rows = client.query(
            "SELECT m.id, m.send_ms, r.next_attempt_ms, m.expires_ms"
            " FROM messages m JOIN recipients r ON r.message_id = m.id", (), 10.0
        )  # fmt: skip
        assert len(rows) == len(sent)
        for id, send, due, expires in rows:
            assert isinstance(id, str)
            assert isinstance(expires, int)
            assert isinstance(due, int)
            if id in later:
                assert send == due == later[id]
                assert expires > max(send, wall)
                assert expires - max(send, wall) <= LIFE + YEAR
            else:
                assert due <= wall
                assert expires - wall == LIFE - (true - sent[id])
        client.close()
        engine.close()


amounts = st.integers(-4 * YEAR, 4 * YEAR).filter(lambda amount: abs(amount) > 10 * MINUTE)


def test_mail_that_was_deferred_between_two_jumps_is_due(tmp_path: Path) -> None:
    """The clock went back, forward to the right time, and back again before anybody looked."""
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        spool = Spool(stores)
        engine, ahead, back = spool.engine, T0 + 10 * DAY, T0 + DAY

        def look(wall: int, true: int) -> None:
            engine.keep_clock(wall_ms=wall, monotonic_ms=true, boot="b", limit=100)

        look(T0, 0)
        (id,) = spool.client.enqueue([submission(created_ms=ahead, send_ms=ahead)], ahead)
        spool.route(now=ahead)
        lane = spool.lane(now=ahead)
        (row,) = spool.claim(lane, now=ahead)
        spool.open(lane, [row], now=ahead)
        assert spool.settle(lane, row, "deferred", now=ahead, due_ms=ahead + MINUTE)
        for true in (500, 1_000):
            look(back, true)
        ((due,),) = spool.rows("SELECT next_attempt_ms FROM recipients")
        assert due == back
        assert isinstance(id, str)
        spool.sound()


@settings(max_examples=150, deadline=None, database=None)
@example([917_997, -947_997], 1)
@given(st.lists(amounts, min_size=2, max_size=4), st.integers(1, 3))
def test_jumps_between_two_looks_neither_expire_nor_delay_what_came_between_them(
    jumps: list[int], piece: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="clock-") as folder:
        path = str(Path(folder) / "spool.db")
        client = SQLiteClientStore(path, sync=_no_disk)
        engine = SQLiteWorkerStore(path, sync=_no_disk)
        wall = T0 + 10 * YEAR

        def look(true: int) -> None:
            while engine.keep_clock(wall_ms=wall, monotonic_ms=true, boot="b", limit=piece):
                pass
            assert engine.expire(1_000, wall) == 0
            assert client.check() == []

        client.enqueue([submission(created_ms=wall, send_ms=wall)], wall)
        look(0)
        for amount in jumps:  # half a minute in all, one message by each clock
            client.enqueue([submission(created_ms=wall, send_ms=wall)], wall)
            wall += amount
        client.enqueue([submission(created_ms=wall, send_ms=wall)], wall)
        for true in (30_000, 31_000):
            look(true)
        found = client.query(
            "SELECT m.expires_ms, r.next_attempt_ms FROM messages m"
            " JOIN recipients r ON r.message_id = m.id", (), 10.0
        )  # fmt: skip
        assert len(found) == len(jumps) + 2
        # Jumps that undo each other but for a minute are none: half of it passed, half may be left.
        unseen = MINUTE // 2 if abs(sum(jumps) - 30_000) <= MINUTE else 0
        for expires, due in found:
            assert isinstance(expires, int)
            assert isinstance(due, int)
            assert due <= wall + unseen
            assert abs(expires - wall - LIFE) <= 2 * MINUTE
        client.close()
        engine.close()
