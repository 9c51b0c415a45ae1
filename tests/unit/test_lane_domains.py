"""Servers that take recipients of so many domains in a session (RFC 9422: RCPTDOMAINMAX).

The rig's servers note whatever goes beyond it, and ``Rig.run`` fails by that.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from mailstrom.smtp.capabilities import Capabilities
from mailstrom_workers.domains import SessionDomains
from mailstrom_workers.lane import LaneRun
from tests.unit.lane_rig import Rig, row, until


def limited(monkeypatch: pytest.MonkeyPatch, most: int, *rows: Any, **limits: int) -> Rig:
    """A rig with one host that announces it."""
    rig = Rig(monkeypatch, *rows)
    rig.hosts = rig.hosts[:1]
    rig.offers = Capabilities(name="mx", pipelining=True, limits={"RCPTDOMAINMAX": most, **limits})
    return rig


def spread(messages: int, domains: int) -> list[Any]:
    """Messages with a recipient in each domain."""
    return [
        row(message * domains + n + 1, message=message, domain=f"d{n}.test")
        for message in range(messages)
        for n in range(domains)
    ]


def all_is_taken_at_once(rig: Rig) -> bool:
    """Every recipient had one attempt, and every session an orderly end."""
    taken = [one.recipient for one in rig.store.settled if one.attempt is not None]
    assert set(rig.store.states.values()) == {"delivered"}
    assert sorted(taken) == sorted(rig.store.states)
    assert rig.store.suspended == []
    return all(session.quits for session in rig.opened)


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
def test_nobody_is_sent_to_a_session_that_has_its_domains(
    monkeypatch: pytest.MonkeyPatch, most: int, behind: int
) -> None:
    rig = limited(monkeypatch, most, *spread(20, 4))
    rig.behind = 1 + behind
    rig.run()
    assert all_is_taken_at_once(rig)
    if most >= 4:
        assert len(rig.opened) == 1
    else:  # each claim's, and no more: one session takes all of a domain that is in hand
        claims = sum(bool(work.claims) for work in rig.store.work)
        assert len(rig.opened) <= claims * -(-4 // most)
        assert len(rig.opened) < 20


def test_a_session_takes_all_of_its_domain_that_is_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(n, domain=f"d{n % 4}.test") for n in range(1, 9)]
    rig = limited(monkeypatch, 1, *rows)
    rig.run()
    assert all_is_taken_at_once(rig)
    assert rig.begun == [1, 5, 2, 6, 3, 7, 4, 8]
    assert len(rig.opened) == 4


def test_many_domains_by_a_relay_are_each_served_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(n, domain=f"d{n % 300}.test") for n in range(1, 601)]
    rig = limited(monkeypatch, 1, *rows)
    rig.run()
    assert all_is_taken_at_once(rig)
    assert len(rig.opened) <= 600


def test_connections_for_each_domain_count_for_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = limited(monkeypatch, 1, *(row(n, domain=f"d{n}.test") for n in range(1, 101)))
    rig.reply_s = 0.2
    rig.run()
    assert all_is_taken_at_once(rig)
    limits = [work.claims[0].limit for work in rig.store.work if work.claims]
    assert max(limits[:3]) <= 16, "it begins small"
    assert set(limits[3:]) == {1}, "a lane that slow hoards nothing"


def test_a_busy_domain_does_not_starve_another(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(n, domain="rare.test" if n == 3 else "busy.test") for n in range(1, 2_001)]
    rig = limited(monkeypatch, 1, *rows)
    rig.run()
    assert all_is_taken_at_once(rig)
    assert rig.begun.index(3) < 30, "what was in hand with it, and nothing claimed behind it"
    assert len(rig.opened) == 3


def test_a_session_that_idles_is_left_for_another_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = limited(monkeypatch, 1, row(1, domain="a.test"))

    async def beside(lane: LaneRun) -> None:
        for number, domain in ((2, "a.test"), (3, "b.test"), (4, "b.test")):
            await until(lambda: lane.idle)
            rig.store.add(row(number, domain=domain))
            lane.call()
            await until(lambda number=number: rig.store.states[number] == "delivered")

    rig.run(beside)
    assert all_is_taken_at_once(rig)
    assert [rig.opened.index(session) for session in rig.sessions] == [0, 0, 1, 1]


def test_with_limits_of_transactions_and_recipients(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = limited(monkeypatch, 2, *spread(6, 5), RCPTMAX=2, MAILMAX=3)
    rig.run()
    assert all_is_taken_at_once(rig)
    own = [row(n, message=1, domain="ab"[n % 2] + ".test") for n in range(1, 9)]
    rig = limited(monkeypatch, 1, *own, RCPTMAX=3)
    rig.run()
    assert [len(one) for one in rig.envelopes] == [3, 1, 3, 1]
    assert len(rig.opened) == 2


@pytest.mark.parametrize("how", ["drains", "says nothing"])
def test_what_waits_for_another_session_goes_back(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    rig = limited(monkeypatch, 1, row(1, domain="a.test"), row(2, domain="b.test"))
    rig.script[1] = [None]

    async def beside(lane: LaneRun) -> None:
        await until(lambda: lane.stock.apart)
        if how == "drains":
            lane.ctx.draining.set()
            lane.look()
        await until(lambda: rig.store.states[2] == "queued")
        assert not lane.stock.apart
        assert rig.store.states[1] == "sending"
        lane.ctx.draining.set()
        lane.look()
        rig.opened[0].abort()

    rig.run(beside)
    assert rig.begun == [1]
    assert rig.store.states[2] == "queued"


def test_what_may_be_given_to_a_session() -> None:
    domains = SessionDomains(2)
    one, two, other = row(1, domain="a"), row(2, domain="b"), row(3, domain="c")
    assert domains.suiting((one, two, other), domains.taken(())) == {"a", "b"}
    domains.begin((one,))
    assert domains.suiting((one, two, other), domains.taken(())) == {"a", "b"}
    assert domains.suiting((two, one, other), domains.taken((other,))) == {"a", "c"}
    assert domains.suiting((two,), domains.taken((other,))) == set()
    assert Counter(domains.taken((one, other))) == Counter(("a", "c"))
