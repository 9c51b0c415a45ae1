"""Addresses and headers as strangers write them: read, or refused by a rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.shims import flags
from mailstrom.shims.handing import addresses, named_in, sender_of, without_blind
from mailstrom.shims.sysexits import Refusal

ORIGIN = "m.example"
PAGE = Path(__file__).parents[3] / "docs" / "howto" / "sendmail.md"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("root", ["root@m.example"]),
        ("root, bob@B.example", ["root@m.example", "bob@b.example"]),
        ("Ann <ann>, (x) bob@b.example", ["ann@m.example", "bob@b.example"]),
        ("Friends: a, b@b.example;", ["a@m.example", "b@b.example"]),
        ('"Doe, Ann" <ann@a.example>', ["ann@a.example"]),
        ("undisclosed-recipients:;", []),
        ("bob@grün.example", ["bob@xn--grn-ioa.example"]),
        ("grün@b.example", ["grün@b.example"]),
        ("", []),
    ],
)
def test_address_lists(text: str, keys: list[str]) -> None:
    assert addresses(text, ORIGIN, "To") == keys


def test_a_header_that_is_too_large_is_not_read_for_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mailstrom.shims.handing.addresses", pytest.fail)
    for content in (b"To: a\r\n" * 200_000, b"To: a" + b",\r\n a" * 300_000 + b"\r\n"):
        with pytest.raises(InvalidMessage) as error:
            named_in(content, ORIGIN)
        assert error.value.rule == "header-too-large"


def test_a_header_that_is_hardly_one() -> None:
    assert named_in(b"", ORIGIN) == []
    assert named_in(b"hello\r\nTo: a@b.example\r\n", ORIGIN) == []
    assert named_in(b"From ann Thu\r\nTo : a@b.example\r\nTO:c\r\n", ORIGIN) == [
        "a@b.example",
        "c@m.example",
    ]
    assert named_in("To: Jürgen <j@x.example>\r\n\r\n".encode("latin-1"), ORIGIN) == ["j@x.example"]


@given(st.text(max_size=40), st.binary(max_size=60))
def test_anything_is_read_or_refused_by_a_rule(text: str, octets: bytes) -> None:
    for read in (
        lambda: addresses(text, ORIGIN, "To"),
        lambda: [sender_of(text, ORIGIN)],
        lambda: named_in(b"To: " + octets + b"\r\nCc: x@y.example\r\n\r\n", ORIGIN),
    ):
        try:
            found = read()
        except (InvalidMessage, Refusal):
            continue
        for key in found:
            assert key == "" or re.search(r"[\r\n\0]", key) is None


LINES = (
    b"Bcc: a@b.example\r\n", b"bcc :x\r\n\ty\r\n", b"To: a\r\n", b"X: Bcc: y\r\n", b"\r\n",
    b"body\r\n", b"Resent-Bcc: z\r\n", b" fold\r\n",
)  # fmt: skip


@given(st.lists(st.sampled_from(LINES)))
def test_only_blind_copies_are_taken_out(lines: list[bytes]) -> None:
    kept = without_blind(b"".join(lines))
    expected: list[bytes] = []
    inside, dropped = True, False
    for number, line in enumerate(lines):
        fold = line.startswith((b" ", b"\t")) and number > 0
        inside = inside and (b":" in line or fold)
        if not fold:
            dropped = line.lower().startswith((b"bcc", b"resent-bcc"))
        if not (inside and dropped):
            expected.append(line)
    assert kept == b"".join(expected)


def test_the_page_names_every_flag() -> None:
    page = PAGE.read_text("utf-8")
    table = page[page.index("## Flags") : page.index("Flags cluster")]
    named = set(re.findall(r"(?<![\w-])-(b[a-zA-Z]|[a-zA-Z])", table))
    known = {*flags.IGNORED, *flags.IGNORED_WITH_VALUE, "d", "q", "t", "i", "G"}
    known |= {*flags._VALUED} - {"b"} | {*flags._REFUSED} | {f"b{mode}" for mode in flags._MODES}
    assert named == known
