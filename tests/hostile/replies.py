"""Replies without end, late, doubled, missing, out of step; see docs/hostile.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.hostile import (
    replies_offer,
    replies_relay,
    replies_slow,
    replies_step,
    replies_told,
    replies_words,
)
from tests.hostile.rawhost import STAGES, Manners
from tests.hostile.replies_stage import STAGE_S, Trial, judged
from tests.hostile.stand import Stand, standing
from tests.hostile.table import MIB, Row
from tests.support.engine import Engine, Tables
from tests.support.network import Network
from tests.support.trial import Plan

SETTINGS: Tables = {
    "retry": {"schedule": ["1h"]},
    "sites": {"suspend": ["1h"], "idle": "0s", "connections": 1},
    "timeouts": {
        "connect": "10s", "quit": "1s", "rset": f"{STAGE_S}s",
        **dict.fromkeys((*STAGES, "starttls", "auth", "body"), f"{STAGE_S}s"),
    },
}  # fmt: skip


VARIANTS: Mapping[str, Tables] = {
    "pipeline_depth = 8": {"delivery": {"pipeline_depth": 8}},
    "pipelining = transaction": {"delivery": {"pipelining": "transaction"}},
    "pipelining = none": {"delivery": {"pipelining": "none"}},
    "on_doubt = hold": {"delivery": {"on_doubt": "hold"}},
}
"""What else may be configured of the dialogue: the first is in the short form."""


def run(plan: Plan) -> Iterator[Row]:
    """Each case as a row."""
    folder = plan.folder / "hosts"
    folder.mkdir()
    with standing(folder, SETTINGS) as stand:
        warm(stand)
        parts = (replies_told, replies_words, replies_step, replies_offer, replies_slow)
        for part in parts:
            yield from part.rows(stand, plan)
        yield stand.let_go()
    for number, (name, tables) in enumerate(VARIANTS.items()):
        if plan.long or not number:
            folder = plan.folder / f"variant-{number}"
            folder.mkdir()
            with standing(folder, {**SETTINGS, **tables}) as stand:
                yield replies_step.configured(stand, plan, name)
    with Network() as network:
        folder = plan.folder / "relay"
        folder.mkdir()
        engine = Engine(
            network, folder, workers=1,
            settings=replies_relay.settings(folder, network.port, SETTINGS),
        )  # fmt: skip
        with engine:
            yield from replies_relay.rows(Stand(network=network, engine=engine), plan)
            assert engine.stop() == 0
            assert engine.ms.check() == []


def warm(stand: Stand) -> None:
    """What a worker loads and keeps once is not held against the first case."""
    well = Trial(name="well", manners=Manners(), wanted="", text="x" * 70 + "\n", content=MIB)
    judged(stand, "well", "", [well] * 5)
