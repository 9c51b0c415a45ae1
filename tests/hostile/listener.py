"""Clients of the listener that smuggle, inject, relay, guess, flood, dawdle and cut.

Contract. ``run(plan)`` yields a row for each case of the parts below. Most meet one engine with the
settings that it ships with; floods and slow clients one with limits that are reached soon. Behind
all of them the spool must hold what was answered with 250 and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile import (
    listener_content,
    listener_cuts,
    listener_floods,
    listener_relay,
    listener_slow,
    listener_smuggling,
    listener_tls,
)
from tests.hostile.gate import gate
from tests.hostile.table import Row
from tests.support.trial import Plan

SMALL: dict[str, object] = {
    "max_connections": 60, "max_connections_per_client": 40, "max_recipients": 10,
    "timeout": listener_slow.TIMEOUT, "bare_newlines": "fix",
}  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every part."""
    usual, small, relay = (plan.folder / name for name in ("usual", "small", "relay"))
    for folder in (usual, small, relay):
        folder.mkdir()
    with gate(usual) as door:
        yield from listener_smuggling.run(door, plan, fixed=False)
        yield from listener_relay.run(door, plan)
        yield from listener_content.run(door, plan)
        yield from listener_cuts.run(door, plan)
        yield from listener_tls.run(door, plan)
        yield door.let_go()
        yield door.accounted()
    with gate(relay, role="relay") as door:
        yield from listener_content.relayed(door, plan)
        yield door.accounted()
    with gate(small, **SMALL) as door:
        yield from listener_smuggling.run(door, plan, fixed=True)
        yield from listener_floods.run(door, plan)
        yield from listener_slow.run(door, plan)
        yield door.let_go()
        yield door.accounted()
