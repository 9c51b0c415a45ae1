"""Routing inside a worker: domains whose recipients wait get an answer in the shared cache.

DNS trouble is never "no MX": it is cached briefly as temporary, with growing pauses, and the
recipients stay queued (shown deferred, reason dns). In relay mode every domain leads to the relay
and no name is looked up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from mailstrom import events
from mailstrom.config import nameserver_name, relay_hosts
from mailstrom.policy.answers import TEMPORARY_TTL_S, nowhere
from mailstrom.policy.refusal import judge_route
from mailstrom.policy.routing import provider, site_key
from mailstrom.policy.verdict import Action
from mailstrom.storage.base import DueDomain, Refusal, RouteAnswer
from mailstrom.types import DELIVERABLE, Route, RouteResult, Stage
from mailstrom_workers.context import Context, Settings

NEVER_MS = 253_402_300_799_000
TEMPORARY_S, MOST_TEMPORARY_S = 15, 300
"""After DNS trouble the domain is looked up again after the first time, then after twice as long
each time: one lookup may have been lost, while a DNS that fails again and again is left alone."""
UNFORESEEN_S = 30
"""A domain whose look-up ended by an error that nobody foresaw is looked up again after this."""


_T = TypeVar("_T")


class Patience:
    """How long a lookup goes on: to its own end, unless it is cut short.

    Attributes:
        began: loop time.
        took_s: how long it went on, once it is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._limit: asyncio.Timeout | None = None
        self.began = loop.time()
        self.took_s: float | None = None

    def cut(self) -> bool:
        """Cut it short; whether there was anything to cut."""
        limit, self._limit = self._limit, None
        if limit is None:
            return False
        limit.reschedule(self._loop.time())
        return True

    async def bear(self, lookup: Awaitable[_T]) -> _T | None:
        """Its answer; None where it was cut short."""
        try:
            async with asyncio.timeout(None) as limit:
                self._limit = limit
                return await lookup
        except TimeoutError:
            if not limit.expired():
                raise
            return None
        finally:
            self._limit = None
            self.took_s = self._loop.time() - self.began


def policy_name(settings: Settings) -> str:
    """What cached routes depend on; another name expires them all.

    Whom we ask belongs to it: behind another resolver a name may lead elsewhere, and what failed
    with the old one must not wait for its time.
    """
    config = settings.config
    if settings.relay:
        hosts = ",".join(f"{h.name}:{h.port}" for h in relay_hosts(config.relay))
        return f"relay {hosts}"
    dns = config.dns
    asked = f"{','.join(dns.nameservers) or dns.resolver} tls={nameserver_name(dns) or 'no'}"
    if dns.allow_loopback:
        asked += " loopback"
    return f"mx port={config.delivery.port} hostname={config.hostname} dns={asked}"


async def use_routes(ctx: Context) -> None:
    """Expire cached routes that another routing policy made."""
    policy, now_ms = policy_name(ctx.settings), ctx.now_ms()
    await ctx.db.insist(lambda store: store.use_routes(policy, now_ms))


async def route(ctx: Context, due: DueDomain, patience: Patience) -> None:
    """Find a domain's route (unless the cached one still holds) and stamp it on recipients.

    What is cut short is DNS trouble like any other. Whatever goes wrong, the domain is given back:
    it must not stay taken by a living worker.
    """
    try:
        await _route(ctx, due, patience)
    except Exception:
        retry_ms = ctx.now_ms() + UNFORESEEN_S * 1000
        await ctx.db.insist(lambda store: store.give_back(ctx.worker, {due.name: retry_ms}))
        raise


async def _route(ctx: Context, due: DueDomain, patience: Patience) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    found = due.cached
    if found is None and ctx.settings.relay:
        found = _relay_route(ctx, due.name)
    elif found is None:
        found = await patience.bear(ctx.resolver.route(due.name))
    if found is None:
        text = f"no answer about {due.name} in {loop.time() - started:.1f} s, and others wait"
        found = nowhere(due.name, RouteResult.TEMPORARY, TEMPORARY_TTL_S, text)
    answer = _answer(ctx, due, found)
    if due.cached is None:
        events.mx_resolved(
            domain=due.name,
            result=found.result,
            hosts=[host.name for host in found.hosts],
            site=answer.site_key,
            ttl_s=found.ttl_s,
            error=found.error,
            elapsed_ms=int((loop.time() - started) * 1000),
        )
    for failure in await ctx.answers.ask(answer):
        events.recipient_failed(
            message_id=failure.message_id,
            recipient=failure.address,
            reason=failure.reason,
            stage=Stage.ROUTE,
            enhanced=failure.enhanced_code,
            reply=failure.reply_text,
        )
    ctx.wake()


def _relay_route(ctx: Context, domain: str) -> Route:
    hosts = relay_hosts(ctx.settings.config.relay)
    return Route(domain=domain, result=RouteResult.RELAY, hosts=hosts, ttl_s=NEVER_MS // 1000)


def _refusal(found: Route) -> Refusal | None:
    verdict = judge_route(found.result, found.error)
    if verdict is None or verdict.action is not Action.FAIL or verdict.reason is None:
        return None
    return Refusal(verdict.reason, verdict.enhanced_code or "5.0.0", verdict.reply_text or "")


def _answer(ctx: Context, due: DueDomain, found: Route) -> RouteAnswer:
    now_ms = ctx.now_ms()
    ttl_s = found.ttl_s
    if found.result is RouteResult.TEMPORARY:
        ttl_s = min(TEMPORARY_S * 2 ** min(due.failures, 8), MOST_TEMPORARY_S)
    key = None
    if found.result in DELIVERABLE:
        key = site_key(found.hosts, ctx.settings.config.delivery.port)
        if found.result is RouteResult.RELAY:
            key = f"relay {key}"
    return RouteAnswer(
        route=found,
        site_key=key,
        provider=provider(found.hosts) if found.result is RouteResult.MX else None,
        expires_ms=min(now_ms + ttl_s * 1000, NEVER_MS),
        refusal=_refusal(found),
        cached=due.cached is not None,
    )
