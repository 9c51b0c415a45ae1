"""DNS that lies: each case by a real engine and a real name server over UDP and TCP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.hostile import dns_changes, dns_dead, dns_wire
from tests.hostile.dns_records import RECORDS, recipients, refused, without_loopback
from tests.hostile.dns_trouble import TROUBLE
from tests.hostile.dns_world import world
from tests.hostile.table import Row
from tests.support.trial import Plan

BY_DATAGRAM = frozenset({
    "is silent twice, then answers",
    "answers from another port",
    "answers from another address",
    "forged answers of six kinds before the right one",
})  # fmt: skip
"""What a stream has not: strangers who answer, and a question that is asked again."""


def run(plan: Plan) -> Iterator[Row]:
    """All cases; in the short form those that wait for silence are few."""
    yield from dns_wire.rows(plan)
    with world(plan, "names") as names:
        for case in (*TROUBLE, *RECORDS, *recipients(), *refused()):
            if plan.long or case.short:
                yield names.tried(case)
        yield from dns_changes.rows(names)
        yield dns_changes.guessable(names)
        yield names.stand.let_go()
    with world(plan, "stream", {"dns": {"tcp": True}}) as streams:
        cases = [case for case in (*TROUBLE, *RECORDS) if case.name not in BY_DATAGRAM]
        for case in cases if plan.long else [case for case in cases if case.short][::5]:
            yield streams.tried(replace(case, name=f"[dns] tcp: {case.name}"))
        yield streams.stand.let_go()
    with world(plan, "loopback", {"dns": {"allow_loopback": False}}) as elsewhere:
        for case in without_loopback():
            if plan.long or case.short:
                yield elsewhere.tried(case)
    yield from dns_dead.rows(plan)
