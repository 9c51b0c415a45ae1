"""Statements are compiled once: what is bound changes no plan, and compiling costs the most."""

from __future__ import annotations

import apsw

from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.storage.spool import T0, Spool


def life(spool: Spool, domain: str, now: int) -> None:
    """One message from the store to its delivery, at a site of its own."""
    spool.send(f"a@{domain}")
    spool.route(domain, now=now)
    lane = spool.lane(now=now)
    rows = spool.claim(lane, now=now)
    assert spool.open(lane, rows, now=now) == {rows[0].recipient}
    assert spool.settle(lane, rows[0], "delivered", now=now + 200)
    spool.engine.release([lane.token], now + 300)


def test_a_second_message_compiles_nothing(spool: Spool) -> None:
    assert isinstance(spool.engine, SQLiteWorkerStore)
    connection = spool.engine._connection()
    compiled: list[tuple[object, ...]] = []

    def note(*what: object) -> int:  # asked for each thing that a statement touches, as it compiles
        compiled.append(what)
        return apsw.SQLITE_OK

    connection.authorizer = note
    try:
        life(spool, "first.example", T0)
        assert compiled
        life(spool, "second.example", T0 + 10_000)  # some steps are not taken the first time
        compiled.clear()
        for number in range(3, 8):
            life(spool, f"site{number}.example", T0 + number * 10_000)
        assert compiled == []
    finally:
        connection.authorizer = None
