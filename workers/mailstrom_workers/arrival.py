"""Who a client of the listener is, and whether it may come in.

Contract. Each client's connections are counted, from before its handshake until it has gone, for
its address, which behind a proxy of ``proxy_networks`` is the one that the PROXY header tells. One
too many hears 421 in place of the greeting, or, where the handshake would come first, is cut.

Must not know: what a client says, messages, sockets, the configuration's form.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from mailstrom.server.connection import Connection
from mailstrom.server.stages import Answer
from mailstrom.smtp.proxy import BadProxy, ProxyReader
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import Opened
from mailstrom_workers.allowance import client_of
from mailstrom_workers.front import Front

_CROWDED = Reply(421, "4.7.0", ("too many connections, try again later",))
_CROWD = Reply(421, "4.7.0", ("too many connections from your address, try again later",))


class Arrival(Connection):
    """A client's connection, as far as who it is.

    Args:
        front: what it shares with the others.
        implicit_tls: TLS comes first.

    Attributes:
        front: the same.
        terms: those in force when it began.
        client: whom its limits are counted for; "" before that is known.
        proved: the hash that the user's password belongs to.
    """

    __slots__ = (
        "_implicit_tls",
        "_present",
        "_proxy",
        "_refusal",
        "client",
        "front",
        "proved",
        "terms",
    )

    def __init__(self, front: Front, *, implicit_tls: bool) -> None:
        terms = front.terms
        self.front = front
        self.terms = terms
        self.client = ""
        self.proved: str | None = None
        self._implicit_tls = implicit_tls
        self._proxy: ProxyReader | None = None
        self._refusal: Reply | None = None  # in place of the greeting
        self._present = False
        super().__init__(
            front.sessions,
            ServerDialogue(
                terms.plain,
                secured=terms.secured,
                tls=implicit_tls,
                recipient_limit=terms.listener.max_recipients,
                announce=True,
                error_limit=terms.listener.max_errors,
                bare_newlines=terms.listener.bare_newlines,
                bare_local_parts=terms.listener.role == "submission",
                clock=time.time,
            ),
            tls=terms.tls,
            implicit_tls=implicit_tls,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it; one too many is not even shaken hands with."""
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        if address in self.terms.proxies:
            self._proxy = ProxyReader()
            self.preface_first()
        elif not self._counted_in(address) and self._implicit_tls:
            cast(asyncio.Transport, transport).abort()
            return
        super().connection_made(transport)

    def _counted_in(self, address: str) -> bool:
        """Count a client's connection, unless it is one too many."""
        front, listener = self.front, self.terms.listener
        client = client_of(address)
        if front.connections.all >= min(listener.max_connections, front.descriptors):
            self._refusal, reason = _CROWDED, "too many connections"
        elif front.connections.of(client) >= listener.max_connections_per_client:
            self._refusal, reason = _CROWD, "too many connections of this client"
        else:
            self.client = client
            self._present = True
            front.connections.add(client)
            return True
        front.refusals.tell(client, reason)
        return False

    def on_preface(self, data: bytes) -> bytes | None:
        """The PROXY header, whose address is the client's from here on.

        Where the proxy names none (a health check) the client is nobody, and may not send: the
        proxy's own address, which may be this machine's, says nothing of who is behind it.
        """
        self._proxy = self._proxy or ProxyReader()
        try:
            found = self._proxy.feed(data)
        except BadProxy as error:
            self.told_off(f"proxy header refused: {error.rule}", client=self.peer[0])
            self.abort("proxy")
            return None
        if found is None:
            return None
        self._proxy = None
        self.peer = ("", 0)
        if found.source is not None and not found.local:
            self.peer = (found.source, found.source_port)
        if not self._counted_in(self.peer[0]) and self._implicit_tls:
            self.abort("crowded")
        return found.rest

    def on_connect(self, event: Opened) -> Answer:
        """Who is one too many hears so in place of the greeting."""
        return self._refusal

    def on_closed(self) -> None:
        """Give back what it took."""
        if self._proxy is not None and self.cause == "timeout":
            # Both waited: the proxy for our greeting, since nobody told it to send the header.
            self.told_off("no proxy header came", client=self.peer[0])
        if self._present:
            self._present = False
            self.front.connections.remove(self.client)

    def may_send(self) -> bool:
        """Whether mail is taken from it, for anybody, by the terms in force."""
        terms = self.front.terms
        if self.user is not None:
            return terms.users is not None and terms.users.get(self.user) == self.proved
        return self.peer[0] in terms.allowed

    def told_off(self, reason: str, *, client: str = "", **fields: str | None) -> None:
        """Tell the log why it was refused."""
        self.front.refusals.tell(client or self.client, reason, **fields)
