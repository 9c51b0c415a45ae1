"""The payload hash: same meaning, same hash; any difference in meaning, another hash."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest

from mailstrom.message import Prepared, compose, fingerprint

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)


def build() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = "a@b.example", "c@d.example, e@f.example"
    message["Subject"] = "Grüße"
    message.set_content("ü\n")
    message.add_alternative("<p>ü</p>\n", subtype="html")
    message.add_attachment(b"\0\1", maintype="a", subtype="b", filename="n")
    return message


def prepare(message: EmailMessage | bytes, now: datetime = NOW) -> Prepared:
    return compose(message, now=now, id_domain_fallback="x.example")


def test_the_same_mail_built_twice_has_one_hash() -> None:
    first, second = prepare(build()), prepare(build(), LATER)
    assert first.content != second.content
    assert fingerprint(first) == fingerprint(second)
    assert len(fingerprint(first)) == 32


def test_a_legacy_multipart_built_twice_has_one_hash() -> None:
    def once() -> bytes:
        message = MIMEMultipart()
        message["From"], message["To"] = "a@b.example", "c@d.example"
        message.attach(MIMEText("ü", "plain", "utf-8"))
        return fingerprint(compose(message, now=NOW, id_domain_fallback="x.example"))

    assert once() == once()


def test_finished_bytes_hash_like_their_object() -> None:
    prepared = prepare(build())
    assert fingerprint(prepare(prepared.content, LATER)) == fingerprint(prepared)


def replaced(name: str, value: str) -> Callable[[EmailMessage], None]:
    def change(message: EmailMessage) -> None:
        message.replace_header(name, value)

    return change


def added(name: str, value: str) -> Callable[[EmailMessage], None]:
    def change(message: EmailMessage) -> None:
        message[name] = value

    return change


def attach(octets: bytes, filename: str) -> Callable[[EmailMessage], None]:
    def change(message: EmailMessage) -> None:
        message.add_attachment(octets, maintype="a", subtype="b", filename=filename)

    return change


def last_part(octets: bytes) -> Callable[[EmailMessage], None]:
    def change(message: EmailMessage) -> None:
        parts: Any = message.get_payload()
        parts[-1].set_content(octets, maintype="a", subtype="b", filename="n")

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("Subject", "Gruße"),
        replaced("From", "b@b.example"),
        replaced("To", "c@d.example"),
        added("Bcc", "g@h.example"),
        added("X-Note", "1"),
        added("Reply-To", "r@r.example"),
        attach(b"x", "n"),
        last_part(b"\0\2"),
        last_part(b"\0\1\n"),
    ],
)
def test_another_meaning_has_another_hash(change: Callable[[EmailMessage], None]) -> None:
    message = build()
    change(message)
    assert fingerprint(prepare(message)) != fingerprint(prepare(build()))


HEAD = b"From: a@b.example\r\nTo: c@d.example\r\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"\r\na\r\n", b"\r\nb\r\n"),
        (b"X-A: bc\r\n\r\n", b"X-Ab: c\r\n\r\n"),
        (b"X: a\r\n\r\n\r\n", b"\r\nX: a\r\n\r\n"),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\na\r\n",
         b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nb\r\n"),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\na\r\n--x--\r\n",
         b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nb\r\n--x--\r\n"),
        (b"Content-Transfer-Encoding: base64\r\n\r\n!\r\n",
         b"Content-Transfer-Encoding: base64\r\n\r\n!!\r\n"),
        (b"Content-Type: broken;;=\r\n\r\na\r\n", b"Content-Type: broken;=\r\n\r\na\r\n"),
        (b"Content-Type: message/rfc822\r\n\r\nno field\r\n\r\nx",
         b"Content-Type: message/rfc822\r\n\r\nnone\r\n\r\nx"),
        (b"Content-Type: message/rfc822\r\n\r\n:a:b\r\n\r\nx",
         b"Content-Type: message/rfc822\r\n\r\na:b\r\n\r\nx"),
        (b"Content-Type: message/rfc822\r\n\r\nDate: 1\r\n\r\n",
         b"Content-Type: message/rfc822\r\n\r\nDate: 2\r\n\r\n"),
    ],
)  # fmt: skip
def test_malformed_bytes_hash_as_they_stand(one: bytes, other: bytes) -> None:
    assert fingerprint(prepare(HEAD + one)) != fingerprint(prepare(HEAD + other))


def test_what_compose_adds_is_never_hashed() -> None:
    block = b"Resent-From: e@f.example\r\nResent-To: g@h.example\r\n"
    bare = block + HEAD + b"Content-Type: text/plain\r\n\r\nx\r\n"
    first, second = prepare(bare), prepare(bare, LATER)
    assert first.content != second.content
    assert first.content.count(b"\r\nResent-Date:") == 1
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(prepare(bare.replace(b"e@f", b"i@f")))
    # Inside an attached message it is somebody else's.
    inside = [HEAD + b"Content-Type: message/rfc822\r\n\r\nResent-Date: %d\r\n\r\n" % day
              for day in (1, 2)]  # fmt: skip
    assert len({fingerprint(prepare(octets)) for octets in inside}) == 2


def test_the_order_of_recipients_does_not_matter() -> None:
    body = HEAD + b"\r\nx\r\n"
    hashes = {
        fingerprint(compose(body, recipients=order, now=NOW, id_domain_fallback="x.example"))
        for order in (["p@q.example", "r@s.example"], ["r@s.example", "p@q.example"])
    }
    assert len(hashes) == 1
