"""What each client is asked to do, and what must come of it.

Contract. A ``Case`` says how the session is to be secured, who sends to whom, the content octet for
octet, and what must be seen on the wire where it is in clear. Its domain tells a client that knows
no options a message (a mail server) which way to take. Contents are whole messages, with all that
a submission server would add, so that they must arrive as they are.

Must not know: any client, any server.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TAKEN, REFUSED = "taken, as it was sent", "refused, the client says so, nothing is taken"

USER, PASSWORD = "joe", "open sesame"
LIMIT = 3 << 20
"""Octets of a message that the servers take."""
DATE = "Sat, 21 Nov 2026 12:00:00 +0000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to do.

    Args:
        name: in a few words.
        word: of one atom: what Message-ID and domain are made of.
        tls: "" in clear, ``starttls`` or ``implicit``.
        auth: mechanism to log in with; "" for none.
        password: what it logs in with.
        sender, recipients: the envelope.
        body: of the message; CRLF line ends.
        subject: of it.
        messages: so many, over one connection.
        asks: extensions to be used: ``8BITMIME SMTPUTF8 CHUNKING PIPELINING DSN``.
        wire: patterns that must be found in what the client sent in clear.
        taken: whether it must be.
        users: whether the server that it meets is one that takes mail from its users alone.
    """

    name: str
    word: str
    tls: str = ""
    auth: str = ""
    password: str = PASSWORD
    sender: str = "ann@sender.test"
    recipients: tuple[str, ...] = ("bob",)
    body: bytes = b"Good morning.\r\n"
    subject: str = "News"
    messages: int = 1
    asks: frozenset[str] = frozenset()
    wire: tuple[bytes, ...] = field(default=())
    taken: bool = True
    users: bool = False

    @property
    def wanted(self) -> str:
        """What must come of it."""
        return TAKEN if self.taken else REFUSED

    @property
    def addresses(self) -> tuple[str, ...]:
        """The recipients in full."""
        domain = f"{self.word}.clients.test"
        return tuple(one if "@" in one else f"{one}@{domain}" for one in self.recipients)

    def message_id(self, client: str, number: int = 0) -> str:
        """What tells a message of it from all others."""
        return f"<{self.word}-{number}.{client}@clients.test>"

    def content(self, client: str, number: int = 0) -> bytes:
        """A whole message."""
        sender = self.sender or "mailer-daemon@sender.test"
        head = (
            f"From: {sender}\r\nTo: {', '.join(self.addresses)}\r\n"
            f"Subject: {self.subject}\r\nDate: {DATE}\r\n"
            f"Message-ID: {self.message_id(client, number)}\r\n"
        )
        if not self.body.isascii():
            head += (
                "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
                "Content-Transfer-Encoding: 8bit\r\n"
            )
        return head.encode() + b"\r\n" + self.body


def _lines(size: int) -> bytes:
    line = b"The quick brown fox jumps over the lazy dog, and then once more.\r\n"
    return line * (size // len(line))


DOTS = (
    b".\r\n..\r\n...\r\n.leading\r\n..two\r\nend.\r\n.\r\n\r\n.\r\n"
    b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\n.\r\nQUIT\r\n"
)

CASES = (
    Case(name="in clear", word="clear"),
    Case(name="STARTTLS", word="starttls", tls="starttls"),
    Case(name="TLS from the start", word="implicit", tls="implicit"),
    Case(name="AUTH PLAIN under STARTTLS", word="plain", tls="starttls", auth="PLAIN"),
    Case(name="AUTH LOGIN under STARTTLS", word="login", tls="starttls", auth="LOGIN"),
    Case(name="AUTH PLAIN under TLS from the start", word="secure", tls="implicit", auth="PLAIN"),
    Case(name="AUTH with a wrong password", word="wrong", tls="starttls", auth="PLAIN",
         password="open barley", taken=False),
    Case(name="no login where one is needed", word="unknown", users=True, taken=False),
    Case(name="several recipients", word="several",
         recipients=("bob", "carl", "dora", "o'neil+tag", "a/b=c")),
    Case(name="null sender", word="null", sender="", wire=(rb"(?i)MAIL FROM:<>",)),
    Case(name="several messages over one connection", word="many", messages=5),
    Case(name="8BITMIME", word="eightbit", body="Grüße aus Köln.\r\n".encode(),
         asks=frozenset({"8BITMIME"}), wire=(rb"(?i)MAIL FROM:[^\r]* BODY=8BITMIME",)),
    Case(name="8-bit content that nobody announced", word="unsaid",
         body="Grüße aus Köln.\r\n".encode()),
    Case(name="SMTPUTF8", word="utf8", sender="ännchen@sender.test", recipients=("jürgen",),
         subject="Grüße", body="Grüße aus Köln.\r\n".encode(), asks=frozenset({"SMTPUTF8"}),
         wire=(rb"(?i)MAIL FROM:[^\r]* SMTPUTF8",)),
    Case(name="CHUNKING", word="chunking", body=_lines(200_000), asks=frozenset({"CHUNKING"}),
         wire=(rb"(?i)BDAT [0-9]+",)),
    Case(name="PIPELINING", word="pipelining", recipients=("bob", "carl"),
         asks=frozenset({"PIPELINING"}), wire=(rb"(?i)MAIL FROM:[^\r]*\r\nRCPT TO:",)),
    Case(name="DSN", word="dsn", asks=frozenset({"DSN"}),
         wire=(rb"(?i)MAIL FROM:[^\r]* RET=HDRS", rb"(?i)MAIL FROM:[^\r]* ENVID=",
               rb"(?i)RCPT TO:[^\r]* NOTIFY=", rb"(?i)RCPT TO:[^\r]* ORCPT=rfc822;")),
    Case(name="dots at the beginning of lines, commands in the content", word="dots", body=DOTS),
    Case(name="empty lines and no text", word="empty", body=b""),
    Case(name="lines of 998 octets", word="long", body=(b"x" * 998 + b"\r\n") * 20),
    Case(name="2 MiB", word="large", body=_lines(2 << 20)),
    Case(name="more than SIZE allows", word="oversize", body=_lines(LIMIT + 100_000), taken=False),
    Case(name="a refused recipient", word="refused", recipients=("refuse",), taken=False),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
