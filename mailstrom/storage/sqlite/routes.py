"""The shared MX cache, inside a transaction: take due domains, store answers, stamp recipients.

At most 1,000 recipients change in one transaction, however many answers it stores, so that a domain
with a million waiting recipients never holds the lock long; what is left keeps the domain due and
the router goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import apsw

from mailstrom.storage.base import DueDomain, Refusal, RouteAnswer
from mailstrom.storage.sqlite import copies, settling, sweeps
from mailstrom.storage.sqlite.encoding import encoded
from mailstrom.storage.sqlite.rows import decode_hosts, encode_hosts, readable
from mailstrom.storage.sqlite.sql import run
from mailstrom.types import DELIVERABLE, Judgement, Route, RouteResult, Stage

STAMP_MOST = 1_000
_CACHED: dict[bytes | None, RouteResult] = {
    str(one).encode(): one for one in RouteResult if one is not RouteResult.TEMPORARY
}


def use(connection: apsw.Connection, policy: str) -> tuple[bool, bool]:
    """Call a piece of the routes off if all were made under another routing policy.

    Returns:
        Whether it is another one, and whether more routes are left (``sweeps.expire``).
    """
    found = run(connection, "meta_get", {"key": "routing"})
    other = not found or found[0][0] != policy
    if other:
        run(connection, "meta_set", {"key": "routing", "value": policy})
        sweeps.begin_expiry(connection)
    return other, sweeps.expire(connection)


def due(connection: apsw.Connection, worker: int, limit: int, now_ms: int) -> list[DueDomain]:
    """Take domains to route; a still valid cached answer comes along.

    DNS trouble is none: whoever looks at the domain before its pause is over wants to know anew.
    What damage made unreadable is none either. A domain whose name is no text stays taken, so that
    it is not met again before this worker ends: nobody can look it up.
    """
    if copies.marked(connection):
        return []
    values = {"worker": worker, "now_ms": now_ms, "most": limit}
    domains = []
    for name, result, hosts, expires_ms, error, failures in run(connection, "due_domains", values):
        try:
            domain = name.decode()
        except UnicodeDecodeError:
            continue
        cached, known = None, decode_hosts(hosts)
        if result in _CACHED and known is not None and expires_ms > now_ms:
            cached = Route(
                domain=domain,
                result=_CACHED[result],
                hosts=known,
                ttl_s=max(1, (expires_ms - now_ms) // 1000),
                error=readable(error),
            )
        domains.append(DueDomain(name=domain, cached=cached, failures=failures))
    return domains


def put(
    connection: apsw.Connection, worker: int, answers: Sequence[RouteAnswer], now_ms: int
) -> list[bool]:
    """Store answers and apply them to waiting recipients; for each whether some are left."""
    names = encoded([answer.route.domain for answer in answers])
    known = {row[0]: _Known(*row[1:]) for row in run(connection, "domain_get", {"names": names})}
    ours: dict[str, RouteAnswer] = {}  # others have been given to another worker since
    for answer in answers:
        name = answer.route.domain
        if name not in ours and name in known and known[name].router == worker:
            ours[name] = answer
    where = _Cache(connection, known, now_ms).store(list(ours.values()))
    changed: list[int] = []  # recipients
    left: list[bool] = []
    done: list[str] = []
    for answer in answers:
        name = answer.route.domain
        if ours.get(name) is not answer:
            left.append(False)
        elif name not in where:
            run(connection, "domain_release", {"name": name})
            left.append(True)  # no longer what was taken from the cache: to be looked up
        else:
            most = STAMP_MOST - len(changed)
            stamped = _stamp(connection, worker, answer, where[name], most, now_ms)
            left.append(stamped is not None and len(stamped) == most)
            changed += stamped or ()
            done.append(name)
    if done:
        run(connection, "domain_done", {"names": encoded(done)})
    if changed:
        run(connection, "lower_next_due", {"recipients": encoded(changed)})
    return left


class _Known(NamedTuple):
    """What the cache holds of a domain; texts as bytes."""

    router: int | None
    result: bytes | None
    site: int | None
    generation: int
    expires_ms: int
    usable_ms: int


class _Where(NamedTuple):
    """Where a domain leads now; nowhere without a site."""

    site: int | None
    generation: int


class _Cache(NamedTuple):
    """The cache of routes, about to be written.

    Args:
        known: what it holds of the domains that are asked about.
    """

    connection: apsw.Connection
    known: Mapping[str, _Known]
    now_ms: int

    def store(self, answers: Sequence[RouteAnswer]) -> dict[str, _Where]:
        """Write answers, all of a kind at once.

        Returns:
            Where domains lead; not those whose cached answer is no longer what was taken.
        """
        where: dict[str, _Where] = {}
        found: list[RouteAnswer] = []
        for answer in answers:
            route = answer.route
            before = self.known[route.domain]
            if answer.cached:
                if _CACHED.get(before.result) is route.result and before.expires_ms > self.now_ms:
                    where[route.domain] = _Where(before.site, before.generation)
            elif route.result is RouteResult.TEMPORARY:
                where[route.domain] = _Where(None, before.generation)
                values = {"name": route.domain, "now_ms": self.now_ms, "error": route.error}
                run(self.connection, "domain_failing", {**values, "expires_ms": answer.expires_ms})
            else:
                found.append(answer)
        if found:
            where |= self._found(found)
        looked_up = [
            [answer.route.domain, str(answer.route.result), answer.site_key, answer.route.error]
            for answer in answers
            if not answer.cached
        ]
        if looked_up:
            values = {"now_ms": self.now_ms, "rows": encoded(looked_up)}
            run(self.connection, "route_event", values)
        return where

    def _found(self, answers: Sequence[RouteAnswer]) -> dict[str, _Where]:
        """Write what the DNS said; wakes the sites that got a domain, or lost one."""
        connection, known, now_ms = self
        leading = [
            [answer.site_key, answer.provider, encode_hosts(answer.route.hosts)]
            for answer in answers
            if answer.route.result in DELIVERABLE and answer.site_key is not None
        ]
        sites: dict[str | None, int] = {}
        if leading:
            values = {"rows": encoded(leading), "now_ms": now_ms}
            sites = dict(run(connection, "site_put", values))
        at: dict[str, int | None] = {}
        rows = []
        for answer in answers:
            route = answer.route
            leads = route.result in DELIVERABLE and answer.site_key is not None
            at[route.domain] = site = sites[answer.site_key] if leads else None
            hosts = encode_hosts(route.hosts)
            result = str(route.result)
            rows.append([route.domain, result, site, hosts, answer.expires_ms, route.error])
        written = run(connection, "domain_put", {"rows": encoded(rows), "now_ms": now_ms})
        for name, site in at.items():
            before = known[name].site
            if before is not None and before != site:
                run(connection, "leave_site", {"site": before, "now_ms": now_ms})
        woken = {site for name, site in at.items() if site and known[name].usable_ms <= now_ms}
        if woken:
            run(connection, "wake_sites", {"sites": encoded(sorted(woken)), "now_ms": now_ms})
        return {name: _Where(at[name], generation) for name, generation in written}


def _stamp(
    connection: apsw.Connection,
    worker: int,
    answer: RouteAnswer,
    where: _Where,
    most: int,
    now_ms: int,
) -> list[int] | None:
    """Apply an answer to at most so many waiting recipients; None where it says nothing of them."""
    name = answer.route.domain
    if answer.route.result is not RouteResult.TEMPORARY and where.site is not None:
        values = {"name": name, "site": where.site, "generation": where.generation, "most": most}
        return [row[0] for row in run(connection, "stamp", values)]
    if answer.refusal is not None:
        return _refuse(connection, worker, name, answer.refusal, most, now_ms)
    return None


def _refuse(
    connection: apsw.Connection,
    worker: int,
    domain: str,
    refusal: Refusal,
    most: int,
    now_ms: int,
) -> list[int]:
    """Fail waiting recipients of a domain that takes no mail; returns which."""
    waiting = [row[0] for row in run(connection, "unrouted", {"name": domain, "most": most})]
    if not waiting:
        return []
    reason, enhanced, text = refusal
    values = {
        "recipients": encoded(waiting),
        "reason": str(reason),
        "now_ms": now_ms,
        "code": None,
        "enhanced": enhanced,
        "text": text,
    }
    run(connection, "fail_unrouted", values)
    one = settling.AttemptRow(
        recipient=0,
        session=None,
        started_ms=now_ms,
        ended_ms=now_ms,
        stage=str(Stage.ROUTE),
        host=None,
        address=None,
        code=None,
        enhanced=enhanced,
        text=text,
        verdict=str(Judgement.FAILED),
        reason=str(reason),
        in_doubt=0,
        late=0,
        worker=worker,
    )
    rows = [one._replace(recipient=seq) for seq in waiting]
    settling.record(connection, rows, now_ms)
    return waiting
