"""A repair proves a long log before it takes the write lock, and the same bytes only once.

What is followed while the lock is held is counted in bytes: of a proved log it is the head alone.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailstrom.errors import SpoolError
from mailstrom.storage.sqlite import connection as connections
from mailstrom.storage.sqlite import frames, poison, wal
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, submission

EIO = OSError(errno.EIO, os.strerror(errno.EIO))
HEAD = frames.HEAD_BYTES - 8  # what is summed of it
SUMMED = frames.FRAME_BYTES - 16  # and of a frame


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def client(path: str) -> Iterator[SQLiteClientStore]:
    """With a log of some 3 MiB: more than what is read at a time."""
    store = SQLiteClientStore(path)
    for _ in range(3):
        store.enqueue([submission(content=b"x" * 1_000_000)], T0)
    yield store
    store.close()


@pytest.fixture
def engine(path: str, client: SQLiteClientStore) -> Iterator[SQLiteWorkerStore]:
    store = SQLiteWorkerStore(path, busy_ms=5)
    poison.poison(path, EIO)
    yield store
    store.close()


@pytest.fixture
def followed(engine: SQLiteWorkerStore, monkeypatch: pytest.MonkeyPatch) -> dict[bool, int]:
    """How many bytes the checksums were followed over, without the write lock and with it."""
    counts = {False: 0, True: 0}
    real = frames.checksum

    def checksum(data: bytes, before: tuple[int, int], words: struct.Struct) -> tuple[int, int]:
        counts[engine._connection.opened().in_transaction] += len(data)
        return real(data, before, words)

    monkeypatch.setattr(frames, "checksum", checksum)
    return counts


def after_the_proof(
    engine: SQLiteWorkerStore, monkeypatch: pytest.MonkeyPatch, step: Callable[[], object]
) -> None:
    """Let something happen between the proof and the lock, once."""
    begin = engine._sync.begin_repair

    def begun() -> poison.Mark:
        mark = begin()
        monkeypatch.setattr(engine._sync, "begin_repair", begin)
        step()
        return mark

    monkeypatch.setattr(engine._sync, "begin_repair", begun)


def frames_of(path: str) -> int:
    return (os.stat(f"{path}-wal").st_size - frames.HEAD_BYTES) // frames.FRAME_BYTES


def test_the_log_is_proved_before_the_lock_is_taken_and_once_while_it_stands_still(
    path: str, engine: SQLiteWorkerStore, followed: dict[bool, int]
) -> None:
    reader = connections.connect(path)
    reader.execute("BEGIN").fetchall()
    reader.execute("SELECT count(*) FROM message").fetchall()
    engine.tell("lanes_limit", 3)
    assert engine.repair() is False, "a reader still needs the frames"
    assert followed == {False: HEAD + frames_of(path) * SUMMED, True: HEAD}
    assert engine.repair() is False
    assert followed == {False: 2 * HEAD + frames_of(path) * SUMMED, True: 2 * HEAD}
    reader.close()
    assert engine.repair() is True


def test_what_was_written_since_the_proof_is_proved_under_the_lock(
    path: str,
    engine: SQLiteWorkerStore,
    followed: dict[bool, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = frames_of(path)
    after_the_proof(engine, monkeypatch, lambda: engine.tell("lanes_limit", 3))
    assert engine.repair() is True
    assert followed[False] == HEAD + first * SUMMED
    assert HEAD < followed[True] < frames._BATCH * SUMMED


def test_where_much_was_written_since_the_proof_the_lock_is_given_back_and_the_next_round_goes_on(
    path: str,
    engine: SQLiteWorkerStore,
    followed: dict[bool, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = frames_of(path)
    monkeypatch.setattr(frames, "_MOST_NEW", 2)
    after_the_proof(engine, monkeypatch, lambda: [engine.tell(f"k{n}", n) for n in range(9)])
    assert engine.repair() is False
    assert followed[True] <= HEAD + 2 * SUMMED
    new = frames_of(path) - first
    assert new >= 9
    assert engine.repair() is True
    assert followed[False] <= 2 * HEAD + (first + new + frames._BATCH) * SUMMED


def test_what_the_page_cache_lost_since_the_proof_is_not_moved(
    path: str, engine: SQLiteWorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose() -> None:
        with open(f"{path}-wal", "r+b", buffering=0) as stream:
            stream.seek(frames.HEAD_BYTES + 299 * frames.FRAME_BYTES)
            stream.write(bytes(frames.FRAME_BYTES))

    database = Path(path).read_bytes()
    after_the_proof(engine, monkeypatch, lose)
    assert engine.repair() is False
    assert re.search("frame 300 is not what was ", engine.unrepaired())
    assert Path(path).read_bytes() == database


def test_nothing_is_known_of_another_round_or_of_other_sums() -> None:
    known = frames.Known()
    known.begin(b"one")
    known.note(1, (1, 1), b"digest", (2, 2))
    known.begin(b"one")
    assert known.after(1, (1, 1), b"digest") == (2, 2)
    assert known.after(1, (1, 2), b"digest") is None
    assert known.after(1, (1, 1), b"another") is None
    assert known.after(2, (1, 1), b"digest") is None
    known.begin(b"two")
    assert known.after(1, (1, 1), b"digest") is None


def test_an_index_that_is_just_being_written_is_not_relied_on_without_the_lock(
    path: str, engine: SQLiteWorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = frames.index_head

    def torn(shm: os.stat_result) -> bytes:
        head = real(shm)
        assert head is not None
        return head[:47] + bytes([head[47] ^ 1]) + head[48:]

    fd = os.open(f"{path}-wal", os.O_RDONLY)
    monkeypatch.setattr(frames, "index_head", torn)
    with pytest.raises(SpoolError, match="just being written"):
        frames.prove(path, fd, frames.Known())
    os.close(fd)


def test_a_repair_waits_for_readers_no_longer_than_writers_may_wait_for_it(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that it ends with holds the write lock meanwhile."""
    engine = SQLiteWorkerStore(path)
    poison.poison(path, EIO)
    waits: list[object] = []
    real = engine._connection.opened()

    class Recording:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def set_busy_timeout(self, wait_ms: int) -> None:
            waits.append(wait_ms)

        def set_busy_handler(self, wait: object) -> None:
            waits.append(wait)

    with monkeypatch.context() as patch:
        patch.setattr(engine._connection, "opened", Recording)
        assert engine.repair() is True
    assert waits == [wal.LAST_MS, engine._connection.patience], "its own again"
    assert wal.LAST_MS < client._busy_ms < engine._connection.busy_ms
    engine.close()
