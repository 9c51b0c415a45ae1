"""What the demonstration sends, and what must become of each recipient: known before it starts.

Contract. ``DESTINATIONS`` says how each domain behaves (``servers`` makes it so), ``CASES`` what
kind of message goes where with which outcome, ``CYCLE`` in which order they come, so that a short
run shows the variety too. All recipients of a message share one outcome: a message is then
delivered or failed as a whole, and the two add up to what was accepted. Every address occurs once,
so a server that defers each address once defers each recipient once.

Domains are under ``.example`` (RFC 2606). Must not know: sockets, the spool, how things went.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage

from mailstrom.client.api import SendOptions
from mailstrom.types import Reason, Status

SENDER = "demo@sender.example"
STREAMS = {"receipts": "high", "notices": "normal", "news": "low"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A domain of the demonstration.

    Args:
        domain: its name.
        behaviour: for people, at most 22 characters.
    """

    domain: str
    behaviour: str


PROMPT = Destination(domain="prompt.example", behaviour="accepts at once")
STARTTLS = Destination(domain="starttls.example", behaviour="accepts, over STARTTLS")
GREYLIST = Destination(domain="greylist.example", behaviour="450 once, then accepts")
STRICT = Destination(domain="strict.example", behaviour="550 for unknown users")
SLOW = Destination(domain="slow.example", behaviour="slow, no PIPELINING")
TWO_HOSTS = Destination(domain="twomx.example", behaviour="first MX host is down")
NULL_MX = Destination(domain="nullmx.example", behaviour="null MX: takes no mail")
NO_DOMAIN = Destination(domain="nosuch.example", behaviour="not in DNS at all")

DESTINATIONS = (PROMPT, STARTTLS, GREYLIST, STRICT, SLOW, TWO_HOSTS, NULL_MX, NO_DOMAIN)

UNKNOWN_USER = "nobody"
"""Local parts that begin so are refused by ``STRICT``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kind of message.

    Args:
        tag: what such messages are tagged with.
        to: destinations, one recipient each; the last of several is a blind copy.
        status, reason: what becomes of every recipient.
        user: first part of the local parts.
        require_tls: whether it may leave over TLS only.
    """

    tag: str
    to: tuple[Destination, ...]
    status: Status = Status.DELIVERED
    reason: Reason | None = None
    user: str = "user"
    require_tls: bool = False


_PROMPT = Case(tag="prompt", to=(PROMPT,))
_TLS = Case(tag="tls", to=(STARTTLS,), require_tls=True)
_GREYLISTED = Case(tag="greylisted", to=(GREYLIST,))
_KNOWN = Case(tag="known", to=(STRICT,))
_UNKNOWN = Case(
    tag="unknown",
    to=(STRICT,),
    status=Status.FAILED,
    reason=Reason.BOUNCED,
    user=UNKNOWN_USER,
)
_SLOW = Case(tag="slow", to=(SLOW,))
_BACKUP = Case(tag="backup", to=(TWO_HOSTS,))
_GROUP = Case(tag="group", to=(PROMPT, GREYLIST, STARTTLS))
_NULL_MX = Case(tag="null-mx", to=(NULL_MX,), status=Status.FAILED, reason=Reason.NULL_MX)
_NO_DOMAIN = Case(tag="no-domain", to=(NO_DOMAIN,), status=Status.FAILED, reason=Reason.NO_DOMAIN)

CYCLE: tuple[Case, ...] = (
    _PROMPT, _GREYLISTED, _UNKNOWN, _TLS, _BACKUP, _SLOW, _NULL_MX, _GROUP, _PROMPT, _NO_DOMAIN,
    _TLS, _PROMPT, _GREYLISTED, _KNOWN, _BACKUP, _SLOW, _PROMPT, _TLS, _UNKNOWN, _PROMPT,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The outcome of one message, kept until the end.

    Args:
        message_id: Message-ID with its angle brackets.
        addresses: every recipient.
        status, reason: what must become of each of them.
    """

    message_id: str
    addresses: tuple[str, ...]
    status: Status
    reason: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message as it is given to the library, with its plan."""

    planned: Planned
    message: EmailMessage
    options: SendOptions


def outgoing(count: int, run: str) -> Iterator[Outgoing]:
    """The messages of a run, in order.

    Args:
        count: how many.
        run: a word that no other run has; part of every Message-ID.
    """
    streams = tuple(STREAMS.items())
    for number in range(1, count + 1):
        case = CYCLE[(number - 1) % len(CYCLE)]
        stream, priority = streams[number % len(streams)]
        planned = Planned(
            message_id=f"<{run}.{number}@sender.example>",
            addresses=tuple(f"{case.user}.{number}@{one.domain}" for one in case.to),
            status=case.status,
            reason=case.reason,
        )
        options = SendOptions(
            stream=stream,
            priority=priority,
            tags=("demo", case.tag),
            metadata={"number": number},
            require_tls=case.require_tls,
        )
        if stream == "receipts":
            options["idempotency_key"] = f"receipt-{number}"
        yield Outgoing(planned=planned, message=_message(number, planned), options=options)


def _message(number: int, planned: Planned) -> EmailMessage:
    addresses = planned.addresses
    message = EmailMessage()
    message["From"] = f"Mailstrom demo <{SENDER}>"
    message["Message-ID"] = planned.message_id
    if len(addresses) == 1:
        message["To"] = addresses[0]
    else:
        message["To"] = ", ".join(addresses[:-1])
        message["Bcc"] = addresses[-1]
    # Four shapes: ASCII, a subject and text beyond it, an HTML alternative, lines that need dots
    # stuffed (RFC 5321 section 4.5.2).
    shape = number % 4
    message["Subject"] = f"Grüße, Nummer {number} ✓" if shape == 1 else f"Notice {number}"
    if shape == 1:
        message.set_content(f"Schöne Grüße!\n\nNummer {number}\n")
    elif shape == 3:
        message.set_content(f"Number {number}.\n.\n..\n.leading dot\n" + "All is well.\n" * 40)
    else:
        message.set_content(f"This is notice {number}.\n")
    if shape == 2:
        message.add_alternative(f"<p>This is notice <b>{number}</b>.</p>\n", subtype="html")
    return message
