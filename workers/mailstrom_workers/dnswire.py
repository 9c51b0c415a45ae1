"""DNS messages as bytes: a question for MX, A, AAAA or PTR records, and what its answer says.

Contract. Pure: bytes in, values out. What does not fit the question (another id, another name) is
nobody's answer; what cannot be read raises ``Unreadable``. A CNAME chain inside the answer is
followed to its end, up to ``MAX_LINKS`` links; the section of additional records is never believed,
since anybody may be named there. RFC 1035 section 4, RFC 2181 sections 5 and 9, RFC 2308 section 5,
RFC 3596.

Names, where the traps of the format are (compression, lengths), are read by dnspython. Its messages
and records are not used: they take 0.3 ms a question, most of it for what nobody here asks for.
Must not know: sockets, nameservers, what an answer means for mail.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import dns.name
from dns.exception import DNSException

Kind = Literal["MX", "A", "AAAA", "PTR"]
Labels = tuple[bytes, ...]

MAX_LINKS = 16
"""Links of a CNAME chain that are followed within one answer."""
NEGATIVE_S = 300
"""How long a denial without an SOA holds."""
NOERROR, NXDOMAIN = 0, 3
RCODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN"}


class _Type(IntEnum):
    A = 1
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    AAAA = 28


_TYPES: dict[Kind, int] = {
    "MX": _Type.MX, "A": _Type.A, "AAAA": _Type.AAAA, "PTR": _Type.PTR,
}  # fmt: skip
_IN = 1
_RESPONSE, _TRUNCATED, _RECURSE = 0x8000, 0x0200, 0x0100
_HEADER = struct.Struct("!HHHHHH")
_ASKED = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_AS_ASKED = b"\xc0\x0c"  # a pointer to the question's name, which is what we asked
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
        ttl_s: the shortest time to live on the way; for a denial that of its SOA.
    """

    rcode: int
    truncated: bool = False
    name: Labels = ()
    links: int = 0
    records: tuple[tuple[int, Labels | str], ...] = ()
    ttl_s: int = NEGATIVE_S


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
        name: an A-label host name without the final dot (``policy.answers.is_host_name``).
    """
    wire = bytearray(_HEADER.pack(number, _RECURSE, 1, 0, 0, 0))
    for label in name.encode("ascii").split(b"."):
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
    if not flags & _RESPONSE or questions != 1 or wire[12:size].lower() != asked[12:].lower():
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
    name = whom = _asked_name(asked)
    kind = _ASKED.unpack_from(asked, at - _ASKED.size)[0]
    told, at = _section(wire, at, answers, whom)
    ttl_s, links = _MOST_TTL, 0
    while links <= MAX_LINKS:
        found = [one for one in told if one.type == kind and one.owner == name]
        if found:
            if rcode == NXDOMAIN:
                raise Unreadable("a name does not exist, and has records")
            ttl_s = min(ttl_s, *(one.ttl_s for one in found))
            records = tuple([_data(wire, one) for one in found])
            return Response(rcode=rcode, name=name, links=links, records=records, ttl_s=ttl_s)
        alias = next((one for one in told if one.type == _Type.CNAME and one.owner == name), None)
        if alias is None:
            break
        ttl_s = min(ttl_s, alias.ttl_s)
        name = _only_name(wire, alias.at, alias.end)
        links += 1
    denied, _ = _section(wire, at, authorities, whom)
    ttl_s = min(ttl_s, _negative_s(wire, denied, name))
    return Response(rcode=rcode, name=name, links=links, ttl_s=ttl_s)


def _section(wire: bytes, at: int, count: int, asked: Labels) -> tuple[list[_Record], int]:
    """Records of a section and where it ends; most are of the name that was asked."""
    found = []
    for _ in range(count):
        if wire[at : at + 2] == _AS_ASKED:
            owner, at = asked, at + 2
        else:
            owner, at = _name(wire, at)
        kind, place, ttl_s, size = _RECORD.unpack_from(wire, at)
        at += _RECORD.size
        if at + size > len(wire):
            raise Unreadable("a record goes beyond its message")
        if place == _IN:
            found.append(_Record(owner, kind, ttl_s if ttl_s <= _MOST_TTL else 0, at, at + size))
        at += size
    return found, at


def _data(wire: bytes, record: _Record) -> tuple[int, Labels | str]:
    at, end = record.at, record.end
    if record.type == _Type.MX:
        if end - at < 3:
            raise Unreadable("an MX record without a name")
        return wire[at] << 8 | wire[at + 1], _only_name(wire, at + 2, end)
    if record.type == _Type.PTR:
        return 0, _only_name(wire, at, end)
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


def _asked_name(asked: bytes) -> Labels:
    """The name in a question of ours, which is plain."""
    labels = []
    at = _HEADER.size
    while size := asked[at]:
        labels.append(asked[at + 1 : at + 1 + size].lower())
        at += 1 + size
    return tuple(labels)


def _only_name(wire: bytes, at: int, end: int) -> Labels:
    name, after = _name(wire, at)
    if after != end:
        raise Unreadable("a name that does not fill its place")
    return name


def _name(wire: bytes, at: int) -> tuple[Labels, int]:
    """A name's labels in lower case, and where it ends; pointers lead strictly backwards."""
    try:
        name, octets = dns.name.from_wire(wire, at)
    except DNSException as error:
        raise Unreadable(str(error)) from error
    return tuple([label.lower() for label in name.labels[:-1]]), at + octets
