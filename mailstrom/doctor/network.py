"""DNS, our name, and the way out: what a worker process found, judged.

Pure. What many receivers demand of a sender: a PTR record of its address whose name leads back to
the address (RFC 1912 section 2.1; "FCrDNS"), and the fully qualified name in EHLO (RFC 5321 section
4.1.4). With a relay that is the relay's affair, and less is said of it here.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailstrom.config import Config, relay_hosts
from mailstrom.config.names import is_fqdn
from mailstrom.doctor.finding import Finding, Scalar, note, ok, problem, warning
from mailstrom.outside import Host, Name, NameserverAnswer, Outside, Source
from mailstrom.policy.answers import is_ip

SLOW_MS = 1_500
_SERVERS = (
    "Set [dns] nameservers to some that answer from here, or mend /etc/resolv.conf; a caching"
    " resolver on this machine ('unbound') is best for mail."
)


def checks(seen: Outside, config: Config, probe: str) -> Iterator[Finding]:
    """All about the network.

    Args:
        probe: whose mail hosts were connected to, without a relay.
    """
    relay = config.delivery.mode == "relay"
    yield from _dns(seen, relay, asked=not relay or _is_named(config))
    yield from _hostname(seen, config, relay)
    for source in seen.sources:
        yield _source(source, config.hostname, relay)
    yield from _relay(seen, config) if relay else _port(seen, config, probe)
    for sentence in seen.trouble:
        yield warning(
            "dns.looked" if not seen.nameservers else "outgoing.looked",
            sentence,
            "Say it again ('mailstrom doctor'); if it stays so, something here answers slowly.",
        )


# --- DNS ------------------------------------------------------------------------------------------


def _is_named(config: Config) -> bool:
    """Whether a relay host is told by its name, which somebody has to look up."""
    return not all(is_ip(host.name) for host in relay_hosts(config.relay))


def _dns(seen: Outside, relay: bool, *, asked: bool) -> Iterator[Finding]:
    dead = [one for one in seen.nameservers if one.udp_ms is None and one.tcp_ms is None]
    for one in seen.nameservers:
        if one in dead:
            all_dead = len(dead) == len(seen.nameservers)
            level = (problem if all_dead else warning) if asked else note
            yield level(
                "dns.servers",
                f"nameserver {one.server} is of no use: {one.udp_error or one.tcp_error}",
                _SERVERS if all_dead else f"The others are asked in its place, later. {_SERVERS}",
                server=one.server,
                udp_error=one.udp_error,
                tcp_error=one.tcp_error,
            )
        else:
            yield _answering(one, relay)


def _answering(one: NameserverAnswer, relay: bool) -> Finding:
    worse = note if relay else warning  # a relay's address is all that is asked for there
    evidence: dict[str, Scalar] = {
        "server": one.server,
        "udp_ms": None if one.udp_ms is None else round(one.udp_ms, 1),
        "tcp_ms": None if one.tcp_ms is None else round(one.tcp_ms, 1),
    }
    stream = "TLS" if one.tls else "TCP"
    if one.udp_ms is not None and one.tcp_ms is None:
        return worse(
            "dns.tcp",
            f"nameserver {one.server} answers by UDP and not by TCP ({one.tcp_error}): answers that"
            " are too long for UDP are lost" + ("" if relay else ", and their mail is deferred"),
            "Let TCP port 53 pass to it (a firewall?), or name another in [dns] nameservers.",
            **evidence,
        )
    if one.udp_error is not None:
        return worse(
            "dns.udp",
            f"nameserver {one.server} answers by TCP and not by UDP ({one.udp_error})",
            "Let UDP port 53 pass to it, or write tcp = true under [dns], so that no time is lost.",
            **evidence,
        )
    ms = one.udp_ms if one.udp_ms is not None else one.tcp_ms or 0.0
    told = f"nameserver {one.server} answers in {ms:.0f} ms"
    if ms > SLOW_MS:
        return warning(
            "dns.servers", f"{told}: each new domain waits for that", _SERVERS, **evidence
        )
    by = f"by UDP and {stream}" if one.udp_ms is not None else f"by {stream}"
    return ok("dns.servers", f"{told}, {by}", **evidence)


# --- our name -------------------------------------------------------------------------------------


def _hostname(seen: Outside, config: Config, relay: bool) -> Iterator[Finding]:
    name = config.hostname
    worse = note if relay else warning
    if not is_fqdn(name):
        yield worse(
            "hostname.qualified",
            f"{name!r} is not a fully qualified name: EHLO says an address in its place, and many"
            " receivers refuse mail for that",
            'Write hostname = "mail.example.org" in the configuration: a name of yours with an'
            " address.",
            hostname=name,
        )
        return
    found = seen.hostname
    if found is None:
        return
    evidence: dict[str, Scalar] = {"hostname": name, "addresses": " ".join(found.addresses)}
    if found.error is not None:
        yield worse(
            "hostname.address",
            f"the addresses of our name {name} cannot be looked up: {found.error}",
            "See the findings about DNS; receivers that look it up meet the same.",
            **evidence,
        )
    elif not found.addresses:
        yield worse(
            "hostname.address",
            f"our name {name} (EHLO) has no address in the DNS",
            "Publish an A record (and AAAA) for it, or write another hostname in the"
            " configuration.",
            **evidence,
        )
    else:
        yield from _own_address(seen, found, relay, evidence)


def _own_address(
    seen: Outside, found: Name, relay: bool, evidence: dict[str, Scalar]
) -> Iterator[Finding]:
    local = [one for one in seen.sources if one.local]
    theirs = set(found.addresses)
    others = [one.address for one in local if one.public and one.address not in theirs]
    private = [one.address for one in local if not one.public and one.address not in theirs]
    told = f"our name {found.name} leads to {', '.join(found.addresses[:4])}"
    if others and not relay:
        yield note(
            "hostname.address",
            f"{told}, and mail comes from {', '.join(others)}",
            "Well where several machines share the name; else give it this address.",
            **evidence,
        )
    elif private:
        yield note(
            "hostname.private",
            f"{told}; this machine sends from {', '.join(private)}, which is private: receivers see"
            " the address of a router instead",
            "Make sure that the router's public address is one of the name's, and that its PTR"
            " record says the name.",
            **evidence,
        )
    else:
        yield ok("hostname.address", told, **evidence)


def _same(name: str) -> str:
    """A name as it is compared."""
    return name.rstrip(".").lower()


def _source(source: Source, hostname: str, relay: bool) -> Finding:
    worse = note if relay else warning
    address, names = source.address, ", ".join(source.names)
    evidence: dict[str, Scalar] = {
        "address": address,
        "names": names,
        "confirmed": ", ".join(source.confirmed),
        "local": source.local,
    }
    ours = hostname if is_fqdn(hostname) else "a name of yours"
    ask = (
        f"Ask whoever gave you the address (your provider) to set its PTR record to {ours},"
        " and let that name lead to it."
    )
    named = _same(hostname) in map(_same, source.confirmed or source.names)
    if source.error is not None:
        return worse(
            "hostname.reverse",
            f"the PTR record of {address} cannot be looked up: {source.error}",
            "See the findings about DNS; receivers that look it up may meet the same.",
            **evidence,
        )
    if not source.public and not source.names:
        return note(
            "hostname.reverse",
            f"{address} is a private address, without a PTR record; receivers see another one",
            "The PTR record of the address that they see is what counts: ask your provider.",
            **evidence,
        )
    if not source.names:
        return worse(
            "hostname.reverse",
            f"our address {address} has no PTR record: many receivers refuse mail from it",
            ask,
            **evidence,
        )
    if not source.confirmed:
        return worse(
            "hostname.reverse",
            f"the PTR record of our address {address} says {names}, which does not lead back to"
            " it: many receivers refuse mail from it",
            f"Let {ours} lead to {address} in the DNS." if named else ask,
            **evidence,
        )
    if not named:
        return note(
            "hostname.reverse",
            f"our address {address} is {names} and back, and EHLO says {hostname}",
            "Some receivers like it better where both agree: write hostname ="
            f' "{source.confirmed[0].rstrip(".")}" in the configuration, or change the PTR record.',
            **evidence,
        )
    return ok("hostname.reverse", f"our address {address} is {hostname} and back", **evidence)


# --- the way out ----------------------------------------------------------------------------------


def _evidence(host: Host) -> dict[str, Scalar]:
    return {
        "host": host.host,
        "address": host.address,
        "port": host.port,
        "stage": host.stage,
        "ms": round(host.ms, 1),
        "error": host.error,
        "banner": host.banner,
        "tls": host.tls,
    }


def _where(host: Host) -> str:
    return f"{host.host} [{host.address}]:{host.port}"


def _at(host: Host) -> str:
    """Where an error came from, if it does not say so itself."""
    return "" if _where(host) in (host.error or "") else f"{_where(host)}: "


def _port(seen: Outside, config: Config, probe: str) -> Iterator[Finding]:
    port = config.delivery.port
    reached = [host for host in seen.hosts if host.stage == "done"]
    if reached:
        host = reached[0]
        yield ok(
            "outgoing.port",
            f"port {port} is open to the outside: {_where(host)} greeted in {host.ms:.0f} ms",
            **_evidence(host),
        )
    elif seen.hosts:
        host = max(seen.hosts, key=lambda one: one.stage == "greeting")
        words = f" ({host.banner.splitlines()[0]})" if host.banner else ""
        if host.stage == "greeting":
            yield warning(
                "outgoing.port",
                f"{_where(host)} can be reached on port {port} and does not greet as it should:"
                f" {host.error}{words}",
                "If it names a block list, ask there why this address is on it; else try another"
                " domain: 'mailstrom doctor --probe DOMAIN'.",
                **_evidence(host),
            )
        else:
            yield problem(
                "outgoing.port",
                f"port {port} seems to be closed to the outside: {_where(host)}: {host.error}",
                "Ask the provider to open it (many block it), or send by a relay on port 587:"
                " mode = \"relay\" under [delivery]. 'mailstrom doctor --probe DOMAIN' tries"
                " another domain's hosts.",
                **_evidence(host),
            )
    elif seen.nameservers:
        yield problem(
            "outgoing.port",
            f"port {port} could not be tried: {seen.no_hosts or 'no host was found in time'}",
            "If DNS is at fault, mend that first: it has findings of its own. Else try another"
            f" domain: 'mailstrom doctor --probe DOMAIN' (this was {probe}).",
            probe=probe,
        )


def _relay(seen: Outside, config: Config) -> Iterator[Finding]:
    usable = [host for host in seen.hosts if _relay_trouble(host, config) is None]
    for host in seen.hosts:
        trouble = _relay_trouble(host, config)
        if trouble is not None:
            found, advice = trouble
            yield (warning if usable else problem)(
                "outgoing.relay", found, advice, **_evidence(host)
            )
        else:
            yield from _relay_well(host, config)
    if not seen.hosts:
        yield problem(
            "outgoing.relay",
            f"the relay could not be tried: {seen.no_hosts or 'it was not found in time'}",
            "See [relay] hosts in the configuration, and the findings about DNS.",
        )


_RELAY_ADVICE = {
    "connect": "See [relay] hosts and port, and whether a firewall is between ('nc -v HOST PORT').",
    "greeting": 'Ask who runs the relay; with port 465 write tls = "implicit" under [relay].',
    "ehlo": "Ask who runs the relay why it refuses EHLO from here.",
    "starttls": "See [relay] tls and [tls]: the certificate must be for the relay's name, from an"
    " authority in [tls] ca_file or the system's.",
}


def _relay_trouble(host: Host, config: Config) -> tuple[str, str] | None:
    if host.error is not None:
        return (
            f"no session with the relay: {_at(host)}{host.error}",
            _RELAY_ADVICE.get(host.stage, "Ask who runs the relay."),
        )
    if config.relay.username is not None and not host.auth:
        return (
            f"the relay {_where(host)} offers no AUTH, and [relay] username is set",
            "Most relays offer it on port 587 with STARTTLS or 465 with implicit TLS: see [relay]"
            " port and tls.",
        )
    return None


def _relay_well(host: Host, config: Config) -> Iterator[Finding]:
    if config.relay.username is not None and host.auth is not None:
        wanted = config.relay.mechanism.upper()
        if wanted not in ("AUTO", *host.auth):
            yield warning(
                "outgoing.auth",
                f"the relay {_where(host)} offers AUTH {' '.join(host.auth)}, not {wanted}",
                'Write mechanism = "auto" under [relay], or one that it offers.',
                **_evidence(host),
            )
    safe = f"{host.tls}" if host.tls else "no TLS"
    offers = f"; AUTH {' '.join(host.auth)}" if host.auth else ""
    told = f"the relay {_where(host)} answers in {host.ms:.0f} ms, {safe}{offers}"
    if host.tls is None and config.relay.tls != "none" and not host.address.startswith("127."):
        yield note(
            "outgoing.relay",
            f"{told}: mail goes there in plaintext",
            'If it offers TLS elsewhere, name that port, and write tls = "required" under [relay].',
            **_evidence(host),
        )
    else:
        yield ok("outgoing.relay", told, **_evidence(host))
