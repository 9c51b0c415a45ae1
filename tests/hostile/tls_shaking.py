"""Handshakes that go wrong at each of their records.

Contract. ``broken(how, number)`` is used in place of a handshake: the server's records are its
true ones up to ``number``; there it closes, resets, stalls, sends an alert, or alters the record.
``count`` tells how many records there are until the client is done.

Must not know: SMTP, what a client ought to do.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

from tests.hostile.tls_line import Gone, Line, records

FLAWED = ("closes", "resets", "stalls", "alert", "altered", "half of it")
HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"


def broken(how: str, number: int) -> Callable[[Line, ssl.SSLContext], None]:
    """A handshake with a fault at the server's record of this number, from 0."""

    def shake(line: Line, context: ssl.SSLContext) -> None:
        passed = 0

        def through(octets: bytes) -> None:
            nonlocal passed
            for record in records(octets):
                if passed == number:
                    _fail(line, how, record)
                passed += 1
                line.write(record)

        line.through = through
        line.handshake(context)
        line.through = line.write

    return shake


def _fail(line: Line, how: str, record: bytes) -> None:
    if how == "resets":
        line.reset()
    elif how == "stalls":
        line.listen()
    elif how == "altered":
        line.write(record[:-1] + bytes((record[-1] ^ 1,)))
        line.listen()
    elif how == "alert":
        line.write(HANDSHAKE_FAILURE)
    elif how == "half of it":
        line.write(record[: len(record) // 2])
    raise Gone


def dripping(line: Line, context: ssl.SSLContext) -> None:
    """Each octet in a segment of its own."""

    def through(octets: bytes) -> None:
        for octet in octets:
            line.write(bytes((octet,)))

    line.through = through
    line.handshake(context)


def instead(octets: bytes, *, times: int = 1) -> Callable[[Line, ssl.SSLContext], None]:
    """Something else in answer to the client's hello, then silence."""

    def shake(line: Line, _context: ssl.SSLContext) -> None:
        line.receive()
        for _ in range(times):
            line.write(octets)
        line.listen()

    return shake


def then(end: Callable[[Line], None]) -> Callable[[Line, ssl.SSLContext], None]:
    """A handshake, and at once behind it this."""

    def shake(line: Line, context: ssl.SSLContext) -> None:
        line.handshake(context)
        end(line)
        raise Gone

    return shake


def count(context: ssl.SSLContext) -> int:
    """How many records the server writes until the client's side of the handshake is done."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    found = 0
    mine = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    mine.check_hostname, mine.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    server = context.wrap_bio(there, out, server_side=True)
    client = mine.wrap_bio(back, there)
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
            return found
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        octets = out.read()
        found += len(records(octets))
        back.write(octets)
