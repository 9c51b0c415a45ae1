"""What stands in place of a reply: octets without end, octets that are none, and odd ones that are.

At each stage of a session, by DATA with PIPELINING, without it, and by BDAT in one flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from tests.hostile.rawhost import (
    OFFER,
    STAGES,
    Act,
    Connection,
    Manners,
    drip,
    flood,
    silence,
    then,
)
from tests.hostile.replies_stage import (
    DELIVERED,
    DOUBT,
    HOST,
    LATER,
    Sent,
    Trial,
    at_once,
    judged,
)
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.trial import Plan

GIB = 1 << 30
GOOD: Mapping[str, bytes] = {
    "greeting": b"220 mx.test\r\n", "ehlo": b"250 mx.test\r\n", "mail": b"250 2.1.0 ok\r\n",
    "rcpt": b"250 2.1.5 ok\r\n", "data": b"354 go on\r\n", "dot": b"250 2.0.0 stored\r\n",
    "bdat": b"250 2.0.0 stored\r\n",
}  # fmt: skip
WAYS: Mapping[str, tuple[str, ...]] = {
    "pipelined": OFFER,
    "serial": tuple(word for word in OFFER if word != "PIPELINING"),
    "bdat": (*OFFER, "CHUNKING"),
}
NO_REPLY = "host trouble, uncharged; deferred at MAIL, RCPT, DATA; in doubt at the dot"
FINE = "delivered"
ESCAPES = b"\x1b[2J\x1b[1;1H\x1b]0;owned\x07\x9b31m"


def stages(way: str) -> tuple[str, ...]:
    """Those at which a host can misbehave."""
    return (*STAGES[:4], "bdat") if way == "bdat" else STAGES


def lost(stage: str, way: str) -> str:
    """The outcome where a stage has no answer that can be read."""
    if stage in ("greeting", "ehlo"):
        return HOST
    if way == "bdat" or stage == "dot":
        return DOUBT  # the content left in one flight with its envelope
    return LATER


Kind = Callable[[bytes], Act]
"""What is said in place of a good reply."""


def _code(code: bytes) -> Kind:
    return lambda good: code + good[3:]


def _raw(octets: bytes) -> Kind:
    return lambda _good: octets


ENDLESS: Mapping[str, Kind] = {
    "1 GB in one line": lambda good: flood(b"x" * 65536, GIB, head=good[:4]),
    "1 GB in lines of one reply": lambda good: flood(
        (good[:3] + b"-" + b"y" * 60 + b"\r\n") * 1000, GIB
    ),
    "1 GB in the shortest lines of one reply": lambda good: flood((good[:3] + b"-\n") * 8192, GIB),
    "1 GB of line ends": lambda _good: flood(b"\r\n" * 32768, GIB),
    "1 GB of NULs": lambda _good: flood(b"\0" * 65536, GIB),
    "a line of 1 MB": lambda good: good[:4] + b"z" * (1 << 20) + b"\r\n",
    "short lines of one reply, a segment each": lambda good: _lines(good[:3] + b"-\r\n", 20000),
}


def _lines(line: bytes, times: int) -> Act:
    """The same line for ever, each in a segment of its own."""

    async def act(connection: Connection) -> None:
        for _ in range(times):
            await connection.write(line)
            await asyncio.sleep(0.0005)
        await silence(connection)

    return act


NONE: Mapping[str, Kind] = {
    "NULs": _raw(b"\0\0\0\0\r\n"),
    "UTF-8 garbage": _raw(b"\xff\xfe\xc3\x28\xed\xa0\x80\r\n"),
    "ESC codes": lambda good: ESCAPES + good,
    "mixed codes, ours last": lambda good: b"554-no\r\n" + good,
    "mixed codes, ours first": lambda good: good[:3] + b"-a\r\n554 no\r\n",
    "code 000": _code(b"000"),
    "code 099": _code(b"099"),
    "code 199": _code(b"199"),
    "code 600": _code(b"600"),
    "code 999": _code(b"999"),
    "code 99": _code(b"99"),
    "code 2500": lambda good: good[:3] + b"0" + good[3:],
    "code +25": _code(b"+25"),
    "code 2_5": _code(b"2_5"),
    "code abc": _code(b"abc"),
    "digits of another script": lambda good: (
        "".join(chr(0xFF10 + digit - 48) for digit in good[:3]).encode() + good[3:]
    ),
    "an underscore behind the code": lambda good: good[:3] + b"_" + good[4:],
    "a space before the code": lambda good: b" " + good,
    "an empty line": _raw(b"\r\n"),
    "HTTP": _raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
}
UNENDED: Mapping[str, Kind] = {
    "silence": lambda _good: silence,
    "no line end": lambda good: then(good[:-2], silence),
    "a multiline reply never ended": lambda good: then(good[:3] + b"-more\r\n", silence),
    "one octet now and then, for ever": lambda good: drip(good[:4] + b"a" * 4000, 0.05),
    "a line now and then, for ever": lambda good: _slow_lines(good[:3] + b"-a\r\n", 0.25, 90),
}


def _slow_lines(line: bytes, seconds: float, times: int) -> Act:
    """A further line of the same reply now and then."""

    async def act(connection: Connection) -> None:
        for _ in range(times):
            await connection.write(line)
            await asyncio.sleep(seconds)

    return act


ODD: Mapping[str, Kind] = {
    "bare LF": lambda good: good.replace(b"\r\n", b"\n"),
    "a code without text": lambda good: good[:3] + b"\r\n",
    "a code and a space": lambda good: good[:3] + b" \r\n",
    "several lines": lambda good: good[:3] + b"-one\r\n" + good[:3] + b"-\r\n" + good,
    "NULs in the text": lambda good: good[:-2] + b" a\0b\0\r\n",
    "UTF-8 garbage in the text": lambda good: good[:-2] + b" \xff\xfe\xc3\x28\r\n",
    "ESC codes in the text": lambda good: good[:-2] + b" " + ESCAPES + b"\r\n",
    "a bare CR in the text": lambda good: good[:-2] + b" a\rb\r\n",
    "3,000 octets of text": lambda good: good[:-2] + b" " + b"w" * 3000 + b"\r\n",
    "split at each octet": lambda good: drip(good, 0.0),
    "one octet every few ms": lambda good: drip(good, 0.003),
}


def trials(kind: str, make: Kind, ways: tuple[str, ...], wanted: str | None) -> list[Trial]:
    """A kind at each stage in these ways; ``wanted`` None: as where there is no answer."""
    return [
        Trial(
            name=f"{kind} at {stage}, {way}",
            manners=Manners(says={stage: make(GOOD[stage])}, offer=WAYS[way]),
            wanted=wanted or lost(stage, way),
            warm=way == "bdat",
        )
        for way in ways
        for stage in stages(way)
    ]


def to_quit() -> list[Trial]:
    """What stands in place of the reply to QUIT; the connection ends all the same."""
    good = b"221 2.0.0 bye\r\n"
    kinds = {**ENDLESS, **UNENDED}
    return [
        Trial(
            name=f"{kind} at QUIT",
            manners=Manners(says={"quit": make(good)}),
            wanted=DELIVERED,
            also=_over,
        )
        for kind, make in kinds.items()
    ]


def _over(stand: Stand, sent: Sent) -> str | None:
    """Waits for the end of its connection."""
    stand.engine.until(
        "SELECT 1 FROM sessions WHERE address = ? AND ended_ms IS NOT NULL", sent.host.address
    )
    return None if b"QUIT\r\n" in sent.host.commands else "no QUIT was said"


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Each kind as a row."""
    ways = tuple(WAYS)
    without = "octets without end, or no reply, at QUIT"
    yield judged(stand, without, "delivered, and the connection ends", to_quit())
    one = ways[:1]
    for kind, make in ENDLESS.items():
        yield judged(stand, kind, NO_REPLY, trials(kind, make, ways if plan.long else one, None))
    short = {kind: ways[number % 3 : number % 3 + 1] for number, kind in enumerate(NONE)}
    for number, (kind, make) in enumerate(NONE.items()):
        if not plan.long and number % 2:
            continue
        chosen = ways if plan.long else short[kind]
        yield judged(stand, kind, NO_REPLY, trials(kind, make, chosen, None))
    yield from at_once(
        stand,
        [
            (kind, NO_REPLY, trials(kind, make, ways if plan.long else one, None))
            for kind, make in UNENDED.items()
        ],
    )
    for number, (kind, make) in enumerate(ODD.items()):
        chosen = ways if plan.long else ways[number % 3 : number % 3 + 1]
        yield judged(stand, kind, FINE, trials(kind, make, chosen, DELIVERED))
