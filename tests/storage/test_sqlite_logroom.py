"""Who is named when the log is full: whoever was seen to stay in the way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import apsw
import pytest

from mailstrom.errors import SpoolFull
from mailstrom.storage.pinned import LogHolder, Pinned
from mailstrom.storage.sqlite import logroom, wal

READER, SENDER, OTHER = (LogHolder(pid=pid, command="python") for pid in (11, 12, 13))


def _of(*holders: LogHolder) -> Pinned:
    return Pinned(holders=holders, sure=True)


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([_of(READER), _of(READER)], ": process 11 (python) keeps"),
        ([_of(READER, SENDER), _of(OTHER, READER)], ": process 11 (python) keeps"),
        ([_of(READER), _of(SENDER), _of(READER)], ": process 11 (python) keeps"),
        (
            [_of(READER), _of(SENDER), _of(OTHER), _of()],
            ": nobody any more (try again): until now a process keeps",
        ),
        ([_of(), _of(SENDER), _of(), _of()], ": nobody any more (try again): until now"),
        (
            [_of(READER), _of(SENDER), _of(OTHER), _of(LogHolder(pid=14, command="cat"))],
            ": one of process 11 (python), process 12 (python), process 13 (python),"
            " process 14 (cat) keeps",
        ),
        ([Pinned(), Pinned(), Pinned(), Pinned()], ": a process that this system does not name"),
    ],
)
def test_who_stays_in_the_way_is_named(
    looks: list[Pinned], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(looks)
    place: Any = SimpleNamespace(
        log_bytes=lambda: wal.LIMIT_BYTES, durable=SimpleNamespace(check=lambda: None)
    )
    monkeypatch.setattr(wal, "pinned", lambda _path: next(told))
    monkeypatch.setattr(wal, "limit_bytes", lambda _connection: wal.LIMIT_BYTES)
    connection = apsw.Connection(":memory:")
    room = logroom.LogRoom("/spool.db", place, 100)
    with pytest.raises(SpoolFull) as refused:
        room.require(lambda: connection)
    assert said in str(refused.value)
    assert next(told, None) is None
