"""Mail hosts that break off, refuse, mix their replies, forget, and vanish.

Contract. ``run(plan)`` yields a row for each case, or for a family of one fault at many places, of
the parts below; each part's head says where its wanted outcomes come from. Two engines serve most
of them: one whose retries are an hour away, so that first verdicts can be looked at, and one that
brings all to its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile import (
    servers_bdat,
    servers_breaks,
    servers_lies,
    servers_limits,
    servers_mixed,
    servers_relay,
    servers_reuse,
    servers_sessions,
    servers_stages,
    servers_trains,
)
from tests.hostile.stand import standing
from tests.hostile.table import Row
from tests.support.trial import Plan


def run(plan: Plan) -> Iterator[Row]:
    """Every part."""
    first, last = plan.folder / "first", plan.folder / "last"
    first.mkdir()
    last.mkdir()
    with standing(first, servers_stages.SETTINGS) as stand:
        yield from servers_stages.run(stand, plan)
        yield from servers_breaks.run(stand, plan)
        yield from servers_mixed.first_verdicts(stand, plan, plan.pick(5, 100))
        yield from servers_mixed.broken_off(stand, plan, plan.pick(5, 50))
        yield from servers_lies.run(stand, plan)
        yield from servers_bdat.run(stand, plan)
        yield stand.let_go()
    yield from servers_relay.run(plan)
    with standing(last, servers_trains.SETTINGS) as stand:
        yield from servers_mixed.to_the_end(stand, plan, plan.pick(5, 100))
        yield from servers_sessions.run(stand, plan)
        yield from servers_limits.run(stand, plan)
        yield stand.let_go()
    yield from servers_reuse.run(plan)
