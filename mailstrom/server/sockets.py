"""Listening sockets: bound once, by whoever starts the server, for one port alone.

Contract: ``listen`` gives a socket that listens, or says which address and port cannot be had and
why. It is exclusive: no SO_REUSEPORT, so a second server on the same port is an error at its start
and never takes half of the connections. SO_REUSEADDR is set, so that a restart does not wait for
connections of before. ``::`` is IPv6 alone; name ``0.0.0.0`` beside it for both. Not inheritable:
who hands it to a child says so.

Must not know: SMTP, event loops.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from mailstrom.errors import MailstromError

BACKLOG = 4096
"""Connections that wait to be accepted; the system's own limit (somaxconn) may be lower."""

_WHY = {
    errno.EADDRINUSE: "something listens there already; stop it, or take another port",
    errno.EACCES: "a port below 1024 needs root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EAFNOSUPPORT: "this machine has no IPv6",
}


class CannotListen(MailstromError, OSError):
    """An address and port cannot be listened on; says which, and why.

    Args:
        error: what the system said.
        host: the address.
        port: the port.
    """

    def __init__(self, error: OSError, host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        number = error.errno or 0
        why = os.strerror(number).lower() if number > 0 else str(error.strerror or error)
        hint = _WHY.get(number)
        text = f"cannot listen on {shown}:{port}: {why}" + (f" ({hint})" if hint else "")
        super().__init__(number, text)
        self.host = host
        self.port = port

    def __str__(self) -> str:
        return str(self.args[1])


def read_bind(bind: str) -> tuple[str, int]:
    """The address and the port of ``127.0.0.1:25`` or ``[::1]:25``.

    Raises:
        ValueError: it is neither; says what it should be.
    """
    host, _, digits = bind.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # whose last group would be taken for the port
    known = digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535
    try:
        ipaddress.ip_address(host)
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"{bind!r} is no address with a port: write 127.0.0.1:2525 or [::1]:2525")
    return host, int(digits)


def listen(bind: str, *, backlog: int = BACKLOG) -> socket.socket:
    """Bind and listen.

    Args:
        bind: ``address:port``, an IPv6 address in brackets; port 0 takes a free one.
        backlog: connections that may wait to be accepted.

    Returns:
        The socket; it does not block.

    Raises:
        ValueError: ``bind`` cannot be read.
        CannotListen: the system refuses.
    """
    return listen_on(*read_bind(bind), backlog=backlog)


def listen_on(host: str, port: int, *, backlog: int = BACKLOG) -> socket.socket:
    """Bind and listen, as :func:`listen` does, on a numeric address.

    Raises:
        CannotListen: the system refuses.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise CannotListen(error, host, port) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(_address(host, port))
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise CannotListen(error, host, port) from error
    return listener


def _address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """As the system takes it; fe80::1%eth0 has a scope."""
    name, _, scope = host.partition("%")
    if not scope:
        return host, port
    return name, port, 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
