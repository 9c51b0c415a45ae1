"""What applications and configuration files hand in; see docs/hostile.md."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile import (
    input_addresses,
    input_bodies,
    input_config,
    input_told,
    input_wire,
)
from tests.hostile.stand import standing
from tests.hostile.table import Row
from tests.support.engine import Tables
from tests.support.trial import Plan

SETTINGS: Tables = {"retry": {"schedule": ["1h"]}, "sites": {"suspend": ["1h"]}}


def run(plan: Plan) -> Iterator[Row]:
    """Each case as a row."""
    folder = plan.folder / "engine"
    folder.mkdir()
    with standing(folder, SETTINGS) as stand:
        yield from input_wire.rows(stand, plan)
        yield input_addresses.tricks(stand, plan)
        yield from input_bodies.rows(stand, plan)
        yield input_config.reloads(stand, plan)
        yield from input_told.rows(stand, plan)
    yield from input_addresses.shapes(plan)
    yield from input_config.rows(plan)
    yield input_told.console(plan.folder / "console")
    yield input_told.typed(plan.folder / "typed", plan)
