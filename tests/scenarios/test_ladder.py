"""Servers that mishandle what they offer: talked to with less, nobody charged, remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom.testing.script import Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.scenarios.conftest import sound
from tests.support.engine import DEADLINE_S, Engine, mail
from tests.support.network import Network
from tests.support.sockets import eventually


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path) -> Iterator[Engine]:
    settings = {"sites": {"idle": "50ms"}, "timeouts": {"mail": "5s"}}
    with sound(Engine(network, folder, workers=1, settings=settings)) as engine:
        yield engine.start()


def delivered(engine: Engine, domain: str, count: int) -> None:
    """Send so many in one commit, and see each delivered by its first attempt."""
    ids = engine.ms.send_many(mail(f"u{number}@{domain}") for number in range(count))
    for id in ids:
        assert engine.final(id).succeeded
        assert [row.verdict for row in engine.attempts(id)] == ["delivered"]


def destination(engine: Engine, domain: str) -> tuple[str, str | None]:
    """What is remembered of the site."""
    (row,) = engine.rows("SELECT * FROM destinations WHERE site LIKE ?", f"%.{domain}:%")
    return row.pipelining, row.chunking


def quiet(engine: Engine, host: SMTPServer, domain: str) -> int:
    """Wait until no lane is left, so that the next one begins anew; the connections so far."""

    def over() -> bool:
        (row,) = engine.rows("SELECT * FROM destinations WHERE site LIKE ?", f"%.{domain}:%")
        return bool(row.lanes == 0)

    eventually(over, DEADLINE_S, what="the end of its lanes")
    return len(host.connections)


def test_a_server_that_drops_what_stands_behind_a_dot_gets_no_more_of_it(
    engine: Engine, network: Network
) -> None:
    # At a new site nothing stands behind the first dot. The second is answered once the next
    # envelope does, however long that takes: all messages came in one commit.
    second = Rule(stage="dot", deaf=True, until="DATA\r\n", first=2, last=2)
    rules = (second, Rule(stage="dot", deaf=True))
    domain, (host,) = network.site(Script(rules=rules))
    delivered(engine, domain, 12)
    assert destination(engine, domain) == ("transaction", None)
    assert len(host.dots) == 12, "each came once"
    before = quiet(engine, host, domain)
    delivered(engine, domain, 6)
    later = host.connections[before:]
    assert not any("dot" in flight and len(flight) > 1 for c in later for flight in c.flights)


def test_a_bdat_that_nobody_knows_is_not_tried_again_and_refuses_nothing(
    engine: Engine, network: Network
) -> None:
    domain, (host,) = network.site(Script(chunking=True, bdat_known=False))
    delivered(engine, domain, 3)
    assert destination(engine, domain)[1] == "mishandled"
    assert len(host.dots) == 3


def test_a_bdat_that_worked_shares_its_flight_from_then_on(
    engine: Engine, network: Network
) -> None:
    domain, (host,) = network.site(Script(chunking=True))
    delivered(engine, domain, 1)
    assert destination(engine, domain) == ("full", "proved")
    flights = [flight for c in host.connections for flight in c.flights]
    assert ["bdat"] in flights, "the first one waited for its recipients"
    before = quiet(engine, host, domain)
    delivered(engine, domain, 2)
    later = [flight for c in host.connections[before:] for flight in c.flights]
    assert ["mail", "rcpt", "bdat"] in later
