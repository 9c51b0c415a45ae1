"""The mailbox grammar: what passes, its key, and the stable rule name of each refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidAddress
from mailstrom.message.address import parse_address, quote_local

ACCEPTED = [
    ("a@b.c", "a@b.c"),
    ("John.Doe+tag@Example.COM", "John.Doe+tag@example.com"),
    ("!#$%&'*+/=?^_`{|}~-@x.example", "!#$%&'*+/=?^_`{|}~-@x.example"),
    ("root@localhost", "root@localhost"),
    ("a@1.2.3.4.example", "a@1.2.3.4.example"),
    ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
    ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
    ("a@bu\u0308cher.example", "a@xn--bcher-kva.example"),
    ("a@straße.example", "a@xn--strae-oqa.example"),
    ("a@пример.испытание", "a@xn--e1afmkfd.xn--80akhbyknj4f"),
    ("jörg@x.example", "jörg@x.example"),
    ("用户@例え.テスト", "用户@xn--r8jz45g.xn--zckzah"),
    ('"a b"@x.example', '"a b"@x.example'),
    ('"a@b"@X.example', '"a@b"@x.example'),
    ('"a\\"b\\\\"@x.example', '"a\\"b\\\\"@x.example'),
    ('"a..b"@x.example', '"a..b"@x.example'),
    ('""@x.example', '""@x.example'),
    ("a@[192.0.2.1]", "a@[192.0.2.1]"),
    ("a@[IPv6:2001:DB8:0:0::1]", "a@[IPv6:2001:db8::1]"),
    ("a@[ipv6:::1]", "a@[IPv6:::1]"),
    ("l" * 64 + "@x.example", "l" * 64 + "@x.example"),
    ("a@" + "d" * 63 + ".example", "a@" + "d" * 63 + ".example"),
    ("a@" + ".".join(["d" * 63] * 3 + ["e" * 63]), "a@" + ".".join(["d" * 63] * 3 + ["e" * 63])),
]


@pytest.mark.parametrize(("text", "key"), ACCEPTED)
def test_accepts_and_normalises(text: str, key: str) -> None:
    assert parse_address(text).key == key


REFUSED = [
    ("", "address-empty"),
    ("a", "address-no-at"),
    ("@x.example", "local-empty"),
    ("a@", "domain-empty"),
    ("a@b\r\nRCPT TO:<c@d.e>", "address-control"),
    ("a\r@x.example", "address-control"),
    ("a\n@x.example", "address-control"),
    ("a\0@x.example", "address-control"),
    ("a\t@x.example", "address-control"),
    ("a\x7f@x.example", "address-control"),
    ("a\x85@x.example", "address-control"),
    ("a\u2028@x.example", "address-control"),
    ("a\ud800@x.example", "address-control"),
    ('"a\r\n"@x.example', "address-control"),
    ("a\u00a0b@x.example", "address-space"),
    ("a b@x.example", "address-space"),
    (" a@x.example", "address-space"),
    ("a@x.example ", "address-space"),
    ("a@x .example", "address-space"),
    ("<a@x.example>", "address-angle"),
    ("a@x.example>", "address-angle"),
    ("a<b@x.example", "address-angle"),
    (".a@x.example", "local-dot"),
    ("a.@x.example", "local-dot"),
    ("a..b@x.example", "local-dot"),
    ("a@b@x.example", "local-character"),
    ("a,b@x.example", "local-character"),
    ("a(c)@x.example", "local-character"),
    ("a;b@x.example", "local-character"),
    ('a"b"@x.example', "local-character"),
    ('"a"b@x.example', "local-quoting"),
    ('"a@x.example', "address-no-at"),
    ('"a\\"@x.example', "address-no-at"),
    ('"a"b"@x.example', "local-quoting"),
    ("=?utf-8?q?evil=40x?=@x.example", "local-encoded-word"),
    ("l" * 65 + "@x.example", "local-too-long"),
    ("é" * 33 + "@x.example", "local-too-long"),
    ("a@x..example", "domain-label-empty"),
    ("a@.example", "domain-label-empty"),
    ("a@x.example.", "domain-label-empty"),
    ("a@-x.example", "domain-label-hyphen"),
    ("a@x-.example", "domain-label-hyphen"),
    ("a@x_y.example", "domain-character"),
    ("a@x,y.example", "domain-character"),
    ("a@x/y", "domain-character"),
    ("a@x:25", "domain-character"),
    ("a@" + "d" * 64 + ".example", "domain-label-too-long"),
    ("a@" + "d." * 128 + "example", "domain-too-long"),
    ("a@" + "ü." * 128 + "example", "domain-too-long"),
    ("a@☃.example", "domain-idna"),
    ("a@e\u200bx.example", "domain-idna"),
    ("a@ｅｘ.example", "domain-idna"),
    ("a@[192.0.2]", "domain-literal"),
    ("a@[192.0.2.256]", "domain-literal"),
    ("a@[192.0.2.01]", "domain-literal"),
    ("a@[192.0.2.1", "domain-literal"),
    ("a@[IPv6:2001:db8::1%eth0]", "domain-literal"),
    ("a@[2001:db8::1]", "domain-literal"),
    ("a@[tag:content]", "domain-literal"),
    ("a@[]", "domain-literal"),
]


@pytest.mark.parametrize(("text", "rule"), REFUSED)
def test_refuses_by_a_named_rule(text: str, rule: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_address(text, header="To")
    assert caught.value.rule == rule
    assert caught.value.header == "To"
    assert caught.value.value == repr(text)[:200]
    assert "To" in str(caught.value)


@pytest.mark.parametrize("value", [None, 5, b"a@b.c", ["a@b.c"]])
def test_refuses_what_is_no_text(value: object) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_address(value)  # type: ignore[arg-type]
    assert caught.value.rule == "address-type"


def test_only_a_local_part_beyond_ascii_needs_smtputf8() -> None:
    assert parse_address("jörg@x.example").smtputf8
    assert not parse_address("a@bücher.example").smtputf8


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except InvalidAddress:
        return
    assert not set(address.key) & set("\r\n\0\u2028\u2029\x85")
    assert address.domain.isascii()
    assert parse_address(address.key) == address


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_a_quoted_local_part_means_the_same_text(local: str) -> None:
    try:
        address = parse_address(f"{quote_local(local)}@x.example")
    except InvalidAddress as error:
        refusal = error.rule
    else:
        refusal = ""
    assert refusal in {"", "local-too-long", "local-encoded-word"}
    if refusal:
        return
    unquoted = address.local
    if unquoted.startswith('"'):
        unquoted = unquoted[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    assert unquoted == local
