"""What DNS answers mean for mail: from answers to a ``Route``, without asking anybody.

RFC 5321 section 5.1 and RFC 7505. The caller asks the questions; trouble of the DNS reaches here
as ``Outcome.TEMPORARY`` and never turns into "no MX" or "no domain". Host names are judged here:
letters, digits, ``-`` and ``_`` only, so that no name from the DNS can smuggle anything into a log,
a command or a certificate check.

Time to live: positive 30 s to 1 h, negative by SOA (RFC 2308) 30 s to 5 min, temporary 60 s.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from string import ascii_lowercase, digits

from mailstrom.policy.routing import MAX_HOSTS, drop_self, refused_address
from mailstrom.smtp.reply import visible
from mailstrom.types import Host, Route, RouteResult

POSITIVE_TTL_S = (30, 3600)
NEGATIVE_TTL_S = (30, 300)
TEMPORARY_TTL_S = 60
LETTERS = frozenset((ascii_lowercase + digits + "-_").encode())
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*").fullmatch


class Outcome(StrEnum):
    """What became of one question."""

    RECORDS = "records"
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    TEMPORARY = "temporary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one question.

    Args:
        outcome: what became of it.
        records: (preference, exchange) for MX, (0, address) for A and AAAA; an exchange is
            lower-case without the final dot, ``""`` for the root, ``" "`` where it has characters
            that no host name has.
        name: the end of the CNAME chain.
        ttl_s: seconds, as the DNS said it.
        text: a sentence where there are no records.
    """

    outcome: Outcome
    records: tuple[tuple[int, str], ...] = ()
    name: str = ""
    ttl_s: int = TEMPORARY_TTL_S
    text: str = ""


def positive(ttl_s: int) -> int:
    """Seconds a positive answer is used."""
    return min(max(ttl_s, POSITIVE_TTL_S[0]), POSITIVE_TTL_S[1])


def negative(ttl_s: int) -> int:
    """Seconds a negative answer is used."""
    return min(max(ttl_s, NEGATIVE_TTL_S[0]), NEGATIVE_TTL_S[1])


def is_ip(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address."""
    if ":" not in text and text[-1:] not in digits:
        return False  # as nearly all names are, at a tenth of the cost
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_host_name(name: str) -> bool:
    """Whether the text is a lower-case A-label host name; IP text is not one."""
    return len(name) <= 253 and _HOST_NAME(name) is not None and not is_ip(name)


def nowhere(domain: str, result: RouteResult, ttl_s: int, text: str) -> Route:
    """A route without hosts; ``text`` says why."""
    return Route(domain=domain, result=result, ttl_s=ttl_s, error=text)


def before_asking(domain: str, *, loopback: bool = False) -> Route | None:
    """The route of what needs no question: address literals and what is no domain name.

    A literal whose address is refused fails at once: no DNS can lead elsewhere later.

    Args:
        domain: as the recipient's address has it, lower case.
        loopback: ``[dns] allow_loopback``.

    Returns:
        None where the DNS has to be asked. RFC 5321 section 4.1.3: ``[192.0.2.1]``,
        ``[IPv6:2001:db8::1]``.
    """
    if not domain.startswith("["):
        if is_host_name(domain.rstrip(".").lower()):
            return None
        text = f"{visible(domain)[:255]!r} is not a domain name"
        return nowhere(domain, RouteResult.NO_DOMAIN, NEGATIVE_TTL_S[1], text)
    inner = domain[1:-1] if domain.endswith("]") else ""
    tagged = inner[:5].lower() == "ipv6:"
    try:
        address = ip_address(inner[5:] if tagged else inner)
        known = isinstance(address, IPv6Address) is tagged and "%" not in inner
    except ValueError:
        known = False
    if not known:
        text = f"{visible(domain)[:255]!r} is not an address literal of RFC 5321"
        return nowhere(domain, RouteResult.NO_DOMAIN, NEGATIVE_TTL_S[1], text)
    refused = refused_address(str(address), loopback=loopback)
    if refused is not None:
        text = f"mail is not delivered to {domain} ({refused})"
        return nowhere(domain, RouteResult.NO_DOMAIN, NEGATIVE_TTL_S[1], text)
    host = Host(preference=0, name=str(address))
    return Route(domain=domain, result=RouteResult.LITERAL, hosts=(host,), ttl_s=POSITIVE_TTL_S[1])


def route_from_mx(domain: str, mx: Answer, own_names: Collection[str]) -> Route | None:
    """The route by the answer to the MX question.

    Args:
        domain: the domain asked for.
        mx: the answer.
        own_names: names this engine answers to, lower case without the final dot.

    Returns:
        None for NODATA: the address records decide (:func:`route_from_addresses`). A single MX
        "." is null MX; "." among others is ignored. Records that name no host (IP text, strange
        characters) are dropped; where nothing is left the route is temporary, for such records
        are usually being edited.
    """
    if mx.outcome is Outcome.NODATA:
        return None
    if mx.outcome is Outcome.TEMPORARY:
        return nowhere(domain, RouteResult.TEMPORARY, TEMPORARY_TTL_S, mx.text)
    if mx.outcome is Outcome.NXDOMAIN:
        return nowhere(domain, RouteResult.NO_DOMAIN, negative(mx.ttl_s), mx.text)
    if all(exchange == "" for _, exchange in mx.records):
        text = f"{domain} accepts no mail (null MX)"
        return nowhere(domain, RouteResult.NULL_MX, positive(mx.ttl_s), text)
    best: dict[str, int] = {}
    for preference, exchange in sorted(mx.records):
        if is_host_name(exchange):
            best.setdefault(exchange, preference)
    hosts = [Host(preference=p, name=n) for n, p in best.items()][:MAX_HOSTS]
    if not hosts:
        text = f"no MX record of {domain} names a host"
        return nowhere(domain, RouteResult.TEMPORARY, TEMPORARY_TTL_S, text)
    return _without_us(domain, RouteResult.MX, hosts, positive(mx.ttl_s), own_names)


def route_from_addresses(
    domain: str, mx: Answer, v4: Answer, v6: Answer, own_names: Collection[str]
) -> Route:
    """The implicit MX (RFC 5321 section 5.1): the domain itself, where it has an address.

    Args:
        domain: the domain asked for.
        mx: the NODATA answer to its MX question; its ``name`` is the host.
        v4: the answer for A of that host.
        v6: the answer for AAAA of that host.
        own_names: as for :func:`route_from_mx`.
    """
    found = [answer for answer in (v4, v6) if answer.outcome is Outcome.RECORDS]
    if found:
        # It stands on a negative answer: an MX may appear, so it is not kept for long.
        ttl_s = negative(min(mx.ttl_s, *(answer.ttl_s for answer in found)))
        hosts = [Host(preference=0, name=mx.name)]
        return _without_us(domain, RouteResult.IMPLICIT, hosts, ttl_s, own_names)
    for answer in (v4, v6):
        if answer.outcome is Outcome.TEMPORARY:
            return nowhere(domain, RouteResult.TEMPORARY, TEMPORARY_TTL_S, answer.text)
    text = f"{domain} has neither MX nor address records"
    ttl_s = negative(min(mx.ttl_s, v4.ttl_s, v6.ttl_s))
    return nowhere(domain, RouteResult.NO_DOMAIN, ttl_s, text)


def _without_us(
    domain: str,
    result: RouteResult,
    hosts: Sequence[Host],
    ttl_s: int,
    own_names: Collection[str],
) -> Route:
    others = drop_self(hosts, own_names)
    if not others:
        text = f"mail for {domain} is routed to this engine itself ({hosts[0].name})"
        return nowhere(domain, RouteResult.LOOP, ttl_s, text)
    return Route(domain=domain, result=result, hosts=tuple(others), ttl_s=ttl_s)
