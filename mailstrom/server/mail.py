"""What a server tells the program around it: a client, a mail, and how to refuse either.

Contract. Plain values. A mail's content is what the client sent, octet for octet, dots unstuffed;
nothing is added to it. Addresses are as the client wrote them.

Must not know: connections, where mail goes.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage

from mailstrom.errors import MailstromError
from mailstrom.smtp.reply import Reply, render_reply

Parameters = Mapping[str, str | None]
"""ESMTP parameters by upper-case keyword, as they were written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What is known of a client at some moment.

    Args:
        address, port: where it connected from.
        helo: what it called itself, "" before.
        tls: ``TLSv1.3`` or the like, or None in clear.
        user: who has logged in, or None.
        sender: of the open transaction, "" for the null sender, or None.
        recipients: accepted ones of the open transaction.
    """

    address: str
    port: int
    helo: str = ""
    tls: str | None = None
    user: str | None = None
    sender: str | None = None
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail.

    Args:
        client: who sent it.
        sender: the envelope's, "" for the null sender.
        recipients: the accepted ones, in order.
        parameters: of MAIL.
        recipient_parameters: of each RCPT, in the order of ``recipients``.
        content: as it was sent, dots unstuffed.
    """

    client: Client
    sender: str
    recipients: tuple[str, ...]
    parameters: Parameters
    recipient_parameters: tuple[Parameters, ...]
    content: bytes = field(repr=False)

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of who sent it."""
        return self.client.address, self.client.port

    @property
    def helo(self) -> str:
        """What the client called itself."""
        return self.client.helo

    @property
    def tls(self) -> str | None:
        """``TLSv1.3`` or the like, or None if it came in clear."""
        return self.client.tls

    @property
    def user(self) -> str | None:
        """Who had logged in, or None."""
        return self.client.user

    def message(self) -> EmailMessage:
        """The content, parsed anew at each call; lines end with LF, as in what Python makes."""
        octets = self.content.replace(b"\r\n", b"\n")
        return email.message_from_bytes(octets, policy=email.policy.default)


class Refuse(MailstromError):
    """Raised by a hook to refuse what it was asked about.

    Args:
        code: 400 to 599; 421 closes the connection as well.
        text: for the client, one line.
        enhanced: enhanced status code (RFC 3463), such as ``5.1.1``.

    Raises:
        ValueError: that is no refusal that can be said.
    """

    def __init__(self, code: int, text: str, enhanced: str | None = None) -> None:
        if not 400 <= code <= 599:
            raise ValueError(f"{code} refuses nothing: 4xx is not now, 5xx is never")
        render_reply(code, enhanced, text)
        super().__init__(f"{code} {text}")
        self.reply = Reply(code, enhanced, (text,))
