"""The work of a listener, and its process (``python -m mailstrom_workers.listener``).

The sockets were bound by the supervisor and are shared with the other listeners: who dies takes
with it only the connections that it had. A drain stops accepting, lets contents that are on their
way come to their end and be stored, and says 421 to everybody else; the drain's time over, to those
too. A reload is taken over by the connections that begin then; who may send, by all at once.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, cast

from mailstrom import descriptors, events
from mailstrom.config import Bind, binds
from mailstrom.errors import MailstromError
from mailstrom.server.sessions import Sessions
from mailstrom.smtp.reply import Reply
from mailstrom.storage import open_client_store
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.front import Front
from mailstrom_workers.intake import Intake
from mailstrom_workers.logins import Logins
from mailstrom_workers.presence import Presence
from mailstrom_workers.refusals import Refusals
from mailstrom_workers.submitter import Submitter
from mailstrom_workers.terms import terms_of

BUSY_MS = 20_000
"""So long a batch waits for another writer: as long as a client waits for its turn, nearly."""
PARTING_S = 1.0
"""So long a client that was told of the end may take to go."""
SPARE_DESCRIPTORS = 64

_STOPPING = Reply(421, "4.3.2", ("the server is shutting down, try again later",))


async def listen(presence: Presence) -> None:
    """Accept mail until drained."""
    loop = asyncio.get_running_loop()
    terms = terms_of(presence.config)
    trouble = Complaint("listener", loop.time)
    loop.set_exception_handler(partial(_unexpected, trouble))
    store = await asyncio.to_thread(open_client_store, presence.store, busy_ms=BUSY_MS)
    intake = Intake(store, loop, presence.machine.wall_ms)
    front = Front(
        terms=terms,
        sessions=Sessions(terms.limits),
        intake=intake,
        logins=Logins(loop),
        composing=ThreadPoolExecutor(1, thread_name_prefix="compose"),
        now_ms=presence.machine.wall_ms,
        trouble=trouble,
        refusals=Refusals(loop.time),
        descriptors=_descriptors(),
    )
    presence.sessions = lambda: len(front.sessions.open)
    presence.break_off = partial(_break_off, front)
    reloading = asyncio.create_task(_reload(presence, front))
    servers: list[asyncio.Server] = []
    try:
        places = binds(presence.config.listener)
        for fd, bind in zip(presence.sockets, places, strict=True):
            servers.append(await _serve(front, fd, bind))
        await presence.ready()
        await presence.draining.wait()
        await _drain(front, servers)
    finally:
        reloading.cancel()
        front.logins.close()
        front.composing.shutdown(wait=False, cancel_futures=True)
    await intake.close()


def _descriptors() -> int:
    """Connections that there is room for, beside the spool and the log."""
    most = descriptors.reachable()
    return sys.maxsize if most is None else max(1, most - SPARE_DESCRIPTORS)


async def _serve(front: Front, fd: int, bind: Bind) -> asyncio.Server:
    """Accept from an inherited socket."""
    make = partial(Submitter, front, implicit_tls=bind.implicit_tls)
    loop = asyncio.get_running_loop()
    return await loop.create_server(make, sock=socket.socket(fileno=fd))


async def _drain(front: Front, servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()
    front.sessions.limits = replace(front.sessions.limits, finish_s=PARTING_S)
    await asyncio.sleep(0)  # connections that were just accepted begin
    for session in list(front.sessions.open):
        cast(Submitter, session).stop()
    await front.sessions.deserted()
    await front.intake.empty()


def _break_off(front: Front) -> None:
    """The time is over: what is not whole is not taken; what is being stored is still answered."""
    for session in list(front.sessions.open):
        client = cast(Submitter, session)
        client.stop()
        if not client.storing:
            client.part(_STOPPING, "stopped")


async def _reload(presence: Presence, front: Front) -> None:
    """Take over a new configuration, for connections that begin from then on."""
    while True:
        await presence.reloaded.wait()
        presence.reloaded.clear()
        try:
            # Reads files; the hash of a password is computed nowhere here.
            terms = terms_of(presence.config)
        except MailstromError as error:  # the old one goes on
            events.config_rejected(error=str(error), file=presence.config.origin)
            continue
        front.terms = terms
        front.sessions.limits = terms.limits


def _unexpected(
    trouble: Complaint, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    """What the loop itself met: no descriptor for a connection that waits, say."""
    error = context.get("exception")
    trouble.say(f"{context.get('message')}: {error!r}" if error else str(context.get("message")))


if __name__ == "__main__":
    from mailstrom_workers.boot import main

    sys.exit(main(listen))
