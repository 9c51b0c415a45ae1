"""Our servers as the clients meet them, and what they took.

Contract. A ``Station`` has a port in clear that offers STARTTLS, one with TLS from the start, and a
certificate for its address by an authority whose file clients are told. ``taken`` is everything
that was accepted, as the server kept it: for the test server its record, written before the dot was
answered; for the listener the spool. In front of both ports stands a ``Tap``.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import trustme

from mailstrom.passwords import hash_password
from mailstrom.testing.records import Connection, Dot
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.clients.cases import LIMIT, PASSWORD, USER, Case
from tests.clients.tap import Tap
from tests.support.engine import Engine
from tests.support.network import Network
from tests.support.postfix import Received
from tests.support.sockets import free_port, loopback_addresses

HOSTNAME = "mx.clients.test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One message that a server accepted.

    Args:
        mail: sender, recipients, content.
        tls: whether it came encrypted.
        user: who had logged in, or "".
    """

    mail: Received
    tls: bool
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """A certificate for an address, as files.

    Args:
        chain, key: of the server.
        authority: what a client must trust.
    """

    chain: Path
    key: Path
    authority: Path


def certificates(folder: Path, address: str) -> Certificates:
    """Make one; files that anybody may read, as mail servers give up root."""
    authority = trustme.CA()
    issued = authority.issue_cert(address, HOSTNAME)
    made = Certificates(
        chain=folder / "chain.pem", key=folder / "key.pem", authority=folder / "authority.pem"
    )
    made.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    made.key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(made.authority))
    return made


class Keeper(Protocol):
    """What a station needs of a server."""

    name: str
    adds: int
    """Received fields that it puts on top."""
    lacks: Mapping[str, str]
    """Cases, or extensions, that it cannot serve, and why."""

    def taken(self) -> list[Taken]:
        """Everything that it accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """A server with its ports.

    Args:
        keeper: the server.
        address: of all its ports.
        lines: to them, by whether TLS is on from the start, and whether one must log in.
        port: of the server itself, in clear: for many messages.
        files: its certificate.
    """

    keeper: Keeper
    address: str
    lines: Mapping[tuple[bool, bool], Tap]
    port: int
    files: Certificates

    def line(self, case: Case) -> Tap:
        """Where a client connects for a case."""
        return self.lines[case.tls == "implicit", bool(case.auth) or case.users]


class _Recorded:
    """The scripted test server, several of them with one record."""

    name = "the test server"
    adds = 0
    lacks: Mapping[str, str] = {"DSN": "the test server offers no DSN"}

    def __init__(self, servers: Sequence[SMTPServer]) -> None:
        self._servers = servers

    def taken(self) -> list[Taken]:
        """Everything that it accepted."""
        return [
            _recorded(server.connections[dot.connection - 1], dot)
            for server in self._servers
            for dot in server.dots
            if dot.kept
        ]


def _recorded(connection: Connection, dot: Dot) -> Taken:
    mail = Received(sender=dot.sender, recipients=dot.recipients, content=dot.content or b"")
    user = connection.auth[-1][1] if connection.auth else ""
    return Taken(mail=mail, tls=connection.tls is not None, user=user)


@contextlib.contextmanager
def test_server(folder: Path) -> Iterator[Station]:
    """The scripted server of ``mailstrom.testing``; one that has users asks everybody to log in."""
    (address,) = loopback_addresses()
    files = certificates(folder, address)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.chain, files.key)
    open_to_all = Script(size=LIMIT, chunking=True)
    with_users = replace(
        open_to_all, auth={USER: PASSWORD}, mechanisms=("PLAIN", "LOGIN"), auth_in_clear=False
    )
    kinds = [(False, False), (False, True), (True, False), (True, True)]
    servers = [
        SMTPServer(
            address, script=with_users if users else open_to_all, tls=context,
            implicit_tls=implicit, hostname=HOSTNAME, keep_content=True,
        )
        for implicit, users in kinds
    ]  # fmt: skip
    with contextlib.ExitStack() as opened:
        for server in servers:
            opened.enter_context(server.in_thread())
        taps = [opened.enter_context(Tap(address, server.port)) for server in servers]
        yield Station(
            keeper=_Recorded(servers), address=address, lines=dict(zip(kinds, taps, strict=True)),
            port=servers[0].port, files=files,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Standing:
    """A kind of station."""

    name: str
    open: Callable[[Path], contextlib.AbstractContextManager[Station]]


class _Spooled:
    """The listener of an engine whose delivery rests: what it took stays in the spool."""

    name = "the listener"
    adds = 1
    lacks: Mapping[str, str] = {
        "a refused recipient": "the listener takes each recipient of whoever may send",
    }

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, Taken] = {}

    def taken(self) -> list[Taken]:
        """Everything that it accepted."""
        for row in self._engine.rows("SELECT id, sender FROM messages ORDER BY created_ms, id"):
            if row.id not in self._known:
                self._known[row.id] = self._taken(row.id, row.sender)
        return list(self._known.values())

    def _taken(self, id: str, sender: str) -> Taken:
        content = self._engine.ms.raw(id)
        addresses = self._engine.rows("SELECT address FROM recipients WHERE message_id = ?", id)
        with_ = _WITH.match(content)
        how = with_[1].decode() if with_ else ""
        return Taken(
            mail=Received(
                sender=sender, recipients=tuple(row.address for row in addresses), content=content
            ),
            tls="S" in how.partition("SMTP")[2],
            user=USER if how.endswith("A") else "",
        )


# what a Received field says of the session (RFC 3848): S for TLS, A for a login
_WITH = re.compile(rb"Received:(?:[^\r]|\r\n[ \t])*?\swith\s(\S+)", re.IGNORECASE)
STRANGER = "127.66.66.66"
"""An address that nobody allowed to send without a login."""


@contextlib.contextmanager
def listener(folder: Path) -> Iterator[Station]:
    """The worker that listens, of a real engine; clients have an allowed address or another."""
    (address,) = loopback_addresses()
    clear, implicit = free_port(address), free_port(address)
    files = certificates(folder, address)
    users = folder / "users"
    users.write_text(f"{USER}:{hash_password(PASSWORD)}\n", encoding="utf-8")
    users.chmod(0o600)
    settings: dict[str, dict[str, object]] = {
        "delivery": {"mode": "relay"},
        "relay": {"hosts": ["127.0.0.1:9"], "tls": "none"},
        "sites": {"suspend": ["1h"]},
        "listener": {
            "bind": [f"{address}:{clear}", f"{address}:{implicit}/tls"],
            "tls_cert": str(files.chain), "tls_key": str(files.key), "auth_file": str(users),
            "allow_networks": ["127.0.0.1/32"], "max_size": LIMIT,
        },
    }  # fmt: skip
    home = folder / "engine"
    home.mkdir()
    with (
        Network() as network,
        Engine(network, home, workers=1, settings=settings) as engine,
        contextlib.ExitStack() as opened,
    ):
        lines = {
            (secured, users): opened.enter_context(
                Tap(address, implicit if secured else clear, source=STRANGER if users else "")
            )
            for secured in (False, True)
            for users in (False, True)
        }
        yield Station(
            keeper=_Spooled(engine), address=address, lines=lines, port=clear, files=files
        )
        assert engine.stop() == 0
        assert engine.ms.check() == []


STATIONS = (Standing("the test server", test_server), Standing("the listener", listener))
