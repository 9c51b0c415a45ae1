"""The wall clock jumps inside the janitor's round: nothing is judged by a clock not looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from mailstrom.config import Config
from mailstrom.errors import SpoolBusy
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom_workers.janitor import Janitor
from mailstrom_workers.machine import Machine
from tests.storage.spool import T0, submission

DAY = 86_400_000


class Clock:
    """A wall clock that can be put forward behind the janitor's look."""

    def __init__(self) -> None:
        self.monotonic_ms = 1_000_000
        self.ahead_ms = 0

    def wall_ms(self) -> int:
        """The machine's clock."""
        return T0 + self.monotonic_ms - 1_000_000 + self.ahead_ms


class Jumping(SQLiteWorkerStore):
    """A store in which the clock jumps while the look is written down, or before it is."""

    clock: Clock
    jump_ms = 0
    busy = False

    def keep_clock(self, *, wall_ms: int, monotonic_ms: int, boot: str, limit: int) -> int:
        """See ``WorkerStore.keep_clock``."""
        self.clock.ahead_ms += self.jump_ms
        if self.busy:
            raise SpoolBusy("the lock is taken")
        return super().keep_clock(
            wall_ms=wall_ms, monotonic_ms=monotonic_ms, boot=boot, limit=limit
        )


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A spool with a message that lives five days."""
    path = os.fspath(tmp_path / "spool.db")
    with closing(SQLiteClientStore(path)) as client:
        client.enqueue([submission("a@example.org", id="one")], T0)
    return path


@pytest.fixture
def clock() -> Clock:
    """What the janitor sees."""
    return Clock()


@pytest.fixture
def store(path: str, clock: Clock) -> Iterator[Jumping]:
    """The janitor's store."""
    with closing(Jumping(path)) as store:
        store.clock = clock
        yield store


@pytest.fixture
def janitor(path: str, clock: Clock) -> Janitor:
    """A janitor by this clock."""
    machine = Machine(
        wall_ms=clock.wall_ms, monotonic_ms=lambda: clock.monotonic_ms, boot_id=lambda: "a boot"
    )
    return Janitor(path, 0, Config(store=path, hostname="sender.test"), machine=machine)


def status(path: str) -> str:
    """Of the one message."""
    with closing(SQLiteClientStore(path)) as client:
        return str(client.statuses(["one"])["one"].status)


def test_a_jump_behind_the_look_expires_nothing(
    path: str, clock: Clock, store: Jumping, janitor: Janitor
) -> None:
    janitor.round(store)
    store.jump_ms = 10 * DAY
    janitor.round(store)
    assert status(path) == "queued"
    store.jump_ms = 0
    for _ in range(3):  # seen, and shifted into the message
        janitor.round(store)
    assert status(path) == "queued"
    clock.monotonic_ms += 6 * DAY
    janitor.round(store)
    assert status(path) == "failed"


def test_nothing_expires_while_no_look_succeeds(
    path: str, clock: Clock, store: Jumping, janitor: Janitor
) -> None:
    janitor.round(store)
    clock.ahead_ms += 10 * DAY
    store.busy = True
    with pytest.raises(SpoolBusy):
        janitor.round(store)
    assert status(path) == "queued"


def damage(path: str, change: str) -> None:
    """Put into the clock's row what no statement of ours would: any value of any type."""
    with closing(apsw.Connection(path)) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
        ((sql,),) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'clock'")
        loose = sql.replace("NOT NULL", "").replace("INTEGER ", "BLOB ").replace(") STRICT", ")")
        loose = loose.replace("BLOB PRIMARY", "INTEGER PRIMARY")
        put = "UPDATE sqlite_schema SET sql = ? WHERE name = 'clock'"
        for text, then in ((loose, f"UPDATE clock SET {change}"), (sql, "SELECT 1")):
            connection.execute(put, (text,))
            ((version,),) = connection.execute("PRAGMA schema_version")
            connection.execute(f"PRAGMA schema_version = {version + 1}")
            connection.execute(then).fetchall()


@pytest.mark.parametrize(
    "change",
    [
        "boot = CAST(x'61ff62' AS TEXT)",
        "boot = NULL",
        "boot = 7",
        "wall_ms = NULL",
        "wall_ms = 'late'",
        "wall_ms = 1.5",
        "wall_ms = -(1 << 62) * 2",
        "monotonic_ms = x'00'",
        "monotonic_ms = -(1 << 62) * 2",
        "last = NULL",
    ],
)
def test_a_damaged_look_is_written_anew(
    path: str, clock: Clock, store: Jumping, janitor: Janitor, change: str
) -> None:
    janitor.round(store)
    damage(path, change)
    clock.monotonic_ms += 1_000
    for _ in range(2):
        janitor.round(store)
    assert status(path) == "queued"
    with closing(apsw.Connection(path)) as connection:
        ((wall_ms, boot),) = connection.execute("SELECT wall_ms, boot FROM clock")
    assert (wall_ms, boot) == (clock.wall_ms(), "a boot")
    clock.monotonic_ms += 6 * DAY
    janitor.round(store)
    assert status(path) == "failed", "expiry goes on"
