"""Encodings of values in columns: hosts, content digests, the checksum of a recipient."""

from __future__ import annotations

import json
import zlib
from hashlib import blake2b

from mailstrom.types import Host


def digest(data: bytes) -> bytes:
    """The digest kept beside each chunk of content (BLAKE2b, 16 bytes)."""
    return blake2b(data, digest_size=16).digest()


def checksum(id: str, sender: str, address: str) -> int:
    """CRC-32 that ties an address to its message and sender, so that a damaged row is seen."""
    return zlib.crc32(f"{id}\0{sender}\0{address}".encode("utf-8", "surrogatepass"))


def encode_hosts(hosts: tuple[Host, ...]) -> str:
    """Hosts as the JSON that tables and views hold: ``[[preference, name, port], ...]``."""
    return json.dumps([[host.preference, host.name, host.port] for host in hosts])


def decode_hosts(text: str) -> tuple[Host, ...]:
    """Hosts from the JSON of ``encode_hosts``."""
    return tuple(Host(preference=p, name=n, port=port) for p, n, port in json.loads(text))
