"""What a worker process finds out about the network for ``mailstrom doctor``; its form on pipes.

One JSON object in each direction: the question goes down the process's standard input, the answer
comes up its standard output. Outgoing sockets are the workers' affair, so whoever asks knows these
values and the worker's name, and nothing else. Words of remote servers stand here as they came.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Question(Struct, frozen=True, kw_only=True):
    """What to look at.

    Args:
        config: the effective configuration, as ``config.to_json`` writes it.
        probe: a domain; its mail hosts are connected to, unless there is a relay.
        seconds: after which the answer is to be there, as far as it is known by then.
        network: whether to look beyond the listener's own ports.
    """

    config: msgspec.Raw
    probe: str
    seconds: float
    network: bool = True


class NameserverAnswer(Struct, frozen=True, kw_only=True):
    """How a nameserver answered one question; ``None`` milliseconds: it did not, or was not asked.

    Args:
        udp_error, tcp_error: why not; None where it was not asked that way.
        tls: over TLS, in the place of TCP.
    """

    server: str
    udp_ms: float | None = None
    udp_error: str | None = None
    tcp_ms: float | None = None
    tcp_error: str | None = None
    tls: bool = False


class Name(Struct, frozen=True, kw_only=True):
    """The addresses of a name.

    Args:
        error: why nobody knows; None and no addresses: it has none.
    """

    name: str
    addresses: list[str] = []
    error: str | None = None


class Source(Struct, frozen=True, kw_only=True):
    """An address that our mail comes from.

    Args:
        public: whether it is one of the public Internet.
        local: whether this machine connects from it; else it is only what our name says.
        names: what its PTR records say.
        confirmed: those of them that lead back to the address.
        error: why nobody knows.
    """

    address: str
    public: bool
    local: bool
    names: list[str] = []
    confirmed: list[str] = []
    error: str | None = None


class Host(Struct, frozen=True, kw_only=True):
    """A mail host that was connected to.

    Args:
        stage: how far it went: connect, greeting, ehlo, starttls; ``done``: no trouble.
        error: the trouble, for a person.
        banner: the greeting's lines, where they were read.
        tls: version that was reached, or None.
        starttls, auth: what it offers; None where it was not asked.
    """

    host: str
    address: str
    port: int
    stage: str
    ms: float
    error: str | None = None
    banner: str | None = None
    tls: str | None = None
    starttls: bool | None = None
    auth: list[str] | None = None


class Port(Struct, frozen=True, kw_only=True):
    """A port of our own listener, as a client meets it.

    Args:
        bind: as it is configured.
        stage: how far it went: connect, greeting, ehlo, starttls; ``done``: no trouble.
        error: the trouble, for a person.
        connected: whether anything took the connection.
        banner: the greeting's lines, where they were read.
        tls: version that was reached, or None.
        certificate: PEM, where it was shown.
        auth: what is offered at the end, under TLS where there is any.
    """

    bind: str
    stage: str
    ms: float = 0.0
    error: str | None = None
    connected: bool = False
    banner: str | None = None
    tls: str | None = None
    certificate: str | None = None
    auth: list[str] = []


class Outside(Struct, frozen=True, kw_only=True):
    """The network, seen from here.

    Args:
        nameservers: in their order; empty where there are none to ask (``trouble`` says why).
        hostname: our configured name.
        hosts: the relay's, or some of the probe's.
        no_hosts: why there is no host to connect to.
        ports: of our own listener.
        trouble: what could not be looked at at all, and why.
    """

    nameservers: list[NameserverAnswer] = []
    hostname: Name | None = None
    sources: list[Source] = []
    hosts: list[Host] = []
    no_hosts: str | None = None
    ports: list[Port] = []
    trouble: list[str] = []


def encode(value: Struct) -> bytes:
    """One JSON object."""
    return msgspec.json.encode(value)


def question(text: bytes) -> Question:
    """The question on a pipe.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return msgspec.json.decode(text, type=Question)


def outside(text: bytes) -> Outside:
    """The answer on a pipe.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return msgspec.json.decode(text, type=Outside)
