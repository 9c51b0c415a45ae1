"""What follows from the settings: values the engine needs, worked out in one place.

Pure but for ``relay_password`` (reads the file at each call, so that a new password needs no
restart) and ``worker_count`` (asks the machine for its processors).
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv6Address
from typing import NamedTuple

import msgspec

from mailstrom.config import names
from mailstrom.config.settings import Config, Dns, Relay
from mailstrom.errors import ConfigError
from mailstrom.policy.timeouts import Timeouts
from mailstrom.regular import beginning
from mailstrom.types import Host

DNS_PORT = 53
DNS_TLS_PORT = 853  # RFC 7858 section 3.1
SECRET_LIMIT = 4096  # octets of a password; a token has fewer
# RFC 4616 forbids NUL, OAUTH2 separates by SOH, and no password prompt takes the others.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]").search


class PublicResolver(NamedTuple):
    """A resolver service that may be named in ``[dns] resolver``."""

    addresses: tuple[str, ...]
    tls_hostname: str


PUBLIC_RESOLVERS = {
    "google": PublicResolver(("8.8.8.8", "8.8.4.4"), "dns.google"),
    "cloudflare": PublicResolver(("1.1.1.1", "1.0.0.1"), "one.one.one.one"),
    "quad9": PublicResolver(("9.9.9.9", "149.112.112.112"), "dns.quad9.net"),
}


def ehlo_name(config: Config, address: str = "127.0.0.1") -> str:
    """What we call ourselves in EHLO (RFC 5321 sections 4.1.1.1 and 4.1.4).

    Args:
        address: our own end of the connection, for the literal.
    Returns:
        the configured name where it is fully qualified, else the address literal.
    """
    if names.is_fqdn(config.hostname):
        return config.hostname
    parsed = names.ip(address.partition("%")[0])
    if parsed is None:
        raise ValueError(f"{address!r} is no IP address")
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return f"[IPv6:{parsed.compressed}]"
    return f"[{parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else parsed}]"


def nameservers(dns: Dns) -> list[tuple[str, int]] | None:
    """(address, port) of the nameservers to ask, or None for the system's."""
    port = DNS_TLS_PORT if dns.tls else DNS_PORT
    if dns.nameservers:
        split = [names.host_port(entry) for entry in dns.nameservers]
        return [(host, named or port) for host, named in split]
    public = PUBLIC_RESOLVERS.get(dns.resolver)
    return None if public is None else [(address, port) for address in public.addresses]


def nameserver_name(dns: Dns) -> str | None:
    """The name that a nameserver's certificate must carry; None without TLS."""
    if not dns.tls:
        return None
    public = PUBLIC_RESOLVERS.get(dns.resolver)
    return dns.tls_hostname or (None if public is None else public.tls_hostname)


def relay_port(relay: Relay) -> int:
    """Port of relay hosts that name none (RFC 8314 section 3.3, RFC 6409 section 3.1)."""
    if relay.port is not None:
        return relay.port
    if relay.tls == "implicit":
        return 465
    return 25 if relay.username is None else 587


def relay_hosts(relay: Relay) -> tuple[Host, ...]:
    """The relay's hosts; preferences follow the configured order, so the second is a spare."""
    split = [names.host_port(entry) for entry in relay.hosts]
    return tuple(
        Host(preference=number, name=host.lower(), port=port or relay_port(relay))
        for number, (host, port) in enumerate(split)
    )


def relay_password(relay: Relay) -> str | None:
    """The first line of the password file, without its line end; None where none is configured.

    Raises:
        ConfigError: the file cannot be read, or its first line is empty or not UTF-8.
    """
    if relay.password_file is None:
        return None
    try:
        octets = beginning(relay.password_file, SECRET_LIMIT + 1)
        line = octets.split(b"\n", 1)[0].rstrip(b"\r")
        password = line.decode("utf-8") if len(line) <= SECRET_LIMIT else ""
    except OSError as error:
        raise ConfigError(
            f"[relay] password_file {relay.password_file}: {error.strerror or error};"
            f" user id {os.geteuid()} must be able to read it"
        ) from error
    except UnicodeDecodeError:
        # the decoding error carries the secret, so it is not chained
        raise ConfigError(
            f"[relay] password_file {relay.password_file}: not UTF-8; save it as UTF-8"
        ) from None
    if not password or _CONTROL(password) is not None:
        raise ConfigError(
            f"[relay] password_file {relay.password_file}: its first line is not a password: it is"
            f" empty, longer than {SECRET_LIMIT} bytes or holds a control character"
        )
    return password


def report_author(config: Config) -> str:
    """Address in the From field of delivery reports."""
    return config.reports.sender or f"mailer-daemon@{config.hostname}"


def stage_timeouts(config: Config) -> Timeouts:
    """``[timeouts]`` as the value that the wire layer takes."""
    return Timeouts(**msgspec.structs.asdict(config.timeouts))


def worker_count(config: Config, workers: int | None = None) -> int:
    """How many delivery workers to start.

    Args:
        workers: the command line's word, before the configuration's.
    Returns:
        a number from 1; ``auto`` is one per processor we may use.
    """
    if workers is not None:
        return workers
    configured = config.delivery.workers
    if configured != "auto":
        return configured
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity else os.cpu_count() or 1)
