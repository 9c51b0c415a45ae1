"""A session that is cut at each of its octets.

Contract. A content that did not come whole is never taken; one that came whole, by FIN behind it,
is answered 250 and is there once. Behind RST, which may destroy what was not read yet, it may be
there or not, and once at most. Nothing else is in the spool (``Gate.accounted``).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from tests.hostile.gate import QUEUED, Gate, until_closed
from tests.hostile.table import Row
from tests.support.sockets import eventually
from tests.support.trial import Plan

_ENVELOPE = b"EHLO c.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n"
_LETTER = b"Subject: cut\r\n\r\n..\r\nbye\r\n"
_NO_LINGER = struct.pack("ii", 1, 0)
SESSIONS = {
    "DATA": (_ENVELOPE + b"DATA\r\n" + _LETTER + b".\r\n", b"QUIT\r\n"),
    "BDAT": (
        _ENVELOPE + b"BDAT 10\r\n" + _LETTER[:10] + b"BDAT %d LAST\r\n" % len(_LETTER[10:])
        + _LETTER[10:],
        b"QUIT\r\n",
    ),
}  # fmt: skip


def run(gate: Gate, plan: Plan) -> Iterator[Row]:
    """By FIN and by RST."""
    step = plan.pick(3, 1)
    for name, (whole, behind) in SESSIONS.items():
        places = [*range(0, len(whole), step), len(whole), len(whole) + len(behind)]
        fin = f"FIN at each octet of a session with {name}"
        yield gate.measured(
            fin, "250 behind whole contents, and they are there once; no other",
            lambda name=name, places=places: _fin(gate, name, places), times=len(places),  # type: ignore[misc]
        )  # fmt: skip
        rst = f"RST at each octet of a session with {name}"
        yield gate.measured(
            rst, "no content that was not whole is there; whole ones once at most",
            lambda name=name, places=places: _rst(gate, name, places), times=len(places),  # type: ignore[misc]
        )  # fmt: skip


def _messages(gate: Gate) -> int:
    return int(gate.engine.rows("SELECT count(*) AS n FROM messages")[0].n)


def _fin(gate: Gate, name: str, places: list[int]) -> str:
    before, told = _messages(gate), 0
    whole, behind = SESSIONS[name]
    for place in places:
        with gate.connect() as client:
            client.sendall((whole + behind)[:place])
            client.shutdown(socket.SHUT_WR)
            ids = QUEUED.findall(gate.heard(until_closed(client)))
        if bool(ids) is not (place >= len(whole)):
            return f"{ids} behind octet {place} of {len(whole)}"
        told += len(ids)
    found = _messages(gate) - before
    if found != told:
        return f"{told} were answered with 250 and {found} are there"
    return "250 behind whole contents, and they are there once; no other"


def _rst(gate: Gate, name: str, places: list[int]) -> str:
    before = _messages(gate)
    whole, behind = SESSIONS[name]
    for place in places:
        with gate.connect() as client:
            client.sendall((whole + behind)[:place])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    most = sum(place >= len(whole) for place in places)
    gate.doubtful += most
    with suppress(AssertionError):  # what has been read is stored now
        eventually(lambda: gate.open() == 0, 5.0, what="an end of all connections")
    found = _messages(gate) - before
    if found > most:
        return f"{most} were whole and {found} are there"
    return "no content that was not whole is there; whole ones once at most"
