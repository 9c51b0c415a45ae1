"""The resolver: which hosts serve a domain, and at which addresses.

Contract: answers ``types.Route`` and ``Addresses``; trouble is a value, never an exception. It asks
``nameservers``; what the answers mean for mail is decided in ``policy.answers`` (RFC 5321 section
5.1, RFC 7505).

* A CNAME is followed and its target is processed instead; more than 8 links, a loop, SERVFAIL,
  REFUSED, silence and broken answers are temporary trouble and nothing else.
* Addresses that mail never goes to are refused (``policy.routing.refused_address``).
* Bounds: 50 MX, 20 addresses of a family, 8 CNAME links; each name is asked for once at a time. Not
  more than ``places`` hosts' names are asked for at once; of domains the caller must bound the
  number (``lookups``): neither waits for the other's silence. What nobody waits for any more ends.

Addresses are kept in this process by their TTL; routes are the shared table's, not kept here.
Answers are not validated (no DNSSEC). Must not know: the database, sessions, messages.
"""

from __future__ import annotations

import asyncio
import random as random_source
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from mailstrom.policy.answers import (
    LETTERS,
    NEGATIVE_TTL_S,
    POSITIVE_TTL_S,
    TEMPORARY_TTL_S,
    Answer,
    Outcome,
    before_asking,
    is_host_name,
    is_ip,
    negative,
    positive,
    route_from_addresses,
    route_from_mx,
)
from mailstrom.policy.routing import Family, interleave, refused_address
from mailstrom.smtp.reply import visible
from mailstrom.types import Route
from mailstrom_workers.dnswire import NXDOMAIN, Kind, Labels, Response
from mailstrom_workers.nameservers import Nameservers, Unanswered
from mailstrom_workers.standstill import Standstill

MAX_IN_FLIGHT = 1024
"""Questions at once, a descriptor each."""
MAX_STREAMS = 128
"""The same over TCP or TLS: connections that a nameserver must bear."""
MAX_LINKS = 8
MAX_RECORDS = 20
"""Addresses of one family that are kept of a host; of more, so many by lot."""
MAX_CACHED = 10_000
TROUBLE_S = 10
"""A host whose addresses nobody told is asked for again after this: sooner than its site is tried
again, which must not fail by what was heard the time before."""


class AddressError(StrEnum):
    """Why a host has no address to connect to."""

    NO_HOST = "no_host"  # the name, or any address of it, does not exist
    TEMPORARY = "temporary"  # the DNS did not answer usably
    REFUSED = "refused"  # every address is one we never deliver to


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a host is.

    Args:
        ips: addresses to try in this order, both families in turn, at most five.
        ttl_s: seconds the answer holds, clamped.
        error: None where there are addresses.
        text: a sentence for a person where there are none.
    """

    ips: tuple[str, ...] = ()
    ttl_s: int = TEMPORARY_TTL_S
    error: AddressError | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    v4: tuple[str, ...]
    v6: tuple[str, ...]
    ttl_s: int
    until: float
    error: AddressError | None
    text: str | None


@dataclass(slots=True)
class _Lookup:
    """A question under way, and how many wait for its answer."""

    task: asyncio.Task[Answer]
    waiting: int = 0


class Resolver:
    """Asks the DNS; one per process, used from one event loop.

    Args:
        nameservers: (ip, port) pairs, or None for the system's (``/etc/resolv.conf``).
        timeout: seconds one lookup may take in all, retries included.
        own_names: names this engine answers to; as an MX they mean a loop.
        allow_loopback: deliver to loopback addresses too.
        tls: DNS over TLS; port 53 then means 853.
        tls_hostname: name in the nameservers' certificate, which is demanded.
        tcp: never ask by UDP.
        tls_ca_file: CA certificates to trust instead of the system's.
        prefer: the address family that begins. IPv4 by default: many receivers judge mail over
            IPv6 more severely, and IPv6 has its turn second in any case.
        random: numbers from 0 to below 1, for the order among a host's addresses.

    Attributes:
        places: how many questions may be under way at once.

    Raises:
        ConfigError: see ``Nameservers.of``.
    """

    def __init__(
        self,
        nameservers: Sequence[tuple[str, int]] | None,
        timeout: float = 5.0,
        own_names: Collection[str] = (),
        allow_loopback: bool = False,
        tls: bool = False,
        tls_hostname: str | None = None,
        *,
        tcp: bool = False,
        tls_ca_file: str | None = None,
        prefer: Family = "ipv4",
        random: Callable[[], float] = random_source.random,
    ) -> None:
        self._timeout = timeout
        self._own_names = frozenset(name.rstrip(".").lower() for name in own_names)
        self._allow_loopback = allow_loopback
        self._prefer: Family = prefer
        self._random = random
        self._nameservers = Nameservers.of(
            nameservers,
            timeout,
            tcp=tcp,
            tls=tls,
            tls_hostname=tls_hostname,
            tls_ca_file=tls_ca_file,
        )
        self.places = MAX_STREAMS if self._nameservers.streams else MAX_IN_FLIGHT
        self._hosts = asyncio.Semaphore(self.places)
        self._asking: dict[tuple[str, Kind], _Lookup] = {}
        self._standstill: Standstill | None = None
        self._cache: dict[str, _Cached] = {}

    @property
    def first_s(self) -> float:
        """After so long without an answer each nameserver was given a chance."""
        return self._nameservers.first_s

    async def close(self) -> None:
        """End lookups that are still under way; call when nobody waits for an answer."""
        asking = [lookup.task for lookup in self._asking.values()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def route(self, domain: str) -> Route:
        """Which hosts serve a domain (RFC 5321 section 5.1, RFC 7505).

        Args:
            domain: lower-case A-label domain, or an address literal in brackets.

        Returns:
            A route with a clamped TTL; ``error`` says why where it leads nowhere.
        """
        known = before_asking(domain, loopback=self._allow_loopback)
        if known is not None:
            return known
        mx = await self._ask(domain.rstrip(".").lower(), "MX")
        route = route_from_mx(domain, mx, self._own_names)
        if route is not None:
            return route
        v4, v6 = await self._ask_both(mx.name)
        return route_from_addresses(domain, mx, v4, v6, self._own_names)

    async def _ask_both(self, name: str) -> tuple[Answer, Answer]:
        with self._asked(name, "A") as v4, self._asked(name, "AAAA") as v6:
            return await asyncio.shield(v4), await asyncio.shield(v6)

    async def addresses(self, host: str, *, relay: bool = False) -> Addresses:
        """Where a host is; answered from this process's memory while its TTL lasts.

        Args:
            host: lower-case A-label name, or an IP address as text.
            relay: it is the configured relay, which may be on this machine.

        Returns:
            Up to five addresses of both families in turn, in random order within a family. One
            family's failure does not hide the other's addresses.
        """
        name = host.rstrip(".").lower()
        if is_ip(name):
            return self._usable(name, _whole(name), relay)
        if not is_host_name(name):
            text = f"{visible(name)[:255]!r} is not a host name"
            return Addresses(ttl_s=NEGATIVE_TTL_S[1], error=AddressError.NO_HOST, text=text)
        now = asyncio.get_running_loop().time()
        known = self._cache.get(name)
        if known is None or known.until <= now:
            async with self._hosts:
                known = await self._find(name)
            self._remember(name, known)
        return self._usable(name, known, relay)

    async def _find(self, name: str) -> _Cached:
        v4, v6 = await self._ask_both(name)
        both = (v4, v6)
        error, text = None, None
        found = [answer for answer in both if answer.outcome is Outcome.RECORDS]
        failed = [answer for answer in both if answer.outcome is Outcome.TEMPORARY]
        if failed:
            ttl_s = TEMPORARY_TTL_S if found else TROUBLE_S
        elif found:
            ttl_s = positive(min(answer.ttl_s for answer in found))
        else:
            ttl_s = negative(min(answer.ttl_s for answer in both))
        if not found:
            error = AddressError.TEMPORARY if failed else AddressError.NO_HOST
            text = failed[0].text if failed else f"{name} has no address records"
        return _Cached(
            v4=self._some(v4),
            v6=self._some(v6),
            ttl_s=ttl_s,
            until=asyncio.get_running_loop().time() + ttl_s,
            error=error,
            text=text,
        )

    def _some(self, answer: Answer) -> tuple[str, ...]:
        ips = [ip for _, ip in answer.records]
        if len(ips) > MAX_RECORDS:
            ips = sorted(ips, key=lambda _: self._random())[:MAX_RECORDS]
        return tuple(ips)

    def _usable(self, name: str, known: _Cached, relay: bool) -> Addresses:
        if known.error is not None:
            return Addresses(ttl_s=known.ttl_s, error=known.error, text=known.text)
        allowed: list[list[str]] = [[], []]
        why = ""
        for kept, ips in zip(allowed, (known.v4, known.v6), strict=True):
            for ip in sorted(ips, key=lambda _: self._random()):
                refused = refused_address(ip, loopback=self._allow_loopback, relay=relay)
                if refused is None:
                    kept.append(ip)
                else:
                    why = f"{ip} ({refused})"
        chosen = tuple(interleave(allowed[0], allowed[1], self._prefer))
        if chosen:
            return Addresses(ips=chosen, ttl_s=known.ttl_s)
        text = f"mail is not delivered to {name}: {why}"
        return Addresses(ttl_s=known.ttl_s, error=AddressError.REFUSED, text=text)

    def _remember(self, name: str, known: _Cached) -> None:
        self._cache.pop(name, None)
        if len(self._cache) >= MAX_CACHED:
            now = asyncio.get_running_loop().time()
            kept = {n: c for n, c in self._cache.items() if c.until > now}
            # Everything is fresh: the older half goes, so that this is not done at each call.
            self._cache = (
                kept if len(kept) < MAX_CACHED else dict([*kept.items()][len(kept) // 2 :])
            )
        self._cache[name] = known

    async def _ask(self, name: str, kind: Kind) -> Answer:
        with self._asked(name, kind) as answer:
            return await asyncio.shield(answer)

    @contextmanager
    def _asked(self, name: str, kind: Kind) -> Iterator[asyncio.Task[Answer]]:
        """A lookup, begun if need be; to be shielded, as others may wait for it, too."""
        key = (name, kind)
        lookup = self._asking.get(key)
        if lookup is None:
            task = asyncio.get_running_loop().create_task(self._look_up(name, kind))
            lookup = self._asking[key] = _Lookup(task)
            task.add_done_callback(lambda task: self._forget(key, task))
        lookup.waiting += 1
        try:
            yield lookup.task
        finally:
            lookup.waiting -= 1
            if not lookup.waiting and not lookup.task.done():
                self._forget(key, lookup.task)  # who asks now must not wait for what was ended
                lookup.task.cancel()

    def _forget(self, key: tuple[str, Kind], task: asyncio.Task[Answer]) -> None:
        lookup = self._asking.get(key)
        if lookup is not None and lookup.task is task:
            del self._asking[key]

    async def _look_up(self, name: str, kind: Kind) -> Answer:
        loop = asyncio.get_running_loop()
        if self._standstill is None:
            self._standstill = Standstill(loop)
        began = loop.time()
        with self._standstill.watched():
            answer = await self._follow(name, kind)
            if answer.outcome is Outcome.TEMPORARY and self._standstill.since(began):
                answer = await self._follow(name, kind)  # it was us who were not there
        return answer

    async def _follow(self, name: str, kind: Kind) -> Answer:
        deadline = asyncio.get_running_loop().time() + self._timeout
        links = 0
        asked = name
        while True:
            try:
                response = await self._nameservers.ask(asked, kind, deadline)
            except Unanswered as error:
                return _trouble(name, kind, str(error))
            if response.rcode == NXDOMAIN:
                text = f"{asked} does not exist (NXDOMAIN)"
                return Answer(outcome=Outcome.NXDOMAIN, name=asked, ttl_s=response.ttl_s, text=text)
            links += response.links
            if links > MAX_LINKS:
                return _trouble(name, kind, f"more than {MAX_LINKS} CNAME records in a row")
            target = _text(response.name)
            if target is None or not is_host_name(target):  # the root, too, and IP text
                return _trouble(name, kind, "a CNAME record points to no host name")
            if response.records:
                return Answer(
                    outcome=Outcome.RECORDS,
                    records=_records(response),
                    name=target,
                    ttl_s=response.ttl_s,
                )
            if target == asked:
                return Answer(outcome=Outcome.NODATA, name=target, ttl_s=response.ttl_s)
            asked = target  # a server that does not follow CNAMEs itself


def _records(response: Response) -> tuple[tuple[int, str], ...]:
    """Records with names as text; one with strange characters becomes " ", no host name either."""
    return tuple(
        [
            (
                number,
                what if isinstance(what, str) else " " if (text := _text(what)) is None else text,
            )
            for number, what in response.records
        ]
    )


def _text(labels: Labels) -> str | None:
    # Judged without the dots between labels: as text, a dot inside one would look like two labels.
    if not LETTERS.issuperset(b"".join(labels)):
        return None
    return b".".join(labels).decode("ascii")


def _whole(ip: str) -> _Cached:
    ips = ((), (ip,)) if ":" in ip else ((ip,), ())
    return _Cached(v4=ips[0], v6=ips[1], ttl_s=POSITIVE_TTL_S[1], until=0.0, error=None, text=None)


def _trouble(name: str, kind: Kind, text: str) -> Answer:
    sentence = f"{kind} lookup of {name} failed: {visible(text)[:600]}"
    return Answer(outcome=Outcome.TEMPORARY, name=name, text=sentence)
