"""The work of a delivery worker, and its process (``python -m mailstrom_workers.delivery``).

The configuration of the engine that leads a spool is told to its clients: limits, ages, streams.
An engine inside an application leads where there is no supervisor, from its start or from when the
supervisor has left; it looks now and then.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from mailstrom import events
from mailstrom.config import Config, nameserver_name, nameservers
from mailstrom.errors import MailstromError
from mailstrom.storage.base import StreamPolicy, WorkerStore
from mailstrom.types import PRIORITY_RANK
from mailstrom_workers.context import Context, Settings
from mailstrom_workers.engine import Engine
from mailstrom_workers.presence import Presence
from mailstrom_workers.resolver import Resolver
from mailstrom_workers.router import use_routes
from mailstrom_workers.tls import forget_contexts

LEAD_S = 1.0
"""How often a worker asks whether its engine leads now."""


def resolver_of(config: Config) -> Resolver:
    """The resolver that a configuration asks for."""
    return Resolver(
        nameservers(config.dns),
        config.dns.timeout,
        own_names=(config.hostname,),
        allow_loopback=config.dns.allow_loopback,
        tcp=config.dns.tcp,
        tls=config.dns.tls,
        tls_hostname=nameserver_name(config.dns),
    )


def tell(store: WorkerStore, config: Config) -> None:
    """Facts of the configuration that clients and views read from the spool."""
    store.tell("lanes_limit", config.sites.connections)
    store.tell("max_connections", config.delivery.max_connections)
    store.tell("max_age_ms", int(config.retry.max_age * 1000))
    store.tell("idempotency_window_ms", int(config.spool.idempotency_window * 1000))
    store.tell("wal_limit", config.spool.wal_limit)
    store.use_streams(streams_of(config))


def streams_of(config: Config) -> list[StreamPolicy]:
    """The streams of a configuration, as the store takes them."""
    return [
        StreamPolicy(
            name=name,
            priority=PRIORITY_RANK[stream.priority],
            max_age_ms=None if stream.max_age is None else int(stream.max_age * 1000),
            on_doubt=stream.on_doubt,
            require_tls=stream.require_tls,
            max_size=stream.max_size,
            max_recipients=stream.max_recipients,
        )
        for name, stream in config.stream.items()
    ]


async def deliver(presence: Presence, resolver: Callable[[Config], Resolver] = resolver_of) -> None:
    """Deliver until drained.

    Args:
        presence: the worker.
        resolver: makes the resolver that a configuration asks for.
    """
    forget_contexts()  # of an engine that was embedded in this process before
    ctx = Context(
        worker=presence.worker,
        db=presence.db,
        settings=Settings.of(presence.config),
        resolver=resolver(presence.config),
        machine=presence.machine,
        draining=presence.draining,
    )
    engine = Engine(ctx)
    presence.sessions = lambda: engine.sessions
    presence.hang_up = engine.hang_up
    presence.break_off = engine.break_off
    try:
        told = presence.leads() and await _tell(presence)
        tasks = [
            asyncio.create_task(_reload(presence, ctx, resolver)),
            asyncio.create_task(_lead(presence, told)),
            running := asyncio.create_task(engine.run()),
        ]
        try:
            await presence.ready()
            await running
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await ctx.resolver.close()


async def _tell(presence: Presence) -> bool:
    """Tell the clients; not if the engine leads no more when the store's turn comes."""

    def step(store: WorkerStore) -> bool:
        leads = presence.leads()
        if leads:
            tell(store, presence.config)
        return leads

    return await presence.db.insist(step)


async def _lead(presence: Presence, told: bool) -> None:
    """Tell the clients again whenever the engine comes to lead."""
    while True:
        await asyncio.sleep(LEAD_S)
        told = presence.leads() and (told or await _tell(presence))


async def _reload(presence: Presence, ctx: Context, make: Callable[[Config], Resolver]) -> None:
    """Take over a new configuration between transactions; sessions are renewed at their next."""
    while True:
        await presence.reloaded.wait()
        presence.reloaded.clear()
        config = presence.config
        try:
            resolver = make(config)
        except MailstromError as error:  # the old one goes on
            events.config_rejected(error=str(error), file=config.origin)
            continue
        # Lookups under way end with the old resolver, which nobody closes under them.
        ctx.resolver, ctx.settings = resolver, Settings.of(config)
        forget_contexts()
        await _tell(presence)
        await use_routes(ctx)
        ctx.wake()


if __name__ == "__main__":
    from mailstrom_workers.boot import main

    sys.exit(main(deliver))
