"""The PROXY header: read as its specification writes it, whatever the pieces, and nothing else."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.proxy import LINE_OCTETS, MOST_OCTETS, BadProxy, Proxied, ProxyReader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PORTS = st.integers(0, 65535)


def read(data: bytes, step: int = 0) -> Proxied | str | None:
    """What a header is read as: whole, broken (the rule), or not yet."""
    reader = ProxyReader()
    step = step or max(len(data), 1)
    for start in range(0, len(data), step):
        try:
            found = reader.feed(data[start : start + step])
        except BadProxy as bad:
            with pytest.raises(BadProxy, match=bad.rule):
                reader.feed(b"")
            return bad.rule
        if found is not None:
            with pytest.raises(RuntimeError):
                reader.feed(b"")
            behind = data[start + step :]
            return Proxied(
                **{name: getattr(found, name) for name in FIELDS}, rest=found.rest + behind
            )
    return None


FIELDS = [name for name in Proxied.__struct_fields__ if name != "rest"]


def second(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(body)) + body


def inet(source: str, destination: str, ports: tuple[int, int], more: bytes = b"") -> bytes:
    addresses = [ipaddress.ip_address(one) for one in (source, destination)]
    family = 0x11 if addresses[0].version == 4 else 0x21
    packed = b"".join(one.packed for one in addresses)
    return second(0x21, family, packed + struct.pack(">HH", *ports) + more)


@given(
    six=st.booleans(),
    data=st.data(),
    ports=st.tuples(PORTS, PORTS),
    more=st.binary(max_size=40),
    rest=st.binary(max_size=40),
    step=st.integers(1, 60),
)
def test_both_versions_say_who_the_client_is(
    six: bool, data: st.DataObject, ports: tuple[int, int], more: bytes, rest: bytes, step: int
) -> None:
    one = st.ip_addresses(v=6 if six else 4).map(str)
    source, destination = data.draw(one), data.draw(one)
    line = f"PROXY TCP{6 if six else 4} {source} {destination} {ports[0]} {ports[1]}\r\n"
    for version, header in ((1, line.encode()), (2, inet(source, destination, ports, more))):
        for size in (0, step):
            found = read(header + rest, size)
            assert isinstance(found, Proxied)
            told = [ipaddress.ip_address(one or "") for one in (found.source, found.destination)]
            meant = [ipaddress.ip_address(one) for one in (source, destination)]
            plain = [getattr(one, "ipv4_mapped", None) or one for one in meant]
            assert told == plain
            assert (found.source_port, found.destination_port) == ports
            assert (found.version, found.local, found.rest) == (version, False, rest)
        assert read(header[:-1]) is None


def test_an_address_of_ipv4_in_ipv6_is_one_of_ipv4() -> None:
    for header in (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n",
        inet("::ffff:192.0.2.1", "::ffff:192.0.2.2", (1, 2)),
    ):
        found = read(header)
        assert isinstance(found, Proxied)
        assert (found.source, found.destination) == ("192.0.2.1", "192.0.2.2")


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ::1 ::2 3 4\r\n",
        b"PROXY UNKNOWN \xff\0 whatever\r\n",
        second(0x21, 0x00, b""),
        second(0x21, 0x00, b"\x03\0\1x"),
        second(0x21, 0x31, b"/run/x".ljust(216, b"\0")),
    ],
)
def test_a_source_that_is_not_known_is_none(line: bytes) -> None:
    found = read(line + b"EHLO")
    assert isinstance(found, Proxied)
    assert (found.source, found.destination, found.local) == (None, None, False)
    assert found.rest == b"EHLO"


@pytest.mark.parametrize("family", [0x00, 0x11, 0x21, 0x31, 0x12, 0xFF])
def test_a_proxy_that_speaks_for_itself_is_local(family: int) -> None:
    found = read(second(0x20, family, b"x" * 5) + b"NOOP")
    assert found == Proxied(version=2, local=True, rest=b"NOOP")


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"EHLO c\r\n", "signature"),
        (b"\x16\x03\x01", "signature"),
        (b"P", None),
        (b"PROXY", None),
        (b"POST / HTTP/1.1\r\n", "signature"),
        (b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", "signature"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", "line-syntax"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", "line-syntax"),
        (b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n", "line-syntax"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", "line-syntax"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n", "port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", "port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n", "line-syntax"),
        (b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", "address"),
        (b"PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n", "address"),
        (b"PROXY TCP4 ::1 ::2 1 2\r\n", "address"),
        (b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", "address"),
        (b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n", "line-syntax"),
        (b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", "line-syntax"),
        (b"PROXY UNKNOWNX\r\n", "line-syntax"),
        (b"PROXY \r\n", "line-syntax"),
        (b"PROXY UNKNOWN a\rb\r\n", "line-syntax"),
        (b"PROXY UNKNOWN " + b"x" * (LINE_OCTETS - 16), "not-yet"),
        (b"PROXY UNKNOWN " + b"x" * (LINE_OCTETS - 14), "line-too-long"),
        (b"PROXY UNKNOWN " + b"x" * 1000 + b"\r\n", "line-too-long"),
        (SIGNATURE, None),
        (SIGNATURE + b"\x11", "version-or-command"),
        (SIGNATURE + b"\x22", "version-or-command"),
        (SIGNATURE + b"\x31", "version-or-command"),
        (SIGNATURE + b"\x21\x12", "family"),
        (SIGNATURE + b"\x21\x41", "family"),
        (SIGNATURE + b"\x21\x11\0\x0b", "length"),
        (SIGNATURE + b"\x21\x21\0\x23", "length"),
        (SIGNATURE + b"\x21\x31\0\xd7", "length"),
        (SIGNATURE + b"\x21\x11" + struct.pack(">H", MOST_OCTETS + 1), "length"),
        (SIGNATURE + b"\x20\x00\xff\xff", "length"),
        (SIGNATURE + b"\x21\x11" + struct.pack(">H", MOST_OCTETS), None),
        (SIGNATURE[:5] + b"x", "signature"),
    ],
)
def test_what_is_none_is_refused_by_name(data: bytes, rule: str | None) -> None:
    for step in (0, 1, 2, 5):
        assert read(data, step) == (None if rule == "not-yet" else rule)


def test_the_longest_line_is_read() -> None:
    line = b"PROXY UNKNOWN ".ljust(LINE_OCTETS - 2, b"f") + b"\r\n"
    assert read(line + b"x", 1) == Proxied(version=1, rest=b"x")


@given(st.binary(max_size=60) | st.binary(max_size=30).map(lambda more: SIGNATURE + more))
def test_anything_is_the_same_in_one_piece_and_in_many(data: bytes) -> None:
    whole = read(data)
    assert read(data, 1) == whole
    assert read(b"PROXY " + data) == read(b"PROXY " + data, 1)
