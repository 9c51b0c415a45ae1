"""Hosts that take so much of a connection, or of a transaction, and say so only by refusing."""

from __future__ import annotations

import pytest

from mailstrom.testing.script import Per, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import Tables, mail
from tests.support.network import Network, dots

COUNT = 20
SETTINGS: Tables = {
    "sites": {"connections": 1, "idle": "200ms", "suspend": ["1s"]},
    "retry": {"schedule": ["1s"]},
}


@pytest.mark.parametrize("how", ["pipelining", "serial", "bdat", "closes"])
@pytest.mark.parametrize("most", [1, 3])
def test_a_host_that_takes_so_many_messages_of_a_connection_gets_new_connections(
    network: Network, make_engine: MakeEngine, most: int, how: str
) -> None:
    """It answers 451 to all others: one message finds out, and no other is charged."""
    rule = Rule(
        stage="mail",
        code=451,
        enhanced="4.3.0",
        per=Per.CONNECTION,
        first=most + 1,
        close=how == "closes",
    )
    script = Script(rules=(rule,), pipelining=how != "serial", chunking=how == "bdat")
    domain, (host,) = network.site(script)
    engine = make_engine(workers=1, settings=SETTINGS)
    ids = engine.ms.send_many(mail(f"r{number}@{domain}") for number in range(COUNT))
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    charged = engine.rows("SELECT recipient FROM attempts WHERE verdict <> 'delivered'")
    assert len(charged) == 1
    assert len(dots([host])) == COUNT
    sessions = engine.rows("SELECT id FROM sessions")
    assert COUNT / most <= len(sessions) <= COUNT / most + 3
    assert engine.rows("SELECT 1 FROM events WHERE type = 'site.suspended'") == []


@pytest.mark.parametrize("told", [True, False])
def test_recipients_that_were_too_many_follow_at_once_and_are_not_charged(
    network: Network, make_engine: MakeEngine, told: bool
) -> None:
    """Also where a bare 452 does not say that they were, and might speak of full mailboxes."""
    domain, (host,) = network.site(Script(recipient_limit=10, enhancedstatuscodes=told))
    settings: Tables = {**SETTINGS, "retry": {"schedule": ["1h"]}}
    engine = make_engine(workers=1, settings=settings)
    id = engine.send(*(f"r{number}@{domain}" for number in range(95)))
    engine.start()
    recipients = engine.final(id).recipients
    assert [r.attempts for r in recipients.values()] == [1] * 95
    assert {str(r.status) for r in recipients.values()} == {"delivered"}
    assert len(dots([host])) == 10, "the first shows the number, and all others keep to it"
    assert len(engine.rows("SELECT id FROM sessions")) == 1


def test_a_limit_that_is_one_less_than_what_is_known_is_found_out_too(
    network: Network, make_engine: MakeEngine
) -> None:
    """The session ends with its first refusal then, and nobody asks a second time."""
    rule = Rule(stage="mail", code=451, per=Per.CONNECTION, first=2)
    domain, (host,) = network.site(Script(rules=(rule,)))
    settings = {**SETTINGS, "sites": {**SETTINGS["sites"], "messages_per_connection": 2}}
    engine = make_engine(workers=1, settings=settings)
    ids = engine.ms.send_many(mail(f"r{number}@{domain}") for number in range(COUNT))
    engine.start()
    assert all(engine.final(id).succeeded for id in ids)
    assert len(engine.rows("SELECT 1 FROM attempts WHERE verdict <> 'delivered'")) == 1
    assert len(dots([host])) == COUNT
