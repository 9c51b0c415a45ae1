"""MIME trees: leaves, boundaries, nesting, signed parts; what is kept, re-encoded, refused."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.encoders import encode_7or8bit, encode_base64, encode_noop, encode_quopri
from email.message import EmailMessage, Message
from email.mime.application import MIMEApplication
from email.mime.base import MIMEBase
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest

from mailstrom.errors import InvalidMessage
from mailstrom.message import compose

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def content_of(message: Message[Any, Any]) -> bytes:
    content = compose(message, now=NOW, id_domain_fallback="x.example").content
    assert content.isascii()
    assert content.endswith(b"\r\n")
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert b"\0" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    return content


def reread(message: Message[Any, Any]) -> EmailMessage:
    return message_from_bytes(content_of(message), policy=policy.default)


def addressed(message: Any) -> Any:
    message["From"], message["To"] = "a@b.example", "c@d.example"
    return message


def leaf(content_type: str, payload: object, encoding: str | None = None) -> Message[Any, Any]:
    message: Message[Any, Any] = addressed(Message())
    message["Content-Type"] = content_type
    if encoding is not None:
        message["Content-Transfer-Encoding"] = encoding
    message._payload = payload  # type: ignore[attr-defined]
    return message


def mixed(
    *parts: Message[Any, Any], kind: str = "mixed", boundary: str | None = None, **parameters: str
) -> Message[Any, Any]:
    message: Message[Any, Any] = MIMEMultipart(kind, boundary)
    for name, value in parameters.items():
        message.set_param(name, value)
    for part in parts:
        message.attach(part)
    message["From"], message["To"] = "a@b.example", "c@d.example"
    return message


RAW = bytes(range(256)) * 5


@pytest.mark.parametrize(
    ("kind", "payload", "encoding", "expected", "octets"),
    [
        ("text/plain", "a\nb\n", None, "", b"a\r\nb\r\n"),
        ("text/plain", "a\r\nb\r\n", "7bit", "7bit", b"a\r\nb\r\n"),
        ("text/plain", "a\n", "8bit", "7bit", b"a\r\n"),
        ("text/plain", "", None, "", b""),
        ("text/plain", None, None, "", b""),
        ("text/plain", "a\rb\n", None, "quoted-printable", b"a\rb\r\n"),
        ("text/plain", "a\0b\n", None, "quoted-printable", b"a\0b\r\n"),
        ("text/plain", "x" * 999, None, "quoted-printable", b"x" * 999),
        ("text/plain", "x" * 998 + "\n", None, "", b"x" * 998 + b"\r\n"),
        ("text/plain", "\udcff\udcfe \n", "8bit", "quoted-printable", b"\xff\xfe \r\n"),
        ("text/plain; charset=utf-8", "ü\n", None, "quoted-printable", "ü\r\n".encode()),
        ("text/plain; charset=latin-1", "ü\n", "8bit", "quoted-printable", b"\xfc\r\n"),
        ("text/plain", b"\xff\n", None, "quoted-printable", b"\xff\r\n"),
        ("text/plain", "=E4 =\n", "quoted-printable", "quoted-printable", b"\xe4 "),
        ("text/plain", "=E4" + "x" * 1000, "quoted-printable", "quoted-printable",
         b"\xe4" + b"x" * 1000),
        ("text/plain", "YQ==\n", "base64", "base64", b"a"),
        ("text/plain", "YWFh" * 500, "base64", "base64", b"aaa" * 500),
        ("a/b", RAW.decode("ascii", "surrogateescape"), "8bit", "base64", RAW),
        ("a/b", RAW, "binary", "base64", RAW),
        ("a/b", "a\r\nb\rc\n", None, "base64", b"a\r\nb\rc\n"),
        ("a/b", "{}\n", None, "base64", b"{}\n"),
        ("a/b", "{}\r\n[]\r\n", "8bit", "7bit", b"{}\r\n[]\r\n"),
        ("a/b", "{}", "7bit", "base64", b"{}"),
        ("a/b", "", "7bit", "7bit", b""),
        ("a/b", "YQ==\n", "base64", "base64", b"a"),
        ("a/b", "=0A=\nx=\n", "quoted-printable", "quoted-printable", b"\nx"),
        ("a/b", "=0A=\nx\n", "quoted-printable", "base64", b"\nx\n"),
        ("a/b", "=0A=\nx\r\n", "quoted-printable", "quoted-printable", b"\nx\r\n"),
        ("message/x", "a: b\n", None, "", None),
        ("a/b", "begin 644 x\n", "x-uuencode", "x-uuencode", None),
    ],
)  # fmt: skip
def test_a_leaf_is_kept_where_legal_and_encoded_where_not(
    kind: str, payload: object, encoding: str | None, expected: str, octets: bytes | None
) -> None:
    again = reread(leaf(kind, payload, encoding))
    assert str(again.get("Content-Transfer-Encoding", "")) == expected
    if octets is not None:
        decoded = again.get_payload(decode=True)
        exact = not kind.startswith(("text/", "message/"))
        # The last line of a mail is ended, and only text may be ended with it.
        assert decoded == octets or (not exact and decoded == octets + b"\r\n")


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        (leaf("text/plain", "ü"), "body-charset"),
        (leaf("text/plain; charset=ascii", "ü"), "body-charset"),
        (leaf("text/plain; charset=none-such", "ü"), "body-charset"),
        (leaf("text/plain; charset=utf-8", "\ud800"), "body-charset"),
        (leaf("text/plain", 5), "payload-type"),
        (leaf("text/plain", ["x"]), "payload-type"),
        (leaf("a/b", "!" * 1000, "base64"), "transfer-encoding"),
        (leaf("a/b", b"\xff", "quoted-printable"), "transfer-encoding"),
        (leaf("a/b", b"\xff", "x-own"), "transfer-encoding"),
        (leaf("multipart/mixed", "text"), "multipart-payload"),
        (leaf("multipart/mixed", None), "multipart-empty"),
        (leaf("multipart/mixed", ["text"]), "multipart-payload"),
        (leaf("multipart/mixed", [MIMEText("x")], "base64"), "transfer-encoding"),
        (leaf("message/rfc822", [MIMEText("x")], "base64"), "transfer-encoding"),
        (leaf("message/rfc822", []), "message-payload"),
        (leaf("message/rfc822", [MIMEText("x"), MIMEText("y")]), "message-payload"),
    ],
)
def test_bodies_that_cannot_be_rendered_are_refused(message: Message[Any, Any], rule: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        content_of(message)
    assert caught.value.rule == rule


FILES = [
    b"a\nb\nc", b"%PDF\nxref 5\n", b"a\r\nb", b"a\r\nb\r\n", b"a\rb", b"\n", b"\r\n", b"a", b"",
    b"x" * 1200, b"a\0b", b"trail \n", b"--x\n--x--\n", b"\xff\n", b"From x\n.\n",
]  # fmt: skip


@pytest.mark.parametrize("octets", FILES)
@pytest.mark.parametrize("cte", ["7bit", "8bit", "binary", "base64", "quoted-printable"])
def test_a_file_arrives_octet_for_octet(octets: bytes, cte: str) -> None:
    message = addressed(EmailMessage())
    message.set_content("see below\n")
    if cte == "7bit" and not octets.isascii():
        return  # the library refuses it itself
    kind = "octet-stream"
    message.add_attachment(octets, maintype="application", subtype=kind, cte=cte)
    message.add_attachment(octets, maintype="image", subtype="x", cte=cte)
    files: Any = list(reread(message).iter_attachments())
    assert [file.get_content() for file in files] == [octets, octets]
    alone: Any = addressed(EmailMessage())
    alone.set_content(octets, maintype="application", subtype=kind, cte=cte)
    assert reread(alone).get_content() == octets


@pytest.mark.parametrize("octets", FILES)
@pytest.mark.parametrize("encoder", [encode_7or8bit, encode_base64, encode_noop, encode_quopri])
def test_the_librarys_encoders_change_no_file(octets: bytes, encoder: Any) -> None:
    part = MIMEApplication(octets, _encoder=encoder)
    meant = part.get_payload(decode=True)
    (again,) = reread(mixed(part)).iter_parts()
    assert again.get_payload(decode=True) == meant
    if encoder is not encode_quopri:  # which takes line ends for text itself
        assert meant == octets


def test_a_signed_file_stays_as_the_signer_has_it() -> None:
    part = MIMEApplication(b"%PDF\nxref 5\n", _encoder=encode_7or8bit)
    signed = part.as_bytes(policy=part.policy.clone(linesep="\r\n"))
    message = signed_parts()
    parts: Any = message.get_payload()
    parts[0] = part
    assert b"\r\n" + signed + b"\r\n--" in content_of(message)


WIDE = ["utf-16", "UTF-16LE", "utf-16-be", "utf-32", "utf_32_le", "cp500"]
LINES = "Grüße\nĊ\r\nlast"  # U+010A has the octet of a line feed


@pytest.mark.parametrize("charset", WIDE)
@pytest.mark.parametrize("cte", ["", "8bit", "binary", "base64", "quoted-printable"])
def test_text_whose_line_ends_are_no_octets_arrives_untouched(charset: str, cte: str) -> None:
    text = LINES.replace("Ċ", "x") if charset == "cp500" else LINES
    octets = text.encode(charset)
    payload: object = octets
    if cte == "base64":
        payload = base64.encodebytes(octets).decode()
    elif cte == "quoted-printable":
        payload = binascii.b2a_qp(octets, istext=False).decode()
    again = reread(leaf(f"text/plain; charset={charset}", payload, cte or None))
    assert again["Content-Transfer-Encoding"] in ("base64", cte)
    assert again.get_payload(decode=True) == octets
    assert again.get_content() == text


@pytest.mark.parametrize("charset", ["utf-16", "utf-32-le"])
@pytest.mark.parametrize("cte", [None, "8bit", "base64", "quoted-printable"])
def test_text_that_set_content_has_spoilt_is_refused(charset: str, cte: str | None) -> None:
    # It cuts the encoded text at 0A octets and ends it with one, in the middle of a character.
    message: Any = addressed(EmailMessage())
    message.set_content("Grüße\n", charset=charset, cte=cte)
    with pytest.raises(InvalidMessage) as caught:
        content_of(message)
    assert (caught.value.rule, caught.value.header) == ("body-charset", "Content-Type")


@pytest.mark.parametrize("charset", ["utf-8", "latin-1", "iso-2022-jp", "utf-7", "none-such", ""])
def test_line_ends_of_other_text_are_line_ends(charset: str) -> None:
    again = reread(leaf(f'text/plain; charset="{charset}"', "a\nb\n"))
    assert again.get_payload(decode=True) == b"a\r\nb\r\n"
    assert "Content-Transfer-Encoding" not in again


def test_mime_text_in_utf_16_is_sent_as_it_is() -> None:
    message = addressed(MIMEText(LINES, "plain", "utf-16"))
    assert reread(message).get_content() == LINES


def test_text_with_every_awkward_line_survives() -> None:
    text = "\n".join(
        ["ü", " lead", "trail ", "tab\t", ".", "..", "From x", "=", "=20", "", "x" * 300]
    )
    message = addressed(EmailMessage())
    message.set_content(text)
    assert reread(message).get_content() == text.replace("\n", "\r\n") + "\r\n"


def test_a_given_boundary_is_kept() -> None:
    content = content_of(mixed(MIMEText("x"), boundary="own boundary"))
    assert b'boundary="own boundary"' in content
    assert content.count(b"\r\n--own boundary") == 2


@pytest.mark.parametrize("boundary", ["", "ü", "x" * 71, "trailing ", "semi;colon"])
def test_an_unusable_boundary_is_replaced(boundary: str) -> None:
    again = reread(mixed(MIMEText("x"), boundary=boundary))
    assert [part.get_payload() for part in again.iter_parts()] == ["x"]
    assert again.get_boundary() != boundary


@pytest.mark.parametrize("line", ["--own", "--own--", "--owner", "--own more", "x\n--own"])
def test_a_boundary_that_occurs_in_a_part_is_replaced(line: str) -> None:
    again = reread(mixed(MIMEText(f"{line}\nx\n"), MIMEText("y"), boundary="own"))
    assert [p.get_payload() for p in again.iter_parts()] == [
        f"{line}\nx\n".replace("\n", "\r\n"),
        "y",
    ]


def test_nested_containers_with_one_boundary_are_told_apart() -> None:
    inner = MIMEMultipart("alternative", boundary="same")
    inner.attach(MIMEText("deep"))
    again = reread(mixed(inner, MIMEText("flat"), boundary="same"))
    leaves = [p.get_payload() for p in again.walk() if not p.is_multipart()]
    assert leaves == ["deep", "flat"]


def test_preamble_and_epilogue_become_plain_lines() -> None:
    message = mixed(MIMEText("x"), boundary="own")
    message.preamble, message.epilogue = "pre\nü", "post\rscript\0"
    content = content_of(message)
    assert b"\r\n\r\npre\r\n?\r\n--own\r\n" in content
    assert content.endswith(b"\r\n--own--\r\npost\r\nscript?\r\n")


def test_a_boundary_that_opens_the_preamble_is_replaced() -> None:
    message = mixed(MIMEText("x"), boundary="own")
    message.preamble = "--own\n\nforged"
    assert [part.get_payload() for part in reread(message).iter_parts()] == ["x"]


def test_a_nested_message_is_not_completed() -> None:
    source = (
        b"Subject: a\r\n folded\r\nX-Long: " + b"y" * 300 + b"\r\nTo: nobody at all\r\n\r\nx\r\n"
    )
    inner = message_from_bytes(source)
    content = content_of(mixed(MIMEText("see below"), MIMEMessage(inner)))
    assert source in content


def test_a_nested_eight_bit_message_becomes_seven_bit() -> None:
    inner = message_from_bytes(
        "Subject: Grüße\nContent-Type: text/plain; charset=utf-8\n\nü\n".encode()
    )
    message = addressed(EmailMessage())
    message.set_content("x")
    message.add_attachment(message_from_bytes(inner.as_bytes(), policy=policy.default))
    attached: Any = list(reread(message).iter_attachments())
    nested = attached[0].get_payload()[0]
    assert str(nested["Subject"]) == "Grüße"
    assert nested.get_content() == "ü\r\n"


def test_a_delivery_status_keeps_its_blocks() -> None:
    source = (
        b"Content-Type: message/delivery-status\r\n\r\n"
        b"Reporting-MTA: dns; a.example\r\n\r\nFinal-Recipient: rfc822; b@b.example\r\n"
        b"Action: failed\r\n\r\n"
    )
    content = content_of(mixed(MIMEText("x"), message_from_bytes(source), kind="report"))
    blocks = source.partition(b"\r\n\r\n")[2]
    assert blocks in content


def test_no_block_of_a_delivery_status_loses_a_body() -> None:
    report = leaf("message/delivery-status", [MIMEText("lost")])
    with pytest.raises(InvalidMessage) as caught:
        content_of(report)
    assert caught.value.rule == "message-payload"


def signed_parts(**changes: Any) -> Message[Any, Any]:
    part = MIMEText(
        changes.get("text", "signed text\n"), "plain", changes.get("charset", "us-ascii")
    )
    for name, value in changes.get("headers", {}).items():
        part[name] = value
    signature = MIMEBase("application", "pgp-signature", name="signature.asc")
    signature.set_payload("-----BEGIN PGP SIGNATURE-----\n")
    return mixed(part, signature, kind="signed", protocol="application/pgp-signature")


def test_a_signed_part_keeps_its_octets() -> None:
    message = signed_parts()
    part = message.get_payload(0)
    assert isinstance(part, Message)
    signed = part.as_bytes(policy=part.policy.clone(linesep="\r\n"))
    assert b"\r\n" + signed + b"\r\n--" in content_of(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "x" * 1000},
        {"headers": {"X-Note": "ü"}},
        {"headers": {"X-Note": "word " * 40}},
    ],
)
def test_a_signed_part_that_would_change_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        content_of(signed_parts(**changes))
    assert caught.value.rule == "signed-part-would-change"


def test_a_signed_part_in_eight_bit_is_refused() -> None:
    message = signed_parts()
    part: Any = message.get_payload(0)
    part._payload = "\udcff"
    with pytest.raises(InvalidMessage) as caught:
        content_of(message)
    assert caught.value.rule == "signed-part-would-change"


def nested(depth: int) -> Message[Any, Any]:
    message: Message[Any, Any] = MIMEText("x")
    for _ in range(depth):
        outer = MIMEMultipart()
        outer.attach(message)
        message = outer
    message["From"], message["To"] = "a@b.example", "c@d.example"
    return message


def test_depth_is_bounded() -> None:
    assert reread(nested(40))
    for depth in (60, 900):
        with pytest.raises(InvalidMessage) as caught:
            content_of(nested(depth))
        assert caught.value.rule == "mime-too-deep"


def test_a_tree_that_holds_itself_is_refused() -> None:
    message = mixed(MIMEText("x"))
    message.attach(message)
    message.attach(message)
    with pytest.raises(InvalidMessage) as caught:
        content_of(message)
    assert caught.value.rule in ("mime-too-deep", "mime-too-many-parts")


def test_the_number_of_parts_is_bounded() -> None:
    part = MIMEText("x")
    with pytest.raises(InvalidMessage) as caught:
        content_of(mixed(*[part] * 10_001))
    assert caught.value.rule == "mime-too-many-parts"


def test_mime_version_is_added_to_a_legacy_body_that_was_encoded() -> None:
    message: Message[Any, Any] = addressed(Message())
    message.set_payload(b"\xff\n")
    again = reread(message)
    assert again["MIME-Version"] == "1.0"
    assert again.get_payload(decode=True) == b"\xff\r\n"


def test_a_binary_attachment_survives() -> None:
    again = reread(mixed(MIMEText("x"), MIMEApplication(RAW)))
    assert list(again.iter_parts())[1].get_payload(decode=True) == RAW
