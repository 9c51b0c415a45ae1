"""What a sender asked to be told of goes on to the next server, or is owed by this one."""

from __future__ import annotations

from typing import Any

import pytest

from mailstrom.storage.client import Notice
from mailstrom.testing.script import Script
from tests.scenarios.conftest import MakeEngine
from tests.support import handed
from tests.support.engine import Engine
from tests.support.network import Network

NOTICES = {
    "a": Notice("success,failure", "rfc822;first+a@example.com"),
    "b": Notice("never"),
    "c": Notice(None, "rfc822;first c@example.com"),
    "d": Notice(),
}


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine(workers=1)


def hand_in(engine: Engine, domain: str, **changes: Any) -> str:
    """One message as a listener takes it, to a recipient for each of ``NOTICES``."""
    recipients = [f"{name}@{domain}" for name in NOTICES]
    given: dict[str, Any] = {
        "ret": "hdrs",
        "envid": "E 1+2",
        "notices": tuple(NOTICES.values()),
        "priority_wire": -4,
    }
    [id] = handed.hand_in(
        engine, handed.submission("a@sender.test", *recipients, **given | changes)
    )
    return id


def told(engine: Engine) -> list[tuple[str, str]]:
    """Who is told of what, or is owed to be: whoever makes reports may be quicker."""
    rows = engine.rows(
        "SELECT r.address, coalesce(o.kind, r.reported) AS kind"
        " FROM recipient r LEFT JOIN owed o ON o.recipient = r.seq"
        " WHERE coalesce(o.kind, r.reported) IS NOT NULL"
    )
    return [tuple(row) for row in rows]


def test_it_is_said_to_a_host_that_offers_dsn_for_each_recipient(
    network: Network, engine: Engine
) -> None:
    domain, (host,) = network.site(Script(dsn=True, mt_priority=True))
    id = hand_in(engine, domain)
    engine.start()
    assert engine.final(id).succeeded
    (transaction,) = host.transactions
    assert transaction.params.get("RET") == "HDRS"
    assert transaction.params.get("ENVID") == "E+201+2B2"
    assert transaction.params.get("MT-PRIORITY") == "-4"
    asked = dict(zip((a for a, _ in transaction.recipients), transaction.asked, strict=True))
    assert asked == {
        f"a@{domain}": {"NOTIFY": "SUCCESS,FAILURE", "ORCPT": "rfc822;first+2Ba@example.com"},
        f"b@{domain}": {"NOTIFY": "NEVER"},
        f"c@{domain}": {"ORCPT": "rfc822;first+20c@example.com"},
        f"d@{domain}": {},
    }
    assert told(engine) == []


def test_a_host_without_dsn_hears_nothing_of_it_and_who_asked_for_success_is_told(
    network: Network, engine: Engine
) -> None:
    domain, (host,) = network.site(Script())
    id = hand_in(engine, domain)
    engine.start()
    assert engine.final(id).succeeded
    (transaction,) = host.transactions
    assert not transaction.params.keys() & {"RET", "ENVID", "MT-PRIORITY"}
    assert transaction.asked == [{}] * 4
    assert told(engine) == [(f"a@{domain}", "relayed")]
