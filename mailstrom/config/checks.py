"""Settings that exclude or need each other.

A table of rules: each says when it is broken and what to write instead. They run on the complete
configuration, so that it does not matter where a value came from. Reads files only to see whether
they can be read.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address
from itertools import pairwise

from msgspec.structs import replace

from mailstrom.config import listening, names
from mailstrom.config.authorities import authorities
from mailstrom.config.derived import relay_password
from mailstrom.config.settings import Config, Listener
from mailstrom.errors import ConfigError, InvalidAddress
from mailstrom.message.address import parse_address
from mailstrom.printable import printable
from mailstrom.userfile import read_users

MOST_TOLD = 50
CONNECT_KEYS = ("timeouts.connect", "delivery.connect_timeout")  # two spellings of one setting


def checked(config: Config) -> Config:
    """``config`` with what follows from it: one connect timeout, and ``verify`` as ``require``.

    Raises:
        ConfigError: naming every broken rule (of very many the first), a line each, the first one
            first; foreign values as they may go to a terminal.
    """
    broken = [sentence for rule in RULES for sentence in rule(config)]
    if broken:
        place = printable(config.origin or "configuration", 2000)
        told = [f"{place}: {printable(sentence, 1000)}" for sentence in broken[:MOST_TOLD]]
        if len(broken) > MOST_TOLD:
            told.append(f"{place}: and {len(broken) - MOST_TOLD} more")
        raise ConfigError("\n".join(told))
    return _verify_requires(_one_connect_timeout(config))


def warnings(config: Config) -> list[str]:
    """What is usable and unwise in ``config``, a sentence each: what it is, a colon, what to do."""
    listener = config.listener
    secrets = (
        ("[relay] password_file", config.relay.password_file),
        ("[listener] tls_key", listener.tls_key),
        ("[listener] auth_file", listener.auth_file),
    )
    found = [_exposed(key, path) for key, path in secrets if path is not None]
    return [*filter(None, found), *_unwise_listener(config)]


def _exposed(key: str, path: str) -> str | None:
    """What others may do with a secret file."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None  # gone since it was checked: the engine says so when it needs it
    if not mode & 0o007:
        return None
    return (
        f"{key} {path}: every user of this machine may"
        f" {'read' if mode & 0o004 else 'change'} it (mode {mode & 0o777:03o}):"
        f" chmod 600 {shlex.quote(path)} (it has to belong to the engine's user)"
    )


def _unwise_listener(config: Config) -> Iterator[str]:
    listener = config.listener
    if not listener.bind and any(key.startswith("listener.") for key in config.sources):
        yield '[listener] has no bind, so nothing listens: write bind = ["127.0.0.1:25"], say'
    if listener.bind and listener.auth_file and _holds_nobody(listener.auth_file):
        yield (
            f"[listener] auth_file {listener.auth_file} holds no user, so that every login is"
            " refused (535): put the whole file back, or add users by 'mailstrom user add'"
        )
    if wide := _wide(listener.allow_networks):
        yield (
            f"[listener] allow_networks {wide} lets strangers send through this server,"
            " an open relay: name your own networks, and let others log in (auth_file)"
        )
    if wide := _wide(listener.proxy_networks):
        yield (
            f"[listener] proxy_networks {wide} lets strangers claim any address, and so"
            " send through this server: name the addresses of your proxies alone"
        )


def _wide(named: Sequence[str]) -> str:
    """Networks among these that are a large part of the Internet, for a sentence."""
    found = listening.networks(named)
    return ", ".join(str(one) for one in found if listening.open_to_all(one))


def _holds_nobody(path: str) -> bool:
    try:
        return not read_users(path)
    except (OSError, ValueError):
        return False  # changed since it was checked: the listener says so when it reads it


def _verify_requires(config: Config) -> Config:
    # A certificate that must be right, on a connection that may be in clear, would protect nothing.
    if not config.tls.verify or config.tls.require:
        return config
    sources = config.sources | {"tls.require": config.sources.get("tls.verify", "default")}
    return replace(config, tls=replace(config.tls, require=True), sources=sources)


def _one_connect_timeout(config: Config) -> Config:
    sources = dict(config.sources)
    given = next((key for key in CONNECT_KEYS if key in sources), None)
    if given is None:
        return config
    sources |= dict.fromkeys(CONNECT_KEYS, sources[given])
    seconds = (
        config.timeouts.connect if given == CONNECT_KEYS[0] else config.delivery.connect_timeout
    )
    return replace(
        config,
        delivery=replace(config.delivery, connect_timeout=seconds),
        timeouts=replace(config.timeouts, connect=seconds),
        sources=sources,
    )


def _hostname(config: Config) -> Iterator[str]:
    if not names.is_ldh_name(config.hostname):
        yield (
            f"hostname {config.hostname!r} is no host name: write letters, digits, hyphens and dots"
            ' (an internationalised name as its "xn--" form)'
        )


def _resolver(config: Config) -> Iterator[str]:
    dns = config.dns
    if dns.nameservers and dns.resolver != "system":
        yield "[dns] nameservers and resolver exclude each other: remove one"
    elif dns.nameservers and "dns.resolver" in config.sources:
        yield '[dns] nameservers and resolver = "system" exclude each other: remove one'
    for entry in dns.nameservers:
        try:
            host, _ = names.host_port(entry)
        except ValueError as error:
            yield f"[dns] nameservers: {error}"
            continue
        if names.ip(host) is None:
            yield (
                f"[dns] nameservers: {entry!r} is no address: write an IP address,"
                ' as "192.0.2.53", "192.0.2.53:5353" or "[::1]:53"'
            )


def _dns_tls(config: Config) -> Iterator[str]:
    dns = config.dns
    if dns.tls and not dns.nameservers and dns.resolver == "system":
        yield "[dns] tls needs nameservers, or a resolver other than system: add one of them"
    if dns.tls and dns.nameservers and not dns.tls_hostname:
        yield "[dns] tls with nameservers needs tls_hostname: write the name in their certificate"
    if dns.tls_hostname and not dns.tls:
        yield "[dns] tls_hostname has no effect without tls: add tls = true or remove it"
    if dns.tls_hostname and not names.is_ldh_name(dns.tls_hostname):
        yield f"[dns] tls_hostname {dns.tls_hostname!r} is no host name"


def _relay(config: Config) -> Iterator[str]:
    relay, mode = config.relay, config.delivery.mode
    if mode == "relay" and not relay.hosts:
        yield '[delivery] mode = "relay" needs [relay] hosts: write hosts = ["smtp.example.org"]'
    if mode != "relay" and relay.hosts:
        yield '[relay] hosts has no effect: add [delivery] mode = "relay" or remove it'
    for entry in relay.hosts:
        try:
            host, _ = names.host_port(entry)
        except ValueError as error:
            yield f"[relay] hosts: {error}"
            continue
        if isinstance(names.ip(entry), IPv6Address):
            yield f'[relay] hosts: {entry!r} is an IPv6 address: write it as "[{entry}]"'
            continue
        if names.ip(host) is None and not names.is_ldh_name(host):
            yield f'[relay] hosts: {entry!r} is no host: write "host" or "host:port"'


def _credentials(config: Config) -> Iterator[str]:
    relay = config.relay
    if relay.mechanism == "xoauth2" and not relay.username:
        yield '[relay] mechanism = "xoauth2" needs username: write the mailbox of the token'
    if relay.username and not names.is_user_name(relay.username):
        yield (f"[relay] username {relay.username!r} is none: write it without control characters")
    if relay.username and not relay.password_file:
        yield "[relay] username needs password_file: name the file that holds the password"
    if relay.password_file and not relay.username:
        yield "[relay] password_file needs username: add it"
    if relay.username and relay.tls in {"none", "opportunistic"} and not _all_loopback(relay.hosts):
        yield (
            f'[relay] tls = "{relay.tls}" could send the password in plaintext: write'
            ' tls = "required" (STARTTLS) or "implicit"'
        )


def _all_loopback(hosts: tuple[str, ...]) -> bool:
    def loopback(entry: str) -> bool:
        try:
            host, _ = names.host_port(entry)
        except ValueError:
            return False
        address = names.ip(host)
        return host == "localhost" if address is None else address.is_loopback

    return bool(hosts) and all(loopback(entry) for entry in hosts)


def _tls(config: Config) -> Iterator[str]:
    tls, relay = config.tls, config.relay
    if tls.verify and not tls.require and "tls.require" in config.sources:
        yield "[tls] verify includes require, and require = false contradicts it: remove one"
    if (tls.require or tls.verify) and config.delivery.mode == "relay" and relay.tls == "none":
        key = "require" if tls.require else "verify"
        yield f'[tls] {key} and [relay] tls = "none" contradict: write tls = "required"'


def _files(config: Config) -> Iterator[str]:
    try:
        relay_password(config.relay)
    except ConfigError as error:
        yield str(error)
    path = config.tls.ca_file
    if path is None:
        return
    try:
        authorities(path)
    except OSError as error:
        reason = error.strerror or str(error)
        yield f"[tls] ca_file {path}: {reason}; user id {os.geteuid()} must be able to read it"
    except ValueError as error:
        yield f"[tls] ca_file {path}: {error}"


def _timeouts(config: Config) -> Iterator[str]:
    both = set(CONNECT_KEYS) <= config.sources.keys()
    if both and config.timeouts.connect != config.delivery.connect_timeout:
        yield "[timeouts] connect and [delivery] connect_timeout are one setting: remove one"


def _listener(config: Config) -> Iterator[str]:
    listener = config.listener
    places: list[listening.Bind] = []
    for entry in listener.bind:
        try:
            places.append(listening.bind(entry, implicit_tls=listener.implicit_tls))
        except ValueError as error:
            yield f"[listener] bind: {error}"
    twice = {str(place) for place in places if [str(p) for p in places].count(str(place)) > 1}
    for place in sorted(twice):
        yield f"[listener] bind: {place} stands there twice: remove one"
    for key, entries in (
        ("allow_networks", listener.allow_networks),
        ("proxy_networks", listener.proxy_networks),
    ):
        try:
            listening.networks(entries)
        except ValueError as error:
            yield f"[listener] {key}: {error}"
    if listener.tls_key and not listener.tls_cert:
        yield "[listener] tls_key needs tls_cert: name the file that holds the certificate"
    if listener.auth_file and not listener.tls_cert:
        yield (
            "[listener] auth_file needs tls_cert, since passwords are taken under TLS alone: name"
            " a certificate, or remove auth_file"
        )
    if any(place.implicit_tls for place in places) and not listener.tls_cert:
        yield "[listener] TLS from the first byte needs tls_cert: name a certificate"
    yield from _listener_files(config)


def _listener_files(config: Config) -> Iterator[str]:
    """Files are looked at only where something listens."""
    listener = config.listener
    if not listener.bind:
        return
    try:
        listening.server_context(listener)
    except OSError as error:
        yield f"[listener] {_tls_trouble(listener, error)}"
    if listener.auth_file:
        try:
            read_users(listener.auth_file)
        except OSError as error:
            yield (
                f"[listener] auth_file {listener.auth_file}: {error.strerror or error}; user id"
                f" {os.geteuid()} must be able to read it ('mailstrom user add' makes it)"
            )
        except ValueError as error:
            yield f"[listener] auth_file {listener.auth_file}: {error}"


def _tls_trouble(listener: Listener, error: OSError) -> str:
    """What is wrong with certificate and key; OpenSSL's own words are for those who know them."""
    if error.filename is not None:
        key = "tls_cert" if error.filename == listener.tls_cert else "tls_key"
        return (
            f"{key} {error.filename}: {error.strerror}; user id {os.geteuid()} must be able to"
            " read it"
        )
    files = (
        listener.tls_cert
        if listener.tls_key is None
        else (f"{listener.tls_cert} and tls_key {listener.tls_key}")
    )
    reason = getattr(error, "reason", None) or "no certificate with its key, in PEM"
    return (
        f"tls_cert {files} cannot be used ({str(reason).replace('_', ' ').lower()}): name the"
        " certificate with its chain, and the unencrypted private key that belongs to it"
    )


def _retry(config: Config) -> Iterator[str]:
    if config.retry.schedule[0] > config.retry.max_age:
        yield "[retry] schedule begins after max_age, so nothing would be retried: raise max_age"


def _reports(config: Config) -> Iterator[str]:
    sender, delays = config.reports.sender, config.reports.delays
    if sender is not None:
        try:
            address = parse_address(sender)
        except InvalidAddress as error:
            yield f"[reports] sender: {error}"
        else:
            if address.smtputf8:
                yield (
                    f"[reports] sender {sender!r} needs SMTPUTF8, which those who get reports may"
                    " not have: write an ASCII address"
                )
    if any(later <= sooner for sooner, later in pairwise(delays)):
        yield "[reports] delays do not grow: write them in order, each once"


def _stream(config: Config) -> Iterator[str]:
    for name, stream in config.stream.items():
        if stream.max_age is not None and stream.max_age < config.retry.schedule[0]:
            yield (
                f"[stream.{name}] max_age ends before [retry] schedule begins, so nothing would be"
                " retried: raise max_age"
            )
        if not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            yield f"[stream.{name}]: a stream's name has letters, digits, hyphens, underscores"


RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    _hostname,
    _resolver,
    _dns_tls,
    _relay,
    _credentials,
    _tls,
    _files,
    _timeouts,
    _retry,
    _reports,
    _stream,
    _listener,
)
