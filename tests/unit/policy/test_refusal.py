"""Refusals of our own: what a session cannot carry, routes that lead nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from mailstrom.policy.outcome import Action, Verdict, judge_route, local_refusal
from mailstrom.policy.refusal import (
    NO_REQUIRETLS,
    NO_TLS,
    Elsewhere,
    Lack,
    lacks_requiretls,
    without_requiretls,
)
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.transaction import Envelope
from mailstrom.types import DELIVERABLE, Judgement, Reason, RouteResult, Stage


def refuse(
    envelope: dict[str, Any],
    offered: dict[str, Any],
    *,
    require_tls: bool = False,
    encrypted: bool = False,
    last_host: bool = True,
) -> Verdict | None:
    facts: dict[str, Any] = {"sender": "a@b.test", "recipients": ("c@d.test",), "size": 1000}
    return local_refusal(
        Envelope(**(facts | envelope)),
        Capabilities(**offered),
        require_tls=require_tls,
        encrypted=encrypted,
        last_host=last_host,
    )


@pytest.mark.parametrize("size", [None, 0, 1000, 1001])
def test_a_message_within_size_may_go(size: int | None) -> None:
    assert refuse({}, {"size": size}) is None


@pytest.mark.parametrize("last_host", [True, False])
def test_a_message_over_size_fails(last_host: bool) -> None:
    verdict = refuse({}, {"size": 999}, last_host=last_host)
    assert verdict is not None
    assert (verdict.action, verdict.reason) == (Action.FAIL, Reason.TOO_LARGE)
    assert verdict.enhanced_code == "5.3.4"
    assert verdict.reply_text == "the message has 1000 bytes, the server takes at most 999"


@pytest.mark.parametrize(
    ("need", "offer", "enhanced"),
    [("eightbit", "eightbitmime", "5.6.3"), ("smtputf8", "smtputf8", "5.6.7")],
)
def test_a_missing_extension_tries_the_next_host_then_fails(
    need: str, offer: str, enhanced: str
) -> None:
    assert refuse({need: True}, {offer: True}) is None
    there = refuse({need: True}, {}, last_host=False)
    last = refuse({need: True}, {}, last_host=True)
    assert there is not None
    assert last is not None
    assert (there.action, there.judgement) == (Action.NEXT_HOST, Judgement.DEFERRED)
    assert (last.action, last.judgement) == (Action.FAIL, Judgement.FAILED)
    assert last.reason is Reason.UNSUPPORTED
    assert last.enhanced_code == enhanced


def test_required_tls_that_was_not_reached_defers_and_comes_first() -> None:
    assert refuse({}, {}, require_tls=True, encrypted=True) is None
    there = refuse({}, {"size": 1}, require_tls=True, last_host=False)
    last = refuse({}, {"size": 1}, require_tls=True)
    assert there is not None
    assert last is not None
    assert there.action is Action.NEXT_HOST
    assert (last.action, last.reason) == (Action.DEFER, Reason.TLS)
    assert last.enhanced_code == "4.7.10"


@pytest.mark.parametrize(
    ("result", "action", "reason", "enhanced"),
    [
        (RouteResult.NULL_MX, Action.FAIL, Reason.NULL_MX, "5.1.10"),
        (RouteResult.NO_DOMAIN, Action.FAIL, Reason.NO_DOMAIN, "5.1.2"),
        (RouteResult.LOOP, Action.FAIL, Reason.LOOP, "5.4.6"),
        (RouteResult.TEMPORARY, Action.DEFER, Reason.DNS, "4.4.3"),
    ],
)
def test_routes_that_lead_nowhere(
    result: RouteResult, action: Action, reason: Reason, enhanced: str
) -> None:
    verdict = judge_route(result, "said so")
    assert verdict is not None
    assert (verdict.action, verdict.reason, verdict.enhanced_code) == (action, reason, enhanced)
    assert (verdict.stage, verdict.reply_text) == (Stage.ROUTE, "said so")


@pytest.mark.parametrize("result", sorted(DELIVERABLE))
def test_deliverable_routes_have_no_verdict(result: RouteResult) -> None:
    assert judge_route(result) is None


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_requiretls_mail_needs_proved_tls_and_the_offer(
    encrypted: bool, verified: bool, offered: bool
) -> None:
    lack = lacks_requiretls(
        Capabilities(requiretls=offered), host="mx.test", encrypted=encrypted, verified=verified
    )
    if encrypted and verified and offered:
        assert lack is None
        return
    assert lack is not None
    assert lack.enhanced == (NO_REQUIRETLS if encrypted and not offered else NO_TLS)
    assert "mx.test" in lack.text


@pytest.mark.parametrize("sender", ["a@b.test", ""])
def test_a_bounce_alone_goes_where_requiretls_is_not_offered(sender: str) -> None:
    envelope = {"requiretls": True, "sender": sender}
    assert refuse(envelope, {"requiretls": True}) is None
    verdict = refuse(envelope, {})
    assert (verdict is None) is (sender == "")


@pytest.mark.parametrize(
    ("elsewhere", "action", "reason", "first"),
    [
        (Elsewhere.LEFT, Action.NEXT_HOST, Reason.TLS, "4"),
        (Elsewhere.UNKNOWN, Action.DEFER, Reason.TLS, "4"),
        (Elsewhere.WANTING, Action.FAIL, Reason.POLICY, "5"),
    ],
)
def test_requiretls_mail_fails_once_every_host_was_found_wanting(
    elsewhere: Elsewhere, action: Action, reason: Reason, first: str
) -> None:
    verdict = without_requiretls([Lack(NO_TLS, "no TLS with a.test")], elsewhere)
    assert (verdict.action, verdict.reason) == (action, reason)
    assert (verdict.enhanced_code, verdict.stage) == (f"{first}.7.10", Stage.STARTTLS)
    lacks = [Lack(NO_TLS, "no TLS with a.test"), Lack(NO_REQUIRETLS, "b.test does not offer it")]
    both = without_requiretls(lacks, elsewhere)
    assert both.enhanced_code == f"{first}.7.30"
    told = "REQUIRETLS support required: no TLS with a.test; b.test does not offer it"
    assert both.reply_text == told
