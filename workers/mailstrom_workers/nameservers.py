"""Whom the resolver asks, how, and what went wrong there in words for a person.

Beside the resolver the only engine module that knows dnspython. Contract: nameservers are asked in
their order; plain ones by UDP, and by TCP where an answer does not fit (RFC 1035 section 4.2, RFC
7766) or always; over TLS (RFC 7858) only behind a handshake in which the certificate checks and has
the configured name. TLS is never relaxed: a server that cannot do it is a server that fails. So is
one whose answer is cut off (TC) where nothing limits its length: what is missing could be anything,
and an empty one is no "there are none" (RFC 2181 section 9).

Must not know: what an answer means for mail.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Any

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.inet
import dns.message
import dns.nameserver
import dns.resolver

from mailstrom.errors import ConfigError

DNS_PORT = 53
DNS_TLS_PORT = 853  # RFC 7858 section 3.1, which forbids TLS on port 53

Address = tuple[str, int]


class _TLSFailed(OSError):
    """No TLS connection; dnspython goes on with the next nameserver after an OSError."""


class _NoHandshake(dns.exception.Timeout):
    """Silence where TLS should begin; the nameserver may have another turn."""


def _whole(response: dns.message.Message) -> dns.message.Message:
    """An answer that came over a stream.

    Raises:
        dns.message.Truncated: it is marked as cut off; dnspython goes on with the next nameserver.
    """
    if response.flags & dns.flags.TC:
        raise dns.message.Truncated(message=response)  # type: ignore[no-untyped-call]
    return response


class _Nameserver(dns.nameserver.Do53Nameserver):
    """DNS by UDP, and by TCP where that does not fit."""

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: Any,  # dnspython's own type is private to it
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """Ask once; ``max_size`` means by TCP."""
        response = await super().async_query(
            request,
            timeout,
            source,
            source_port,
            max_size,
            backend,
            one_rr_per_rrset,
            ignore_trailing,
        )
        return _whole(response) if max_size else response


class _TCPNameserver(_Nameserver):
    def is_always_max_size(self) -> bool:
        return True


class _TLSNameserver(dns.nameserver.DoTNameserver):
    """DNS over TLS with one context for all questions: reading authorities takes milliseconds."""

    def __init__(self, address: str, port: int, hostname: str, context: ssl.SSLContext) -> None:
        super().__init__(address, port, hostname)
        self._name = hostname
        self._context = context

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: Any,  # dnspython's own type is private to it
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """Connect, shake hands, ask once."""
        deadline = asyncio.get_running_loop().time() + timeout
        family = dns.inet.af_for_address(self.address)
        where = (self.address, self.port)
        try:
            connected = await backend.make_socket(
                family, socket.SOCK_STREAM, 0, None, where, timeout, self._context, self._name
            )
        except ssl.SSLCertVerificationError as error:
            raise _TLSFailed(
                f"its certificate is refused ({error.verify_message.rstrip('.')}); it must be for"
                f" {self._name!r}, from an authority that this machine trusts"
            ) from error
        except ssl.SSLError as error:
            raise _TLSFailed(f"it does not speak TLS ({error.reason or error})") from error
        except (ConnectionResetError, EOFError) as error:
            raise _TLSFailed("it closed the connection in the TLS handshake") from error
        except dns.exception.Timeout as error:
            raise _NoHandshake from error
        async with connected as stream:
            response = await dns.asyncquery.tls(
                request,
                self.address,
                timeout=max(deadline - asyncio.get_running_loop().time(), 0.001),
                port=self.port,
                one_rr_per_rrset=one_rr_per_rrset,
                ignore_trailing=ignore_trailing,
                sock=stream,
            )
        return _whole(response)


def stub_resolver(
    nameservers: Sequence[Address] | None,
    timeout: float,
    *,
    tcp: bool = False,
    tls: bool = False,
    tls_hostname: str | None = None,
    tls_ca_file: str | None = None,
) -> dns.asyncresolver.Resolver:
    """What asks these nameservers, in their order.

    Args:
        nameservers: (ip, port) pairs, or None for the system's.
        timeout: seconds for one question, all nameservers together.
        tcp: never by UDP.
        tls: DNS over TLS; port 53 then means 853.
        tls_hostname: name in the nameservers' certificate.
        tls_ca_file: CA certificates to trust instead of the system's.

    Raises:
        ConfigError: no usable system configuration, TLS without nameservers or name, unreadable
            certificates.
    """
    if nameservers is None:
        stub = _system(tcp=tcp, tls=tls)
    else:
        stub = dns.asyncresolver.Resolver(configure=False)
        context = _context(tls_ca_file) if tls else None
        stub.nameservers = [
            _nameserver(ip, port, tcp, tls_hostname, context) for ip, port in nameservers
        ]
    # Every server has its turn within the lookup's time, and a lost datagram a second chance.
    stub.timeout = timeout / min(max(len(stub.nameservers), 2), 4)
    stub.lifetime = timeout
    return stub


def _system(*, tcp: bool, tls: bool) -> dns.asyncresolver.Resolver:
    if tls:
        raise ConfigError("[dns] tls needs nameservers: name them, or a resolver by word")
    try:
        stub = dns.asyncresolver.Resolver(configure=True)
    except dns.resolver.NoResolverConfiguration as error:
        raise ConfigError(
            f"the system names no DNS servers ({error}); set [dns] nameservers"
        ) from error
    kind = _TCPNameserver if tcp else _Nameserver
    stub.nameservers = [kind(str(ip), stub.port) for ip in stub.nameservers]
    return stub


def _nameserver(
    ip: str, port: int, tcp: bool, hostname: str | None, context: ssl.SSLContext | None
) -> dns.nameserver.Nameserver:
    if context is None:
        return (_TCPNameserver if tcp else _Nameserver)(ip, port)
    if hostname is None:
        raise ConfigError("[dns] tls needs tls_hostname: the name in the nameservers' certificate")
    return _TLSNameserver(ip, DNS_TLS_PORT if port == DNS_PORT else port, hostname, context)


def _context(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"{ca_file}: certificates for DNS over TLS: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8310 section 8.2 by way of RFC 9325
    context.set_alpn_protocols(["dot"])
    return context


def reasons(error: Exception) -> str:
    """Why nobody answered, nameserver by nameserver, each said once."""
    told = getattr(error, "kwargs", {}).get("errors") or ()
    each = dict.fromkeys(f"nameserver {where}: {_reason(what)}" for where, _, _, what, _ in told)
    return "; ".join(each) or str(error) or type(error).__name__


def _reason(what: object) -> str:
    if isinstance(what, _NoHandshake):
        return "no TLS handshake in time; does it offer DNS over TLS on this port?"
    if isinstance(what, dns.exception.Timeout):
        return "no answer in time"
    if isinstance(what, dns.message.Truncated):
        return "its answer is cut off (TC), though nothing limits its length"
    if isinstance(what, OSError) and what.errno:
        return os.strerror(what.errno)
    return str(what)
