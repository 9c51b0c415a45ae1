"""The values around opening a session: where to, how, what was learnt, why it failed.

Contract: frozen values, no behaviour beyond a check of what would reach the wire. Re-exported by
``wire``, which fills them.

Must not know: sockets, aiosmtplib.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp import commands
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import Dialect
from mailstrom.types import Stage

Tls = Literal["none", "opportunistic", "required", "implicit"]
Cause = Literal[
    "reply", "closed", "timeout", "garbage", "refused", "unreachable", "tls", "auth", "local"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One address of one host.

    Args:
        host: name as routed; the reference name for TLS.
        address: IPv4 or IPv6 address as text.
        port: TCP port.
    """

    host: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPolicy:
    """How a session is to be opened.

    Args:
        ehlo_name: FQDN or address literal for EHLO.
        timeouts: seconds per stage.
        source: local address to connect from, or None.
        tls: ``opportunistic`` goes on in clear if STARTTLS is not offered or refused by a reply.
        verify: chain and name must check against ``ca_file`` (None: the system's authorities).
        min_version: ``"1.2"`` or ``"1.3"``.
        username, password: for AUTH; the password is an access token with XOAUTH2.
        mechanism: SASL mechanism to insist on, or None for the best one offered.
        plaintext_auth: AUTH may run without TLS.
        dialect: what of the server's extensions may be used.

    Raises:
        ValueError: an EHLO name that is no word.
    """

    ehlo_name: str
    timeouts: Timeouts = field(default_factory=Timeouts)
    source: str | None = None
    tls: Tls = "opportunistic"
    verify: bool = False
    ca_file: str | None = None
    min_version: str = "1.2"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    mechanism: str | None = None
    plaintext_auth: bool = False
    dialect: Dialect = field(default_factory=Dialect)

    def __post_init__(self) -> None:
        commands.ehlo(self.ehlo_name)

    @property
    def strict(self) -> SessionPolicy:
        """The same with TLS that proves the host's name, or no session (RFC 8689)."""
        tls: Tls = "implicit" if self.tls == "implicit" else "required"
        return replace(self, tls=tls, verify=True)

    @property
    def tls_wanted(self) -> str:
        """The word for ``sessions.tls_wanted``: ``tls``, with ``+verify`` where asked for."""
        return f"{self.tls}+verify" if self.verify and self.tls != "none" else self.tls


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """What is known about a connection, for the ``sessions`` view.

    Args:
        source: local address in use, or None before the connect.
        ehlo: lines of the last EHLO reply, or None.
        tls_reached: ``none``, ``encrypted`` or ``verified``.
        tls_peer: the certificate's names, short, or None.
    """

    host: str
    address: str
    port: int
    source: str | None = None
    ehlo: str | None = None
    tls_wanted: str
    tls_reached: Literal["none", "encrypted", "verified"] = "none"
    tls_version: str | None = None
    tls_cipher: str | None = None
    tls_peer: str | None = None
    tls_verified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFailure:
    """Why no session came to be.

    Args:
        stage: where: connect, greeting, ehlo, starttls or auth.
        cause: ``reply`` = the server said no (``reply``); ``auth`` = credentials not accepted or
            not usable; ``local`` = this machine's trouble, not the peer's.
        reply: the server's own words, where there were any.
        text: one sentence for a person.
        facts: as far as they were learnt.
        untrusted: TLS that proves the host's name is not to be had: it is not offered, is refused
            for good, or the certificate does not verify.
    """

    stage: Stage
    cause: Cause
    reply: Reply | None
    text: str
    facts: SessionFacts
    untrusted: bool = False
