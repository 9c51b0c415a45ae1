"""A delivery worker process, started by the supervisor (``mailstrom_workers.delivery``)."""

from __future__ import annotations

import asyncio
import sys

from mailstrom import events
from mailstrom.config import Config, nameserver_name, nameservers
from mailstrom.errors import MailstromError
from mailstrom.storage.base import WorkerStore
from mailstrom_workers.boot import Child, main
from mailstrom_workers.context import Context, Settings
from mailstrom_workers.engine import Engine
from mailstrom_workers.resolver import Resolver
from mailstrom_workers.router import use_routes


def resolver_of(config: Config) -> Resolver:
    """The resolver that a configuration asks for."""
    return Resolver(
        nameservers(config.dns),
        config.dns.timeout,
        own_names=(config.hostname,),
        allow_loopback=config.dns.allow_loopback,
        tls=config.dns.tls,
        tls_hostname=nameserver_name(config.dns),
    )


def tell(store: WorkerStore, config: Config) -> None:
    """Facts of the configuration that clients and views read from the spool."""
    store.tell("lanes_limit", config.sites.connections)
    store.tell("max_age_ms", int(config.retry.max_age * 1000))
    store.tell("idempotency_window_ms", int(config.spool.idempotency_window * 1000))


async def deliver(child: Child) -> None:
    """Deliver until drained."""
    ctx = Context(
        worker=child.worker,
        db=child.db,
        settings=Settings.of(child.config),
        resolver=resolver_of(child.config),
        draining=child.draining,
    )
    engine = Engine(ctx)
    child.sessions = lambda: engine.sessions
    await child.db.call(lambda store: tell(store, child.config))
    reloads = asyncio.create_task(_reload(child, ctx))
    try:
        running = asyncio.create_task(engine.run())
        await child.ready()
        await running
    finally:
        reloads.cancel()
        await ctx.resolver.close()


async def _reload(child: Child, ctx: Context) -> None:
    """Take over a new configuration between transactions; sessions are renewed at their next."""
    while True:
        await child.reloaded.wait()
        child.reloaded.clear()
        try:
            resolver = resolver_of(child.config)
        except MailstromError as error:  # the old one goes on
            events.config_rejected(error=str(error), file=child.config.origin)
            continue
        # Lookups under way end with the old resolver, which nobody closes under them.
        ctx.resolver, ctx.settings = resolver, Settings.of(child.config)
        await ctx.db.insist(lambda store: tell(store, child.config))
        await use_routes(ctx)
        ctx.wake()


if __name__ == "__main__":
    sys.exit(main(deliver))
