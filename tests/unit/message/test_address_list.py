"""Address headers: who is meant, or a refusal; never a guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidAddress, InvalidMessage
from mailstrom.message.address_list import Group, mailboxes, parse_address_list
from mailstrom.message.header import render_entries

READ = [
    ("a@b.c", [("", "a@b.c")]),
    ("", []),
    (" a@b.c , , d@e.f,", [("", "a@b.c"), ("", "d@e.f")]),
    ("A B <a@b.c>", [("A B", "a@b.c")]),
    ("A  B<a@b.c>", [("A B", "a@b.c")]),
    ("John Q. Public <a@b.c>", [("John Q. Public", "a@b.c")]),
    ('"Smith, J" <a@b.c>', [("Smith, J", "a@b.c")]),
    ('"x@y.z" <a@b.c>', [("x@y.z", "a@b.c")]),
    ('"q\\"q\\\\" <a@b.c>', [('q"q\\', "a@b.c")]),
    ("Jörg <a@b.c>", [("Jörg", "a@b.c")]),
    ("=?utf-8?q?J=C3=B6rg?= <a@b.c>", [("Jörg", "a@b.c")]),
    ("=?utf-8?q?Smith,_J.?= <a@b.c>", [("Smith, J.", "a@b.c")]),
    ("=?utf-8?q?a?= =?utf-8?q?b?= <a@b.c>", [("ab", "a@b.c")]),
    ("=?utf-8?q?J=C3?= =?utf-8?q?=B6?= x <a@b.c>", [("Jö x", "a@b.c")]),
    ("=?utf-8?q?v=40bank=2Ecom=2C?= <a@b.c>", [("v@bank.com,", "a@b.c")]),
    ("a@b.c (Some (nested) comment, x@y.z)", [("", "a@b.c")]),
    ("(c) A (d) <(e) a@b.c (f)> (g), d@e.f", [("A", "a@b.c"), ("", "d@e.f")]),
    ('"a b"@b.c', [("", '"a b"@b.c')]),
    ("<a@b.c>", [("", "a@b.c")]),
    ("a@[192.0.2.1]", [("", "a@[192.0.2.1]")]),
    ("undisclosed-recipients:;", []),
    ("G: a@b.c, B <d@e.f>;, g@h.i", [("", "a@b.c"), ("B", "d@e.f"), ("", "g@h.i")]),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_reads_what_is_certain(text: str, expected: list[tuple[str, str]]) -> None:
    found = mailboxes(parse_address_list(text, header="To"))
    assert [(box.name, box.address.key) for box in found] == expected


REFUSED = [
    "a",
    "a b",
    "<>",
    "A <>",
    "A <a>",
    "a@b.c d@e.f",
    "a@b.c <d@e.f>",
    "A <a@b.c> B",
    "A <a@b.c> <d@e.f>",
    "A <a@b.c",
    "A a@b.c>",
    "<@r.s:a@b.c>",
    "<@r.s,@t.u:a@b.c>",
    "<<a@b.c>>",
    '"A <a@b.c>',
    "A (open <a@b.c>",
    "A ((a@b.c)",
    "G: a@b.c",
    "G: H: a@b.c;;",
    ": a@b.c;",
    "a@b.c;",
    "a@@b.c",
    "a@b@c.d",
    "=?utf-8?q?a=40b=2Ec?=",
    "=?utf-8?q?evil=40x.y?=@b.c",
    "<=?utf-8?q?a=40b.c?=>",
    "a@b.c\\",
    "a@b.c, d@",
    "a@b.c; d@e.f",
    '"x"y@b.c',
    "(" * 200 + ")" * 200 + "a@b.c",
]


@pytest.mark.parametrize("text", REFUSED)
def test_refuses_what_readers_disagree_on(text: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_address_list(text, header="Cc")
    assert caught.value.rule
    assert "Cc" in str(caught.value)


def test_groups_keep_their_name_and_members() -> None:
    (group,) = parse_address_list('"A, B": a@b.c, X <d@e.f>;', header="To")
    assert isinstance(group, Group)
    assert group.name == "A, B"
    assert [box.address.key for box in group.members] == ["a@b.c", "d@e.f"]


@given(st.text(alphabet=' \t"\\()<>@,:;.=?abé_[]', max_size=40))
def test_any_value_is_read_or_refused_and_survives_rendering(text: str) -> None:
    try:
        entries = parse_address_list(text, header="To")
    except InvalidMessage:
        return
    wire = render_entries("To", entries).wire
    again = parse_address_list(
        wire.decode("utf-8").removeprefix("To:").replace("\r\n", ""), header="To"
    )
    assert again == entries


def test_hostile_length_is_read_in_linear_steps() -> None:
    for text in (
        "a" * 200_000,
        '"' + "\\a" * 100_000,
        "(" + "a\\" * 100_000,
        "a@" * 100_000,
        "a:" * 5_000,
        "a:" * 5_000 + "b@c.d" + ";" * 5_000,
        "a: " * 5_000,
        "(" * 5_000,
    ):
        with pytest.raises((InvalidAddress, InvalidMessage)):
            parse_address_list(text, header="To")


@pytest.mark.parametrize("depth", [2, 600, 50_000])
def test_a_group_in_a_group_is_refused_before_it_is_read(depth: int) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_address_list("a:" * depth + ";" * depth, header="To")
    assert caught.value.rule == "address-group"
