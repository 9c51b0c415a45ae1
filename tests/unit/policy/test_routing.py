"""Order of hosts, site keys, providers, addresses."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.policy.routing import (
    MAX_SITE_KEY,
    drop_self,
    interleave,
    order_hosts,
    provider,
    refused_address,
    site_key,
)
from mailstrom.types import Host

labels = st.text("abc1-", min_size=1, max_size=8)
hosts = st.lists(
    st.builds(Host, preference=st.integers(0, 4), name=labels.map(lambda s: f"{s}.test")),
    min_size=1,
    max_size=20,
)


def host(preference: int, name: str, port: int | None = None) -> Host:
    return Host(preference=preference, name=name, port=port)


@given(hosts, st.randoms())
def test_order_is_a_permutation_with_rising_preferences(
    some: list[Host], source: random.Random
) -> None:
    ordered = order_hosts(some, source.random)
    assert Counter(ordered) == Counter(some)
    preferences = [one.preference for one in ordered]
    assert preferences == sorted(preferences)


def test_equals_are_shuffled() -> None:
    equals = [host(10, f"mx{i}.test") for i in range(4)]
    source = random.Random(7)
    first = Counter(order_hosts(equals, source.random)[0].name for _ in range(400))
    assert set(first) == {one.name for one in equals}
    assert min(first.values()) > 50


@given(hosts, st.sets(labels.map(lambda s: f"{s}.test"), max_size=3))
def test_what_stays_is_better_than_ourselves(some: list[Host], own: set[str]) -> None:
    kept = drop_self(some, own)
    ours = [one.preference for one in some if one.name in own]
    assert kept == [one for one in some if not ours or one.preference < min(ours)]
    assert not any(one.name in own for one in kept)


@given(hosts, st.randoms())
def test_a_site_key_does_not_depend_on_order_or_numbers(
    some: list[Host], source: random.Random
) -> None:
    key = site_key(some, 25)
    other = list(some)
    source.shuffle(other)
    scaled = [host(one.preference * 10 + 5, one.name) for one in other]
    assert site_key(scaled, 25) == key
    assert len(key) <= MAX_SITE_KEY


def test_site_keys() -> None:
    assert site_key([host(10, "b.test"), host(10, "a.test"), host(20, "c.test")], 25) == (
        "a.test,b.test;c.test"
    )
    assert site_key([host(0, "a.test")], 2525) == "a.test:2525"
    assert site_key([host(0, "a.test", 25), host(0, "b.test", 587)], 2525) == "a.test,b.test:587"
    assert site_key([host(0, "2001:db8::1")], 2525) == "[2001:db8::1]:2525"
    assert site_key([host(20, "a.test"), host(10, "a.test")], 25) == "a.test"


def test_groups_matter_for_a_site_key() -> None:
    same = [host(10, "a.test"), host(10, "b.test")]
    ranked = [host(10, "a.test"), host(20, "b.test")]
    turned = [host(20, "a.test"), host(10, "b.test")]
    assert len({site_key(one, 25) for one in (same, ranked, turned)}) == 3


def test_long_site_keys_are_short_and_still_different() -> None:
    many = [host(i, f"mail-exchange-number-{i}.some-long-domain.test") for i in range(50)]
    keys = {site_key(many[:count], 25) for count in range(2, 51)}
    assert len(keys) == 49
    assert max(map(len, keys)) <= MAX_SITE_KEY
    longest = host(1, ".".join(["x" * 60] * 4))
    assert len(site_key([longest], 25)) <= MAX_SITE_KEY


def test_a_site_without_hosts_is_a_bug() -> None:
    with pytest.raises(ValueError, match="host"):
        site_key([], 25)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aspmx.l.google.com", "google"),
        ("gmail-smtp-in.l.google.com", "google"),
        ("d-test.mail.protection.outlook.com", "microsoft365"),
        ("outlook-com.olc.protection.outlook.com", "outlook"),
        ("d-test.x-v1.mx.microsoft", "microsoft365"),
        ("mta5.am0.yahoodns.net", "yahoo"),
        ("mx01.mail.icloud.com", "icloud"),
        ("mx1.example.test", "example.test"),
        ("a.mx1.example.test", "mx1.example.test"),
        ("example.test", "example.test"),
        ("notgoogle.com", "notgoogle.com"),
        ("localhost", None),
        ("192.0.2.1", None),
        ("2001:db8::1", None),
    ],
)
def test_provider(name: str, expected: str | None) -> None:
    assert provider([host(20, "backup.other.test"), host(10, name)]) == expected


def test_no_hosts_no_provider() -> None:
    assert provider([]) is None


LOOPBACK, LINK = "loopback address", "link-local address"
REFUSED = {
    "127.0.0.1": LOOPBACK,
    "127.255.255.254": LOOPBACK,
    "0.0.0.0": "unspecified address",
    "0.1.2.3": "this-network address",
    "169.254.0.0": LINK,
    "169.254.169.254": LINK,  # where cloud providers tell a machine its secrets
    "169.254.255.255": LINK,
    "224.0.0.1": "multicast address",
    "239.255.255.255": "multicast address",
    "240.0.0.1": "reserved address",
    "255.255.255.254": "reserved address",
    "255.255.255.255": "broadcast address",
}
ALLOWED = ("192.0.2.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.253.255.255",
           "169.255.0.0", "1.0.0.0", "223.255.255.255", "128.0.0.1", "126.255.255.255")  # fmt: skip


def carried(ip: str) -> list[str]:
    """IPv6 addresses that stand for an IPv4 one."""
    high, low = int(IPv4Address(ip)) >> 16, int(IPv4Address(ip)) & 0xFFFF
    found = [
        f"::ffff:{ip}",
        f"::ffff:0:{high:x}:{low:x}",
        f"64:ff9b::{high:x}:{low:x}",
        f"2002:{high:x}:{low:x}::1",
        f"64:ff9b:1:{high:x}:{low >> 8:x}:{(low & 0xFF) << 8:x}::",
    ]
    return found if ip == "0.0.0.0" else [*found, f"64:ff9b:1::{high:x}:{low:x}"]


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        *REFUSED.items(),
        *((long, reason) for ip, reason in REFUSED.items() for long in carried(ip)),
        *((ip, None) for ip in ALLOWED),
        *((long, None) for ip in ALLOWED for long in carried(ip)),
        ("::1", LOOPBACK),
        ("::", "unspecified address"),
        ("::127.0.0.1", "reserved address"),
        ("::192.0.2.1", "reserved address"),
        ("4000::1", "reserved address"),
        ("fe80::1", LINK),
        ("fe80::1%eth0", LINK),
        ("febf:ffff::1", LINK),
        ("ff02::1", "multicast address"),
        ("2001:db8::1", None),
        ("2a00::1", None),
        ("fd00::1", None),
        ("mail.test", "not an IP address"),
        ("127.1", "not an IP address"),
    ],
)
def test_refused_addresses(ip: str, reason: str | None) -> None:
    assert refused_address(ip) == reason
    assert refused_address(ip, loopback=True) == (None if reason == LOOPBACK else reason)
    near = reason in (LOOPBACK, LINK)
    assert refused_address(ip, relay=True) == (None if near else reason)


ips = st.lists(st.integers(0, 40).map(lambda n: f"192.0.2.{n}"), unique=True, max_size=12)
ips6 = st.lists(st.integers(0, 40).map(lambda n: f"2001:db8::{n}"), unique=True, max_size=12)


@given(ips, ips6, st.sampled_from(["ipv4", "ipv6"]), st.integers(1, 30))
def test_neither_family_starves_the_other(
    v4: list[str], v6: list[str], prefer: str, most: int
) -> None:
    chosen = interleave(v4, v6, "ipv4" if prefer == "ipv4" else "ipv6", most)
    assert len(chosen) == min(most, len(v4) + len(v6))
    assert len(set(chosen)) == len(chosen)
    assert [ip for ip in chosen if ip in v4] == v4[: sum(ip in v4 for ip in chosen)]
    if v4 and v6 and most > 1:
        assert {ip in v4 for ip in chosen[:2]} == {True, False}
    if v4 and v6:
        assert (chosen[0] in v4) == (prefer == "ipv4")
