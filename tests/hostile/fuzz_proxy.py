"""Fuzz target of the PROXY header: what a proxy, or anybody who reaches the port, puts first.

The judge reads version 1 with the words of its grammar and version 2 by its fixed offsets, whole
and by another way than the product; it knows the end of a header, or that there is none.
"""

from __future__ import annotations

import ipaddress
import struct

from mailstrom.smtp.proxy import BadProxy, Proxied, ProxyReader
from tests.hostile.fuzz_choices import Choices, cut

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MOST = 16 + 4096

Read = tuple[Proxied | None, bytes, bool]
"""The header, what stands behind it, and whether there can be none any more."""


def proxy(data: bytes) -> None:
    """Any octets, however cut, are the header that a naive reader finds, or none."""
    choices = Choices(data)
    sizes = choices.sizes()
    stream = (b"", b"PROXY ", SIGNATURE + b"\x21\x11", SIGNATURE)[choices.below(4)] + choices.rest()
    whole = _read([stream])
    assert _read(cut(stream, sizes)) == _read([b"".join(cut(stream, sizes))]), "another cut"
    found, rest, broken = whole
    expected = _naive(stream)
    assert (found is not None) == (expected is not None), (found, expected)
    if found is None or expected is None:
        assert broken or len(stream) < MOST, "more than a header is held"
        return
    assert not broken
    told = (found.source, found.source_port, found.destination, found.destination_port)
    assert (told, rest) == expected, (told, expected)
    assert found.source is None or ipaddress.ip_address(found.source)


def _read(pieces: list[bytes]) -> Read:
    reader = ProxyReader()
    for number, piece in enumerate(pieces):
        try:
            found = reader.feed(piece)
        except BadProxy as bad:
            assert str(bad).isprintable()
            return None, b"", True
        if found is not None:
            rest = found.rest + b"".join(pieces[number + 1 :])
            return Proxied(**{name: getattr(found, name) for name in _FIELDS}), rest, False
        assert len(reader._buffer) < MOST
    return None, b"", False


_FIELDS = [name for name in Proxied.__struct_fields__ if name != "rest"]
_UNKNOWN = (None, 0, None, 0)
Told = tuple[str | None, int, str | None, int]


def _naive(stream: bytes) -> tuple[Told, bytes] | None:
    if stream.startswith(SIGNATURE) and len(stream) >= 16:
        octets = struct.unpack(">H", stream[14:16])[0]
        body, rest = stream[16 : 16 + octets], stream[16 + octets :]
        if len(body) < octets or octets > 4096 or stream[12] not in (0x20, 0x21):
            return None
        return (
            None if (told := _naive_second(stream[12], stream[13], body)) is None else (told, rest)
        )
    line, found, rest = stream.partition(b"\r\n")
    if not found or len(line) > 105 or b"\n" in line or b"\r" in line:
        return None
    told = _naive_first(line.split(b" "))
    return None if told is None else (told, rest)


def _naive_second(command: int, family: int, body: bytes) -> Told | None:
    if command == 0x20 or family == 0:
        return _UNKNOWN
    if family == 0x31:
        return _UNKNOWN if len(body) >= 216 else None
    size = {0x11: 4, 0x21: 16}.get(family)
    if size is None or len(body) < 2 * size + 4:
        return None
    source, destination, one, two = struct.unpack(f">{size}s{size}sHH", body[: 2 * size + 4])
    return _plain(ipaddress.ip_address(source)), one, _plain(ipaddress.ip_address(destination)), two


def _naive_first(words: list[bytes]) -> Told | None:
    if words[:2] == [b"PROXY", b"UNKNOWN"]:
        return _UNKNOWN
    if len(words) != 6 or words[0] != b"PROXY" or words[1] not in (b"TCP4", b"TCP6"):
        return None
    try:
        text = [word.decode("ascii") for word in words[2:]]
        told = [ipaddress.ip_address(one) for one in text[:2]]
        ports = [int(one) for one in text[2:]]
    except ValueError:
        return None
    version = 4 if words[1] == b"TCP4" else 6
    if any(one.version != version for one in told) or "%" in text[0] + text[1]:
        return None
    if [str(port) for port in ports] != text[2:] or not all(0 <= one < 65536 for one in ports):
        return None
    return _plain(told[0]), ports[0], _plain(told[1]), ports[1]


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(getattr(address, "ipv4_mapped", None) or address)
