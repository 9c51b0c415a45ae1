"""The shared MX cache, inside a transaction: take due domains, store answers, stamp recipients.

At most 1,000 recipients change in one transaction, however many answers it stores, so that a domain
with a million waiting recipients never holds the lock long; what is left keeps the domain due and
the router goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from mailstrom.storage.base import DueDomain, Refusal, RouteAnswer
from mailstrom.storage.sqlite import copies, settling
from mailstrom.storage.sqlite.encoding import encoded
from mailstrom.storage.sqlite.rows import decode_hosts, encode_hosts, readable
from mailstrom.storage.sqlite.sql import run
from mailstrom.types import DELIVERABLE, Judgement, Route, RouteResult, Stage

STAMP_MOST = 1_000
_CACHED = {str(one).encode(): one for one in RouteResult if one is not RouteResult.TEMPORARY}


def use(connection: apsw.Connection, policy: str) -> bool:
    """Expire all routes if they were made under another routing policy."""
    found = run(connection, "meta_get", {"key": "routing"})
    if found and found[0][0] == policy:
        return False
    run(connection, "meta_set", {"key": "routing", "value": policy})
    run(connection, "expire_routes")
    return True


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
    changed: list[int] = []  # recipients
    left: list[bool] = []
    for answer in answers:
        most = STAMP_MOST - len(changed)
        left.append(_put(connection, worker, answer, now_ms, most, changed))
    if changed:
        run(connection, "lower_next_due", {"recipients": encoded(changed)})
    return left


def _put(
    connection: apsw.Connection,
    worker: int,
    answer: RouteAnswer,
    now_ms: int,
    most: int,
    changed: list[int],
) -> bool:
    """Store one answer and apply it to at most so many recipients; True if some are left."""
    route = answer.route
    found = run(connection, "domain_get", {"name": route.domain})
    if not found or found[0][0] != worker:
        return False  # another worker has it now
    _, result, site, generation, expires_ms, usable_ms = found[0]
    if answer.cached:
        if _CACHED.get(result) is not route.result or expires_ms <= now_ms:
            run(connection, "domain_release", {"name": route.domain})
            return True  # no longer what was taken from the cache: to be looked up
    elif route.result is RouteResult.TEMPORARY:
        site = None
        values = {"name": route.domain, "now_ms": now_ms, "expires_ms": answer.expires_ms}
        run(connection, "domain_failing", {**values, "error": route.error})
        _event(connection, answer, now_ms)
    else:
        before, site = site, None
        if route.result in DELIVERABLE and answer.site_key is not None:
            site = _site(connection, answer, now_ms)
        generation = _store(connection, answer, site, now_ms)
        _event(connection, answer, now_ms)
        if before is not None and before != site:
            run(connection, "leave_site", {"site": before, "now_ms": now_ms})
        if site is not None and usable_ms <= now_ms:
            run(connection, "wake_site", {"site": site, "now_ms": now_ms})
    ours: list[int] = []
    if site is not None:
        values = {"name": route.domain, "site": site, "generation": generation, "most": most}
        ours = [row[0] for row in run(connection, "stamp", values)]
    elif answer.refusal is not None:
        ours = _refuse(connection, worker, route.domain, answer.refusal, most, now_ms)
    else:
        most = STAMP_MOST
    changed += ours
    run(connection, "domain_done", {"name": route.domain})
    return len(ours) == most


def _site(connection: apsw.Connection, answer: RouteAnswer, now_ms: int) -> int:
    values = {
        "key": answer.site_key,
        "provider": answer.provider,
        "hosts": encode_hosts(answer.route.hosts),
        "now_ms": now_ms,
    }
    return int(run(connection, "site_put", values)[0][0])


def _store(connection: apsw.Connection, answer: RouteAnswer, site: int | None, now_ms: int) -> int:
    """Write the answer into the cache; returns the domain's generation."""
    route = answer.route
    values = {
        "name": route.domain,
        "result": str(route.result),
        "site": site,
        "hosts": encode_hosts(route.hosts),
        "error": route.error,
        "now_ms": now_ms,
        "expires_ms": answer.expires_ms,
    }
    return int(run(connection, "domain_put", values)[0][0])


def _event(connection: apsw.Connection, answer: RouteAnswer, now_ms: int) -> None:
    values = {
        "now_ms": now_ms,
        "name": answer.route.domain,
        "result": str(answer.route.result),
        "site": answer.site_key,
        "error": answer.route.error,
    }
    run(connection, "route_event", values)


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
    one = settling.Row(
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
