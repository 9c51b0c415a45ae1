"""RFC 6854 authors, folding, internationalised addresses, positions: one rule each."""

from __future__ import annotations

from datetime import UTC, datetime
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from typing import Any

import pytest

from mailstrom.errors import InvalidMessage
from mailstrom.message import Prepared, compose, parse, parse_address
from mailstrom.message.address_list import mailboxes, parse_address_list

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def built(**headers: object) -> EmailMessage:
    message = EmailMessage()
    defaults = {"From": "ann@a.example", "To": "bob@b.example"}
    for name, value in {**defaults, **headers}.items():
        message[name.replace("_", "-")] = value
    message.set_content("x\n")
    return message


def prepare(message: Message[Any, Any] | bytes, **arguments: object) -> Prepared:
    return compose(
        message,
        now=NOW,
        id_domain_fallback="x.example",
        **arguments,  # type: ignore[arg-type]
    )


TWO = "a@b.example, c@d.example"
TEAM = "Team: a@b.example;"


@pytest.mark.parametrize(
    ("headers", "sender", "found"),
    [
        ({"From": TWO, "Sender": "c@d.example"}, None, "c@d.example"),
        ({"From": TWO, "Sender": "c@d.example"}, "e@f.example", "e@f.example"),
        ({"From": TEAM, "Sender": "c@d.example"}, None, "c@d.example"),
        ({"From": TEAM}, "e@f.example", "e@f.example"),
        ({"From": TEAM}, "", ""),
        ({"From": "Nobody:;"}, "e@f.example", "e@f.example"),
    ],
)
def test_several_authors_and_groups_may_write(
    headers: dict[str, str], sender: str | None, found: str
) -> None:
    prepared = prepare(built(**headers), sender=sender)
    assert prepared.sender == found
    assert f"\r\nFrom: {headers['From']}\r\n".encode() in b"\r\n" + prepared.content


@pytest.mark.parametrize(
    ("headers", "sender", "rule", "header"),
    [
        ({"From": TWO}, None, "sender-ambiguous", "From"),
        ({"From": TWO}, "e@f.example", "sender-ambiguous", "From"),
        ({"From": TEAM}, None, "sender-ambiguous", "From"),
        ({"From": "Nobody:;"}, None, "no-sender", "From"),
        ({"From": TWO, "Sender": TWO}, None, "sender-ambiguous", "Sender"),
        ({"From": TWO, "Sender": TEAM}, None, "sender-ambiguous", "Sender"),
        ({"Resent-From": TWO, "Resent-To": "x@y.example"}, None, "sender-ambiguous", "Resent-From"),
    ],
)
def test_somebody_has_to_send(
    headers: dict[str, str], sender: str | None, rule: str, header: str
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepare(built(**headers), sender=sender)
    assert (caught.value.rule, caught.value.header) == (rule, header)
    assert caught.value.value is not None


def test_finished_bytes_with_a_sender_are_not_asked_for_another() -> None:
    octets = f"From: {TWO}\r\nTo: x@y.example\r\n\r\nx\r\n".encode()
    assert prepare(octets, sender="").sender == ""
    with pytest.raises(InvalidMessage) as caught:
        prepare(octets)
    assert caught.value.rule == "sender-ambiguous"


@pytest.mark.parametrize("name", ["To", "Cc", "Bcc", "Reply-To", "Resent-To"])
def test_groups_stand_wherever_addresses_do(name: str) -> None:
    group = Group("Leute, Ü", (Address("Ä", "a", "x.example"), Address("", "b", "x.example")))
    message = built(**{"Resent-From": "r@r.example"} if name == "Resent-To" else {})
    del message[name]
    message[name] = (group, Group("Empty", ()), Address("", "c", "x.example"))
    prepared = prepare(message, recipients=None if name != "Reply-To" else ["x@y.example"])
    if name != "Reply-To":
        assert set(prepared.recipients) >= {"a@x.example", "b@x.example", "c@x.example"}
    if name not in ("Bcc", "Resent-To"):
        first, second, third = parse(prepared.content).get(name)[0].value  # type: ignore
        assert (first.name, len(first.members), second.members) == ("Leute, Ü", 2, ())
        assert third.address.key == "c@x.example"


# -- folding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "Word " * 20 + "end",
        "a" * 60,
        "A, " * 22 + "B",
        'q"' * 30,
        "漢字" * 30,
        "a" * 65 + " b",
        "x",
    ],
)
@pytest.mark.parametrize("local", ["b", "l" * 64])
def test_addresses_fold_at_78(name: str, local: str) -> None:
    person = Address(name, local, "d" * 63 + ".example" if len(local) == 1 else "d.example")
    prepared = prepare(built(To=(person, Address("", "z", "z.example"))))
    head = prepared.content.partition(b"\r\n\r\n")[0]
    assert all(len(line) <= 78 for line in head.split(b"\r\n"))
    assert [box.name for box in mailboxes(parse(prepared.content).to)] == [name, ""]


def test_no_line_passes_998_octets_whatever_cannot_be_folded() -> None:
    prepared = prepare(built(Subject="x" * 5000, X_Note="y" * 990 + " " + "z" * 990))
    assert max(map(len, prepared.content.split(b"\r\n"))) <= 998
    with pytest.raises(InvalidMessage) as caught:
        prepare(built(References="<" + "a" * 1000 + "@b.example>"))
    assert (caught.value.rule, caught.value.header) == ("line-too-long", "References")


@pytest.mark.parametrize("kind", [EmailMessage, Message])
@pytest.mark.parametrize("name", ["References", "In-Reply-To"])
def test_identifiers_fold_between_each_other(kind: type[Message[Any, Any]], name: str) -> None:
    ids = [f"<{'a' * 30}{number}@m.example>" for number in range(40)]
    for joint in ("", " ", " (so) "):
        message = kind()
        message["From"], message["To"] = "a@b.example", "c@d.example"
        message[name] = joint.join(ids)
        message["Message-ID"] = "<1@m.example> (mine)"
        message.set_payload("x")
        prepared = prepare(message)
        assert max(map(len, prepared.content.split(b"\r\n"))) <= 78
        found = parse(prepared.content)
        assert (found.references or found.in_reply_to) == tuple(ids)
        assert (found.message_id, prepared.message_id) == ("<1@m.example>",) * 2


def test_obsolete_phrases_between_identifiers_stay() -> None:
    value = "Your message of Friday <1@m.example> (x"
    message = Message()
    message["From"], message["To"], message["In-Reply-To"] = "a@b.example", "c@d.example", value
    assert f"In-Reply-To: {value}\r\n".encode() in prepare(message).content


# -- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Ann . Bee @ x.example", "Ann.Bee@x.example"),
        ("Ann <ann (here) @ (there) x . example>", "ann@x.example"),
        ('"a b" . c@x.example', '"a b.c"@x.example'),
        ("(first) ann@x.example (last (one))", "ann@x.example"),
        (", ann@x.example,, ", "ann@x.example"),
        ("Dr. Ann B. <ann@x.example>", "ann@x.example"),
        ("ann@ [192.0.2.1]", "ann@[192.0.2.1]"),
    ],
)
def test_obsolete_address_forms_are_read_and_not_written(text: str, key: str) -> None:
    (box,) = mailboxes(parse_address_list(text, header="To"))
    assert box.address.key == key
    octets = f"From: a@b.example\r\nTo: {text}\r\n\r\nx\r\n".encode()
    assert prepare(octets).recipients == (key,)
    content = prepare(built(To=text)).content
    assert [one.address.key for one in mailboxes(parse(content).to)] == [key]


@pytest.mark.parametrize("text", ["a b@x.example", "a . @x.example", "a@x . . example", "a@b@c.d"])
def test_what_readers_read_differently_is_refused(text: str) -> None:
    with pytest.raises(InvalidMessage):
        parse_address_list(text, header="To")


@pytest.mark.parametrize(
    ("text", "key", "smtputf8"),
    [
        ("Ann@BÜCHER.example", "Ann@xn--bcher-kva.example", False),
        ("a@straße.example", "a@xn--strae-oqa.example", False),
        ("a@cafe\u0301.example", "a@xn--caf-dma.example", False),
        ("ÄNN@b.example", "ÄNN@b.example", True),
        ("A\u030ann@b.example", "A\u030ann@b.example", True),
        ("ann@例え.テスト", "ann@xn--r8jz45g.xn--zckzah", False),
    ],
)
def test_domains_become_a_labels_and_local_parts_stay(text: str, key: str, smtputf8: bool) -> None:
    address = parse_address(text)
    assert (address.key, address.smtputf8) == (key, smtputf8)
    prepared = prepare(built(To=text, Subject="Grüße", From="Jörg <j@bücher.example>"))
    assert prepared.recipients == (key,)
    assert prepared.smtputf8 is smtputf8


@pytest.mark.parametrize("domain", ["ｂ.example", "☃.example", "a\u200db.example", "ﬁ.example"])
def test_what_idna_2008_does_not_allow_is_not_mapped(domain: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_address(f"a@{domain}")
    assert caught.value.rule == "domain-idna"


# -- identifiers and positions --------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["1@b.c", "<1>", "<a b@c>", "<@>", "<a@b> <c@d>", "<a@b", "<a@b@c>"]
)
def test_a_message_id_is_checked(value: str) -> None:
    # The older class: EmailMessage itself shortens some of these, and fails over others.
    message: Message[Any, Any] = Message()
    message["From"], message["To"], message["Message-ID"] = "a@b.c", "d@e.f", value
    message.set_payload("x")
    octets = f"From: a@b.c\r\nTo: d@e.f\r\nMessage-ID: {value}\r\n\r\n".encode()
    for given in (message, octets):
        with pytest.raises(InvalidMessage) as caught:
            prepare(given)
        assert (caught.value.rule, caught.value.header) == ("message-id", "Message-ID")
        assert caught.value.value == repr(value)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("marked", "rule", "header"),
    [
        (b"From: a@b.c\nTo: d@e.f\n|no colon\n\nx\n", "header-syntax", None),
        (b"From: a@b.c\nX: a\n| \n b\n\nx\n", "header-blank-fold", "X"),
        (b"From: a@b.c\nX: a|\x07\nY: b\n\nx\n", "header-control", "X"),
        ("From: a@b.c\nX: ä|\u2028\n\nx\n".encode(), "header-control", "X"),
        (b"From: a@b.c\nX: a|\xff\n\nx\n", "header-undecodable", "X"),
        (b"From: a@b.c\n\nab\n|" + b"x" * 999 + b"\n", "line-too-long", None),
        (b"From: a@b.c\n|X: " + b"x" * 999 + b"\n\nab\n", "line-too-long", "X"),
        (b"From: a@b.c\nX: b\n| " + b"x" * 999 + b"\n\nab\n", "line-too-long", "X"),
        (b"From: a@b.c\n\nab|\0\n", "nul", None),
    ],
)
def test_refused_bytes_name_header_and_octet(
    marked: bytes, rule: str, header: str | None, line_end: bytes
) -> None:
    marked = marked.replace(b"\n", line_end)
    with pytest.raises(InvalidMessage) as caught:
        prepare(marked.replace(b"|", b""))
    error = caught.value
    assert (error.rule, error.header, error.position) == (rule, header, marked.index(b"|"))


def test_mixed_line_ends_have_a_position() -> None:
    octets = b"From: a@b.c\r\n\r\nx\ny\r\n"
    with pytest.raises(InvalidMessage) as caught:
        prepare(octets)
    assert (caught.value.rule, caught.value.position) == ("line-endings", 16)
