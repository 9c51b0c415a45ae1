"""Decisions that need no reply: what a session cannot carry, and routes that lead nowhere.

The table of the whole failure policy stands at the head of ``outcome``; these are its rows "before
MAIL (ours)" and "route". The enhanced codes are ours (RFC 3463, 5248, 7505), the text is a
sentence for a person. Must not know: reply codes, clocks, sockets, the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from mailstrom.policy.verdict import Action, FaultOf, Verdict
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.transaction import Envelope, Unmet, unmet
from mailstrom.types import Judgement, Reason, RouteResult, Stage

TOO_LARGE = "5.3.4"

# need -> (reason, enhanced code, sentence, another host may do better)
_UNMET: dict[Unmet, tuple[Reason, str, str, bool]] = {
    Unmet.SIZE: (
        Reason.TOO_LARGE, TOO_LARGE,
        "the message has {size} bytes, the server takes at most {limit}", False,
    ),
    Unmet.EIGHTBITMIME: (
        Reason.UNSUPPORTED, "5.6.3",
        "the content needs 8BITMIME, which the server does not offer", True,
    ),
    Unmet.SMTPUTF8: (
        Reason.UNSUPPORTED, "5.6.7",
        "the addresses or headers need SMTPUTF8, which the server does not offer", True,
    ),
    Unmet.REQUIRETLS: (
        Reason.POLICY, "5.7.30",
        "REQUIRETLS support required: the server does not offer it", True,
    ),
}  # fmt: skip


class Elsewhere(StrEnum):
    """What the other hosts are, for a message that not every host may have."""

    LEFT = "left"  # one may still take it
    WANTING = "wanting"  # each of them was asked, and lacks what it needs
    UNKNOWN = "unknown"  # of some nobody knows: they could not be asked


class Lack(NamedTuple):
    """What a host lacks for mail that REQUIRETLS was said of.

    Args:
        enhanced: ``NO_TLS`` or ``NO_REQUIRETLS``.
        text: which host lacks what.
        lasting: False: the next try may find more.
    """

    enhanced: str
    text: str
    lasting: bool = True


NO_TLS = "5.7.10"
NO_REQUIRETLS = "5.7.30"
_WORDS = {NO_TLS: "encryption needed", NO_REQUIRETLS: "REQUIRETLS support required"}
"""The words of the registry (RFC 5248); RFC 8689 section 4.2.1 asks for these codes."""


def lacks_requiretls(
    capabilities: Capabilities, *, host: str, encrypted: bool, verified: bool
) -> Lack | None:
    """What a session lacks for mail that REQUIRETLS was said of (RFC 8689 section 4.2.1).

    Args:
        capabilities: what the server offered in its last EHLO reply.
        host: whose session it is.
        encrypted: it is encrypted.
        verified: the server's certificate proved the host's name.
    """
    if not encrypted:
        return Lack(NO_TLS, f"no TLS with {host}")
    if not capabilities.requiretls:
        return Lack(NO_REQUIRETLS, f"{host} does not offer it")
    if not verified:
        return Lack(NO_TLS, f"the certificate of {host} was not verified")
    return None


def without_requiretls(lacks: Sequence[Lack], elsewhere: Elsewhere) -> Verdict:
    """Decide for mail that REQUIRETLS was said of, where a host lacks what it needs.

    It goes to no such host, and fails once each of the site's was found wanting; where some could
    not be asked it waits for them.

    Args:
        lacks: what the hosts lack that were asked; at least one.
        elsewhere: what the other hosts are.
    """
    action = {
        Elsewhere.LEFT: Action.NEXT_HOST,
        Elsewhere.WANTING: Action.FAIL,
        Elsewhere.UNKNOWN: Action.DEFER,
    }[elsewhere]
    fails = action is Action.FAIL
    far = any(lack.enhanced == NO_REQUIRETLS for lack in lacks)
    enhanced = NO_REQUIRETLS if far else NO_TLS
    told = "; ".join(dict.fromkeys(lack.text for lack in lacks))
    return Verdict(
        action=action,
        judgement=Judgement.FAILED if fails else Judgement.DEFERRED,
        reason=Reason.POLICY if fails else Reason.TLS,
        stage=Stage.MAIL if far else Stage.STARTTLS,
        enhanced_code=enhanced if fails else f"4{enhanced[1:]}",
        reply_text=f"{_WORDS[enhanced]}: {told}",
        fault_of=FaultOf.REMOTE,
    )


def local_refusal(
    envelope: Envelope,
    capabilities: Capabilities,
    *,
    require_tls: bool,
    encrypted: bool,
    last_host: bool,
) -> Verdict | None:
    """Refuse a message before MAIL where this session cannot carry it.

    Args:
        envelope: what would be sent; ``size`` in bytes on the wire.
        capabilities: what the server offered in its last EHLO reply.
        require_tls: the message may not travel in clear.
        encrypted: the session is encrypted.
        last_host: no other host is left for this delivery.

    Returns:
        None where the message may go. TLS first: nothing else is decided in clear. Codes: 5.3.4
        (RFC 1870), 5.6.3 (RFC 6152), 5.6.7 (RFC 6531), 4.7.10 (RFC 5248 registry: encryption
        needed).
    """
    if require_tls and not encrypted:
        return _ours(
            Stage.STARTTLS,
            Action.DEFER if last_host else Action.NEXT_HOST,
            Reason.TLS,
            "4.7.10",
            "the message requires TLS and the session is not encrypted",
        )
    lacking = unmet(envelope, capabilities)
    if lacking is None:
        return None
    reason, enhanced, text, here_only = _UNMET[lacking]
    action = Action.NEXT_HOST if here_only and not last_host else Action.FAIL
    text = text.format(size=envelope.size, limit=capabilities.size)
    return _ours(Stage.MAIL, action, reason, enhanced, text)


def _ours(stage: Stage, action: Action, reason: Reason, enhanced: str, text: str) -> Verdict:
    return Verdict(
        action=action,
        judgement=Judgement.FAILED if action is Action.FAIL else Judgement.DEFERRED,
        reason=reason,
        stage=stage,
        enhanced_code=enhanced,
        reply_text=text,
        fault_of=FaultOf.REMOTE if reason is Reason.TLS else FaultOf.CONTENT,
    )


# result -> (reason, enhanced code, fault, sentence); results that deliver are absent.
_ROUTES: dict[RouteResult, tuple[Reason, str, FaultOf, str]] = {
    RouteResult.NULL_MX: (
        Reason.NULL_MX, "5.1.10", FaultOf.DOMAIN, "the domain accepts no mail (null MX)",
    ),
    RouteResult.NO_DOMAIN: (
        Reason.NO_DOMAIN, "5.1.2", FaultOf.DOMAIN, "the domain does not exist",
    ),
    RouteResult.LOOP: (
        Reason.LOOP, "5.4.6", FaultOf.LOCAL, "the domain's mail host is this engine itself",
    ),
    RouteResult.TEMPORARY: (
        Reason.DNS, "4.4.3", FaultOf.REMOTE, "the domain could not be looked up",
    ),
}  # fmt: skip


def judge_route(result: RouteResult, error: str | None = None) -> Verdict | None:
    """Decide for the recipients of a domain whose route leads nowhere.

    Args:
        result: the route's result.
        error: the route's own sentence, preferred over ours.

    Returns:
        None where the route is deliverable. Only null MX (RFC 7505, 5.1.10), a missing domain
        (5.1.2) and a loop (5.4.6) fail; trouble of the DNS defers (4.4.3).
    """
    row = _ROUTES.get(result)
    if row is None:
        return None
    reason, enhanced, fault_of, text = row
    temporary = result is RouteResult.TEMPORARY
    return Verdict(
        action=Action.DEFER if temporary else Action.FAIL,
        judgement=Judgement.DEFERRED if temporary else Judgement.FAILED,
        reason=reason,
        stage=Stage.ROUTE,
        enhanced_code=enhanced,
        reply_text=error or text,
        fault_of=fault_of,
    )
