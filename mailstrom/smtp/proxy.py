"""The PROXY protocol, versions 1 and 2: who is behind the proxy that opened this connection.

Contract: octets in; out comes nothing yet, a ``Proxied`` with what stands behind the header, or
``BadProxy`` at the first octet that cannot belong to one. Any split of the octets gives the same.
Source: the specification that comes with HAProxy (proxy-protocol.txt, sections 2.1 and 2.2). A line
of version 1 has at most 107 octets; of version 2 at most ``MOST_OCTETS`` behind its fixed part are
taken, and what it adds (TLVs) is dropped. Only streams are spoken for; a family that names no
address of the internet (UNIX, UNSPEC, UNKNOWN) leaves the source unknown.

Must not know: who may say so: a header is worth what the peer that sends it is trusted with.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NoReturn

from msgspec import Struct

LINE_OCTETS = 107
"""A whole line of version 1, CRLF included."""
MOST_OCTETS = 4096
"""Addresses and additions of version 2."""

_FIRST = b"PROXY "
_SECOND = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = len(_SECOND) + 4
_LINE = re.compile(
    rb"PROXY (?:(TCP4|TCP6) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) ([0-9]{1,5}) ([0-9]{1,5})"
    rb"|UNKNOWN(?: [^\r\n]*)?)"
)
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
# family and transport -> octets of one address; of the others none is kept
_INET = {0x11: 4, 0x21: 16}
_OTHERS = {0x00: 0, 0x31: 216}


class BadProxy(ValueError):
    """What came is no PROXY header; nothing behind it can be trusted: close.

    Args:
        rule: short stable name of what was broken.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(f"no PROXY header: {rule}")
        self.rule = rule


class Proxied(Struct, frozen=True, gc=False, kw_only=True):
    """A whole header.

    Args:
        version: 1 or 2.
        local: the proxy speaks for itself (a health check): the connection's own addresses hold.
        source: the client's address, or None where the proxy does not know it.
        source_port: its port, 0 without an address.
        destination: the address that the client connected to, or None.
        destination_port: its port.
        rest: what came behind the header.
    """

    version: int
    local: bool = False
    source: str | None = None
    source_port: int = 0
    destination: str | None = None
    destination_port: int = 0
    rest: bytes = b""


class ProxyReader:
    """Reads the header that stands before everything else on a connection."""

    __slots__ = ("_bad", "_buffer", "_done")

    def __init__(self) -> None:
        self._buffer = b""
        self._bad: str | None = None
        self._done = False

    def feed(self, data: bytes) -> Proxied | None:
        """Take what came.

        Returns:
            The header once it is whole, or None.

        Raises:
            BadProxy: it is none; every later call raises again.
            RuntimeError: called behind a whole header.
        """
        if self._done:
            raise RuntimeError("the header was whole; what follows is not its reader's")
        if self._bad is not None:
            raise BadProxy(self._bad)
        self._buffer += data
        head = self._buffer
        if not head:
            return None
        found = self._first(head) if head[0] == _FIRST[0] else self._second(head)
        if found is not None:
            self._done = True
            self._buffer = b""
        return found

    def _refuse(self, rule: str) -> NoReturn:
        self._bad, self._buffer = rule, b""
        raise BadProxy(rule)

    def _first(self, head: bytes) -> Proxied | None:
        if not head.startswith(_FIRST[: len(head)]):
            self._refuse("signature")
        end = head.find(b"\n", 0, LINE_OCTETS)
        if end < 0:
            if len(head) >= LINE_OCTETS:
                self._refuse("line-too-long")
            return None
        found = _LINE.fullmatch(head, 0, end - 1)
        if head[end - 1 : end] != b"\r" or found is None:
            self._refuse("line-syntax")
        rest = head[end + 1 :]
        if found[1] is None:
            return Proxied(version=1, rest=rest)
        ports = int(found[4]), int(found[5])
        if max(ports) > 65535 or any(one[:1] == b"0" and one != b"0" for one in found.group(4, 5)):
            self._refuse("port")
        kind = IPv4Address if found[1] == b"TCP4" else IPv6Address
        try:
            source, destination = (_text(kind(one.decode())) for one in found.group(2, 3))
        except AddressValueError:
            self._refuse("address")
        return Proxied(
            version=1,
            source=source,
            source_port=ports[0],
            destination=destination,
            destination_port=ports[1],
            rest=rest,
        )

    def _second(self, head: bytes) -> Proxied | None:
        if not head.startswith(_SECOND[: len(head)]):
            self._refuse("signature")
        self._judge_fixed(head[len(_SECOND) : _FIXED])
        if len(head) < _FIXED:
            return None
        command, family = head[12], head[13]
        octets = int.from_bytes(head[14:16], "big")
        if len(head) < _FIXED + octets:
            return None
        rest = head[_FIXED + octets :]
        if command == _LOCAL:
            return Proxied(version=2, local=True, rest=rest)
        size = _INET.get(family, 0)
        if not size:
            return Proxied(version=2, rest=rest)
        kind = IPv4Address if size == 4 else IPv6Address
        ports = _FIXED + 2 * size
        return Proxied(
            version=2,
            source=_text(kind(head[_FIXED : _FIXED + size])),
            source_port=int.from_bytes(head[ports : ports + 2], "big"),
            destination=_text(kind(head[_FIXED + size : ports])),
            destination_port=int.from_bytes(head[ports + 2 : ports + 4], "big"),
            rest=rest,
        )

    def _judge_fixed(self, fixed: bytes) -> None:
        """The octets behind the signature, as far as they have come."""
        if fixed and fixed[0] not in (_LOCAL, _PROXY):
            self._refuse("version-or-command")
        if len(fixed) < 2 or fixed[0] == _LOCAL:
            least = 0  # whatever the family is, it is not looked at
        elif fixed[1] in _INET:
            least = 2 * _INET[fixed[1]] + 4
        elif fixed[1] in _OTHERS:
            least = _OTHERS[fixed[1]]
        else:
            self._refuse("family")
        if len(fixed) == 4:
            octets = int.from_bytes(fixed[2:], "big")
            if not least <= octets <= MOST_OCTETS:
                self._refuse("length")


def _text(address: IPv4Address | IPv6Address) -> str:
    """An IPv4 address that is written as one of IPv6 is told as what it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
