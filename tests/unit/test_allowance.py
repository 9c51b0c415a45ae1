"""What one client may take, and what is said of those who want more."""

from __future__ import annotations

import io
import json
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom import events
from mailstrom.config.listening import networks
from mailstrom_workers import allowance, refusals
from mailstrom_workers.allowance import Connections, Pace, client_of
from mailstrom_workers.refusals import Refusals
from mailstrom_workers.terms import Networks


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%lo", "fe80::/64"),
        ("", ""),
        ("nonsense", "nonsense"),
    ],
)
def test_whom_an_address_belongs_to(address: str, client: str) -> None:
    assert client_of(address) == client


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%eth0", True),
        ("128.0.0.1", False),
        ("::2", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_who_is_within_networks(address: str, inside: bool) -> None:
    some = Networks(networks(["127.0.0.0/8", "::1", "fe80::/10"]))
    assert [address in some for _ in range(2)] == [inside, inside]


@given(
    st.lists(st.tuples(st.ip_addresses(), st.integers(0, 128)), max_size=8),
    st.lists(st.ip_addresses(), max_size=8),
)
def test_networks_hold_what_the_library_says(
    drawn: list[tuple[IPv4Address | IPv6Address, int]], asked: list[IPv4Address | IPv6Address]
) -> None:
    members = [
        ip_network(f"{one}/{min(length, one.max_prefixlen)}", strict=False) for one, length in drawn
    ]
    some = Networks(members)
    for address in [*asked, *(one.network_address for one in members)]:
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        meant = mapped or address
        assert (str(address) in some) is any(meant in one for one in members)


def test_networks_remember_a_bounded_number_of_addresses() -> None:
    some = Networks(networks(["10.0.0.0/8"]))
    for number in range(10_000):
        assert f"10.0.{number >> 8}.{number & 255}" in some
    assert len(some._known) <= 4096


def test_connections_are_counted_and_forgotten() -> None:
    open_ones = Connections()
    for _ in range(2):
        open_ones.add("a")
    open_ones.add("b")
    open_ones.remove("a")
    assert (open_ones.all, open_ones.of("a"), open_ones.of("b"), open_ones.of("c")) == (2, 1, 1, 0)
    open_ones.remove("a")
    open_ones.remove("b")
    assert (open_ones.all, open_ones._of) == (0, {})


def test_a_minutes_messages_at_once_and_then_its_share() -> None:
    pace = Pace()
    assert [pace.take("a", 6, 100.0) for _ in range(8)] == [True] * 6 + [False] * 2
    assert pace.take("b", 6, 100.0)
    assert not pace.take("a", 6, 109.0)
    assert pace.take("a", 6, 111.0)  # a tenth of a minute each
    assert not pace.take("a", 6, 111.0)
    assert all(pace.take("a", 0, 111.0) for _ in range(100))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "MOST_KNOWN", 10)
    monkeypatch.setattr(refusals, "MOST_KNOWN", 10)
    pace, told = Pace(), Refusals(lambda: 0.0)
    for number in range(100):
        pace.take(str(number), 5, 0.0)
        told.tell(str(number), "why")
    assert len(pace._used) == len(told._told) == 10


def test_a_flood_is_a_few_lines_with_a_count() -> None:
    stream, now_s = io.StringIO(), 0.0
    told = Refusals(lambda: now_s)
    with events.captured(stream):
        for _ in range(1000):
            told.tell("192.0.2.1", "too many connections")
        now_s = 11.0
        told.tell("192.0.2.1", "too many connections", user="joe")
        for number in range(1000):
            told.tell(f"198.51.100.{number}", "relaying denied")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("again") for line in lines[:2]] == [None, 999]
    assert lines[1]["user"] == "joe"
    assert len(lines) == 1 + refusals.BURST
