"""Host names, addresses and ports as configuration has them."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)


def is_ldh_name(name: str) -> bool:
    """Whether ``name`` is a host name of ASCII letters, digits and hyphens (RFC 1123 2.1)."""
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))


def is_fqdn(name: str) -> bool:
    """Whether ``name`` may stand in EHLO: two labels or more and no placeholder of a local set-up.

    ``ip6.arpa`` names are what some resolvers make of an address without a name.
    """
    lower = name.lower()
    return (
        "." in name
        and is_ldh_name(name)
        and not lower.rsplit(".", 1)[1].isdigit()
        and not lower.endswith((".localdomain", ".localhost", ".in-addr.arpa", ".ip6.arpa"))
    )


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search


def is_user_name(name: str) -> bool:
    """Whether a relay may be told ``name``: a NUL in it would end it there (RFC 4616)."""
    return _CONTROL(name) is None


def ip(text: str) -> IPv4Address | IPv6Address | None:
    """The address that ``text`` is, or None; scoped addresses (``fe80::1%eth0``) are addresses."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def host_port(text: str) -> tuple[str, int | None]:
    """Splits ``host``, ``host:port``, ``[::1]``, ``[::1]:port`` or a bare IPv6 address.

    Returns:
        the host without brackets, and the port or None.
    Raises:
        ValueError: a port outside 1..65535, or brackets around something else than IPv6.
    """
    if isinstance(ip(text), IPv6Address):
        return text, None
    if text.startswith("["):
        host, closing, rest = text[1:].partition("]")
        if not closing or ip(host) is None or (rest and not rest.startswith(":")):
            raise ValueError(f'{text!r}: brackets hold one IP address, as "[::1]:25"')
        port = rest[1:] if rest else None
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    if port is None:
        return host, None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r}: the port is a number from 1 to 65535")
    return host, int(port)
