"""Messages given as bytes: what is refused by which rule, and that the rest is left alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.message import Prepared, compose
from mailstrom.message.plain import read_plain

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FULL = (
    b"From: Ann <ann@a.example>\r\n"
    b"To: bob@b.example\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    b"Message-ID: <1@a.example>\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"\r\n"
    b"Hello\r\n.\r\nFrom here\r\n"
)


def prepare(content: bytes, **arguments: object) -> Prepared:
    return compose(
        content,
        now=NOW,
        id_domain_fallback="fallback.example",
        **arguments,  # type: ignore[arg-type]
    )


def test_a_complete_message_is_left_alone() -> None:
    prepared = prepare(FULL)
    assert prepared == Prepared(
        content=FULL,
        sender="ann@a.example",
        recipients=("bob@b.example",),
        message_id="<1@a.example>",
        subject="Grüße",
        eightbit=False,
        smtputf8=False,
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_bytes_type_is_taken_and_left_unchanged(kind: Any) -> None:
    given_object = kind(FULL)
    assert prepare(given_object).content == FULL
    assert bytes(given_object) == FULL


def test_line_feeds_become_crlf() -> None:
    assert prepare(FULL.replace(b"\r\n", b"\n")).content == FULL


def test_the_last_line_is_ended() -> None:
    assert prepare(FULL[:-2]).content == FULL


def test_missing_date_and_message_id_are_put_on_top() -> None:
    bare = b"From: ann@a.example\r\nTo: bob@b.example\r\n\r\nx\r\n"
    prepared = prepare(bare)
    date, message_id, rest = prepared.content.split(b"\r\n", 2)
    assert date == b"Date: Fri, 02 Jan 2026 03:04:05 +0000"
    assert message_id == b"Message-ID: " + prepared.message_id.encode()
    assert prepared.message_id.endswith(".1767323045000@a.example>")
    assert rest == bare
    assert prepare(bare).message_id != prepared.message_id


def test_mime_version_is_added_where_mime_headers_stand_without_it() -> None:
    typed = FULL.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain\r\n\r\n", 1)
    assert prepare(typed).content == b"MIME-Version: 1.0\r\n" + typed


def test_blind_copies_and_return_path_are_removed_with_their_continuations() -> None:
    marked = (
        b"Return-Path: <x@x.example>\r\n"
        b"BCC: secret@c.example,\r\n\tother@c.example\r\n"
        b"Resent-Bcc: hidden@c.example\r\n" + FULL
    )
    prepared = prepare(marked, sender="ann@a.example", recipients=["bob@b.example"])
    assert prepared.content == FULL


def test_blind_copies_are_recipients() -> None:
    marked = b"Bcc: secret@c.example,\r\n BOB@B.example\r\nCc: g: bob@B.EXAMPLE;\r\n" + FULL
    prepared = prepare(marked)
    assert prepared.recipients == ("bob@b.example", "secret@c.example", "BOB@b.example")
    assert b"secret" not in prepared.content


def test_the_newest_resent_block_is_the_envelope() -> None:
    resent = (
        b"Resent-From: carl@c.example\r\nResent-To: dora@d.example\r\n"
        b"Resent-From: old@o.example\r\nResent-To: older@o.example\r\n" + FULL
    )
    prepared = prepare(resent)
    assert (prepared.sender, prepared.recipients) == ("carl@c.example", ("dora@d.example",))


def test_eight_bit_bodies_are_kept_and_marked() -> None:
    prepared = prepare(FULL + "ü\r\n".encode())
    assert prepared.content == FULL + "ü\r\n".encode()
    assert (prepared.eightbit, prepared.smtputf8) == (True, False)


def test_utf8_headers_need_smtputf8() -> None:
    prepared = prepare(FULL.replace(b"Ann", "Änn".encode()))
    assert (prepared.eightbit, prepared.smtputf8) == (True, True)


MIXED = FULL.replace(
    b"\r\n\r\n", b'\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="x"\r\n\r\n', 1
)
NAMED = b'Content-Disposition: attachment; filename="%s"\r\n'


def framed(*parts: bytes, boundary: bytes = b"x", close: bytes = b"--") -> bytes:
    delimiter = b"--" + boundary
    return b"".join(delimiter + b"\r\n" + part + b"\r\n" for part in parts) + (
        delimiter + close + b"\r\n"
    )


INNER = b"Content-Type: multipart/related;\r\n boundary=y\r\n\r\n"
UTF8 = NAMED % "ü".encode()


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        (framed(UTF8 + b"\r\nx"), True),
        (framed(b"\r\nfirst", UTF8 + b"\r\nx"), True),
        (framed(UTF8), True),
        (framed(UTF8 + b"\r\nx", close=b""), True),
        (framed(INNER + framed(UTF8 + b"\r\nx", boundary=b"y")), True),
        (framed(INNER + framed(INNER.replace(b"=y", b"=z") + framed(UTF8, boundary=b"z"),
                               boundary=b"y")), True),
        (framed(NAMED % b"u" + "\r\nü".encode()), False),
        (framed("\r\nü: ü".encode()), False),
        ("ü: ü\r\n".encode() + framed(b"\r\nx"), False),
        (framed(b"\r\nx") + "\r\nü: ü\r\n".encode(), False),
        (framed(NAMED % b"\xfc" + b"\r\nx"), False),
        (framed(b"Content-Type: message/rfc822\r\n\r\nSubject: \xc3\xbc\r\n\r\nx"), False),
        ("--xx\r\nü: ü\r\n".encode() + framed(b"\r\nx"), False),
        (framed(b"Content-Type: broken;;=\r\n\r\n" + "ü".encode()), False),
    ],
)  # fmt: skip
def test_utf8_in_a_parts_header_needs_smtputf8(body: bytes, needed: bool) -> None:
    for ends in (body, body.replace(b"\r\n", b"\n")):
        octets = (MIXED if b"\r" in ends else MIXED.replace(b"\r\n", b"\n")).partition(
            b"\n\r\n" if b"\r" in ends else b"\n\n"
        )
        prepared = prepare(octets[0] + octets[1] + ends)
        assert (prepared.smtputf8, prepared.eightbit) == (needed, True)
        assert prepared.content == MIXED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body


def test_parts_nested_without_end_are_looked_into_to_a_bound() -> None:
    body = UTF8
    for depth in range(400):
        name = b"b%d" % depth
        body = b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n" % name + framed(
            body, boundary=name
        )
    assert prepare(MIXED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + framed(body)).eightbit


def test_utf8_recipients_need_smtputf8() -> None:
    prepared = prepare(FULL, recipients=["jörg@b.example"])
    assert (prepared.eightbit, prepared.smtputf8) == (False, True)


def test_malformed_headers_that_are_not_needed_pass() -> None:
    odd = FULL.replace(b"To: bob@b.example", b"To: undisclosed").replace(b"Ann <", b"Ann <<")
    prepared = prepare(odd, sender="", recipients=["bob@b.example"])
    assert prepared.content == odd


def head(*lines: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in lines) + FULL


def without(name: bytes) -> bytes:
    return b"".join(line for line in FULL.splitlines(True) if not line.startswith(name))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "from-missing"),
        (b"From: a@b.c\r\nTo: d@e.f\r\n", "blank-line-missing"),
        (b"\r\n", "from-missing"),
        (b"\r\nFrom: a@b.c\r\n", "from-missing"),
        (FULL.partition(b"\r\n\r\n")[0], "blank-line-missing"),
        (FULL + b"\0", "nul"),
        (FULL + b"a\nb\r\n", "line-endings"),
        (FULL + b"a\rb\r\n", "line-endings"),
        (FULL + b"a\r\r\n", "line-endings"),
        (FULL.replace(b"\r\n", b"\r"), "line-endings"),
        (FULL.replace(b"\r\n", b"\n") + b"\r", "line-endings"),
        (FULL + b"x" * 999 + b"\r\n", "line-too-long"),
        (FULL + b"x" * 999, "line-too-long"),
        (head(b"X: " + b"x" * 996), "line-too-long"),
        (head(b"no colon"), "header-syntax"),
        (head(b"From ann@a.example Thu Jan 1"), "header-syntax"),
        (head(b" leading: continuation"), "header-syntax"),
        (head(b"Subject : space before colon"), "header-syntax"),
        (head(b": no name"), "header-syntax"),
        (head("Sübject: x".encode()), "header-syntax"),
        (head(b"X: a", b" \t", b" b"), "header-blank-fold"),
        (head(b"X: a\x07"), "header-control"),
        (head(b"X: a\x7f"), "header-control"),
        (head("X: a\u2028Bcc: b".encode()), "header-control"),
        (head("X: a\u0085Bcc: b".encode()), "header-control"),
        (head(b"X: \xff"), "header-undecodable"),
        (head(b"X: \xc0\xae"), "header-undecodable"),
        (head(b"X: \xed\xa0\x80"), "header-undecodable"),
        (without(b"From:"), "from-missing"),
        (head(b"From: b@b.example"), "from-duplicate"),
        (head(b"TO: b@b.example"), "duplicate-header"),
        (head(b"Subject: again"), "duplicate-header"),
        (head(b"date: x"), "duplicate-header"),
        (head(b"message-id: <2@a.example>"), "duplicate-header"),
        (head(b"Content-Type: a/b", b"Content-Type: c/d"), "duplicate-header"),
        (without(b"To:"), "no-recipients"),
        (without(b"To:").replace(b"From:", b"To: g:;\r\nFrom:"), "no-recipients"),
        (FULL.replace(b"Ann <ann@a.example>", b"g:;"), "no-sender"),
        (FULL.replace(b"Ann <", b"b@b.example, <"), "sender-ambiguous"),
        (head(b"Sender: a@b.c, d@e.f"), "sender-ambiguous"),
        (FULL.replace(b"<1@a.example>", b""), "message-id"),
        (FULL.replace(b"bob@b.example", b"bob"), "address-syntax"),
        (FULL.replace(b"bob@b.example", b"bob@b_b.example"), "domain-character"),
    ],
)
def test_refuses_by_a_named_rule(content: bytes, rule: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepare(content)
    assert caught.value.rule == rule


@pytest.mark.parametrize("size", [990, 997, 998])
def test_lines_up_to_998_octets_pass(size: int) -> None:
    body = (b"y" * size + b"\r\n") * 3 + b"z" * size
    assert prepare(FULL + body).content == FULL + body + b"\r\n"


@pytest.mark.parametrize("value", ["From: a@b.c\n\nx", None, 5, object(), [FULL]])
def test_refuses_other_types_with_a_hint(value: object) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepare(value)  # type: ignore[arg-type]
    assert caught.value.rule == "message-type"
    assert "bytes" in str(caught.value)


@pytest.mark.parametrize("value", ["bob@b.example", b"bob@b.example", 5])
def test_recipients_are_a_list(value: object) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepare(FULL, recipients=value)
    assert caught.value.rule == "recipients-type"


def test_no_recipients_given_are_none() -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepare(FULL, recipients=[])
    assert caught.value.rule == "no-recipients"


@pytest.mark.parametrize(
    "address",
    [
        "bob@b.example\r\nDATA",
        "bob@b.example>\r\nRCPT TO:<x@y.z",
        "Bob <bob@b.example>\r\n",
        "Bob\r\n <bob@b.example>",
        "a@b.example, b@b.example",
        "A <a@b.example>, B <b@b.example>",
        "g: a@b.example;",
        b"a@b.example",
        5,
    ],
)
@pytest.mark.parametrize("argument", ["sender", "recipients"])
def test_address_arguments_are_checked(argument: str, address: object) -> None:
    value = address if argument == "sender" else [address]
    with pytest.raises(InvalidMessage) as caught:
        prepare(FULL, **{argument: value})
    assert caught.value.header == argument


@pytest.mark.parametrize("address", ["", None])
def test_a_recipient_is_never_empty(address: object) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepare(FULL, recipients=[address])
    assert caught.value.header == "recipients"


def test_address_arguments_may_have_a_display_name() -> None:
    prepared = prepare(FULL, sender="A <a@B.example>", recipients=['"x, y" <c@d.example>'])
    assert (prepared.sender, prepared.recipients) == ("a@b.example", ("c@d.example",))


@pytest.mark.parametrize(
    "value", [b"<1@a.example> (x)", b"(a (b)) <1@a.example>", b" \t<1@a.example>\r\n (folded)"]
)
def test_comments_round_a_message_id_are_kept_and_not_part_of_it(value: bytes) -> None:
    commented = FULL.replace(b"<1@a.example>", value)
    prepared = prepare(commented)
    assert (prepared.content, prepared.message_id) == (commented, "<1@a.example>")


@pytest.mark.parametrize("value", [b"(x)", b"<1@a.example> x", b"<1@a.example> (x", b"(x<1@a.b>"])
def test_what_is_no_single_message_id_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepare(FULL.replace(b"<1@a.example>", value))
    assert caught.value.rule == "message-id"


def test_the_null_sender_takes_the_id_domain_from_the_author() -> None:
    bare = without(b"Message-ID:")
    assert prepare(bare, sender="").sender == ""
    assert prepare(bare, sender="").message_id.endswith("@a.example>")
    anonymous = bare.replace(b"Ann <ann@a.example>", b"g:;")
    assert prepare(anonymous, sender="").message_id.endswith("@fallback.example>")


def test_a_naive_time_is_a_programming_error() -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(ValueError, match="naive"):
        compose(FULL, now=naive, id_domain_fallback="x.example")


def test_the_displayed_subject_is_bounded_and_printable() -> None:
    bad = FULL.replace(b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", b"=?utf-8?q?a=0D=0Ab=00=1B[31m?=")
    assert prepare(bad).subject == "a  b  [31m"
    long = FULL.replace(b"Subject: ", b"Subject: " + b"\r\n ".join([b"x" * 500] * 4))
    assert len(prepare(long).subject) == 998


@given(
    st.lists(
        st.sampled_from(
            [b"From: a@b.c", b"To: d@e.f", b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0",
             b"Bcc: x@y.z", b"\xc3\xbc", b"\xff", b"Content-Type: text/plain", b"x" * 500, b"<>",
             b"Resent-To: q@r.s", b"=?utf-8?q?a?=", b"(", b'"']
        ),
        max_size=14,
    )
)  # fmt: skip
def test_any_octets_are_sound_or_refused(pieces: list[bytes]) -> None:
    content = b"From: a@b.c\r\nTo: d@e.f\r\n" + b"".join(pieces)
    try:
        prepared = prepare(content)
    except InvalidMessage:
        return
    assert_sound(prepared.content)
    assert b"\r\nbcc:" not in (b"\r\n" + prepared.content).partition(b"\r\n\r\n")[0].lower()


def assert_sound(content: bytes) -> None:
    assert content.endswith(b"\r\n")
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert b"\0" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998


_LINES = st.sampled_from(
    [
        b"From: Ann <ann@A.example>", b"From: ann@a.example", b"From: a@b.example, c@d.example",
        b"Sender: s@a.example", b"Sender: ", b"To: bob@B.example", b"To: b@-.example",
        b"To: g: x@y.example;, z@y.example", b"Cc: Bob <bob@b.example>", b"Bcc: c@b.example",
        b"Subject: x  y\t", "Subject: Gr\u00fc\u00dfe".encode(), b"Message-ID: <1@a.example>",
        b"Message-ID: none", b"message-id:<2@a.example> (c)", b"Date: soon", b"MIME-Version: 1.0",
        b"Date: Thu, 01 Jan 2026 00:00:00 +0000", b"Content-Type: text/plain",
        b"Resent-From: r@a.example", b"Resent-To: t@b.example", b"Return-Path: <>", b"X-Empty:",
        b"no field", b"X y: z", b": v", b"X-Control: \x07", b"X-Octet: \xff",
        b"X" * 201 + b": long",
    ]
)  # fmt: skip


@given(
    lines=st.lists(_LINES, max_size=7),
    body=st.sampled_from([b"", b"Hello", b"\xe4\r\n"]),
    more=st.sampled_from([b"X-Folded: one\r\n\ttwo\r\n", b"X-Twice: 1\r\nX-Twice: 2\r\n"]),
)
def test_a_header_is_read_alike_with_and_without_what_is_rare(
    lines: list[bytes], body: bytes, more: bytes
) -> None:
    """Fields that stand twice are read another way than a header without: both say the same."""
    plain = b"".join(line + b"\r\n" for line in lines) or b"X: y\r\n"
    once, twice = _read(plain + b"\r\n" + body), _read(more + plain + b"\r\n" + body)
    if isinstance(once, InvalidMessage):
        assert isinstance(twice, InvalidMessage)
        assert (str(twice), twice.rule, twice.header) == (str(once), once.rule, once.header)
    else:
        assert isinstance(twice, Prepared)
        assert _without(twice.content, more) == _without(once.content, more)
        assert twice._replace(content=b"", message_id="") == once._replace(
            content=b"", message_id=""
        )


def _read(content: bytes) -> Prepared | InvalidMessage:
    try:
        return prepare(content)
    except InvalidMessage as error:
        return error


def _without(content: bytes, more: bytes) -> bytes:
    """Content without those fields, and without the random half of a Message-ID that was added."""
    return re.sub(rb"<[0-9a-f]{32}\.", b"<", content.replace(more, b""))


def test_a_field_of_thousands_of_folds_is_one_value() -> None:
    found = read_plain(b"From: a@b.example\r\nSubject:" + b"\r\n a" * 20_000 + b"\r\n\r\n")
    assert found.values == {"from": "a@b.example", "subject": "a" + " a" * 19_999}
    assert [one.key for one in found.fields()] == ["from", "subject"]
