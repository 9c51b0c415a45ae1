"""Cases of DNS: name servers that fail, lie, forge, cut off, and messages that cannot be read."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import repeat

from tests.hostile.dns_peer import (
    MX,
    NS,
    QR,
    RA,
    RD,
    TC,
    TXT,
    A,
    Act,
    Close,
    Out,
    Question,
    Say,
    Wait,
    by_tcp,
    message,
    mx,
    only,
    record,
    right,
    soa,
    spelled,
)
from tests.hostile.dns_world import Case, World, flat

WAITS = "deferred dns, 0 charged"
NO_DOMAIN = "failed no_domain, 1 charged"
DELIVERED = "delivered, 1 charged"
EVIL = mx("mx.evil.test")
FLOOD = 10_000


def _rcode(number: int) -> Say:
    return lambda question: right(question, rcode=number)


def _silent(question: Question) -> Iterable[Act]:
    return ()


def _forged(**options: object) -> Say:
    return lambda question: (Out(message(question, EVIL, **options)),)  # type: ignore[arg-type]


def _other_id(question: Question, by: int = 1) -> bytes:
    return ((int.from_bytes(question.id, "big") + by) % 65536).to_bytes(2, "big")


def _wrong_id(question: Question) -> Iterator[Act]:
    yield Out(message(question, EVIL, id=_other_id(question)))


def _wrong_question(question: Question) -> Iterator[Act]:
    section = spelled("other.test") + question.section[-4:]
    yield Out(message(question, EVIL, section=section))


def _elsewhere(question: Question) -> Iterator[Act]:
    yield Out(message(question, EVIL), elsewhere=True)


def _stranger(question: Question) -> Iterator[Act]:
    yield Out(message(question, EVIL), stranger=True)


def _garbage(question: Question) -> Iterator[Act]:
    yield from (Out(question.id + b"\xff" * 40), Out(b""), Out(b"\0"), Out(question.wire))


def _lame(question: Question) -> Iterator[Act]:
    ns = record(NS, spelled("ns.evil.test"), owner=spelled("test"))
    yield Out(message(question, authority=[ns], additional=[EVIL]))


def _additional(question: Question) -> Iterator[Act]:
    yield Out(message(question, authority=[soa()], additional=[EVIL]))


def _other_name(question: Question) -> Iterator[Act]:
    yield Out(message(question, mx("mx.evil.test", owner=spelled("other.test"))))


def _flooded(world: World, domain: str) -> Say:
    """Ten thousand answers under wrong ids, then the right one."""
    good = world.well(f"mx.{domain}")

    def say(question: Question) -> Iterator[Act]:
        if not question.tcp:
            for by in range(1, FLOOD + 1):
                yield Out(message(question, EVIL, id=_other_id(question, by)))
        yield from right(question, mx(good))

    return say


def _late(world: World, domain: str) -> Say:
    """Forged ones from everywhere, then the right one."""
    good = world.well(f"mx.{domain}")

    def say(question: Question) -> Iterator[Act]:
        for forged in (_elsewhere, _stranger, _wrong_id, _wrong_question, _garbage, _other_name):
            yield from forged(question)
        yield from right(question, mx(good))

    return say


def _second_try(world: World, domain: str) -> Say:
    """Silent the first two times."""
    good = world.well(f"mx.{domain}")
    return lambda question: right(question, mx(good)) if question.number > 2 else ()


def _tcp(*acts: Act) -> Say:
    return by_tcp(lambda question: acts)


def _half(question: Question) -> Iterator[Act]:
    wire = message(question, EVIL)
    yield Out(len(wire).to_bytes(2, "big") + wire[:-3], raw=True)
    yield Close()


def _drip(question: Question) -> Iterator[Act]:
    yield Out(b"\xff\xff", raw=True)
    for act in repeat((Out(b"\0", raw=True), Wait(0.2)), 100):
        yield from act


def _body(body: bytes, *, answers: int = 1, authorities: int = 0) -> Say:
    """By TCP, so that there is no second chance: bytes behind a right head and question."""
    counts = (1, answers, authorities, 0)
    return by_tcp(lambda q: (Out(message(q, body, counts=counts)),))


def _behind(question: Question) -> int:
    return len(question.wire)


def _pointing(to: int) -> Say:
    """An owner that points to where it stands, plus so many octets."""

    def say(question: Question) -> Iterator[Act]:
        pointer = struct.pack("!H", 0xC000 | (_behind(question) + to))
        yield Out(message(question, mx("mx.evil.test", owner=pointer)))

    return by_tcp(say)


def _circle(question: Question) -> Iterator[Act]:
    at = _behind(question)
    owner = b"\x01a" + struct.pack("!H", 0xC000 | (at + 4)) + struct.pack("!H", 0xC000 | at)
    yield Out(message(question, owner + EVIL[2:]))


def _deep(question: Question) -> Iterator[Act]:
    """64 kB of records whose owners all point to one name of 110 labels."""
    long = record(TXT, b"", owner=b"\x01a" * 110 + b"\xc0\x0c")
    at = struct.pack("!H", 0xC000 | _behind(question))
    yield Out(message(question, long, *[record(TXT, b"", owner=b"\x01b" + at)] * 4_600))


_LONG = (b"\x3f" + b"x" * 63) * 4 + b"\0"

UNREADABLE: dict[str, Say] = {
    "a pointer to itself": _pointing(0),
    "a pointer forward": _pointing(9),
    "a pointer beyond the message": _pointing(9_000),
    "pointers in a circle": by_tcp(_circle),
    "64 kB of pointers to one long name": by_tcp(_deep),
    "a label of 64 octets": _body(mx(b"\x40" + b"x" * 64 + b"\0")),
    "a label of the reserved kind": _body(mx(b"\x80x\0")),
    "a name of 257 octets": _body(mx(_LONG)),
    "an owner of 257 octets": _body(mx("mx.evil.test", owner=_LONG)),
    "a name that ends behind its record": _body(record(MX, b"\0\x0a\x05mx")),
    "a record longer than its message": _body(EVIL[:10] + b"\xff\xff" + EVIL[12:]),
    "65,535 records announced, one there": _body(EVIL, answers=65_535),
    "an MX record of two octets": _body(record(MX, b"\0\x0a")),
    "an MX record with more behind its name": _body(record(MX, EVIL[12:] + b"xx")),
    "an SOA without its numbers": _body(record(6, b"\0\0", owner=b"\0"), answers=0, authorities=1),
}

TROUBLE = (
    *(
        Case(name=f"answers {word}", wanted=WAITS, says=flat(_rcode(number)))
        for word, number in
        {"SERVFAIL": 2, "REFUSED": 5, "NOTIMP": 4, "FORMERR": 1, "response code 11": 11}.items()
    ),
    Case(name="is silent", wanted=WAITS, says=flat(_silent)),
    Case(name="is silent twice, then answers", wanted=DELIVERED, says=_second_try),
    Case(name="refers to other servers (lame)", wanted=WAITS, says=flat(_lame)),
    Case(name="answers under a wrong id", wanted=WAITS, says=flat(_wrong_id)),
    Case(name="answers another question", wanted=WAITS, says=flat(_wrong_question), short=False),
    Case(name="answers about another name", wanted=WAITS, says=flat(_other_name), short=False),
    Case(name="answers from another port", wanted=WAITS, says=flat(_elsewhere), short=False),
    Case(name="answers from another address", wanted=WAITS, says=flat(_stranger), short=False),
    Case(name="sends a question back (QR off)", wanted=WAITS, says=flat(_forged(flags=RD | RA)),
         short=False),
    Case(name="answers another opcode", wanted=WAITS, says=flat(_forged(flags=QR | RD | 0x2800)),
         short=False),
    Case(name="answers with two questions", wanted=WAITS, says=flat(_forged(counts=(2, 1, 0, 0))),
         short=False),
    Case(name="answers with no question", wanted=WAITS,
         says=flat(_forged(counts=(0, 1, 0, 0), section=b"")), short=False),
    Case(name="sends garbage", wanted=WAITS, says=flat(_garbage), short=False),
    Case(name="says evil in the additional section alone", wanted=NO_DOMAIN,
         says=flat(_additional)),
    Case(name="forged answers of six kinds before the right one", wanted=DELIVERED, says=_late),
    Case(name="10,000 forged answers before the right one", wanted=DELIVERED, says=_flooded),
    Case(name="cut off (TC), TCP silent", wanted=WAITS, says=flat(_tcp()), short=False),
    Case(name="cut off, TCP closes", wanted=WAITS, says=flat(_tcp(Close()))),
    Case(name="cut off, TCP resets", wanted=WAITS, says=flat(_tcp(Close(reset=True)))),
    Case(name="cut off, TCP gives half an answer", wanted=WAITS, says=flat(by_tcp(_half))),
    Case(name="cut off, TCP gives an octet now and then", wanted=WAITS, says=flat(by_tcp(_drip)),
         short=False),
    Case(name="cut off, TCP gives garbage", wanted=WAITS, says=flat(_tcp(Out(b"\xff" * 50)))),
    Case(name="cut off, TCP gives nothing", wanted=WAITS, says=flat(_tcp(Out(b"")))),
    Case(name="cut off, TCP answers under a wrong id", wanted=WAITS, says=flat(by_tcp(_wrong_id))),
    Case(name="cut off, and by TCP too, with records", wanted=WAITS,
         says=flat(_forged(flags=QR | RD | RA | TC))),
    *(Case(name=name, wanted=WAITS, says=flat(say)) for name, say in UNREADABLE.items()),
    Case(name="an address of five octets", wanted=WAITS,
         says=lambda world, domain: _short_address(world, domain)),
)  # fmt: skip


def _short_address(world: World, domain: str) -> Say:
    """Of the only host."""
    name = f"mx.{domain}"
    bad = record(A, b"\x7f\0\0\1\1")
    broken = by_tcp(lambda question: (Out(message(question, bad)),))
    world.peer.says(name, only(A, broken))
    return lambda question: right(question, mx(name))
