"""The honest servers, as they are set up for mixed mail, and what their own logs complain of.

Contract. Each ``House`` is one server for one domain: what it must do with each kind of letter
where that is not the rule, and how its log tells how contents came and what was wrong with us.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.support.chasquid import ChasquidServer
from tests.support.exim import EximServer
from tests.support.opensmtpd import OpenSMTPDServer
from tests.support.postfix import Peer, PostfixServer, Received
from tests.support.sockets import eventually

LIMIT_MIB = 5
LIMIT = LIMIT_MIB << 20
"""The largest content each of them takes, and says so."""

UNKNOWN = 9
"""How many local parts, no0 and so on, each refuses besides ``no``."""

TLS = tuple[bytes, bytes]
BOUNCED = "failed bounced"
UNSUPPORTED = "failed unsupported"
NO_TLS = "deferred tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """One server.

    Args:
        name: what rows call it.
        server: running.
        received: what it delivered or keeps.
        domain: it takes mail for this one.
        exceptions: kind -> outcome, where it is not delivery.
        complaint: what its log says of a client that breaks the protocol, or vanishes.
        refusal: what its log says where it refuses, as it may be told to.
        framing: of its log: how many contents came by DATA, how many by BDAT.
        chunked: whether it offers CHUNKING.
        probed: what its log says of the look whether it listens; None where it says nothing.
        secured: whether it offers STARTTLS.
        refuses: local part -> code of the reply it gives to RCPT.
        bears: how much pipelining is left of ours when all kinds have gone through.
        later: a sender that it answers 4xx at the end of the content, if it can be told to.
        own: how much of its log speaks only of its own start.
    """

    name: str
    server: Peer
    received: Callable[[], list[Received]]
    domain: str
    complaint: re.Pattern[str]
    refusal: re.Pattern[str]
    framing: Callable[[str], tuple[int, int]]
    chunked: bool = False
    probed: str | None = None
    secured: bool = True
    exceptions: Mapping[str, str] = field(default_factory=dict)
    refuses: Mapping[str, int] = field(default_factory=dict)
    bears: str = "full"
    later: str | None = None
    own: int = 0

    def __post_init__(self) -> None:
        """Wait until its log has told of the look of ours that found it listening."""
        if self.probed is not None:
            eventually(lambda: self.probed in self.server.log(), what=f"{self.probed} in the log")
        object.__setattr__(self, "own", len(self.server.log()))

    def log(self) -> str:
        """What it wrote since it was up."""
        return self.server.log()[self.own :]

    def complaints(self, log: str, *, refusing: bool = False) -> tuple[str, ...]:
        """Lines in which it complains of us.

        Args:
            log: what it wrote meanwhile.
            refusing: it was to refuse something.
        """
        return tuple(
            f"its log: {line.strip()[-200:]}"
            for line in log.splitlines()
            if self.complaint.search(line) or (not refusing and self.refusal.search(line))
        )


_NO_UTF8 = dict.fromkeys(("UTF-8 header fields", "UTF-8 local part"), UNSUPPORTED)
# Both refuse such an address as malformed, 5.1.3 or 5.1.7.
_QUOTED = (
    "quoted local parts", "an @ in a quoted local part", "quoted local part of the sender",
)  # fmt: skip
_NO_QUOTES = dict.fromkeys(_QUOTED, BOUNCED)
# Postfix reads the @ in it as a route (resolve_dequoted_address), and relays for nobody.
_ROUTED = {"an @ in a quoted local part": BOUNCED}
_NOT_SECURED = {"TLS required of the host": NO_TLS}


def _refusals(domain: str) -> dict[str, str]:
    unknown = ("no", *(f"no{number}" for number in range(UNKNOWN)))
    refused = {f"{name}@{domain}": "550 5.1.1 no such user" for name in unknown}
    return {**refused, f"later@{domain}": "450 4.2.1 try later"}


def postfix(address: str, port: int, domain: str, tls: TLS | None) -> House:
    """Postfix with STARTTLS and BDAT; without a certificate one that offers neither, nor SIZE."""
    plain = {"smtpd_discard_ehlo_keywords": "chunking, size, silent-discard"}
    server = PostfixServer(
        address, port, hostname=f"mx1.{domain}", domains=(domain,), tls=tls,
        refuse=_refusals(domain),
        settings={"message_size_limit": str(LIMIT), **({} if tls else plain)},
    )  # fmt: skip
    return House(
        name="Postfix" if tls else "Postfix in clear, DATA only",
        probed="disconnect from",
        server=server, received=server.received, domain=domain, secured=tls is not None,
        exceptions={**_ROUTED, **({} if tls else _NOT_SECURED)},
        complaint=re.compile(
            r"improper command pipelining|lost connection|too many errors|timeout after|bare |"
            r"non-SMTP command|after end-of-message|warning: (?!.*(size limit|close error))|"
            r"fatal:|panic:|TLS library"
        ),
        refusal=re.compile(r"reject:|bounced"),
        framing=lambda log: (_sum(log, "data"), _sum(log, "bdat")), chunked=tls is not None,
        refuses={"no": 550, "later": 450},
    )  # fmt: skip


def exim(address: str, port: int, domain: str, tls: TLS | None) -> House:
    """Exim with STARTTLS and BDAT; without a certificate one that offers neither."""
    server = EximServer(
        address, port, hostname=f"mx1.{domain}", domains=(domain,), tls=tls,
        chunking=tls is not None, refuse=_refusals(domain),
        refuse_content={"later@sender.test": "451 4.3.0 not now"},
        settings={"message_size_limit": str(LIMIT), "smtputf8_advertise_hosts": "*"},
    )  # fmt: skip
    return House(
        name="Exim" if tls else "Exim in clear, DATA only",
        server=server, received=server.received, domain=domain, secured=tls is not None,
        exceptions={} if tls else _NOT_SECURED,
        complaint=re.compile(
            r"synchronization|syntax|unexpected|lost|timed out|timeout|dropped|panic|Panic|failed|"
            r"too many|TLS error|bad |line ending|incomplete|closed"
        ),
        refusal=re.compile(r"rejected"),
        framing=lambda log: (
            len(re.findall(r" <= (?!.* K )", log)), len(re.findall(r" <= .* K ", log))
        ),
        chunked=tls is not None,
        refuses={"no": 550, "later": 450},
        later="later@sender.test",
    )  # fmt: skip


def opensmtpd(address: str, port: int, domain: str, tls: TLS | None, mails: int = 1000) -> House:
    """OpenSMTPD: no PIPELINING, no CHUNKING, no SMTPUTF8; so many messages a connection."""
    server = OpenSMTPDServer(
        address, port, hostname=f"mx1.{domain}", domains=(domain,), tls=tls,
        refuse=_refusals(domain), size=LIMIT, mails=mails,
    )  # fmt: skip
    return House(
        name="OpenSMTPD with TLS" if tls else "OpenSMTPD",
        probed="reason=disconnect",
        server=server, received=server.received, domain=domain, secured=tls is not None,
        exceptions={**_NO_UTF8, **_NO_QUOTES, **_NOT_SECURED},
        complaint=re.compile(
            r"reason=(?!quit)|io-error|timeout|bad-input|fatal|result=\"(500|503|421)"
        ),
        refusal=re.compile(r"failed-command"),
        framing=lambda log: (len(re.findall(r"smtp message msgid", log)), 0),
        refuses={"no": 550, "later": 450},
    )  # fmt: skip


def chasquid(address: str, port: int, domain: str, tls: TLS, users: tuple[str, ...]) -> House:
    """chasquid: STARTTLS, no CHUNKING; the third error of a connection ends it.

    It offers PIPELINING and drops, unread and unanswered, what came behind a final dot in the same
    flight: the first such flight waits its 30 seconds for an answer, and no more are sent.
    """
    server = ChasquidServer(
        address, port, hostname=f"mx1.{domain}", domains=(domain,), tls=tls,
        users=users, refuse_content=("later@sender.test",), megabytes=LIMIT_MIB,
    )  # fmt: skip
    return House(
        name="chasquid",
        server=server, received=server.received, domain=domain,
        exceptions=_NO_QUOTES, bears="transaction",
        complaint=re.compile(r"panic|nknown command|timeout|EOF|reset by|TLS handshake|tls:"),
        refusal=re.compile(r"error: |rejected"),
        framing=lambda log: (len(re.findall(r" queued ip=", log)), 0),
        refuses={"no": 550},
        later="later@sender.test",
    )  # fmt: skip


def _sum(log: str, command: str) -> int:
    """How often a command was taken, over all connections: ``bdat=5``, or 5/7 of seven."""
    return sum(int(found) for found in re.findall(rf"disconnect from.* {command}=(\d+)", log))
