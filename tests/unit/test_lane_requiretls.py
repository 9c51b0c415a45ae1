"""A lane with mail that REQUIRETLS was said of (RFC 8689), among mail that asks for nothing.

The rig notes such mail on a session that proved nothing, or whose server does not offer it; its
``run`` fails by that.
"""

from __future__ import annotations

from typing import Any

import pytest

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.storage.base import Claimed
from mailstrom.types import Host, Reason, Stage
from mailstrom_workers.endpoint import SessionFacts, SessionFailure
from tests.unit.lane_rig import LATER, Rig, refused, row

OFFERS = Capabilities(name="mx", pipelining=True, requiretls=True)
LACKS = Capabilities(name="mx", pipelining=True)


def strict(number: int, **facts: Any) -> Claimed:
    """A message that REQUIRETLS was said of."""
    return row(number, **{"sender": "a@b.test", "require_tls": True, "requiretls": True, **facts})


def failure(host: str, *, untrusted: bool, stage: Stage = Stage.STARTTLS) -> SessionFailure:
    return SessionFailure(
        stage=stage, cause="tls", reply=None, text=f"starttls at {host}: bad", untrusted=untrusted,
        facts=SessionFacts(host=host, address="192.0.2.1", port=25, tls_wanted="required+verify"),
    )  # fmt: skip


def mixed(monkeypatch: pytest.MonkeyPatch, offers: Capabilities, count: int = 90) -> Rig:
    """Every third message is strict; sessions are encrypted and prove nothing by themselves."""
    rows = [strict(n) if n % 3 == 0 else row(n) for n in range(1, count + 1)]
    rig = Rig(monkeypatch, *rows)
    rig.tls, rig.offers = "encrypted", offers
    return rig


def last(rig: Rig, number: int) -> Any:
    """The last attempt that was written of a recipient."""
    return [one for one in rig.store.settled if one.recipient == number and one.attempt][-1].attempt


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("first", [1, 3])
def test_all_of_a_mixed_batch_is_sent_and_one_session_with_proof_is_enough(
    monkeypatch: pytest.MonkeyPatch, behind: int, first: int
) -> None:
    rig = mixed(monkeypatch, OFFERS)
    if first == 3:
        rig.store.due.reverse()
    rig.behind = behind
    rig.run()
    assert set(rig.store.states.values()) == {"delivered"}
    assert len(rig.opened) <= 2
    assert rig.opened[-1].policy.verify
    assert rig.store.suspended == []


def test_where_nobody_offers_it_the_others_are_sent_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = mixed(monkeypatch, LACKS)
    rig.run()
    for number, state in rig.store.states.items():
        assert state == ("failed" if number % 3 == 0 else "delivered")
    attempt = last(rig, 3)
    assert (attempt.reason, attempt.enhanced_code) == (Reason.POLICY, "5.7.30")
    assert attempt.reply_text == (
        "REQUIRETLS support required: mx1.test does not offer it; mx2.test does not offer it"
    )
    assert len(rig.opened) <= 4
    assert rig.store.suspended == []


@pytest.mark.parametrize("untrusted", [True, False])
def test_hosts_that_prove_nothing_are_none_for_it_and_are_not_suspended(
    monkeypatch: pytest.MonkeyPatch, untrusted: bool
) -> None:
    rig = mixed(monkeypatch, OFFERS)
    rig.unproved = {name: failure(name, untrusted=untrusted) for name in ("mx1.test", "mx2.test")}
    rig.run()
    for number, state in rig.store.states.items():
        wanted = "failed" if untrusted else "deferred"
        assert state == (wanted if number % 3 == 0 else "delivered")
    attempt = last(rig, 3)
    if untrusted:
        assert (attempt.reason, attempt.enhanced_code) == (Reason.POLICY, "5.7.10")
        assert attempt.reply_text == "encryption needed: mx1.test: bad; mx2.test: bad"
    else:
        assert (attempt.reason, attempt.enhanced_code) == (Reason.TLS, "4.7.10")
    assert rig.store.suspended == []
    assert {rig.sessions[at].facts.host for at in range(len(rig.begun))} == {"mx1.test"}


def test_the_first_host_that_proves_itself_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = mixed(monkeypatch, OFFERS)
    rig.unproved = {"mx1.test": failure("mx1.test", untrusted=True)}
    rig.run()
    assert set(rig.store.states.values()) == {"delivered"}
    places = {n: rig.sessions[at].facts.host for at, n in enumerate(rig.begun)}
    assert {places[n] for n in places if n % 3 == 0} == {"mx2.test"}


def test_other_mail_stays_with_the_first_host(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = mixed(monkeypatch, OFFERS)
    rig.unproved = {"mx1.test": failure("mx1.test", untrusted=True)}
    rig.run()
    places = {n: rig.sessions[at].facts.host for at, n in enumerate(rig.begun)}
    assert {places[n] for n in places if n % 3} == {"mx1.test"}
    assert {places[n] for n in places if n % 3 == 0} == {"mx2.test"}
    assert set(rig.store.states.values()) == {"delivered"}
    assert len(rig.opened) <= 8, "it is not gone to and fro for each"


def test_another_port_of_a_name_is_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first was seen to lack is nothing that is known of the second."""
    rig = Rig(monkeypatch, strict(1))
    rig.hosts = (Host(preference=10, name="mx.test"), Host(preference=20, name="mx.test", port=587))
    rig.refuses = [
        failure("mx.test", untrusted=True),
        failure("mx.test", untrusted=False, stage=Stage.CONNECT),
    ]
    rig.run()
    assert rig.store.states == {1: "deferred"}


def test_a_host_that_cannot_be_reached_leaves_it_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, strict(1))
    rig.tls, rig.offers = "encrypted", OFFERS
    rig.unproved = {
        "mx1.test": failure("mx1.test", untrusted=True),
        "mx2.test": failure("mx2.test", untrusted=False, stage=Stage.CONNECT),
    }
    rig.run()
    assert rig.store.states == {1: "deferred"}
    assert rig.store.suspended == []


def test_where_no_host_can_be_reached_the_site_is_suspended_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, strict(1))
    rig.unproved = {
        name: failure(name, untrusted=False, stage=Stage.CONNECT)
        for name in ("mx1.test", "mx2.test")
    }
    rig.run()
    assert rig.store.states == {1: "queued"}
    assert len(rig.store.suspended) == 1


def test_a_4xx_of_the_one_host_that_may_have_it_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, strict(1))
    rig.tls, rig.offers = "encrypted", OFFERS
    rig.unproved = {"mx2.test": failure("mx2.test", untrusted=True)}
    rig.script = {1: [refused(LATER)]}
    rig.run()
    assert rig.store.states == {1: "deferred"}


@pytest.mark.parametrize("offers", [OFFERS, LACKS])
def test_a_bounce_goes_by_any_session_under_tls(
    monkeypatch: pytest.MonkeyPatch, offers: Capabilities
) -> None:
    rig = Rig(monkeypatch, strict(1, sender=""))
    rig.tls, rig.offers = "encrypted", offers
    rig.run()
    assert rig.store.states == {1: "delivered"}
    assert len(rig.opened) == 1
    assert not rig.opened[0].policy.verify
