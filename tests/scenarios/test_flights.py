"""Hosts that mishandle flights, and the engine: what becomes of the mail, what is remembered.

Every host here is the only one of its site. Nothing is refused by any of them, so in the end
everything is delivered; in doubt, and perhaps there twice, is only what may have been taken.
"""

from __future__ import annotations

from collections import Counter

import pytest

from mailstrom.testing.records import Connection
from mailstrom.testing.script import Act, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import Engine, Tables, mail
from tests.support.network import Network, dots

COUNT = 20
SETTINGS: Tables = {
    "sites": {"connections": 1, "idle": "200ms", "suspend": ["1s"]},
    # So long is waited where nothing comes; a good site on a machine that stands still is not lost.
    "timeouts": {**dict.fromkeys(("mail", "rcpt", "data", "dot"), "5s"), "body": "20s"},
}


def send(engine: Engine, *domains: str) -> list[str]:
    """Twenty messages to each domain, alternating; ids in order."""
    return engine.ms.send_many(
        mail(f"r{number}@{domain}") for number in range(COUNT) for domain in domains
    )


def behind(connections: list[Connection]) -> int:
    """Reads in which a command came behind the end of a content."""
    return sum("dot" in stages[:-1] for one in connections for stages in one.flights)


def bdats(servers: list[SMTPServer]) -> int:
    return sum(one.stages.count("bdat") for server in servers for one in server.connections)


def delivered_once(engine: Engine, ids: list[str], servers: list[SMTPServer]) -> None:
    assert all(engine.final(id).succeeded for id in ids)
    rows = engine.rows("SELECT recipient, count(*) AS n, max(in_doubt) AS doubt FROM attempts"
                       " GROUP BY message_id, recipient")  # fmt: skip
    assert {(row.n, row.doubt) for row in rows} == {(1, 0)}  # nobody was charged for it
    assert Counter(dot.kept for dot in dots(servers)) == {True: len(ids)}


BEHIND = {
    "503": Rule(stage="mail", behind=True, code=503),
    "thrown-away": Rule(stage="dot", deaf=True),
}


@pytest.mark.parametrize("how", BEHIND)
def test_commands_behind_the_dot_mishandled_cost_nothing_and_are_remembered(
    network: Network, make_engine: MakeEngine, how: str
) -> None:
    odd, (host,) = network.site(Script(rules=(BEHIND[how],)))
    good, (other,) = network.site(Script())
    engine = make_engine(settings=SETTINGS)
    ids = send(engine, odd, good)
    engine.start()
    delivered_once(engine, ids, [host, other])
    known = {
        row.site.partition(":")[0].partition(".")[2]: row.pipelining
        for row in engine.rows("SELECT site, pipelining FROM destinations")
    }
    assert known == {odd: "transaction", good: "full"}
    assert engine.stop() == 0
    stumbled = len(host.connections)
    assert stumbled >= 2  # a stumble ends the session
    assert len(other.connections) == 1
    assert behind(other.connections) >= 1

    more = send(engine, odd)
    engine.start()
    assert all(engine.final(id).succeeded for id in more)
    assert len(host.connections) == stumbled + 1  # another engine, warned by the site's row
    assert behind(host.connections[stumbled:]) == 0


def test_chunking_that_is_offered_and_unknown_costs_nothing_and_is_remembered(
    network: Network, make_engine: MakeEngine
) -> None:
    odd, (host,) = network.site(Script(chunking=True, bdat_known=False))
    good, (other,) = network.site(Script(chunking=True))
    engine = make_engine(settings=SETTINGS)
    ids = send(engine, odd, good)
    engine.start()
    delivered_once(engine, ids, [host, other])
    assert bdats([other]) == COUNT
    assert bdats([host]) == 0  # to it they were no commands
    tries = sum("data" in one.stages for one in host.connections)
    assert engine.stop() == 0

    more = send(engine, odd, good)
    engine.start()
    assert all(engine.final(id).succeeded for id in more)
    assert engine.stop() == 0
    assert bdats([other]) == 2 * COUNT
    opened = [one for one in host.connections if one.transactions]
    assert len(opened) == len(host.connections) - 1  # one session was lost to it, once
    assert sum("data" in one.stages for one in host.connections) > tries
    # and the first BDAT at the good site was the only one that waited for its recipients
    flights = [flight for one in other.connections for flight in one.flights]
    assert flights.count(["mail", "rcpt"]) == flights.count(["bdat"]) == 1


@pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
def test_a_host_that_takes_content_in_the_code_of_a_recipient_doubles_nothing(
    network: Network, make_engine: MakeEngine, chunking: bool
) -> None:
    """But one: what a BDAT got may have been a RCPT's answer. From then on all goes by DATA."""
    rule = Rule(stage="dot", code=250, enhanced="2.1.5", text="taken")
    domain, (host,) = network.site(Script(rules=(rule,), chunking=chunking))
    engine = make_engine(settings=SETTINGS)
    ids = send(engine, domain)
    engine.start()
    if not chunking:
        delivered_once(engine, ids, [host])
        assert behind(host.connections) > 0
        return
    assert all(engine.final(id).succeeded for id in ids)
    doubted = engine.rows("SELECT recipient FROM attempts WHERE in_doubt")
    twice = [who for who, n in Counter(dot.recipients[0] for dot in host.dots).items() if n > 1]
    assert twice == [row.recipient for row in doubted]
    assert len(doubted) == 1
    assert len(host.dots) == COUNT + 1
    assert bdats([host]) == 1


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET, Act.SILENCE])
@pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
def test_a_loss_behind_a_content_leaves_that_one_in_doubt(
    network: Network, make_engine: MakeEngine, chunking: bool, act: Act
) -> None:
    rule = Rule(stage="dot", act=act, first=5, last=5)
    odd, (host,) = network.site(Script(rules=(rule,), chunking=chunking))
    good, (other,) = network.site(Script(chunking=chunking))
    engine = make_engine(settings=SETTINGS)
    ids = send(engine, odd, good)
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    doubted = engine.rows("SELECT recipient FROM attempts WHERE in_doubt")
    assert len(doubted) == 1
    twice = Counter(dot.recipients for dot in host.dots)
    assert [one for one, n in twice.items() if n > 1] == [(doubted[0].recipient,)]
    assert len(twice) == COUNT
    charged = engine.rows(
        "SELECT recipient FROM attempts GROUP BY message_id, recipient HAVING count(*) > 1"
    )
    assert [row.recipient for row in charged] == [doubted[0].recipient]
    assert len(other.dots) == COUNT


def test_a_window_of_four_leaves_no_more_than_four_in_doubt(
    network: Network, make_engine: MakeEngine
) -> None:
    rule = Rule(stage="dot", act=Act.CLOSE, first=8, last=8)
    odd, (host,) = network.site(Script(rules=(rule,), chunking=True))
    engine = make_engine(settings={**SETTINGS, "delivery": {"pipeline_depth": 4}})
    ids = send(engine, odd)
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    doubted = {
        row.recipient for row in engine.rows("SELECT recipient FROM attempts WHERE in_doubt")
    }
    assert 1 <= len(doubted) <= 4
    twice = {one for one, n in Counter(dot.recipients[0] for dot in host.dots).items() if n > 1}
    assert twice <= doubted
    assert any(flight.count("bdat") > 1 for one in host.connections for flight in one.flights)


@pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
def test_a_refused_content_that_leaves_its_envelope_open_bounces_nobody_else(
    network: Network, make_engine: MakeEngine, chunking: bool
) -> None:
    rule = Rule(stage="dot", code=554, recipient="r7@*", held=True)
    odd, (host,) = network.site(Script(rules=(rule,), chunking=chunking))
    engine = make_engine(settings=SETTINGS)
    ids = send(engine, odd)
    engine.start()
    ended = [engine.final(id) for id in ids]
    assert [one.succeeded for one in ended] == [number != 7 for number in range(COUNT)]
    (failed,) = ended[7].recipients.values()
    assert (failed.status, failed.reply_code) == ("failed", 554)
    attempts = engine.rows("SELECT count(*) AS n FROM attempts")
    assert attempts[0].n == COUNT
    assert sum(dot.kept for dot in host.dots) == COUNT - 1
