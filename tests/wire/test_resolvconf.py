"""The system's nameservers: what is read of the file, and that another one is read in its turn."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mailstrom.testing.dns import DNSServer
from mailstrom.types import RouteResult
from mailstrom_workers import nameservers, resolvconf
from mailstrom_workers.resolvconf import DEFAULT, LOOK_S, ResolvConf, addresses
from mailstrom_workers.resolver import Resolver


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"nameserver 192.0.2.1\nnameserver ::1\n", ("192.0.2.1", "::1")),
        (b"  nameserver\t192.0.2.1 # ours\r\nnameserver 192.0.2.1", ("192.0.2.1",)),
        (b"nameserver fe80::1%eth0\n", ("fe80::1%eth0",)),
        (b"# caf\xe9 \xff\nnameserver 192.0.2.1\n", ("192.0.2.1",)),
        (b"search a..b " + b"x" * 300 + b"\nnameserver 192.0.2.1\n", ("192.0.2.1",)),
        (b"nameserver none\nnameserver 192.0.2.1#53\nnameserver 192.0.2.1\n", ("192.0.2.1",)),
        (b"nameserver https://dns.test/dns-query\n", DEFAULT),
        (b"#nameserver 192.0.2.1\n;nameserver 192.0.2.1\nnameserver\n\x00\n", DEFAULT),
        (b"", DEFAULT),
    ],
)
def test_what_is_no_nameserver_with_an_address_is_passed_over(
    text: bytes, found: tuple[str, ...]
) -> None:
    assert addresses(text) == found


def test_a_fifo_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "resolv.conf")
    assert ResolvConf(tmp_path / "resolv.conf", lambda: 100.0).changed() == DEFAULT


def test_it_is_read_when_it_changed_and_looked_at_once_a_second(tmp_path: Path) -> None:
    now_s = 100.0
    place = tmp_path / "resolv.conf"
    told = ResolvConf(place, lambda: now_s)
    assert told.changed() == DEFAULT, "there is none"

    def put(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.replace(place)

    put("nameserver 192.0.2.1\n")
    assert told.changed() is None, "it was looked at just now"
    now_s += LOOK_S
    assert told.changed() == ("192.0.2.1",)
    now_s += LOOK_S
    assert told.changed() is None, "nothing changed"
    put("nameserver 192.0.2.2\n")
    now_s += LOOK_S
    assert told.changed() == ("192.0.2.2",)
    os.unlink(place)
    now_s += LOOK_S
    assert told.changed() is None, "those that are known are better than none"
    put("nameserver 192.0.2.1\n")
    now_s += LOOK_S
    assert told.changed() == ("192.0.2.1",)


def test_after_a_change_of_network_its_nameservers_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "resolv.conf"
    place.write_text("search home\nnameserver 127.0.0.53 lost\n")
    zone = {"d.test": {"MX": ["10 mx.d.test."]}}

    async def body() -> None:
        async with DNSServer(zone, host="127.0.0.2") as here:
            monkeypatch.setattr(resolvconf, "PLACE", place)
            monkeypatch.setattr(resolvconf, "LOOK_S", 0.0)
            monkeypatch.setattr(nameservers, "DNS_PORT", here.port)
            resolver = Resolver(None, 1.0)
            try:
                assert (await resolver.route("d.test")).result is RouteResult.TEMPORARY
                place.write_text(f"search abroad\nnameserver {here.host}\n")
                assert (await resolver.route("d.test")).result is RouteResult.MX
            finally:
                await resolver.close()

    asyncio.run(body())
