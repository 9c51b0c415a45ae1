"""Routing inside a worker: domains whose recipients wait get an answer in the shared cache.

DNS trouble is never "no MX": it is cached briefly as temporary, with growing pauses, and the
recipients stay queued (shown deferred, reason dns). In relay mode every domain leads to the relay
and no name is looked up.
"""

from __future__ import annotations

import asyncio

from mailstrom import events
from mailstrom.config import nameserver_name, relay_hosts
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
    return f"mx port={config.delivery.port} hostname={config.hostname} dns={asked}"


async def use_routes(ctx: Context) -> None:
    """Expire cached routes that another routing policy made."""
    policy, now_ms = policy_name(ctx.settings), ctx.now_ms()
    await ctx.db.insist(lambda store: store.use_routes(policy, now_ms))


async def route(ctx: Context, due: DueDomain) -> None:
    """Find a domain's route (unless the cached one still holds) and stamp it on recipients.

    Whatever goes wrong, the domain is given back: it must not stay taken by a living worker.
    """
    try:
        await _route(ctx, due)
    except Exception:
        retry_ms = ctx.now_ms() + UNFORESEEN_S * 1000
        await ctx.db.insist(lambda store: store.give_back(ctx.worker, due.name, retry_ms))
        raise


async def _route(ctx: Context, due: DueDomain) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    found = due.cached
    if found is None:
        found = (
            _relay_route(ctx, due.name)
            if ctx.settings.relay
            else (await ctx.resolver.route(due.name))
        )
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
