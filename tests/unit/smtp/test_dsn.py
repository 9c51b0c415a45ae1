"""DSN parameters: what is decoded is what was encoded, what is odd is refused or left out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp import dsn
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import ClientDialogue, Dialect, Envelope
from mailstrom.smtp.commands import parse_command, parse_path
from mailstrom.smtp.dsn import Asked, BadValue

OFFER = Capabilities(name="mx", pipelining=True, dsn=True, mt_priority="", smtputf8=True)
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
MAILBOX = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029"),
    min_size=1,
    max_size=40,
)


@given(PRINTABLE)
def test_xtext_comes_back_and_holds_nothing_that_could_end_a_parameter(text: str) -> None:
    encoded = dsn.encode_xtext(text)
    assert dsn.decode_xtext(encoded) == text
    assert re.fullmatch(r"[\x21-\x7e]*", encoded)
    assert "=" not in encoded


@pytest.mark.parametrize("text", ["a+2Bb", "+20", "a;b", "~!<>"])
def test_xtext_of_the_document_is_read(text: str) -> None:
    assert dsn.encode_xtext(dsn.decode_xtext(text)) == text


@pytest.mark.parametrize(
    "text", ["+", "+2", "+2g", "a b", "a=b", "+0D+0A", "+7F", "+80", "+00", "é", "a\r\n"]
)
def test_what_is_no_xtext_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        dsn.decode_xtext(text)


@pytest.mark.parametrize("text", ["é", "a\r\nb", "\x00", "\x7f"])
def test_what_xtext_cannot_carry_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        dsn.encode_xtext(text)


def test_bounds_of_envid_and_orcpt() -> None:
    assert dsn.decode_envid("x" * 100) == "x" * 100
    for text in ("", "x" * 101):
        with pytest.raises(BadValue):
            dsn.decode_envid(text)
    longest = "rfc822;" + "x" * 493
    assert dsn.decode_orcpt(longest) == longest
    with pytest.raises(BadValue):
        dsn.decode_orcpt(longest + "x")
    with pytest.raises(BadValue):
        dsn.encode_orcpt(longest + "x")


@pytest.mark.parametrize(
    ("wire", "decoded"),
    [
        ("rfc822;a+2Bb@x.org", "rfc822;a+b@x.org"),
        ("RFC822;a@b", "RFC822;a@b"),
        ("x400;/G=a;b", None),
        ("x400;/G+3Da;b", "x400;/G=a;b"),
        (r"utf-8;\x{E9}@x.org", "utf-8;é@x.org"),
        (r"utf-8;a\x{2B}b@x.org", "utf-8;a+b@x.org"),
        ("utf-8;é@x.org", "utf-8;é@x.org"),
        (r"UTF-8;\x{1F4E7}@x.org", "UTF-8;\U0001f4e7@x.org"),
        (r"utf-8;+5Cx{E9}@x.org", "utf-8;é@x.org"),
        (r"utf-8;\x{D800}@x", None),
        (r"utf-8;\x{110000}@x", None),
        (r"utf-8;\x{FFFFFF}@x", None),
        (r"utf-8;\x{0D}\x{0A}@x", None),
        (r"utf-8;\x{2028}@x", None),
        (r"utf-8;a\b", None),
        (r"utf-8;\x{e9}@x", None),
        ("rfc822;", None),
        (";a@b", None),
        ("rfc822", None),
        ("rfc822;é@b", None),
        ("rfc822;a+0D+0AX:@b", None),
        # as Postfix passes on a UTF-8 address
        ("rfc822;j+C3+BCrgen@x.org", "utf-8;jürgen@x.org"),
        ("utf-8;j+C3+BCrgen@x.org", "utf-8;jürgen@x.org"),
        ("rfc822;j+C3@x.org", None),
        ("utf-8;j+C3@x.org", None),
        ("rfc822;j+C3+BC+0D+0AX:@x.org", None),
        ("rfc822;j+C3+BC+20@x.org", None),
        ("rfc822;j+C2+85@x.org", None),
        ("x400;j+C3+BC", None),
        ("r f;a@b", None),
        ("", None),
    ],
)
def test_orcpt_is_read_as_its_documents_write_it(wire: str, decoded: str | None) -> None:
    if decoded is None:
        with pytest.raises(BadValue):
            dsn.decode_orcpt(wire)
    else:
        assert dsn.decode_orcpt(wire) == decoded


@given(MAILBOX, st.booleans())
def test_any_address_comes_back_from_orcpt(address: str, smtputf8: bool) -> None:
    value = dsn.encode_orcpt(f"rfc822;{address}", smtputf8=smtputf8)
    assert re.fullmatch(r"[^\x00-\x20=]+", value)
    assert value.isascii() or smtputf8
    kind = "rfc822" if address.isascii() else "utf-8"
    assert dsn.decode_orcpt(value) == f"{kind};{address}"


@given(st.text(max_size=30))
def test_anything_read_as_orcpt_can_be_written_again(text: str) -> None:
    for wire in (text, f"rfc822;{text}", f"utf-8;{text}"):
        try:
            decoded = dsn.decode_orcpt(wire)
        except BadValue:
            continue
        again = dsn.encode_orcpt(decoded)
        assert dsn.decode_orcpt(again).partition(";")[2] == decoded.partition(";")[2]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("NEVER", "never"),
        ("never", "never"),
        ("DELAY,SUCCESS", "success,delay"),
        ("failure", "failure"),
        ("SUCCESS,FAILURE,DELAY", "success,failure,delay"),
        ("NEVER,FAILURE", None),
        ("FAILURE,FAILURE", None),
        ("FAILURE,", None),
        ("", None),
        ("ALWAYS", None),
    ],
)
def test_notify_is_never_or_a_list(text: str, read: str | None) -> None:
    if read is None:
        with pytest.raises(BadValue):
            dsn.read_notify(text)
    else:
        assert dsn.read_notify(text) == read


# What the client says


def said(envelope: Envelope, offer: Capabilities = OFFER) -> list[str]:
    client = ClientDialogue(offer, Dialect())
    client.begin(envelope, b"x\r\n")
    return client.take_output().decode().split("\r\n")[:-2]


def envelope(*asked: Asked, **more: str | int | bool) -> Envelope:
    recipients = tuple(f"r{number}@y.org" for number in range(max(1, len(asked))))
    return Envelope(sender="s@x.org", recipients=recipients, size=3, asked=asked, **more)  # type: ignore[arg-type]


def test_what_is_asked_for_is_said_where_it_is_offered() -> None:
    wanted = envelope(
        ("success,failure", "rfc822;first+one@z.org"),
        ("failure", None),
        ("never", None),
        (None, None),
        (None, "rfc822;a@z.org"),
        ret="hdrs",
        envid="id 1+1",
        mt_priority=-4,
    )
    assert said(wanted) == [
        "MAIL FROM:<s@x.org> RET=HDRS ENVID=id+201+2B1 MT-PRIORITY=-4",
        "RCPT TO:<r0@y.org> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;first+2Bone@z.org",
        "RCPT TO:<r1@y.org> NOTIFY=FAILURE ORCPT=rfc822;r1@y.org",
        "RCPT TO:<r2@y.org> NOTIFY=NEVER",
        "RCPT TO:<r3@y.org>",
        "RCPT TO:<r4@y.org> ORCPT=rfc822;a@z.org",
    ]
    plain = said(wanted, Capabilities(name="mx", pipelining=True))
    assert plain == ["MAIL FROM:<s@x.org>", *(f"RCPT TO:<r{n}@y.org>" for n in range(5))]


def test_nothing_is_said_that_nobody_asked_for() -> None:
    assert said(envelope()) == ["MAIL FROM:<s@x.org>", "RCPT TO:<r0@y.org>"]


def test_what_cannot_be_said_is_left_out_and_the_mail_goes() -> None:
    odd = envelope(
        ("failure", "rfc822;" + "x" * 600),
        ("always", "rfc822;a@b"),
        (None, "no type"),
        envid="x" * 101,
        ret="all",
    )
    assert said(odd) == [
        "MAIL FROM:<s@x.org>",
        "RCPT TO:<r0@y.org> NOTIFY=FAILURE",
        "RCPT TO:<r1@y.org>",
        "RCPT TO:<r2@y.org>",
    ]
    for evil in ("a\r\nRSET", "\u2028", "é", "a\x00"):
        assert said(envelope((None, f"x;{evil}"), envid=evil))[0] == "MAIL FROM:<s@x.org>"


def test_a_recipient_in_utf8_is_named_as_such() -> None:
    utf8 = Envelope(
        sender="s@x.org", recipients=("é@y.org",), size=3, smtputf8=True, asked=(("delay", None),)
    )
    assert said(utf8)[1] == "RCPT TO:<é@y.org> NOTIFY=DELAY ORCPT=utf-8;é@y.org"


@given(
    envid=st.none() | PRINTABLE,
    orcpt=st.none() | MAILBOX,
    notify=st.none() | st.sampled_from(["never", "failure", "success,delay"]),
    priority=st.none() | st.integers(-20, 20),
)
def test_no_value_can_end_a_command_or_make_it_longer_than_its_room(
    envid: str | None, orcpt: str | None, notify: str | None, priority: int | None
) -> None:
    asked = ((notify, orcpt and f"rfc822;{orcpt}"),)
    lines = said(envelope(*asked, envid=envid, ret="full", mt_priority=priority))  # type: ignore[arg-type]
    assert len(lines) == 2
    address, params = parse_path(parse_command(lines[0].encode()).argument, "FROM")
    assert (address, set(params) - {"RET", "ENVID", "MT-PRIORITY"}) == ("s@x.org", set())
    address, params = parse_path(parse_command(lines[1].encode()).argument, "TO")
    assert (address, set(params) - {"NOTIFY", "ORCPT"}) == ("r0@y.org", set())
    if orcpt is not None and "ORCPT" in params:
        assert dsn.decode_orcpt(params["ORCPT"] or "").partition(";")[2] == orcpt
