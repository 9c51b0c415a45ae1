"""Cases of DNS: what well-formed answers say that means no good, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from tests.hostile.dns_peer import (
    CNAME,
    MX,
    Out,
    Say,
    by_tcp,
    host,
    message,
    mx,
    nowhere,
    only,
    record,
    right,
    soa,
    spelled,
)
from tests.hostile.dns_trouble import DELIVERED, NO_DOMAIN, WAITS
from tests.hostile.dns_world import Case, World

UNREACHED = "deferred connect, 0 charged"
NULL_MX = "failed null_mx, 1 charged"
LOOP = "failed loop, 1 charged"
OURSELVES = "sender.test"
KEPT = "'kept ' || ((expires_ms - resolved_ms + 500) / 1000) || ' s'"
HOSTS = "json_array_length(hosts) || ' hosts'"
NAMED = "hosts ->> '$[0][1]'"
"""The best one."""
Made = Callable[[World, str], Say]


def _alias(to: str) -> bytes:
    return record(CNAME, spelled(to))


def _chain(links: int) -> Made:
    """A chain in one answer."""

    def made(world: World, domain: str) -> Say:
        good = world.well(f"mx.{domain}")
        names = [domain, *(f"c{number}.{domain}" for number in range(1, links + 1))]
        records = [record(CNAME, spelled(to), owner=spelled(one)) for one, to in pairwise(names)]
        records.append(mx(good, owner=spelled(names[-1])))
        return lambda question: right(question, *records)

    return made


def _steps(links: int) -> Made:
    """A chain of which each answer tells one link."""

    def made(world: World, domain: str) -> Say:
        good = world.well(f"mx.{domain}")
        names = [domain, *(f"c{number}.{domain}" for number in range(1, links + 1))]
        for one, to in pairwise(names):
            world.peer.says(one, lambda question, to=to: right(question, _alias(to)))  # type: ignore[misc]
        end = only(MX, lambda question: right(question, mx(good)))
        world.peer.says(names[-1], end)
        return end if not links else lambda question: right(question, _alias(names[1]))

    return made


def _endless(world: World, domain: str) -> Say:
    return lambda question: right(question, _alias(f"n{world.peer.asked[-1].at}.{domain}"))


def _circle(links: int, *, at_once: bool) -> Made:
    def made(world: World, domain: str) -> Say:
        names = [domain, *(f"c{number}.{domain}" for number in range(1, links)), domain]
        records = [record(CNAME, spelled(to), owner=spelled(one)) for one, to in pairwise(names)]
        for one, alias in zip(names[1:-1], records[1:], strict=True):
            world.peer.says(one, lambda question, alias=alias: right(question, alias))  # type: ignore[misc]
        told = records if at_once else records[:1]
        return lambda question: right(question, *told)

    return made


def _mx(*records: bytes | str) -> Made:
    """These hosts, best first; ``GOOD`` is one that takes mail."""

    def made(world: World, domain: str) -> Say:
        good = world.well(f"mx.{domain}")
        told = [mx(good if one == "GOOD" else one, number) for number, one in enumerate(records)]
        return only(MX, lambda question: right(question, *told))

    return made


def _mx_to_alias(links: int) -> Made:
    def made(world: World, domain: str) -> Say:
        names = [f"mx.{domain}", *(f"c{number}.{domain}" for number in range(1, links)), "END"]
        names[-1] = world.well(f"end.{domain}")
        for one, to in pairwise(names):
            world.peer.says(one, lambda question, to=to: right(question, _alias(to)))  # type: ignore[misc]
        return lambda question: right(question, mx(names[0]))

    return made


def _equals_with_us(world: World, domain: str) -> Say:
    other = world.well(f"evil.{domain}", server=world.evil)
    return lambda question: right(question, mx(OURSELVES), mx(other))


def _better_than_us(world: World, domain: str) -> Say:
    good, worse = world.well(f"mx.{domain}"), world.well(f"evil.{domain}", server=world.evil)
    return lambda question: right(question, mx(good, 5), mx(OURSELVES, 10), mx(worse, 20))


def _thousand(world: World, domain: str) -> Say:
    """Each host but the best leads to somebody else."""
    good = world.well(f"mx.{domain}")
    records = [mx(f"x{number}.evil.test", number + 1) for number in range(999)]
    return only(MX, lambda question: right(question, *records, mx(good, 0)))


def _equals(world: World, domain: str) -> Say:
    names = [world.well(f"mx{number}.{domain}") for number in range(20)]
    return only(MX, lambda question: right(question, *[mx(name, 7) for name in names]))


def _addresses(count: int) -> Made:
    """Of one host, and nobody listens there."""

    def made(world: World, domain: str) -> Say:
        name = f"mx.{domain}"
        ips = [f"127.255.{number // 250}.{number % 250 + 1}" for number in range(count)]
        world.peer.says(name, host(*ips))
        return lambda question: right(question, mx(name))

    return made


TRIED = (
    "(SELECT count(DISTINCT address) FROM sessions"
    " WHERE sessions.host = 'mx.' || domains.name) || ' tried'"
)


def _full(world: World, domain: str) -> Say:
    """As many records as 64 kB hold."""
    good = world.well(f"mx.{domain}")
    records = [mx(good, 0), *[mx(f"{number:04d}.evil.test", 9) for number in range(2_150)]]
    return only(MX, by_tcp(lambda question: (Out(message(question, *records)),)))


def _lives(ttl: int) -> Made:
    def made(world: World, domain: str) -> Say:
        good = world.well(f"mx.{domain}")
        return only(MX, lambda question: right(question, mx(good, ttl=ttl)))

    return made


def _denied(ttl: int, minimum: int) -> Made:
    return lambda world, domain: (
        lambda question: right(question, rcode=3, authority=[soa(ttl, minimum)])
    )


def _address_alone(world: World, domain: str) -> Say:
    there = host(world.evil.host)
    return lambda question: nowhere(question) if question.kind == MX else there(question)


def _literal(world: World, domain: str) -> Say:
    return nowhere


STRANGE: dict[str, bytes] = {
    "NUL": spelled(b"mx\0", "evil.test"),
    "a space": spelled(b"mx evil", "test"),
    "CRLF and a command": spelled(b"mx\r\nRCPT TO:<x@y>\r\n", "evil.test"),
    "an escape sequence": spelled(b"\x1b[2J\x1b]0;x\x07", "evil.test"),
    "octets that are no ASCII": spelled(b"m\xc3\xbcx", b"\x9b\xff", "evil.test"),
    "a dot inside a label": spelled(b"mx.evil", "test"),
    "a slash and a quote": spelled(b'm/"x', "evil.test"),
}

RECORDS = (
    Case(name="a chain of 8 CNAMEs in one answer", wanted=DELIVERED, says=_chain(8)),
    Case(name="a chain of 9", wanted=WAITS, says=_chain(9)),
    Case(name="a chain of 1,000", wanted=WAITS, says=_chain(1_000)),
    Case(name="a chain of 8, a link an answer", wanted=DELIVERED, says=_steps(8)),
    Case(name="a chain of 9, a link an answer", wanted=WAITS, says=_steps(9)),
    Case(name="a chain without end, a link an answer", wanted=WAITS, says=_endless),
    Case(name="an alias of itself", wanted=WAITS, says=_circle(1, at_once=True)),
    Case(name="CNAMEs in a circle of three", wanted=WAITS, says=_circle(3, at_once=True)),
    Case(name="the same, a link an answer", wanted=WAITS, says=_circle(3, at_once=False)),
    Case(name="MX to a CNAME", wanted=DELIVERED, says=_mx_to_alias(1)),
    Case(name="MX to a chain of 9", wanted=WAITS, says=_mx_to_alias(9)),
    Case(name="MX to IP text alone", wanted=WAITS, says=_mx("127.0.0.1")),
    Case(name="MX to IP text, then to a host", wanted=DELIVERED, says=_mx("127.0.0.1", "GOOD")),
    Case(name="MX to our own name", wanted=LOOP, says=_mx(OURSELVES)),
    Case(name="MX to our own name in capitals", wanted=LOOP, says=_mx(OURSELVES.upper())),
    Case(name="MX to us and to an equal host", wanted=LOOP, says=_equals_with_us),
    Case(name="MX to a better host, us, and a worse one", wanted=DELIVERED, says=_better_than_us),
    Case(name='MX to "."', wanted=NULL_MX, says=_mx(b"\0")),
    Case(name='MX to "." twice', wanted=NULL_MX, says=_mx(b"\0", b"\0")),
    Case(name='MX to "." and to a host', wanted=DELIVERED, says=_mx(b"\0", "GOOD")),
    Case(name="MX to a name that does not exist", wanted=WAITS, says=_mx("nobody.invalid")),
    Case(name="the same, then to a host", wanted=DELIVERED, says=_mx("nobody.invalid", "GOOD")),
    Case(name="a host of 200 addresses where nobody listens", wanted=f"{UNREACHED}; 5 tried",
         says=_addresses(200), also=TRIED),
    Case(name="a host of 4,000 addresses (64 kB)", wanted=f"{UNREACHED}; 5 tried",
         says=_addresses(4_000), also=TRIED),
    Case(name="1,000 MX hosts", wanted=f"{DELIVERED}; 50 hosts", says=_thousand, also=HOSTS),
    Case(name="MX records of 64 kB", wanted=f"{DELIVERED}; 50 hosts", says=_full, also=HOSTS),
    Case(name="20 hosts of one preference", wanted=DELIVERED, says=_equals),
    Case(name="no MX name (NXDOMAIN), though it has an address", wanted=NO_DOMAIN,
         says=_address_alone),
    *(Case(name=f"a host name with {word}", wanted=WAITS, says=_mx(wire), short=short < 4)
      for short, (word, wire) in enumerate(STRANGE.items())),
    *(Case(name=f"a CNAME to a name with {word}", wanted=WAITS, short=word == "NUL",
           says=lambda world, domain, wire=wire: lambda q: right(q, record(CNAME, wire)))  # type: ignore[misc]
      for word, wire in STRANGE.items() if word != "a dot inside a label"),
    Case(name="a strange host name, then a host", wanted=DELIVERED,
         says=_mx(STRANGE["CRLF and a command"], "GOOD")),
    Case(name="a host name in capitals", wanted=f"{DELIVERED}; mx.capital.test",
         says=lambda world, domain: _capital(world), also=NAMED),
    *(Case(name=f"a TTL of {ttl:,}", wanted=f"{DELIVERED}; kept {kept} s", says=_lives(ttl),
           also=KEPT)
      for ttl, kept in ((0, 30), (2**31 - 1, 3600), (2**31, 30), (2**32 - 1, 30))),
    *(Case(name=f"a denial with TTL {ttl:,} and minimum {minimum:,}",
           wanted=f"{NO_DOMAIN}; kept {kept} s", says=_denied(ttl, minimum), also=KEPT)
      for ttl, minimum, kept in ((0, 0, 30), (60, 2**32 - 1, 60), (2**32 - 1, 2**31, 30),
                                 (2**31 - 1, 2**31 - 1, 300))),
)  # fmt: skip


def _capital(world: World) -> Say:
    world.well("mx.capital.test")
    return lambda question: right(question, mx("MX.CAPITAL.Test"))


REFUSED = "refused by send()"
RECIPIENTS = (
    ("a label of 63 letters", "a@" + "x" * 63 + ".{}", DELIVERED),
    ("a label of 64 letters", "a@" + "x" * 64 + ".{}", REFUSED),
    ("a name of more than 253 letters", "a@" + ("x" * 50 + ".") * 5 + "{}", REFUSED),
    ("an IDN", "a@b\u00fccher.{}", DELIVERED),
    ("a label that is no IDN", "a@xn--\u00fc.{}", REFUSED),
    ("a control character", "a@x\x1b.{}", REFUSED),
    ("an address literal of no address", "a@[999.1.1.1]", REFUSED),
)  # fmt: skip
"""Recipients at names below a domain that takes mail."""


def recipients() -> tuple[Case, ...]:
    """Cases of the recipient's own domain."""

    def says(world: World, domain: str) -> Say:
        good = world.well(f"mx.{domain}")
        return only(MX, lambda question: right(question, mx(good)))

    return tuple(
        Case(name=f"a recipient at {word}", wanted=wanted, says=says, address=to)
        for word, to, wanted in RECIPIENTS
    )


_HERE = {
    "localhost": "127.0.0.1",
    "127.0.0.2": "127.0.0.2",
    "::1": "::1",
    "::ffff:127.0.0.1": "::ffff:127.0.0.1",
    "127.0.0.1 by 6to4": "2002:7f00:1::1",
    "127.0.0.1 by NAT64": "64:ff9b::7f00:1",
}
"""Refused unless ``allow_loopback``."""
_NOWHERE = {
    "0.0.0.0": "0.0.0.0",
    "0.1.2.3": "0.1.2.3",
    "::": "::",
    "255.255.255.255": "255.255.255.255",
    "240.0.0.1": "240.0.0.1",
    "224.0.0.1": "224.0.0.1",
    "ff02::1": "ff02::1",
    "169.254.169.254": "169.254.169.254",
    "::ffff:169.254.169.254": "::ffff:169.254.169.254",
    "169.254.169.254 by 6to4": "2002:a9fe:a9fe::1",
    "169.254.169.254 by NAT64": "64:ff9b::a9fe:a9fe",
    "fe80::1": "fe80::1",
    "::127.0.0.1": "::127.0.0.1",
}
"""Refused always."""
_LITERALS = ("[127.0.0.1]", "[IPv6:::1]", "[IPv6:::ffff:127.0.0.1]", "[IPv6:2002:7f00:1::1]",
             "[IPv6:64:ff9b::7f00:1]", "[169.254.169.254]", "[IPv6:fe80::1]", "[0.0.0.0]",
             "[IPv6:::]", "[255.255.255.255]", "[224.0.0.1]", "[240.0.0.1]")  # fmt: skip
_OURS = 5
"""So many of them are refused unless ``allow_loopback``; the others always."""
_SHORT = ("localhost", "::1", "0.0.0.0", "169.254.169.254", "fe80::1", "169.254.169.254 by NAT64")


def _leads(word: str, ip: str) -> Made:
    def made(world: World, domain: str) -> Say:
        name = word if word == "localhost" else f"mx.{domain}"
        world.peer.says(name, host(ip))
        return only(MX, lambda question: right(question, mx(name)))

    return made


def _beside(ip: str) -> Made:
    """The best host is at a refused address, another one takes mail."""

    def made(world: World, domain: str) -> Say:
        good = world.well(f"good.{domain}")
        world.peer.says(f"mx.{domain}", host(ip))
        return only(MX, lambda question: right(question, mx(f"mx.{domain}", 1), mx(good, 2)))

    return made


def _at(hosts: dict[str, str]) -> Iterator[Case]:
    for word, ip in hosts.items():
        short = word in _SHORT
        yield Case(name=f"MX to a host at {word}", wanted=WAITS, says=_leads(word, ip), short=short)


def refused() -> tuple[Case, ...]:
    """Cases of addresses that no setting allows: a domain may be mended, so it waits."""
    return (
        *_at(_NOWHERE),
        Case(name="MX to a host at 169.254.169.254, then to another", wanted=DELIVERED,
             says=_beside("169.254.169.254")),
        *(Case(name=f"a recipient at {literal}", wanted=NO_DOMAIN, says=_literal,
               address=f"a@{literal}", short="169" in literal)
          for literal in _LITERALS[_OURS:]),
    )  # fmt: skip


def without_loopback() -> tuple[Case, ...]:
    """Cases for an engine that may not deliver to this machine (``allow_loopback`` off)."""
    return (
        *_at(_HERE),
        *_at(_NOWHERE),
        Case(name="no MX, an address on loopback", wanted=WAITS,
             says=lambda world, domain: host(world.evil.host)),
        *(Case(name=f"a recipient at {literal}", wanted=NO_DOMAIN, says=_literal,
               address=f"a@{literal}", short=literal in _LITERALS[:2]) for literal in _LITERALS),
    )  # fmt: skip
