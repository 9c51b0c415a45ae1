"""Header injection: every attempt is refused, or leaves exactly the intended headers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest

from mailstrom.errors import InvalidMessage
from mailstrom.message import compose

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

BREAKS = [
    "\r\n", "\n", "\r", "\r\n\r\n", "\n\n", "\r\n ", "\r\n \r\n", "\n\t\n", "\0", "\v", "\f",
    "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r\r\n", "\n\r",
]  # fmt: skip
PAYLOAD = "Bcc: victim@evil.example"
ALLOWED = {
    "date", "message-id", "from", "to", "cc", "sender", "reply-to", "subject", "x-note",
    "mime-version", "content-type", "content-transfer-encoding", "content-disposition",
    "list-id", "references", "in-reply-to", "comments",
}  # fmt: skip


def legacy(name: str, value: Any) -> Message[Any, Any]:
    message: Message[Any, Any] = Message()
    for key, default in (("From", "a@b.example"), ("To", "c@d.example"), ("Subject", "s")):
        if key != name:
            message[key] = default
    message[name] = value
    message.set_payload("body\n")
    return message


def bypassed(name: str, value: str) -> Message[Any, Any]:
    """An EmailMessage whose own check was got around, as a broken policy would."""
    message = EmailMessage()
    for key, default in (("From", "a@b.example"), ("To", "c@d.example"), ("Subject", "s")):
        if key != name:
            message[key] = default
    message.set_content("body\n")
    message._headers.append((name, value))  # type: ignore[attr-defined]
    return message


def header_object(name: str, value: str) -> Message[Any, Any]:
    return legacy(name, Header(value))


def header_charset(name: str, value: str) -> Message[Any, Any]:
    return legacy(name, Header("ü" + value, "utf-8"))


def attachment_name(name: str, value: str) -> Message[Any, Any]:
    message = MIMEMultipart()
    message["From"], message["To"], message["Subject"] = "a@b.example", "c@d.example", "s"
    part = MIMEText("x")
    part.add_header("Content-Disposition", "attachment", filename=value)
    message.attach(part)
    return message


def part_type(name: str, value: str) -> Message[Any, Any]:
    message = MIMEMultipart()
    message["From"], message["To"], message["Subject"] = "a@b.example", "c@d.example", "s"
    part: Message[Any, Any] = Message()
    part["Content-Type"] = f'text/plain; name="{value}"'
    part.set_payload("x")
    message.attach(part)
    return message


def boundary(name: str, value: str) -> Message[Any, Any]:
    message = MIMEMultipart()
    message["From"], message["To"], message["Subject"] = "a@b.example", "c@d.example", "s"
    message.replace_header("Content-Type", f'multipart/mixed; boundary="{value}"')
    message.attach(MIMEText("x"))
    return message


def header_name(name: str, value: str) -> Message[Any, Any]:
    message = legacy("Subject", "s")
    message._headers.append((f"X-Note{value}", "v"))  # type: ignore[attr-defined]
    return message


BUILDERS: list[tuple[str, Callable[[str, str], Message[Any, Any]], str]] = [
    *(("legacy " + n, legacy, n) for n in (
        "Subject", "To", "From", "Cc", "Reply-To", "X-Note", "Message-ID", "Date", "Content-Type",
        "Content-Disposition", "List-Id", "References",
    )),
    *(("bypassed " + n, bypassed, n) for n in ("Subject", "To", "X-Note", "Message-ID")),
    ("Header object", header_object, "Subject"),
    ("Header object address", header_object, "To"),
    ("Header charset", header_charset, "Subject"),
    ("attachment name", attachment_name, ""),
    ("part type", part_type, ""),
    ("boundary", boundary, ""),
    ("header name", header_name, ""),
]  # fmt: skip


def top_names(content: bytes) -> list[str]:
    """Header names as the most gullible reader sees them: any break ends a line."""
    head = content.partition(b"\r\n\r\n")[0].decode("utf-8")
    lines = [line for line in head.splitlines() if line[:1] not in (" ", "\t")]
    return [line.partition(":")[0].lower() for line in lines]


@pytest.mark.parametrize("line_break", BREAKS, ids=[repr(b) for b in BREAKS])
@pytest.mark.parametrize(("build", "name"), [b[1:] for b in BUILDERS], ids=[b[0] for b in BUILDERS])
def test_no_break_in_a_value_makes_a_header(
    build: Callable[[str, str], Message[Any, Any]], name: str, line_break: str
) -> None:
    for value in (f"x{line_break}{PAYLOAD}", f"x{line_break}", f"{line_break}{PAYLOAD}"):
        try:
            prepared = compose(build(name, value), now=NOW, id_domain_fallback="x.example")
        except InvalidMessage:
            continue
        names = top_names(prepared.content)
        assert set(names) <= ALLOWED
        assert len(names) == len(set(names))
        assert not any(line.startswith(b"bcc:") for line in prepared.content.lower().splitlines())
        assert "victim@evil.example" not in prepared.recipients


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Subject", "a\nBcc: x@y.z"),
        ("Subject", "a\r\nBcc: x@y.z"),
        ("Subject", "a\rBcc: x@y.z"),
        ("Subject", "a\0b"),
        ("Subject", "a\n"),
        ("Subject", "a\n \nb"),
        ("Subject", "=?utf-8?q?a=0ABcc=3A_x=40y.z?="),
        ("Subject", "=?utf-8?b?YQ0KQmNjOiB4?="),
        ("X-Note", "a\n\nbody"),
        ("MIME-Version", "1.0 (=?utf-8?q?a=0ABcc=3A_x?=)"),
        ("List-Id", "=?utf-8?b?YQ0KQmNjOiB4?= <a.b.example>"),
        ("To", "c@d.example\nBcc: x@y.z"),
        ("To", "=?utf-8?q?a=0D=0ABcc=3A_x?= <c@d.example>"),
        ("From", '"a\nBcc: x" <a@b.example>'),
        ("Message-ID", "<a@b>\nBcc: x@y.z"),
        ("Date", "now\r\nBcc: x@y.z"),
        ("Content-Type", "text/plain; name*=utf-8''a%0D%0ABcc:x"),
        ("Content-Disposition", "attachment; filename*=utf-8''a%00b"),
    ],
)
def test_breaks_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        compose(legacy(name, value), now=NOW, id_domain_fallback="x.example")
    assert caught.value.rule == "header-injection"
    assert caught.value.header == name
    assert name in str(caught.value)


def test_an_encoded_word_is_no_type_of_content() -> None:
    message = legacy("Content-Type", "=?utf-16?b?//4NAAoA?=")
    with pytest.raises(InvalidMessage) as caught:
        compose(message, now=NOW, id_domain_fallback="x.example")
    assert caught.value.rule == "parameter"


def test_legal_folding_of_a_parsed_value_is_unfolded() -> None:
    message = legacy("Subject", "one\n two\r\n\tthree")
    prepared = compose(message, now=NOW, id_domain_fallback="x.example")
    assert b"Subject: one two\tthree\r\n" in prepared.content


@pytest.mark.parametrize("name", ["X\nBcc", "X\r\nBcc: y", "X Y", "X:", "", "Bcc\0", "Ü", " X"])
def test_header_names_are_checked(name: str) -> None:
    message = legacy("Subject", "s")
    message._headers.append((name, "v"))  # type: ignore[attr-defined]
    with pytest.raises(InvalidMessage) as caught:
        compose(message, now=NOW, id_domain_fallback="x.example")
    assert caught.value.rule in ("header-name", "header-injection")


@pytest.mark.parametrize("value", [5, None, b"bytes", ["list"], object()])
def test_values_of_other_types_are_refused(value: object) -> None:
    message = legacy("Subject", "s")
    message._headers.append(("X-Note", value))  # type: ignore[attr-defined]
    with pytest.raises(InvalidMessage) as caught:
        compose(message, now=NOW, id_domain_fallback="x.example")
    assert caught.value.rule == "header-type"


@pytest.mark.parametrize(
    "display",
    [
        "a\u2028Bcc: x",
        "a\x85Bcc: x",
        'a" <x@y.z>, "',
        "a, x@y.z",
        "<x@y.z>",
        "a\\",
        "=?utf-8?q?b?=",
    ],
)
def test_a_display_name_is_never_an_address(display: str) -> None:
    message = EmailMessage()
    message["From"] = "a@b.example"
    try:
        message["To"] = Address(display_name=display, addr_spec="c@d.example")
    except ValueError:
        return  # the library refused it itself
    prepared = compose(message, now=NOW, id_domain_fallback="x.example")
    assert prepared.recipients == ("c@d.example",)
    assert prepared.content.count(b"x@y.z") <= 1
    again = compose(prepared.content, now=NOW, id_domain_fallback="x.example")
    assert again.recipients == ("c@d.example",)
