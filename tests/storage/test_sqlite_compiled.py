"""Statements stay compiled: an exchange for many lanes has nothing else compiled anew."""

from __future__ import annotations

from typing import Any

import apsw
import pytest

from mailstrom.storage.base import ClaimRequest, Open, Work
from mailstrom.storage.sqlite.place import FilePlace
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool, session_row, settlement

SITES = 40
"""Their claims are more executions than apsw's own default lets a statement rest."""


def test_what_every_lane_does_is_compiled_once(
    stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[apsw.Connection] = []
    connect = FilePlace.connect

    def noting(place: FilePlace, **how: Any) -> apsw.Connection:
        connection = connect(place, **how)
        if how.get("checkpoint_frames") == 0:
            opened.append(connection)
        return connection

    monkeypatch.setattr(FilePlace, "connect", noting)
    spool = Spool(stores)
    (connection,) = opened

    def compiled(turn: int) -> int:
        """One message at each of new sites, from its route to the end of its lane."""
        before = connection.cache_stats()["misses"]
        for number in range(SITES):
            spool.send(f"u@d{turn}-{number}.example")
        due = spool.engine.due_domains(spool.worker, SITES, T0)
        spool.engine.put_routes(spool.worker, [spool.answer(one.name) for one in due], T0)
        lanes = {lane.token: lane for lane in spool.lease(want=SITES)}
        claims = [ClaimRequest(lane=token, limit=1, max_bytes=8192) for token in lanes]
        found = spool.engine.exchange(Work(claims=claims), T0).claimed
        assert len(found) == SITES
        rows = [session_row(f"s{turn}-{row.lane}", lanes[row.lane]) for row in found]
        opens = [
            Open(lane=row.lane, recipients=(row.recipient,), session=session.id)
            for row, session in zip(found, rows, strict=True)
        ]
        spool.engine.exchange(Work(sessions=rows, opens=opens), T0)
        ends = [settlement(row.lane, row.recipient, "delivered") for row in found]
        assert len(spool.engine.exchange(Work(settlements=ends), T0).settled) == SITES
        spool.engine.release(list(lanes), T0)
        return int(connection.cache_stats()["misses"] - before)

    assert compiled(1) > 0
    assert compiled(2) == 0
