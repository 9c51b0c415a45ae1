"""The values behind ``[listener]``: addresses to bind, networks, and the server's TLS.

Contract: what is wrong raises ``ValueError`` or ``OSError`` with a sentence that ``checks`` puts
behind the key's name. ``server_context`` reads its files at each call, so that a new certificate
needs no restart. Binds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, NamedTuple

from mailstrom.config import names
from mailstrom.config.settings import Listener
from mailstrom.regular import beginning

if TYPE_CHECKING:
    from ssl import SSLContext

Network = IPv4Network | IPv6Network

_TLS = "/tls"


class Bind(NamedTuple):
    """One address to listen at.

    Args:
        address: numeric.
        implicit_tls: TLS from the first byte.
    """

    address: str
    port: int
    implicit_tls: bool

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


def bind(entry: str, *, implicit_tls: bool = False) -> Bind:
    """One entry of ``[listener] bind``.

    Raises:
        ValueError: it is no address with a port.
    """
    plain, slash, word = entry.partition("/")
    if slash and slash + word != _TLS:
        raise ValueError(f'{entry!r}: behind the port nothing but "/tls" may stand')
    host, port = names.host_port(plain)
    if names.ip(host) is None or port is None:
        raise ValueError(
            f'{entry!r} is no address with a port: write "0.0.0.0:25", "[::]:587" or'
            ' "0.0.0.0:465/tls"'
        )
    return Bind(host, port, implicit_tls or plain != entry)


def binds(listener: Listener) -> tuple[Bind, ...]:
    """Where to listen, in the order of the configuration.

    Raises:
        ValueError: as ``bind``.
    """
    return tuple(bind(entry, implicit_tls=listener.implicit_tls) for entry in listener.bind)


def networks(entries: Sequence[str]) -> tuple[Network, ...]:
    """The networks of a list; an address alone is itself.

    Raises:
        ValueError: an entry is none, or names a host in a network.
    """
    return tuple(_network(entry) for entry in entries)


def _network(entry: str) -> Network:
    try:
        return ip_network(entry)
    except ValueError:
        pass
    try:
        meant = ip_network(entry, strict=False)
    except ValueError:
        raise ValueError(
            f'{entry!r} is no network: write "192.0.2.0/24", "2001:db8::/32" or one address'
        ) from None
    raise ValueError(f'{entry!r} is an address inside a network: write "{meant}"')


def open_to_all(network: Network) -> bool:
    """Whether so large a part of the Internet is in a network that nobody owns it."""
    return network.prefixlen <= (8 if network.version == 4 else 16) and not network.is_private


def server_context(listener: Listener) -> SSLContext | None:
    """The TLS that is offered to clients; None without a certificate.

    Raises:
        OSError: a file cannot be read, or certificate and key do not belong together; ``filename``
            is the one at fault, where that is known.
    """
    if listener.tls_cert is None:
        return None
    import ssl  # here: whoever only reads the configuration does without

    for path in filter(None, (listener.tls_cert, listener.tls_key)):
        try:
            beginning(path, 1)  # a pipe would be waited for
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An empty password: a key that has one is an error, and nobody is asked on the terminal.
    context.load_cert_chain(listener.tls_cert, listener.tls_key, password="")
    return context
