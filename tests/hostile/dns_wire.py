"""Messages that cost too much, and damaged ones: read as the resolver reads them, in this process.

Processor is measured here, as it can be told apart from everything else a worker does: the best of
three readings. Memory is the peak of what reading allocates.
"""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator

from mailstrom_workers import dnswire
from mailstrom_workers.dnswire import Unreadable
from tests.hostile.dns_peer import CNAME, TXT, mx, record, spelled
from tests.hostile.table import MIB, Row
from tests.support.trial import Plan

MOST_S = 0.1
MOST_MEMORY = 10 * MIB
ASKED = dnswire.question(4711, "d.test", "MX")
READ = "read or refused, nothing else"
Read = Callable[[bytes, bytes], object]


def _message(*records: bytes, rcode: int = 0) -> bytes:
    """The most of these records that 64 kB hold."""
    kept, size = [], len(ASKED)
    for one in records:
        size += len(one)
        if size > 65_535:
            break
        kept.append(one)
    head = ASKED[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, len(kept), 0, 0)
    return head + ASKED[12:] + b"".join(kept)


def _at(place: int) -> bytes:
    return struct.pack("!H", 0xC000 | place)


def _costly() -> dict[str, bytes]:
    """Messages of 64 kB."""
    first = len(ASKED)
    long = record(TXT, b"", owner=b"\x01a" * 110 + b"\xc0\x0c")
    steps, to = b"", 12
    for _ in range(110):
        place = first + 12 + len(steps)
        steps, to = steps + b"\x01a" + _at(to), place
    chained = record(TXT, steps)
    empty = b"".join(b"\xc0" + bytes([n]) for n in range(12, 200, 2))
    return {
        "owners that point to one long name": _message(
            long, *[record(TXT, b"", owner=_at(first))] * 5_500
        ),
        "owners of a label and that name": _message(
            long, *[record(TXT, b"", owner=b"\x01b" + _at(first))] * 5_500
        ),
        "owners that point to a chain of 110 pointers": _message(
            chained, *[record(TXT, b"", owner=_at(to))] * 5_500
        ),
        "MX records that point there": _message(chained, *[mx(_at(to))] * 5_500),
        "MX records as plain as can be": _message(*[mx(b"\0")] * 5_500),
        "MX records of 2,000 hosts": _message(
            *[mx(f"{number:04d}.d.test", number) for number in range(5_500)]
        ),
        "2,000 aliases in a row": _message(
            record(CNAME, spelled("0001")),
            *[record(CNAME, spelled(f"{n + 1:04d}"), owner=spelled(f"{n:04d}"))
              for n in range(1, 4_000)]
        ),
        "aliases of one name, again and again": _message(
            *[record(CNAME, b"\xc0\x0c")] * 5_500
        ),
        "pointers to pointers": _message(record(TXT, empty), *[mx(_at(first + 12 + 150))] * 5_000),
        "65,500 octets of nothing": ASKED[:2] + b"\x81\x80\0\1\xff\xff\xff\xff\xff\xff"
        + ASKED[12:] + b"\0" * 65_000,
    }  # fmt: skip


def reading(name: str, wire: bytes, read: Read = dnswire.read) -> Row:
    """What one message costs."""
    best_s = float("inf")
    seen, findings = READ, []
    for _ in range(3):
        began = time.process_time()
        try:
            read(wire, ASKED)
        except Unreadable:
            pass
        except Exception as error:
            seen = f"{type(error).__name__}"
        best_s = min(best_s, time.process_time() - began)
    tracemalloc.start()
    try:
        read(wire, ASKED)
    except Exception:
        pass
    finally:
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if best_s > MOST_S:
        findings.append(f"reading {len(wire)} octets took {best_s * 1000:.0f} ms")
    if memory > MOST_MEMORY:
        findings.append(f"reading took {memory / MIB:.1f} MiB")
    return Row(
        case=f"64 kB: {name}", wanted=READ, seen=seen, cpu_s=best_s, memory=memory,
        findings=tuple(findings),
    )  # fmt: skip


def damaged(plan: Plan, read: Read = dnswire.read) -> Row:
    """Answers of many kinds with octets changed, cut off, doubled."""
    dice = random.Random(plan.seed)
    whole = [
        _message(mx("a.test"), mx("b.d.test", 20), record(TXT, b"x" * 40)),
        _message(record(CNAME, spelled("e.test")), mx("a.test", owner=spelled("e.test"))),
        *(wire[:600] for wire in _costly().values()),
    ]
    tried, worst_s, found = plan.pick(8_000, 1_000_000), 0.0, set()
    for _ in range(tried):
        wire = bytearray(dice.choice(whole))
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(2, len(wire))
            match dice.randrange(4):
                case 0:
                    wire[place] = dice.choice((0, 1, 12, 63, 64, 128, 192, 193, 255))
                case 1:
                    wire[place] = dice.randrange(256)
                case 2:
                    del wire[max(place, 30) :]
                case _:
                    wire[place:place] = wire[place : place + dice.randrange(20)]
            if len(wire) < 4:
                break
        began = time.process_time()
        try:
            read(bytes(wire), ASKED)
        except Unreadable:
            pass
        except Exception as error:
            found.add(f"{type(error).__name__}: {bytes(wire).hex()}")
        worst_s = max(worst_s, time.process_time() - began)
    return Row(
        case="damaged answers", wanted=READ, seen="something else" if found else READ,
        tried=tried, cpu_s=worst_s, findings=tuple(sorted(found)[:3]),
    )  # fmt: skip


def rows(plan: Plan) -> Iterator[Row]:
    """Costly ones, then damaged ones."""
    for name, wire in _costly().items():
        yield reading(name, wire)
    yield damaged(plan)
