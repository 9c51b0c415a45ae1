"""What a listener's configuration means for a connection that begins now: one frozen value.

Made at the start and at each reload; certificate and users are read then. A connection keeps the
one it began with, but for who may send. Loading may fail; then the one in force stays.

Must not know: connections, the spool.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, ip_address

from mailstrom.config import Config, Listener, networks, server_context
from mailstrom.config.listening import Network
from mailstrom.errors import ConfigError
from mailstrom.server.sessions import Limits
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.userfile import read_users

MECHANISMS = frozenset({"PLAIN", "LOGIN"})
CONTENT_S = 180.0
"""Longest pause within content (RFC 5321 section 4.5.3.2.5); less where ``timeout`` is."""
LEAST_BUDGET = 64 << 20
HOLD_S = 366 * 86_400
"""So long a client may have a message held (RFC 4865)."""
_KNOWN = 4096
"""Addresses of which it is known whether they are in a network."""
PRIORITIES = "MIXER"
"""The profile of MT-PRIORITY (RFC 6710 appendix B): below, at and above 0 is all that counts."""


class Networks:
    """Networks of clients: ``address in networks``; what is no address is in none.

    Asked at each connection and each recipient, so what was found is kept for so many addresses,
    and a network is found by the length of its prefix.

    Args:
        members: the networks.
    """

    __slots__ = ("_known", "_prefixes")

    def __init__(self, members: Iterable[Network]) -> None:
        self._prefixes: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for one in members:
            masked = self._prefixes[one.version].setdefault(int(one.netmask), set())
            masked.add(int(one.network_address))
        self._known: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            known = self._known[address] = self._holds(address)
        return known

    def _holds(self, address: str) -> bool:
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        number = int(found)
        prefixes = self._prefixes[found.version]
        return any(number & mask in members for mask, members in prefixes.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What holds for a connection.

    Args:
        listener: the settings.
        hostname: what the server calls itself.
        allowed: clients that may send without logging in.
        proxies: peers whose connections begin with a PROXY header.
        tls: what is offered; None: nothing.
        users: the hash of each user; None: nobody can log in.
        plain: what EHLO offers in clear.
        secured: what it offers under TLS.
        limits: of one connection.
    """

    listener: Listener
    hostname: str
    allowed: Networks
    proxies: Networks
    tls: ssl.SSLContext | None
    users: Mapping[str, str] | None = field(repr=False)
    plain: Capabilities
    secured: Capabilities
    limits: Limits

    @property
    def budget(self) -> int:
        """Octets of content that all connections of the process hold at a time."""
        return max(LEAST_BUDGET, 2 * self.listener.max_size)


def terms_of(config: Config) -> Terms:
    """The terms of a configuration, with its files as they are now.

    Raises:
        ConfigError: a file cannot be used.
    """
    listener = config.listener
    try:
        tls = server_context(listener)
    except OSError as error:
        raise ConfigError(f"[listener] tls_cert {listener.tls_cert}: {error}") from error
    users = None
    if listener.auth_file is not None:
        try:
            users = read_users(listener.auth_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"[listener] auth_file {listener.auth_file}: {error}") from error
    plain = Capabilities(
        name=config.hostname,
        size=listener.max_size,
        pipelining=True,
        eightbitmime=True,
        smtputf8=True,
        chunking=True,
        starttls=tls is not None,
        enhancedstatuscodes=True,
        dsn=True,
        requiretls=True,
        future_release=HOLD_S,
        mt_priority=PRIORITIES,
    )
    auth = MECHANISMS if users is not None else frozenset[str]()
    return Terms(
        listener=listener,
        hostname=config.hostname,
        allowed=Networks(networks(listener.allow_networks)),
        proxies=Networks(networks(listener.proxy_networks)),
        tls=tls,
        users=users,
        plain=plain,
        secured=replace(plain, starttls=False, auth=auth),
        limits=Limits(
            command_s=listener.timeout,
            content_s=min(listener.timeout, CONTENT_S),
            handshake_s=min(listener.timeout, 30.0),
            unread_s=min(listener.timeout, CONTENT_S),
        ),
    )
