"""The strict reader: what it finds, and which octet it refuses by which rule."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidAddress, InvalidMessage
from mailstrom.message import RULES, Group, Mailbox, Parsed, compose, parse, reader
from mailstrom.message.address import parse_address
from mailstrom.message.address_list import Entries
from mailstrom.message.parsed import DEFINED

WHOLE = (
    b"Return-Path: <>\r\n"
    b"Received: from mx (mx.x.example [192.0.2.1]) by b.example with ESMTPS\r\n"
    b"\tid 4.a=b for <bob@b.example>; Fri, 2 Jan 2026 04:04:05 +0100\r\n"
    b"Resent-Date: Fri, 02 Jan 2026 03:04:05 +0000\r\n"
    b"Resent-From: carl@c.example\r\n"
    b"Resent-To: dora@d.example\r\n"
    b"Resent-Message-ID: <2@c.example>\r\n"
    b"Resent-From: eve@e.example, fay@f.example\r\n"
    b"Resent-Sender: eve@e.example\r\n"
    b"Resent-Date: Thu, 01 Jan 2026 03:04:05 +0000\r\n"
    b"Resent-Bcc: (nobody)\r\n"
    b"Date: Thu, 1 Jan 2026 00:00 -0000 (noon\r\n (somewhere))\r\n"
    b"From: =?utf-8?q?J=C3=B6rg?=\r\n =?utf-8?q?_B?= <jorg (x) @ (y) a.example>\r\n"
    b'Sender: "A, \\"B" <b@[192.0.2.1]>\r\n'
    b"Reply-To: (nobody) Nobody:;\r\n"
    b'To: Team One: Ann <ann@a.example>,\r\n "b b"@b.example;, Carl C <c@C.example>\r\n'
    b"Cc: d@d.example\r\n"
    b"Bcc: \r\n"
    b"Message-ID: <1@a.example>\r\n"
    b"In-Reply-To: <0@a.example>\r\n"
    b"References: <-1@a.example> (older)\r\n <0@[192.0.2.1]>\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n  and =?utf-8?b?w7w=?= more\r\n"
    b"Comments: one\r\n"
    b"Comments: two\r\n"
    b'Keywords: a b, "c, d"\r\n'
    b"Keywords: =?utf-8?q?=C3=BC?=\r\n"
    b"X-Empty:\r\n"
    b"MIME-Version: 1.0\r\n"
    b"\r\n"
    b"Hello\r\n\r\n.\r\nlast, without an end"
)
PLAIN = b"Date: 1 Jan 2026 00:00:00 +0000\r\nFrom: a@b.example\r\n\r\n"


def box(name: str, key: str) -> Mailbox:
    return Mailbox(name=name, address=parse_address(key))


def test_every_field_comes_back_typed() -> None:
    found = parse(WHOLE)
    assert found.date == datetime(2026, 1, 1, tzinfo=UTC)
    assert found.from_ == (box("Jörg B", "jorg@a.example"),)
    assert found.sender == box('A, "B', "b@[192.0.2.1]")
    assert found.reply_to == (Group(name="Nobody", members=()),)
    assert found.to == (
        Group(
            name="Team One", members=(box("Ann", "ann@a.example"), box("", '"b b"@b.example'))
        ),
        box("Carl C", "c@c.example"),
    )  # fmt: skip
    assert (found.cc, found.bcc) == ((box("", "d@d.example"),), ())
    assert found.message_id == "<1@a.example>"
    assert found.in_reply_to == ("<0@a.example>",)
    assert found.references == ("<-1@a.example>", "<0@[192.0.2.1]>")
    assert found.subject == "Grüße  and ü more"
    assert found.comments == ("one", "two")
    assert found.keywords == ("a b", "c, d", "ü")
    assert found.return_path is None
    (received,) = found.received
    assert received.date == datetime(2026, 1, 2, 4, 4, 5, tzinfo=timezone(timedelta(hours=1)))
    assert received.tokens.startswith("from mx (mx.x.example [192.0.2.1]) by b.example")
    assert [one.name for one in found.trace] == ["Return-Path", "Received"]
    assert [(one.name, one.text) for one in found.optional] == [
        ("X-Empty", ""),
        ("MIME-Version", "1.0"),
    ]
    newest, oldest = found.resent
    assert (newest.to, newest.message_id) == ((box("", "dora@d.example"),), "<2@c.example>")
    assert (len(oldest.from_), oldest.sender) == (2, box("", "eve@e.example"))
    assert found.body == b"Hello\r\n\r\n.\r\nlast, without an end"


def test_what_was_read_is_rendered_octet_for_octet() -> None:
    assert parse(WHOLE).render() == WHOLE
    head = PLAIN.removesuffix(b"\r\n")
    assert parse(head).render() == head
    assert parse(PLAIN).render() == PLAIN


def test_dates_begin_with_the_year_1900() -> None:
    found = parse(PLAIN.replace(b"2026", b"1900"))
    assert found.date == datetime(1900, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_bytes_type_is_read(kind: Callable[[bytes], bytes]) -> None:
    found = parse(kind(WHOLE))
    assert found == parse(WHOLE)
    assert type(found.body) is bytes


@pytest.mark.parametrize("value", [WHOLE.decode(), None, 5, [WHOLE], object()])
def test_what_is_no_bytes_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse(value)  # type: ignore[arg-type]
    assert (caught.value.rule, caught.value.position) == ("message-type", None)
    assert type(value).__name__ in str(caught.value)


def test_missing_fields_are_none_or_empty() -> None:
    found = parse(PLAIN)
    assert (found.subject, found.sender, found.message_id, found.return_path) == (None,) * 4
    assert (found.to, found.references, found.resent, found.received) == ((),) * 4


def test_utf8_stands_where_rfc_6532_allows_it() -> None:
    found = parse(
        "Date: 1 Jan 2026 00:00:00 +0000\r\nFrom: Jörg <jörg@bücher.example>\r\nSubject: ü\r\n"
        "Message-ID: <ü@a.example>\r\n\r\n".encode()
    )
    assert found.from_ == (box("Jörg", "jörg@xn--bcher-kva.example"),)
    assert (found.subject, found.message_id) == ("ü", "<ü@a.example>")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Fri, 02 Jan 2026 03:04:05 +0000", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2 Jan 2026 03:04 +0130", datetime(2026, 1, 2, 1, 34, tzinfo=UTC)),
        ("31 Dec 2016 23:59:60 +0000", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("fri, 2 jan 2026 03:04:05 -0800", datetime(2026, 1, 2, 11, 4, 5, tzinfo=UTC)),
    ],
)
def test_dates_are_aware(text: str, moment: datetime) -> None:
    assert parse(f"Date: {text}\r\nFrom: a@b.c\r\n\r\n".encode()).date == moment


def test_each_defined_field_has_its_grammar() -> None:
    assert reader._GRAMMAR.keys() == DEFINED


# `|` marks the octet that is to be named.
REFUSED = [
    (b"From: a@b.c\r\n\r\n|", "date-missing", "Date"),
    (b"Date: 1 Jan 2026 00:00:00 +0000\r\n\r\n|x", "from-missing", "From"),
    (b"|", "date-missing", "Date"),
    (PLAIN[:-2] + b"|from: c@d.e\r\n\r\n", "duplicate-header", "from"),
    (PLAIN[:-2] + b"Subject: a\r\n|Subject: b\r\n\r\n", "duplicate-header", "Subject"),
    (PLAIN[:-2] + b"no| colon here\r\n\r\n", "header-syntax", None),
    (PLAIN[:-2] + b"Subject|: x\r\n\r\n".replace(b":", b" :"), "header-syntax", None),
    (b"| X: y\r\n" + PLAIN, "header-syntax", None),
    ("Sü: y\r\n".encode().replace("ü".encode(), "|ü".encode()) + PLAIN, "header-syntax", None),
    (PLAIN[:-2] + b"X: a\r\n| \t\r\n b\r\n\r\n", "header-blank-fold", "X"),
    (PLAIN[:-2] + b"X: a|\x07b\r\n\r\n", "header-control", "X"),
    (PLAIN[:-2] + "X: ä|\u2028b\r\n\r\n".encode(), "header-control", "X"),
    (PLAIN[:-2] + b"X: \xc3\xbc|\xff\r\n\r\n", "header-undecodable", "X"),
    (PLAIN[:-2] + b"X: a|\nY: b\r\n\r\n", "line-endings", "X"),
    (PLAIN[:-2] + b"X: a|\rb\r\n\r\n", "line-endings", "X"),
    (PLAIN[:-2] + b"X: a|", "line-endings", None),
    (PLAIN + b"a\r\nb|\nc", "line-endings", None),
    (PLAIN + b"a\r\nb|\r", "line-endings", None),
    (PLAIN + b"a|\0\r\nb\nc", "nul", None),
    (PLAIN + b"ok\r\n" + b"x" * 998 + b"|x\r\n", "line-too-long", None),
    (PLAIN[:-2] + b"X: " + b"x" * 995 + b"|x\r\n\r\n", "line-too-long", "X"),
    (b"Date: |yesterday\r\n" + PLAIN, "date-syntax", "Date"),
    (b"Date: |Thu, 2 Jan 2026 00:00:00 +0000\r\nFrom: a@b.c\r\n\r\n", "date-syntax", "Date"),
    (b"Date: |30 Feb 2026 00:00:00 +0000\r\nFrom: a@b.c\r\n\r\n", "date-syntax", "Date"),
    (b"Date: |2 Jan 2026 00:00:00 GMT\r\nFrom: a@b.c\r\n\r\n", "date-syntax", "Date"),
    (b"Date: |2 Jan 26 00:00:00 +0000\r\nFrom: a@b.c\r\n\r\n", "date-syntax", "Date"),
    (b"Date: |31 Dec 1899 00:00:00 +0000\r\nFrom: a@b.c\r\n\r\n", "date-syntax", "Date"),
    (b"Date: 2 Jan 2026 00:00:00 +0000 |x\r\nFrom: a@b.c\r\n\r\n", "date-syntax", "Date"),
    (PLAIN[:-2] + b"To:|\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: a@b.c,|\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: a@b.c,|, d@e.f\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: a@b.c |d@e.f\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + "To: ü <a@b.c|\r\n\r\n".encode(), "address-syntax", "To"),
    (PLAIN[:-2] + b"To: a@b.c |<d@e.f>\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: J. Doe <d@e.f>\r\n\r\n".replace(b". ", b"|. "), "address-syntax", "To"),
    (PLAIN[:-2] + b"To: a |. b@c.d\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: <|@x.y:a@b.c>\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: bob|\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: g: a@b.c|\r\n\r\n", "address-group", "To"),
    (PLAIN[:-2] + b"To: g: h|: a@b.c;;\r\n\r\n", "address-syntax", "To"),
    (PLAIN[:-2] + b"To: |a@b_c.d\r\n\r\n", "domain-character", "To"),
    (PLAIN[:-2] + b"To: |(open a@b.c\r\n\r\n", "comment", "To"),
    (PLAIN[:-2] + b"Sender:| a@b.c, d@e.f\r\n\r\n", "sender-ambiguous", "Sender"),
    (PLAIN[:-2] + b"Message-ID: |1@b.c\r\n\r\n", "message-id", "Message-ID"),
    (PLAIN[:-2] + b"Message-ID: <1@b.c> |<2@b.c>\r\n\r\n", "message-id", "Message-ID"),
    (PLAIN[:-2] + b"References: <1@b.c> |phrase\r\n\r\n", "message-id", "References"),
    (PLAIN[:-2] + b"Keywords: a,|, b\r\n\r\n", "phrase", "Keywords"),
    (PLAIN[:-2] + b"Return-Path: |a@b.c\r\n\r\n", "address-syntax", "Return-Path"),
    (PLAIN[:-2] + b"Received: from x|\r\n\r\n", "received", "Received"),
    (PLAIN[:-2] + b"Received: from x; |now\r\n\r\n", "date-syntax", "Received"),
    (
        b"Date: 1 Jan 2026 00:00:00 +0000\r\n|From: a@b.c, d@e.f\r\n\r\n",
        "sender-ambiguous",
        "From",
    ),
    (b"Date: 1 Jan 2026 00:00:00 +0000\r\n|From: g: a@b.c;\r\n\r\n", "sender-ambiguous", "From"),
    (b"|Resent-From: a@b.c\r\n" + PLAIN, "resent-incomplete", None),
]


@pytest.mark.parametrize(("marked", "rule", "header"), REFUSED)
def test_the_first_violation_is_named(marked: bytes, rule: str, header: str | None) -> None:
    data = marked.replace(b"|", b"", 1)
    with pytest.raises(InvalidMessage) as caught:
        parse(data)
    error = caught.value
    assert (error.rule, error.header, error.position) == (rule, header, marked.index(b"|"))
    assert str(error.position) in str(error) or rule.startswith("domain")
    assert rule in RULES


def test_faults_inside_addresses_are_invalid_addresses() -> None:
    for text in (b"To: bob\r\n", b"To: a@b_c.d\r\n"):
        with pytest.raises(InvalidAddress):
            parse(text + PLAIN)


def entries_of(found: Parsed) -> list[Entries]:
    return [found.from_, found.to, found.cc, found.bcc, found.reply_to]


@given(
    st.lists(
        st.sampled_from(
            [b"Date: 1 Jan 2026 00:00:00 +0000\r\n", b"From: a@b.c\r\n", b"To: ", b"Cc: g:;\r\n",
             b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xc3\xbc", b"\xff", b"(", b")",
             b'"', b"\\", b"<", b">", b"a@b.c", b"=?utf-8?q?a?=", b",", b";", b"x" * 500, b"[",
             b"]", b"Subject: ", b"Received: ", b"Keywords: ", b"References: ", b"Return-Path: "]
        ),
        max_size=14,
    )
)  # fmt: skip
def test_any_octets_are_read_whole_or_refused_with_their_place(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    refused: InvalidMessage | None
    try:
        found = parse(data)
    except InvalidMessage as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.rule in RULES
        assert refused.position is not None
        assert 0 <= refused.position <= len(data)
        return
    assert found.render() == data
    for entries in entries_of(found):
        for entry in entries:
            assert isinstance(entry, Mailbox | Group)
    # The lenient reader of finished messages takes whatever the strict one takes.
    if found.separated:
        compose(
            data, sender="", recipients=["a@b.c"], now=datetime.now(UTC), id_domain_fallback="x.y"
        )
