"""DNS messages: what we ask is what another implementation reads, and the other way round.

Contract: dnspython is the other implementation, here alone. Whatever bytes come, ``read`` gives a
value, nobody's answer, or ``Unreadable``; nothing else escapes, and nothing takes long.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, get_args

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_workers import dnswire
from mailstrom_workers.dnswire import Kind, Response, Unreadable

KINDS: tuple[Kind, ...] = get_args(Kind)
LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
NAMES = st.lists(LABEL, min_size=1, max_size=6).map(".".join)
RECORDS = {
    "MX": st.tuples(st.integers(0, 65535), NAMES).map(lambda mx: f"{mx[0]} {mx[1]}."),
    "A": st.ip_addresses(v=4).map(str),
    "AAAA": st.ip_addresses(v=6).map(str),
    "PTR": NAMES.map(lambda name: f"{name}."),
}


def labels(name: str) -> tuple[bytes, ...]:
    return tuple(label.encode().lower() for label in name.split("."))


def answer(
    asked: bytes,
    *,
    rcode: str = "NOERROR",
    flags: int = 0,
    sections: dict[str, list[tuple[str, int, str, list[str]]]] | None = None,
) -> bytes:
    """An answer as dnspython writes it; records by section: (owner, ttl, type, texts)."""
    message = dns.message.make_response(dns.message.from_wire(asked))
    message.set_rcode(dns.rcode.from_text(rcode))
    message.flags |= flags
    for section, sets in (sections or {}).items():
        for owner, ttl, kind, texts in sets:
            getattr(message, section).append(
                dns.rrset.from_text(f"{owner}.", ttl, "IN", kind, *texts)
            )
    return message.to_wire(max_size=65535)


def read(wire: bytes, asked: bytes) -> Response:
    response = dnswire.read(wire, asked)
    assert response is not None
    return response


ASKED = dnswire.question(4711, "d.test", "MX")
SOA = "ns.test. root.test. 1 2 3 4 60"


@given(st.integers(0, 65535), NAMES | st.just(""), st.sampled_from(KINDS))
def test_a_question_is_what_another_implementation_reads(
    number: int, name: str, kind: Kind
) -> None:
    message = dns.message.from_wire(dnswire.question(number, name, kind))
    (asked,) = message.question
    assert message.id == number
    assert message.flags == dns.flags.RD
    assert str(asked) == f"{name}. IN {kind}"


@given(st.data(), NAMES, st.sampled_from(KINDS), st.integers(0, 2**31 - 1))
def test_records_are_read_as_another_implementation_wrote_them(
    data: Any, name: str, kind: Kind, ttl: int
) -> None:
    texts = data.draw(st.lists(RECORDS[kind], min_size=1, max_size=8, unique=True))
    asked = dnswire.question(1, name, kind)
    response = read(answer(asked, sections={"answer": [(name, ttl, kind, texts)]}), asked)
    assert (response.rcode, response.links, response.ttl_s) == (0, 0, ttl)
    assert response.name == labels(name)
    if kind == "MX":
        wanted = {(int(text.split()[0]), labels(text.split()[1][:-1])) for text in texts}
        assert set(response.records) == wanted
    elif kind == "PTR":
        assert set(response.records) == {(0, labels(text[:-1])) for text in texts}
    else:
        found = {ip_address(str(what)) for _, what in response.records}
        assert found == {ip_address(text) for text in texts}


@given(st.lists(NAMES, min_size=1, max_size=20, unique=True), st.integers(0, 20))
def test_a_chain_is_followed_to_its_end(chain: list[str], answered: int) -> None:
    asked = dnswire.question(1, chain[0], "A")
    links = [(one, 100 - n, "CNAME", [f"{chain[n + 1]}."]) for n, one in enumerate(chain[:-1])]
    records = [(chain[-1], 50, "A", ["192.0.2.1"])]
    sections = {"answer": [*reversed(links), *records], "authority": [("test", 9, "SOA", [SOA])]}
    response = read(answer(asked, sections=sections), asked)
    if len(links) <= dnswire.MAX_LINKS:
        assert response.records == ((0, "192.0.2.1"),)
        assert (response.name, response.links) == (labels(chain[-1]), len(links))
    else:
        assert not response.records
        assert response.links > dnswire.MAX_LINKS


@pytest.mark.parametrize(
    ("owner", "ttl", "expected"),
    [
        ("test", 3600, 60),  # its minimum
        ("test", 30, 30),  # its own time
        ("other", 30, dnswire.NEGATIVE_S),  # of a zone that the name is not in
    ],
)
@pytest.mark.parametrize("rcode", ["NOERROR", "NXDOMAIN"])
def test_a_denial_holds_as_long_as_its_soa_says(
    owner: str, ttl: int, expected: int, rcode: str
) -> None:
    wire = answer(ASKED, rcode=rcode, sections={"authority": [(owner, ttl, "SOA", [SOA])]})
    response = read(wire, ASKED)
    assert (response.rcode, response.records) == ({"NOERROR": 0, "NXDOMAIN": 3}[rcode], ())
    assert response.ttl_s == expected


def test_additional_records_are_never_believed() -> None:
    sections = {"additional": [("d.test", 60, "MX", ["10 evil.test."])]}
    assert read(answer(ASKED, sections=sections), ASKED).records == ()


def test_records_of_other_names_and_types_are_passed_over() -> None:
    sections = {
        "answer": [
            ("e.test", 60, "MX", ["10 evil.test."]),
            ("d.test", 60, "TXT", ['"x"']),
            ("d.test", 60, "MX", ["10 a.test."]),
        ]
    }
    assert read(answer(ASKED, sections=sections), ASKED).records == ((10, labels("a.test")),)


def test_the_case_of_a_name_does_not_matter() -> None:
    wire = answer(ASKED, sections={"answer": [("D.TEST", 60, "MX", ["10 A.Test."])]})
    shouted = wire[:12] + wire[12:].replace(b"\x01d\x04test", b"\x01D\x04TEST", 1)
    assert read(shouted, ASKED).records == ((10, labels("a.test")),)


@pytest.mark.parametrize("other", [
    dnswire.question(4712, "d.test", "MX"),  # another id
    dnswire.question(4711, "e.test", "MX"),  # another name
    dnswire.question(4711, "d.test", "A"),  # another type
])  # fmt: skip
def test_what_does_not_fit_the_question_is_nobodys_answer(other: bytes) -> None:
    sections = {"answer": [("d.test", 60, "MX", ["10 evil.test."])]}
    assert dnswire.read(answer(other, sections=sections), ASKED) is None


def test_a_question_sent_back_is_no_answer() -> None:
    assert dnswire.read(ASKED, ASKED) is None


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "FORMERR", "NOTIMP"])
def test_a_refusal_is_told(rcode: str) -> None:
    assert dnswire.RCODES[read(answer(ASKED, rcode=rcode), ASKED).rcode] == rcode


def test_what_is_cut_off_is_told_and_not_read() -> None:
    sections = {"answer": [("d.test", 60, "MX", ["10 a.test."])]}
    response = read(answer(ASKED, flags=dns.flags.TC, sections=sections), ASKED)
    assert (response.truncated, response.records) == (True, ())


def test_a_name_that_does_not_exist_and_has_records_cannot_be_read() -> None:
    sections = {"answer": [("d.test", 60, "MX", ["10 a.test."])]}
    with pytest.raises(Unreadable):
        dnswire.read(answer(ASKED, rcode="NXDOMAIN", sections=sections), ASKED)


@pytest.mark.parametrize(
    "name",
    [
        b"\xc0\x1c",  # points to itself
        b"\x01a\xc0\x1c",  # and to what points there
        b"\xc0\xff",  # forward
        b"\x40a\x00",  # of no known kind
        b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\0",
        b"\x05ab",  # beyond the message
    ],
)
def test_a_name_that_cannot_be_is_not_read(name: bytes) -> None:
    head = ASKED[:2] + b"\x81\x80\0\x01\0\x01\0\0\0\0" + ASKED[12:]
    record = name + b"\0\x0f\0\x01\0\0\0\x3c\0\x04\0\x0a\xc0\x0c"
    with pytest.raises(Unreadable):
        dnswire.read(head + record, ASKED)


_PIECES = st.one_of(
    st.binary(max_size=3),
    st.binary(min_size=1, max_size=63).map(lambda label: bytes([len(label)]) + label),
    st.integers(0, 90).map(lambda at: struct.pack("!H", 0xC000 | at)),
    st.just(b"\0"),
)


@given(st.lists(_PIECES, max_size=12).map(b"".join))
def test_a_name_is_read_as_another_implementation_reads_it(data: bytes) -> None:
    """As the target of an alias, so that pointers have something to lead to."""
    record = b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c" + struct.pack("!H", len(data)) + data
    wire = ASKED[:2] + b"\x81\x80\0\x01\0\x01\0\0\0\0" + ASKED[12:] + record
    try:
        name, octets = dns.name.from_wire(wire, len(wire) - len(data))
    except dns.exception.DNSException:
        name, octets = None, 0
    if name is None or octets != len(data):
        with pytest.raises(Unreadable):
            dnswire.read(wire, ASKED)
    else:
        assert read(wire, ASKED).name == tuple(label.lower() for label in name.labels[:-1])


@pytest.mark.parametrize("own", [b"", b"\x01b"])
def test_a_long_name_that_everybody_points_to_is_read_once(
    own: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_labels = 0
    original = dnswire._Names._read

    def counted(names: Any, at: int, hops: int) -> Any:
        nonlocal read_labels
        found = original(names, at, hops)
        read_labels += found[2] - at  # octets that were gone through
        return found

    monkeypatch.setattr(dnswire._Names, "_read", counted)
    tail = b"\0\x10\0\x01\0\0\0\x3c\0\0"  # TXT, empty
    deep = b"\x01a" * 110 + b"\xc0\x0c"
    records = [deep + tail, *([own + struct.pack("!H", 0xC000 | len(ASKED)) + tail] * 4_000)]
    head = ASKED[:2] + b"\x81\x80\0\x01" + struct.pack("!HHH", len(records), 0, 0)
    wire = head + ASKED[12:] + b"".join(records)
    with pytest.raises(Unreadable):  # nothing in it is about what was asked
        dnswire.read(wire, ASKED)
    assert read_labels < len(wire)


def test_a_referral_is_no_denial() -> None:
    """RFC 2308 section 2.2: NS records and no SOA."""
    other = ("test", 60, "NS", ["ns.test."])
    soa = ("test", 60, "SOA", [SOA])
    alias = [("d.test", 60, "CNAME", ["e.test."])]
    assert read(answer(ASKED, sections={"authority": [other]}), ASKED).lame
    assert not read(answer(ASKED, sections={"authority": [other, soa]}), ASKED).lame
    assert not read(answer(ASKED), ASKED).lame
    followed = read(answer(ASKED, sections={"answer": alias, "authority": [other]}), ASKED)
    assert (followed.lame, followed.name) == (False, labels("e.test"))


def test_an_answer_about_another_name_cannot_be_read() -> None:
    sections = {"answer": [("e.test", 60, "MX", ["10 evil.test."])]}
    with pytest.raises(Unreadable):
        dnswire.read(answer(ASKED, sections=sections), ASKED)


def test_an_answer_to_another_kind_of_message_is_nobodys() -> None:
    wire = bytearray(answer(ASKED))
    wire[2] |= 5 << 3  # opcode UPDATE
    assert dnswire.read(bytes(wire), ASKED) is None


@given(st.binary(max_size=300), st.integers(0, 255))
def test_no_bytes_escape_as_anything_else(tail: bytes, count: int) -> None:
    head = ASKED[:2] + b"\x81\x80\0\x01" + bytes([0, count, 0, count]) + b"\0\0" + ASKED[12:]
    for wire in (tail, head + tail):
        try:
            response = dnswire.read(wire, ASKED)
        except Unreadable:
            continue
        assert response is None or isinstance(response, Response)


@given(st.data())
def test_a_damaged_answer_is_read_as_something_or_not_at_all(data: Any) -> None:
    sections = {
        "answer": [
            ("d.test", 60, "CNAME", ["e.test."]),
            ("e.test", 60, "MX", ["10 a.test.", "20 b.test."]),
        ]
    }
    wire = bytearray(answer(ASKED, sections=sections))
    for at in data.draw(st.lists(st.integers(12, len(wire) - 1), max_size=4)):
        wire[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(wire)))
    try:
        response = dnswire.read(bytes(wire[:cut] if cut % 2 else wire), ASKED)
    except Unreadable:
        return
    assert response is None or isinstance(response, Response)
