"""Damage to what is known of a domain or a site: looked up again, and nobody else waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from mailstrom.types import RouteResult
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SQLiteStores]:
    found = SQLiteStores(tmp_path / "spool.db")
    with found.opened:
        yield found


@pytest.fixture
def spool(stores: SQLiteStores) -> Spool:
    return Spool(stores)


def damage(stores: SQLiteStores, sql: str) -> None:
    """Change a row as no statement of ours would."""
    connection = apsw.Connection(str(stores.path))
    try:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute(sql)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "column",
    [
        "result = 'mz'",
        "result = ''",
        "hosts = '[[10]]'",
        "hosts = '[1]'",
        "hosts = '{}'",
        "hosts = '7'",
        "hosts = '[[10, 5, null]]'",
        'hosts = \'[["x", "mx.example.org", null]]\'',
        "hosts = 'mx'",
    ],
)
def test_a_cached_route_that_cannot_be_read_is_looked_up(
    stores: SQLiteStores, spool: Spool, column: str
) -> None:
    spool.send("a@example.org", id="first")
    spool.send("b@example.net", id="other")
    spool.route("example.org")
    spool.route("example.net")
    spool.engine.use_routes("another policy", T0)  # all domains are to be looked at again
    damage(
        stores,
        "UPDATE recipient SET site = NULL;"
        "UPDATE domain SET due_ms = 1, expires_ms = 9999999999999;"
        f"UPDATE domain SET {column} WHERE name = 'example.org'",
    )
    due = {one.name: one for one in spool.engine.due_domains(spool.worker, 10, T0)}
    assert due["example.org"].cached is None or due["example.org"].cached.hosts == ()
    assert due["example.net"].cached is not None
    spool.engine.put_route(spool.worker, spool.answer("example.org"), T0)
    assert spool.lane().hosts[0].name == "mx.example.org"


@pytest.mark.parametrize("hosts", ["[1]", "[]", "{}", "7", "mx", '[["x", "y", "z"]]'])
def test_a_site_whose_hosts_cannot_be_read_is_looked_up_and_healed(
    stores: SQLiteStores, spool: Spool, hosts: str
) -> None:
    spool.send("a@example.org", id="first")
    spool.send("b@example.net", id="other")
    spool.route("example.org")
    spool.route("example.net")
    damage(stores, f"UPDATE site SET hosts = '{hosts}' WHERE key = 'mx.example.org'")
    (lane,) = spool.lease(want=5)
    assert lane.site_key == "mx.example.net"
    assert spool.lease(want=5) == []
    spool.route("example.org")
    later = T0 + 60_000
    (healed,) = spool.lease(now=later, want=5)
    assert [host.name for host in healed.hosts] == ["mx.example.org"]
    (row,) = spool.claim(healed, now=later)
    assert row.address == "a@example.org"
    spool.sound()


@pytest.mark.parametrize("result", sorted(set(RouteResult) - {RouteResult.TEMPORARY}))
def test_every_kind_of_answer_can_come_from_the_cache(
    stores: SQLiteStores, spool: Spool, result: RouteResult
) -> None:
    spool.send("a@example.org")
    spool.route("example.org", result=result)
    damage(stores, "UPDATE recipient SET site = NULL; UPDATE domain SET due_ms = 1, router = NULL")
    (due,) = spool.engine.due_domains(spool.worker, 10, T0)
    assert due.cached is not None
    assert due.cached.result is result
