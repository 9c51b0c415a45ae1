"""Which hosts and addresses of a route are used, in which order, and what a site is called.

Rules: RFC 5321 section 5.1 (lowest preference first, random among equals, our own name removes
itself and everything not better), and bounds of our own (50 hosts,
5 addresses a delivery: a domain must not make us knock at a thousand doors).
Gets randomness as an argument; asks no resolver. Host names are lower-case A-labels without the
final dot, as ``types.Host`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from itertools import groupby, zip_longest
from string import digits
from typing import Literal

from mailstrom.types import Host

MAX_HOSTS = 50
MAX_ADDRESSES = 5
MAX_SITE_KEY = 200
SMTP_PORT = 25

Family = Literal["ipv4", "ipv6"]

# Suffix of the best host -> provider; longest suffix first where one contains another. No limit is
# shared by a provider's sites yet.
PROVIDERS: tuple[tuple[str, str], ...] = (
    (".olc.protection.outlook.com", "outlook"),
    (".mail.protection.outlook.com", "microsoft365"),
    (".mx.microsoft", "microsoft365"),
    (".aspmx.l.google.com", "google"),
    (".gmail-smtp-in.l.google.com", "google"),
    (".google.com", "google"),
    (".googlemail.com", "google"),
    (".yahoodns.net", "yahoo"),
    (".mail.yahoo.co.jp", "yahoo-japan"),
    (".icloud.com", "icloud"),
    (".comcast.net", "comcast"),
    (".mimecast.com", "mimecast"),
    (".pphosted.com", "proofpoint"),
    (".ppe-hosted.com", "proofpoint"),
    (".messagelabs.com", "messagelabs"),
    (".barracudanetworks.com", "barracuda"),
    (".orange.fr", "orange"),
    (".emig.gmx.net", "gmx"),
    (".gmx.net", "gmx"),
    (".web.de", "gmx"),
    (".t-online.de", "t-online"),
    (".zoho.com", "zoho"),
    (".zoho.eu", "zoho"),
    (".protonmail.ch", "proton"),
    (".messagingengine.com", "fastmail"),
    (".mail.ru", "mail.ru"),
    (".yandex.net", "yandex"),
    (".yandex.ru", "yandex"),
    (".qq.com", "tencent"),
    (".163.com", "netease"),
    (".netease.com", "netease"),
    (".secureserver.net", "secureserver"),
    (".registrar-servers.com", "registrar-servers"),
    (".amazonaws.com", "amazon"),
)

_BROADCAST = IPv4Address("255.255.255.255")
# Prefix -> by how many bits the IPv4 address in it is shifted. Those of ::/96 are reserved: nobody
# uses "IPv4-compatible" addresses any more.
_CARRYING: tuple[tuple[IPv6Network, int], ...] = (
    (IPv6Network("::ffff:0:0/96"), 0),  # mapped (RFC 4291)
    (IPv6Network("::ffff:0:0:0/96"), 0),  # translated (RFC 7915)
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215

_SUFFIXES = tuple(suffix for suffix, _ in PROVIDERS)


def order_hosts(hosts: Iterable[Host], random: Callable[[], float]) -> list[Host]:
    """Hosts in the order they are tried (RFC 5321 section 5.1).

    Args:
        hosts: in any order.
        random: gives numbers from 0 to below 1; called once per host.

    Returns:
        A permutation, preferences rising, equal preferences shuffled.
    """
    drawn = [(host, random()) for host in hosts]
    drawn.sort(key=lambda pair: (pair[0].preference, pair[1]))
    return [host for host, _ in drawn]


def drop_self(hosts: Sequence[Host], own_names: Collection[str]) -> list[Host]:
    """Remove ourselves and every host that is not better than we are (RFC 5321 section 5.1).

    Args:
        hosts: the domain's mail hosts.
        own_names: names this engine answers to, lower case without the final dot.

    Returns:
        The better hosts in the order given. An empty list from a non-empty one means that we are
        the best host ourselves: a loop (5.4.6).
    """
    own = [host.preference for host in hosts if host.name in own_names]
    if not own:
        return list(hosts)
    return [host for host in hosts if host.preference < min(own)]


def site_key(hosts: Iterable[Host], port: int) -> str:
    """One canonical text for a set of mail hosts, shared by every domain that has this set.

    Preference numbers do not matter, only the groups they form: hosts of a group are sorted and
    joined by ``,``, groups by ``;``. A host named twice counts with its best preference.

    Args:
        hosts: in any order; at least one.
        port: the port of hosts that name none; shown where it is not 25.

    Returns:
        At most ``MAX_SITE_KEY`` characters: longer lists keep their first host, the rest becomes a
        BLAKE2b digest.

    Raises:
        ValueError: there are no hosts.
    """
    best: dict[str, int] = {}
    for host in hosts:
        name = _endpoint(host, port)
        best[name] = min(host.preference, best.get(name, host.preference))
    if not best:
        raise ValueError("a site needs at least one host; a route without hosts has no site")
    ranked = sorted((preference, name) for name, preference in best.items())
    groups = groupby(ranked, key=lambda pair: pair[0])
    key = ";".join(",".join(name for _, name in group) for _, group in groups)
    if len(key) <= MAX_SITE_KEY:
        return key
    digest = blake2b(key.encode(), digest_size=12).hexdigest()
    return f"{ranked[0][1][:150]}+{len(ranked) - 1}#{digest}"


def _endpoint(host: Host, port: int) -> str:
    number = host.port if host.port is not None else port
    name = f"[{host.name}]" if ":" in host.name else host.name
    return name if number == SMTP_PORT else f"{name}:{number}"


def provider(hosts: Iterable[Host]) -> str | None:
    """Who runs the best host: a known provider's word, else the host's parent domain.

    Args:
        hosts: in any order; among equals the alphabetically first counts, so the answer is stable.

    Returns:
        A word of ``PROVIDERS`` (without a dot, except ``mail.ru``), or a domain, or None for no
        hosts, IP addresses and single-label names.
    """
    names = sorted((host.preference, host.name) for host in hosts)
    if not names or _parse(names[0][1]) is not None:
        return None
    name = names[0][1]
    if f".{name}".endswith(_SUFFIXES):  # as few names do
        return next(word for suffix, word in PROVIDERS if f".{name}".endswith(suffix))
    labels = name.split(".")
    if len(labels) < 2:
        return None
    return ".".join(labels[1:]) if len(labels) > 2 else name


def refused_address(ip: str, *, loopback: bool = False, relay: bool = False) -> str | None:
    """Why mail is never delivered to this address, or None where it may be.

    A domain is a stranger's: where it points at this machine, at its link or at no host in
    particular, mail would come back to us (RFC 5321 section 5.1's loop), or a stranger reach what
    listens here or, as cloud providers' metadata does, beside us. Private networks are allowed:
    names of a site's own lead there.

    Args:
        ip: IPv4 or IPv6 text; an IPv6 address that stands for an IPv4 one is judged as that.
        loopback: ``[dns] allow_loopback``.
        relay: it is the configured relay's, which may be on this machine, or on its link.

    Returns:
        A short reason such as ``"loopback address"``.
    """
    address = _parse(ip)
    if address is None:
        return "not an IP address"
    if isinstance(address, IPv6Address):
        inner = _carried(address)
        if inner is not None:
            address = inner
    if address.is_unspecified:
        return "unspecified address"
    if address.is_loopback:
        return None if loopback or relay else "loopback address"
    if address.is_link_local:
        return None if relay else "link-local address"
    if address.is_multicast:
        return "multicast address"
    if isinstance(address, IPv4Address):
        if address == _BROADCAST:
            return "broadcast address"
        if int(address) >> 24 == 0:
            return "this-network address"
        if int(address) >> 28 == 15:
            return "reserved address"
    elif address.is_reserved:
        return "reserved address"
    return None


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for: mapped, translated, 6to4, NAT64."""
    for prefix, shift in _CARRYING:
        if address in prefix:
            return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    if address not in _LOCAL_NAT64:
        return None
    bits = int(address)
    if bits & 0xFFFFFFFF:  # a prefix of 96 bits within it; else that of 48 (RFC 6052 section 2.2)
        return IPv4Address(bits & 0xFFFFFFFF)
    return IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    if ":" not in text and text[-1:] not in digits:
        return None  # as nearly all names are, at a tenth of the cost
    try:
        return ip_address(text)
    except ValueError:
        return None


def interleave(
    v4: Sequence[str], v6: Sequence[str], prefer: Family = "ipv4", most: int = MAX_ADDRESSES
) -> list[str]:
    """Addresses of both families in turn, so that dead addresses of one never starve the other.

    Args:
        v4: IPv4 addresses in the order wanted.
        v6: IPv6 addresses in the order wanted.
        prefer: the family that begins.
        most: how many addresses a delivery tries.

    Returns:
        At most ``most`` addresses without repetition; both families are among the first two
        whenever both exist.
    """
    first, second = (v4, v6) if prefer == "ipv4" else (v6, v4)
    turns = (ip for pair in zip_longest(first, second) for ip in pair if ip is not None)
    return list(dict.fromkeys(turns))[:most]
