"""DNS messages as bytes: a question for MX, A, AAAA or PTR records, and what its answer says.

Contract. Pure: bytes in, values out. What does not fit the question (another id, another name) is
nobody's answer; what cannot be read raises ``Unreadable``. A CNAME chain inside the answer is
followed to its end, up to ``MAX_LINKS`` links; the section of additional records is never believed,
since anybody may be named there. RFC 1035 section 4, RFC 2181 sections 5 and 9, RFC 2308 section 5,
RFC 3596.

A referral to other servers (RFC 2308 section 2.2), and an answer of records that nobody asked for,
are no denials: the server does not know.

Names may be compressed: a pointer leads strictly backwards, and what it leads to is read once in
a message, or 64 kB of pointers would take half a second. dnspython is what all this is tested
against; it takes 0.3 ms for each message.
Must not know: sockets, nameservers, what an answer means for mail.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

Kind = Literal["MX", "A", "AAAA", "PTR"]
Labels = tuple[bytes, ...]

MAX_LINKS = 16
"""Links of a CNAME chain that are followed within one answer."""
MAX_NAME, MAX_LABEL = 255, 63
"""Octets on the wire, RFC 1035 section 3.1."""
MAX_HOPS = 127
"""Pointers from one to the next: a name has no more labels."""
NEGATIVE_S = 300
"""How long a denial without an SOA holds."""
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
RCODES = {
    1: "FORMERR",
    SERVFAIL: "SERVFAIL",
    NXDOMAIN: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
    6: "YXDOMAIN",
}


class _Type(IntEnum):
    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    AAAA = 28


_TYPES: dict[Kind, int] = {
    "MX": _Type.MX, "A": _Type.A, "AAAA": _Type.AAAA, "PTR": _Type.PTR,
}  # fmt: skip
_IN = 1
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSE = 0x8000, 0x7800, 0x0200, 0x0100
_HEADER = struct.Struct("!HHHHHH")
_ASKED = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_MOST_TTL = 0x7FFFFFFF  # RFC 2181 section 8: what is more counts as none


class Unreadable(ValueError):
    """Not a DNS message, or one that contradicts itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What an answer says about its question.

    Args:
        rcode: 0 for no error, 3 for NXDOMAIN; see ``RCODES``.
        truncated: it is cut off: what is missing could be anything.
        name: the end of the CNAME chain, labels in lower case.
        links: CNAME records on the way.
        records: (preference, exchange's labels) for MX, (0, address as text) for A and AAAA, (0,
            labels) for PTR.
        lame: it only names other servers to be asked.
        ttl_s: the shortest time to live on the way; for a denial that of its SOA.
    """

    rcode: int
    truncated: bool = False
    name: Labels = ()
    links: int = 0
    records: tuple[tuple[int, Labels | str], ...] = ()
    ttl_s: int = NEGATIVE_S
    lame: bool = False


class _Record(NamedTuple):
    owner: Labels
    type: int
    ttl_s: int
    at: int
    end: int


def question(number: int, name: str, kind: Kind) -> bytes:
    """The message that asks for records, with recursion.

    Args:
        number: the message's id, 0 to 65535.
        name: an A-label host name without the final dot (``policy.answers.is_host_name``); empty:
            the root.
    """
    wire = bytearray(_HEADER.pack(number, _RECURSE, 1, 0, 0, 0))
    for label in name.encode("ascii").split(b".") if name else ():
        wire.append(len(label))
        wire += label
    wire.append(0)
    wire += _ASKED.pack(_TYPES[kind], _IN)
    return bytes(wire)


def read(wire: bytes, asked: bytes) -> Response | None:
    """What a message says about a question; None where it is no answer to it.

    Args:
        wire: the message.
        asked: the question as it was sent.

    Raises:
        Unreadable: it is one, and cannot be read.
    """
    size = len(asked)
    if len(wire) < size or wire[:2] != asked[:2]:
        return None
    _, flags, questions, answers, authorities, _ = _HEADER.unpack_from(wire)
    # the question comes back letter by letter; its case may differ (RFC 4343)
    if (
        not flags & _RESPONSE
        or flags & _OPCODE
        or questions != 1
        or wire[12:size].lower() != asked[12:].lower()
    ):
        return None
    rcode, truncated = flags & 0xF, bool(flags & _TRUNCATED)
    if truncated or rcode not in (NOERROR, NXDOMAIN):
        return Response(rcode=rcode, truncated=truncated)
    try:
        return _answer(wire, asked, rcode, answers, authorities)
    except (IndexError, struct.error) as error:
        raise Unreadable("a message ends before its end") from error


def _answer(wire: bytes, asked: bytes, rcode: int, answers: int, authorities: int) -> Response:
    at = len(asked)
    names = _Names(wire)
    name, _ = names.read(_HEADER.size)
    kind = _ASKED.unpack_from(asked, at - _ASKED.size)[0]
    told, at = _section(names, at, answers)
    ttl_s, links = _MOST_TTL, 0
    while links <= MAX_LINKS:
        found = [one for one in told if one.type == kind and one.owner == name]
        if found:
            if rcode == NXDOMAIN:
                raise Unreadable("a name does not exist, and has records")
            ttl_s = min(ttl_s, *(one.ttl_s for one in found))
            records = tuple([_data(names, one) for one in found])
            return Response(rcode=rcode, name=name, links=links, records=records, ttl_s=ttl_s)
        alias = next((one for one in told if one.type == _Type.CNAME and one.owner == name), None)
        if alias is None:
            break
        ttl_s = min(ttl_s, alias.ttl_s)
        name = names.only(alias.at, alias.end)
        links += 1
    if not links and told and not any(one.owner == name for one in told):
        raise Unreadable("an answer about another name")
    authority, _ = _section(names, at, authorities)
    ttl_s = min(ttl_s, _negative_s(wire, authority, name))
    types = {one.type for one in authority}
    lame = not links and rcode == NOERROR and _Type.NS in types and _Type.SOA not in types
    return Response(rcode=rcode, name=name, links=links, ttl_s=ttl_s, lame=lame)


def _section(names: _Names, at: int, count: int) -> tuple[list[_Record], int]:
    """Records of a section and where it ends."""
    found = []
    wire = names.wire
    for _ in range(count):
        owner, at = names.read(at)
        kind, place, ttl_s, size = _RECORD.unpack_from(wire, at)
        at += _RECORD.size
        if at + size > len(wire):
            raise Unreadable("a record goes beyond its message")
        if place == _IN:
            found.append(_Record(owner, kind, ttl_s if ttl_s <= _MOST_TTL else 0, at, at + size))
        at += size
    return found, at


def _data(names: _Names, record: _Record) -> tuple[int, Labels | str]:
    wire, at, end = names.wire, record.at, record.end
    if record.type == _Type.MX:
        if end - at < 3:
            raise Unreadable("an MX record without a name")
        return wire[at] << 8 | wire[at + 1], names.only(at + 2, end)
    if record.type == _Type.PTR:
        return 0, names.only(at, end)
    four = record.type == _Type.A
    if end - at != (4 if four else 16):
        raise Unreadable("an address of no length")
    return 0, socket.inet_ntop(socket.AF_INET if four else socket.AF_INET6, wire[at:end])


def _negative_s(wire: bytes, denied: list[_Record], name: Labels) -> int:
    """How long a denial holds: by the SOA of the zone it comes from (RFC 2308 section 5)."""
    for one in denied:
        if one.type == _Type.SOA and name[len(name) - len(one.owner) :] == one.owner:
            if one.end - one.at < 22:
                raise Unreadable("an SOA record without its numbers")
            minimum: int = struct.unpack_from("!I", wire, one.end - 4)[0]
            return min(one.ttl_s, minimum)
    return NEGATIVE_S


class _Names:
    """The names of a message.

    Args:
        wire: the message.
    """

    def __init__(self, wire: bytes) -> None:
        self.wire = wire
        self._led: dict[int, tuple[Labels, int]] = {}  # by where a pointer led: labels, octets

    def read(self, at: int) -> tuple[Labels, int]:
        """A name's labels in lower case, and where it ends."""
        labels, _, end = self._read(at, MAX_HOPS)
        return labels, end

    def only(self, at: int, end: int) -> Labels:
        """The labels of a name that fills its place."""
        labels, after = self.read(at)
        if after != end:
            raise Unreadable("a name that does not fill its place")
        return labels

    def _read(self, at: int, hops: int) -> tuple[Labels, int, int]:
        wire, began, labels = self.wire, at, []
        tail: tuple[Labels, int] = ((), 1)
        while size := wire[at]:
            if size > MAX_LABEL:
                if size < 0xC0:
                    raise Unreadable("a label of no known kind")
                tail = self._pointed((size & 0x3F) << 8 | wire[at + 1], began, hops)
                octets, at = at - began, at + 2
                break
            labels.append(wire[at + 1 : at + 1 + size].lower())
            at += 1 + size
            if at - began >= MAX_NAME:
                raise Unreadable("a name of more than 255 octets")
        else:
            octets, at = at - began, at + 1
        octets += tail[1]
        if octets > MAX_NAME:
            raise Unreadable("a name of more than 255 octets")
        return (*labels, *tail[0]), octets, at

    def _pointed(self, to: int, before: int, hops: int) -> tuple[Labels, int]:
        if to >= before:
            raise Unreadable("a pointer that does not lead back")
        known = self._led.get(to)
        if known is None:
            if not hops:
                raise Unreadable("a chain of pointers without end")
            labels, octets, _ = self._read(to, hops - 1)
            known = self._led[to] = labels, octets
        return known
