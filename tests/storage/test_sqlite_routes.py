"""Damage to what is known of a domain or a site: looked up again, and nobody else waits for it."""

from __future__ import annotations

import apsw
import pytest

from mailstrom.types import RouteResult
from tests.storage.files import SQLiteStores
from tests.storage.spool import DAY, HOUR, T0, Spool


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
    spool.engine.put_routes(spool.worker, [spool.answer("example.org")], T0)
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


HOSTS = "CAST(x'5b5b31302c20226d78ff2e6578616d706c652e6f7267222c206e756c6c5d5d' AS TEXT)"
"""JSON but for one byte of the host's name."""


@pytest.mark.parametrize(
    ("column", "serves"),
    [("hosts", False), ("provider", True), ("key", True), ("last_reply", True)],
)
def test_a_text_of_a_site_that_is_none_stops_no_other(
    stores: SQLiteStores, spool: Spool, column: str, serves: bool
) -> None:
    spool.send("a@example.org", id="first")
    spool.send("b@example.net", id="other")
    spool.route("example.org")
    spool.route("example.net")
    damage(stores, f"UPDATE site SET {column} = {HOSTS} WHERE key = 'mx.example.org'")
    lanes = spool.lease(want=5)
    assert {lane.hosts[0].name for lane in lanes} == {"mx.example.net"} | (
        {"mx.example.org"} if serves else set()
    )
    if not serves:
        spool.route("example.org")
        (healed,) = spool.lease(now=T0 + 60_000, want=5)
        assert [host.name for host in healed.hosts] == ["mx.example.org"]
        spool.sound()


@pytest.mark.parametrize("column", ["hosts", "error", "result"])
def test_a_text_of_a_domain_that_is_none_stops_nobody(
    stores: SQLiteStores, spool: Spool, column: str
) -> None:
    spool.send("a@example.org", id="first")
    spool.send("b@example.net", id="other")
    spool.route("example.org")
    damage(
        stores,
        "UPDATE recipient SET site = NULL; UPDATE domain SET due_ms = 1;"
        f"UPDATE domain SET {column} = {HOSTS} WHERE name = 'example.org'",
    )
    due = {one.name: one for one in spool.engine.due_domains(spool.worker, 10, T0)}
    assert set(due) == {"example.org", "example.net"}
    assert (due["example.org"].cached is None) == (column != "error")
    spool.engine.put_routes(spool.worker, [spool.answer("example.org")], T0)
    assert spool.lane().hosts[0].name == "mx.example.org"
    spool.engine.give_back(spool.worker, {"example.net": 0})
    spool.sound()


def test_a_domain_whose_name_is_no_text_is_met_once(stores: SQLiteStores, spool: Spool) -> None:
    spool.send("a@example.org", id="first")
    spool.send("b@example.net", id="other")
    damage(
        stores,
        f"UPDATE domain SET name = {HOSTS}, due_ms = 1 WHERE name = 'example.org'",
    )
    found = [spool.engine.due_domains(spool.worker, 1, T0) for _ in range(3)]
    assert [one.name for some in found for one in some] == ["example.net"]
    assert spool.engine.next_due_ms(T0) is None, "nobody is woken for it"
    assert any("has a name that is no text" in text for text in spool.client.check())


def test_a_damaged_site_of_many_domains_has_few_looked_up(
    stores: SQLiteStores, spool: Spool
) -> None:
    names = [f"customer{n}.example" for n in range(60)]
    spool.send(*[f"a@{name}" for name in names])
    for due in spool.engine.due_domains(spool.worker, 99, T0):
        answer = spool.answer(due.name, site="relay.example", ttl=DAY)
        spool.engine.put_routes(spool.worker, [answer], T0)
    damage(stores, "UPDATE site SET hosts = '[]'")
    assert spool.lease(want=5) == []
    due = spool.engine.due_domains(spool.worker, 99, T0)
    assert len(due) == 60, "all wait for their site"
    looked_up = [one for one in due if one.cached is None]
    assert len(looked_up) == 20
    answer = spool.answer(looked_up[0].name, site="relay.example")
    spool.engine.put_routes(spool.worker, [answer], T0)
    (lane,) = spool.lease(now=T0 + 60_000, want=1)
    assert [host.name for host in lane.hosts] == ["relay.example"]


def test_a_damaged_site_ends_no_pause_of_dns(stores: SQLiteStores, spool: Spool) -> None:
    spool.send(*[f"u{n}@example.org" for n in range(600)])
    spool.route(ttl=1)
    later = T0 + HOUR
    damage(stores, f"UPDATE domain SET due_ms = {T0}")
    spool.route(result=RouteResult.TEMPORARY, now=later, ttl=300_000)
    damage(stores, "UPDATE site SET hosts = '[]', next_due_ms = 0")
    for second in (1_000, 2_000, 3_000):
        assert spool.lease(now=later + second, want=5) == []
        assert spool.engine.due_domains(spool.worker, 9, later + second) == []
    spool.route(now=later + 300_000)
    (lane,) = spool.lease(now=later + 300_000)
    assert [host.name for host in lane.hosts] == ["mx.example.org"]


def test_looking_for_domains_waits_for_nobodys_lock_where_none_is_due(
    stores: SQLiteStores, spool: Spool
) -> None:
    spool.send("a@example.org")
    (due,) = spool.engine.due_domains(spool.worker, 10, T0)
    assert due.name == "example.org"
    connection = apsw.Connection(str(stores.path))
    try:
        connection.execute("BEGIN IMMEDIATE")
        assert spool.engine.due_domains(spool.worker, 10, T0) == [], "it is taken"
    finally:
        connection.close()
