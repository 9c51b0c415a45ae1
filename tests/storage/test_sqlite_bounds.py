"""What the SQLite store does while it holds the write lock, and for how many rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.storage.base import (
    MOST_ROWS,
    AnswerLost,
    Claimed,
    ClaimRequest,
    Exchange,
    Lane,
    Open,
)
from mailstrom.storage.sqlite import claims, clocks, upkeep
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.sql import STATEMENTS
from tests.storage.contract_retention import KEEP
from tests.storage.files import SQLiteStores
from tests.storage.spool import BODY, DAY, T0, Spool, at_once, settlement, submission


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield Spool(stores)


@pytest.fixture
def other(spool: Spool) -> Iterator[apsw.Connection]:
    """A connection that waits for nobody."""
    connection = connect(spool.client.path, busy_ms=0)  # type: ignore[attr-defined]
    yield connection
    connection.close()


def writes(connection: apsw.Connection) -> None:
    """Take the write lock and let it go; BusyError if somebody has it."""
    connection.execute("BEGIN IMMEDIATE").fetchall()
    connection.execute("ROLLBACK").fetchall()


def test_content_is_read_when_the_lock_is_free_and_the_claim_is_committed(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.send("a@example.org")
    spool.route()
    real, seen = claims.bodies, []

    def bodies(connection: apsw.Connection, rows: Any) -> Any:
        writes(other)
        seen.append(other.execute("SELECT state FROM recipient").fetchall())
        return real(connection, rows)

    monkeypatch.setattr(claims, "bodies", bodies)
    (row,) = spool.claim(spool.lane())
    assert seen == [[("claimed",)]]
    assert row.body == BODY


def test_content_that_cannot_be_read_now_does_not_undo_the_claim(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.send("a@example.org")
    spool.route()
    lane = spool.lane()

    def fails(connection: apsw.Connection, rows: Any) -> Any:
        raise apsw.IOError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(claims, "bodies", fails)
        (row,) = spool.claim(lane)
    assert (row.body, row.damaged, row.chunks) == (None, False, 1)
    assert row.unread, "nobody compared it with its digest: it would go out unproved"
    assert spool.engine.chunk(row.content, 0) == BODY
    assert spool.settle(lane, row, "queued", due_ms=T0 + 1)
    (row,) = spool.claim(lane, now=T0 + 1)
    assert (row.body, row.unread) == (BODY, False)


def test_the_clock_is_kept_by_the_newest_numbers_however_many_are_finished(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that a look reads, not its time: what is finished counts as well."""
    monkeypatch.setattr(clocks, "NEWEST", 10)
    look = {"monotonic_ms": 0, "boot": "b", "limit": 9}
    spool.engine.keep_clock(wall_ms=T0, **look)
    spool.client.enqueue([submission(f"a{n}@example.org") for n in range(2_000)], T0)
    connection = spool.engine._connection.opened()  # type: ignore[attr-defined]
    connection.execute("UPDATE message SET finished_ms = 1").fetchall()
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    connection.set_progress_handler(count, 100)
    spool.engine.keep_clock(wall_ms=T0, **look)
    connection.set_progress_handler(None)
    assert steps < 20, "it walked over all that is finished"


def test_an_even_clock_needs_no_lock(spool: Spool, other: apsw.Connection) -> None:
    look = {"boot": "b", "limit": 9}
    spool.engine.keep_clock(wall_ms=T0, monotonic_ms=0, **look)  # type: ignore[arg-type]
    spool.engine._connection.opened().set_busy_timeout(0)  # type: ignore[attr-defined]
    other.execute("BEGIN IMMEDIATE").fetchall()
    for ms in range(250, 30_000, 250):
        assert spool.engine.keep_clock(wall_ms=T0 + ms, monotonic_ms=ms, **look) == 0  # type: ignore[arg-type]
    other.execute("ROLLBACK").fetchall()


@pytest.mark.parametrize("verb", ["lapse", "retire"])
def test_a_lapse_lets_others_in_between_its_pieces(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    spool.send(*(f"r{n}@example.org" for n in range(2_300)))
    while spool.route():
        pass
    lane = spool.lane()
    rows = [row for _ in range(5) for row in spool.claim(lane)]
    spool.open(lane, rows[:1_500])
    held: list[Any] = []

    def between(seconds: float) -> None:
        writes(other)
        held.extend(other.execute("SELECT count(*) FROM recipient WHERE lane IS NOT NULL"))
        assert spool.client.check() == []

    monkeypatch.setattr("mailstrom.storage.sqlite.worker.time.sleep", between)
    if verb == "lapse":
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
    else:
        spool.engine.retire(spool.worker, state="stopped", now_ms=T0)
    assert [count for (count,) in held] == [1_300, 300]


def test_lanes_that_end_together_let_others_in_between(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.send(*(f"r{n}@example.org" for n in range(1_900)))
    while spool.route():
        pass
    known = connect(spool.client.path)  # type: ignore[attr-defined]
    known.execute("UPDATE site SET last_success_ms = 1")
    known.close()
    lanes = [spool.lane() for _ in range(4)]
    first, second, third, _idle = lanes
    for lane in (first, second, second, third):
        rows = spool.claim(lane)
    spool.open(third, rows[:10])
    held: list[Any] = []

    def between(seconds: float) -> None:
        writes(other)
        held.extend(other.execute("SELECT count(*), count(DISTINCT lane) FROM recipient"
                                  " WHERE lane IS NOT NULL"))  # fmt: skip
        assert spool.client.check() == []

    monkeypatch.setattr("mailstrom.storage.sqlite.worker.time.sleep", between)
    assert spool.engine.release([lane.token for lane in lanes], T0) == 1_900
    assert held == [(1_400, 2), (400, 1)]
    assert spool.rows("SELECT sum(lanes) FROM destinations") == [(0,)]
    spool.sound()


def test_statements_of_the_janitor_walk_over_nothing_that_is_done(spool: Spool) -> None:
    connection = connect(spool.client.path)  # type: ignore[attr-defined]
    walks = {}
    for name in (
        "purge_bodies", "purge_messages", "delete_sessions", "delete_idempotency", "delete_hours",
        "delete_domains", "jump_due", "jump_expiry", "expired", "due_recipients", "held_by_lanes",
    ):  # fmt: skip
        sql = STATEMENTS[name]
        values = dict.fromkeys(re.findall(r":([a-z_]+)", sql), 0)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        walks[name] = [
            step
            for step in plan
            if re.search(r"TEMP B-TREE|SCAN (?!json_each|clock_jump USING INDEX|\(sub)", step)
        ]
    connection.close()
    assert {name: steps for name, steps in walks.items() if steps} == {}


def test_free_pages_go_back_to_the_file_system_piece_by_piece(
    spool: Spool, other: apsw.Connection
) -> None:
    def pages(name: str) -> int:
        return int(str(other.execute(f"PRAGMA {name}").fetchall()[0][0]))

    id, lane, (row,) = spool.sending("a@example.org", content=b"x" * (12 << 20))
    spool.settle(lane, row, "failed", now=T0)
    spool.engine.release([lane.token], T0)
    full = pages("page_count")
    shrunk = [full]
    while spool.engine.purge(KEEP, 100, T0 + DAY):
        shrunk.append(pages("page_count"))
    steps = [before - after for before, after in pairwise(shrunk)]
    assert min(steps) >= 0
    assert max(steps) <= upkeep.VACUUM_PAGES + 2, "with the pages that SQLite keeps count on"
    assert pages("freelist_count") <= upkeep.SPARE_PAGES
    assert pages("page_count") < full // 2
    assert spool.client.content(id) is None
    spool.sound()


def test_a_claim_writes_no_more_than_its_share_of_a_long_moved_queue(
    spool: Spool, other: apsw.Connection
) -> None:
    """Measured in rows, not in time: what one transaction changed."""
    for priority in (0, 1, 2):
        spool.send(*(f"p{priority}-{n}@example.org" for n in range(600)), priority=priority)
    while spool.route(site="old", ttl=DAY):
        pass
    lane = spool.lane()
    other.execute("UPDATE domain SET generation = generation + 1").fetchall()
    connection = spool.engine._connection.opened()  # type: ignore[attr-defined]
    before = connection.total_changes()
    assert spool.claim(lane) == []
    assert connection.total_changes() - before <= claims.SKIP_ROWS + 2


def test_a_long_message_is_settled_without_a_look_at_all_that_went_before(spool: Spool) -> None:
    id, lane, rows = spool.sending(*[f"r{number:03}@example.org" for number in range(480)])
    connection = spool.engine._connection.opened()  # type: ignore[attr-defined]

    def steps(some: list[Claimed]) -> int:
        """How much SQLite does to settle them."""
        ticks = 0

        def tick() -> bool:
            nonlocal ticks
            ticks += 1
            return False

        connection.set_progress_handler(tick, 50)
        spool.exchange(settlements=[settlement(lane.token, r.recipient, "delivered") for r in some])
        connection.set_progress_handler(None)
        return ticks

    pieces = [rows[start : start + 20] for start in range(0, len(rows), 20)]
    taken = [steps(piece) for piece in pieces]
    assert max(taken[2:-1]) < 1.1 * min(taken[2:-1])
    assert set(spool.status(id).values()) == {"delivered"}
    assert spool.rows("SELECT status FROM messages WHERE finished_ms IS NOT NULL") == [
        ("delivered",)
    ]
    spool.sound()


def lanes_of(spool: Spool, sites: int, messages: int, recipients: int) -> list[Lane]:
    """A lane for each site; messages with as many recipients at each."""
    for site in range(sites):
        to = [f"r{n}@d{site}.test" for n in range(recipients)]
        spool.client.enqueue([submission(*to) for _ in range(messages)], T0)
    while due := spool.engine.due_domains(spool.worker, 100, T0):
        for one in due:
            while spool.engine.put_routes(spool.worker, [spool.answer(one.name)], T0)[0]:
                pass
    return spool.lease(want=sites)


def asked(spool: Spool, lanes: list[Lane], limit: int = 8, **with_them: Any) -> Exchange:
    """One exchange with a claim for each lane."""
    claimed = [ClaimRequest(lane=one.token, limit=limit, max_bytes=1 << 24) for one in lanes]
    return spool.exchange(claims=claimed, **with_them)


def counted(done: Exchange) -> dict[int, int]:
    """Rows by lane."""
    return dict(Counter(row.lane for row in done.claimed))


def test_an_exchange_claims_no_more_rows_than_its_bound_and_cuts_no_message_for_it(
    spool: Spool,
) -> None:
    """Messages of 60 recipients at each of eight sites; eight claims of eight messages."""
    lanes = lanes_of(spool, 8, 8, 60)
    left, rounds, given = lanes, 0, Counter[int]()
    while left:
        done = asked(spool, left)
        found = counted(done)
        assert sum(found.values()) <= MOST_ROWS
        assert all(rows % 60 == 0 for rows in found.values()), "a message is sent in one piece"
        assert found, "the first is always served"
        given.update(found)
        unserved = [one for one in left if one.token not in found]
        assert done.more >= {one.token for one in unserved}, "they did not run dry"
        left = [one for one in left if one.token in done.more]
        rounds += 1
    assert given == {one.token: 480 for one in lanes}
    assert rounds == 5


def test_claims_of_a_message_too_big_for_what_is_left_of_an_exchange_come_first_in_another(
    spool: Spool,
) -> None:
    lanes = lanes_of(spool, 3, 1, 1_000)
    done = asked(spool, lanes)
    assert counted(done) == {lanes[0].token: claims.CLAIM_ROWS}, "one may cut it; others may not"
    assert done.more == {one.token for one in lanes}
    done = asked(spool, lanes[1:])
    assert counted(done) == {lanes[1].token: claims.CLAIM_ROWS}


def test_behind_a_claim_that_found_no_room_nobody_else_looks(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would read what does not fit, with the lock."""
    lanes, real, looked = lanes_of(spool, 5, 1, 600), claims._claim, list[int]()

    def counting(connection: apsw.Connection, request: ClaimRequest, *rest: int) -> Any:
        looked.append(request.lane)
        return real(connection, request, *rest)

    monkeypatch.setattr(claims, "_claim", counting)
    assert asked(spool, lanes).more == {one.token for one in lanes}
    assert looked == [lanes[0].token, lanes[1].token]


def test_what_an_exchange_settles_and_opens_counts_and_its_first_claim_is_served_all_the_same(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "MOST_ROWS", 10)
    lanes = lanes_of(spool, 3, 2, 4)
    rows = asked(spool, lanes[:1], limit=1).claimed
    opens = [Open(lane=lanes[0].token, session="s", recipients=tuple(r.recipient for r in rows))]
    done = asked(spool, lanes[1:], limit=1, opens=opens)
    assert counted(done) == {lanes[1].token: 4}, "4 opened, 4 claimed, no room for 4 more"
    assert done.more >= {lanes[2].token}
    settlements = [settlement(lanes[0].token, row.recipient, "delivered") for row in rows]
    monkeypatch.setattr(claims, "MOST_ROWS", 2)
    done = asked(spool, lanes[2:], limit=1, settlements=settlements)
    assert (len(done.settled), counted(done)) == (4, {lanes[2].token: 4})
    spool.sound()


@pytest.mark.parametrize("times", [1, 1_000])
def test_no_trouble_behind_the_commit_makes_an_exchange_look_undone(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Whoever asks again would record a second attempt for what was delivered."""
    for name in ("a", "b", "c"):
        spool.send(f"{name}@example.org")
    spool.route()
    lane = spool.lane()
    (first,) = spool.claim(lane, limit=1)
    spool.open(lane, [first])
    real, left = claims.bodies, [times]

    def fails(connection: apsw.Connection, rows: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise MemoryError
        return real(connection, rows)

    monkeypatch.setattr(claims, "bodies", fails)
    claim = ClaimRequest(lane=lane.token, limit=2, max_bytes=1 << 20, ahead=at_once(2))
    delivered = settlement(lane.token, first.recipient, "delivered")
    done = spool.exchange(settlements=[delivered], claims=[claim])
    assert done.settled == {first.recipient}
    assert done.opened == {row.recipient for row in done.claimed}, "all that is open is told"
    assert len(done.claimed) == 2
    assert {row.unread for row in done.claimed} == {times > 1}
    assert spool.rows("SELECT count(*) FROM attempts") == [(1,)]


def test_an_exchange_that_cannot_be_told_of_says_that_it_is_committed(
    spool: Spool, other: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.send("a@example.org")
    spool.route()
    lane = spool.lane()

    def fails(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(claims, "complete", fails)
    with pytest.raises(AnswerLost):
        spool.claim(lane)
    assert other.execute("SELECT state FROM recipient").fetchall() == [("claimed",)]
