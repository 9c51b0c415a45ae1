"""Hosts that close behind each message they took, or at each BDAT, and the engine.

Behind a message the next flight has left. By DATA it costs nothing; by BDAT its content is in
doubt, and would be for every second message. At a BDAT the content is in doubt, and would be for
ever. So such a host is talked to without BDAT for a while.
"""

from __future__ import annotations

import pytest

from mailstrom.testing.script import Act, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import Tables, mail
from tests.support.network import Network, dots

COUNT = 20
SETTINGS: Tables = {
    "sites": {"connections": 1, "idle": "200ms", "suspend": ["1s"]},
    "retry": {"schedule": ["200ms"]},
}


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
def test_a_host_that_closes_behind_each_message_gets_them_all_nearly_without_doubts(
    network: Network, make_engine: MakeEngine, chunking: bool, depth: int
) -> None:
    closing = Script(rules=(Rule(stage="dot", close=True),), chunking=chunking)
    domain, (host,) = network.site(closing)
    engine = make_engine(settings={**SETTINGS, "delivery": {"pipeline_depth": depth}})
    ids = engine.ms.send_many(mail(f"r{number}@{domain}") for number in range(COUNT))
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    doubts = engine.rows("SELECT recipient FROM attempts WHERE in_doubt")
    assert len(doubts) <= (depth if chunking else 0)
    assert len(dots([host])) <= COUNT + len(doubts)
    rows = engine.rows("SELECT chunking FROM destinations")
    assert [row.chunking for row in rows] == ["mishandled" if chunking else None]


def test_a_host_that_closes_at_each_bdat_gets_its_mail_by_data_at_the_second_try(
    network: Network, make_engine: MakeEngine
) -> None:
    closing = Script(rules=(Rule(stage="bdat", act=Act.CLOSE, kept=False),), chunking=True)
    domain, (host,) = network.site(closing)
    engine = make_engine(settings=SETTINGS)
    ids = engine.ms.send_many(mail(f"r{number}@{domain}") for number in range(COUNT))
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    attempts = engine.rows("SELECT recipient, in_doubt FROM attempts")
    # the one whose last octet left with the first BDAT: it was tried twice, nobody else was
    assert [attempt.in_doubt for attempt in attempts].count(1) == 1
    assert len(attempts) == COUNT + 1
    assert [dot.kept for dot in dots([host])] == [False] + [True] * COUNT
    (row,) = engine.rows("SELECT chunking FROM destinations")
    assert row.chunking == "mishandled"
