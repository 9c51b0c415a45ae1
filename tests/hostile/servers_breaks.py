"""Content that is broken off at each KB, or answered before its end.

Contract. Of a content of 8 MiB the last octet is not written when the fault comes in its first 64
KB: not sent, to the next host, no doubt. A content of 32 KB leaves in one write with its dot, so
what is lost in it may have arrived: in doubt, and no other host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mailstrom.testing.script import Act, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.servers_judge import Trial, family, recipients, settled, words
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import mail
from tests.support.trial import Plan

BIG_LINES, SMALL_LINES = 110_000, 430  # of 76 octets: 8 MiB, 32 KB
BIG_KB, SMALL_KB = 64, 32

LOST = ("deferred remote, 1 charged", True)
REFUSED = ("failed bounced, 1 charged", False)
DOUBT = ("deferred in_doubt in doubt, 1 charged", False)
"""With one host; and whether the next one takes it, where there is one."""

FAULTS: Mapping[str, tuple[Mapping[str, object], tuple[str, bool], tuple[str, bool] | None]] = {
    "FIN": ({"act": Act.CLOSE}, LOST, DOUBT),
    "RST": ({"act": Act.RESET}, LOST, DOUBT),
    "half a reply, then FIN,": ({"act": Act.GARBAGE, "data": "25", "close": True}, LOST, DOUBT),
    "451, then FIN,": ({"code": 451, "close": True}, LOST, LOST),
    "421, then FIN,": ({"code": 421, "close": True}, LOST, LOST),
    "554, then FIN,": ({"code": 554, "close": True}, REFUSED, REFUSED),
    # consent to what was not sent whole is none; behind the dot it cannot be told from a right one
    "250, then FIN,": ({"code": 250, "close": True}, LOST, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A content to a host that breaks off behind so many KB."""

    kb: int
    address: str
    second: SMTPServer | None


def run(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Two rows a fault: content that is under way, and content that is out."""
    for name, (fault, big, small) in FAULTS.items():
        yield _row(stand, name, fault, big, BIG_LINES, range(1, BIG_KB + 1, plan.pick(9, 1)))
        if small is not None:
            places = range(1, SMALL_KB + 1, plan.pick(5, 1))
            yield _row(stand, name, fault, small, SMALL_LINES, places)


def _row(
    stand: Stand,
    name: str,
    fault: Mapping[str, object],
    wanted: tuple[str, bool],
    lines: int,
    places: range,
) -> Row:
    whose = "a content whose end is not written" if lines == BIG_LINES else "a content that is out"
    every = "KB" if places.step == 1 else f"{places.step}th KB"
    alone, elsewhere = wanted
    words = f"{alone}; " + ("delivered by a next host" if elsewhere else "no other host is tried")
    broken = [_place(stand, fault, kb, second=number % 4 == 0) for number, kb in enumerate(places)]
    return family(
        stand,
        f"{name} at each {every} of {whose}",
        words,
        lambda: bring(stand, broken, wanted, lines),
    )


def bring(
    stand: Stand, broken: Iterable[Broken], wanted: tuple[str, bool], lines: int
) -> Iterator[Trial]:
    """One message to all of them."""
    broken = list(broken)
    text = f"{'x' * 74}\n" * lines
    id = stand.engine.ms.send(mail(*(one.address for one in broken), text=text))
    settled(stand, [id])
    rows = recipients(stand, [id])
    alone, elsewhere = wanted
    for one in broken:
        row = rows[one.address]
        seen = words(row)
        if one.second is None:
            yield Trial(name=f"{one.kb} KB", wanted=alone, seen=seen)
            continue
        took = len(one.second.dots)
        there = ("delivered", 1) if elsewhere else (alone.partition(",")[0], 0)
        yield Trial(
            name=f"{one.kb} KB, a second host", wanted=there, seen=(seen.partition(",")[0], took)
        )


def _place(stand: Stand, fault: Mapping[str, object], kb: int, *, second: bool) -> Broken:
    rule = Rule(stage="body", after=kb * 1024, **fault)  # type: ignore[arg-type]
    scripts = [Script(rules=(rule,), magic=False), *([Script()] if second else [])]
    domain, hosts = stand.network.site(*scripts)
    return Broken(kb=kb, address=f"a@{domain}", second=hosts[1] if second else None)
