"""Random messages in many scripts: what is rendered reads back to the same mail.

To our own readers and to the standard library's. Two kinds are drawn: messages as the library's
documentation builds them, of which none may be refused, and objects of the older class put together
by hand, one in six of them broken on purpose. Both assert what came back, and that most of what was
drawn got that far. A few hundred examples each; for the long form set
``MAILSTROM_PROPERTY_EXAMPLES`` (tools/properties does, to 20,000).
"""

from __future__ import annotations

import base64
import binascii
import os
import quopri
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_string, policy
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from email.utils import formataddr
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.message import RULES, Prepared, compose, fingerprint, parse, parse_address
from mailstrom.message import Group as OurGroup
from mailstrom.message.address import quote_local
from mailstrom.message.address_list import Entries, mailboxes, parse_address_list
from mailstrom.message.mime import split_parts
from mailstrom.message.parameters import parse_parameterised
from tests.support.drawing import drawn_from_the_seed

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
LOCALS = st.one_of(
    st.text(alphabet="abcXYZ019.+-_ \"\\@,<>()'", min_size=1, max_size=20),
    st.text(alphabet="abcXYZ019.+-_ \"\\@,<>()'", min_size=1, max_size=20),
    st.text(alphabet="aäж漢ש😀e\u0301.+-", min_size=1, max_size=12),
)
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
# At least one person: a group may be empty.
SOME = st.builds(lambda one, more: (*more, one), PEOPLE, st.lists(ENTRIES, max_size=3))
ZONES = st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
MOMENTS = st.builds(
    lambda seconds, zone: datetime.fromtimestamp(seconds, zone),
    st.floats(min_value=86_400, max_value=253_402_000_000),
    ZONES,
)
IDS = st.text(alphabet="abc019", min_size=1, max_size=90).map(lambda t: f"<{t}@x.example>")
LITERAL = ("7bit", "8bit", "binary")
# Charsets with text they can express, each with what makes it awkward.
CHARSETS = {
    "iso-8859-1": "äöüß \xa0xyz=.\n",
    "koi8-r": "русский abc\n",
    "windows-1252": "€„“ äx\n",
    "iso-2022-jp": "漢字仮名 abc\n",
    "shift_jis": "ソ表漢字 \\a\n",
    "gb18030": "漢字😀 a\n",
}
LINED = st.lists(
    st.sampled_from(
        [b"a", b"\n", b"\r\n", b"\r", b"=", b" ", b".", b"--", b"\t", b"From ", b"x" * 70]
    ),
    max_size=30,
).map(b"".join)  # fmt: skip
FILES = st.one_of(st.binary(max_size=200), LINED, LINED)


@dataclass(slots=True, kw_only=True)
class Drawn:
    """A message, what was given besides, and which of its pieces count."""

    message: EmailMessage
    sender: str | None = None
    resent: bool = False
    blind: Sequence[Address | Group] = field(default=())


@st.composite
def messages(draw: st.DrawFn) -> Drawn:
    message = EmailMessage()
    drawn = Drawn(message=message)
    authors = draw(st.sampled_from(["one", "one", "several", "group", "group, sender given"]))
    if authors == "one":
        message["From"] = draw(PEOPLE)
    elif authors == "several":
        message["From"] = draw(st.lists(PEOPLE, min_size=2, max_size=3).map(tuple))
    else:
        message["From"] = draw(GROUPS)
    if authors in ("several", "group") or draw(st.booleans()):
        message["Sender"] = draw(PEOPLE)
    if authors == "group, sender given" or draw(st.sampled_from([False, False, True])):
        drawn.sender = draw(st.sampled_from(["given@x.example", "gegeben-für@x.example"]))
    message["To"] = draw(SOME)
    drawn.blind = draw(st.lists(PEOPLE, max_size=2).map(tuple))
    if drawn.blind:
        message["Bcc"] = drawn.blind
    if draw(st.booleans()):
        message["Cc"] = draw(SOME)
        message["Reply-To"] = draw(SOME)
        message["Date"] = draw(MOMENTS)
        message["References"] = draw(st.sampled_from(["", " ", "  "])).join(
            draw(st.lists(IDS, min_size=1, max_size=9))
        )
    if draw(st.sampled_from([False, False, False, True])):
        drawn.resent = True
        message["Resent-From"] = draw(PEOPLE)
        message["Resent-To"] = draw(SOME)
        if draw(st.booleans()):
            message["Resent-Date"] = draw(MOMENTS)
            message["Resent-Message-ID"] = "<2@x.example>"
            message["Resent-Sender"] = draw(PEOPLE)
    message["Subject"] = draw(WILD)
    message["X-Note"] = draw(WILD)
    write_text(draw, message)
    if draw(st.booleans()):
        message.add_alternative(draw(WILD), subtype="html")
    for _ in range(draw(st.integers(0, 2))):
        attach(draw, message)
    return drawn


def write_text(draw: st.DrawFn, message: EmailMessage) -> None:
    if draw(st.sampled_from([False, False, False, True])):
        charset = draw(st.sampled_from(sorted(CHARSETS)))
        text = draw(st.text(alphabet=CHARSETS[charset], max_size=60))
    else:
        charset = "utf-8"
        text = draw(
            st.one_of(WILD, st.text(max_size=60), st.text(max_size=3).map(lambda t: t * 700))
        )
    encoding = draw(st.sampled_from([None, "base64", "quoted-printable", "8bit"]))
    message.set_content(text, charset=charset, cte=encoding)


def attach(draw: st.DrawFn, message: EmailMessage) -> None:
    name = draw(WILD) or "n"
    kind = draw(st.sampled_from(["file", "file", "file", "text", "message"]))
    if kind == "text":
        message.add_attachment(draw(WILD), subtype="csv", filename=name)
    elif kind == "message":
        inner = EmailMessage()
        inner["Subject"] = draw(WILD)
        write_text(draw, inner)
        message.add_attachment(inner)
    else:
        octets = draw(FILES)
        encoding = draw(st.sampled_from(["base64", "quoted-printable", "8bit", "binary", "7bit"]))
        if encoding == "7bit" and not octets.isascii():
            encoding = "8bit"
        subtype = draw(st.sampled_from(["octet-stream", "json"]))
        message.add_attachment(
            octets, maintype="application", subtype=subtype, filename=name, cte=encoding
        )


@st.composite
def attempts(draw: st.DrawFn) -> Drawn | None:
    """Messages that the library itself agrees to build: it stumbles over one in twenty."""
    for _ in range(3):
        try:
            return draw(messages())
        except (ValueError, IndexError, UnicodeError, AttributeError, TypeError):
            continue
    return None


def octets_of(part: Message[Any, Any]) -> bytes:
    """What a leaf stands for; of text, the lines."""
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return plain(octets) if part.get_content_maintype() == "text" else octets


def plain(octets: bytes) -> bytes:
    return octets.replace(b"\r\n", b"\n").rstrip(b"\n")


def leaves_of(message: Message[Any, Any]) -> list[Message[Any, Any]]:
    return [part for part in message.walk() if not part.is_multipart()]


def our_leaves(content: bytes, default: str = "text/plain") -> Iterator[tuple[str, bytes]]:
    """Type and octets of each leaf as our own pieces read them."""
    if content.startswith(b"\r\n"):
        head, body = b"", content[2:]
    else:
        head, _, body = content.partition(b"\r\n\r\n")
    fields = {
        line.partition(":")[0].lower(): line.partition(":")[2].strip(" ")
        for line in head.decode("utf-8").replace("\r\n ", " ").split("\r\n")
    }
    typed = parse_parameterised(fields.get("content-type", default), header="Content-Type")
    kind = typed.value.lower()
    if kind.startswith("multipart/"):
        parts, closed = split_parts(body, typed.get("boundary"))
        assert closed
        for part in parts:
            inner = "message/rfc822" if kind == "multipart/digest" else "text/plain"
            yield from our_leaves(part, inner)
    elif kind == "message/rfc822":
        yield from our_leaves(body)
    else:
        encoding = fields.get("content-transfer-encoding", "")
        if encoding == "base64":
            body = base64.b64decode(b"".join(body.split()), validate=True)
        elif encoding == "quoted-printable":
            body = quopri.decodestring(body)
        yield kind, plain(body) if kind.startswith("text/") else body


def entries_in(message: EmailMessage, name: str) -> list[Address]:
    return [] if message[name] is None else list(message[name].addresses)


def key(address: Address) -> str:
    return parse_address(f"{quote_local(address.username)}@{address.domain}").key


def author_of(message: EmailMessage) -> object:
    group = message["From"].groups[0]
    return group if group.display_name is not None else group.addresses[0]


def groups_of(entries: Entries) -> list[tuple[str, int]]:
    return [(e.name, len(e.members)) for e in entries if isinstance(e, OurGroup)]


def assert_sound(prepared: Prepared) -> None:
    content = prepared.content
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert b"\0" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert content.isascii() or prepared.smtputf8


def holding(share: float, strategy: st.SearchStrategy[Any], each: Callable[[Any], bool]) -> None:
    """Run ``each`` over many examples; enough of them have to get to the assertions."""
    tally: Counter[bool] = Counter()

    @settings(max_examples=EXAMPLES or 200, suppress_health_check=list(HealthCheck), deadline=None)
    @given(strategy)
    def examples(example: Any) -> None:
        tally[each(example)] += 1

    with drawn_from_the_seed():
        examples()
    assert tally[True] >= share * tally.total(), tally


@LONG
def test_a_rendered_message_reads_back_the_same() -> None:
    holding(0.9, attempts(), reads_back)


def reads_back(drawn: Drawn | None) -> bool:
    if drawn is None:
        return False
    message = drawn.message
    prepared = compose(message, sender=drawn.sender, now=NOW, id_domain_fallback="x.example")
    content = prepared.content
    assert_sound(prepared)
    assert content.partition(b"\r\n\r\n")[2].isascii()
    assert_envelope(drawn, prepared)
    assert_headers(message, content)
    assert_bodies(message, content)
    bare = {"sender": prepared.sender, "recipients": prepared.recipients}
    again = compose(content, now=NOW, id_domain_fallback="x", **bare)  # type: ignore[arg-type]
    assert again.content == content
    assert again.smtputf8 == prepared.smtputf8
    assert fingerprint(prepared) == fingerprint(again)
    return True


def assert_envelope(drawn: Drawn, prepared: Prepared) -> None:
    message = drawn.message
    prefix = "Resent-" if drawn.resent else ""
    senders = entries_in(message, f"{prefix}Sender") or entries_in(message, f"{prefix}From")
    sender = drawn.sender if drawn.sender is not None else key(senders[0])
    assert prepared.sender == sender
    found = [key(one) for name in ("To", "Cc", "Bcc") for one in entries_in(message, prefix + name)]
    assert prepared.recipients == tuple(dict.fromkeys(found))
    shown = ("From", "Sender", "To", "Cc", "Reply-To", "Resent-From", "Resent-Sender", "Resent-To")
    every = [key(one) for name in shown for one in entries_in(message, name)]
    assert prepared.smtputf8 == (not "".join([*every, *found, sender]).isascii())


def assert_headers(message: EmailMessage, content: bytes) -> None:
    # A group as author with no Sender is sent where a sender is given, and not by the letter.
    lacking = b"" if message["Sender"] is not None else b"Sender: given@x.example\r\n"
    strict = parse(lacking * isinstance(author_of(message), Group) + content)
    assert strict.render().endswith(content)
    assert strict.bcc == ()
    block = strict.resent[0] if strict.resent else None
    read: dict[str, Entries] = {
        "From": strict.from_, "To": strict.to, "Cc": strict.cc, "Reply-To": strict.reply_to,
        "Sender": () if strict.sender is None or lacking else (strict.sender,),
        "Resent-From": () if block is None else block.from_,
        "Resent-To": () if block is None else block.to,
        "Resent-Sender": () if block is None or block.sender is None else (block.sender,),
    }  # fmt: skip
    # As text, for the library keeps raw UTF-8 of bytes escaped.
    again = message_from_string(content.decode("utf-8"), policy=policy.default)
    raw = dict(message_from_string(content.decode("utf-8")).raw_items())
    for name, entries in read.items():
        if message[name] is None:
            assert entries == ()
            assert name not in raw
            continue
        meant = message[name].addresses
        assert [box.name for box in mailboxes(entries)] == [a.display_name for a in meant]
        assert [box.address.key for box in mailboxes(entries)] == [key(a) for a in meant]
        assert groups_of(entries) == [
            (g.display_name, len(g.addresses))
            for g in message[name].groups
            if g.display_name is not None
        ]
        assert parse_address_list("".join(raw[name].splitlines()), header=name) == entries
        theirs = again[name].addresses
        assert len(theirs) == len(meant)
        if not any(a.username.startswith('"') for a in theirs):
            assert [key(a) for a in theirs] == [key(a) for a in meant]
    # The value's own outer white space is encoded, so that it is not the line's.
    assert strict.subject == str(message["Subject"]) == str(again["Subject"])
    assert str(again["X-Note"]) == str(message["X-Note"])
    if message["Date"] is not None:
        assert strict.date == message["Date"].datetime.replace(microsecond=0)
        assert strict.references == tuple(str(message["References"]).replace(">", "> ").split())
    if block is not None:
        given_date = message["Resent-Date"]
        assert block.date == (NOW if given_date is None else given_date.datetime).replace(
            microsecond=0
        )


def assert_bodies(message: EmailMessage, content: bytes) -> None:
    again = message_from_string(content.decode("utf-8"), policy=policy.default)
    before, after = leaves_of(message), leaves_of(again)
    assert [part.get_content_type() for part in after] == [p.get_content_type() for p in before]
    assert [part.get_filename() for part in after] == [part.get_filename() for part in before]
    meant = [octets_of(part) for part in before]
    assert [octets_of(part) for part in after] == meant
    assert [octets for _, octets in our_leaves(content)] == meant
    subjects = [
        [str(part["Subject"]) for part in tree.walk() if part["Subject"] is not None]
        for tree in (message, again)
    ]
    assert subjects[0] == subjects[1]


# -- objects put together by hand -----------------------------------------------------------------

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
CONTAINERS = ("multipart/mixed", "multipart/signed", "multipart/digest", "message/delivery-status")
PAYLOADS: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.text(alphabet="ab-x \r\n\0\udcff", max_size=40),
    st.binary(max_size=40),
    st.just([]),
    st.just(["x"]),
    st.just(5),
)
TYPES = st.sampled_from(
    [None, "text/plain", "text/html; charset=latin-1", 'Text/X-Y; charset="utf-8"',
     "text/plain; charset=utf-16", "application/octet-stream", "application/json", "image/x"]
)  # fmt: skip
BOUNDARIES = st.sampled_from(["", "; boundary=x", '; boundary="a b"', '; boundary=""', "; x=y"])
KEYS = st.sampled_from(["a@b.c", "d.e+f@B.example", '"a, b"@x.example', "g@xn--bcher-kva.example"])
CALLED = WILD.map(lambda t: " ".join(t.replace("=?", "").split()))
NAMED = st.lists(st.tuples(CALLED, KEYS), min_size=1, max_size=4)


@dataclass(slots=True, kw_only=True)
class Made:
    """An object, and what it means: None where it was broken on purpose."""

    message: Message[Any, Any]
    to: list[tuple[str, str]]
    subject: str
    leaves: list[bytes] | None


@st.composite
def parts(draw: st.DrawFn, depth: int = 0) -> tuple[Message[Any, Any], list[bytes]]:
    """A sound part and the octets of its leaves."""
    message: Message[Any, Any] = Message()
    kind = draw(st.sampled_from(["leaf", "leaf", "multipart", "message"])) if depth < 3 else "leaf"
    if kind == "leaf":
        return message, [fill(draw, message)]
    if kind == "message":
        inner, leaves = draw(parts(depth + 1))
        inner["Subject"] = "inside"
        message["Content-Type"] = "message/rfc822"
        message._payload = [inner]  # type: ignore[attr-defined]
        return message, leaves
    children = [draw(parts(depth + 1)) for _ in range(draw(st.integers(1, 3)))]
    subtype = draw(st.sampled_from(["mixed", "Alternative", "related"]))
    message["Content-Type"] = f"multipart/{subtype}{draw(BOUNDARIES)}"
    if draw(st.booleans()):
        message["Content-Transfer-Encoding"] = draw(st.sampled_from(LITERAL))
    message._payload = [child for child, _ in children]  # type: ignore[attr-defined]
    message.preamble = draw(st.one_of(st.none(), st.text(max_size=9), st.just("--x\n--x--")))
    message.epilogue = draw(st.one_of(st.none(), st.text(max_size=9)))
    return message, [leaf for _, leaves in children for leaf in leaves]


def fill(draw: st.DrawFn, message: Message[Any, Any]) -> bytes:
    """Give a leaf its octets in some encoding; returns what they stand for."""
    kind = draw(TYPES)
    if kind is not None:
        message["Content-Type"] = kind
    text = kind is None or kind.lower().startswith("text/")
    if kind is not None and kind.endswith("utf-16"):
        octets = draw(WILD).encode("utf-16")
        text = False
    else:
        octets = draw(st.one_of(FILES, st.just(b"--x\n--x--\n"), WILD.map(str.encode)))
    encoding = draw(st.sampled_from(["", "", *LITERAL, "base64", "quoted-printable"]))
    if encoding:
        message["Content-Transfer-Encoding"] = encoding
    if encoding == "base64":
        coded = draw(st.sampled_from([base64.b64encode, base64.encodebytes]))(octets)
    elif encoding == "quoted-printable":
        coded = binascii.b2a_qp(octets, istext=text and draw(st.booleans()))
        if text:
            octets = quopri.decodestring(coded)
    else:
        coded = octets
    raw = encoding in ("", *LITERAL) and draw(st.booleans())
    message._payload = (
        coded
        if raw
        else coded.decode(  # type: ignore[attr-defined]
            "ascii", "surrogateescape"
        )
    )
    return plain(octets) if text else octets


@st.composite
def objects(draw: st.DrawFn) -> Made:
    message, leaves = draw(parts())
    to = draw(NAMED)
    text = draw(CALLED)
    message["From"] = formataddr(draw(st.tuples(CALLED, KEYS)))
    message["To"] = draw(st.sampled_from([", ", ",\n ", " ,\r\n\t"])).join(map(formataddr, to))
    header = Header(text, None if text.isascii() else "utf-8")
    message["Subject"] = draw(st.sampled_from([text, header, header.encode()]))
    made = Made(message=message, to=to, subject=text, leaves=leaves)
    if draw(st.sampled_from([False] * 5 + [True])):
        made.leaves = None
        spoil(draw, message)
    return made


def spoil(draw: st.DrawFn, message: Message[Any, Any]) -> None:
    """Break one thing somewhere in the tree."""
    victim: Any = draw(st.sampled_from(list(message.walk())))
    way = draw(st.integers(0, 2))
    if way == 0:
        victim._headers.extend(draw(st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=2)))
    elif way == 1:
        victim._payload = draw(PAYLOADS)
    else:
        del victim["Content-Type"]
        victim["Content-Type"] = draw(st.sampled_from(CONTAINERS))


@LONG
def test_any_object_is_sound_or_refused() -> None:
    holding(0.75, objects(), is_sound)


def is_sound(made: Made) -> bool:
    try:
        prepared = compose(made.message, now=NOW, id_domain_fallback="x.example")
    except InvalidMessage as error:
        refused: InvalidMessage | None = error
    else:
        refused = None
    if refused is not None:
        assert refused.rule in RULES
        assert made.leaves is None, refused
        return False
    content = prepared.content
    assert_sound(prepared)
    # Whatever we wrote, our own check of finished messages accepts.
    compose(content, recipients=["d@e.f"], sender="", now=NOW, id_domain_fallback="x.example")
    if made.leaves is None:
        return False
    strict = parse(content)
    again = message_from_string(content.decode("utf-8"), policy=policy.default)
    keys = [parse_address(one).key for _, one in made.to]
    assert [(box.name, box.address.key) for box in mailboxes(strict.to)] == [
        (name, one) for (name, _), one in zip(made.to, keys, strict=True)
    ]
    assert prepared.recipients == tuple(dict.fromkeys(keys))
    assert [key(one) for one in again["To"].addresses] == keys
    assert strict.subject == str(again["Subject"]) == made.subject
    assert [octets for _, octets in our_leaves(content)] == made.leaves
    assert [octets_of_wide(part) for part in leaves_of(again)] == made.leaves
    return True


def octets_of_wide(part: Message[Any, Any]) -> bytes:
    """As ``octets_of``; of text whose line ends are no octets, everything."""
    if part.get_content_charset() == "utf-16":
        octets = part.get_payload(decode=True)
        assert isinstance(octets, bytes)
        return octets
    return octets_of(part)
