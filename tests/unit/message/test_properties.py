"""Random messages in many scripts: what is rendered reads back to the same mail.

To our strict reader and to the standard library's. A few hundred examples each; for the long form
set ``MAILSTROM_PROPERTY_EXAMPLES`` (tools/properties does, to 20,000).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.message import RULES, compose, fingerprint, parse, parse_address
from mailstrom.message import Group as OurGroup
from mailstrom.message.address import quote_local
from mailstrom.message.address_list import Entries, mailboxes, parse_address_list

EXAMPLES = int(os.environ.get("MAILSTROM_PROPERTY_EXAMPLES", "0"))
LONG = pytest.mark.timeout(max(120, EXAMPLES // 4))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

SCRIPTS = st.sampled_from(
    ["abc XYZ 019", "äöü ß éè", "русский ж", "漢字仮名 交", "עברית ש", "हिन्दी क",
     "😀👩‍👩‍👧 🇩🇪", "e\u0301a\u0308 ",
     ',;:<>@()[]".\\ =?_', "=?utf-8?q?a?= ", "\t \u00a0\u200b\u202e"]
)  # fmt: skip
WILD = st.lists(SCRIPTS.flatmap(lambda s: st.text(alphabet=s, max_size=25)), max_size=5).map(
    "".join
)
LOCALS = st.text(alphabet="abcXYZ019.+-_ \"\\@,<>()'", min_size=1, max_size=20)
DOMAINS = st.sampled_from(
    ["x.example", "B.Example", "bücher.example", "[192.0.2.1]", "例え.テスト"]
)


def addresses(name: str, local: str, domain: str) -> Address:
    return Address(display_name=name, username=local, domain=domain)


PEOPLE = st.builds(addresses, WILD, LOCALS, DOMAINS)


GROUPS = st.builds(
    lambda name, members: Group(name, members), WILD.filter(str.strip), st.lists(PEOPLE, max_size=3)
)
ENTRIES = st.one_of(PEOPLE, PEOPLE, PEOPLE, GROUPS)
ZONES = st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
MOMENTS = st.builds(
    lambda seconds, zone: datetime.fromtimestamp(seconds, zone),
    st.floats(min_value=86_400, max_value=253_402_000_000),
    ZONES,
)
IDS = st.text(alphabet="abc019", min_size=1, max_size=90).map(lambda t: f"<{t}@x.example>")


@st.composite
def messages(draw: st.DrawFn) -> EmailMessage:
    message = EmailMessage()
    message["From"] = draw(PEOPLE)
    message["To"] = tuple(draw(st.lists(ENTRIES, min_size=1, max_size=5)))
    message["Bcc"] = "somebody@x.example"
    if draw(st.booleans()):
        message["Cc"] = tuple(draw(st.lists(ENTRIES, min_size=1, max_size=3)))
        message["Reply-To"] = draw(PEOPLE)
        message["Sender"] = draw(PEOPLE)
        message["Date"] = draw(MOMENTS)
        message["References"] = " ".join(draw(st.lists(IDS, min_size=1, max_size=9)))
    message["Subject"] = draw(WILD)
    message["X-Note"] = draw(WILD)
    bodies = st.one_of(WILD, st.text(max_size=60), st.text(max_size=3).map(lambda t: t * 700))
    message.set_content(
        draw(bodies.filter(lambda t: t.isprintable() or "\r" not in t)), cte=draw(
            st.sampled_from([None, "base64", "quoted-printable", "8bit"])
        )
    )  # fmt: skip
    if draw(st.booleans()):
        message.add_alternative(draw(WILD), subtype="html")
    for name in draw(st.lists(WILD, max_size=2)):
        message.add_attachment(
            draw(st.binary(max_size=200)), maintype="image", subtype="x", filename=name or "n"
        )
    return message


def drawn() -> st.SearchStrategy[EmailMessage | None]:
    """Messages that the library itself agrees to build."""

    @st.composite
    def attempt(draw: st.DrawFn) -> EmailMessage | None:
        try:
            return draw(messages())
        except (ValueError, IndexError, UnicodeError, AttributeError, TypeError):
            return None

    return attempt()


def text_of(part: Message[Any, Any]) -> bytes:
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    if part.get_content_maintype() == "text":
        return octets.replace(b"\r\n", b"\n").rstrip(b"\n")
    return octets


def groups_of(entries: Entries) -> list[tuple[str, int]]:
    return [(e.name, len(e.members)) for e in entries if isinstance(e, OurGroup)]


@LONG
@settings(max_examples=EXAMPLES or 200, suppress_health_check=list(HealthCheck), deadline=None)
@given(drawn())
def test_a_rendered_message_reads_back_the_same(message: EmailMessage | None) -> None:
    if message is None:
        return
    prepared = compose(message, now=NOW, id_domain_fallback="x.example")
    content = prepared.content
    assert content.isascii()
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert max(map(len, content.split(b"\r\n"))) <= 998

    strict = parse(content)
    assert strict.render() == content
    assert strict.bcc == ()
    for name, entries in (
        ("From", strict.from_), ("To", strict.to), ("Cc", strict.cc), ("Reply-To", strict.reply_to)
    ):  # fmt: skip
        if message[name] is None:
            assert entries == ()
            continue
        meant = message[name]
        assert [box.name for box in mailboxes(entries)] == [a.display_name for a in meant.addresses]
        assert [box.address for box in mailboxes(entries)] == [
            parse_address(f"{quote_local(a.username)}@{a.domain}") for a in meant.addresses
        ]
        assert groups_of(entries) == [
            (g.display_name, len(g.addresses)) for g in meant.groups if g.display_name is not None
        ]
    assert prepared.recipients == tuple(
        dict.fromkeys(
            [box.address.key for box in (*mailboxes(strict.to), *mailboxes(strict.cc))]
            + ["somebody@x.example"]
        )
    )
    subject = strict.subject
    assert subject is not None
    # The value's own outer white space is encoded, so that it is not the line's.
    assert subject == str(message["Subject"])
    if message["Date"] is not None:
        assert strict.date == message["Date"].datetime.replace(microsecond=0)
        assert strict.references == tuple(str(message["References"]).split())

    again = message_from_bytes(content, policy=policy.default)
    for name in ("From", "To"):
        raw = dict(message_from_bytes(content).raw_items())[name]
        ours = mailboxes(parse_address_list("".join(raw.splitlines()), header=name))
        assert [box.name for box in ours] == [a.display_name for a in message[name].addresses]
        theirs = again[name].addresses
        assert len(theirs) == len(ours)
        if not any(a.username.startswith('"') for a in theirs):
            domains = [box.address.domain for box in ours]
            assert [a.domain.lower() for a in theirs] == [d.lower() for d in domains]
            assert [a.username for a in theirs] == [a.username for a in message[name].addresses]
    assert str(again["Subject"]) == str(message["Subject"])
    assert str(again["X-Note"]) == str(message["X-Note"])

    before = [part for part in message.walk() if not part.is_multipart()]
    after = [part for part in again.walk() if not part.is_multipart()]
    assert [part.get_content_type() for part in after] == [p.get_content_type() for p in before]
    assert [part.get_filename() for part in after] == [part.get_filename() for part in before]
    assert [text_of(part) for part in after] == [text_of(part) for part in before]
    assert fingerprint(prepared) == fingerprint(
        compose(content, recipients=prepared.recipients, now=NOW, id_domain_fallback="x")
    )


VALUES = st.one_of(
    st.text(max_size=30),
    WILD,
    st.sampled_from(
        ["a@b.c", "A <a@b.c>", "multipart/mixed; boundary=x", "text/plain; charset=utf-8",
         "base64", "message/rfc822", "8bit", "a\r\nb", "\udcff", "\ud800", "quoted-printable"]
    ),
    st.binary(max_size=8),
    st.integers(),
    st.builds(lambda t: Header(t, "utf-8"), st.text(alphabet="aü \n", max_size=9)),
)  # fmt: skip
NAMES = st.sampled_from(
    ["From", "To", "Subject", "Content-Type", "Content-Transfer-Encoding", "Content-Disposition",
     "Resent-To", "Message-ID", "X-A", "X\nB", "", "Bcc", "Sender"]
)  # fmt: skip
CONTAINERS = st.sampled_from(
    ["multipart/mixed", 'multipart/mixed; boundary="x"', "multipart/signed", "multipart/digest",
     "message/rfc822", "message/delivery-status"]
)  # fmt: skip
PAYLOADS: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.text(alphabet="ab-x \r\n\0\udcff", max_size=40),
    st.text(alphabet="ab-x \n", max_size=40),
    st.binary(max_size=40),
    st.just("--x\n--x--\n"),
    st.just(5),
)


@st.composite
def objects(draw: st.DrawFn, depth: int = 0) -> Message[Any, Any]:
    message: Message[Any, Any] = Message()
    if depth == 0:
        message["From"], message["To"] = "a@b.c", "d@e.f"
    payload = draw(PAYLOADS)
    if depth < 3 and draw(st.booleans()):
        payload = [draw(objects(depth + 1)) for _ in range(draw(st.integers(0, 3)))]
        if draw(st.integers(0, 9)):  # seldom a list without a container
            message["Content-Type"] = draw(CONTAINERS)
    if not draw(st.integers(0, 2)):
        fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=2))
        message._headers.extend(fields)  # type: ignore[attr-defined]
    message._payload = payload  # type: ignore[attr-defined]
    message.preamble = draw(st.one_of(st.none(), st.text(max_size=9)))
    return message


@LONG
@settings(max_examples=EXAMPLES or 300, suppress_health_check=list(HealthCheck), deadline=None)
@given(objects())
def test_any_object_is_sound_or_refused(message: Message[Any, Any]) -> None:
    try:
        prepared = compose(message, now=NOW, id_domain_fallback="x.example")
    except InvalidMessage as error:
        rule = error.rule
    else:
        rule = ""
    if rule:
        assert rule in RULES
        return
    content = prepared.content
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert b"\0" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert content.isascii() or prepared.smtputf8
    # Whatever we wrote, our own check of finished messages accepts.
    compose(content, recipients=["d@e.f"], sender="", now=NOW, id_domain_fallback="x.example")
