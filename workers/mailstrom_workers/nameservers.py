"""Whom the resolver asks, how, and what went wrong there in words for a person.

Contract: nameservers are asked in their order; plain ones by UDP, and by TCP where an answer does
not fit (RFC 1035 section 4.2, RFC 7766) or always; over TLS (RFC 7858) only behind a handshake in
which the certificate checks and has the configured name. TLS is never relaxed: a server that cannot
do it is a server that fails. So is one whose answer is cut off (TC) where nothing limits its
length: what is missing could be anything, and an empty one is no "there are none" (RFC 2181
section 9). A server that is silent has another turn, with growing pauses; one that failed has none
for this question. Each datagram has a socket of its own, so a port that nobody can guess, connected
to the server, so that the kernel drops what comes from elsewhere (RFC 5452 section 9); what fits
the question neither by id nor by name is passed over, so many times: then somebody guesses, and the
question goes by TCP.

The system's own are those that ``resolvconf`` names at the time of the question. Must not know:
what an answer means for mail, nor how a message is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mailstrom.config.authorities import authorities
from mailstrom.errors import ConfigError
from mailstrom_workers import dnswire, resolvconf
from mailstrom_workers.dnswire import Kind, Response, Unreadable
from mailstrom_workers.resolvconf import ResolvConf

DNS_PORT = 53
DNS_TLS_PORT = 853  # RFC 7858 section 3.1, which forbids TLS on port 53
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
_ROUNDS = 3
LONGEST_FIRST_S = 1.0
"""A lost datagram costs the first patience, not half of the question's time; each round is twice as
patient as the one before, so that a slow nameserver is heard as well."""
_LONGEST = 65535  # octets of a datagram
MOST_STRANGE = 50
"""So many datagrams that are no answer to it may come to one question: more were a chance to hit
its id, of 65,536 (RFC 5452 section 9.1)."""
_numbers = random.SystemRandom()
_LATE = "no answer in time"
_MUTE = "no TLS handshake in time; does it offer DNS over TLS on this port?"
_CUT = "its answer is cut off (TC), though nothing limits its length"

Address = tuple[str, int]


class Unanswered(Exception):
    """Nobody gave a usable answer; says why, nameserver by nameserver."""


class _Failed(Exception):
    """A nameserver that is not asked again for this question."""


class _Guessed(Exception):
    """Somebody sends answers to what was not asked."""


class _Tls(NamedTuple):
    """What is demanded of a nameserver over TLS."""

    context: ssl.SSLContext
    hostname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nameserver:
    """One server.

    Args:
        tcp: never asked by UDP.
        tls: None: in clear.
    """

    address: str
    port: int
    tcp: bool = False
    tls: _Tls | None = None

    def __str__(self) -> str:
        return f"{'Do53' if self.tls is None else 'DoT'}:{self.address}@{self.port}"

    @property
    def streams(self) -> bool:
        """Whether it is asked over a stream from the beginning."""
        return self.tcp or self.tls is not None

    def _socket(self, kind: socket.SocketKind) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        made = socket.socket(family, kind)
        made.setblocking(False)
        return made

    async def by_datagram(self, asked: bytes, seconds: float) -> Response:
        """Ask by UDP; the answer may be cut off.

        Raises:
            TimeoutError: nobody answered in time, or nobody listens, perhaps for a moment.
            OSError: it cannot be reached.
            _Guessed: somebody tries to answer for it.
        """
        with self._socket(socket.SOCK_DGRAM) as datagrams:
            try:
                datagrams.connect((self.address, self.port))
                datagrams.send(asked)
                return await _heard(datagrams, asked, seconds)
            except ConnectionRefusedError as error:
                raise TimeoutError(os.strerror(errno.ECONNREFUSED)) from error

    async def by_stream(self, asked: bytes, seconds: float) -> Response:
        """Ask over TCP, or TLS.

        Raises:
            TimeoutError: nobody answered in time.
            OSError: it cannot be reached, or broke the connection off.
            _Failed: it did not answer as it must; in words for a person.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                reader, writer = await self._connect()
        except TimeoutError as error:
            raise TimeoutError(_LATE if self.tls is None else _MUTE) from error
        try:
            async with asyncio.timeout_at(deadline):
                writer.write(len(asked).to_bytes(2, "big") + asked)
                size = int.from_bytes(await reader.readexactly(2), "big")
                response = dnswire.read(await reader.readexactly(size), asked)
        except TimeoutError as error:
            raise TimeoutError(_LATE) from error
        except Unreadable as error:
            raise _Failed(f"its answer cannot be read: {error}") from error
        except asyncio.IncompleteReadError as error:
            raise _Failed("it closed the connection without an answer") from error
        finally:
            writer.transport.abort()
        if response is None:
            raise _Failed("its answer is not to what was asked")
        if response.truncated:
            raise _Failed(_CUT)
        return response

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = self.tls
        connection = self._socket(socket.SOCK_STREAM)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (self.address, self.port))
            if tls is None:
                return await asyncio.open_connection(sock=connection)
            return await asyncio.open_connection(
                sock=connection, ssl=tls.context, server_hostname=tls.hostname
            )
        except BaseException as error:
            connection.close()
            said = None if tls is None else _tls_trouble(error, tls)
            if said is None:
                raise
            raise _Failed(said) from error


async def _heard(datagrams: socket.socket, asked: bytes, seconds: float) -> Response:
    """The answer to a question. Two calls of the loop and no layers: a site costs three of these.

    Raises:
        TimeoutError: it did not come in time.
        OSError: what the socket says.
        _Guessed: too much came that is no answer.
    """
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[Response] = loop.create_future()
    strange = 0

    def hear() -> None:
        nonlocal strange
        if heard.done():
            return
        response = None
        try:
            wire = datagrams.recv(_LONGEST)
            with contextlib.suppress(Unreadable):  # anybody may have sent it
                response = dnswire.read(wire, asked)
        except (BlockingIOError, InterruptedError):
            return
        except Exception as error:
            heard.set_exception(error)
            return
        if response is not None:
            heard.set_result(response)
            return
        strange += 1
        if strange > MOST_STRANGE:
            heard.set_exception(_Guessed)

    def expire() -> None:
        if not heard.done():
            heard.set_exception(TimeoutError(_LATE))

    descriptor = datagrams.fileno()
    loop.add_reader(descriptor, hear)
    timer = loop.call_later(seconds, expire)
    try:
        return await heard
    finally:
        timer.cancel()
        loop.remove_reader(descriptor)


def _tls_trouble(error: BaseException, tls: _Tls) -> str | None:
    """What went wrong in a handshake, where that is what went wrong."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is refused ({error.verify_message.rstrip('.')}); it must be for"
            f" {tls.hostname!r}, from an authority that this machine trusts"
        )
    if isinstance(error, ssl.SSLError):
        return f"it does not speak TLS ({error.reason or error})"
    if isinstance(error, ConnectionResetError | EOFError):
        return "it closed the connection in the TLS handshake"
    return None


class Nameservers:
    """Servers that are asked in their order.

    Args:
        each: the servers, at least one.
        timeout: seconds for one question, all of them together.
        system: where the system names others, later.

    Attributes:
        each: the servers, as they were known last.
        first_s: after so long each was given a chance; longer is patience with a lost datagram or a
            slow server, up to ``LONGEST_FIRST_S``.
    """

    def __init__(
        self, each: Sequence[Nameserver], timeout: float, system: ResolvConf | None = None
    ) -> None:
        self._timeout = timeout
        self._system = system
        self._use(each)

    def _use(self, each: Sequence[Nameserver]) -> None:
        self.each, timeout = tuple(each), self._timeout
        # Every server has its turn within the question's time, and a lost datagram another chance.
        turns = min(len(self.each), 4)
        self._turn_s = timeout / max(turns, 2)  # over a stream
        self._patience_s = timeout / (turns * (2**_ROUNDS - 1))
        first_s = self._turn_s if self.streams else self._patience_s * turns
        self.first_s = min(first_s, LONGEST_FIRST_S)

    @property
    def streams(self) -> bool:
        """Whether they are asked over streams from the beginning."""
        return any(server.streams for server in self.each)

    @classmethod
    def of(
        cls,
        named: Sequence[Address] | None,
        timeout: float,
        *,
        tcp: bool = False,
        tls: bool = False,
        tls_hostname: str | None = None,
        tls_ca_file: str | None = None,
    ) -> Nameservers:
        """Nameservers by configuration.

        Args:
            named: (ip, port) pairs, or None for the system's.
            timeout: seconds for one question, all nameservers together.
            tcp: never by UDP.
            tls: DNS over TLS; port 53 then means 853.
            tls_hostname: name in the nameservers' certificate.
            tls_ca_file: CA certificates to trust instead of the system's.

        Raises:
            ConfigError: TLS without nameservers or name, unreadable certificates.
        """
        if named is None:
            if tls:
                raise ConfigError("[dns] tls needs nameservers: name them, or a resolver by word")
            system = ResolvConf(resolvconf.PLACE, time.monotonic)
            ips = system.changed() or resolvconf.DEFAULT
            return cls(_plain(ips, tcp=tcp), timeout, system)
        demanded = _demanded(tls_hostname, tls_ca_file) if tls else None
        each = [
            Nameserver(
                address=ip,
                port=DNS_TLS_PORT if tls and port == DNS_PORT else port,
                tcp=tcp,
                tls=demanded,
            )
            for ip, port in named
        ]
        return cls(each, timeout)

    async def ask(self, name: str, kind: Kind, deadline: float) -> Response:
        """The first usable answer.

        Args:
            name: an A-label host name without the final dot.
            kind: what records.
            deadline: loop time when it must be there.

        Returns:
            No error or NXDOMAIN, whole.

        Raises:
            Unanswered: nobody gave one.
        """
        loop = asyncio.get_running_loop()
        told: dict[str, None] = {}
        ips = None if self._system is None else self._system.changed()
        if ips is not None:
            self._use(_plain(ips, tcp=self.streams))
        left, pause_s, patience_s = list(self.each), FIRST_PAUSE_S, self._patience_s
        while left:
            for server in tuple(left):
                asked = dnswire.question(_numbers.getrandbits(16), name, kind)
                try:
                    response = await self._ask_one(server, asked, deadline, patience_s)
                except TimeoutError as error:  # it has another turn
                    told[f"nameserver {server}: {error}"] = None
                except (OSError, _Failed) as error:
                    told[f"nameserver {server}: {_words(error)}"] = None
                    left.remove(server)
                else:
                    return response
                if loop.time() >= deadline:
                    raise Unanswered("; ".join(told))
            if left:
                await asyncio.sleep(min(pause_s, max(deadline - loop.time(), 0.0)))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                patience_s *= 2
        raise Unanswered("; ".join(told))

    async def _ask_one(
        self, server: Nameserver, asked: bytes, deadline: float, patience_s: float
    ) -> Response:
        loop = asyncio.get_running_loop()
        response: Response | None = None
        if not server.streams:
            seconds = min(patience_s, deadline - loop.time())
            with contextlib.suppress(_Guessed):
                response = await server.by_datagram(asked, seconds)
        if response is None or response.truncated:
            seconds = min(self._turn_s, deadline - loop.time())
            response = await server.by_stream(asked, seconds)
        if response.rcode not in (dnswire.NOERROR, dnswire.NXDOMAIN):
            raise _Failed(dnswire.RCODES.get(response.rcode, f"response code {response.rcode}"))
        if response.lame:
            raise _Failed("it only names other servers (a referral)")
        return response


def _plain(ips: Sequence[str], *, tcp: bool) -> list[Nameserver]:
    return [Nameserver(address=ip, port=DNS_PORT, tcp=tcp) for ip in ips]


def _demanded(hostname: str | None, ca_file: str | None) -> _Tls:
    """What TLS must prove; one context for all questions, as reading authorities is slow."""
    if hostname is None:
        raise ConfigError("[dns] tls needs tls_hostname: the name in the nameservers' certificate")
    try:
        context = ssl.create_default_context(cadata=authorities(ca_file) if ca_file else None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{ca_file}: certificates for DNS over TLS: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8310 section 8.2 by way of RFC 9325
    context.set_alpn_protocols(["dot"])
    return _Tls(context, hostname)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
