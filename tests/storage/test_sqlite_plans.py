"""What the store runs: statements are compiled once, and many sites share theirs.

What is bound changes no plan, and compiling costs the most; each statement may wait for the
interpreter with the lock held.
"""

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
    connection = spool.engine._connection.opened()
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


def run_for(spool: Spool, count: int, tag: str) -> tuple[int, int]:
    """How many statements it takes to store so many routes, and to lease their lanes."""
    assert isinstance(spool.engine, SQLiteWorkerStore)
    spool.send(*[f"a@{tag}{number}.example" for number in range(count)])
    due = spool.engine.due_domains(spool.worker, count, T0)
    answers = [spool.answer(one.name) for one in due]
    assert len(answers) == count
    ran: list[str] = []

    def note(_cursor: object, statement: str, _values: object) -> bool:
        ran.append(statement)
        return True

    connection = spool.engine._connection.opened()
    connection.exec_trace = note
    try:
        spool.engine.put_routes(spool.worker, answers, T0)
        routing = len(ran)
        assert len(spool.lease(want=count)) == count
        return routing, len(ran) - routing
    finally:
        connection.exec_trace = None


def test_many_sites_are_routed_and_leased_by_the_statements_of_few(spool: Spool) -> None:
    few = run_for(spool, 2, "few")
    many = run_for(spool, 50, "many")
    assert many[0] == few[0] + 48  # each domain's recipients are stamped by themselves
    assert many[1] == few[1]
