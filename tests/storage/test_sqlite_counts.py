"""What waits is counted by triggers: always what the rows say, for a price that does not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.clock import wall_ms
from mailstrom.storage.client import Selection
from mailstrom.storage.sqlite import asking, finding
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.types import RouteResult
from tests.storage.files import SQLiteStores
from tests.storage.spool import HOUR, T0, Spool, change, session_row, submission

SHOWN = """
SELECT status, count(*), count(DISTINCT message_id) FROM recipients
 WHERE status IN ('queued', 'sending', 'deferred', 'held') GROUP BY status ORDER BY status
"""
COUNTED = """
SELECT status, recipients, messages FROM queue_counts WHERE recipients <> 0 OR messages <> 0
 ORDER BY status
"""


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    """None are so new that they are looked at before an index is asked."""
    monkeypatch.setattr(finding, "NEAR", 0)
    monkeypatch.setattr(asking, "NEAR", 0)
    stores = SQLiteStores(tmp_path / "spool.db")
    with stores.opened:
        yield Spool(stores)


def agree(spool: Spool) -> list[Any]:
    """The counts, which are those of the recipients view."""
    counted = spool.rows(COUNTED)
    assert counted == spool.rows(SHOWN)
    waiting = {word: amount for word, amount in spool.client.stats(T0).waiting.items() if amount}
    assert waiting == {word: amount for word, amount, _ in counted}
    found_as_shown(spool)
    spool.sound()
    return counted


def found_as_shown(spool: Spool) -> None:
    """Also where indexes are asked, each word and reason finds what the view shows."""
    for field in ("status", "reason"):
        shown = f"SELECT DISTINCT {field} FROM recipients WHERE {field} IS NOT NULL"
        for word in {str(row[0]) for row in spool.rows(shown)} | {"sending", "failed", "connect"}:
            ids = spool.rows(f"SELECT DISTINCT message_id FROM recipients WHERE {field} = ?", word)
            asked = Selection(statuses=(word,)) if field == "status" else Selection(reasons=(word,))
            found = [one.id for one in spool.client.find(asked, limit=2_000)]
            assert sorted(found) == sorted(str(row[0]) for row in ids), word


def test_counts_follow_every_change(spool: Spool) -> None:
    assert agree(spool) == []
    id = spool.send(*(f"r{n}@example.org" for n in range(6)))
    alone = spool.send("alone@example.org")
    assert agree(spool) == [("queued", 7, 2)]
    spool.route()
    lane = spool.lane()
    rows = {row.address: row for row in spool.claim(lane)}
    assert agree(spool) == [("queued", 7, 2)], "claimed ones wait"
    spool.exchange(sessions=[session_row("s", lane)])
    spool.open(lane, [rows[f"r{n}@example.org"] for n in range(4)], "s")
    assert agree(spool) == [("queued", 3, 2), ("sending", 4, 1)]
    for number, word in enumerate(("delivered", "deferred", "held")):
        spool.settle(lane, rows[f"r{number}@example.org"], word, due_ms=T0 + HOUR)
    assert agree(spool) == [
        ("deferred", 1, 1), ("held", 1, 1), ("queued", 3, 2), ("sending", 1, 1)
    ]  # fmt: skip
    spool.engine.release([lane.token], T0)
    assert agree(spool) == [("deferred", 2, 1), ("held", 1, 1), ("queued", 3, 2)]
    for word, amount, left in (
        ("hold", 2, [("deferred", 2, 1), ("held", 3, 1), ("queued", 1, 1)]),
        ("retry", 2, [("held", 3, 1), ("queued", 3, 2)]),
        ("cancel", 6, [("queued", 1, 1)]),
    ):
        if word == "hold":
            held = [f"r{number}@example.org" for number in (4, 5)]
            assert sum(change(spool.client, word, [id], one, T0) for one in held) == amount
        elif word == "retry":
            assert change(spool.client, word, [id], None, T0) >= amount
        else:
            change(spool.client, word, [id], None, T0)
        assert agree(spool) == left
    change(spool.client, "cancel", [alone], None, T0)
    assert agree(spool) == []


def test_a_finished_message_that_is_tried_again_is_counted_once(spool: Spool) -> None:
    id, lane, rows = spool.sending("a@example.org", "b@example.org", "c@example.org")
    for row in rows:
        spool.settle(lane, row, "failed")
    spool.engine.release([lane.token], T0)
    connection = connect(spool.client.path)  # type: ignore[attr-defined]
    connection.execute("DELETE FROM message_tally").fetchall()  # as in a spool of an older version
    connection.close()
    assert agree(spool) == []
    assert change(spool.client, "retry", [id], "b@example.org", T0) == 1
    assert agree(spool) == [("queued", 1, 1)]
    assert change(spool.client, "retry", [id], None, T0) >= 2
    assert agree(spool) == [("queued", 3, 1)]


def test_what_is_shown_deferred_is_counted_so(spool: Spool) -> None:
    """Suspended sites, failing DNS with and without a route, each also with mail for later."""
    now = wall_ms()
    then = now - HOUR
    timed = {"created_ms": then, "send_ms": then}
    later = {"created_ms": then, "send_ms": now + HOUR}
    everywhere = ("a@suspended.example", "b@unresolved.example", "c@outdated.example")
    spool.send(*everywhere, "d@fine.example", **timed)
    for address in (*everywhere, "d@fine.example"):
        spool.send(address, f"x{address}", **timed)
        spool.send(address, **timed)
        spool.send(address, **later)
    for due in spool.engine.due_domains(spool.worker, 9, then):
        bad = due.name.startswith("unresolved")
        result = RouteResult.TEMPORARY if bad else RouteResult.MX
        ttl = 3 * HOUR if bad or not due.name.startswith("outdated") else HOUR // 2
        answer = spool.answer(due.name, result=result, site=f"mx.{due.name}", now=then, ttl=ttl)
        spool.engine.put_routes(spool.worker, [answer], then)
    lanes = {lane.site_key: lane for lane in spool.lease(want=9, now=now)}
    assert spool.claim(lanes["mx.outdated.example"], now=now) == [], "its route is too old"
    (due,) = spool.engine.due_domains(spool.worker, 9, now)
    answer = spool.answer(due.name, result=RouteResult.TEMPORARY, now=now)
    spool.engine.put_routes(spool.worker, [answer], now)
    spool.suspend(lanes["mx.suspended.example"], now + HOUR, now=now)
    assert dict(row[:2] for row in agree(spool)) == {"queued": 8, "deferred": 12}
    claimed = spool.claim(lanes["mx.fine.example"], limit=2, now=now)
    assert claimed
    agree(spool)
    assert sum(spool.client.stats(now).waiting.values()) == 20
    stores = spool.stores
    assert isinstance(stores, SQLiteStores)
    assert stores.tamper(
        "UPDATE domain SET site = (SELECT seq FROM site WHERE key = 'mx.fine.example'),"
        " generation = generation + 1 WHERE name = 'outdated.example'"
    )
    found_as_shown(spool)  # also what waits under the stamp of a site that its domain has left


def grown(spool: Spool, amount: int) -> None:
    """So many messages more, each at a domain of its own, half of them routed."""
    many = [submission(f"u@d{amount}-{n}.example") for n in range(amount)]
    spool.client.enqueue(many, T0)
    for due in spool.engine.due_domains(spool.worker, amount // 2, T0):
        answer = spool.answer(due.name, site=f"mx.{due.name}")
        spool.engine.put_routes(spool.worker, [answer], T0)


def steps(connection: apsw.Connection, step: Callable[[], object]) -> int:
    """How many instructions of SQLite a step takes, in tens."""
    taken = 0

    def count() -> bool:
        nonlocal taken
        taken += 1
        return False

    connection.set_progress_handler(count, 10)
    try:
        step()
    finally:
        connection.set_progress_handler(None)
    return taken


def test_looks_cost_the_same_however_much_waits(spool: Spool) -> None:
    """Instructions, not time: the looks of a start, of each moment, and of a person."""
    engine = spool.engine
    own = engine._connection.opened()  # type: ignore[attr-defined]
    reader = connect(spool.client.path, read_only=True)  # type: ignore[attr-defined]
    looks: dict[str, Callable[[], int]] = {
        "next_due": lambda: steps(own, lambda: engine.next_due_ms(T0)),
        "expire": lambda: steps(own, lambda: engine.expire(100, T0)),
        "routes": lambda: steps(own, lambda: engine.use_routes("policy", T0)),
        "count": lambda: steps(reader, lambda: reader.execute(COUNTED).fetchall()),
    }
    engine.use_routes("policy", T0)
    taken: list[dict[str, int]] = []
    for amount in (40, 1_000):
        grown(spool, amount)
        taken.append({name: look() for name, look in looks.items()})
    reader.close()
    few, many = taken
    assert all(many[name] <= few[name] * 1.5 + 3 for name in looks), (few, many)


def test_what_waits_at_a_suspended_site_is_counted_within_an_index(spool: Spool) -> None:
    """Instructions: the view, which tells messages, too, looks for each one of them."""
    now = wall_ms()
    taken: list[int] = []
    spool.send("first@example.org", created_ms=now - HOUR, send_ms=now - HOUR)
    spool.route(now=now - HOUR, ttl=9 * HOUR)
    spool.suspend(spool.lane(now=now - HOUR), now + HOUR, since=now - HOUR, now=now - HOUR)
    reader = connect(spool.client.path, read_only=True)  # type: ignore[attr-defined]
    for amount in (100, 1_000):
        times = {"created_ms": now - HOUR, "send_ms": now - HOUR}
        many = [submission(f"u{n}@example.org", **times) for n in range(amount)]
        spool.client.enqueue(many, now - HOUR)
        taken.append(steps(reader, lambda: reader.execute(STATEMENTS["waiting"]).fetchall()))
    reader.close()
    assert spool.client.stats(now).waiting["deferred"] == 1_101
    agree(spool)
    assert (taken[1] - taken[0]) * 10 < 1_000 * 20, "so many instructions for a recipient"


def test_what_few_messages_are_is_found_at_the_same_cost_however_many_are_not(spool: Spool) -> None:
    """Instructions; of a deep queue the newest are walked over, and the rest is not."""
    reader = connect(spool.client.path, read_only=True)  # type: ignore[attr-defined]
    taken: list[dict[str, int]] = []
    for amount in (40, 1_000):
        grown(spool, amount)
        words = ("deferred", "sending", "held", "delivered", "failed", "cancelled", "partial")
        asked = {word: Selection(statuses=(word,)) for word in words}
        asked |= {"reason": Selection(reasons=("connect",))}
        taken.append({
            name: steps(reader, partial(finding.find, reader, one, limit=9, after=None))
            for name, one in asked.items()
        })  # fmt: skip
    reader.close()
    few, many = taken
    assert all(many[name] <= few[name] * 1.5 + 3 for name in few), (few, many)


def test_few_that_wait_are_found_at_the_same_cost_however_many_have_ended(spool: Spool) -> None:
    reader = connect(spool.client.path, read_only=True)  # type: ignore[attr-defined]
    waiting = ("queued", "sending", "deferred", "held")
    first = spool.send()
    taken: list[list[int]] = []
    for amount in (40, 1_000):
        many = [submission(f"u{n}@example.org") for n in range(amount)]
        change(spool.client, "cancel", [str(id) for id in spool.client.enqueue(many, T0)], None, T0)
        taken.append([])
        for words in (("queued",), waiting):
            asked = partial(finding.find, reader, Selection(statuses=words), limit=9, after=None)
            assert asked() == [first]
            taken[-1].append(steps(reader, asked))
    reader.close()
    assert all(many <= few * 1.5 + 3 for few, many in zip(*taken, strict=True)), taken


def test_recent_walks_over_nothing_that_is_finished(spool: Spool) -> None:
    reader = connect(spool.client.path, read_only=True)  # type: ignore[attr-defined]
    taken: list[int] = []
    for amount in (40, 1_000):
        many = [submission(f"u{n}@example.org") for n in range(amount)]
        ids = [str(id) for id in spool.client.enqueue(many, T0)]
        change(spool.client, "cancel", ids, None, T0)
        while any(one.completed for one in spool.client.recent(500)):
            pass
        taken.append(steps(reader, lambda: asking.recent(reader, 9)))
    last = spool.send()
    assert asking.recent(reader, 9).ids == [last]
    reader.close()
    assert taken[1] <= taken[0] * 1.5 + 3


def test_what_is_due_longest_is_found_where_its_site_is_left_alone(spool: Spool) -> None:
    spool.send("old@slow.example", send_ms=T0 - 500, created_ms=T0 - 500)
    spool.route("slow.example", site="mx.slow.example")
    lane = spool.lane()
    spool.suspend(lane, T0 + HOUR)
    for n in range(20):
        spool.send(f"a@d{n}.example", send_ms=T0 - 100 + n, created_ms=T0 - 100 + n)
    found = spool.client.stats(T0).oldest_due_at
    assert found is not None
    assert round(found.timestamp() * 1000) == T0 - 500
