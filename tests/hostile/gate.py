"""An engine that listens, among clients that mean no good, and what each case costs its listener.

Contract. ``Gate`` is an engine of one listener process, whose delivery rests, so that what it takes
stays in the spool. Clients come from addresses of their own (``FRIEND`` may send, ``STRANGER`` may
not, ``PROXY`` is a proxy). ``measured`` runs one case and makes its row; every id that a client was
told is kept, and ``accounted`` holds them against the spool: what was answered with 250 and nothing
else, and nobody called evil.

Must not know: any case.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from mailstrom.passwords import hash_password
from tests.hostile.meter import Meter
from tests.hostile.stand import sockets
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S, Engine
from tests.support.network import Network
from tests.support.sockets import eventually, free_port, loopback_addresses
from tests.support.talk import Talk

FRIEND, STRANGER, PROXY = "127.77.0.1", "127.66.0.1", "127.88.0.1"
USER, PASSWORD = "joe", "open sesame"
SIZE = 1 << 20
"""Octets of a message, at most."""
QUEUED = re.compile(rb"^250 2\.0\.0 Ok: queued as (\S+)\r\n", re.MULTILINE)
READ_S = 60.0
LET_GO = "connections of the listener, when all cases are over"
ACCOUNTED = "what is in the spool"


class Gate:
    """Where cases are tried.

    Args:
        engine: running, with one listener.
        address: where it listens.
        port, implicit: in clear, and with TLS from the start.
    """

    def __init__(self, engine: Engine, address: str, port: int, implicit: int) -> None:
        self.engine = engine
        self.address = address
        self.port = port
        self.implicit = implicit
        self.told: list[str] = []
        self.doubtful = 0
        """Contents that may have been taken, though nobody heard so."""

    @property
    def pid(self) -> int:
        """The listener's process."""
        (pid,) = self.engine.live("listener")
        return pid

    def connect(self, source: str = FRIEND, *, implicit: bool = False) -> socket.socket:
        """A connection from an address."""
        port = self.implicit if implicit else self.port
        opened = socket.create_connection((self.address, port), READ_S, source_address=(source, 0))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    def talk(self, source: str = FRIEND, *, greeting: bool = True) -> Talk:
        """The same, for a client that reads replies."""
        return Talk(self.port, host=self.address, source=source, greeting=greeting, timeout=READ_S)

    def heard(self, octets: bytes) -> bytes:
        """Note what a client was told; the octets again."""
        self.told += [id.decode() for id in QUEUED.findall(octets)]
        return octets

    def measured(self, case: str, wanted: str, tried: Callable[[], str], *, times: int = 1) -> Row:
        """Try a case.

        Args:
            case: what the client does.
            wanted: the outcome by the documented policy.
            tried: brings it about, waits for the outcome and tells it in the words of ``wanted``.
            times: how often that is done in it.
        """
        pid = self.pid
        meter = Meter(pid)
        findings: tuple[str, ...] = ()
        try:
            seen = tried()
        except (AssertionError, OSError, EOFError) as error:
            seen, findings = "no outcome", (f"{type(error).__name__}: {error}".splitlines()[0],)
        seconds = meter.seconds
        if self.engine.live("listener") != [pid]:
            return Row(
                case=case, wanted=wanted, seen=seen, tried=times, seconds=seconds,
                findings=(*findings, "the listener did not survive it"),
            )  # fmt: skip
        return Row(
            case=case, wanted=wanted, seen=seen, tried=times, seconds=seconds, cpu_s=meter.cpu_s,
            memory=meter.memory, findings=findings,
        )  # fmt: skip

    def good(self, name: str = "good") -> bool:
        """Whether a good client's mail is taken now."""
        with self.talk() as client:
            client.ehlo()
            reply = client.mail(f"{name}@friends.test")
        self.heard(f"{reply.code} {reply.text}\r\n".encode())
        return reply.code == 250

    def open(self) -> int:
        """Connections of the listener; two of its sockets listen."""
        return sockets(self.pid) - 2

    def settled(self) -> None:
        """Wait until it has no connection."""
        eventually(lambda: self.open() == 0, DEADLINE_S, what="an end of all connections")

    def let_go(self) -> Row:
        """Whether every connection is closed in the end."""
        left = 0

        def none() -> bool:
            nonlocal left
            left = self.open()
            return left == 0

        def tried() -> str:
            with suppress(AssertionError):
                eventually(none, DEADLINE_S, what="an end of all connections", interval=0.05)
            return f"{left or 'none'} open"

        return self.measured(LET_GO, "none open", tried)

    def accounted(self) -> Row:
        """Whether each 250 is a message, each message a 250, and nobody evil in any."""
        wanted = "every message that a client was told of, no other, nothing evil"

        def tried() -> str:
            ids = {row.id for row in self.engine.rows("SELECT id FROM messages")}
            told = set(self.told)
            evil = self.engine.rows(
                "SELECT 1 FROM messages AS m JOIN recipients AS r ON r.message_id = m.id"
                " WHERE m.sender LIKE '%evil%' OR r.address LIKE '%evil%'"
            )
            if evil or told - ids or len(ids - told) > self.doubtful:
                return (
                    f"{len(told - ids)} are missing, {len(ids - told)} nobody was told of,"
                    f" {len(evil)} recipients are evil"
                )
            return wanted

        return self.measured(ACCOUNTED, wanted, tried, times=len(self.told))


@contextmanager
def gate(folder: Path, **listener: object) -> Iterator[Gate]:
    """A gate whose engine runs; ended afterwards, its spool checked.

    Args:
        folder: an empty directory.
        listener: settings of its table.

    Raises:
        AssertionError: the spool is not sound afterwards.
    """
    (address,) = loopback_addresses()
    port, implicit = free_port(address), free_port(address)
    issued = trustme.CA().issue_cert("mx.test")
    chain, key, users = folder / "chain.pem", folder / "key.pem", folder / "users"
    issued.cert_chain_pems[0].write_to_path(str(chain))
    issued.private_key_pem.write_to_path(str(key))
    users.write_text(f"{USER}:{hash_password(PASSWORD)}\n", encoding="utf-8")
    users.chmod(0o600)
    settings: dict[str, dict[str, object]] = {
        "delivery": {"mode": "relay"},
        "relay": {"hosts": ["127.0.0.1:9"], "tls": "none"},
        "sites": {"suspend": ["1h"]},
        "listener": {
            "bind": [f"{address}:{port}", f"{address}:{implicit}/tls"], "tls_cert": str(chain),
            "tls_key": str(key), "auth_file": str(users), "allow_networks": ["127.77.0.0/16"],
            "proxy_networks": [f"{PROXY}/32"], "max_size": SIZE, **listener,
        },
    }  # fmt: skip
    with Network() as network, Engine(network, folder, workers=1, settings=settings) as engine:
        yield Gate(engine, address, port, implicit)
        assert engine.stop() == 0
        assert engine.ms.check() == []


def until_closed(opened: socket.socket) -> bytes:
    """Everything until the server closes, or cuts."""
    came = b""
    with suppress(ConnectionError):
        while data := opened.recv(65536):
            came += data
    return came


def codes(octets: bytes) -> list[int]:
    """The codes of replies, in order."""
    return [int(line[:3]) for line in octets.split(b"\r\n") if line[3:4] == b" "]
