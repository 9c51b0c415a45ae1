"""Hosts that do not read: windows shut on the content, and content that is taken drop by drop."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.rawhost import OFFER, Manners, shut, then
from tests.hostile.replies_stage import DELIVERED, LATER, STAGE_S, Trial, at_once, judged
from tests.hostile.replies_words import WAYS
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.support.trial import Plan

BLOCK = 65536
RATE = BLOCK // STAGE_S
"""Octets a second below which a host is given up: a block in the time that one may take."""
WINDOW = 16384


def text(octets: int) -> str:
    """Lines of so many octets in all."""
    return ("x" * 78 + "\n") * (octets // 80)


def closed(octets: int, way: str, wanted: str) -> Trial:
    """The window shuts behind the envelope."""
    if way == "bdat":
        says = {"mail": then(b"250 2.1.0 ok\r\n", shut)}
    else:
        says = {"data": then(b"354 go on\r\n", shut)}
    return Trial(
        name=f"{octets >> 10} KiB, {way}",
        manners=Manners(says=says, offer=WAYS[way]),
        wanted=wanted,
        text=text(octets),
        content=octets,
        window=WINDOW,
        warm=way == "bdat",
    )


def sipped(rate: int, octets: int, wanted: str) -> Trial:
    """Content is read at this rate."""
    return Trial(
        name=f"{octets >> 10} KiB at {rate} octets a second",
        manners=Manners(rate=rate, offer=OFFER),
        wanted=wanted,
        text=text(octets),
        content=octets,
        window=WINDOW,
    )


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Each kind as a row."""
    shut_on = [
        (f"window shut on the content, {name}", "deferred, not in doubt",
         [closed(octets, way, LATER) for way in ways])
        for name, octets, ways in (
            ("20 MiB", 20 * MIB, ("pipelined", "serial")),
            ("1 MiB", MIB, ("pipelined", "serial")),
            ("250 KiB", 250 * 1024, tuple(WAYS)),
        )
    ]  # fmt: skip
    few = [("content taken at half the least rate", "deferred at the body",
            [sipped(RATE // 2, MIB, LATER)])]  # fmt: skip
    if plan.long:
        for case, wanted, trials in shut_on:
            yield judged(stand, case, wanted, trials)
        few.append(("content taken at three times the least rate", "delivered",
                    [sipped(RATE * 3, 16 * BLOCK, DELIVERED)]))  # fmt: skip
    else:
        few += shut_on[1:]
    few.append(("content taken at four times the least rate", "delivered",
                [sipped(RATE * 4, 8 * BLOCK, DELIVERED)]))  # fmt: skip
    yield from at_once(stand, few)
