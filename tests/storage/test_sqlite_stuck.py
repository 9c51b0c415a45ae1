"""Rows that would wait for ever are told, with a remedy that works; far legal times are sound."""

from __future__ import annotations

import time

import pytest

from mailstrom.options import _LAST_MS
from mailstrom.storage.base import Retention
from tests.storage.files import SQLiteStores
from tests.storage.spool import DAY, HOUR, T0, Spool, change

LONGEST_MS = round(365 * DAY * 1.9)
"""The longest wait of a schedule, and its widest jitter."""


def stuck(spool: Spool) -> list[str]:
    """What is found of such rows."""
    words = ("later than anybody", "longer than any pause", "no time", "there were only", "to come")
    return [text for text in spool.client.check() if any(word in text for word in words)]


def test_the_farthest_legal_times_are_sound(spool: Spool) -> None:
    now = time.time_ns() // 1_000_000
    spool.send("a@example.org", id="far", send_ms=_LAST_MS)
    spool.send("b@example.org", id="farther", send_ms=_LAST_MS, expires_ms=_LAST_MS)
    spool.send("c@example.net", id="patient", expires_ms=_LAST_MS)
    spool.send("d@example.net", id="old")
    spool.send("e@example.org", id="now")
    spool.route("example.org")
    spool.route("example.net")
    deferred = 0
    for lane in spool.lease(want=2):
        rows = spool.claim(lane)
        spool.open(lane, rows)
        for row in rows:
            deferred += spool.settle(lane, row, "deferred", due_ms=now + LONGEST_MS)
        assert spool.suspend(lane, now + LONGEST_MS) == 1
    assert deferred == 3
    spool.sound()
    assert change(spool.client, "hold", ["far", "old"], None, now) == 2
    assert change(spool.client, "release", ["far", "old"], None, now) == 2
    spool.sound()


def test_a_pause_for_others_to_go_first_is_sound(spool: Spool, stores: SQLiteStores) -> None:
    spool.send("a@example.org")
    spool.route()
    assert stores.tamper("UPDATE site SET paused_ms = unixepoch() * 1000 + 2000") == 1
    spool.sound()


def test_a_clock_of_the_engine_that_is_far_ahead_is_believed(spool: Spool) -> None:
    ahead = time.time_ns() // 1_000_000 + 20 * LONGEST_MS
    spool.engine.keep_clock(wall_ms=ahead, monotonic_ms=0, boot="b", limit=10)
    _, lane, (row,) = spool.sending("a@example.org")
    assert spool.settle(lane, row, "deferred", due_ms=ahead + LONGEST_MS)
    assert spool.suspend(lane, ahead + LONGEST_MS) == 1
    spool.sound()


@pytest.mark.parametrize("send_ms", [T0, _LAST_MS], ids=["due", "scheduled"])
def test_hold_and_release_give_a_recipient_its_time_again(
    spool: Spool, stores: SQLiteStores, send_ms: int
) -> None:
    id = spool.send("a@example.org", send_ms=send_ms)
    assert stores.tamper("UPDATE recipient SET due_ms = 1 << 50") == 1
    stores.tamper("UPDATE site SET next_due_ms = 0")
    (told,) = stuck(spool)
    assert told.endswith(
        "'mailstrom queue hold ID' and then 'mailstrom queue release ID' give it its time again"
    )
    for word in ("hold", "release"):
        assert change(spool.client, word, [id], None, T0 + HOUR) == 1
    spool.sound()
    rows = spool.rows("SELECT next_attempt_ms FROM recipients")
    assert rows == [(max(send_ms, T0 + HOUR),)]


def test_a_retry_ends_a_pause_without_end(spool: Spool, stores: SQLiteStores) -> None:
    id = spool.send("a@example.org")
    other = spool.send("b@example.net")
    third = spool.send("c@example.com")
    spool.route()
    spool.route("example.com")
    for sql in (
        "UPDATE site SET suspended_until_ms = 1 << 50 WHERE key = 'mx.example.org'",
        "UPDATE site SET paused_ms = 1 << 50 WHERE key = 'mx.example.com'",
        "UPDATE domain SET retry_ms = 1 << 50 WHERE name = 'example.net'",
    ):
        assert stores.tamper(sql) == 1
    told = stuck(spool)
    assert len(told) == 3
    assert all("'mailstrom queue retry ID'" in text for text in told)
    now = time.time_ns() // 1_000_000
    assert change(spool.client, "retry", [id, other, third], None, now) == 3
    spool.sound()
    spool.route(now=now)
    spool.route("example.com", now=now)
    found = {lane.site_key for lane in spool.lease(now=now, want=5)}
    assert found == {"mx.example.org", "mx.example.com"}


@pytest.mark.parametrize(("last", "done"), [(1 << 50, 0), (2, -(1 << 50))])
def test_an_engines_next_look_ends_a_jump_without_end(
    spool: Spool, stores: SQLiteStores, last: int, done: int
) -> None:
    for _ in range(3):
        spool.send("a@example.org")
    look = {"monotonic_ms": 0, "boot": "b", "limit": 2}
    spool.engine.keep_clock(wall_ms=T0, **look)
    assert stores.tamper(
        "INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last, done)"
        f" VALUES ({T0}, {T0}, -1000, 0, 0, {last}, {done})"
    )
    (told,) = stuck(spool)
    assert "an engine ends it at its next look at the clock" in told
    for _ in range(2):
        spool.engine.keep_clock(wall_ms=T0 + 1, **look)
    spool.sound()
    assert spool.engine.expire(10, T0 + 30 * DAY) == 3, "expiry goes on"
    assert spool.engine.purge(Retention(), 10, T0 + 60 * DAY) > 0


def test_an_engines_next_look_ends_a_jump_that_is_yet_to_come(
    spool: Spool, stores: SQLiteStores
) -> None:
    _, lane, (row,) = spool.sending("a@example.org")
    assert spool.settle(lane, row, "delivered")
    look = {"monotonic_ms": 0, "boot": "b", "limit": 2}
    spool.engine.keep_clock(wall_ms=T0, **look)
    assert stores.tamper(
        "INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last, done)"
        f" VALUES (1 << 42, {T0}, -1000, 0, 0, 1, 1)"
    )
    (told,) = stuck(spool)
    assert "an engine ends it at its next look at the clock" in told
    later = T0 + 60 * DAY
    look["monotonic_ms"] = 60 * DAY
    spool.engine.keep_clock(wall_ms=later, **look)
    spool.sound()
    assert spool.engine.purge(Retention(), 10, later) == 0, "as after any jump"
    assert spool.engine.purge(Retention(), 10, later + 2 * HOUR) > 0


def test_a_jump_before_the_clock_went_back_is_sound(spool: Spool) -> None:
    now = time.time_ns() // 1_000_000
    for ahead in (0, 50 * LONGEST_MS, 0):
        spool.engine.keep_clock(wall_ms=now + ahead, monotonic_ms=0, boot="b", limit=2)
    spool.sound()
