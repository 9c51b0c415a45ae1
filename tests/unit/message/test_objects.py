"""Message objects: rendering case by case, with what the standard library makes of the same.

The library's behaviour was observed on CPython 3.11.7 (its serialiser, ``as_bytes`` under
``policy.SMTP``); the tests assert ours only, so that they hold on every version.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from email import message_from_bytes, message_from_string, policy
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from typing import Any

import pytest

from mailstrom.errors import InvalidAddress, InvalidMessage
from mailstrom.message import Prepared, compose
from mailstrom.message.address_list import mailboxes, parse_address_list

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def prepare(message: Message[Any, Any], **arguments: object) -> Prepared:
    return compose(
        message,
        now=NOW,
        id_domain_fallback="fallback.example",
        **arguments,  # type: ignore[arg-type]
    )


def modern(**headers: object) -> EmailMessage:
    message = EmailMessage()
    defaults = {"From": "ann@a.example", "To": "bob@b.example", "Subject": "s"}
    for name, value in {**defaults, **headers}.items():
        message[name.replace("_", "-")] = value
    message.set_content("Hello\n")
    return message


def legacy(**headers: object) -> Message[Any, Any]:
    message: Message[Any, Any] = Message()
    defaults = {"From": "ann@a.example", "To": "bob@b.example", "Subject": "s"}
    for name, value in {**defaults, **headers}.items():
        message[name.replace("_", "-")] = value
    message.set_payload("Hello\n")
    return message


def field(prepared: Prepared, name: str) -> str:
    """Unfolded raw value of the only header of that name."""
    head = prepared.content.partition(b"\r\n\r\n")[0].decode("utf-8").replace("\r\n ", " ")
    (value,) = [
        line.partition(": ")[2]
        for line in head.split("\r\n")
        if line.partition(":")[0].lower() == name.lower()
    ]
    return value


def names_and_keys(text: str) -> list[tuple[str, str]]:
    return [(b.name, b.address.key) for b in mailboxes(parse_address_list(text, header="To"))]


def test_a_plain_message_is_rendered_whole() -> None:
    prepared = prepare(modern(Date="Thu, 01 Jan 2026 00:00:00 +0000", Message_ID="<1@a.example>"))
    assert prepared.content == (
        b"From: ann@a.example\r\n"
        b"To: bob@b.example\r\n"
        b"Subject: s\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
        b"Message-ID: <1@a.example>\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"MIME-Version: 1.0\r\n"
        b"\r\n"
        b"Hello\r\n"
    )
    assert (prepared.sender, prepared.recipients) == ("ann@a.example", ("bob@b.example",))


# -- faults of the library's serialiser -----------------------------------------------------------


def test_a_folded_quoted_name_with_commas_keeps_its_one_recipient() -> None:
    # The library drops the quotes when it folds: six recipients, five of them invented.
    name = "long name, with comma " * 5
    prepared = prepare(modern(To=Address(name.strip(), "victim", "good.example")))
    assert names_and_keys(field(prepared, "To")) == [(name.strip(), "victim@good.example")]


def test_a_quoted_non_ascii_name_in_second_place_loses_nobody() -> None:
    # The library encodes one word of the quoted string and leaves its comma outside the quotes.
    people = [("A" * 40, "a@x.example"), ("Jörg, B", "b@x.example"), ("Ü", "c@x.example")]
    prepared = prepare(modern(To=tuple(Address(n, addr_spec=a) for n, a in people)))
    assert names_and_keys(field(prepared, "To")) == people
    assert prepared.recipients == ("a@x.example", "b@x.example", "c@x.example")


def test_a_name_that_looks_like_an_address_stays_a_name() -> None:
    # Refolding an encoded name that decodes to an address made a second address (cpython 121284).
    source = (
        b"From: =?utf-8?q?ceo=40bank=2Eexample=2C_x?= <ann@a.example>\r\nTo: b@b.example\r\n\r\n"
    )
    prepared = prepare(message_from_bytes(source, policy=policy.default))
    assert prepared.sender == "ann@a.example"
    assert names_and_keys(field(prepared, "From")) == [("ceo@bank.example, x", "ann@a.example")]


def test_encoded_words_inside_addresses_are_refused() -> None:
    # The library writes a non-ASCII local part as an encoded-word (cpython 122476) and decodes one
    # that it reads, so that the address depends on the reader.
    for value in ("=?utf-8?q?evil=40x.y?=@b.example", "=?utf-8?q?a?= @b.example"):
        with pytest.raises(InvalidAddress):
            prepare(modern(To=value))
        with pytest.raises(InvalidAddress):
            prepare(legacy(To=value))


def test_a_non_ascii_local_part_stays_utf8_and_needs_smtputf8() -> None:
    prepared = prepare(modern(To=Address("Jörg", "jörg", "bücher.example")))
    assert field(prepared, "To").endswith(" <jörg@xn--bcher-kva.example>")
    assert (prepared.smtputf8, prepared.eightbit) == (True, True)
    assert prepared.recipients == ("jörg@xn--bcher-kva.example",)


def test_a_fold_of_white_space_only_does_not_cut_the_header() -> None:
    # Folding a long run of spaces gave a blank line, the end of the headers (cpython 132105).
    subject = "x " * 45 + " " * 90 + "y"
    prepared = prepare(modern(Subject=subject))
    head = prepared.content.partition(b"\r\n\r\n")[0]
    assert all(line.strip() for line in head.split(b"\r\n"))
    assert message_from_bytes(prepared.content, policy=policy.default)["subject"] == subject
    with pytest.raises(InvalidMessage):
        prepare(message_from_string("From: a@b.c\nTo: d@e.f\nSubject: a\n \n b\n\nx"))


def test_the_first_address_of_a_malformed_list_is_no_recipient() -> None:
    # The library reads a@evil.example as the address; other readers read b@good.example.
    with pytest.raises(InvalidAddress) as caught:
        prepare(modern(To="a@evil.example <b@good.example>"))
    assert (caught.value.rule, caught.value.header) == ("address-syntax", "To")


@pytest.mark.parametrize(
    "name", ["=?utf-8?q?b?=", "x =?utf-8?q?b?= y", 'a "=?utf-8?q?b?="', "=?", "a,=?utf-8?b?YQ==?="]
)
def test_a_name_that_looks_encoded_stays_as_it_is(name: str) -> None:
    # Written as atoms or in quotes, some readers would decode it to another name.
    prepared = prepare(modern(To=Address(name, "bob", "b.example")))
    again = message_from_bytes(prepared.content, policy=policy.default)
    stored = modern(To=Address(name, "bob", "b.example"))["To"].addresses[0].display_name
    assert [a.display_name for a in again["To"].addresses] == [stored]
    assert names_and_keys(field(prepared, "To")) == [(stored, "bob@b.example")]


# -- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "plain",
        "two  spaces",
        " leading",
        "trailing ",
        "Grüße",
        "漢字" * 60,
        "😀" * 40,
        "=?utf-8?q?literal?=",
        "a =?utf-8?q?b?= c",
        "x" * 2000,
        "word " * 400 + "end",
        "tab\tinside",
        "bell\x07",
        "e\u0301" * 70,
        "עברית ועוד" * 20,
        "=?",
        "?=",
        "a" * 66 + " " + "b" * 80,
    ],
)
def test_a_subject_is_read_back_exactly(subject: str) -> None:
    message = modern(Subject=subject)
    stored = str(message["Subject"])
    prepared = prepare(message)
    again = message_from_bytes(prepared.content, policy=policy.default)
    assert str(again["Subject"]) == stored
    assert_clean(prepared.content)


@pytest.mark.parametrize("subject", ["a\u2028b\x85c", "a\x1cb\x0bc"])
def test_separators_that_some_take_for_line_breaks_are_encoded(subject: str) -> None:
    prepared = prepare(legacy(Subject=subject))
    assert field(prepared, "Subject").startswith("=?utf-8?")
    assert str(message_from_bytes(prepared.content, policy=policy.default)["Subject"]) == subject


def assert_clean(content: bytes) -> None:
    assert content.isascii()
    assert content.endswith(b"\r\n")
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert max(map(len, content.split(b"\r\n"))) <= 998
    head = content.partition(b"\r\n\r\n")[0]
    assert all(len(line) <= 78 or b" " not in line.strip() for line in head.split(b"\r\n"))


def test_an_encoded_subject_of_a_legacy_message_is_left_encoded() -> None:
    prepared = prepare(legacy(Subject="=?iso-8859-1?q?J=F6rg?= and more"))
    assert field(prepared, "Subject") == "=?iso-8859-1?q?J=F6rg?= and more"
    assert prepared.subject == "Jörg and more"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Jörg", "Jörg"),
        (Header("Jörg", "utf-8"), "Jörg"),
        (Header("Jörg", "iso-8859-1"), "Jörg"),
        (Header("plain"), "plain"),
        ("J\udcc3\udcb6rg", "Jörg"),
        ("ü =?utf-8?q?=C3=B6?=", "ü ö"),
    ],
)
def test_legacy_values_of_every_kind_are_encoded(value: object, text: str) -> None:
    prepared = prepare(legacy(Subject=value))
    assert str(message_from_bytes(prepared.content, policy=policy.default)["Subject"]) == text
    assert prepared.subject == text


def test_a_header_of_several_chunks_names_a_person() -> None:
    header = Header("Jörg, B", "utf-8")
    header.append("<b@b.example>", "us-ascii")
    prepared = prepare(legacy(To=header))
    assert names_and_keys(field(prepared, "To")) == [("Jörg, B", "b@b.example")]


@pytest.mark.parametrize(
    ("headers", "rule"),
    [
        ({"Subject": "\udcff"}, "header-undecodable"),
        ({"Subject": "a\ud83d"}, "header-undecodable"),
        ({"Message_ID": "<ü@a.example>"}, "header-not-ascii"),
        ({"Message_ID": ""}, "message-id"),
        ({"References": "<a\x07@b>"}, "header-control"),
        ({"References": "<" + "a" * 1000 + "@b>"}, "line-too-long"),
        ({"Content_Type": "text/plain; charset"}, "parameter"),
        ({"Content_Type": "; charset=x"}, "parameter"),
        ({"Content_Type": "text/plain; charset=a; charset=b"}, "parameter"),
        ({"Content_Type": "text/plain; name*1=a"}, "parameter"),
        ({"Content_Type": "text/plain; name*=none-such''a"}, "parameter"),
        ({"Content_Type": "text/plain (open"}, "comment"),
        ({"Content_Transfer_Encoding": "base64", "Subject": "x"}, None),
        ({"From": ""}, "no-sender"),
        ({"To": ""}, "no-recipients"),
        ({"From": "a@b.c, d@e.f"}, "sender-ambiguous"),
        ({"To": "bob"}, "address-syntax"),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_name(
    headers: dict[str, object], rule: str | None
) -> None:
    message = legacy(**headers)
    if rule is None:
        assert prepare(message)
        return
    with pytest.raises(InvalidMessage) as caught:
        prepare(message)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    "name", ["From", "To", "Cc", "Subject", "Date", "Message-ID", "Reply-To", "Content-Type"]
)
def test_headers_that_may_stand_once_do(name: str) -> None:
    message = legacy()
    values = {"Subject": "s", "Content-Type": "text/plain", "Date": "1 Jan 2026 00:00:00 +0000"}
    value = values.get(name, "x@y.example")
    del message[name]
    message[name] = value
    message[name.upper()] = value
    with pytest.raises(InvalidMessage) as caught:
        prepare(message)
    assert caught.value.rule == ("from-duplicate" if name == "From" else "duplicate-header")


def test_a_message_without_from_is_refused() -> None:
    message = modern()
    del message["From"]
    with pytest.raises(InvalidMessage) as caught:
        prepare(message)
    assert caught.value.rule == "from-missing"


def test_empty_address_headers_are_left_out() -> None:
    assert b"Cc" not in prepare(legacy(Cc="")).content


def test_groups_are_opened_and_kept() -> None:
    group = Group("Team, A", (Address("Ü", "u", "x.example"), Address("", "v", "x.example")))
    prepared = prepare(modern(To=group, Bcc="hidden:secret@x.example;"))
    assert prepared.recipients == ("u@x.example", "v@x.example", "secret@x.example")
    entries = parse_address_list(field(prepared, "To"), header="To")
    assert [type(entry).__name__ for entry in entries] == ["Group"]
    assert b"secret" not in prepared.content


def test_the_sender_header_wins_over_several_authors() -> None:
    assert prepare(modern(From="a@b.c, d@e.f", Sender="d@e.f")).sender == "d@e.f"


def test_resent_fields_are_the_envelope() -> None:
    message = modern()
    for name, value in (("From", "c@c.example"), ("To", "d@d.example"), ("Bcc", "e@e.example")):
        message[f"Resent-{name}"] = value
    prepared = prepare(message)
    assert (prepared.sender, prepared.recipients) == ("c@c.example", ("d@d.example", "e@e.example"))
    assert b"e@e.example" not in prepared.content


@pytest.mark.parametrize(
    "filename",
    [
        "plain.pdf", "with space.pdf", 'q"uote.pdf', "back\\slash.pdf", "semi;colon.pdf",
        "ümlaut.pdf", "漢字" * 40 + ".pdf", "=?utf-8?q?a?=.pdf", "per%20cent.pdf", "apo'stro.pdf",
        "a" * 300, "tab\tname", "ctl\x07name", "emoji😀.png", "ends\\", "*star*", "~tilde", "(c)",
    ],
)  # fmt: skip
def test_a_file_name_is_read_back_exactly(filename: str) -> None:
    message = modern()
    message.add_attachment(b"\x00\xff", maintype="application", subtype="pdf", filename=filename)
    stored = message.get_payload()[1].get_filename()  # type: ignore[index,union-attr]
    prepared = prepare(message)
    assert_clean(prepared.content)
    (part,) = message_from_bytes(prepared.content, policy=policy.default).iter_attachments()
    assert part.get_filename() == stored
    assert part.get_content() == b"\x00\xff"


@pytest.mark.parametrize("build", [modern, legacy])
def test_the_callers_object_is_never_changed(build: Any) -> None:
    message = build(Bcc="x@y.example", Subject="Grüße" * 30)
    if isinstance(message, EmailMessage):
        message.add_alternative("<p>ü</p>", subtype="html")
    before = copy.deepcopy(message)
    prepare(message)
    for now, then in zip(message.walk(), before.walk(), strict=True):
        assert list(now.raw_items()) == list(then.raw_items())
        assert now.is_multipart() or now.get_payload() == then.get_payload()


def test_mime_text_with_a_charset_is_taken() -> None:
    message = MIMEText("Grüße\n", "plain", "utf-8")
    message["From"], message["To"] = "a@b.example", "c@d.example"
    prepared = prepare(message)
    again = message_from_bytes(prepared.content, policy=policy.default)
    assert again.get_content() == "Grüße\n"
    assert_clean(prepared.content)
