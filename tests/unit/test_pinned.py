"""When the alarm over a pinned log speaks, and what it says."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mailstrom import events
from mailstrom.storage.pinned import LogHolder, Pinned
from mailstrom_workers.pinned import PinAlarm

READER = LogHolder(pid=41, command="sqlite3")
OTHER = LogHolder(pid=42, command="dbeaver")


def pin(*holders: LogHolder, sure: bool = True) -> Pinned:
    return Pinned(holders=holders, sure=sure, limit_bytes=1_000)


class Heard:
    """The lines written since the last look."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def __call__(self) -> list[dict[str, Any]]:
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def heard() -> Iterator[Heard]:
    found = Heard()
    events.configure(format="json", level="info", stream=found.stream)
    yield found
    events.silence()


def test_it_speaks_after_a_moment_then_each_minute_then_says_the_end(heard: Heard) -> None:
    alarm = PinAlarm("/spool.db")
    alarm.look(pin(READER), 500, 10_000)
    assert heard() == []
    alarm.look(pin(READER), 600, 11_000)
    (line,) = heard()
    assert line["event"] == "store.pinned"
    assert (line["holder_pid"], line["command"], line["held_s"]) == (41, "sqlite3", 1.0)
    assert (line["wal_bytes"], line["limit_bytes"], line["full"]) == (600, 1_000, False)
    alarm.look(pin(READER), 600, 70_999)
    assert heard() == []
    alarm.look(pin(READER), 600, 71_000)
    assert [line["event"] for line in heard()] == ["store.pinned"]
    alarm.look(None, 0, 72_000)
    (line,) = heard()
    assert (line["event"], line["held_s"], line["wal_bytes"]) == ("store.unpinned", 62.0, 0)
    alarm.look(None, 0, 73_000)
    assert heard() == []


def test_what_lasts_only_a_moment_is_not_said(heard: Heard) -> None:
    alarm = PinAlarm("/spool.db")
    for now_ms in range(0, 100_000, 1_000):
        alarm.look(pin(READER), 500, now_ms)
        alarm.look(None, 0, now_ms + 500)
    assert heard() == []


def test_the_limit_is_said_at_once_and_once(heard: Heard) -> None:
    alarm = PinAlarm("/spool.db")
    alarm.look(pin(READER), 1_000, 0)
    (line,) = heard()
    assert line["full"]
    assert "have stopped" in line["advice"]
    assert alarm.full
    alarm.look(pin(READER), 1_100, 250)
    assert heard() == []
    alarm.look(None, 0, 500)
    assert not alarm.full
    assert [line["event"] for line in heard()] == ["store.unpinned"]


def test_who_holds_it_longest_is_named_and_the_others_listed(heard: Heard) -> None:
    alarm = PinAlarm("/spool.db")
    alarm.look(pin(OTHER), 500, 0)
    alarm.look(pin(READER, OTHER), 500, 2_000)
    (line,) = heard()
    assert (line["holder_pid"], line["held_s"], line["others"]) == (42, 2.0, ["41 (sqlite3)"])


def test_where_who_was_named_is_gone_the_next_is_named_soon(heard: Heard) -> None:
    alarm = PinAlarm("/spool.db")
    alarm.look(pin(READER), 2_000, 0)
    (line,) = heard()
    assert line["holder_pid"] == 41
    alarm.look(pin(READER, OTHER), 2_000, 3_000)
    alarm.look(pin(OTHER), 2_000, 4_500)
    assert heard() == []
    alarm.look(pin(OTHER), 2_000, 5_000)
    (line,) = heard()
    assert (line["holder_pid"], line["held_s"], line["full"]) == (42, 2.0, True)
    alarm.look(pin(OTHER), 2_000, 60_000)
    assert heard() == []


def test_readers_that_take_turns_are_not_named_one_after_the_other(heard: Heard) -> None:
    alarm = PinAlarm("/spool.db")
    alarm.look(pin(READER), 500, 0)
    alarm.look(pin(READER), 500, 1_000)
    assert len(heard()) == 1
    for now_ms in range(1_500, 61_000, 500):
        one = LogHolder(pid=now_ms, command="report")
        alarm.look(pin(one), 500, now_ms)
    assert heard() == []


def test_where_nobody_can_tell_nobody_is_accused(heard: Heard) -> None:
    alarm = PinAlarm("/spool.db")
    alarm.look(pin(READER, OTHER, sure=False), 1_000, 0)
    (line,) = heard()
    assert "holder_pid" not in line
    assert line["others"] == ["41 (sqlite3)", "42 (dbeaver)"]
    PinAlarm("/spool.db").look(pin(sure=False), 1_000, 0)
    (line,) = heard()
    assert "lsof" in line["advice"]
