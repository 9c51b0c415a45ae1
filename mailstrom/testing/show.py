"""The sink as a program: prints each mail as it comes, for people who write what sends it.

Contract. One mail is one block: envelope, the headers that people read, the text, and what is
attached, by name and size; ``--raw`` prints the content as it came. Nothing in a mail moves the
cursor or forges a line: what is not printable is shown as its escape. Nothing is kept.

Must not know: what behaves in which way (``mailstrom.testing.script``).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
import sys
from collections.abc import Iterator, Sequence
from email.message import EmailMessage, MIMEPart
from pathlib import Path

from mailstrom.printable import printable
from mailstrom.server.mail import Mail
from mailstrom.testing.script import MAGIC, Script
from mailstrom.testing.sink import Sink

_HEADERS = ("Date", "From", "Sender", "Reply-To", "To", "Cc", "Subject")
_MOST = 100_000
"""Characters of a line that are shown."""


class _Printing(Sink):
    """Prints instead of keeping."""

    raw = False
    count = 0

    def take_mail(self, mail: Mail) -> None:
        """Print it."""
        super().take_mail(mail)
        self.count += 1
        print("\n".join(shown(mail, self.count, raw=self.raw)), flush=True)


def shown(mail: Mail, number: int, *, raw: bool = False) -> Iterator[str]:
    """The lines that a mail is printed as.

    Args:
        mail: the mail.
        number: what it is called.
        raw: print the content as it came.
    """
    sender, recipients = mail.sender or "<>", ", ".join(mail.recipients)
    facts = [mail.client.address, mail.tls or "in clear", f"{len(mail.content)} octets"]
    if mail.user:
        facts.insert(1, f"user {mail.user}")
    yield f"--- {number}: {printable(f'{sender} -> {recipients}', _MOST)}"
    yield f"    {printable(', '.join(facts), _MOST)}"
    for line in _as_it_came(mail) if raw else _as_read(mail.message()):
        yield printable(line, _MOST)
    yield ""


def _as_it_came(mail: Mail) -> Iterator[str]:
    text = mail.content.decode("utf-8", "backslashreplace")
    yield from text.removesuffix("\r\n").split("\r\n")


def _as_read(message: EmailMessage) -> Iterator[str]:
    for name in _HEADERS:
        for value in message.get_all(name, ()):
            yield f"{name}: {value}"
    yield ""
    body = message.get_body(("plain", "html"))
    if body is not None:
        yield from _text(body).rstrip("\n").split("\n")
    for part in message.iter_attachments():
        yield f"[{part.get_content_type()} {part.get_filename() or '-'}{_size(part)}]"


def _size(part: MIMEPart) -> str:
    content = part.get_payload(decode=True)
    # A message, and the fields of a delivery report, are objects to Python: it keeps no octets.
    return f", {len(content)} octets" if isinstance(content, bytes) else ""


def _text(part: MIMEPart) -> str:
    try:
        return str(part.get_content()).replace("\r\n", "\n").replace("\t", "    ")
    except (KeyError, LookupError, ValueError):  # no text, or in a charset nobody knows
        return str(part.get_payload())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -P -m mailstrom.testing.sink",
        description="SMTP server that prints what comes and passes nothing on.",
        epilog=f"Addresses that do what they are called: {', '.join(MAGIC)}.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=2525)
    parser.add_argument("--raw", action="store_true", help="print each mail as it came")
    parser.add_argument("--plain", action="store_true", help="accept every address")
    parser.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="offer STARTTLS with this chain"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM")
    parser.add_argument("--implicit-tls", action="store_true", help="TLS from the first octet")
    parser.add_argument("--user", metavar="NAME:PASSWORD", help="who has to log in")
    return parser.parse_args(argv)


async def _serve(arguments: argparse.Namespace) -> None:
    tls: ssl.SSLContext | None = None
    if arguments.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    name, _, password = (arguments.user or "").partition(":")
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    sink = _Printing(
        arguments.host,
        arguments.port,
        script=Script(magic=not arguments.plain),
        tls=tls,
        implicit_tls=arguments.implicit_tls,
        auth={name: password} if name else None,
        keep=0,
    )
    sink.raw = arguments.raw
    async with sink:
        print(f"listening on {sink.address}; end with Ctrl-C\n", flush=True)
        await ended.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT.

    Args:
        argv: options; None: those of the process.

    Returns:
        0 after a signal; 2 if an address or a file is unusable.
    """
    try:
        asyncio.run(_serve(_arguments(argv)))
    except (OSError, ValueError) as error:
        print(f"mailstrom.testing.sink: {error}", file=sys.stderr)
        return 2
    return 0
