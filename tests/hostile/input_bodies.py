"""Bodies that are cut where nobody should cut: what the receiver has is what was handed in.

Contract. As octets, a body comes out with CRLF line ends, the last line ended, and else as it went
in; of an object, what the standard library decodes from the wire is what was put in, but for the
line end that ends a text. Judged by the octets that the host had.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage, Message
from typing import Any

from mailstrom.errors import InvalidMessage
from tests.hostile.input_host import RecordingHost, Taken
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.support.engine import DEADLINE_S
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

CHUNK = 256 * 1024
WANTED = "the receiver's octets are those handed in, or refused by name"


def octets() -> Iterator[tuple[str, bytes]]:
    """Bodies of finished messages."""
    for border in (CHUNK, 2 * CHUNK):
        for shift in range(-6, 7):
            # The blank line, a dot behind it, and a line end, over each border of a chunk.
            yield (
                f"\\r\\n.\\r\\n at {border}{shift:+d}",
                _filled(border + shift) + b"\r\n.\r\n.\r\nend\r\n",
            )
    for text in (
        b"", b".", b"..", b".\r\n", b"..\r\n", b"\r\n", b"\r\n.\r\n", b".\r\n.\r\n.\r\n", b"x",
        b"x\n",
        b".\n", b"x\r\n.\r\nQUIT\r\n", b"\n.\n", b".\r\n" * 50_000, b"." * 998 + b"\r\n",
        (b"." * 998 + b"\r\n") * 1_100, b"\xff\xfe\x80\r\n", b"\r\n" * 100_000, b"x" * 998,
        b"\xc3\xbc" * 499 + b"\r\n", b"From x\r\n.From\r\n", b"=\r\n=20\r\n",
        b"\x1a\x04\x1b[2J\r\n",
        b"a\0b\r\n", b"a\rb\r\n", b"x" * 999 + b"\r\n", b"a\r\nb\nc\r\n", b"\r\r\n", b"x\r",
    ):  # fmt: skip
        yield f"{text[:12]!r}, {len(text)} octets", text


def _filled(length: int) -> bytes:
    """So many octets of content, header included, in whole lines but the last."""
    return (b"x" * 70 + b"\r\n") * (length // 72) + b"y" * (length % 72)


def texts() -> Iterator[tuple[str, Any]]:
    """Bodies of objects."""
    yield "a lone surrogate", "a\ud800b\n"
    yield "an escaped octet", "a\udcffb\n"
    yield "no final line end", "x"
    yield "dots", ".\n..\n.\n"
    yield "a line separator", "a\u2028b\u2029c\x85d\n"
    yield "NUL", "a\0b\n"
    yield "a bare CR", "a\rb\n"
    yield "1 MB in one line", "x" * MIB
    yield "1 MB in one line of dots", "." * MIB
    yield "octets", bytes(range(256)) * 3_000
    yield "octets of CR, LF and dots", b"\r\n.\r\n\n.\n\r.\r" * 50_000


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Octets and objects, a row each."""
    network = stand.network
    host = RecordingHost(loopback_addresses()[0], network.port)
    network.serve(host)
    domain = network.new_domain()
    network.route(domain, [host.address])
    some = list(octets())
    made: dict[str, tuple[str, object]] = {}
    findings: list[str] = []
    head = f"From: a@s.test\r\nTo: c@{domain}\r\nSubject: s\r\n"
    head += "Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    for number, (name, body) in enumerate(some):
        own = f"{head}Message-ID: <b{number}@b.test>\r\n\r\n".encode()
        # The border is one of the whole content.
        body = body[len(own) :] if "\\r\\n at" in name else body
        given = own + body
        if b"\n" in body.replace(b"\r\n", b"") and b"\r\n" not in body:
            given = own.replace(b"\r\n", b"\n") + body
        try:
            stand.engine.ms.send(given, sender="a@s.test")
        except InvalidMessage as error:
            if not error.rule:
                findings.append(f"{name}: refused by no rule")
            continue
        made[f"b{number}"] = (name, _ended(body))
    for number, (name, content) in enumerate(texts()):
        try:
            message = _message(content, domain, number)
            stand.engine.ms.send(message)
        except (InvalidMessage, UnicodeError, ValueError):
            continue
        made[f"t{number}"] = (name, content)
    eventually(lambda: len(host.taken) >= len(made), DEADLINE_S * 2, what="every body")
    seen = {_id(one): one for one in host.taken}
    for id, (name, wanted) in made.items():
        if id not in seen:
            findings.append(f"{name}: never came")
            continue
        found = _body(seen[id].content, octets=isinstance(wanted, bytes) and id[0] == "b")
        if id[0] == "t" and isinstance(wanted, str):
            found = found.replace(b"\r\n", b"\n")
            wanted = wanted.encode("utf-8", "surrogateescape").replace(b"\r\n", b"\n")
            found, wanted = found.rstrip(b"\n"), wanted.rstrip(b"\n")
        if found != wanted:
            findings.append(
                f"{name}: {len(found)} octets, not the {len(wanted)} given: {found[:40]!r}"
            )  # type: ignore[arg-type]
    findings += host.violations[:5]
    yield Row(
        case="bodies: line ends and dots at the borders of chunks, only dots, no last line end, any"
        " octets", wanted=WANTED, seen=WANTED if not findings else "something else",
        tried=len(some) + sum(1 for _ in texts()), findings=tuple(findings),
    )  # fmt: skip
    plan.say(f"{len(made)} bodies were sent")


def _ended(body: bytes) -> bytes:
    body = body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return body if not body or body.endswith(b"\r\n") else body + b"\r\n"


def _message(content: Any, domain: str, number: int) -> Message[Any, Any]:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@s.test", f"c@{domain}", "s"
    message["Message-ID"] = f"<t{number}@b.test>"
    if isinstance(content, bytes):
        message.set_content(content, maintype="application", subtype="octet-stream")
    else:
        message.set_payload(content)
    return message


def _id(one: Taken) -> str:
    return one.content.partition(b"Message-ID: <")[2].partition(b"@")[0].decode()


def _body(content: bytes, *, octets: bool) -> bytes:
    if octets:
        return content.partition(b"\r\n\r\n")[2]
    found = email.message_from_bytes(content, policy=email.policy.default).get_payload(decode=True)
    assert isinstance(found, bytes)
    return found
