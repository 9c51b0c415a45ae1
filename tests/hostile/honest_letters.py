"""Letters for honest servers, and the desk at which they are written.

Contract. A letter has a
Message-ID of its own, by which it is found again at the far end. Contents given as bytes must come
out of Mailstrom as they went in, but for CRLF line ends and an ended last line.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage

FROM = "a@sender.test"
NUL = b"From: a@sender.test\r\nSubject: nul\r\n\r\none \0 two\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One message to send.

    Args:
        message: as the application hands it in.
        message_id: with its angle brackets.
        attached: what an attachment must still hold at the far end, if it has one.
    """

    message: bytes | EmailMessage
    message_id: str
    recipients: tuple[str, ...]
    sender: str = FROM
    attached: bytes | None = None
    require_tls: bool = False

    @property
    def wire(self) -> bytes | None:
        """What must go out; None where Mailstrom renders it."""
        if isinstance(self.message, EmailMessage):
            return None
        lined = self.message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        return lined if lined.endswith(b"\r\n") else lined + b"\r\n"


class Desk:
    """Writes letters of one kind to one domain.

    Args:
        kind: a word for the Message-ID.
        dice: what varies them.
    """

    def __init__(self, kind: str, domain: str, dice: random.Random) -> None:
        self.kind = kind
        self.domain = domain
        self.dice = dice
        self.written = 0

    def letter(
        self,
        body: bytes,
        *,
        fields: str = "",
        to: Sequence[str] = ("one",),
        sender: str = FROM,
        require_tls: bool = False,
    ) -> Letter:
        """A finished message of bytes."""
        message_id = self.message_id()
        head = (
            f"From: {FROM}\r\nTo: two@{self.domain}\r\nDate: Fri, 02 Jan 2026 03:04:05 +0000\r\n"
            f"Message-ID: {message_id}\r\n{fields or 'Subject: news'}\r\n\r\n"
        )
        return Letter(
            message=head.encode() + body, message_id=message_id, sender=sender,
            recipients=tuple(f"{name}@{self.domain}" for name in to), require_tls=require_tls,
        )  # fmt: skip

    def composed(self, message: EmailMessage, attached: bytes | None = None) -> Letter:
        """A message that Mailstrom renders."""
        message_id = self.message_id()
        message["From"], message["To"] = FROM, f"two@{self.domain}"
        message["Message-ID"] = message_id
        return Letter(
            message=message, message_id=message_id, recipients=(f"one@{self.domain}",),
            attached=attached,
        )  # fmt: skip

    def message_id(self) -> str:
        self.written += 1
        return f"<{self.kind}.{self.written}.{self.domain}@sender.test>"


def exceeding(domain: str, octets: int) -> Letter:
    """One letter larger than so much."""
    desk = Desk("exceeding", domain, random.Random(1))
    return desk.letter(base64.encodebytes(bytes(octets)).replace(b"\n", b"\r\n"))


def to(domain: str, kind: str, *names: str, sender: str = FROM) -> Letter:
    """One small letter to these local parts."""
    return Desk(kind, domain, random.Random(1)).letter(
        b"Good morning.\r\n", to=names, sender=sender
    )
